#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Predict an image or a folder of images, as ``mmvanilla-predict`` does."""
import sys

try:
    from mmvanilla.engine.predict import main
except ImportError as e:
    sys.exit(f'error: {e}')

if __name__ == '__main__':
    main()
