# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The reference numbers of tests/data and what compares with them.

Each file was made by running the code that the paper's authors released, at
small widths: the networks ``plain``, ``act4_deep`` (n = 4) and ``ada_pool``,
whose weights have the authors' names, with their outputs in eval mode at
three lambdas, in deploy form and of one training step; and ``recipe_trace``,
18 steps of the authors' training.
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
    arch = {k: kwargs[k] for k in ('dims', 'strides', 'ada_pool')
            if k in kwargs}
    return dict(
        type='ImageClassifier',
        backbone=dict(type='VanillaNet', arch=arch, act_num=kwargs['act_num'],
                      deploy=deploy),
        head=dict(type='VanillaNetHead', num_classes=kwargs['num_classes'],
                  in_channels=kwargs['dims'][-1], deploy=deploy))


def build_classifier(golden: dict, deploy: bool = False) -> ImageClassifier:
    """Build the network of a golden file in eval mode, weights loaded."""
    cfg = model_cfg(golden, deploy)
    model = ImageClassifier(cfg['backbone'], head=cfg['head'])
    theirs = golden['deploy'] if deploy else golden
    model.load_state_dict(from_authors(theirs['state_dict']), strict=True)
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
    **{str(6 + n): [4, 4, 8] + [16] * n + [32, 32] for n in range(1, 8)},
    '13-x1.5': [6, 6, 12] + [24] * 7 + [48, 48],
    '13-x1.5-ada': [6, 6, 12] + [24] * 7 + [48, 48],
}


def random_authors_weights(dims: list,
                           act_num: int = 3,
                           num_classes: int = 1000,
                           deploy: bool = False) -> dict:
    """A state dict of any widths under the authors' names and shapes."""
    sd, size = {}, 2 * act_num + 1

    def layer(name, norm, *shape, bias=True):
        shapes = {f'{name}.weight': shape}
        if bias:
            shapes[f'{name}.bias'] = shape[:1]
        if norm:
            for entry in ('weight', 'bias', 'running_mean', 'running_var'):
                shapes[f'{norm}.{entry}'] = shape[:1]
        # One number in memory and in a file, whatever the shape.
        sd.update((k, torch.rand(1).expand(v)) for k, v in shapes.items())
        if norm:
            sd[f'{norm}.num_batches_tracked'] = torch.tensor(0)

    def series(name, channels):
        layer(name, None if deploy else f'{name}.bn', channels, 1, size, size,
              bias=deploy)

    if deploy:
        layer('stem.0', None, dims[0], 3, 4, 4)
    else:
        layer('stem1.0', 'stem1.1', dims[0], 3, 4, 4)
        layer('stem2.0', 'stem2.1', dims[0], dims[0], 1, 1)
    series('stem.1' if deploy else 'stem2.2', dims[0])
    for i, (a, b) in enumerate(zip(dims, dims[1:])):
        conv = f'stages.{i}.conv'
        series(f'stages.{i}.act', b)
        if deploy:
            layer(conv, None, b, a, 1, 1)
        else:
            layer(f'{conv}1.0', f'{conv}1.1', a, a, 1, 1)
            layer(f'{conv}2.0', f'{conv}2.1', b, a, 1, 1)
    if deploy:
        layer('cls.2', None, num_classes, dims[-1], 1, 1)
    else:
        layer('cls1.2', 'cls1.3', num_classes, dims[-1], 1, 1)
        layer('cls2.0', None, num_classes, num_classes, 1, 1)
    return sd
