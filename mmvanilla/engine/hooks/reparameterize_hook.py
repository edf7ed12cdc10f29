# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...checkpoints import load_checkpoint
from ...reparam.merge import reparameterize
from ...utils.errors import UserError


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Merge the trained model into its deploy form when training ends.

    Compares both forms on the validation data and writes ``deploy.pth`` and
    ``deploy.py``, a config that builds the deploy form, into the work dir.

    Args:
        checkpoint (str): 'best', of ``CheckpointHook(save_best=...)``, or
            'last'. A best checkpoint that was saved before lambda reached 1
            cannot be merged; then the last one is merged, with a warning.
            Defaults to 'best'.
        tol (float): Maximum allowed relative error of an output.
            Defaults to 1e-4.
        samples (int): How many validation samples to compare on, at most.
            Defaults to 64.

    Raises:
        UserError: If ``checkpoint`` is neither; after training, if there is
            no checkpoint or the merged network's outputs differ. If lambda is
            below 1 when training ends, nothing is merged and a warning is
            logged.

    Example:
        >>> custom_hooks = [
        ...     dict(type='DeepTrainingHook', decay_epochs=100),
        ...     dict(type='ReparameterizeHook')
        ... ]
    """

    # After CheckpointHook has written the last checkpoint.
    priority = 'LOWEST'

    def __init__(self,
                 checkpoint: str = 'best',
                 tol: float = 1e-4,
                 samples: int = 64) -> None:
        if checkpoint not in ('best', 'last'):
            raise UserError("ReparameterizeHook's checkpoint must be 'best' "
                            f"or 'last', but got {checkpoint!r}")
        self.checkpoint = checkpoint
        self.tol = tol
        self.samples = samples

    @master_only
    def after_train(self, runner) -> None:
        """Merge, verify and write."""
        if not runner.cfg.get('model'):
            runner.logger.warning(
                'ReparameterizeHook does nothing: the runner was not built '
                'from a config, which the merged network is built from.')
            return
        source = self._find_checkpoint(runner)
        lam = _lowest_lam(source)
        if lam < 1:
            runner.logger.warning(
                f'Nothing was merged: training ended before lambda reached 1 '
                f'(it is {lam:.4g} in {source}). Train longer, or shorten the '
                'decay of DeepTrainingHook.')
            return
        out = Path(runner.work_dir) / 'deploy.pth'
        report = reparameterize(runner.cfg, source, out, self.tol,
                                self.samples)
        runner.message_hub.update_info('deploy_ckpt', str(out))
        runner.logger.info(
            f'Merged {source} into {out}:\n{report.table()}')

    def _find_checkpoint(self, runner) -> str:
        info = runner.message_hub.runtime_info
        last = info.get('last_ckpt')
        if self.checkpoint == 'last':
            found = [last]
        else:
            found = [path for key, path in info.items()
                     if key.startswith('best_ckpt')] + [last]
        found = [path for path in found if path and Path(path).is_file()]
        if not found:
            raise UserError('ReparameterizeHook found no checkpoint in '
                            f'{runner.work_dir}: let CheckpointHook save one')
        if len(found) > 1 and _lowest_lam(found[0]) < 1:
            runner.logger.warning(
                f'{found[0]} was saved before lambda reached 1 and cannot be '
                f'merged; merging {found[-1]} instead.')
            return found[-1]
        return found[0]


def _lowest_lam(checkpoint: str) -> float:
    state_dict = load_checkpoint(checkpoint).get('state_dict', {})
    return min((float(value) for key, value in state_dict.items()
                if key.endswith('.lam')), default=1.0)
