"""Selecting the best of several arms: how often each comes first, and intervals that allow for the selection.

The best of k arms is the best partly by luck: its own interval misses its true score, from above, more often than it says (the
winner's curse). Here the arm is selected by validation scores, and its score is read on test images, so that the luck of the
test images has no part in the selection; but a seed's labelled images, its head, its order and its encoder bring luck to both. In
the interval of a selected arm the parts of seeds and encoders are therefore widened, and that of the test images is not:

- downwards for the best of k by Bonferroni: each arm's one-sided interval at a k-th of the level holds for all arms at once, and
  so for whichever is selected (the projection interval of Andrews, Kitagawa & McCloskey, Quarterly Journal of Economics 139,
  2024); upwards not at all, as being selected makes no score too low;
- the difference of two selected arms by the studentized range, which holds for all pairs at once (Tukey's; with each pair's own
  standard error as in Games & Howell, Journal of Educational Statistics 1, 1976).

``tests/benchmarks/test_selection.py`` holds both, and the shares of ``first_shares``, against simulated suites.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from ..core.seeding import stream
from .anova import ItemSums
from .stats import Difference, finite_population_factor

Matrix = NDArray[np.float64]

DRAWS = 10_000
"""Resamples by which it is counted how often an arm comes first: each share is known within a point."""

ROUNDING = 1e-12
"""Eigenvalues of a covariance matrix below this multiple of the largest are 0 but for rounding."""
TIED = 1e-9
"""Mean scores that differ by less are equal but for rounding; they share the first place."""


@dataclass(frozen=True)
class JointMeans:
    """The mean scores of arms (A,), and what resampling moves them by: covariance matrices (A, A) with degrees of freedom.

    ``units``: of the mean over seeds, or over encoders where there are several; ``items``: what test images bring beyond it;
    ``source``: what the limited number of labelled images adds (``finite_population_factor``).
    """

    means: Matrix
    units: Matrix
    units_df: float
    items: Matrix
    items_df: float
    source: Matrix


def joint_means(
    table: Matrix,
    encoders: Sequence[object],
    *,
    clusters: Sequence[int] | None = None,
    drawn: float = 0.0,
) -> JointMeans:
    """The analysis of variance of anova.py for several arms at once, of scores (arms, runs, items) paired by run and item.

    ``encoders``: which pretrained encoders each run began with; the units are these where there are several, else the runs.
    ``clusters`` (items,) and ``drawn`` as for ``stats.crossed_difference``. One item: means alone are known, and no part of
    the items. Raises ValueError for fewer than two runs.
    """
    if table.ndim != 3 or table.shape[1] < 2:
        raise ValueError(f"scores of shape {table.shape}: expected (arms, runs, items) with at least 2 runs")
    scores = ItemSums.of(table, None if clusters is None else np.asarray(clusters))
    groups = _groups(encoders)
    if len(groups) == 1:
        groups = [[run] for run in groups[0]]
    averaged = ItemSums(np.stack([scores.sums[:, runs].mean(axis=1) for runs in groups], axis=1), scores.sizes)
    values, count = averaged.means, len(groups)
    items, items_df = np.zeros((len(table), len(table))), math.inf
    if len(scores.sizes) > 1:
        common = averaged.deviations.mean(axis=1)
        rest = averaged.deviations - common[:, None]
        noise = np.einsum("auk,buk->ab", rest, rest) / (count * (count - 1))
        items, items_df = _positive(common @ common.T - noise), scores.df
    factor = 0.0 if drawn == 1 else finite_population_factor(drawn)
    return JointMeans(
        values.mean(axis=1),
        np.atleast_2d(np.cov(values)) / count,
        count - 1,
        items,
        items_df,
        factor * _between_seeds(scores.means, groups),
    )


def first_shares(means: JointMeans, draws: int = DRAWS) -> Matrix:
    """How often each arm (A,) has the highest mean where seeds, encoders and test images are drawn again; equal ones share it.

    Resamples are normal with the covariances of ``means``, each part's scale drawn with its degrees of freedom (a bootstrap of
    three seeds would know only three). Of two arms the share is 1 less the one-sided p-value of their paired difference.
    """
    generator = stream(0, "resamples of means", len(means.means))
    drawn = np.tile(means.means, (draws, 1))
    for part, df in ((means.units, means.units_df), (means.items, means.items_df), (means.source, means.units_df)):
        noise = generator.standard_normal((draws, len(part))) @ _root(part)
        scale = np.sqrt(df / generator.chisquare(df, draws)) if math.isfinite(df) else np.ones(draws)
        drawn += noise * scale[:, None]
    first = drawn >= drawn.max(axis=1, keepdims=True) - TIED
    shares: Matrix = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


@dataclass(frozen=True)
class Range:
    """A value with the ends of its interval, which may lie at unequal distances; infinite where the spread isn't known."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether anything is known of the spread."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def selected_score(score: Difference, arms: int) -> Range:
    """The interval of the mean score of an arm (its difference from 0) that was selected as the best of ``arms``."""
    alpha = 1 - score.confidence
    low = score.half(alpha, units_alpha=alpha / arms)
    return Range(score.mean, score.mean - low, score.mean + score.half(alpha))


def selected_difference(difference: Difference, arms: int) -> Range:
    """The interval of a difference of two arms, each of which may have been selected out of ``arms``, at least 2."""
    alpha = 1 - difference.confidence
    half = difference.half(alpha, units_alpha=_pair_alpha(alpha, arms, difference.units - 1))
    return Range(difference.mean, difference.mean - half, difference.mean + half)


@cache
def _pair_alpha(alpha: float, arms: int, df: int) -> float:
    """The level at which Student's t has the critical value of the studentized range of ``arms`` means, over the root of 2."""
    if df < 1 or arms <= 2:
        return alpha
    bar = float(stats.studentized_range.isf(alpha, arms, df)) / math.sqrt(2)
    return 2 * float(special.stdtr(df, -bar))


def _groups(encoders: Sequence[object]) -> list[list[int]]:
    """The runs of each encoder, by number."""
    found: dict[object, list[int]] = {}
    for run, encoder in enumerate(encoders):
        found.setdefault(encoder, []).append(run)
    return list(found.values())


def _between_seeds(means: Matrix, groups: Sequence[Sequence[int]]) -> Matrix:
    """The covariance (A, A) between single seeds of means (A, R), within encoders where one has several."""
    if all(len(runs) == 1 for runs in groups):
        return np.atleast_2d(np.cov(means))
    rests = np.concatenate([means[:, runs] - means[:, runs].mean(axis=1, keepdims=True) for runs in groups], axis=1)
    found: Matrix = rests @ rests.T / (rests.shape[1] - len(groups))
    return found


def _positive(matrix: Matrix) -> Matrix:
    """The nearest covariance matrix: negative eigenvalues, which differences of estimates have by chance, become 0."""
    root = _root(matrix)
    found: Matrix = root @ root.T
    return found


def _root(matrix: Matrix) -> Matrix:
    """The symmetric square root of a covariance matrix; eigenvalues that are negative or rounding errors count as 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    least = ROUNDING * max(0.0, float(values.max()))
    found: Matrix = (vectors * np.sqrt(np.where(values > least, values, 0.0))) @ vectors.T
    return found
