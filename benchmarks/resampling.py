"""Checks of a paired difference that don't take luck for normal: sign flips of the units, and a bootstrap-t interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ..core.seeding import stream
from .stats import NO_SPREAD, Difference

EXACT_UNITS = 14
"""Up to so many units, all 2^n patterns of signs are tried."""

DRAWS = 10_000

LEAST_UNITS = 6
"""Of fewer units, resamples are too few and too alike for a bootstrap."""


def sign_flip_p(difference: Difference) -> float:
    """The two-sided p-value by sign flips of the units' differences (Fisher's test): 1 of one unit.

    Exact if differences are symmetric around 0 where there is no effect, whatever their distribution: as for any two recipes
    of equal quality whose runs could be exchanged. Of up to ``EXACT_UNITS`` units all patterns are tried, else ``DRAWS``
    random ones. With n units it is at least 2 / 2^n, 0.0625 of five: few units can't be significant by it.
    It holds for the test items there are, as if they were not drawn.
    """
    values = np.array(difference.values)
    if len(values) < 2 or np.abs(values).max() <= NO_SPREAD:
        return 1.0
    observed = abs(values.sum()) * (1 - 1e-9)
    if len(values) <= EXACT_UNITS:
        patterns = (
            np.arange(2 ** (len(values) - 1))[:, None] >> np.arange(len(values)) & 1
        )  # the last sign is never flipped
        return float(np.mean(np.abs((1 - 2 * patterns) @ values) >= observed))
    signs = stream(0, "sign flips").integers(0, 2, size=(DRAWS, len(values)), dtype=np.int8)
    return float((1 + np.sum(np.abs((1 - 2 * signs) @ values) >= observed)) / (1 + DRAWS))


@dataclass(frozen=True)
class BootstrapInterval:
    """The ends of an interval that need not lie at equal distances from the mean."""

    low: float
    high: float


def bootstrap_t_interval(difference: Difference) -> BootstrapInterval | None:
    """The interval of a difference with quantiles of resampled units in place of Student's t (Efron & Tibshirani 1993, ch. 12).

    None of fewer than ``LEAST_UNITS`` units. The parts of items, seeds and source keep their t.
    """
    values = np.array(difference.values)
    count = len(values)
    if not difference.known or count < LEAST_UNITS:
        return None
    drawn = values[stream(0, "bootstrap-t").integers(0, count, size=(DRAWS, count))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(count)
    sound = errors > NO_SPREAD
    pivots: NDArray[np.float64] = (drawn.mean(axis=1)[sound] - values.mean()) / errors[sound]
    alpha = 1 - difference.confidence
    low, high = np.quantile(pivots, [alpha / 2, 1 - alpha / 2])
    others = difference.half(alpha) ** 2 - special.stdtrit(count - 1, alpha / 2) ** 2 * difference.of_units
    return BootstrapInterval(
        difference.mean - math.sqrt(max(0.0, high) ** 2 * difference.of_units + max(0.0, others)),
        difference.mean + math.sqrt(min(0.0, low) ** 2 * difference.of_units + max(0.0, others)),
    )
