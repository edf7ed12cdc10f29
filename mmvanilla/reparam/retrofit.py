# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Deep training and series activations for any network."""
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from mmcv.cnn import Conv2d as MMCVConv2d
from mmengine.logging import print_log
from mmengine.registry import MODELS as LAYERS
from mmpretrain.registry import MODELS
from torch import nn

from ..layers import DeepTrainingConv2d, SeriesActivation
from ..layers.deep_training import start_as
from ..layers.folding import CONV_ARGUMENTS
from ..layers.loading import check_loading

OURS = (DeepTrainingConv2d, SeriesActivation)
Selector = str | type | Callable[[str, nn.Module], bool] | Sequence | None
KINDS = dict(
    convs=['Conv2d', 'ConvTranspose2d'],
    # Without gates, such as Sigmoid, whose outputs scale other feature maps.
    acts=('ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU SiLU Swish Mish '
          'Hardswish HardSwish HSwish Softplus Tanh').split())
# Other subclasses may compute their weight or padding at each call.
PLAIN_CONVS = (nn.Conv2d, MMCVConv2d)


@dataclass
class Replaced:
    """Result of :func:`add_deep_training`, by the layers' dotted names.

    Attributes:
        convs (list[str]): Convolutions that have deep training now.
        acts (list[str]): Activations that are series activations now.
        skipped (dict[str, str]): Chosen, but not replaced: the reasons.
    """

    convs: list[str] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        why = ''.join(f'\n  {k}: {v}' for k, v in self.skipped.items())
        return (f'deep training: {len(self.convs)} convolutions, '
                f'{len(self.acts)} activations, {len(self.skipped)} skipped'
                f'{why}')


def add_deep_training(model: nn.Module, convs: Selector = '*',
                      acts: Selector = '*',
                      conv_cfg: dict = dict(type='DeepTrainingConv2d'),
                      act_cfg: dict = dict(type='SeriesActivation'),
                      input_shape: Sequence[int] | None = None,
                      deep_training: bool = True,
                      deploy: bool = False) -> Replaced:
    """Give a network deep training and series activations, in place.

    Each new layer starts as the one that it replaces: pretrained weights can
    be loaded before, and those of plain convolutions afterwards. For random
    weights, initialize the network afterwards. A layer that cannot be
    replaced stays as it is, and the log and the result say why. One reason is
    that a forward pass calls it several times, as a ResNet block its ReLU.

    Args:
        model (nn.Module): Any network.
        convs (Selector): Which convolutions: a glob pattern for dotted names,
            as 'layer*', the name of a class, a class, a predicate of name and
            module, a list of these, or None for none. Defaults to '*'.
        acts (Selector): Which activations, likewise. Defaults to '*', all
            except gates such as Sigmoid.
        conv_cfg (dict): Config of the convolutions.
        act_cfg (dict): Config of the series activations, whose A is the
            replaced activation.
        input_shape (Sequence[int], optional): Channels, height and width of
            an image of zeros that is run through the network, to see how its
            layers are called, and again with the new layers. Defaults to
            None: the channels of the first convolution and 224 x 224.
        deep_training (bool): As in :class:`DeepTrainingConv2d`.
        deploy (bool): Likewise.

    Returns:
        Replaced: The names of replaced and of skipped layers.

    Raises:
        ValueError: If a selector chooses nothing or the network does not run
            on ``input_shape``. The network is then as it was.
    """
    chosen_convs = _choose(model, convs, 'convs')
    chosen_acts = _choose(model, acts, 'acts')
    calls = _dry_run(model, input_shape)
    uses = Counter(x for named in (model.named_modules, model.named_parameters)
                   for _, x in named(remove_duplicate=False))
    like = next(model.parameters(), torch.empty(0))
    done, old, new = Replaced(), {**chosen_acts, **chosen_convs}, {}
    for name, layer in old.items():
        is_conv = name in chosen_convs
        reason = _why_not(layer, is_conv, calls[layer], uses)
        if reason:
            done.skipped[name] = reason
            continue
        if is_conv:
            new[name] = LAYERS.build(dict(
                conv_cfg, deep_training=deep_training, deploy=deploy,
                bias=layer.bias is not None,
                **{x: getattr(layer, x) for x in CONV_ARGUMENTS}))
            start_as(new[name].to(layer.weight), layer)
            new[name].requires_grad_(layer.weight.requires_grad)
        else:
            new[name] = LAYERS.build(dict(
                act_cfg, num_channels=calls[layer][0][0][1], deploy=deploy))
            new[name].to(like).start_as(layer)
        new[name].train(layer.training)
        (done.convs if is_conv else done.acts).append(name)

    for name, layer in new.items():
        model.set_submodule(name, layer)
    try:
        _dry_run(model, input_shape)
    except ValueError as e:
        for name in new:
            model.set_submodule(name, old[name])
        raise ValueError(f'with its layers replaced, {e}') from e
    # Other parts of a checkpoint, as a classifier, are surplus.
    check_loading(model, head='head', surplus=True, **conv_cfg)
    print_log(str(done), logger='current')
    return done


@MODELS.register_module(name='WithDeepTraining')
def build_with_deep_training(model: dict,
                             data_preprocessor: dict | None = None,
                             **kwargs) -> nn.Module:
    """Build a network from a config and give it deep training.

    It is registered as ``WithDeepTraining``. The network is found in the
    default scope, or in mmpretrain without one, and keeps its own class.

    Args:
        model (dict): Config of the network.
        data_preprocessor (dict, optional): The network's. Defaults to None.
        **kwargs: Other arguments of :func:`add_deep_training`.

    Returns:
        nn.Module: The network with replaced layers.

    Raises:
        ValueError: As :func:`add_deep_training`.
    """
    if data_preprocessor is not None:
        model = dict(model, data_preprocessor=data_preprocessor)
    network = MODELS.build(model)  # in the default scope, if there is one
    add_deep_training(network, **kwargs)
    return network


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer, by name, that is not ours or a part of ours."""
    ours = {part for module in model.modules() if isinstance(module, OURS)
            for part in module.modules()}
    # A convolution whose weight is parametrized has children.
    return {name: module for name, module in model.named_modules()
            if name and module not in ours and (
                isinstance(module, nn.Conv2d) or not list(module.children()))}


def _choose(model: nn.Module, selector: Selector,
            argument: str) -> dict[str, nn.Module]:
    def matches(one: Selector, name: str, layer: nn.Module) -> bool:
        bases = [base.__name__ for base in type(layer).__mro__]
        is_kind = not set(KINDS[argument]).isdisjoint(bases)
        if isinstance(one, type):
            return isinstance(layer, one)
        if isinstance(one, str):
            return bases[0] == one or is_kind and fnmatchcase(name, one)
        return is_kind and bool(one(name, layer))

    if selector is None:
        return {}
    each = selector if isinstance(selector, (list, tuple)) else [selector]
    chosen = {name: layer for name, layer in _layers(model).items()
              if any(matches(one, name, layer) for one in each)}
    if not chosen:
        raise ValueError(f'{argument}={selector!r} chooses nothing in '
                         f'{type(model).__name__}: give a pattern of names, '
                         'a class, a predicate, or None')
    return chosen


def _dry_run(model: nn.Module, input_shape: Sequence[int] | None) -> dict:
    """Run an image; list each layer's calls: (shape, is it a Linear's)."""
    calls, linear = defaultdict(list), []

    def record(layer, args, output):
        calls[layer].append((tuple(getattr((*args, 0)[0], 'shape', ())),
                             any(x is y for x in args[:1] for y in linear)))
        if isinstance(layer, nn.Linear):
            linear.append(output)

    if input_shape is None:
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        input_shape = (convs[0].in_channels if convs else 3, 224, 224)
    like = next(model.parameters(), torch.empty(0))
    modes = {module: module.training for module in model.modules()}
    hooks = [x.register_forward_hook(record) for x in _layers(model).values()]
    try:
        model.eval()  # which returns None in mmpretrain
        with torch.no_grad():
            model(like.new_zeros(1, *input_shape))
    except Exception as e:  # whatever the network raises
        raise ValueError(f'{type(model).__name__} does not run with '
                         f'input_shape={input_shape}: {e!r}') from e
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def _why_not(layer: nn.Module, is_conv: bool, calls: list[tuple],
             uses: Counter) -> str | None:
    """Why a layer cannot be replaced; None if it can."""
    if is_conv and type(layer) not in PLAIN_CONVS:
        return f'is a {type(layer).__name__}, not a plain Conv2d'
    if is_conv and 'weight' not in dict(layer.named_parameters()):
        return 'computes its weight (weight normalization, pruning)'
    if not calls:
        return 'is not called in a forward pass'
    shape, of_linear = calls[0]
    if len(shape) != 4:
        return f'its input has {len(shape)} dimensions, not (N, C, H, W)'
    if of_linear:
        return 'its input comes from a Linear, with the channels last'
    if len(calls) > 1:
        widths = sorted({s[1] for s, _ in calls if len(s) == 4})
        return (f'is called {len(calls)} times in a forward pass, with '
                f'{" and ".join(map(str, widths))} channels')
    if any(uses[thing] > 1 for thing in (layer, *layer.parameters())):
        return 'is shared, or has shared parameters'
