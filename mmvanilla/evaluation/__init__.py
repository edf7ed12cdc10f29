# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .imagenet_real_accuracy import ImageNetReaLAccuracy

__all__ = ['ImageNetReaLAccuracy']
