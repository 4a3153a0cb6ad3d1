"""How many labels an arm needs for what another reaches with fewer, by its curve over label counts, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .stats import crossed_difference, paired_difference

STEPS = 12
"""Places at which the curve between two label counts is compared."""

Runs = Mapping[int, NDArray[np.float64]]
"""Runs of an arm at a label count: by seed, the scores of single test items, or one score of all (1,)."""


@dataclass(frozen=True)
class LabelRange:
    """The numbers of labels that agree with the data; ``low`` or ``high`` is None where it is beyond the counts tried."""

    low: float | None
    high: float | None


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


def labels_needed_interval(
    counts: Sequence[int], treated: Runs, baseline: Sequence[Runs], confidence: float = 0.95
) -> LabelRange | None:
    """The interval of ``labels_needed`` for one label count of the treated arm: every number of labels at which the paired
    difference from the baseline's curve isn't significant (Fieller's way), over the seeds that all of them share.

    ``counts`` rise; ``baseline`` has the runs at each. A test at each number of labels keeps its level with 3 seeds, where a
    bootstrap of seeds doesn't. The curve between two counts is a line over the logarithm of the labels, as for the value
    itself. None where fewer than 2 seeds are shared, or no number of labels tried agrees.
    """
    agrees: list[float] = []
    for left in range(len(counts) - 1):
        found = _agreeing(treated, baseline[left], baseline[left + 1], confidence)
        step = math.log(counts[left + 1] / counts[left])
        agrees += [counts[left] * math.exp(share * step) for share in found]
    if not agrees:
        return None
    low, high = min(agrees), max(agrees)
    edges = counts[0] * (1 + 1e-9), counts[-1] * (1 - 1e-9)
    return LabelRange(None if low <= edges[0] else low, None if high >= edges[1] else high)


def _agreeing(treated: Runs, left: Runs, right: Runs, confidence: float) -> list[float]:
    """The ends of where the difference from a line between two runs isn't significant, as shares of the way, 0 to 1."""
    seeds = sorted(treated.keys() & left.keys() & right.keys())
    if len(seeds) < 2:
        return []
    shares = np.linspace(0, 1, STEPS + 1)
    excess = np.array([_excess(treated, left, right, seeds, float(share), confidence) for share in shares])
    found = [float(share) for share, value in zip(shares, excess, strict=True) if value <= 0]
    for index in np.flatnonzero((excess[:-1] <= 0) != (excess[1:] <= 0)):
        one, two = excess[index], excess[index + 1]
        found.append(float(shares[index] + (shares[index + 1] - shares[index]) * one / (one - two)))
    return found


def _excess(treated: Runs, left: Runs, right: Runs, seeds: Sequence[int], share: float, confidence: float) -> float:
    """How far the difference from the line is outside of its interval; at most 0 within. Below 0 where nothing is known."""
    line = [(1 - share) * left[seed] + share * right[seed] for seed in seeds]
    ours = [treated[seed] for seed in seeds]
    if len(ours[0]) == 1:
        difference = paired_difference(
            [float(one[0]) for one in ours], [float(one[0]) for one in line], confidence=confidence
        )
    else:
        difference = crossed_difference(ours, line, confidence=confidence)
    half = difference.half(1 - confidence)
    return -1.0 if math.isinf(half) else abs(difference.mean) - half
