# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The networks that are measured, by name."""
import difflib
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..export.network import Network
from ..models import VanillaNet, VanillaNetHead
from ..utils.errors import UserError
from .plain import PlainVanillaNet

OURS = {f'VanillaNet-{arch}': arch for arch in VanillaNet.arch_settings}
PEERS = {
    'ResNet-18': 'resnet18_8xb32_in1k',
    'ResNet-34': 'resnet34_8xb32_in1k',
    'ResNet-50': 'resnet50_8xb32_in1k',
    'ResNet-101': 'resnet101_8xb32_in1k',
    'Swin-T': 'swin-tiny_16xb64_in1k',
    'Swin-S': 'swin-small_16xb64_in1k',
}
# ImageNet top-1 of arXiv 2305.12972, per cent.
PAPER_ACCURACY = {
    '5': 72.49, '6': 76.36, '7': 77.98, '8': 79.13, '9': 79.87, '10': 80.57,
    '11': 81.08, '12': 81.55, '13': 82.05, '13-x1.5': 82.53,
    '13-x1.5-ada': 83.11
}  # yapf: disable


def vanillanet(arch: str, deploy: bool = True, **kwargs) -> Network:
    """A VanillaNet with a head of 1000 classes and random weights.

    Args:
        arch (str): A key of ``VanillaNet.arch_settings``.
        deploy (bool): Whether in deploy form, else in train form. Defaults to
            True.
        **kwargs: Arguments of :class:`VanillaNet`.
    """
    backbone = VanillaNet(arch, deploy=deploy, **kwargs)
    width = VanillaNet.arch_settings[arch]['dims'][-1]
    return Network(backbone, VanillaNetHead(1000, width, deploy=deploy))


def plain_like(network: Network, arch: str,
               train_form: bool = False) -> PlainVanillaNet:
    """The plain network of the same arch.

    In deploy form it shares the parameters of ``network``; in train form it
    has random weights of its own.
    """
    plain = PlainVanillaNet(
        **VanillaNet.arch_settings[arch], train_form=train_form)
    if not train_form:
        _share_parameters(plain, network)
    return plain


def _share_parameters(plain: nn.Module, network: nn.Module) -> None:
    # Both have weight and bias in the order of the forward pass.
    pairs = zip(plain.parameters(), network.parameters(), strict=True)
    for target, source in pairs:
        assert target.shape == source.shape
        target.data = source.data


class Subject(NamedTuple):
    """What is measured.

    Attributes:
        name (str): Its name in the table.
        arch (str, optional): Of a VanillaNet with a head for ImageNet.
        config (str, optional): The config of a whole model. With neither it
            is a classifier of mmpretrain's.
    """

    name: str
    arch: str | None = None
    config: str | None = None


def resolve(name: str) -> Subject:
    """Find a network by its arch, its name or its config.

    Args:
        name (str): '6', 'VanillaNet-6', 'ResNet-50', any name that
            mmpretrain's ``get_model`` knows, or a config file: a path or
            'mmdet::' and a path inside of mmdet's configs.

    Raises:
        UserError: If there is no model of that name.
    """
    if name in VanillaNet.arch_settings:
        return Subject(f'VanillaNet-{name}', name)
    if name in OURS:
        return Subject(name, OURS[name])
    if name.endswith('.py'):
        return Subject(Path(name).stem, config=name)
    from mmpretrain.apis import list_models
    known = list_models()
    if PEERS.get(name, name) in known:
        return Subject(name)
    near = difflib.get_close_matches(name, [*OURS, *PEERS, *known], 3)
    raise UserError(f'no model is called {name}; did you mean '
                    f'{", ".join(near or list(OURS)[:3])}?')


def peer(name: str) -> tuple[nn.Module, float | None]:
    """A model of mmpretrain's with random weights, and its accuracy.

    Returns:
        tuple: The model, in eval mode, and the top-1 accuracy on ImageNet that
        mmpretrain's model index gives, in per cent, or None.
    """
    from mmpretrain.apis import ModelHub, get_model
    index_name = PEERS.get(name, name)
    model = get_model(index_name, pretrained=False).eval()
    results = ModelHub.get(index_name).results or []
    accuracy = results[0].metrics.get('Top 1 Accuracy') if results else None
    return Logits(model).eval(), accuracy


class Logits(nn.Module):
    """A classifier of mmpretrain's with the outputs of :class:`Network`."""

    output_names = ('logits', )

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        """(N, 3, H, W) -> [(N, num_classes)]."""
        return [self.model(x)]
