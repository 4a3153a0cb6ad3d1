"""Analysis of variance of paired differences: the parts of seeds, encoders and test items in the mean's variance.

Every run of an arm is scored on the same test items, so that differences form a table of runs (rows) and items (columns), and
both vary at random. The two-way analysis of variance (Searle, Casella & McCulloch, "Variance Components", 1992, ch. 4) splits
the variance of the mean into that of the runs' means, which holds the noise of single scores, and what items bring beyond it.
Where every encoder ran with every seed, rows are a table themselves, and a three-way analysis splits encoders from seeds.

Test items of one patient, video or flight aren't independent draws: the cluster is the item then. Clusters have unequal sizes,
so that the mean over all images is a ratio of two sums: each cluster's contribution is linearised (Cochran, "Sampling
Techniques", 1977, sec. 6.3) and divided by sqrt(1 - its share of the images), as a large one pulls the mean towards itself
(Bell & McCaffrey, Survey Methodology 28, 2002).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


@dataclass(frozen=True)
class VariancePart:
    """A part of the variance of a mean, and the degrees of freedom that it is known with."""

    variance: float
    df: float


NOTHING = VariancePart(0.0, np.inf)


@dataclass(frozen=True)
class VarianceParts:
    """The mean of each unit of the analysis, and the parts of the variance of their mean; NaN where it isn't known.

    ``draws``: the variance between single seeds, that of a mean over one. ``seeds``: the part of the seeds, where each of the
    ``crossed`` ran with every encoder.
    """

    values: Table
    units: VariancePart
    items: VariancePart
    draws: VariancePart
    seeds: VariancePart = NOTHING
    crossed: int = 0


@dataclass(frozen=True)
class ItemSums:
    """Scores of runs, (..., K): ``sums`` over the items of each of K clusters, of ``sizes`` items (K,) each."""

    sums: Table
    sizes: Table

    @classmethod
    def of(cls, table: Table, clusters: NDArray[np.int64] | None) -> ItemSums:
        """From scores of single items (..., items); ``clusters`` (items,): which cluster each is in, None: its own."""
        if clusters is None:
            return cls(table, np.ones(table.shape[-1]))
        _, sizes = np.unique(clusters, return_counts=True)
        together = table[..., np.argsort(clusters, kind="stable")]
        sums: Table = np.add.reduceat(together, np.cumsum(sizes) - sizes, axis=-1)
        return cls(sums, sizes.astype(np.float64))

    @property
    def means(self) -> Table:
        """The mean score of each run over all its items, (...)."""
        means: Table = self.sums.sum(axis=-1) / self.sizes.sum()
        return means

    @property
    def deviations(self) -> Table:
        """What each cluster brings to a run's mean, (..., K); the squares' sum estimates the variance of that mean."""
        shares = self.sizes / self.sizes.sum()
        own = self.sums / self.sizes.sum() - self.means[..., None] * shares
        deviations: Table = own / np.sqrt(1 - shares)
        return deviations

    @property
    def df(self) -> float:
        """Degrees of freedom of the clusters: their number less 1 where they are of one size, fewer where few are large.

        By Satterthwaite, if items of a cluster were all alike: the cautious case.
        """
        weights = np.square(self.sizes)
        return max(1.0, float(weights.sum() ** 2 / np.square(weights).sum()) - 1)


def analyse(scores: ItemSums, encoders: Sequence[int] | None, seeds: Sequence[int] | None) -> VarianceParts:
    """The analysis of runs (R, K), each with a seed and an encoder by number; the units are encoders where there are several."""
    numbers = np.zeros(len(scores.sums), dtype=np.int64) if encoders is None else np.asarray(encoders)
    names = np.unique(numbers)
    if len(names) == 1:
        return two_way(scores, _spread(scores.means))
    rows = _crossing(numbers, names, seeds)
    if rows is not None:
        return three_way(ItemSums(scores.sums[rows], scores.sizes))
    by_encoder = [np.flatnonzero(numbers == name) for name in names]
    averaged = ItemSums(np.stack([scores.sums[runs].mean(axis=0) for runs in by_encoder]), scores.sizes)
    return two_way(averaged, _within(scores.means, by_encoder))


def _crossing(
    numbers: NDArray[np.int64], names: NDArray[np.int64], seeds: Sequence[int] | None
) -> NDArray[np.int64] | None:
    """The runs as a table (encoders, seeds), of the seeds that all encoders share; None where no seed is in two encoders."""
    if seeds is None or len(set(seeds)) == len(seeds):
        return None
    place = {(int(encoder), seed): run for run, (encoder, seed) in enumerate(zip(numbers, seeds, strict=True))}
    shared = [seed for seed in dict.fromkeys(seeds) if all((int(name), seed) in place for name in names)]
    return np.array([[place[int(name), seed] for seed in shared] for name in names], dtype=np.int64).reshape(
        len(names), -1
    )


def _spread(values: Table) -> VariancePart:
    """The variance between values; NaN of one."""
    return VariancePart(float(values.var(ddof=1)) if len(values) > 1 else np.nan, len(values) - 1)


def _within(means: Table, groups: Sequence[NDArray[np.int64]]) -> VariancePart:
    """The variance between runs of one encoder; between all encoders' means where each has one run."""
    df = sum(len(group) - 1 for group in groups)
    if df == 0:
        return _spread(np.array([means[group].mean() for group in groups]))
    squares = sum(float(np.square(means[group] - means[group].mean()).sum()) for group in groups)
    return VariancePart(squares / df, df)


def two_way(scores: ItemSums, draws: VariancePart) -> VarianceParts:
    """The analysis of units (U, K), each drawn by itself; items bring nothing where there is one."""
    means = scores.means
    count = len(means)
    if count == 1:
        return VarianceParts(means, VariancePart(np.nan, 0), NOTHING, draws)
    units = VariancePart(float(means.var(ddof=1)) / count, count - 1)
    if len(scores.sizes) == 1:
        return VarianceParts(means, units, NOTHING, draws)
    common = scores.deviations.mean(axis=0)
    noise = float(np.square(scores.deviations - common).sum()) / (count * (count - 1))
    items = max(0.0, float(np.square(common).sum()) - noise)
    return VarianceParts(means, units, VariancePart(items, scores.df), draws)


def three_way(scores: ItemSums) -> VarianceParts:
    """The analysis of encoders × seeds (E, S, K), every one with every other; encoders are the units.

    The part of the encoders' means holds the noise of single runs; seeds and items are what they bring beyond it.
    """
    means = scores.means
    values, by_seed = means.mean(axis=1), means.mean(axis=0)
    encoders, seeds = means.shape
    if seeds < 2:
        return VarianceParts(values, VariancePart(np.nan, 0), NOTHING, VariancePart(np.nan, 0), crossed=seeds)
    units = VariancePart(_main(means, 1), encoders - 1)
    crossed = VariancePart(max(0.0, _main(means, 0) - _interaction(means)), seeds - 1)
    items = NOTHING
    if len(scores.sizes) > 1:
        parts = scores.deviations
        noise = _main(parts, 1) + _main(parts, 0) - _interaction(parts)
        items = VariancePart(max(0.0, float(np.square(parts.mean(axis=(0, 1))).sum()) - noise), scores.df)
    return VarianceParts(values, units, items, _spread(by_seed), crossed, seeds)


def _main(table: Table, over: int) -> float:
    """The variance of the mean by the means over axis ``over`` of a table (E, S, ...), summed over what follows."""
    means = table.mean(axis=over)
    count = len(means)
    return float(np.square(means - means.mean(axis=0)).sum()) / (count * (count - 1))


def _interaction(table: Table) -> float:
    """The same by what remains of a table (E, S, ...) without the means of its rows and columns."""
    rest = table - table.mean(axis=0, keepdims=True) - table.mean(axis=1, keepdims=True)
    rest = rest + table.mean(axis=(0, 1), keepdims=True)
    encoders, seeds = int(table.shape[0]), int(table.shape[1])
    squares = float(np.square(rest).sum())
    return squares / (encoders * seeds * (encoders - 1) * (seeds - 1))
