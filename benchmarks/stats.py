"""Paired differences of two arms: intervals, p-values, what a design can resolve, and the correction for several.

Seeds, encoders and test items all vary at random; anova.py splits the variance of the mean difference into their parts. A unit
is what was drawn independently: a pretrained encoder where several were pretrained, else a seed of fine-tuning. The interval is
of the mean over units and items like these.

Each part of the variance is widened by Student's t with its own degrees of freedom, and the squares add up (as in Graybill &
Wang, JASA 75, 1980): with two or three units their part is hardly known, and neither Satterthwaite's pooled degrees of freedom
nor a bootstrap keep their promise there, which this does (``tests/benchmarks/test_stats.py``) where luck is roughly normal;
``resampling.py`` has checks for skewed luck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from .anova import ItemSums, analyse

Verdict = Literal["helps", "hurts", "not resolved"]

Unit = Literal["seed", "encoder"]

POWER = 0.8
"""Chance of resolving a difference that is there, which plans are made for."""

NO_SPREAD = 1e-12
"""Differences that deviate by less are equal but for rounding, and say nothing about their spread."""

LIMIT_CONFIDENCE = 0.95
"""Confidence of the limit on what more steps would bring, one-sided."""

LEAST_P = 1e-12


@dataclass(frozen=True)
class Difference:
    """The mean difference over ``units`` independent draws and ``items`` test items, in the units of the scores.

    ``of_units`` and ``of_items`` are the parts of the variance of the mean; ``items`` counts test images, or clusters of them
    where ``clustered``, and is 0 where scores of single items aren't known: the interval then holds for these items alone.
    The spread is unknown with one unit, and no better known when all differ by the same amount: Student's t would give an
    interval of no width, a certainty that equal readings don't carry. ``of_units`` is then NaN, and the interval infinite.

    ``values``: the mean difference of each unit. ``seeds`` and ``of_seeds``: where every encoder ran with every seed, the part
    of the seeds. ``of_source``: what the limited number of labelled images adds, see ``finite_population_factor``; with
    ``drawn`` 1 every seed had all of them, and the interval holds for this labelled set alone.
    """

    units: int
    mean: float
    of_units: float
    items: int = 0
    of_items: float = 0.0
    confidence: float = 0.95
    unit: Unit = "seed"
    values: tuple[float, ...] = ()
    clustered: bool = False
    items_df: float = math.inf
    seeds: int = 0
    of_seeds: float = 0.0
    drawn: float = 0.0
    of_source: float = 0.0
    source_df: float = math.inf

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
        return math.sqrt(self.of_units + self.of_seeds + self.of_source + self.of_items)

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
        return self.p_beyond(0.0, 0.0)

    def p_beyond(self, gain: float, limit: float) -> float:
        """The smallest alpha whose interval excludes 0 even if the side that is behind gained ``gain`` more, ``limit`` at most.

        The gain's own uncertainty, ``limit`` less ``gain``, adds to the interval in squares. 1 where the spread is unknown,
        and for a difference within ``limit``.
        """
        distance, slack = abs(self.mean) - gain, limit - gain
        if not self.known or math.isinf(limit) or distance <= slack:
            return 1.0

        def excess(alpha: float) -> float:
            return math.hypot(self.half(alpha), slack) - distance

        return LEAST_P if excess(LEAST_P) < 0 else float(optimize.brentq(excess, LEAST_P, 1.0))

    @property
    def verdict(self) -> Verdict:
        """What this interval says, by itself; see ``holm`` for several."""
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "not resolved"

    def resolvable(self, comparisons: int = 1, power: float = POWER) -> float:
        """The true difference that this design resolves with a chance of ``power``; infinite where that isn't known.

        ``comparisons``: of how many planned ones it is, each at its share of the level (Holm's first step, which is the
        hardest to pass).
        """
        if not self.known:
            return math.inf
        alpha = (1 - self.confidence) / comparisons
        return self.se * _shift(self.half(alpha) / self.se, alpha, power)

    @property
    def smallest_resolved(self) -> float:
        """``resolvable`` of a single comparison."""
        return self.resolvable()

    def equivalence_limit(self, alpha: float = 0.05) -> float:
        """The smallest X of which can be said that the true difference is no larger, either way; infinite where unknown.

        By two one-sided tests at ``alpha`` (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987): the interval of confidence
        1 - 2 ``alpha`` lies within ±X.
        """
        return abs(self.mean) + self.half(2 * alpha)

    def half(self, alpha: float, *, units_alpha: float | None = None) -> float:
        """Half the width of the interval of confidence 1 - ``alpha``.

        ``units_alpha``: in its place for what seeds and encoders bring, all but the test items; see selection.py.
        """
        if not self.known:
            return math.inf
        own = alpha if units_alpha is None else units_alpha
        parts = (
            (self.of_units, self.units - 1, own),
            (self.of_items, self.items_df, alpha),
            (self.of_seeds, self.seeds - 1, own),
            (self.of_source, self.source_df, own),
        )
        return math.sqrt(sum(_t(level, df) ** 2 * variance for variance, df, level in parts if variance > 0))


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
    *,
    seeds: Sequence[int] | None = None,
    drawn: float = 0.0,
) -> Difference:
    """The difference of two arms' means of all items, a value a run, paired by position, by Student's t over the units.

    ``encoders``, ``seeds`` and ``drawn`` as for ``crossed_difference``. Raises ValueError for sequences of different or zero
    length.
    """
    if len(treated) != len(baseline) or not treated:
        raise ValueError(f"{len(treated)} values against {len(baseline)}: expected as many, at least 1")
    differences = np.asarray(treated, dtype=float) - np.asarray(baseline, dtype=float)
    return _difference(ItemSums.of(differences[:, None], None), encoders, seeds, drawn, confidence)


def crossed_difference(
    treated: Sequence[NDArray[np.floating]],
    baseline: Sequence[NDArray[np.floating]],
    encoders: Sequence[int] | None = None,
    confidence: float = 0.95,
    *,
    seeds: Sequence[int] | None = None,
    clusters: Sequence[int] | None = None,
    drawn: float = 0.0,
) -> Difference:
    """The difference of two arms' scores, a row (items,) a run, paired by run and item.

    ``encoders``: which pretrained encoder each run began with; runs that share one aren't independent, so that encoders
    become the units as soon as there are two. ``seeds``: which seed of fine-tuning (labelled images, head, order) each run
    had; where encoders share seeds, every encoder having run with each, the three-way analysis splits both: seeds that not
    every encoder ran with are left out. ``clusters`` (items,): which patient, video or flight each item is of. ``drawn``:
    the labelled images of a seed, as a share of those that they were drawn from. Raises ValueError for rows of different
    number or length.
    """
    if len(treated) != len(baseline) or not treated or len({len(row) for row in (*treated, *baseline)}) != 1:
        raise ValueError("expected as many rows of both arms, at least 1, all of one length")
    if clusters is not None and len(clusters) != len(treated[0]):
        raise ValueError(f"{len(clusters)} clusters of {len(treated[0])} items: expected one of each item")
    table = np.stack([np.asarray(row, dtype=float) for row in treated])
    table -= np.stack([np.asarray(row, dtype=float) for row in baseline])
    sums = ItemSums.of(table, None if clusters is None else np.asarray(clusters))
    found = _difference(sums, encoders, seeds, drawn, confidence)
    found = replace(found, items=len(sums.sizes), clustered=clusters is not None)
    return replace(found, of_units=math.nan) if found.items == 1 else found


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


def finite_population_factor(drawn: float) -> float:
    """What a limited source adds to the variance of a mean, as a multiple of the variance between single draws.

    Each seed draws n of the N labelled images that there are, without replacement, a share ``drawn`` = n / N. Two draws share
    n²/N images on average, so that their luck has the correlation n/N: with a variance V of such luck, the mean of S seeds has
    the variance V (1 - n/N) / S + V n/N, while the seeds' own spread shows V (1 - n/N) alone, the first term after the division
    by S. The second is n/N / (1 - n/N) times what shows, however many seeds there are. Other luck of a seed (head, order,
    augmentation) shows in the spread too and can't be separated with one run a draw: taking it for the draw's widens too
    much, never too little. Infinite for ``drawn`` 1; raises ValueError outside 0 to 1.
    """
    if not 0 <= drawn <= 1:
        raise ValueError(f"{drawn} drawn: expected a share, from 0 to 1")
    return math.inf if drawn == 1 else drawn / (1 - drawn)


def _difference(
    scores: ItemSums, encoders: Sequence[int] | None, seeds: Sequence[int] | None, drawn: float, confidence: float
) -> Difference:
    """The difference by its analysis of variance."""
    found = analyse(scores, encoders, seeds)
    values, source = found.values, 0.0 if drawn == 1 else finite_population_factor(drawn) * found.draws.variance
    return Difference(
        len(values),
        float(values.mean()),
        found.units.variance if values.std() > NO_SPREAD else math.nan,
        of_items=found.items.variance,
        confidence=confidence,
        unit="seed" if encoders is None or len(set(encoders)) == 1 else "encoder",
        values=tuple(values.tolist()),
        items_df=found.items.df,
        seeds=found.crossed,
        of_seeds=found.seeds.variance,
        drawn=drawn,
        of_source=source if drawn else 0.0,
        source_df=found.draws.df,
    )


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, half-width of its interval, and standard deviation.

    NaN where they are unknown: both with one value, the half-width also when all values are equal.
    """
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    sd = float(array.std(ddof=1)) if n > 1 else math.nan
    return mean, _t(1 - confidence, n - 1) * sd / math.sqrt(n) if sd > NO_SPREAD else math.nan, sd


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


def gain_limit(at: Sequence[float], longer: Sequence[float], val_images: int | None) -> tuple[float, float]:
    """The mean validation gain of longer training, paired over seeds, and the most that it truly is: (gain, limit), shares.

    The limit is one-sided, by Student's t; infinite of one seed, at least 0. As few seeds may agree by chance, their spread is
    taken for no smaller than what ``val_images`` alone bring about (two readings of an accuracy whose errors half agree); None
    where the score is no share of images, and equal gains then give no limit.
    """
    gains = np.asarray(longer, dtype=float) - np.asarray(at, dtype=float)
    count, gain = len(gains), float(gains.mean())
    sd = float(gains.std(ddof=1)) if count > 1 else 0.0
    if val_images is not None:
        share = float(np.clip(np.mean([*at, *longer]), 1 / val_images, 1 - 1 / val_images))
        sd = max(sd, math.sqrt(share * (1 - share) / val_images))
    if count == 1 or sd <= NO_SPREAD:
        return gain, math.inf
    return gain, max(0.0, gain + _t(2 * (1 - LIMIT_CONFIDENCE), count - 1) * sd / math.sqrt(count))


def _t(alpha: float, df: float) -> float:
    """Student's t that is exceeded either way with a chance of ``alpha``."""
    return -float(special.stdtrit(df, alpha / 2)) if math.isfinite(df) else -float(special.ndtri(alpha / 2))


def _shift(bar: float, alpha: float, power: float) -> float:
    """The mean, in standard errors, at which a two-sided test at ``alpha`` resolves a difference with a chance of ``power``.

    ``bar``: half the interval's width in standard errors; from it follow the degrees of freedom of the test.
    """
    if bar <= _t(alpha, 1e4):
        return bar + float(special.ndtri(power))
    df = float(optimize.brentq(lambda df: _t(alpha, df) - bar, 0.9, 1e4))

    def missing(shift: float) -> float:
        return 1 - float(special.nctdtr(df, shift, bar)) - power

    high = bar
    while missing(high) < 0:
        high *= 1.5
    return float(optimize.brentq(missing, 0.0, high))
