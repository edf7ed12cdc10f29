#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Run the code blocks of Markdown pages, and notebooks, as a reader would.

Each page runs in a copy of the repository, its blocks in their order: the
Python blocks in one process, the bash blocks as scripts that stop at the first
error. A block behind ``<!-- not run: REASON -->`` is listed and not run. A
notebook, a page that ends in ``.ipynb``, runs in its folder of such a copy.
"""
import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r'(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<language>bash|python)\n'
    r'(?P<code>.*?)^```$', re.DOTALL | re.MULTILINE)
# What a block needs that is not on a page; the README's two commands are run
# by CI as they stand.
NOT_RUN = ('not run: ', 'command: ')


@dataclass
class Block:
    """A code block: its page, line, language, text and note."""

    page: Path
    line: int
    language: str
    code: str
    note: str

    @property
    def is_run(self) -> bool:
        """bool: Whether the block is run and not only listed."""
        return not self.note.startswith(NOT_RUN)


def blocks_of(page: Path) -> list[Block]:
    """The bash and python blocks of a page, in order."""
    text = page.read_text(encoding='utf-8')
    return [
        Block(page, text[:m.start('code')].count('\n') + 1, m['language'],
              m['code'], m['note'] or '') for m in BLOCK.finditer(text)
    ]


def copy_repository(folder: Path) -> None:
    """Lay out what git tracks, and what it does not ignore, in a folder."""
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others',
         '--exclude-standard'],
        cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split('\0')):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
            target.chmod((ROOT / name).stat().st_mode)


def run(block: Block, folder: Path, before: str) -> str | None:
    """Run one block; return the end of its output where it failed."""
    if block.language == 'python':
        command = [sys.executable, '-c', before + block.code]
    else:
        command = ['bash', '-euo', 'pipefail', '-c', block.code]
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    return done.stdout[-3000:] if done.returncode else None


def run_page(page: Path) -> int:
    """Run the blocks of a page; return how many failed."""
    failures, before = 0, ''
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blocks = blocks_of(page)
        if any(block.is_run for block in blocks):
            copy_repository(folder)
        for block in blocks:
            where = f'{page}:{block.line}'
            if not block.is_run:
                print(f'listed  {where} ({block.note})')
                continue
            output = run(block, folder, before)
            if block.language == 'python':
                before += block.code
            print(f'{"passed" if output is None else "FAILED"}  {where}',
                  flush=True)
            if output is not None:
                failures += 1
                print(output)
    return failures


def run_notebook(page: Path) -> int:
    """Run a copy of a notebook; return 1 where a cell failed, else 0."""
    # Of the extra `docs`; pages of Markdown do not need them.
    import nbclient
    import nbformat
    with tempfile.TemporaryDirectory() as name:
        copy_repository(Path(name))
        path = name / page.resolve().relative_to(ROOT)
        client = nbclient.NotebookClient(
            nbformat.read(path, as_version=4),
            timeout=600,
            kernel_name='python3',
            resources=dict(metadata=dict(path=str(path.parent))))
        try:
            client.execute()
        except nbclient.exceptions.CellExecutionError as e:
            print(f'FAILED  {page}\n{str(e)[-3000:]}')
            return 1
    print(f'passed  {page}', flush=True)
    return 0


def main() -> int:
    """Run the pages named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', nargs='+', type=Path)
    return sum(
        run_notebook(page) if page.suffix == '.ipynb' else run_page(page)
        for page in parser.parse_args().pages)


if __name__ == '__main__':
    sys.exit(main() > 0)
