# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..unwrap import unwrap_model


class HeadSizeHook(Hook):
    """Do not load a classifier's head that has another number of classes.

    Training from the weights of a network for other classes loads the
    backbone and leaves the head as it was initialized; a log line says so.
    """

    # Before EMAHook copies the loaded weights.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace the entries of the head by the model's own."""
        head = getattr(unwrap_model(runner.model), 'head', None)
        state_dict = checkpoint.get('state_dict', checkpoint)
        loaded = {
            key.removeprefix('head.'): value
            for key, value in state_dict.items() if key.startswith('head.')
        }
        if runner._resume or head is None or not loaded:
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
            state_dict.update({
                f'head.{key}': value
                for key, value in head.state_dict().items()
            })
            runner.logger.info(
                f'The head of {runner._load_from}, for '
                f'{" or ".join(sorted(sizes)) or "other"} classes, is left '
                f'out: the head for {getattr(head, "num_classes", "other")} '
                'classes starts from random weights.')
