"""Arms over several tasks: interquartile mean, probability of improvement, and average ranks.

The first two by Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021), whose
library is rliable; ranks by Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 7, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..core.seeding import stream

LEAST_TASKS = 4
"""Over fewer tasks, single results say more than a mean over them."""

DRAWS = 2000

Scores = Sequence[Sequence[float]]
"""Scores of an arm: of each task, of each run."""


@dataclass(frozen=True)
class Aggregate:
    """A value over all tasks, and its interval by the stratified bootstrap: runs drawn again within each task.

    The tasks themselves are taken as given.
    """

    value: float
    low: float
    high: float


def interquartile_mean(scores: Scores, confidence: float = 0.95) -> Aggregate:
    """The mean of the middle half of all runs' scores over all tasks, which neither a hopeless nor an easy task decides."""

    def middle(drawn: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1), dtype=np.float64)

    return _aggregate(middle, [scores], confidence)


def probability_of_improvement(treated: Scores, baseline: Scores, confidence: float = 0.95) -> Aggregate:
    """The chance that a run of one arm does better than one of another on a task drawn at random; ties count half.

    Raises ValueError for different numbers of tasks.
    """
    if len(treated) != len(baseline):
        raise ValueError(f"{len(treated)} tasks against {len(baseline)}: expected as many")

    def chance(drawn: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        half = len(drawn) // 2
        wins = []
        for ours, theirs in zip(drawn[:half], drawn[half:], strict=True):
            one, two = ours[:, :, None], theirs[:, None, :]
            wins.append(((one > two) + 0.5 * (one == two)).mean(axis=(1, 2)))
        return np.asarray(np.mean(wins, axis=0), dtype=np.float64)

    return _aggregate(chance, [treated, baseline], confidence)


def _aggregate(
    statistic: Callable[[Sequence[NDArray[np.float64]]], NDArray[np.float64]], arms: Sequence[Scores], confidence: float
) -> Aggregate:
    """A statistic of tables (draws, runs), one a task and arm, of the runs as they are and of runs drawn again."""
    tasks = [np.asarray(runs, dtype=float) for scores in arms for runs in scores]
    if not tasks or any(len(runs) == 0 for runs in tasks):
        raise ValueError("expected at least 1 task, and at least 1 run of each")
    generator = stream(0, "stratified bootstrap")
    drawn = [runs[generator.integers(0, len(runs), size=(DRAWS, len(runs)))] for runs in tasks]
    value = float(statistic([runs[None, :] for runs in tasks])[0])
    low, high = np.quantile(statistic(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Aggregate(value, float(low), float(high))


@dataclass(frozen=True)
class Ranks:
    """The average rank of each arm over the tasks (1 is best), and what they say.

    ``p``: by Friedman's test with Iman and Davenport's correction, that all arms are alike; NaN of fewer than three. Two arms
    whose ranks differ by ``critical_difference`` or more differ significantly, at 5 % for all pairs together (Nemenyi).
    """

    average: Mapping[str, float]
    tasks: int
    p: float
    critical_difference: float


def average_ranks(scores: Mapping[str, Sequence[float]], alpha: float = 0.05) -> Ranks:
    """The ranks of arms by their mean score on each task, equal scores sharing theirs; at least 2 arms, as many tasks each."""
    table = np.array(list(scores.values()), dtype=float)
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 2:
        raise ValueError("expected at least 2 arms, with scores of the same tasks, at least 2")
    arms, tasks = table.shape
    ranks = np.stack([stats.rankdata(-column) for column in table.T])
    p = math.nan
    if arms > 2:
        chi2 = float(stats.friedmanchisquare(*table).statistic)
        rest = tasks * (arms - 1) - chi2
        p = 0.0 if rest <= 0 else float(stats.f.sf((tasks - 1) * chi2 / rest, arms - 1, (arms - 1) * (tasks - 1)))
    return Ranks(
        dict(zip(scores, ranks.mean(axis=0).tolist(), strict=True)),
        tasks,
        p,
        nemenyi_q(arms, alpha) * rank_error(arms, tasks),
    )


def nemenyi_q(arms: int, alpha: float = 0.05) -> float:
    """The critical value of Nemenyi's test: the studentized range of ``arms`` values, over the square root of 2."""
    return float(stats.studentized_range.isf(alpha, arms, np.inf)) / math.sqrt(2)


def rank_error(arms: int, tasks: int) -> float:
    """The standard error of the difference of two average ranks, where all arms are alike."""
    return math.sqrt(arms * (arms + 1) / (6 * tasks))
