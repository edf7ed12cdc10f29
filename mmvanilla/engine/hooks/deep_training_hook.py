# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import math
from itertools import chain

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmpretrain.registry import HOOKS
from torch import nn

from ...layers.forms import find_activations
from ...utils.errors import UserError


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers, as DDP and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def flatten(items) -> list:
    """A list: of one, of a list, or of a dict of them by optimizer."""
    if isinstance(items, dict) and not {'type', 'params'} & items.keys():
        return sum(map(flatten, items.values()), [])
    return [items] if isinstance(items, dict) else list(items or ())


@HOOKS.register_module()
class DeepTrainingHook(Hook):
    """Raise lambda of every deep-training pair from 0 to 1 during training.

    VanillaNet, arXiv 2305.12972, section 3.1: in epoch e of E, lambda is
    e / E, or ``0.5 (1 - cos(pi e / E))``; from epoch E on it is 1 and the
    network can be merged. It is the same on every rank, in the copies of
    ``EMAHook`` and in the log. Pairs that are not trained keep theirs: those
    of which the optimizer has no parameter, or in eval mode, as in a teacher.
    In a loop of iterations an epoch is one pass of all ranks over the data.
    In a resumed run lambda does not go back.

    Args:
        decay_epochs (int | float, optional): The length E of the decay, in
            epochs; below 1, the share of the run, whose length it follows.
        decay_iters (int, optional): The length in iterations instead, as
            ``max_iters`` counts them. Lambda then changes with each.
        schedule (str): 'linear' or 'cosine'. Defaults to 'linear'.
        per_iter (bool): Whether lambda changes with each iteration instead
            of each epoch. Defaults to False.

    Raises:
        UserError: For other arguments; before training, if the model has no
            pair, or ``decay_epochs`` needs a length that the data lack.
    """

    def __init__(self, decay_epochs: float | None = None,
                 decay_iters: int | None = None, schedule: str = 'linear',
                 per_iter: bool = False) -> None:
        lengths = [n for n in (decay_epochs, decay_iters) if n is not None]
        if len(lengths) != 1 or not lengths[0] > 0:
            raise UserError('DeepTrainingHook needs either decay_epochs or '
                            'decay_iters, above 0, but got '
                            f'{decay_epochs} and {decay_iters}')
        if schedule not in ('linear', 'cosine'):
            raise UserError("DeepTrainingHook's schedule must be 'linear' or "
                            f"'cosine', but got {schedule!r}")
        self.decay_epochs, self.decay_iters = decay_epochs, decay_iters
        self.schedule = schedule
        self.per_iter = per_iter or decay_iters is not None
        self.least = 0.0

    def before_train(self, runner) -> None:
        """Find the pairs; warn where lambda will not reach 1."""
        # mmpretrain's vis_scheduler runs hooks without the config's model.
        model, cfg = unwrap_model(runner.model), runner.cfg
        found = find_activations(model)
        if not found and cfg.get('model'):
            raise UserError(
                'the model has no DeepTrainingActivation, as in fine-tune or '
                'deploy form: remove DeepTrainingHook from custom_hooks')
        if sum(isinstance(x, DeepTrainingHook) for x in runner.hooks) > 1:
            raise UserError('custom_hooks has more than one DeepTrainingHook, '
                            'each of which would set lambda')
        copies = [find_activations(hook.ema_model).values()
                  for hook in runner.hooks if hasattr(hook, 'ema_model')]
        # Each with its copies.
        trained = trained_activations(runner)
        self.activations = [
            acts for name, acts in zip(found, zip(found.values(), *copies))
            if name in trained]
        if not trained:
            runner.logger.warning('DeepTrainingHook does nothing: the model '
                                  'has no pair, or every pair is frozen.')
        self.by_epoch = hasattr(runner.train_loop, 'run_epoch')
        if self.decay_epochs and self.decay_epochs < 1:
            self.decay_epochs *= runner.max_epochs if self.by_epoch else (
                runner.max_iters / _epoch_length(runner))
            self.per_iter |= self.decay_epochs < 1
        counts = self.decay_epochs and (self.per_iter or not self.by_epoch)
        self.epoch_length = _epoch_length(runner) if counts else None
        loaded = next((acts[0].lam for acts in self.activations), 0)
        lam = self._lam_at(runner.iter, runner.epoch)
        if runner.iter:  # it is resumed
            self.least = loaded
            if loaded > lam:
                runner.logger.warning(
                    f'Lambda stays {loaded:g}, as in the checkpoint, until '
                    f'the schedule of the config, now at {lam:g}, is there.')
        elif trained and (
                cfg.get('load_from') or 'Pretrained' in str(cfg.get('model'))):
            runner.logger.warning(
                f'Deep training starts anew: lambda goes from {loaded:g}, as '
                f'loaded, to {lam:g}. Remove DeepTrainingHook from the config '
                'to train on without it.')
        last = self._lam_at(runner.max_iters - 1, runner.max_epochs - 1)
        if last < 1:
            runner.logger.warning(
                'Training ends before deep training: lambda will be '
                f'{last:.4g} at the end, and the network cannot be merged.')

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch: dict | None = None) -> None:
        """Set lambda for the epoch, or for the iteration."""
        # Not before the epoch, since a model gets its mode after that.
        if self.by_epoch and not self.per_iter and batch_idx > 0:
            return
        lam = self._lam_at(runner.iter, runner.epoch)
        for act in chain(*(x for x in self.activations if x[0].training)):
            act.lam = lam
        if self.activations:
            runner.message_hub.update_scalar('train/lambda', lam)

    def _lam_at(self, iteration: int, epoch: int) -> float:
        # A resumed run of epochs may have another number of iterations in one.
        if not self.by_epoch and self.epoch_length:
            epoch = iteration // self.epoch_length
        progress = min(1.0, iteration / (
            self.decay_iters or self.decay_epochs * self.epoch_length
        ) if self.per_iter else epoch / self.decay_epochs)
        if progress < 1 and self.schedule == 'cosine':
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return max(progress, self.least)


def trained_activations(runner) -> dict[str, nn.Module]:
    """The activations of pairs of which the optimizer trains a parameter."""
    model = unwrap_model(runner.model)
    found = find_activations(model)
    trained = {id(p) for group in flatten(runner.optim_wrapper.param_groups)
               for p in group['params']
               if group.get('initial_lr', group['lr'])}
    parameters = {*map(id, model.parameters())}
    # An optimizer may hold copies of all, as DeepSpeed's.
    trained = trained & parameters or parameters
    layers = {name: [*model.get_submodule(
        name.rpartition('.')[0]).parameters()] for name in found}
    return {name: found[name] for name, own in layers.items() if not own
            or any(p.requires_grad and id(p) in trained for p in own)}


def _epoch_length(runner) -> int:
    loader = runner.train_dataloader
    length = hasattr(loader.dataset, '__len__') and len(loader)
    if not length:
        raise UserError(
            f'{type(loader.dataset).__name__} is empty or has no length: give '
            'DeepTrainingHook decay_iters instead of decay_epochs')
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    # The length of an infinite one is that of all ranks.
    ranks = runner.world_size if isinstance(sampler, InfiniteSampler) else 1
    return math.ceil(length / ranks)
