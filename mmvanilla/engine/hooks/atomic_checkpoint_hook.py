# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import os.path as osp
import shutil
from pathlib import Path

from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import HOOKS

from ...utils.errors import UserError
from ...utils.files import replace_atomically
from ..random_state import get_random_state, set_random_state


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, for runs that may be killed.

    - A checkpoint, ``last_checkpoint`` and the best checkpoint are written
      whole or not at all. The files that they replace are deleted afterwards.
    - A checkpoint holds the random state of each rank, and resuming restores
      it. Validation leaves it as it was. With :class:`DataLoadingHook` a
      resumed run is bit-identical to an uninterrupted one.
    - If a run was stopped between a checkpoint and the validation that
      follows it, resuming validates first.
    - Resuming in a copy of a work dir uses the checkpoints of the copy, not
      those of the original.

    Args:
        *args: Arguments of ``CheckpointHook``.
        **kwargs: Arguments of ``CheckpointHook``.

    Raises:
        UserError: If a file cannot be written, for example on a full disk;
            names the space that is needed. Earlier checkpoints are untouched.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if (self.backend_args is None and self.file_client_args is None
                and '://' not in str(self.out_dir)):
            self.backend_args = dict(backend='mmvanilla.atomic')
        self._replaced: list[str] = []
        self._random_states: list[dict] = []
        self._restore: list[dict] = []
        self._validated = True

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Read the random states of a resumed run."""
        self._restore = checkpoint.get('random_states', [])
        self._validated = checkpoint.get('validated', True)

    def before_train(self, runner) -> None:
        """Find the files of a resumed run and validate, where that is due."""
        resumed = runner._resume and runner.iter > 0
        if resumed:
            self._use_own_folder(runner)
        super().before_train(runner)
        if not resumed:
            self._restore = []
            return
        hub = runner.message_hub
        self.last_ckpt = hub.runtime_info.get('last_ckpt')
        if is_main_process():
            self._point_to_last(runner)
            self._remove(hub.runtime_info.get('obsolete_ckpts', []))
        world_size = len(self._restore)
        if world_size and world_size != runner.world_size:
            runner.logger.warning(
                f'The checkpoint was saved by {world_size} process(es) and '
                f'{runner.world_size} resume: random numbers differ from '
                'those of an undisturbed run.')
        if not self._validated and _validation_is_due(runner):
            runner.logger.info('Validating the checkpoint, which the '
                               'interrupted run had not done')
            runner.val_loop.run()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Restore the random state that the checkpoint was saved with."""
        self._validated = False
        if self._restore:
            if get_rank() < len(self._restore):
                set_random_state(self._restore[get_rank()])
            self._restore = []

    def before_val_epoch(self, runner) -> None:
        """Keep the random state, which validation may change."""
        self._before_val = get_random_state()

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Restore the random state and save the best checkpoint."""
        set_random_state(self._before_val)
        if self._restore and get_rank() < len(self._restore):
            set_random_state(self._restore[get_rank()])
        self._validated = True
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the random states, and whether validation was done."""
        if 'optimizer' in checkpoint:
            checkpoint['random_states'] = self._random_states
            checkpoint['validated'] = self._validated

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        # As in mmengine, except that obsolete files are removed last.
        hub = runner.message_hub
        obsolete = [osp.basename(path) for path in self._replaced
                    if path not in self._best_paths()]
        if self.max_keep_ckpts > 0:
            kept = self.keep_ckpt_ids
            if not kept or kept[-1] != step:
                if len(kept) == self.max_keep_ckpts:
                    obsolete.append(self.filename_tmpl.format(kept.popleft()))
                kept.append(step)
                hub.update_info('keep_ckpt_ids', list(kept))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        # Where a run is killed before that, resuming removes them.
        hub.update_info('obsolete_ckpts', obsolete)
        self._random_states = all_gather_object(get_random_state())
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if is_main_process():
            self._point_to_last(runner)
            self._remove(obsolete)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not self.save_best:
            return
        # mmengine deletes the old files before it writes; without their paths
        # it deletes none.
        single = len(self.key_indicators) == 1
        name = 'best_ckpt_path' if single else 'best_ckpt_path_dict'
        before = getattr(self, name)
        self._replaced = self._best_paths()
        setattr(self, name,
                None if single else dict.fromkeys(self.key_indicators))
        super()._save_best_checkpoint(runner, metrics)
        if single:
            self.best_ckpt_path = self.best_ckpt_path or before
        else:
            self.best_ckpt_path_dict = {
                k: v or before.get(k)
                for k, v in self.best_ckpt_path_dict.items()
            }
        if is_main_process():
            self._remove(osp.basename(path) for path in self._replaced
                         if path not in self._best_paths())
        self._replaced = []

    def _point_to_last(self, runner) -> None:
        if self.last_ckpt:
            _write(osp.join(runner.work_dir, 'last_checkpoint'),
                   self.last_ckpt.encode())

    def _best_paths(self) -> list[str]:
        paths = [getattr(self, 'best_ckpt_path', None)]
        paths += getattr(self, 'best_ckpt_path_dict', {}).values()
        return [path for path in paths if path]

    def _remove(self, names) -> None:
        for name in names:
            path = self.file_backend.join_path(self.out_dir, name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # saved by DeepSpeed
                self.file_backend.rmtree(path)

    def _use_own_folder(self, runner) -> None:
        """Change the paths in a resumed checkpoint to this work dir."""
        if self.out_dir is not None:
            return
        info = runner.message_hub.runtime_info
        for key in [k for k in info
                    if k == 'last_ckpt' or k.startswith('best_ckpt')]:
            name = osp.basename(info[key] or '')
            path = osp.join(runner.work_dir, name)
            if name and osp.exists(path):
                runner.message_hub.update_info(key, path)
            else:
                # The next validation then saves a best checkpoint again.
                info.pop(key)
                info.pop(key.replace('best_ckpt', 'best_score'), None)


def _validation_is_due(runner) -> bool:
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    done, last = ((loop.epoch, loop.max_epochs) if hasattr(loop, 'run_epoch')
                  else (loop.iter, loop.max_iters))
    return done >= loop.val_begin and (done % loop.val_interval == 0
                                       or done == last)


class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, which writes them atomically."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        os.makedirs(osp.dirname(filepath) or '.', exist_ok=True)
        _write(filepath, obj)


register_backend('mmvanilla.atomic', AtomicBackend, force=True)


def _write(path: str | Path, content: bytes) -> None:
    free = shutil.disk_usage(osp.dirname(osp.abspath(path))).free
    if free < len(content):
        raise UserError(
            f'cannot write {path}: {len(content) / 2**20:.1f} MB are needed, '
            f'{free / 2**20:.1f} MB are free')
    with replace_atomically(path) as temporary:
        Path(temporary).write_bytes(content)
