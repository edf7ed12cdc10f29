# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Deep training and series activations for any network."""
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmengine.logging import print_log
from mmengine.registry import MODELS as LAYERS
from mmpretrain.registry import MODELS
from torch import nn

from ..layers.deep_training import start_as
from .calls import Call, DoesNotRun, record_calls
from .place_series import Edits, place_series, places_of
from .selection import Selector, choose, is_activation, is_conv

# Classes that compute what nn.Conv2d computes. Other subclasses may compute
# their weight or padding at each call.
PLAIN_CONVS = (nn.Conv2d, MMCVConv2d)


@dataclass
class Replaced:
    """Result of :func:`add_deep_training`, by the modules' dotted names.

    Attributes:
        convs (list[str]): Convolutions that have deep training now.
        acts (list[str]): Names of the new series activations.
        skipped (dict[str, str]): Modules that were chosen but not replaced,
            and why.
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
    """Replace a network's convolutions and activations, in place.

    Convolutions get deep training and activations become series activations
    (VanillaNet, arXiv 2305.12972, sections 3.1 and 3.2). The network keeps
    its class, the names of its modules and, in eval mode at lambda 1, its
    outputs: each pair of convolutions starts as the one that it replaces and
    an identity, each series with weight 1 in the middle of its window and 0
    elsewhere. So pretrained weights can be loaded before, and those of plain
    convolutions also afterwards. To start from random weights instead,
    initialize the network afterwards (mmengine's runner does so if the
    network has an ``init_cfg``).

    A module that is chosen but cannot be replaced stays as it is; the log and
    the result give its name and the reason. If a block calls its activation
    ``relu`` at several places, each of them gets a series activation of its
    own, ``relu_1``, ``relu_2`` and so on.

    ``convs`` and ``acts`` choose modules by

    - a string: a glob pattern for the dotted name of a convolution or an
      activation, as 'features.*', or the name of a class, as 'ReLU6';
    - a class: its instances;
    - a predicate of name and module;
    - a list of these, of which one must match;
    - None: nothing.

    Args:
        model (nn.Module): Any network.
        convs (Selector): Which convolutions. Defaults to '*', all of them.
        acts (Selector): Which activations. Defaults to '*', all except gates
            such as Sigmoid.
        conv_cfg (dict): Config of the convolutions; without ``norm_cfg`` they
            have batch norms. Defaults to ``dict(type='DeepTrainingConv2d')``.
        act_cfg (dict): Config of the series activations; their A is the
            replaced activation. Defaults to ``dict(type='SeriesActivation')``.
        input_shape (Sequence[int], optional): Channels, height and width of
            an image. An image of zeros is run through the network before the
            replacement, to find where activations are called and with how
            many channels, and again after it. Defaults to None, which means
            the channels of the first convolution and 224 x 224.
        deep_training (bool): Whether to build the train form; False builds
            the fine-tune form. Defaults to True.
        deploy (bool): Whether to build the deploy form. Defaults to False.

    Returns:
        Replaced: The names of replaced and of skipped modules.

    Raises:
        ValueError: If a pattern, class or predicate chooses nothing, or the
            network does not run on ``input_shape``, before or after the
            change. The network is then as it was.

    Example:
        >>> model = torchvision.models.alexnet(weights='DEFAULT')
        >>> done = add_deep_training(model, acts='features.*')
        >>> len(done.convs), len(done.acts)
        (5, 5)
    """
    replaced = Replaced()
    chosen_convs = choose(model, convs, 'convs', is_conv)
    chosen_acts = choose(model, acts, 'acts', is_activation)
    owners = _owners(model)
    calls = _calls(model, input_shape, needed=bool(chosen_acts))
    edits = Edits()
    try:
        replaced.acts = place_series(model, chosen_acts, calls, input_shape,
                                     dict(act_cfg, deploy=deploy), edits,
                                     replaced.skipped)
        for name, conv in chosen_convs.items():
            reason = _why_not_conv(name, conv, owners)
            if reason:
                replaced.skipped[name] = reason
                continue
            pair = _build_conv(
                conv,
                dict(conv_cfg, deep_training=deep_training, deploy=deploy))
            for parent, attribute in places_of(model, conv):
                edits.set(parent, attribute, pair)
            replaced.convs.append(name)
        if calls and edits.undos:
            record_calls(model, input_shape)
    except DoesNotRun as e:
        edits.undo()
        raise ValueError(
            f'{type(model).__name__} does not run on one image of input_shape='
            f'{input_shape} with its layers replaced, and is as it was: {e}; '
            'choose without the layers that it uses by convs= and acts='
        ) from e
    except BaseException:
        edits.undo()
        raise
    print_log(str(replaced), logger='current')
    return replaced


@MODELS.register_module(name='WithDeepTraining')
def build_with_deep_training(model: dict,
                             data_preprocessor: dict | None = None,
                             **kwargs) -> nn.Module:
    """Build a network from a config and give it deep training.

    Registered as ``WithDeepTraining``, it takes the place of the network's
    config: ``backbone=dict(type='WithDeepTraining', model=dict(type='ResNet',
    depth=50), convs='layer*')``. The result is of the network's own class.

    Args:
        model (dict): Config of the network.
        data_preprocessor (dict, optional): Config that mmengine's runner
            passes to a whole model; passed on to the network. Defaults to
            None.
        **kwargs: Other arguments of :func:`add_deep_training`.

    Returns:
        nn.Module: The network with replaced layers.

    Raises:
        ValueError: As :func:`add_deep_training`.
    """
    if data_preprocessor is not None:
        model = dict(model, data_preprocessor=data_preprocessor)
    network = LAYERS.build(model)
    add_deep_training(network, **kwargs)
    return network


def _calls(model: nn.Module, input_shape: Sequence[int] | None,
           needed: bool) -> list[Call]:
    try:
        return record_calls(model, input_shape)
    except DoesNotRun as e:
        if not needed:
            return []  # convolutions are replaced without knowing the calls
        raise ValueError(
            f'{type(model).__name__} does not run on one image of input_shape='
            f'{input_shape}, which shows where activations are called: {e}'
        ) from e


def _owners(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """The modules that hold each parameter, by name."""
    owners = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[parameter].append(name)
    return owners


def _why_not_conv(name: str, conv: nn.Module,
                  owners: dict[nn.Parameter, list[str]]) -> str | None:
    kind = type(conv).__name__
    if not is_conv(conv):
        return f'is a {kind}, not a convolution'
    if type(conv) not in PLAIN_CONVS:
        return (f'is a {kind}, which may not compute what a plain Conv2d '
                'computes')
    if conv._forward_hooks or conv._forward_pre_hooks:
        return ('has hooks (as weight normalization and pruning have), which '
                'would be lost')
    for parameter in conv.parameters():
        others = [other for other in owners[parameter] if other != name]
        if others:
            return f'shares a parameter with "{others[0]}"'
    return None


def _build_conv(conv: nn.Conv2d, cfg: dict) -> nn.Module:
    pair = LAYERS.build(dict(
        cfg,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode))
    pair.to(device=conv.weight.device, dtype=conv.weight.dtype)
    start_as(pair, conv)
    pair.requires_grad_(conv.weight.requires_grad)
    return pair.train(conv.training)
