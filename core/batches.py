"""Which image comes in which batch: the same global batches on any number of processes, workers and restarts."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .config import MaeliftError
from .distributed import Ranks
from .randomness import stream

Uniforms = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A training image: ``pixels`` (C, H, W) as stored, and the arrays of its ``target``, none where there is no such."""

    pixels: NDArray[np.generic]
    target: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


Loaded = TypeVar("Loaded")
MakeSample = Callable[[int, Uniforms], Sample]
"""From an image's number and a row of draws in [0, 1) to a sample; all samples of a run have one shape of pixels."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device.

    ``pixels`` (B, C, H, W) as stored, uint8 or float32; ``indices`` (B,) int64, the images' numbers; ``rows``: its
    first and one past its last position in the global batch of ``step``; ``targets``: the tensors of each image's target.
    """

    pixels: Tensor
    indices: Tensor
    step: int
    rows: tuple[int, int]
    targets: tuple[Mapping[str, Tensor], ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on a device; from pinned memory, without waiting for the copy."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; a DataLoader asks for it."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        targets = tuple({name: change(value) for name, value in target.items()} for target in self.targets)
        return Batch(change(self.pixels), change(self.indices), self.step, self.rows, targets)


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
        together: list[Batch] = []
        pin_memory = self.ranks.device.type == "cuda"
        for batch in load_in_order(lambda number: self.load(*keys[number]), len(keys), self._workers, pin_memory):
            together.append(batch.to(self.ranks.device))
            if len(together) == self.accumulate:
                yield together
                together = []

    def load(self, step: int, micro: int) -> Batch:
        """One micro-batch, on the CPU."""
        start, stop = self.rows(micro)
        indices = self.order.batch(step)[start:stop]
        draws = stream(self.order.seed, "augmentation", step).random((self.order.batch_size, self._draws))[start:stop]
        samples = [self._make(int(index), row) for index, row in zip(indices, draws, strict=True)]
        return Batch(
            pixels=torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            indices=torch.from_numpy(indices),
            step=step,
            rows=(start, stop),
            targets=tuple(
                {name: torch.from_numpy(array) for name, array in sample.target.items()} for sample in samples
            ),
        )


def load_in_order(
    load: Callable[[int], Loaded], count: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Loaded]:
    """``load(0)`` to ``load(count - 1)``, by ``workers`` processes ahead of their use; 0: here, when they are asked for.

    Raises the MaeliftError that ``load`` raises, in its place and as it is.
    """
    loader: DataLoader[Loaded | MaeliftError] = DataLoader(
        _Numbered(load, count),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    for loaded in loader:
        if isinstance(loaded, MaeliftError):
            raise loaded
        yield loaded


class _Numbered(Dataset[Loaded | MaeliftError]):
    """What ``load`` gives by number; an error is handed over: one that a worker raises would come wrapped in its traceback."""

    def __init__(self, load: Callable[[int], Loaded], count: int) -> None:
        self._load, self._count = load, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Loaded | MaeliftError:
        try:
            return self._load(number)
        except MaeliftError as error:
            return error


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
