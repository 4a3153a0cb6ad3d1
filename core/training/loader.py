"""The micro-batches of a process, step by step, with what happens to images that turn out to be broken."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.sampling import MakeSamples, Sample, Sampler, Uniforms
from ..distributed import Ranks
from ..errors import DataError
from ..files import append_row
from ..seeding import stream
from .worker_loader import load_in_order

logger = logging.getLogger("maelift")

LEAST_SEEN = 1000
"""Images from which on a share of broken ones is computed; before, their number is compared with the share of so many."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device.

    ``pixels`` (B, C, H, W) as stored, uint8 or float32; ``indices`` (B,) int64, the images' numbers; ``rows``: its
    first and one past its last position in the global batch of ``step``; ``targets``: the tensors of each image's target.
    ``broken``: numbers of images that could not be opened, and why; others stand in their place.
    """

    pixels: Tensor
    indices: Tensor
    step: int
    rows: tuple[int, int]
    targets: tuple[Mapping[str, Tensor], ...] = ()
    broken: tuple[tuple[int, str], ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on a device; from pinned memory, without waiting for the copy."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; a DataLoader asks for it."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        targets = tuple({name: change(value) for name, value in target.items()} for target in self.targets)
        return Batch(change(self.pixels), change(self.indices), self.step, self.rows, targets, self.broken)


class Quarantine:
    """Broken images found in training: their names and the reasons are written to a file.

    ``count`` and ``name`` are of the images to train on. The processes of a run share the file. ``report`` is called
    for each broken image, once in the file's life, with the step and what happened.
    """

    def __init__(self, path: Path, count: int, name: Callable[[int], str], max_rejected: float) -> None:
        self.path, self.count, self.max_rejected = path, count, max_rejected
        self.report: Callable[[int, str], None] = lambda step, text: logger.warning("step %d: %s", step, text)
        self._name = name
        self._found: dict[int, str] = {}
        self._seen = 0

    @property
    def patience(self) -> int:
        """Broken images in a row after which the search for a sound one ends."""
        return max(32, int(self.max_rejected * self.count))

    def check(self, batch: Batch) -> None:
        """Note the broken images of a batch of this process; raises DataError where ``max_rejected`` allows fewer."""
        self._seen += len(batch.indices)
        new = {index: reason for index, reason in batch.broken if index not in self._found}
        if not new:
            return
        self._found.update(new)
        there = self._names()
        for index, reason in new.items():
            name = self._name(index)
            reason = reason.removeprefix(f"{name}: ")
            if name not in there:
                append_row(self.path, ("path", "reason"), (name, reason))
                self.report(
                    batch.step, f"{name} is broken ({reason}); another image took its place, see {self.path.name}"
                )
        seen = min(self.count, max(self._seen, LEAST_SEEN))
        if len(self._found) > self.max_rejected * seen:
            raise DataError(
                f"{len(self._found)} of the first {min(self._seen, self.count):,} images trained on are broken, more than "
                f"max_rejected={self.max_rejected:g} allows; see {self.path}. Repair or remove them, or raise max_rejected."
            )

    def _names(self) -> set[str]:
        if not self.path.exists():
            return set()
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row[0] for row in csv.reader(file) if row}


class Batches:
    """The micro-batches of this process, step by step.

    ``make`` turns an image's number and rows of ``draws`` uniform draws into samples; the draws belong to (seed, step,
    position in the global batch), so that they are the same whichever process or worker uses them.

    Each image of ``order`` gives ``crops_per_image`` samples that follow one another, with draws of their own, so that the
    global batch holds as many times the order's images. Where ``quarantine`` is given, the next sound image by number stands
    in for a broken one, with the same draws: which one depends on nothing else.
    """

    def __init__(
        self,
        order: Sampler,
        make: MakeSamples,
        *,
        draws: int,
        ranks: Ranks,
        accumulate: int = 1,
        workers: int = 0,
        crops_per_image: int = 1,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.order = order
        self.ranks = ranks
        self.accumulate = accumulate
        self.crops_per_image = crops_per_image
        self.batch_size = order.batch_size * crops_per_image
        self.micro_batch_size = self.batch_size // (ranks.world_size * accumulate)
        self.quarantine = quarantine
        self._make = make
        self._draws = draws
        self.workers = workers
        self._broken: dict[int, str] = {}

    def rows(self, micro: int) -> tuple[int, int]:
        """Where this process's micro-batch number ``micro`` lies in the global batch."""
        start = (self.ranks.rank * self.accumulate + micro) * self.micro_batch_size
        return start, start + self.micro_batch_size

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """For each step from ``first`` to before ``last`` the micro-batches of this process."""
        together: list[Batch] = []
        for batch in load_in_order(
            # No list of steps: reading one in worker processes would copy it there piece by piece.
            lambda number: self.load(first + number // self.accumulate, number % self.accumulate),
            (last - first) * self.accumulate,
            self.workers,
            pin_memory=self.ranks.device.type == "cuda",
        ):
            if self.quarantine is not None:
                self.quarantine.check(batch)
            together.append(batch.to(self.ranks.device))
            if len(together) == self.accumulate:
                yield together
                together = []

    def load(self, step: int, micro: int) -> Batch:
        """One micro-batch, on the CPU."""
        start, stop = self.rows(micro)
        indices = np.repeat(self.order.batch(step), self.crops_per_image)[start:stop]
        draws = stream(self.order.seed, "augmentation", step).random((self.batch_size, self._draws))[start:stop]
        samples: list[Sample] = []
        broken: dict[int, str] = {}
        first = start
        while first < stop:
            # The next image's crops: micro-batches may begin and end within an image's.
            end = min(stop, (first // self.crops_per_image + 1) * self.crops_per_image)
            rows = slice(first - start, end - start)
            number, made = self._sound(int(indices[first - start]), draws[rows], broken)
            indices[rows] = number
            samples += made
            first = end
        return Batch(
            pixels=torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            indices=torch.from_numpy(indices),
            step=step,
            rows=(start, stop),
            targets=tuple(
                {name: torch.from_numpy(array) for name, array in sample.target.items()} for sample in samples
            ),
            broken=tuple(broken.items()),
        )

    def _sound(self, index: int, draws: Uniforms, broken: dict[int, str]) -> tuple[int, Sequence[Sample]]:
        """The samples of an image or, in quarantine, of the next sound one, with its number; broken ones go to ``broken``."""
        if self.quarantine is None:
            return index, self._make(index, draws)
        for tried in range(min(self.quarantine.count, self.quarantine.patience)):
            number = (index + tried) % self.quarantine.count
            if (reason := self._broken.get(number)) is None:
                try:
                    return number, self._make(number, draws)
                except DataError as error:
                    reason = self._broken[number] = str(error)
            broken[number] = reason
        raise DataError(f"{len(broken)} images in a row can't be opened ({reason}). Has the data been moved?")
