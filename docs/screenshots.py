#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Draw what a terminal shows while a network trains, and when it ends.

    python docs/screenshots.py

trains a narrow network on the generated photos of tests/photos.py, on a CPU,
and writes docs/images/{training,summary}.svg.
"""
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'tests'), str(ROOT)]
WIDTH, HEIGHT = 120, 24
TOKEN = re.compile(r'(\x1b\[[0-9;?]*[A-Za-z]|\n)')


def screen(output: str) -> list[str]:
    """The lines that a terminal shows after ``output``, with colours.

    Knows what rich writes: erasing a line and going up some lines.
    """
    lines, row = [''], 0
    for token in TOKEN.split(output.replace('\r', '')):
        if token == '\n':
            row += 1
            lines += [''] * (row + 1 - len(lines))
        elif token.startswith('\x1b[') and token.endswith('A'):
            row -= int(token[2:-1] or 1)
        elif token == '\x1b[2K':
            lines[row] = ''
        elif not token.startswith('\x1b[?'):
            lines[row] += token
    return lines


def save(lines: list[str], command: str, path: Path) -> None:
    """Draw the last lines, below the command that was typed."""
    console = Console(
        record=True, width=WIDTH, file=open(os.devnull, 'w'))
    text = Text.from_ansi('\n'.join(lines[-HEIGHT:]).rstrip('\n'))
    console.print(text, overflow='crop', no_wrap=True, crop=True)
    console.save_svg(str(path), title=command)


def write_config(path: Path) -> None:
    """The recipe with a narrow network of random weights and small images."""
    from mmengine.config import Config
    cfg = Config.fromfile(ROOT / 'configs/vanillanet/vanillanet-6_finetune.py')
    cfg.merge_from_dict(dict(
        load_from=None,
        model=dict(
            backbone=dict(arch=dict(
                _delete_=True, dims=[16, 32, 64, 64], strides=[2, 2, 1])),
            head=dict(in_channels=64)),
        optim_wrapper=dict(optimizer=dict(lr=4e-3)),
        train_cfg=dict(max_epochs=15)))
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        pipeline = loader.dataset.pipeline
        pipeline[1].scale = 54
        if name == 'train':
            pipeline[1].scale = 48
        else:
            pipeline[2].crop_size = 48
    cfg.dump(path)


def main() -> None:
    from photos import write_photos
    command = ['tools/train.py', 'narrow.py', '--data', 'photos',
               '--check-images']
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder, 'photos'), per_class=25)
        write_config(Path(folder, 'narrow.py'))
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, ROOT / command[0], *command[1:]],
            cwd=folder, stdout=slave, stderr=slave, stdin=slave,
            env=dict(os.environ, PYTHONPATH=str(ROOT), TERM='xterm-256color',
                     COLUMNS=str(WIDTH), LINES=str(HEIGHT)))
        os.close(slave)
        output = b''
        try:
            while block := os.read(master, 1 << 16):
                output += block
        except OSError:  # the other end was closed
            pass
        os.close(master)
        if process.wait():
            sys.exit(output.decode())
    text = output.decode().replace(os.path.realpath(folder), '~')
    typed = ' '.join(['python', *command])
    images = ROOT / 'docs/images'
    # With the bar as it was first drawn in the eighth epoch.
    moment = text.index('\n', text.index('epoch 8/15') - WIDTH)
    moment = re.compile('\x1b\\[2K').search(text, moment).start()
    save(screen(text[:moment]), typed, images / 'training.svg')
    save(screen(text), typed, images / 'summary.svg')


if __name__ == '__main__':
    main()
