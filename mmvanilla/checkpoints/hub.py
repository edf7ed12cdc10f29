# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Register the scheme ``vanillanet://`` and the index of our models."""
import os
import sys
import time
from http.client import HTTPException
from pathlib import Path

import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader
from mmpretrain import registry
from mmpretrain.apis import ModelHub

from ..utils.errors import UserError
from ..utils.files import write_beside
from ..utils.terminal import some
from .official import authors_lam, from_authors
from .read import official_prefix, read_checkpoint

# The authors' published weights: name of the file, arguments of the network.
PUBLISHED = {
    **{f'vanillanet_{n}': dict(arch=str(n)) for n in range(5, 14)},
    'vanillanet_13_x1_5': dict(arch='13-x1.5'),
    'vanillanet_13_x1_5_ada_pool': dict(arch='13-x1.5-ada'),
    # Trained with knowledge distillation, for dense prediction.
    'vanillanet_13_act_num_4_kd_pretrain': dict(arch='13', act_num=4),
    # Checkpoints of mmdetection 2.x.
    'retinanet_vanillanet_13': dict(arch='13', act_num=4),
    'mask_rcnn_vanillanet_13': dict(arch='13', act_num=4),
}
SCHEME = 'vanillanet://'
URL = 'https://github.com/huawei-noah/VanillaNet/releases/download/ckpt/'
WAIT = 1800  # seconds that processes wait for the one that downloads
LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')


def root() -> Path:
    """The folder of ``configs``: the root of a clone, or ``.mim``."""
    package = Path(__file__).resolve().parents[1]
    clone = (package.parent / 'model-index.yml').is_file()
    return package.parent if clone else package / '.mim'


def read_official(path: str | Path, key: str | None = None) -> dict:
    """Read an entry of a file in the authors' format as in our format."""
    content = read_checkpoint(path)
    detector = official_prefix(content.get('state_dict')) == 'backbone.'
    if 'state_dict' in content and not detector:
        raise UserError(f"{path} holds state_dict: it is in mmengine's format "
                        "and not the authors', and needs no converting")
    if key and not detector and key not in content:
        raise UserError(f'{path} holds no {key}, but {some(list(content))}')
    keys = ('state_dict', ) if detector else (key, ) if key else (
        'model_ema', 'model')
    weights = next((content[k] for k in keys if k in content), content)
    try:
        state_dict = from_authors(weights)
    except UserError as e:
        raise UserError(f"{path} is not in the authors' format: {e}") from e
    for key in state_dict:
        # Published files hold finished networks, whatever their epoch is.
        published = Path(path).stem in PUBLISHED and not isinstance(
            content.get('epoch'), int)
        if key.endswith('.act.lam') and not published:
            state_dict[key].fill_(authors_lam(content, path))
    name = getattr(content.get('args'), 'model', None) or Path(path).stem
    meta = dict(model=str(name))
    theirs = content.get('meta')
    classes = theirs.get('CLASSES') if isinstance(theirs, dict) else None
    if detector and isinstance(classes, (list, tuple)):
        meta['dataset_meta'] = dict(classes=tuple(map(str, classes)))
    return dict(state_dict=state_dict, meta=meta)


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_vanillanet(filename: str, map_location=None) -> dict:
    """Load a published file by its name, or a local one, on the CPU."""
    name = filename.removeprefix(SCHEME)
    if not name.startswith('/') and name not in PUBLISHED:
        raise UserError(f'{SCHEME}{name} is not known; there are '
                        f'{", ".join(PUBLISHED)}, and '
                        'vanillanet:///path/to/file.pth')
    content = read_official(name if name[0] == '/' else _download(name))
    content['meta']['source'] = filename
    return content


def _download(name: str) -> Path:
    """Download a file into torch.hub's cache, once for each machine."""
    # mmengine's get_local_rank fails in a process group, and is 0 without.
    url = f'{URL}{name}.pth'
    path = Path(torch.hub.get_dir(), 'checkpoints', f'{name}.pth')
    rank = next(filter(None, map(os.environ.get, LOCAL_RANKS)), '0')
    end = time.monotonic() + WAIT
    while not path.is_file() and rank != '0':
        if time.monotonic() > end:
            raise UserError(
                f'{path} did not appear within {WAIT // 60} minutes, which '
                'the process of local rank 0 on this machine downloads')
        time.sleep(0.2)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_beside(path) as (part, ):
            torch.hub.download_url_to_file(
                url, str(part), progress=sys.stderr.isatty())
            # A connection may break, or a server send an error page.
            read_checkpoint(part)
    except (OSError, ValueError, HTTPException, UserError) as e:
        raise UserError(f'cannot download {url} ({e}): put the file by hand '
                        f'at {path}, or train without it by --cfg-options '
                        'load_from=None') from e
    return path


# For `mmvanilla::...` in configs. In editable installs, mmengine 0.10.7 finds
# the folder of a module but not of a distribution.
MODULE2PACKAGE.setdefault('mmvanilla', 'mmvanilla.version')
# mmengine looks for the types of such a config in the scope of its package.
for parent in vars(registry).values():
    if isinstance(parent, Registry):
        Registry(parent.name, parent=parent, scope='mmvanilla', locations=[
            'mmpretrain.' + part for part in
            'datasets engine evaluation models visualization'.split()])
ModelHub.register_model_index(
    root() / 'model-index.yml', config_prefix=root())
