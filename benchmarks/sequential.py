"""Group-sequential tests: levels at which results may be read at several planned numbers of seeds, by alpha spending.

Reading the p-values after each few seeds and stopping when one is below 5 % is wrong far more often than in 5 %. With alpha
spending (Lan & DeMets, Biometrika 70, 1983) a function of the share of information says how much of alpha is spent by each
reading, and the levels follow from the joint distribution of the readings, a Brownian motion, by recursive integration
(Armitage, McPherson & Rowe, JRSS A 132, 1969). Student's t is brought in by its p-value, compared with the level of a normal
test (Jennison & Turnbull, "Group Sequential Methods", 2000, sec. 3.8). With few units its readings depend less on one another
than a Brownian motion's, and 5.1 to 5.9 % are falsely significant; information counted in degrees of freedom, and a tenth of
alpha held back, make that at most 5 % (``tests/benchmarks/test_sequential.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Spending = Literal["obrien-fleming", "pocock"]

NODES = 100
"""Nodes of the Gauss-Legendre integration between two bounds."""

HIGHEST_BOUND = 10.0
"""Bounds beyond this many standard errors are taken for infinite."""

LEAST_ALPHA = 1e-10

HELD_BACK = 0.1
"""Share of alpha that isn't spent, as Student's t of few units lets through more than a normal test."""


def spent(fraction: float, alpha: float, spending: Spending = "obrien-fleming") -> float:
    """How much of ``alpha`` (two-sided) is spent by a share ``fraction`` of the information, above 0 and up to 1.

    Like O'Brien and Fleming's levels (little at first) or like Pocock's (about as much each time); Lan & DeMets 1983.
    """
    if spending == "pocock":
        return alpha * math.log(1 + (math.e - 1) * fraction)
    return float(4 * special.ndtr(special.ndtri(alpha / 4) / math.sqrt(fraction)))


def sequential_levels(
    looks: int | Sequence[float], alpha: float = 0.05, spending: Spending = "obrien-fleming"
) -> tuple[float, ...]:
    """The two-sided levels of the planned looks at the results: stop at the first p-value at or below its level.

    ``looks``: their number, evenly spaced, or the share of all units that each has (rising, the last at most 1). The chance
    that any of them is falsely significant is ``alpha`` at the last. Raises ValueError for shares that don't rise in (0, 1].
    """
    shares = tuple((look + 1) / looks for look in range(looks)) if isinstance(looks, int) else tuple(looks)
    if not shares or shares[0] <= 0 or shares[-1] > 1 or any(b <= a for a, b in pairwise(shares)):
        raise ValueError(f"looks={looks}: expected a count of at least 1, or rising shares above 0 and up to 1")
    return _levels(shares, alpha, spending)


@lru_cache(maxsize=4096)
def _levels(shares: tuple[float, ...], alpha: float, spending: Spending) -> tuple[float, ...]:
    """The levels of rising shares of the information."""
    levels: list[float] = []
    # The first increment starts from 0; later ones from what is still between the bounds: places with weights × density.
    places, mass = np.zeros(1), np.ones(1)
    before = used = 0.0
    for share in shares:
        target, deviation = spent(share, alpha, spending) - used, math.sqrt(share - before)
        bound = _bound(places, mass, deviation, math.sqrt(share), target)
        levels.append(float(2 * special.ndtr(-bound)))
        used, before = used + target, share
        edge = bound * math.sqrt(share)
        nodes, weights = _nodes()
        reached = edge * nodes
        density = np.exp(-0.5 * np.square((reached[:, None] - places) / deviation)) / (
            deviation * math.sqrt(2 * math.pi)
        )
        places, mass = reached, edge * weights * (density @ mass)
    return tuple(levels)


@lru_cache(maxsize=1)
def _nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights


def _bound(
    places: NDArray[np.float64], mass: NDArray[np.float64], deviation: float, scale: float, target: float
) -> float:
    """The bound, in standard errors, that is first crossed at this look with a chance of ``target``."""

    def excess(bound: float) -> float:
        edge = bound * scale
        beyond = special.ndtr((-edge - places) / deviation) + special.ndtr((places - edge) / deviation)
        return float(beyond @ mass) - target

    return HIGHEST_BOUND if excess(HIGHEST_BOUND) >= 0 else float(optimize.brentq(excess, 0.0, HIGHEST_BOUND))


def levels_by_units(
    looks: Sequence[int], alpha: float = 0.05, spending: Spending = "obrien-fleming"
) -> tuple[float, ...]:
    """The levels for p-values of Student's t, read at these numbers of units (seeds or encoders), the last one at the end.

    Rising numbers of at least 2, planned before the first run; one alone has the level ``alpha``.
    """
    if not looks or looks[0] < 2:
        raise ValueError(f"looks={list(looks)}: expected rising numbers of units, at least 2")
    if len(looks) == 1:
        return (alpha,)
    return sequential_levels([(look - 1) / (looks[-1] - 1) for look in looks], (1 - HELD_BACK) * alpha, spending)


def sequential_p(p: float, look: int, looks: Sequence[int], spending: Spending = "obrien-fleming") -> float:
    """The p-value at ``looks[look]`` units, adjusted for all planned looks: at most alpha where its level is reached.

    Adjusted so, p-values of several comparisons can be corrected by Holm's method as those of a single look are.
    """

    def missing(log_alpha: float) -> float:
        return levels_by_units(looks, math.exp(log_alpha), spending)[look] - p

    low, high = math.log(LEAST_ALPHA), math.log(0.999)
    if missing(high) <= 0:
        return 1.0
    return math.exp(low if missing(low) >= 0 else optimize.brentq(missing, low, high, xtol=1e-5))
