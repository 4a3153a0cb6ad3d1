"""Paired differences over seeds, with intervals, a verdict, and how many more seeds it would take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["helps", "hurts", "not resolved"]

MOST_SEEDS = 1000
"""Numbers of seeds beyond this are not worth naming."""

NO_SPREAD = 1e-12
"""Differences that deviate by less are equal but for rounding, and tell nothing of their spread."""

SMALLEST_GAIN = 0.002
"""Gains in validation accuracy below this share are not worth twice the steps."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of ``n`` pairs, its deviation, and the ``confidence`` interval of the mean.

    In the units of the values; ``sd`` is the standard deviation over pairs. The spread is unknown with one
    pair, and no better known when all pairs differ by the same amount: Student's t would give an interval of
    no width, a certainty that equal readings don't carry. ``low`` and ``high`` are then minus and plus
    infinity.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    confidence: float = 0.95

    @property
    def verdict(self) -> Verdict:
        """What the interval says: all above 0, all below, or neither."""
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "not resolved"


def paired_difference(
    treated: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """The interval of the mean of ``treated - baseline``, paired by position, by Student's t.

    Raises ValueError for sequences of different or zero length.
    """
    if len(treated) != len(baseline) or not treated:
        raise ValueError(f"{len(treated)} values against {len(baseline)}: expected as many, at least 1")
    differences = np.asarray(treated, dtype=float) - np.asarray(baseline, dtype=float)
    n, mean = len(differences), float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else math.nan
    if n == 1 or sd <= NO_SPREAD:
        return PairedDifference(n, mean, sd, -math.inf, math.inf, confidence)
    half = _t(confidence, n) * sd / math.sqrt(n)
    return PairedDifference(n, mean, sd, mean - half, mean + half, confidence)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, half-width of its interval, and standard deviation.

    NaN where they are unknown: both with one value, the half-width also when all values are equal.
    """
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    sd = float(array.std(ddof=1)) if n > 1 else math.nan
    return mean, _t(confidence, n) * sd / math.sqrt(n) if sd > NO_SPREAD else math.nan, sd


def seeds_to_resolve(difference: PairedDifference) -> int | None:
    """The number of seeds, above those at hand, at which an interval of this mean and spread would exclude 0.

    The smallest n with t(n - 1) * sd / sqrt(n) < abs(mean): a forecast, likely rather than certain, as mean
    and spread will move. None when the spread is unknown, the mean is 0, or more than ``MOST_SEEDS`` would be
    needed.
    """
    if not math.isfinite(difference.sd) or difference.sd <= NO_SPREAD or difference.mean == 0:
        return None
    for n in range(difference.n + 1, MOST_SEEDS + 1):
        if _t(difference.confidence, n) * difference.sd / math.sqrt(n) < abs(difference.mean):
            return n
    return None


def converged(at: Sequence[float], doubled: Sequence[float], n_val: int) -> tuple[float, float, bool]:
    """Whether twice the steps leave validation accuracy where it was: (mean gain, its noise, converged).

    The gain is paired over seeds. Its noise is the standard error of that mean, but at least what the size of
    the validation set alone brings about, as two seeds may agree by chance (two readings of the same accuracy
    on ``n_val`` images whose errors half agree), and at least ``SMALLEST_GAIN``. Above one noise an arm still
    gains.

    That is deliberately eager. Calling an arm converged too early handicaps it, and a handicapped baseline
    makes the others look good; training it too long costs little but time, as the best weights on validation
    are kept. So the bar is one standard error, not two: an arm that gains nothing is trained on in up to one
    case in six.
    """
    gains = np.asarray(doubled, dtype=float) - np.asarray(at, dtype=float)
    n = len(gains)
    accuracy = float(np.clip(np.mean([*at, *doubled]), 1 / n_val, 1 - 1 / n_val))
    from_images = math.sqrt(accuracy * (1 - accuracy) / n_val) / math.sqrt(n)
    from_seeds = float(gains.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    gain, noise = float(gains.mean()), max(from_images, from_seeds, SMALLEST_GAIN)
    return gain, noise, gain <= noise


def _t(confidence: float, n: int) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2, n - 1))
