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


@HOOKS.register_module()
class DeepTrainingHook(Hook):
    """Raise lambda of every deep-training pair from 0 to 1 during training.

    VanillaNet, arXiv 2305.12972, section 3.1: in epoch e of E, lambda is
    e / E, or ``0.5 (1 - cos(pi e / E))``; from epoch E on it is 1 and the
    network can be merged. Lambda is the same on every rank, in the copies of
    ``EMAHook`` and in the checkpoint, and is logged as ``lambda``. Pairs that
    are not trained keep theirs: all parameters are frozen, or the pair is in
    eval mode in training, as in a teacher beside a student.

    In a loop of iterations an epoch is one pass of all ranks over the data.

    Args:
        decay_epochs (int, optional): The length E of the decay, in epochs.
            Defaults to None.
        decay_iters (int, optional): The length in iterations instead, as
            ``max_iters`` counts them: with gradient accumulation, each
            micro-batch is one. Lambda then changes with each iteration.
            Either this or ``decay_epochs`` must be given. Defaults to None.
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
            raise UserError('DeepTrainingHook needs either decay_epochs or '
                            f'decay_iters, above 0, but got {decay_epochs} '
                            f'and {decay_iters}')
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
        # mmpretrain's vis_scheduler runs hooks without the config's model.
        if not found and runner.cfg.get('model'):
            raise UserError(
                'DeepTrainingHook found no DeepTrainingActivation: the model '
                'is in fine-tune or deploy form, or was built without deep '
                'training, so remove DeepTrainingHook from custom_hooks')
        copies = [find_activations(hook.ema_model).values()
                  for hook in runner.hooks if hasattr(hook, 'ema_model')]
        # Each activation with its copies, whose parameters are all frozen.
        self.activations = [
            acts for name, acts in zip(found, zip(found.values(), *copies))
            if not _is_frozen(model, name)
        ]
        if not self.activations:
            runner.logger.warning(
                'DeepTrainingHook does nothing: the model has no pair, or '
                'every pair is frozen and keeps its lambda.')
        self.by_epoch = hasattr(runner.train_loop, 'run_epoch')
        self.epoch_length = None
        if self.decay_epochs and (self.per_iter or not self.by_epoch):
            self.epoch_length = _epoch_length(runner)
        cfg = runner.cfg
        if cfg.get('load_from') and not cfg.get('resume') and self.activations:
            loaded = self.activations[0][0].lam
            runner.logger.warning(
                f'Deep training starts anew: lambda goes from {loaded:g}, as '
                f'loaded, to {self._lam_at(runner.iter, runner.epoch):g}. '
                'Remove DeepTrainingHook from the config to train on without '
                'it.')
        last = self._lam_at(runner.max_iters - 1, runner.max_epochs - 1)
        if last < 1:
            runner.logger.warning(
                f'Training ends before deep training does: lambda will be '
                f'{last:.4g} at the end and the network cannot be merged. '
                'Train longer or shorten the decay.')

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
        # A resumed run may have another number of iterations in an epoch, so
        # a loop of epochs counts them itself.
        if not self.by_epoch and self.epoch_length:
            epoch = iteration // self.epoch_length
        progress = epoch / (self.decay_epochs or 1)
        if self.per_iter:
            progress = iteration / (self.decay_iters or (
                self.decay_epochs * self.epoch_length))
        if progress < 1 and self.schedule == 'cosine':
            return 0.5 * (1 - math.cos(math.pi * progress))
        return min(progress, 1.0)


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
    except TypeError:  # of an IterableDataset
        length = 0
    if length == 0:
        raise UserError(
            f'{type(loader.dataset).__name__} is empty or has no length, so '
            'DeepTrainingHook cannot count epochs: give it decay_iters '
            'instead of decay_epochs')
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    # The length of mmengine's InfiniteSampler is that of all ranks.
    ranks = runner.world_size if isinstance(sampler, InfiniteSampler) else 1
    return math.ceil(length / ranks)
