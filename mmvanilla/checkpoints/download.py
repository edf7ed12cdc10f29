# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Downloading a checkpoint into torch.hub's cache, atomically."""
import hashlib
import re
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from mmengine.dist import barrier, get_local_rank
from rich.console import Console
from rich.progress import Progress

from ..utils.errors import UserError
from ..utils.files import replace_atomically, sha256
from .safe_load import read_checkpoint

TIMEOUT = 30  # seconds without a byte


def hub_folder() -> Path:
    """The folder of torch.hub's cache that checkpoints are in."""
    return Path(torch.hub.get_dir()) / 'checkpoints'


def cache_path(url: str) -> Path:
    """Path of a URL's file in torch.hub's cache.

    Each URL has a folder of its own, named after its SHA-256, since files of
    other URLs may have the same name. A file that torch or mmengine
    downloaded is used where it is: directly in :func:`hub_folder`, if its
    name holds the beginning of its SHA-256, as in 'resnet18-f37072fd.pth'.

    Raises:
        UserError: If the URL does not end in the name of a file.
    """
    name = Path(urlparse(url).path).name
    if not name:
        raise UserError(f'{url} does not end in the name of a file')
    shared = hub_folder() / name
    digest = re.search(r'-([0-9a-f]{8,})\.[^.]*$', name)
    if digest and shared.is_file() and sha256(shared).startswith(digest[1]):
        return shared
    folder = hashlib.sha256(url.encode()).hexdigest()[:16]
    return hub_folder() / folder / name


def download(url: str, path: Path) -> Path:
    """Download a checkpoint, unless the file exists.

    Of several processes on a machine the first downloads and the others wait.

    Args:
        url (str): Where to download from.
        path (Path): The file to write.

    Returns:
        Path: ``path``.

    Raises:
        UserError: If the download fails, or the file is not a checkpoint.
    """
    try:
        if get_local_rank() == 0 and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path) as part:
                _fetch(url, part)
                # A server may send an error page instead.
                read_checkpoint(part)
    except (OSError, ValueError, HTTPException, UserError) as e:
        reason = getattr(e, 'strerror', None) or e
        raise UserError(f'cannot download {url} ({reason}): put the file by '
                        f'hand at {path}') from e
    finally:
        barrier()
    return path


def _fetch(url: str, path: Path) -> None:
    request = Request(url, headers={'User-Agent': 'mmvanilla'})
    with urlopen(request, timeout=TIMEOUT) as response:
        size = int(response.headers.get('Content-Length') or 0)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OSError(f'it needs {size / 1e6:.0f} MB and {path.parent} '
                          f'has {free / 1e6:.0f} MB left')
        done = 0
        with path.open('wb') as file, Progress(
                console=Console(stderr=True)) as bar:
            task = bar.add_task(
                f'Downloading {url.rpartition("/")[2]}', total=size or None)
            while block := response.read(1 << 20):
                done += file.write(block)
                bar.update(task, completed=done)
    if size and done != size:
        raise OSError(f'{done} of {size} bytes arrived')
