# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Loading: earlier forms are merged, and weights that do not fit refused."""
import logging
import re
from functools import partial

from mmengine.logging import print_log
from torch import nn

from ..utils.errors import WeightsError
from ..utils.terminal import some
from .folding import merge_pair
from .series_activation import SeriesActivation

MISMATCH = re.compile(r'size mismatch for (\S+): .* torch\.Size\((.*?)\) '
                      r'from .* is torch\.Size\((.*?)\)')
# What to do, by the beginning of a key that the model has not.
HINTS = {r'backbone\.': "; set prefix='backbone.' in init_cfg",
         r'model$|model_ema$|stem1?\.0\.|stages\.0\.act$':
         '; give official weights as vanillanet:///path/to/file.pth'}


def check_loading(model: nn.Module, head: str | None = None,
                  surplus: bool = False, **conv_cfg) -> None:
    """Merge earlier forms while loading; refuse what mmengine would not.

    ``head`` is a part of the keys of layers that may be for another number of
    classes; ``surplus`` allows keys that are not in the model.
    """
    conv_cfg = {k: v for k, v in conv_cfg.items()
                if k in ('norm_cfg', 'act_cfg', 'post_norm')}
    model.register_load_state_dict_pre_hook(
        partial(_start, conv_cfg=conv_cfg))
    model.register_load_state_dict_post_hook(
        partial(_check, head=head, surplus=surplus))


def _start(model, state_dict, prefix, *args, conv_cfg):
    model._loading = prefix, args[-1]  # the list of mismatches to come
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            merge_pair(state_dict, f'{prefix}{name}.', module,
                       'switch_to_deploy', **conv_cfg)


def _check(model, found, head, surplus):
    prefix, errors = vars(model).pop('_loading')
    # mmengine's loader, which is never strict, passes a type of its own.
    if not type(found).__module__.startswith('mmengine.'):
        return
    missing, unexpected, errors = (
        [x for x in texts if re.search(f'(^|[ "]){re.escape(prefix)}', x)]
        for texts in (*found, errors))
    misfits, left_out = describe(
        model, missing, [] if surplus else unexpected, errors, head, prefix)
    if misfits:
        hints = [text for start, text in HINTS.items() if not prefix
                 and any(re.match(start, key) for key in unexpected)]
        cfg = str(getattr(model, 'init_cfg', ''))
        of = f' of {cfg}' * (not prefix and 'Pretrained' in cfg)
        raise WeightsError(f'the weights{of} do not fit a '
                           f'{type(model).__name__}: {misfits}'
                           f'{"".join(hints[:1])}')
    if left_out:
        print_log(left_out, 'current', logging.WARNING)


def describe(model: nn.Module, missing: list[str], unexpected: list[str],
             errors: list[str], head: str | None = None,
             prefix: str = '') -> tuple[str, str]:
    """What does not fit, and what is left out for another number of classes.

    With ``head``, an activation of which a network had none may be missing.
    """
    mismatched, others = [], {}
    for text in (' '.join(x.split()) for x in errors):
        found = MISMATCH.match(text)
        key, theirs, ours = found.groups() if found else ('', '', '')
        if found:
            text = f'{key} has the shape {theirs} instead of {ours}'
        if head is not None and head in key and (
                theirs.split(',')[0] != ours.split(',')[0]):
            others.setdefault(re.sub(r'(.*head\w*)\..*', r'\1', key), text)
        else:
            mismatched.append(text)
    for name, act in model.named_modules(prefix=prefix.removesuffix('.')):
        if head is not None and isinstance(act, SeriesActivation) and (
                act.started and {f'{name}.{x}' for x, _ in
                                 act.named_parameters()} <= {*missing}):
            act.start_as(act.act)
            missing = [x for x in missing if not x.startswith(f'{name}.')]
    missing = [key for key in missing
               if not key.endswith(('.lam', '.num_batches_tracked'))]
    misfits = [
        texts[0] + what + f' (and {len(texts) - 1} more)' * (len(texts) > 1)
        for texts, what in ((missing, ' is missing'), (mismatched, ''),
                            (unexpected, ' is not in the model')) if texts]
    left_out = ('Left out, as for another number of classes, and to start '
                f'from random weights: {some([*others.values()])}')
    return ', '.join(misfits), left_out if others else ''
