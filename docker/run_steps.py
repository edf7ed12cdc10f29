#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Run the steps of a Dockerfile without Docker, then train with the result.

The steps run in a temporary folder with a virtual environment of its own, made
by the Python that runs this script. What cannot be done like this is printed
as skipped (the base image, packages of the system) or changed (a package index
that is out of reach). The steps must leave a package that trains. This does
not build an image, nor show that one builds.
"""
import argparse
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
# What an image must be able to do, in its WORKDIR.
SMOKE = [
    """python -c '
import torch
import mmvanilla
from mmpretrain import get_model
with torch.device("meta"):
    model = get_model("vanillanet-6_8xb128_in1k")
    logits = model(torch.empty(1, 3, 224, 224))
print(mmvanilla.__file__, torch.__version__, tuple(logits.shape))
assert logits.shape == (1, 1000)
'""",
    'python tools/train.py configs/vanillanet/vanillanet-tiny_1xb64_digits.py'
    ' --cfg-options train_cfg.max_epochs=1',
]


def steps_of(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: (name, rest of the line)."""
    lines = [line for line in text.splitlines()
             if line.strip() and not line.lstrip().startswith('#')]
    joined = re.sub(r'\\\n\s*', '', '\n'.join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves out a path or a folder that it is in."""
    path = PurePosixPath(path)
    for part in [path, *path.parents]:
        for pattern in patterns:
            anywhere = pattern.startswith('**/')
            name = part.name if anywhere else str(part)
            pattern = pattern.removeprefix('**/')
            # `*` does not cross folders in Docker, but does in fnmatch.
            if (name.count('/') == pattern.count('/')
                    and fnmatch.fnmatchcase(name, pattern)):
                return True
    return False


def copy(source: str, target: str, context: Path, workdir: Path) -> None:
    """COPY: lay out a file or a folder without what .dockerignore names."""
    ignore = context / '.dockerignore'
    patterns = [] if not ignore.is_file() else [
        line.rstrip('/') for line in ignore.read_text('utf-8').splitlines()
        if line.strip() and not line.startswith('#')]

    def ignored(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(context)
        return [name for name in names
                if is_ignored((inside / name).as_posix(), patterns)]

    path = context / source
    if path.is_dir():
        shutil.copytree(path, workdir / target, symlinks=True, ignore=ignored,
                        dirs_exist_ok=True)
    else:
        shutil.copy(path, workdir / target)


def is_reachable(url: str) -> bool:
    """Whether a server answers, with whatever status, in 20 seconds."""
    try:
        urllib.request.urlopen(url, timeout=20).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def without_dead_index(command: str) -> str:
    """Leave out `--index-url URL` where nothing answers there."""
    for option, url in re.findall(r'(--index-url[= ](\S+))', command):
        if not is_reachable(url):
            print(f'CHANGED  {url} is out of reach: its packages come from '
                  'the default index instead')
            command = command.replace(option, '')
    return command


def shell(command: str, folder: Path, env: dict[str, str]) -> None:
    """Run a command as RUN does, and stop at its failure."""
    done = subprocess.run(['sh', '-c', command], cwd=folder, env=env,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f'FAILED   {command}')


def run_steps(dockerfile: Path, context: Path,
              folder: Path) -> tuple[Path, dict[str, str]]:
    """Run the steps of a Dockerfile.

    Args:
        dockerfile (Path): The Dockerfile.
        context (Path): The folder that COPY copies from.
        folder (Path): An empty folder, which stands for the image's root.

    Returns:
        tuple: The working directory and the environment of the image.
    """
    subprocess.run([sys.executable, '-m', 'venv', folder / 'venv'], check=True)
    env = {key: value for key, value in os.environ.items()
           if key not in ('PYTHONPATH', 'PYTHONHOME')}
    env['VIRTUAL_ENV'] = str(folder / 'venv')
    env['PATH'] = f'{folder / "venv" / "bin"}{os.pathsep}{env["PATH"]}'
    workdir = folder
    for name, rest in steps_of(dockerfile.read_text('utf-8')):
        if name in ('FROM', 'CMD') or rest.startswith('apt-get '):
            print(f'SKIPPED  {name} {rest}', flush=True)
            continue
        print(f'STEP     {name} {rest}', flush=True)
        if name == 'ENV':
            for pair in shlex.split(rest):
                key, value = pair.split('=', 1)
                # An image is to be small; here a cache saves downloads.
                if key == 'PIP_NO_CACHE_DIR':
                    print(f'SKIPPED  {pair}: pip uses its cache here')
                else:
                    env[key] = value
        elif name == 'WORKDIR':
            workdir = folder / rest.lstrip('/')
            workdir.mkdir(parents=True, exist_ok=True)
        elif name == 'COPY':
            copy(*rest.split(), context, workdir)
        elif name == 'RUN':
            shell(without_dead_index(rest), workdir, env)
        else:
            sys.exit(f'error: {dockerfile} has the instruction {name}, which '
                     'this script does not know')
    return workdir, env


def main() -> None:
    """Run the steps and the smoke test."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'dockerfile', nargs='?', type=Path,
        default=ROOT / 'docker' / 'cpu.Dockerfile',
        help='defaults to docker/cpu.Dockerfile')
    dockerfile = parser.parse_args().dockerfile
    with tempfile.TemporaryDirectory() as name:
        workdir, env = run_steps(dockerfile, ROOT, Path(name))
        for command in SMOKE:
            print(f'CHECK    {command}', flush=True)
            shell(command, workdir, env)
    print(f'The steps of {dockerfile.name} that ran lead to a package that '
          'trains.')


if __name__ == '__main__':
    main()
