"""Named, seeded random streams: the same name and counters give the same draws on any rank, worker or machine.

A stream is addressed, not advanced: its whole state is (seed, name, counters), for instance ``(7, "masks", step)``.
A checkpoint that holds the seed and the step therefore holds the state of every generator.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, name: str, *counters: int) -> int:
    """A 63-bit seed for the stream ``name`` at ``counters`` (such as an epoch or a step)."""
    text = ":".join([str(int(seed)), name, *(str(int(counter)) for counter in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """The numpy generator of the stream ``name`` at ``counters``."""
    return np.random.default_rng(stream_seed(seed, name, *counters))


def torch_stream(seed: int, name: str, *counters: int) -> torch.Generator:
    """The torch generator (on the CPU) of the stream ``name`` at ``counters``."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, name, *counters))


@contextmanager
def seeded_rng(seed: int, name: str, *counters: int) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch from one stream; restore them afterwards.

    For code that draws from the global generators and takes no generator of its own: drop path, mixup, random
    erasing, weight initialisation.
    """
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        reseed(seed, name, *counters)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def reseed(seed: int, name: str, *counters: int) -> None:
    """Seed the global generators from one stream, without restoring them: for use within ``seeded_rng``."""
    import torch

    value = stream_seed(seed, name, *counters)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
