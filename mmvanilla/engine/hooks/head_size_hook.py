# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

from mmengine.hooks import Hook

from ...checkpoints.read import leave_out_configs
from .deep_training_hook import unwrap_model


class HeadSizeHook(Hook):
    """Keep the initial head where that of a checkpoint has other classes.

    Training from the weights of a network for other classes loads the
    backbone only; a log line says so.
    """

    # Before EMAHook copies the loaded weights.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Replace the entries of the head by those of the model."""
        # mmengine would run them as Python.
        leave_out_configs(checkpoint)
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
            sizes = {str(len(v)) for k, v in loaded.items()
                     if k.endswith('bias')}
            for key in loaded:
                del state_dict[f'head.{key}']
            state_dict.update(
                {f'head.{k}': v for k, v in head.state_dict().items()})
            runner.logger.warning(
                f'The head of {runner.cfg.load_from}, for '
                f'{" or ".join(sorted(sizes)) or "other"} classes, is left '
                f'out: the head for {getattr(head, "num_classes", "other")} '
                'classes starts from random weights.')
