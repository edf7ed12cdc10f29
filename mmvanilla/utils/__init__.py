# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What everything else stands on: errors, files, tables, configs."""
