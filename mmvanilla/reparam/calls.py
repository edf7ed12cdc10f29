# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Record which block calls which layer, in a forward pass of one image."""
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


@dataclass
class Call:
    """One call of a layer in a forward pass."""

    layer: nn.Module
    block: nn.Module | None  # the module whose forward calls it
    turn: int  # index of the block's own call
    input: Tensor
    source: nn.Module | None  # the layer whose output the input is
    keeps_shape: bool = False  # whether the output has the input's shape


class DoesNotRun(Exception):
    """A network does not run on an image; names the module and the error."""


def record_calls(model: nn.Module,
                 input_shape: Sequence[int] | None) -> list[Call]:
    """Run one image of zeros through a network and record each call.

    Args:
        model (nn.Module): The network; it runs in eval mode.
        input_shape (Sequence[int], optional): Channels, height and width.
            None means the channels of the first convolution and 224 x 224.

    Returns:
        list[Call]: In the order in which the calls ended.

    Raises:
        DoesNotRun: If the network raises an error.
    """
    if input_shape is None:
        convs = [m for m in model.modules() if isinstance(m, _ConvNd)]
        input_shape = (convs[0].in_channels if convs else 3, 224, 224)
    calls, running, sources = [], [], {}
    turns = defaultdict(int)

    def before(module, args):
        if args and isinstance(args[0], Tensor):
            block = running[-1].layer if running else None
            call = Call(module, block, turns[block], args[0],
                        sources.get(id(args[0])))
        else:
            call = Call(module, None, 0, torch.empty(0), None)
        turns[module] += 1
        running.append(call)

    def after(module, args, output):
        call = running.pop()
        if isinstance(output, Tensor):
            call.keeps_shape = output.shape == call.input.shape
            if next(module.children(), None) is None:
                sources[id(output)] = module
                kept.append(output)  # or another tensor could get its id
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
        names = {module: name for name, module in model.named_modules()}
        layer = running[-1].layer if running else model
        where = f'"{names[layer]}", a ' if names[layer] else ''
        raise DoesNotRun(
            f'{where}{type(layer).__name__}: {type(e).__name__}: {e}') from e
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def calls_per_turn(calls: list[Call], layer: nn.Module) -> list[Call] | None:
    """The calls of a layer within one call of its block.

    None if their widths differ between calls of the block, or if several
    blocks call the layer.
    """
    turns = defaultdict(list)
    for call in calls:
        if call.layer is layer:
            turns[call.block, call.turn].append(call)
    widths = {
        tuple(call.input.shape[1] for call in turn if call.input.dim() > 1)
        for turn in turns.values()
    }
    if len(widths) > 1 or len({block for block, _ in turns}) > 1:
        return None
    return next(iter(turns.values()), [])
