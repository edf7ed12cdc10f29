# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import mmcv
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...utils.errors import UserError
from ..random_state import seeded


@HOOKS.register_module()
class DataLoadingHook(Hook):
    """Make random augmentation repeatable, and name unreadable images.

    The random numbers of a training batch depend only on the run's seed, the
    rank, the epoch and the number of the batch. So a resumed run, or one with
    another number of workers, sees the same images as an uninterrupted one.
    (With mmengine's own seeding, workers that are not persistent repeat the
    same augmentation in each epoch.)

    Data sets without an index (``IterableDataset``), and those that fetch
    batches themselves (``__getitems__``), are unchanged.

    Raises:
        UserError: While loading, if an image cannot be read; names its path.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        """Seed each training batch."""
        loader = runner.train_loop.dataloader
        self.fetch = _install(loader, (runner.seed, get_rank()))
        # Without a generator of its own, the loader draws its seed from
        # torch's default one, which the network's dropout uses.
        loader.generator = torch.Generator().manual_seed(runner.seed)

    def before_train_epoch(self, runner) -> None:
        """Give the workers the epoch and the number of its first batch."""
        loop = runner.train_loop
        if self.fetch is None:
            return
        if hasattr(loop, 'run_epoch'):
            self.fetch.start[:] = torch.tensor([runner.epoch, 0])
            return
        # A resumed loop of iterations skips batches. It does so without
        # loading them only where the sampler and mmengine's version can.
        iterator = loop.dataloader_iterator
        unread = hasattr(iterator, 'skip_iter') and (
            loop.dataloader.num_workers == 0
            or hasattr(loop.dataloader.sampler, 'skip'))
        self.fetch.start[:] = torch.tensor([0, runner.iter if unread else 0])

    def before_val(self, runner) -> None:
        """Name unreadable images in errors."""
        _install(runner.val_loop.dataloader)

    def before_test(self, runner) -> None:
        """Name unreadable images in errors."""
        _install(runner.test_loop.dataloader)


def _install(loader: DataLoader,
             seed: tuple | None = None) -> '_FetchBatch | None':
    """Set ``__getitems__`` of a loader's data set; None where it cannot be."""
    dataset = loader.dataset
    found = getattr(dataset, '__getitems__', None)
    if (found is None and not isinstance(dataset, IterableDataset)
            and hasattr(dataset, '__dict__')):  # not a list
        found = dataset.__getitems__ = _FetchBatch(dataset, seed)
    return found if isinstance(found, _FetchBatch) else None


class _FetchBatch:
    """A data set's ``__getitems__``, which torch's data loader calls.

    Args:
        dataset (Dataset): The data set.
        seed (tuple, optional): Numbers that seed each batch, or None to leave
            the random generators alone.
    """

    def __init__(self, dataset, seed: tuple | None) -> None:
        self.dataset = dataset
        self.seed = seed
        # The epoch and the number of the first batch in it, in memory that
        # the workers share.
        self.start = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.started = None

    def __call__(self, indices: list) -> list:
        if self.seed is None:
            return [self._get(i) for i in indices]
        start = self.start.tolist()
        if start != self.started:
            self.started, self.fetched = start, 0
        # The loader gives batches to its workers in turn.
        worker = get_worker_info()
        batch = start[1] + (
            self.fetched if worker is None else
            self.fetched * worker.num_workers + worker.id)
        self.fetched += 1
        with seeded(*self.seed, start[0], batch):
            return [self._get(i) for i in indices]

    def _get(self, index):
        try:
            return self.dataset[index]
        except Exception as e:
            path = self._unreadable(index)
            if path is None:
                raise
            raise UserError(f'cannot read the image {path}: it is missing, '
                            'cut short or of an unknown format') from e

    def _unreadable(self, index) -> str | None:
        try:
            path = self.dataset.get_data_info(index)['img_path']
        except Exception:  # not a data set of images
            return None
        if '://' in str(path):
            return None
        try:
            return path if mmcv.imread(path) is None else None
        except Exception:
            return path
