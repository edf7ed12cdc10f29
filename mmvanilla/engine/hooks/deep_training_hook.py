# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import math

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch import nn

from ...layers.forms import find_activations
from ...utils.errors import UserError
from ..unwrap import unwrap_model


@HOOKS.register_module()
class DeepTrainingHook(Hook):
    """Raise lambda of every deep-training pair from 0 to 1 during training.

    VanillaNet, arXiv 2305.12972, section 3.1: in epoch e of E, lambda is
    e / E, or ``0.5 (1 - cos(pi e / E))``; from epoch E on it is 1 and the
    network can be merged. Lambda is the same on every rank, in the copies of
    ``EMAHook`` and in the checkpoint, and is logged as ``lambda``. Pairs whose
    parameters are all frozen keep their lambda.

    In a loop of iterations an epoch is one pass over the data set by all
    ranks together.

    Args:
        decay_epochs (int, optional): The length E of the decay, in epochs.
            Defaults to None.
        decay_iters (int, optional): The length in iterations instead, as
            ``max_iters`` and iteration-based schedulers count them: with
            gradient accumulation, each micro-batch is one. Lambda then
            changes with each iteration. Exactly one of the two must be given,
            above 0. Defaults to None.
        schedule (str): 'linear' or 'cosine'. Defaults to 'linear'.
        per_iter (bool): Whether lambda changes with each iteration instead
            of each epoch. Defaults to False.

    Raises:
        UserError: If the arguments are not as described above; when training
            starts, if the model has no pair to raise lambda of, or if
            ``decay_epochs`` needs the length of a data set that has none.

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
        """Find the pairs; warn where lambda will not reach 1."""
        model = unwrap_model(runner.model)
        found = find_activations(model)
        # mmpretrain's vis_scheduler runs the hooks of a config without its
        # model, to draw the learning rate.
        if not found and runner.cfg.get('model'):
            raise UserError(
                'DeepTrainingHook found no DeepTrainingActivation: the model '
                'is in fine-tune or deploy form, or was built without deep '
                'training, so take DeepTrainingHook out of custom_hooks')
        trained = [not _is_frozen(model, name) for name in found]
        # Lambda of an EMA copy is set here too. All of its parameters are
        # frozen, so those of the model tell which pairs are trained.
        models = [model] + [
            hook.ema_model for hook in runner.hooks
            if hasattr(hook, 'ema_model')
        ]
        self.activations = [
            act for m in models
            for act, is_trained in zip(find_activations(m).values(), trained)
            if is_trained
        ]
        if not self.activations:
            runner.logger.warning(
                'DeepTrainingHook does nothing: the model has no pair, or '
                'every pair is frozen and keeps its lambda.')

        self.by_epoch = hasattr(runner.train_loop, 'run_epoch')
        self.epoch_length = None
        if self.decay_epochs and (self.per_iter or not self.by_epoch):
            self.epoch_length = _epoch_length(runner)
        if self.decay_iters and _accumulation(runner) > 1:
            runner.logger.info(
                f'decay_iters={self.decay_iters} counts iterations, of which '
                f'{_accumulation(runner)} make one step of the optimizer.')
        start = self._current_lam(runner)
        if runner._load_from and not runner._resume and self.activations:
            loaded = self.activations[0].lam
            runner.logger.info(
                f'Deep training starts anew: lambda goes from {loaded:g}, as '
                f'loaded, to {start:g}. Take DeepTrainingHook out of the '
                'config to train on without it.')
        last = self._lam_at(runner.max_iters - 1, runner.max_epochs - 1)
        if last < 1:
            runner.logger.warning(
                f'Training ends before deep training does: lambda will be '
                f'{last:.4g} at the end and the network cannot be merged. '
                'Train longer or shorten the decay.')

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
        return self._lam_at(runner.iter, runner.epoch)

    def _lam_at(self, iteration: int, epoch: int) -> float:
        # A resumed run may have another number of iterations in an epoch, so
        # a loop of epochs counts them itself.
        if not self.by_epoch and self.epoch_length:
            epoch = iteration // self.epoch_length
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
        if self.activations:
            runner.message_hub.update_scalar('train/lambda', lam)


def _is_frozen(model: nn.Module, name: str) -> bool:
    """Whether the layer that an activation belongs to is not trained."""
    layer = model.get_submodule(name.rpartition('.')[0])
    parameters = list(layer.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _epoch_length(runner) -> int:
    """Iterations that all ranks together need for one pass over the data."""
    loader = runner.train_dataloader
    try:
        length = len(loader)
    except TypeError:
        length = 0
    if not length:
        raise UserError(
            f'{type(loader.dataset).__name__} is empty or has no length, so '
            'DeepTrainingHook cannot count epochs: give it decay_iters '
            'instead of decay_epochs')
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    if isinstance(sampler, InfiniteSampler):  # its length is of all ranks
        length = math.ceil(length / runner.world_size)
    return length


def _accumulation(runner) -> int:
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1)
