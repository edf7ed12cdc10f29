# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Put series activations where a network calls activations."""
import copy
from collections.abc import Sequence
from functools import partial

from mmengine.registry import MODELS as LAYERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .call_sites import CannotSplit, original_class, split_call_sites
from .calls import Call, calls_per_turn, record_calls


class Edits:
    """Changes of a network that can be undone."""

    def __init__(self) -> None:
        self.undos = []

    def set(self, block: nn.Module, name: str, module: nn.Module) -> None:
        """Set a child module, in the place of an old one if there is one."""
        old = block._modules.get(name)
        self.undos.append(
            partial(setattr, block, name, old) if old is not None else
            partial(delattr, block, name))
        setattr(block, name, module)

    def set_class(self, block: nn.Module, cls: type) -> None:
        """Change the class of a module."""
        self.undos.append(partial(setattr, block, '__class__', type(block)))
        block.__class__ = cls

    def undo(self) -> None:
        """Undo all changes, the last one first."""
        while self.undos:
            self.undos.pop()()


def place_series(model: nn.Module, acts: dict[str, nn.Module],
                 calls: list[Call], input_shape: Sequence[int] | None,
                 cfg: dict, edits: Edits,
                 skipped: dict[str, str]) -> list[str]:
    """Put a series activation where each of some activations is called.

    Args:
        model (nn.Module): The network.
        acts (dict): The activations to replace, by name.
        calls (list[Call]): Calls recorded by :func:`record_calls`.
        input_shape (Sequence[int], optional): As in :func:`record_calls`.
        cfg (dict): Config of the series activations.
        edits (Edits): The changes are added to it.
        skipped (dict): Name and reason of each activation that is not
            replaced are added to it.

    Returns:
        list[str]: Names of the series activations.
    """
    # An activation that its block calls several times is replaced by copies,
    # and a second image shows which copy is called where.
    trial = Edits()
    places = {}
    for act in acts.values():
        for block, name in places_of(model, act):
            here = [c for c in calls if c.block is block] or calls
            sites = calls_per_turn(here, act)
            copies, reason = {name: act}, None
            if sites and len(sites) > 1:
                try:
                    copies = _split(block, name, act, trial)
                except CannotSplit as e:
                    reason = (f'is called {len(sites)} times by its block, '
                              f'and {e}')
            places[block, name] = act, copies, sites, reason
    if trial.undos:
        try:
            calls = record_calls(model, input_shape)
        finally:
            trial.undo()

    placed = []
    names = {module: name for name, module in model.named_modules()}
    for (block, name), (act, copies, sites, reason) in places.items():
        if len(copies) > 1:
            found = {n: calls_per_turn(calls, c) for n, c in copies.items()}
            # The module under the old name must not be called any more.
            if found.pop(name) != [] or any(
                    sites is not None and len(sites) != 1
                    for sites in found.values()):
                reason = ('is called several times by its block, and not once '
                          'at each place where it is written')
        else:
            found = {name: sites}
        for sites in found.values():
            reason = reason or _why_not_act(act, sites)
        prefix = f'{names[block]}.' if names[block] else ''
        if reason:
            skipped[prefix + name] = reason
            continue
        if len(copies) > 1:
            _split(block, name, act, edits)
        for attribute, (site, ) in found.items():
            edits.set(block, attribute, _build_act(act, site, cfg))
            placed.append(prefix + attribute)
    return placed


def _split(block: nn.Module, name: str, act: nn.Module,
           edits: Edits) -> dict[str, nn.Module]:
    """Give each call site in a block's methods a copy of an activation.

    Returns:
        dict: The copies by attribute; under ``name``, an ``nn.Identity``.
    """
    cls, names = original_class(block)
    cls = split_call_sites(cls, tuple(sorted({*names, name})))
    copies = {}
    if not cls.call_sites[name]:
        raise CannotSplit('no method of its class calls it by its name')
    for attribute in cls.call_sites[name]:
        if hasattr(block, attribute):
            raise CannotSplit(f'the block has another "{attribute}" already')
        copies[attribute] = copy.deepcopy(act)
    copies[name] = nn.Identity()
    edits.set_class(block, cls)
    for attribute, module in copies.items():
        edits.set(block, attribute, module)
    return copies


def places_of(model: nn.Module,
              module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every block that holds a module, and the attribute that holds it."""
    return [(block, name) for block in model.modules()
            for name, child in block._modules.items()
            if child is module]


def _why_not_act(act: nn.Module, sites: list[Call] | None) -> str | None:
    kind = type(act).__name__
    if isinstance(act, (_ConvNd, _NormBase, nn.Linear)):
        return f'is a {kind}, not an activation'
    if sites is None:
        return ('is called with different numbers of channels, or by '
                'several blocks')
    if not sites:
        return 'is not called'
    for site in sites:
        if site.input.dim() != 4:
            return (f'its input has {site.input.dim()} dimensions, not '
                    '(N, C, H, W)')
        if isinstance(site.source, nn.Linear):
            return 'its input comes from a Linear, with the channels last'
        if not site.keeps_shape:
            return f'is a {kind} that changes the shape of its input'
    return None


def _build_act(act: nn.Module, site: Call, cfg: dict) -> nn.Module:
    series = LAYERS.build(dict(cfg, num_channels=site.input.shape[1]))
    series.to(device=site.input.device, dtype=site.input.dtype)
    # Parameters of A stay shared by all places where A was called.
    has_parameters = next(act.parameters(), None) is not None
    series.start_as(act if has_parameters else copy.deepcopy(act))
    return series.train(act.training)
