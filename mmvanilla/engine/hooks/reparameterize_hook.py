# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...reparam.merge import reparameterize
from ...utils.errors import UserError


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Merge the trained model into its deploy form when training ends.

    Compares both forms on the validation data and writes ``deploy.pth`` and
    its config ``deploy.py`` into the work dir, over those of an earlier run.
    A checkpoint that cannot be merged, as with lambda below 1, is a warning.

    Args:
        checkpoint (str): 'best', of ``CheckpointHook(save_best=...)``, or
            'last'. Where the best cannot be merged, the last is.
            Defaults to 'best'.
        tol (float): Maximum allowed relative error of an output.
            Defaults to 1e-4.
        samples (int): How many validation samples to compare on, at most.
            Defaults to 64.

    Raises:
        UserError: If ``checkpoint`` is neither.
    """

    priority = 'LOWEST'  # after CheckpointHook has written the last one

    def __init__(self, checkpoint: str = 'best', tol: float = 1e-4,
                 samples: int = 64) -> None:
        if checkpoint not in ('best', 'last'):
            raise UserError("ReparameterizeHook's checkpoint must be 'best' "
                            f"or 'last', but got {checkpoint!r}")
        self.checkpoint, self.tol, self.samples = checkpoint, tol, samples

    @master_only
    def after_train(self, runner) -> None:
        """Merge, verify and write."""
        info = runner.message_hub.runtime_info
        names = [name for name in info if name.startswith('best_ckpt')
                 and self.checkpoint == 'best'] + ['last_ckpt']
        found = [path for path in map(info.get, names)
                 if path and Path(path).is_file()]
        out = Path(runner.work_dir, 'deploy.pth')
        for path in found:
            try:
                report = reparameterize(runner.cfg, path, out, self.tol,
                                        self.samples, force=True)
            except Exception as e:  # the training itself went well
                runner.logger.warning(f'Not merged: {e}')
                continue
            runner.message_hub.update_info('deploy_ckpt', str(out))
            runner.logger.info(f'Merged {path} into {out}:\n{report.table()}')
            return
        if not found:
            runner.logger.warning('Nothing was merged: there is no checkpoint '
                                  'to merge; let CheckpointHook save one.')
