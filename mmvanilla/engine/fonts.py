# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A font in which names of classes can be drawn."""
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

import matplotlib
from matplotlib import font_manager
from mmengine.logging import print_log

from ..utils.terminal import some

# The families that mmpretrain and mmengine draw names in.
FAMILIES = ('monospace', 'sans-serif')


def font_for(names: Sequence[str]) -> AbstractContextManager:
    """A context, or decorator, in which matplotlib draws names as they are."""
    wanted = {ord(x) for x in ''.join(names) if x.isprintable()} - {32}

    def lacks(path: str) -> set[int]:
        try:
            return wanted - font_manager.get_font(path).get_charmap().keys()
        except (OSError, RuntimeError):  # no font
            return wanted

    settings = {'text.parse_math': False}  # "$" is a character
    present = [font_manager.findfont(font_manager.FontProperties(family=[x]))
               for x in FAMILIES]
    if any(map(lacks, present)):
        # Without matplotlib's own, which has a box for each character.
        others = [x.fname for x in font_manager.fontManager.ttflist
                  if 'LastResort' not in x.fname]
        best = min(present + others, key=lambda path: len(lacks(path)))
        family = font_manager.get_font(best).family_name
        for name in FAMILIES:
            key = f'font.{name}'
            settings[key] = [family, *matplotlib.rcParams[key]]
        if lacks(best):
            print_log(
                f'no font has {some([*map(chr, sorted(lacks(best)))])}, of '
                'names of classes: install one, and remove the list of fonts '
                f'in {matplotlib.get_cachedir()}, or name its family in '
                'font.monospace and font.sans-serif of the file matplotlibrc',
                'current', logging.WARNING)
    return matplotlib.rc_context(settings)
