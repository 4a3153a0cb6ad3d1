"""Which image comes in which batch, the same on any number of processes, workers and restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..seeding import stream

Uniforms = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A training image: ``pixels`` (C, H, W) as stored, and the arrays of its ``target``, none where there is no such."""

    pixels: NDArray[np.generic]
    target: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


MakeSample = Callable[[int, Uniforms], Sample]
"""From an image's number and a row of draws in [0, 1) to a sample; all samples of a run have one shape of pixels."""
MakeSamples = Callable[[int, Uniforms], Sequence[Sample]]
"""From an image's number and rows of draws (K, draws) to a sample each; the image is opened once for all of them."""


def each(make: MakeSample) -> MakeSamples:
    """A sample a row; the image is opened again for each."""
    return lambda index, draws: [make(index, row) for row in draws]


class Sampler:
    """An endless sequence of ``length`` images, shuffled again each epoch, cut into global batches of ``batch_size``.

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


class MixedSampler(Sampler):
    """Several groups of images in given shares: each yields all of its images before any is repeated.

    ``groups`` are the numbers of each group's images. As many positions as there are images make an epoch; they are dealt
    to the groups by ``shares``, in an order of the epoch's own.
    """

    def __init__(
        self, groups: Sequence[NDArray[np.int64]], shares: Sequence[float], batch_size: int, seed: int
    ) -> None:
        super().__init__(sum(map(len, groups)), batch_size, seed)
        self._groups = groups
        exact = np.array(shares, dtype=np.float64) / sum(shares) * self.length
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: self.length - counts.sum()]] += 1
        self.counts = counts

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            dealt = stream(self.seed, "mix", epoch).permutation(np.repeat(np.arange(len(self._groups)), self.counts))
            order = np.empty(self.length, dtype=np.int64)
            for number, (group, count) in enumerate(zip(self._groups, self.counts, strict=True)):
                first = epoch * int(count)
                order[dealt == number] = group[self._endless(number, len(group), first, first + int(count))]
            self._epoch, self._permutation = epoch, order
        return self._permutation

    def _endless(self, group: int, length: int, first: int, last: int) -> NDArray[np.int64]:
        """Places ``first`` to before ``last`` of a group's permutations, one after the other."""
        passes = range(first // length, -(-last // length))
        drawn = [stream(self.seed, "order of a source", group, number).permutation(length) for number in passes]
        together = np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)
        begin = first - (first // length) * length
        return together[begin : begin + last - first]
