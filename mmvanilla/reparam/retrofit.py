# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Deep training and series activations for networks built by hand."""
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmengine.logging import print_log
from mmengine.registry import MODELS as BUILDERS
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..layers import (
    DeepTrainingActivation,
    DeepTrainingConv2d,
    SeriesActivation,
)
from ..layers.deep_training import start_as

Selector = (
    str | type | Callable[[str, nn.Module], bool] | Sequence | None)

# Gates (Sigmoid and its like) are none of these: they weigh each position by
# itself.
ACTIVATIONS = ('ReLU', 'ReLU6', 'LeakyReLU', 'PReLU', 'ELU', 'CELU', 'SELU',
               'GELU', 'SiLU', 'Swish', 'Mish', 'Hardswish', 'HardSwish',
               'HSwish', 'Softplus')
# All of them convolve as nn.Conv2d does. Another subclass may compute its
# weight or its padding anew at each call.
PLAIN_CONVS = (nn.Conv2d, MMCVConv2d)


@dataclass
class Replaced:
    """What :func:`add_deep_training` did, by the modules' dotted names.

    Attributes:
        convs (list[str]): Convolutions that now train as two.
        acts (list[str]): Activations that are now a series.
        skipped (dict[str, str]): What was chosen and left alone, and why.
    """

    convs: list[str] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f'deep training: {len(self.convs)} convolutions, '
            f'{len(self.acts)} activations, {len(self.skipped)} skipped'
        ]
        lines += [f'  {name}: {why}' for name, why in self.skipped.items()]
        return '\n'.join(lines)


def add_deep_training(
        model: nn.Module,
        convs: Selector = '*',
        acts: Selector = '*',
        conv_cfg: dict = dict(type='DeepTrainingConv2d'),
        act_cfg: dict = dict(type='SeriesActivation'),
        input_shape: Sequence[int] | None = None,
        deep_training: bool = True,
        deploy: bool = False) -> Replaced:
    """Give a network's convolutions deep training, its activations series.

    In place (VanillaNet, arXiv 2305.12972, sections 3.1 and 3.2). The network
    keeps its class, the names of its modules and, in eval mode and at lambda
    1, its answers: each pair of convolutions starts from the one that it
    replaces and the identity, each series from its middle. So pretrained
    weights stay of use, those loaded before and those of a plain convolution
    that are loaded later. To start from random weights instead, initialize
    the network afterwards (mmengine's runner does where it has an
    ``init_cfg``).

    What is chosen but cannot merge into a plain layer stays as it is. It is
    told with its reason, in the log and in what is returned. An activation
    that one block calls several times becomes a
    :class:`SeriesActivationList`.

    ``convs`` and ``acts`` choose modules by

    - a string: a glob pattern for the dotted name of a convolution or an
      activation, as 'features.*', or the name of a class, as 'ReLU6';
    - a class, whose instances are meant;
    - a predicate of name and module;
    - a list of these, of which one must hold;
    - None: nothing.

    Args:
        model (nn.Module): Any network that is built of ``nn.Module``.
        convs (Selector): Which convolutions. Defaults to '*', all of them.
        acts (Selector): Which activations. Defaults to '*', all that are not
            gates.
        conv_cfg (dict): Config of the convolutions; without ``norm_cfg`` they
            have batch norms. Defaults to ``dict(type='DeepTrainingConv2d')``.
        act_cfg (dict): Config of the activations, whose A is the one that is
            replaced. Defaults to ``dict(type='SeriesActivation')``.
        input_shape (Sequence[int], optional): Channels, height and width of
            an image. One image of zeros is run through the network to see
            where activations are called and with how many channels. Defaults
            to None: the channels of the first convolution, and 224 x 224.
        deep_training (bool): Whether to put in the train form; False puts in
            the fine-tune form. Defaults to True.
        deploy (bool): Whether to put in the deploy form. Defaults to False.

    Returns:
        Replaced: What was replaced and what was skipped.

    Raises:
        ValueError: If a pattern, class or predicate chooses nothing, or the
            network does not run on ``input_shape``. The network is then
            unchanged.

    Example:
        >>> model = torchvision.models.alexnet(weights='DEFAULT')
        >>> done = add_deep_training(model, acts='features.*')
        >>> len(done.convs), len(done.acts)
        (5, 5)
    """
    replaced = Replaced()
    chosen_convs = _choose(model, convs, 'convs', _is_conv)
    chosen_acts = _choose(model, acts, 'acts', _is_activation)
    calls = _watch(model, input_shape) if chosen_acts else []
    # Everything is built before anything is put in, so that what is raised
    # leaves the network as it was.
    parts = []

    for name, conv in chosen_convs.items():
        reason = _why_not_conv(conv)
        if reason:
            replaced.skipped[name] = reason
            continue
        pair = _build_conv(
            conv, dict(conv_cfg, deep_training=deep_training, deploy=deploy))
        parts += [(alias, pair) for alias in _aliases(model, conv)]
        replaced.convs.append(name)

    for act in chosen_acts.values():
        for block, names in _by_parent(model, act).items():
            sites = _sites(calls, act, block)
            reason = _why_not_act(act, sites)
            if reason:
                replaced.skipped.update(dict.fromkeys(names, reason))
                continue
            series = [
                _build_act(act, site, dict(act_cfg, deploy=deploy))
                for site in sites
            ]
            module = series[0] if len(series) == 1 else (
                SeriesActivationList(series, sites[0].block))
            parts += [(name, module) for name in names]
            replaced.acts += names

    for name, module in parts:
        parent, _, attribute = name.rpartition('.')
        setattr(model.get_submodule(parent), attribute, module)
    print_log(str(replaced), logger='current')
    return replaced


@MODELS.register_module(name='WithDeepTraining')
def build_with_deep_training(model: dict,
                             data_preprocessor: dict | None = None,
                             **kwargs) -> nn.Module:
    """Build a network and give it deep training, from a config.

    Registered as ``WithDeepTraining``, it stands where the network stood:
    ``backbone=dict(type='WithDeepTraining', model=dict(type='ResNet',
    depth=50), convs='layer*')``. What it builds is of the network's own
    class, so nothing around it needs to know.

    Args:
        model (dict): Config of the network.
        data_preprocessor (dict, optional): What mmengine's runner gives to a
            whole model; handed to the network. Defaults to None.
        **kwargs: Arguments of :func:`add_deep_training`. Config files hold
            their strings and lists of strings.

    Returns:
        nn.Module: The network, changed.

    Raises:
        ValueError: As :func:`add_deep_training`.
    """
    if data_preprocessor is not None:
        model = dict(model, data_preprocessor=data_preprocessor)
    network = BUILDERS.build(model)
    add_deep_training(network, **kwargs)
    return network


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__name__ in ACTIVATIONS


def _choose(model: nn.Module, selector: Selector, argument: str,
            is_kind: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    if selector is None:
        return {}
    chosen = {
        name: module
        for name, module in _layers(model)
        if _matches(selector, name, module, is_kind)
    }
    if not chosen:
        raise ValueError(
            f'{argument}={selector!r} chooses nothing in this '
            f'{type(model).__name__}: give a pattern for the dotted names of '
            'its modules, a class, a predicate, or None')
    return chosen


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module without children that is not part of a brick."""
    bricks = (DeepTrainingConv2d, SeriesActivation, DeepTrainingActivation)
    inside = tuple(f'{name}.' if name else ''
                   for name, module in model.named_modules()
                   if isinstance(module, bricks))
    for name, module in model.named_modules():
        is_leaf = next(module.children(), None) is None
        if name and is_leaf and not (
                name.startswith(inside) or isinstance(module, bricks)):
            yield name, module


def _matches(selector: Selector, name: str, module: nn.Module,
             is_kind: Callable[[nn.Module], bool]) -> bool:
    if isinstance(selector, str):
        return type(module).__name__ == selector or (
            is_kind(module) and fnmatchcase(name, selector))
    if isinstance(selector, type):
        return isinstance(module, selector)
    if isinstance(selector, Sequence):
        return any(_matches(s, name, module, is_kind) for s in selector)
    return is_kind(module) and bool(selector(name, module))


def _aliases(model: nn.Module, module: nn.Module) -> list[str]:
    return [
        name for name, other in model.named_modules(remove_duplicate=False)
        if other is module
    ]


def _by_parent(model: nn.Module,
               module: nn.Module) -> dict[nn.Module, list[str]]:
    names = defaultdict(list)
    for name in _aliases(model, module):
        names[model.get_submodule(name.rpartition('.')[0])].append(name)
    return names


def _why_not_conv(conv: nn.Module) -> str | None:
    kind = type(conv).__name__
    if not _is_conv(conv):
        return f'is a {kind}, not a convolution'
    if type(conv) not in PLAIN_CONVS:
        return (f'is a {kind}, which is not known to be linear in its input '
                'in the way of a plain Conv2d')
    if conv._forward_hooks or conv._forward_pre_hooks:
        return ('has hooks (as weight normalization and pruning have), which '
                'would be lost')
    return None


def _build(cfg: dict, **kwargs) -> nn.Module:
    return BUILDERS.build(dict(cfg, **kwargs))


def _build_conv(conv: nn.Conv2d, cfg: dict) -> nn.Module:
    pair = _build(
        cfg,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode)
    pair.to(device=conv.weight.device, dtype=conv.weight.dtype)
    start_as(pair, conv)
    pair.requires_grad_(conv.weight.requires_grad)
    return pair.train(conv.training)


@dataclass
class _Call:
    """One call of a layer in a forward pass."""

    layer: nn.Module
    block: nn.Module | None  # whose forward calls it
    turn: int  # which call of that block
    input: Tensor
    maker: nn.Module | None  # the layer that the input comes from
    keeps_shape: bool = False


def _watch(model: nn.Module, input_shape: Sequence[int] | None) -> list[_Call]:
    """Run one image through a network, note each call of each layer."""
    if input_shape is None:
        convs = [m for m in model.modules() if _is_conv(m)]
        input_shape = (convs[0].in_channels if convs else 3, 224, 224)
    calls, running, makers = [], [], {}
    turns = defaultdict(int)

    def before(module, args):
        if args and isinstance(args[0], Tensor):
            block = running[-1].layer if running else None
            call = _Call(module, block, turns[block], args[0],
                         makers.get(id(args[0])))
        else:
            call = _Call(module, None, 0, torch.empty(0), None)
        turns[module] += 1
        running.append(call)

    def after(module, args, output):
        call = running.pop()
        if isinstance(output, Tensor):
            call.keeps_shape = output.shape == call.input.shape
            if next(module.children(), None) is None:
                makers[id(output)] = module
                kept.append(output)  # else another may get its id
        calls.append(call)

    kept = []
    modes = {module: module.training for module in model.modules()}
    hooks = [m.register_forward_pre_hook(before) for m in modes]
    hooks += [m.register_forward_hook(after) for m in modes]
    weight = next(model.parameters(), torch.empty(0))
    image = torch.zeros(
        1, *input_shape, device=weight.device, dtype=weight.dtype)
    try:
        model.eval()
        with torch.no_grad():
            model(image)
    except Exception as e:
        raise ValueError(
            f'{type(model).__name__} does not run on one image of input_shape='
            f'{tuple(input_shape)}, which shows where activations are called: '
            f'{e}') from e
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def _sites(calls: list[_Call], act: nn.Module,
           block: nn.Module) -> list[_Call] | None:
    """The calls of an activation in one call of its block.

    None where they are not the same at each call.
    """
    mine = [call for call in calls if call.layer is act]
    if any(call.block is block for call in mine):
        mine = [call for call in mine if call.block is block]
    turns = defaultdict(list)
    for call in mine:
        turns[call.block, call.turn].append(call)
    widths = {
        tuple(call.input.shape[1] for call in turn if call.input.dim() > 1)
        for turn in turns.values()
    }
    if len(widths) > 1 or len({call.block for call in mine}) > 1:
        return None
    return next(iter(turns.values()), [])


def _why_not_act(act: nn.Module, sites: list[_Call] | None) -> str | None:
    kind = type(act).__name__
    if isinstance(act, (_ConvNd, _NormBase, nn.Linear)):
        return f'is a {kind}, not an activation'
    if sites is None:
        return ('is called with other channels, or by another block, from '
                'time to time')
    if not sites:
        return 'is not called'
    for site in sites:
        if site.input.dim() != 4:
            return (f'its input has {site.input.dim()} dimensions, not '
                    '(N, C, H, W)')
        if isinstance(site.maker, nn.Linear):
            return 'its input comes from a Linear, with the channels last'
        if not site.keeps_shape:
            return f'is a {kind} that changes the shape of its input'
    return None


def _build_act(act: nn.Module, site: _Call, cfg: dict) -> nn.Module:
    series = _build(cfg, num_channels=site.input.shape[1])
    series.to(device=site.input.device, dtype=site.input.dtype)
    series.start_as(copy.deepcopy(act))
    return series.train(act.training)


class SeriesActivationList(nn.ModuleList):
    """Series activations for a block that calls one activation repeatedly."""

    def __init__(self, acts, block):
        super().__init__(acts)
        self.next = 0
        block.register_forward_pre_hook(self._start_over)

    def _start_over(self, block, args) -> None:
        self.next = 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        act = self[self.next]
        self.next = (self.next + 1) % len(self)
        return act(x)
