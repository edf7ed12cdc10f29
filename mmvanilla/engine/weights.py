# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Check the weights that a run starts from."""
import copy

from mmengine.hooks import Hook

from ..checkpoints import leave_out_configs
from ..utils.terminal import some
from .hooks.deep_training_hook import unwrap_model


class HeadSizeHook(Hook):
    """Keep the initial head where that of a checkpoint has other classes."""

    priority = 'VERY_HIGH'  # before EMAHook copies the loaded weights

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        leave_out_configs(checkpoint)  # mmengine would run them as Python
        head = getattr(unwrap_model(runner.model), 'head', None)
        state_dict = checkpoint.get('state_dict', checkpoint)
        loaded = {k.removeprefix('head.'): v for k, v in state_dict.items()
                  if k.startswith('head.')}
        if runner.cfg.get('resume') or head is None or not loaded:
            return
        try:
            # A head of an earlier form is merged while it is loaded.
            copy.deepcopy(head).load_state_dict(loaded)
        except RuntimeError as e:
            if 'size mismatch' not in str(e):
                return
            sizes = {len(loaded[k]) for k in loaded if k.endswith('bias')}
            for key in loaded:
                del state_dict[f'head.{key}']
            state_dict.update(
                {f'head.{k}': v for k, v in head.state_dict().items()})
            checkpoint.pop('ema_state_dict', None)  # which has that head too
            runner.logger.warning(
                f'The head of {runner.cfg.load_from}, for '
                f'{some(sorted(sizes)) or "other"} classes, is left out: the '
                f'head for {getattr(head, "num_classes", "other")} classes '
                'starts from random weights.')
