"""Which image comes in which batch: the same global batches on any number of processes, workers and restarts."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .config import MaeliftError
from .distributed import Ranks
from .randomness import stream

Uniforms = NDArray[np.float64]
MakeSample = Callable[[int, Uniforms], NDArray[np.generic]]
"""From an image's number and a row of draws in [0, 1) to pixels (C, H, W)."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device.

    ``pixels`` (B, C, H, W) as stored, uint8 or float32; ``indices`` (B,) int64, the images' numbers; ``rows``: its
    first and one past its last position in the global batch of ``step``.
    """

    pixels: Tensor
    indices: Tensor
    step: int
    rows: tuple[int, int]


class Order:
    """An endless sequence of ``length`` images, shuffled anew each epoch, cut into global batches of ``batch_size``.

    Every epoch holds each image once; a batch may reach from one epoch into the next.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> NDArray[np.int64]:
        """The images of the global batch of ``step``, (batch_size,)."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.length
        indices = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self.permutation(int(epoch))[positions[here] % self.length]
        return indices

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The images in the order of ``epoch``, (length,)."""
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, stream(self.seed, "order", epoch).permutation(self.length)
        return self._permutation


class Batches:
    """The micro-batches of this process, step by step.

    ``make`` turns an image's number and ``draws`` uniform draws into pixels; the draws belong to (seed, step, position
    in the global batch), so that they are the same whichever process or worker uses them.
    """

    def __init__(
        self,
        order: Order,
        make: MakeSample,
        *,
        draws: int,
        ranks: Ranks,
        accumulate: int = 1,
        workers: int = 0,
    ) -> None:
        self.order = order
        self.ranks = ranks
        self.accumulate = accumulate
        self.micro_batch_size = order.batch_size // (ranks.world_size * accumulate)
        self._make = make
        self._draws = draws
        self._workers = workers

    def rows(self, micro: int) -> tuple[int, int]:
        """Where this process's micro-batch number ``micro`` lies in the global batch."""
        start = (self.ranks.rank * self.accumulate + micro) * self.micro_batch_size
        return start, start + self.micro_batch_size

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """For each step from ``first`` to before ``last`` the micro-batches of this process."""
        keys = [(step, micro) for step in range(first, last) for micro in range(self.accumulate)]
        loader: DataLoader[tuple[Tensor, Tensor] | MaeliftError] = DataLoader(
            _Samples(self, keys),
            batch_size=None,
            num_workers=self._workers,
            pin_memory=self.ranks.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
        )
        together: list[Batch] = []
        for (step, micro), loaded in zip(keys, loader, strict=True):
            if isinstance(loaded, MaeliftError):
                raise loaded
            pixels, indices = loaded
            together.append(
                Batch(
                    pixels.to(self.ranks.device, non_blocking=True),
                    indices.to(self.ranks.device, non_blocking=True),
                    step,
                    self.rows(micro),
                )
            )
            if len(together) == self.accumulate:
                yield together
                together = []

    def load(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) and image numbers (B,) of one micro-batch, on the CPU."""
        start, stop = self.rows(micro)
        indices = self.order.batch(step)[start:stop]
        draws = stream(self.order.seed, "augmentation", step).random((self.order.batch_size, self._draws))[start:stop]
        pixels = np.stack([self._make(int(index), row) for index, row in zip(indices, draws, strict=True)])
        return torch.from_numpy(pixels), torch.from_numpy(indices)


class _Samples(Dataset[tuple[Tensor, Tensor] | MaeliftError]):
    """Whole micro-batches by number, for the worker processes of a DataLoader.

    An error is handed over as it is: one that a worker raises would come wrapped in its traceback.
    """

    def __init__(self, batches: Batches, keys: Sequence[tuple[int, int]]) -> None:
        self._batches, self._keys = batches, keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | MaeliftError:
        try:
            return self._batches.load(*self._keys[number])
        except MaeliftError as error:
            return error


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
