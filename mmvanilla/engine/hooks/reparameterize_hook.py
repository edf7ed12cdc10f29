# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...reparam.merge import reparameterize
from ...utils.errors import UserError
from ...utils.files import check_output


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Merge the trained model into its deploy form when training ends.

    Compares both forms on the validation data and writes ``deploy.pth`` and
    ``deploy.py``, a config that builds the deploy form, into the work dir,
    where they replace those of an earlier run. A checkpoint that cannot be
    merged, for example since its lambda is below 1, is a warning.

    Args:
        checkpoint (str): 'best', of ``CheckpointHook(save_best=...)``, or
            'last'. Where the best cannot be merged, the last is.
            Defaults to 'best'.
        tol (float): Maximum allowed relative error of an output.
            Defaults to 1e-4.
        samples (int): How many validation samples to compare on, at most.
            Defaults to 64.

    Raises:
        UserError: If ``checkpoint`` is neither; before training, if the files
            cannot be written.

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
    def before_train(self, runner) -> None:
        """Check that the files can be written."""
        for name in ('deploy.pth', 'deploy.py'):
            check_output(Path(runner.work_dir, name), force=True)

    @master_only
    def after_train(self, runner) -> None:
        """Merge, verify and write."""
        if not runner.cfg.get('model'):
            runner.logger.warning(
                'ReparameterizeHook does nothing: the runner was not built '
                'from a config, which the merged network is built from.')
            return
        info = runner.message_hub.runtime_info
        found = [path for key, path in info.items()
                 if key.startswith('best_ckpt') and self.checkpoint == 'best']
        found.append(info.get('last_ckpt'))
        # Each once: the best may be the last.
        found = [path for path in dict.fromkeys(found)
                 if path and Path(path).is_file()]
        out = Path(runner.work_dir, 'deploy.pth')
        for path in found:
            try:
                report = reparameterize(runner.cfg, path, out, self.tol,
                                        self.samples, force=True)
            except UserError as e:
                runner.logger.warning(f'{path} was not merged: {e}')
                continue
            runner.message_hub.update_info('deploy_ckpt', str(out))
            runner.logger.info(f'Merged {path} into {out}:\n{report.table()}')
            return
        if not found:
            runner.logger.warning(
                'Nothing was merged: there is no checkpoint in '
                f'{runner.work_dir}; let CheckpointHook save one.')
