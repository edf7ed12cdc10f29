# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import HOOKS

from ...utils.errors import UserError
from ...utils.files import write_beside
from .deep_training_hook import flatten


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, for runs that may be killed.

    A checkpoint is written beside its target and renamed; those that it
    replaces are removed afterwards, if they are files with this hook's names
    in this run's folder.

    Args:
        *args: Arguments of ``CheckpointHook``.
        **kwargs: Likewise.

    Raises:
        UserError: If a file cannot be written, as on a full disk.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if (self.backend_args is None and self.file_client_args is None
                and '://' not in str(self.out_dir)):
            self.backend_args = dict(backend='mmvanilla.atomic')

    def before_train(self, runner) -> None:
        """Forget the files of a run that is resumed in another folder."""
        super().before_train(runner)
        resumed = runner.cfg.get('resume') and runner.cfg.get('load_from')
        if resumed and self.max_keep_ckpts > 0 and Path(
                resumed).resolve().parent != Path(self.out_dir).resolve():
            self.keep_ckpt_ids.clear()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Leave out OneCycleLR's function, which cannot be read safely."""
        for state in flatten(checkpoint.get('param_schedulers')):
            state.pop('anneal_func', None)

    def after_train_epoch(self, runner) -> None:
        """Save a checkpoint and remove those that it replaces."""
        super().after_train_epoch(runner)
        self._remove_replaced(runner)

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """As :meth:`after_train_epoch`, in a run of iterations."""
        super().after_train_iter(runner, *args, **kwargs)
        self._remove_replaced(runner)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Save the best checkpoint and remove the earlier one."""
        super().after_val_epoch(runner, metrics)
        self._remove_replaced(runner)

    def _remove_replaced(self, runner) -> None:
        replaced = getattr(self.file_backend, 'replaced', [])
        kept = {path for key, path in runner.message_hub.runtime_info.items()
                if key.startswith(('best_ckpt', 'last_ckpt'))}
        number = re.escape(self.filename_tmpl).replace(r'\{\}', r'\d+')
        for path in map(Path, replaced):
            # A resumed checkpoint may name any path.
            if (str(path) not in kept and path.parent == Path(self.out_dir)
                    and re.fullmatch(f'(best_.*_)?{number}', path.name)):
                path.unlink(missing_ok=True)
        replaced.clear()


@register_backend('mmvanilla.atomic')
class _AtomicBackend(LocalBackend):
    """Local files, replaced as a whole; removal is left to the hook."""

    def __init__(self) -> None:
        self.replaced: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        try:
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            with write_beside(filepath) as (temporary, ):
                temporary.write_bytes(obj)
        except OSError as e:
            raise UserError(f'cannot write {filepath}: {e.strerror}') from e

    def remove(self, filepath: str | Path) -> None:
        self.replaced.append(filepath)

    def rmtree(self, dir_path: str | Path) -> None:
        pass
