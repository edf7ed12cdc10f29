# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
