# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Check the weights that a run starts from."""
from pathlib import Path

from mmengine.hooks import Hook

from ..checkpoints import leave_out_configs, load_state_dict
from ..checkpoints.read import check_content
from ..utils.errors import UserError
from .hooks.deep_training_hook import unwrap_model


class WeightsHook(Hook):
    """Refuse weights that do not fit, where mmengine logs them and goes on."""

    priority = 'VERY_HIGH'  # before EMAHook copies the loaded weights

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Load the weights strictly, except for a head of other classes."""
        source, resume = str(runner.cfg.load_from), runner.cfg.get('resume')
        check_content(checkpoint, source, Path(source).absolute())
        leave_out_configs(checkpoint)  # mmengine would run them as Python
        if hasattr(runner, 'strategy'):  # may have sharded the parameters
            return
        model = unwrap_model(runner.model)
        weights = checkpoint.get('state_dict', checkpoint)
        left_out = load_state_dict(model, weights, source, start=not resume)
        if left_out:
            runner.logger.warning(f'{source}: {left_out}')
        if not resume:
            # What mmengine and EMAHook load next fits; the state dict of a
            # run with an average is that average.
            checkpoint['state_dict'] = model.state_dict()
            checkpoint.pop('ema_state_dict', None)
            return
        merged = sorted(weights.keys() - model.state_dict().keys())
        if merged:
            raise UserError(
                f'cannot resume from {source}: it is in an earlier form than '
                f'the model, which has no {merged[0]}; resume in that form, '
                'or start from its weights with --cfg-options load_from')
        for hook in runner.hooks:
            if hasattr(hook, 'ema_model') and 'ema_state_dict' in checkpoint:
                load_state_dict(hook.ema_model, checkpoint['ema_state_dict'],
                                f'ema_state_dict of {source}')
