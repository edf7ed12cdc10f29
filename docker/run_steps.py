#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Run the steps of docker/cpu.Dockerfile without Docker, then train.

The steps run in a temporary folder with a virtual environment of its own, made
by the Python that runs this script. What cannot be done like this is printed
as SKIPPED (the base image, packages of the system) or CHANGED (a package index
that is out of reach). What the steps leave must train. This builds no image,
and does not show that one builds. Takes 7 GB of disk where torch comes with
CUDA.
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


def say(text: str) -> None:
    """Print a line before the output of the commands that follow."""
    print(text, flush=True)


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
            say(f'CHANGED  {url} is out of reach: its packages come from the '
                'default index instead')
            command = command.replace(option, '')
    return command


def shell(command: str, folder: Path, env: dict[str, str]) -> None:
    """Run a command as RUN does, and stop at its failure."""
    done = subprocess.run(['sh', '-c', command], cwd=folder, env=env,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f'FAILED   {command}')


def fresh_environment(folder: Path) -> dict[str, str]:
    """Make a virtual environment; return the variables that activate it."""
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    env = {key: value for key, value in os.environ.items()
           if key not in ('PYTHONPATH', 'PYTHONHOME')}
    env['VIRTUAL_ENV'] = str(folder)
    env['PATH'] = f'{folder / "bin"}{os.pathsep}{env["PATH"]}'
    return env


def run_steps(dockerfile: Path, context: Path, folder: Path,
              env: dict[str, str]) -> Path:
    """Run the steps of a Dockerfile.

    Args:
        dockerfile (Path): The Dockerfile.
        context (Path): The folder that COPY copies from.
        folder (Path): A folder that stands for the image's root.
        env (dict): Environment variables; those of ENV are added in place.

    Returns:
        Path: The working directory after the last step.
    """
    workdir = folder
    for name, rest in steps_of(dockerfile.read_text('utf-8')):
        if name in ('FROM', 'CMD') or rest.startswith('apt-get '):
            say(f'SKIPPED  {name} {rest}')
            continue
        say(f'STEP     {name} {rest}')
        if name == 'ENV':
            for pair in shlex.split(rest):
                key, value = pair.split('=', 1)
                # An image is to be small; here a cache saves downloads.
                if key == 'PIP_NO_CACHE_DIR':
                    say(f'SKIPPED  {pair}: pip uses its cache here')
                else:
                    env[key] = value
        elif name == 'WORKDIR':
            workdir = folder / rest.lstrip('/')
            workdir.mkdir(parents=True, exist_ok=True)
        elif name == 'COPY':
            try:
                source, target = rest.split()
            except ValueError:
                sys.exit('error: this script copies one file or folder at a '
                         f'time, but {dockerfile} has COPY {rest}')
            copy(source, target, context, workdir)
        elif name == 'RUN':
            shell(without_dead_index(rest), workdir, env)
        else:
            sys.exit(f'error: {dockerfile} has the instruction {name}, which '
                     'this script does not know')
    return workdir


def main() -> None:
    """Run the steps and the smoke test."""
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    dockerfile = ROOT / 'docker' / 'cpu.Dockerfile'
    with tempfile.TemporaryDirectory() as name:
        env = fresh_environment(Path(name, 'venv'))
        workdir = run_steps(dockerfile, ROOT, Path(name), env)
        for command in SMOKE:
            say(f'CHECK    {command}')
            shell(command, workdir, env)
    say('The steps that ran lead to a package that trains.')


if __name__ == '__main__':
    main()
