# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The networks that are measured, by name."""
import copy
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config
from mmpretrain.apis import ModelHub, list_models
from torch import Tensor, nn

from mmvanilla.export.network import make_network
from mmvanilla.layers import switch_to_deploy, switch_to_finetune
from mmvanilla.models import VanillaNet
from mmvanilla.utils.configs import build_model, read_config, scope_of
from mmvanilla.utils.errors import UserError

PEERS = {f'ResNet-{n}': f'resnet{n}_8xb32_in1k' for n in (18, 34, 50, 101)} | {
    'Swin-T': 'swin-tiny_16xb64_in1k', 'Swin-S': 'swin-small_16xb64_in1k'}
DETECTIONS = 100  # to leave, since they decide how long their NMS takes


@dataclass(eq=False)
class Subject:
    """A network: a VanillaNet (with ``arch``), or any other of a config."""

    name: str
    cfg: Config
    arch: str | None = None
    whole: bool = False  # from image to predictions: no classifier
    accuracy: float | None = None  # published, top-1 on ImageNet, in per cent

    def build(self, x: Tensor, **backbone) -> nn.Module:
        """The model, with random weights."""
        cfg = copy.deepcopy(self.cfg)
        cfg.model.backbone.update(backbone)
        with x.device:
            model = build_model(cfg).to(x.device)
        if self.whole and not hasattr(model, 'decode_head'):
            _limit_detections(model, x)
        return model

    def networks(self, x: Tensor,
                 images: Tensor | None = None) -> dict[str, nn.Module]:
        """Forms for inference: 'merged', 'plain' and, if any, 'train'.

        Images, if given, set the statistics of the batch norms.
        """
        with scope_of(self.cfg):
            model = self.build(x)
            if images is not None:
                _set_statistics(model, lambda: model(images))
            trained = make_network(copy.deepcopy(model), 'model', x)
            layers = switch_to_deploy(model)
            merged = make_network(model, 'model', x)
        networks = dict(merged=merged, plain=merged)
        if layers:
            networks['train'] = trained
        if self.arch:
            with x.device:
                networks['plain'] = plain = PlainVanillaNet(self.arch)
            # Both have weight and bias in the order of the forward pass.
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(
                merged.parameters()), plain.parameters())
        return networks

    def training_networks(self, x: Tensor) -> dict[str, nn.Module]:
        """Forms for training."""
        if not self.arch:
            return dict(plain=make_network(self.build(x), 'model', x))
        finetune = self.build(x)
        switch_to_finetune(finetune)
        models = dict(
            train=self.build(x), with_cp=self.build(x, with_cp=True),
            finetune=finetune)
        with x.device:
            plain = PlainVanillaNet(self.arch, True)
        return dict(plain=plain) | {
            form: make_network(model, 'model', x)
            for form, model in models.items()}


def resolve(name: str) -> Subject:
    """Find a network by its arch, its name or its config."""
    if name.endswith('.py'):
        return Subject(Path(name).stem, get_config(name) if '::' in name else
                       read_config(name), whole=True)
    ours = {f'VanillaNet-{arch}': arch for arch in VanillaNet.arch_settings}
    arch = ours.get(name) or ours.get(f'VanillaNet-{name}')
    known = f'vanillanet-{arch}_8xb128_in1k' if arch else PEERS.get(name, name)
    if known not in list_models():
        near = difflib.get_close_matches(
            name, [*ours, *PEERS, *list_models()], 3)
        raise UserError(f'no model is called {name}; did you mean '
                        f'{", ".join(near or list(ours)[:3])}?')
    info = ModelHub.get(known)
    accuracy = [r.metrics.get('Top 1 Accuracy') for r in info.results or ()]
    return Subject(f'VanillaNet-{arch}' if arch else name, info.config, arch,
                   accuracy=accuracy[0] if accuracy else None)


def _set_statistics(model: nn.Module, forward: Callable) -> None:
    """Normalize what batch norms get in a forward pass.

    In an untrained network the signal fades from layer to layer, and all
    scores would be the same.
    """
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            norm.momentum = 1.0
            norm.train()
    forward()
    model.eval()


def _limit_detections(model: nn.Module, x: Tensor) -> None:
    """Give a detector random weights and a threshold of scores."""
    head = getattr(model, 'roi_head', None) or model.bbox_head
    head.init_weights()

    def forward():
        feats = model.extract_feat(x)
        if hasattr(model, 'bbox_head'):
            model.bbox_head(feats)

    _set_statistics(model, forward)
    head.test_cfg.score_thr = 0.0
    scores = make_network(model, 'model', x)(x)[1][:DETECTIONS]
    if not len(scores):
        raise UserError('the detector finds nothing in an image of '
                        f'{tuple(x.shape[2:])}: use a larger --size')
    # A little below, so that rounding changes no detection.
    head.test_cfg.score_thr = 0.9999 * scores.min().item()


class PlainStage(nn.Sequential):
    """One stage of arXiv 2305.12972, section 3; ``mid`` is of train form."""

    def __init__(self, cin, cout, pool, mid, *conv):
        second, norm = [], []
        if mid:
            second = [nn.BatchNorm2d(mid, eps=1e-6), nn.LeakyReLU(1.0),
                      nn.Conv2d(mid, cout, 1), nn.BatchNorm2d(cout, eps=1e-6)]
            norm = [nn.BatchNorm2d(cout, eps=1e-6)]
        super().__init__(
            nn.Conv2d(cin, mid or cout, *conv), *second, pool, nn.ReLU(),
            nn.Conv2d(cout, cout, 7, 1, 3, groups=cout, bias=not mid), *norm)


class PlainVanillaNet(nn.Module):
    """VanillaNet of ``nn`` modules only, in train form or deploy form."""

    def __init__(self, arch, train_form=False):
        super().__init__()
        settings = VanillaNet.arch_settings[arch]
        dims, ada_pool = settings['dims'], settings.get('ada_pool')
        stem = (4, 3, 1) if ada_pool else (4, 4, 0)
        stages = [PlainStage(3, dims[0], nn.Identity(),
                             dims[0] * train_form, *stem)]
        for i, stride in enumerate(settings['strides']):
            pool = nn.Identity()
            if stride == 2:
                pool = (nn.AdaptiveMaxPool2d(ada_pool[i]) if ada_pool else
                        nn.MaxPool2d(2))
            stages.append(PlainStage(dims[i], dims[i + 1], pool,
                                     dims[i] * train_form, 1))
        head = [nn.BatchNorm2d(1000, eps=1e-6), nn.LeakyReLU(1.0),
                nn.Conv2d(1000, 1000, 1)] * train_form
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.Conv2d(dims[-1], 1000, 1), *head)

    def forward(self, x):
        x = self.stages(x).mean((2, 3), keepdim=True)
        return [self.head(x).flatten(1)]
