"""Paired differences of two arms, with intervals, verdicts, and what a design can resolve.

Seeds, encoders and test items all vary at random. Every seed of an arm is scored on the same test items: differences form a
table of units (rows) and items (columns). A unit is what was drawn independently: a pretrained encoder where several were
pretrained, else a seed of fine-tuning. Both are random: the interval is of the mean over units and items like these.

The two-way analysis of variance (Searle, Casella & McCulloch, "Variance Components", 1992, ch. 4) parts the variance of the mean
into that of the units' means, which holds the noise of single scores, and what items bring beyond it. Each is widened by
Student's t with its own degrees of freedom, and the squares add up (as in Graybill & Wang, JASA 75, 1980): with two or three
units the first is hardly known, and neither Satterthwaite's pooled degrees of freedom nor a bootstrap keep their promise
there, which this does (``tests/benchmarks/test_stats.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Verdict = Literal["helps", "hurts", "not resolved"]

POWER = 0.8
"""Chance of resolving a difference that is there, which plans are made for."""

MOST_SEEDS = 1000
"""Numbers of seeds beyond this are not worth naming."""

NO_SPREAD = 1e-12
"""Differences that deviate by less are equal but for rounding, and say nothing about their spread."""

LIMIT_CONFIDENCE = 0.95
"""Confidence of the limit on what more steps would bring, one-sided."""


@dataclass(frozen=True)
class Difference:
    """The mean difference over ``units`` independent draws and ``items`` test items, in the units of the scores.

    ``of_units`` and ``of_items`` are the parts of the variance of the mean; ``items`` is 0 where scores of single items aren't
    known, and the interval then holds for these items alone. The spread is unknown with one unit, and no better known when
    all differ by the same amount: Student's t would give an interval of no width, a certainty that equal readings don't
    carry. ``of_units`` is then NaN, and the interval infinite.
    """

    units: int
    mean: float
    of_units: float
    items: int = 0
    of_items: float = 0.0
    confidence: float = 0.95

    @property
    def known(self) -> bool:
        """Whether anything is known of the spread."""
        return not math.isnan(self.of_units)

    @property
    def sd(self) -> float:
        """The standard deviation over units; NaN of one."""
        return math.sqrt(self.of_units * self.units)

    @property
    def se(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(self.of_units + self.of_items)

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half(1 - self.confidence)

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half(1 - self.confidence)

    @property
    def p(self) -> float:
        """The smallest alpha whose interval excludes 0; 1 where nothing is known of the spread."""
        if not self.known or self.mean == 0:
            return 1.0
        least = 1e-12
        if self.half(least) < abs(self.mean):
            return least
        return float(optimize.brentq(lambda alpha: self.half(alpha) - abs(self.mean), least, 1.0))

    @property
    def verdict(self) -> Verdict:
        """What this interval says, by itself; see ``holm`` for several."""
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "not resolved"

    @property
    def smallest_resolved(self) -> float:
        """The true difference that a design like this resolves with a chance of ``POWER``; infinite where that isn't known."""
        return (
            math.inf if not self.known else self.se * _shift(self.half(1 - self.confidence) / self.se, self.confidence)
        )

    def half(self, alpha: float) -> float:
        """Half the width of the interval of confidence 1 - ``alpha``."""
        if not self.known:
            return math.inf
        parts = [(self.units, self.of_units), (self.items, self.of_items)]
        return math.sqrt(sum(stats.t.isf(alpha / 2, count - 1) ** 2 * part for count, part in parts if part > 0))


@dataclass(frozen=True)
class Independent:
    """The difference of two means of independent runs, with its interval; NaN where that is unknown."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether anything is known of the spread."""
        return not math.isnan(self.low)


def paired_difference(
    treated: Sequence[float],
    baseline: Sequence[float],
    encoders: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two arms' means of all items, a value a seed, paired by position, by Student's t over the units.

    ``encoders`` as for ``crossed_difference``. Raises ValueError for sequences of different or zero length.
    """
    if len(treated) != len(baseline) or not treated:
        raise ValueError(f"{len(treated)} values against {len(baseline)}: expected as many, at least 1")
    differences = np.asarray(treated, dtype=float) - np.asarray(baseline, dtype=float)
    differences = _by_encoder(differences[:, None], encoders)[:, 0]
    n, mean = len(differences), float(differences.mean())
    variance = float(differences.var(ddof=1)) / n if n > 1 and differences.std() > NO_SPREAD else math.nan
    return Difference(n, mean, variance, confidence=confidence)


def crossed_difference(
    treated: Sequence[NDArray[np.floating]],
    baseline: Sequence[NDArray[np.floating]],
    encoders: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two arms' scores, a row (items,) a seed, paired by seed and item.

    ``encoders``: which pretrained encoder each seed began with; seeds that share one aren't independent, so that encoders
    become the units as soon as there are two. Raises ValueError for rows of different number or length.
    """
    if len(treated) != len(baseline) or not treated or len({len(row) for row in (*treated, *baseline)}) != 1:
        raise ValueError("expected as many rows of both arms, at least 1, all of one length")
    table = np.stack([np.asarray(row, dtype=float) for row in treated])
    table -= np.stack([np.asarray(row, dtype=float) for row in baseline])
    return _analyse(_by_encoder(table, encoders), confidence)


def independent_difference(
    treated: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Independent:
    """The difference of two groups' means, nothing paired, by Welch's t; raises ValueError for an empty group."""
    if not treated or not baseline:
        raise ValueError(f"{len(treated)} values against {len(baseline)}: expected at least 1 each")
    one, two = (np.asarray(values, dtype=float) for values in (treated, baseline))
    mean = float(one.mean() - two.mean())
    if min(len(one), len(two)) < 2 or max(one.std(), two.std()) <= NO_SPREAD:
        return Independent(mean, math.nan, math.nan)
    found = stats.ttest_ind(one, two, equal_var=False).confidence_interval(confidence)
    return Independent(mean, float(found.low), float(found.high))


def _by_encoder(table: NDArray[np.float64], encoders: Sequence[int] | None) -> NDArray[np.float64]:
    """The mean row of each encoder, where there are several; else the rows as they are."""
    if encoders is None or len(set(encoders)) < 2:
        return table
    numbers = np.asarray(encoders)
    return np.stack([table[numbers == number].mean(axis=0) for number in sorted(set(encoders))])


def _analyse(table: NDArray[np.float64], confidence: float) -> Difference:
    """The analysis of variance of a table (units, items)."""
    units, items = table.shape
    mean = float(table.mean())
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    if units == 1 or items == 1 or rows.std() <= NO_SPREAD:
        return Difference(units, mean, math.nan, items, confidence=confidence)
    of_units = items * float(np.square(rows - mean).sum()) / (units - 1)
    of_items = units * float(np.square(columns - mean).sum()) / (items - 1)
    residual = table - rows[:, None] - columns[None, :] + mean
    of_rest = float(np.square(residual).sum()) / ((units - 1) * (items - 1))
    count = units * items
    return Difference(units, mean, of_units / count, items, max(0.0, of_items - of_rest) / count, confidence)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, half-width of its interval, and standard deviation.

    NaN where they are unknown: both with one value, the half-width also when all values are equal.
    """
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    sd = float(array.std(ddof=1)) if n > 1 else math.nan
    return mean, _t(confidence, n) * sd / math.sqrt(n) if sd > NO_SPREAD else math.nan, sd


def units_needed(difference: Difference, power: float = POWER) -> int | None:
    """The number of units at which a true difference of this size is resolved with this chance, on as many items.

    None where the spread is unknown, or more than ``MOST_SEEDS`` would be needed, or the items alone are too few.
    """
    if not difference.known or difference.mean == 0:
        return None
    alone = difference.of_units * difference.units
    for units in range(2, MOST_SEEDS + 1):
        planned = replace(difference, units=units, of_units=alone / units)
        ratio = planned.half(1 - difference.confidence) / planned.se
        if abs(difference.mean) / planned.se >= _shift(ratio, difference.confidence, power):
            return units
    return None


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted for there being several (Holm, Scandinavian Journal of Statistics 6, 1979).

    Rejecting those at or below alpha keeps the chance of any false one below alpha, however they depend on one another.
    """
    adjusted: dict[str, float] = {}
    worst = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda entry: entry[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def labels_needed(counts: Sequence[int], treated: Sequence[float], baseline: Sequence[float]) -> list[float | None]:
    """How many labels the baseline needs for what the treated arm reaches with each of ``counts``, by its curve.

    Between two counts the curve is a line over the logarithm of the labels; None where the score is beyond it, so
    that nothing is said of labels that weren't tried. Where the curve falls, the first crossing counts.
    """
    logs = np.log(np.asarray(counts, dtype=float))
    needed: list[float | None] = []
    for score in treated:
        found: float | None = None
        for left in range(len(counts) - 1):
            low, high = baseline[left], baseline[left + 1]
            if min(low, high) <= score <= max(low, high):
                share = 0.0 if high == low else (score - low) / (high - low)
                found = float(np.exp(logs[left] + share * (logs[left + 1] - logs[left])))
                break
        needed.append(found)
    return needed


def gain_limit(at: Sequence[float], longer: Sequence[float], val_images: int | None) -> tuple[float, float]:
    """The mean gain in validation score of more steps, paired over seeds, and the most that it is (95 %, one-sided).

    Its standard error is that over seeds, but at least what the size of the validation set alone brings about, as few seeds may
    agree by chance. The limit is at least 0, and infinite for one seed.
    """
    gains = np.asarray(longer, dtype=float) - np.asarray(at, dtype=float)
    count, gain = len(gains), float(gains.mean())
    if count < 2:
        return gain, math.inf
    from_images = 0.0
    if val_images is not None:
        share = float(np.clip(np.mean([*at, *longer]), 1 / val_images, 1 - 1 / val_images))
        from_images = math.sqrt(share * (1 - share) / val_images / count)
    error = max(float(gains.std(ddof=1)) / math.sqrt(count), from_images)
    return gain, max(0.0, gain + float(stats.t.ppf(LIMIT_CONFIDENCE, count - 1)) * error)


def _t(confidence: float, n: int) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2, n - 1))


def _shift(bar: float, confidence: float, power: float = POWER) -> float:
    """The mean, in standard errors, at which a two-sided test resolves a difference with a chance of ``power``.

    ``bar``: half the interval's width in standard errors; from it follow the degrees of freedom of the test.
    """
    alpha = 1 - confidence
    if bar <= float(stats.t.isf(alpha / 2, 1e4)):
        return bar + float(stats.norm.ppf(power))
    df = float(optimize.brentq(lambda df: float(stats.t.isf(alpha / 2, df)) - bar, 0.9, 1e4))

    def missing(shift: float) -> float:
        return float(stats.nct.sf(bar, df, shift)) - power

    high = bar
    while missing(high) < 0:
        high *= 1.5
    return float(optimize.brentq(missing, 0.0, high))
