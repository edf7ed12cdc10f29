# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The reference numbers of tests/data and what compares with them.

Each file was made by running the code that the paper's authors released, at
small widths. ``plain``, ``act4_deep`` (n = 4) and ``ada_pool`` (adaptive
pooling) hold ``kwargs`` (``dims``, ``strides``, ``act_num``, ``num_classes``,
``ada_pool``), ``input`` (N, 3, H, W), ``state_dict`` under the authors' names,
``eval[lam]`` for lam in 0.0, 0.37, 1.0, ``deploy``,
``logits_float64_lambda1`` and ``train``, a train-mode step at lambda 0.37.
``recipe_trace`` holds 18 steps of the authors' training.
"""
from pathlib import Path

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor

import mmvanilla  # noqa: F401
from mmvanilla.checkpoints import from_authors

DATA = Path(__file__).parent / 'data'


def load(name: str) -> dict:
    """Read one of the golden files."""
    return torch.load(DATA / f'{name}.pt', weights_only=True)


def model_cfg(golden: dict, deploy: bool = False) -> dict:
    """Config of the network that a golden file is of."""
    kwargs = golden['kwargs']
    arch = {
        k: kwargs[k]
        for k in ('dims', 'strides', 'ada_pool') if k in kwargs
    }
    return dict(
        type='ImageClassifier',
        backbone=dict(
            type='VanillaNet',
            arch=arch,
            act_num=kwargs['act_num'],
            deploy=deploy),
        head=dict(
            type='VanillaNetHead',
            num_classes=kwargs['num_classes'],
            in_channels=kwargs['dims'][-1],
            deploy=deploy))


def build_classifier(golden: dict, deploy: bool = False) -> ImageClassifier:
    """Build the network of a golden file in eval mode, weights loaded."""
    cfg = model_cfg(golden, deploy)
    model = ImageClassifier(cfg['backbone'], head=cfg['head'])
    theirs = golden['deploy'] if deploy else golden
    # The trace starts from ``init``.
    theirs = theirs.get('state_dict', theirs.get('init'))
    model.load_state_dict(from_authors(theirs), strict=True)
    return model.eval()


def relative_l2(a: Tensor, b: Tensor) -> float:
    """Distance of a from b, relative to the length of b."""
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm()).item()


def same(a: dict, b: dict) -> bool:
    """Whether two state dicts are bit-identical, the order included."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def one_sentence(error) -> str:
    """Text of a UserError that pytest caught, which must be one line."""
    text = str(error.value)
    assert '\n' not in text and len(text) < 600
    return text


# Widths in units of 128, as in the paper's table and the authors' release.
WIDTHS = {
    '5': [4, 8, 16, 32],
    '6': [4, 8, 16, 32, 32],
    '7': [4, 4, 8, 16, 32, 32],
    '8': [4, 4, 8, 16, 16, 32, 32],
    '9': [4, 4, 8, 16, 16, 16, 32, 32],
    '10': [4, 4, 8] + [16] * 4 + [32, 32],
    '11': [4, 4, 8] + [16] * 5 + [32, 32],
    '12': [4, 4, 8] + [16] * 6 + [32, 32],
    '13': [4, 4, 8] + [16] * 7 + [32, 32],
    '13-x1.5': [6, 6, 12] + [24] * 7 + [48, 48],
    '13-x1.5-ada': [6, 6, 12] + [24] * 7 + [48, 48],
}


def random_authors_weights(dims: list,
                           act_num: int = 3,
                           num_classes: int = 1000,
                           deploy: bool = False) -> dict:
    """A state dict of any widths under the authors' names and shapes."""
    sd = {}

    # One number in memory and in a file, whatever the shape.
    def tensor(*shape):
        return torch.rand(1).expand(shape)

    def conv(name, out, in_, k=1):
        sd[f'{name}.weight'] = tensor(out, in_, k, k)
        sd[f'{name}.bias'] = tensor(out)

    def norm(name, channels):
        for entry in ('weight', 'bias', 'running_mean', 'running_var'):
            sd[f'{name}.{entry}'] = tensor(channels)
        sd[f'{name}.num_batches_tracked'] = torch.tensor(0)

    def series(name, channels):
        k = 2 * act_num + 1
        sd[f'{name}.weight'] = tensor(channels, 1, k, k)
        if deploy:
            sd[f'{name}.bias'] = tensor(channels)
        else:
            norm(f'{name}.bn', channels)

    if deploy:
        conv('stem.0', dims[0], 3, 4)
        series('stem.1', dims[0])
        for i, (a, b) in enumerate(zip(dims, dims[1:])):
            series(f'stages.{i}.act', b)
            conv(f'stages.{i}.conv', b, a)
        conv('cls.2', num_classes, dims[-1])
        return sd
    conv('stem1.0', dims[0], 3, 4)
    norm('stem1.1', dims[0])
    conv('stem2.0', dims[0], dims[0])
    norm('stem2.1', dims[0])
    series('stem2.2', dims[0])
    for i, (a, b) in enumerate(zip(dims, dims[1:])):
        series(f'stages.{i}.act', b)
        conv(f'stages.{i}.conv1.0', a, a)
        norm(f'stages.{i}.conv1.1', a)
        conv(f'stages.{i}.conv2.0', b, a)
        norm(f'stages.{i}.conv2.1', b)
    conv('cls1.2', num_classes, dims[-1])
    norm('cls1.3', num_classes)
    conv('cls2.0', num_classes, num_classes)
    return sd
