# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
__version__ = '0.3.0'
