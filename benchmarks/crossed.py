"""What is told of an arm where seeds, encoders and test items all bring luck: intervals of paired differences.

Every seed of an arm is scored on the same test items, so that differences form a table of units (rows) and items (columns). A
unit is what was drawn independently: a pretrained encoder where several were pretrained, else a seed of fine-tuning. Both
are random: the interval is of the mean over units and items like these, not over these alone.

The two-way analysis of variance (Searle, Casella & McCulloch, "Variance Components", 1992, ch. 4) parts the variance of the mean
into that of the units' means, which holds the noise of single scores, and what items bring beyond it. Each is widened by
Student's t with its own degrees of freedom, and the squares add up (as in Graybill & Wang, JASA 75, 1980): with two or three units the
first is hardly known, and neither Satterthwaite's pooled degrees of freedom nor a bootstrap keep their promise there, which
this does (``tests/benchmarks/test_crossed.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from .stats import MOST_SEEDS, NO_SPREAD, Verdict

POWER = 0.8
"""Chance of resolving a difference that is there, which plans are made for."""


@dataclass(frozen=True)
class CrossedDifference:
    """The mean difference over ``units`` independent draws and ``items`` test items, in the units of the scores.

    ``of_units`` and ``of_items``: the parts of the variance of the mean; ``unit_sd``: deviation between units beyond what single
    scores bring, ``item_sd``: between items likewise, ``rest_sd``: of a single score. Where a single unit or equal ones tell
    nothing of the spread, they are NaN and the interval infinite.
    """

    units: int
    items: int
    mean: float
    of_units: float = math.nan
    of_items: float = math.nan
    unit_sd: float = math.nan
    item_sd: float = math.nan
    rest_sd: float = math.nan
    confidence: float = 0.95

    @property
    def known(self) -> bool:
        """Whether anything is known of the spread."""
        return not math.isnan(self.of_units)

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
        units, items = (float(stats.t.isf(alpha / 2, count - 1)) for count in (self.units, self.items))
        return math.sqrt(units**2 * self.of_units + items**2 * self.of_items)


def crossed_difference(
    treated: Sequence[NDArray[np.floating]],
    baseline: Sequence[NDArray[np.floating]],
    encoders: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> CrossedDifference:
    """The difference of two arms' scores, a row (items,) a seed, paired by seed and item.

    ``encoders``: which pretrained encoder each seed began with; seeds that share one aren't independent, so that encoders
    become the units as soon as there are two. Raises ValueError for rows of different number or length.
    """
    if len(treated) != len(baseline) or not treated or len({len(row) for row in (*treated, *baseline)}) != 1:
        raise ValueError("expected as many rows of both arms, at least 1, all of one length")
    table = np.stack([np.asarray(row, dtype=float) for row in treated])
    table -= np.stack([np.asarray(row, dtype=float) for row in baseline])
    if encoders is not None and len(set(encoders)) > 1:
        numbers = np.asarray(encoders)
        table = np.stack([table[numbers == number].mean(axis=0) for number in sorted(set(encoders))])
    return _analysed(table, confidence)


def _analysed(table: NDArray[np.float64], confidence: float) -> CrossedDifference:
    """The analysis of variance of a table (units, items)."""
    units, items = table.shape
    mean = float(table.mean())
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    if units == 1 or items == 1 or rows.std() <= NO_SPREAD:
        return CrossedDifference(units, items, mean, confidence=confidence)
    of_units = items * float(np.square(rows - mean).sum()) / (units - 1)
    of_items = units * float(np.square(columns - mean).sum()) / (items - 1)
    residual = table - rows[:, None] - columns[None, :] + mean
    of_rest = float(np.square(residual).sum()) / ((units - 1) * (items - 1))
    return CrossedDifference(
        units,
        items,
        mean,
        of_units=of_units / (units * items),
        of_items=max(0.0, of_items - of_rest) / (units * items),
        unit_sd=math.sqrt(max(0.0, of_units - of_rest) / items),
        item_sd=math.sqrt(max(0.0, of_items - of_rest) / units),
        rest_sd=math.sqrt(of_rest),
        confidence=confidence,
    )


def units_needed(difference: CrossedDifference, power: float = POWER) -> int | None:
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


def labels_saved(counts: Sequence[int], treated: Sequence[float], baseline: Sequence[float]) -> list[float | None]:
    """How many labels the baseline needs for what the treated arm reaches with each of ``counts``, by its curve.

    Between two counts the curve is a line over the logarithm of the labels; None where the score lies beyond it, so
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


def _shift(bar: float, confidence: float, power: float = POWER) -> float:
    """The mean, in standard errors, at which a two-sided test resolves a difference with a chance of ``power``.

    ``bar``: half the interval's width in standard errors; it tells of how many degrees of freedom the test is.
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
