# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import math

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...layers.forms import find_activations
from ...utils.errors import UserError


@HOOKS.register_module()
class DeepTrainingHook(Hook):
    """Raise lambda of every brick from 0 to 1 while the network trains.

    VanillaNet, arXiv 2305.12972, section 3.1: in epoch e of E, lambda is
    e / E, or ``0.5 (1 - cos(pi e / E))``; from epoch E on it is 1 and the
    network can be merged. Lambda is the same on every rank, in the copies of
    ``EMAHook`` and in the checkpoint, and shows as ``lambda`` in the logs.

    Args:
        decay_epochs (int, optional): E. Defaults to None.
        decay_iters (int, optional): The length in iterations instead; lambda
            then changes with each. Exactly one of the two is to be given.
            Defaults to None.
        schedule (str): 'linear' or 'cosine'. Defaults to 'linear'.
        per_iter (bool): Whether lambda changes with each iteration instead
            of each epoch. Defaults to False.

    Raises:
        UserError: If the arguments are not as told above, or, when training
            starts, if the model has no brick.

    Example:
        >>> custom_hooks = [dict(type='DeepTrainingHook', decay_epochs=100)]
    """

    def __init__(self,
                 decay_epochs: int | None = None,
                 decay_iters: int | None = None,
                 schedule: str = 'linear',
                 per_iter: bool = False) -> None:
        lengths = [n for n in (decay_epochs, decay_iters) if n is not None]
        if len(lengths) != 1 or not lengths[0] > 0:
            raise UserError(
                'DeepTrainingHook takes exactly one of decay_epochs and '
                f'decay_iters, above 0, but got decay_epochs={decay_epochs} '
                f'and decay_iters={decay_iters}')
        if schedule not in ('linear', 'cosine'):
            raise UserError("DeepTrainingHook's schedule must be 'linear' or "
                            f"'cosine', but got {schedule!r}")
        self.decay_epochs = decay_epochs
        self.decay_iters = decay_iters
        self.schedule = schedule
        self.per_iter = per_iter or decay_iters is not None

    def before_train(self, runner) -> None:
        """Find the bricks and say what lambda will do."""
        models = [runner.model]
        # An EMA copy learns of lambda from nobody else.
        models += [
            hook.ema_model for hook in runner.hooks
            if hasattr(hook, 'ema_model')
        ]
        self.activations = [
            act for model in models for act in find_activations(model).values()
        ]
        if not self.activations:
            raise UserError(
                'DeepTrainingHook found no DeepTrainingActivation in the '
                'model: give it deep training, not in deploy form, or take '
                'the hook out of the config')

        self.epoch_length = len(runner.train_dataloader)
        self.by_epoch = hasattr(runner.train_loop, 'run_epoch')
        start = self._current_lam(runner)
        if runner._load_from and not runner._resume:
            loaded = self.activations[0].lam
            runner.logger.info(
                f'Deep training starts anew: lambda goes from {loaded:g}, as '
                f'loaded, to {start:g}. Take DeepTrainingHook out of the '
                'config to train on without it.')
        last_iter = runner.max_iters - 1
        last = self._lam_at(last_iter, last_iter // self.epoch_length)
        if last < 1:
            runner.logger.warning(
                f'Training ends before deep training does: lambda will be '
                f'{last:.4g} at the end and the network cannot be merged. '
                'Train longer or shorten the decay.')
        self._set(runner, start)

    def before_train_epoch(self, runner) -> None:
        """Set lambda for the epoch, where the loop has epochs."""
        if self.by_epoch:
            self._set(runner, self._current_lam(runner))

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch: dict | None = None) -> None:
        """Set lambda for the iteration."""
        if self.per_iter or not self.by_epoch:
            self._set(runner, self._current_lam(runner))

    def _current_lam(self, runner) -> float:
        # A resumed run may have other iterations to an epoch than before, so
        # a loop that counts epochs is asked for them.
        epoch = (
            runner.epoch if self.by_epoch else runner.iter //
            self.epoch_length)
        return self._lam_at(runner.iter, epoch)

    def _lam_at(self, iteration: int, epoch: int) -> float:
        if self.decay_iters is not None:
            progress = iteration / self.decay_iters
        elif self.per_iter:
            progress = iteration / (self.decay_epochs * self.epoch_length)
        else:
            progress = epoch / self.decay_epochs
        if progress >= 1:
            return 1.0
        if self.schedule == 'cosine':
            return 0.5 * (1 - math.cos(math.pi * progress))
        return progress

    def _set(self, runner, lam: float) -> None:
        for act in self.activations:
            act.lam = lam
        runner.message_hub.update_scalar('train/lambda', lam)
