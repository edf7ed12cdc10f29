# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Reading, setting and seeding the random generators of a process."""
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def get_random_state() -> dict:
    """The state of Python's, NumPy's and torch's generators.

    Returns:
        dict: ``python``, ``numpy``, ``torch`` and ``cuda``, of tensors,
        numbers and tuples only, which torch's safe loading accepts. ``cuda``
        is None where no GPU was used.
    """
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return dict(
        python=(version, torch.tensor(words), gauss),
        numpy=(kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        torch=torch.get_rng_state(),
        cuda=(torch.cuda.get_rng_state()
              if torch.cuda.is_initialized() else None))


def set_random_state(state: dict) -> None:
    """Set what :func:`get_random_state` returned."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the CPU's generators in a ``with`` block and restore them after.

    Args:
        numbers (int): What the seeds are made of, each 0 or more.
    """
    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.get_rng_state()
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
