"""Power: how many encoders or seeds resolve an effect that the user gives, as a range, and what else is too little.

The observed difference is no effect to plan for: it is as uncertain as its interval, and where it is small by chance, so is
every plan made from it. Only the spread is taken from the runs there are, with its own uncertainty (limits of a variance by
chi-square), and the level is that of Holm's first step: a plan that holds there holds for every comparison of the family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from scipy import stats

from .stats import POWER, Difference, Unit

MOST_UNITS = 1000
"""Numbers of encoders or seeds beyond this are not worth naming."""

RANGE = 0.8
"""Chance that the number needed is within the range that a plan names, as far as the estimated spread is concerned."""

Obstacle = Literal["test images", "clusters of test images", "labelled images", "seeds", "encoders"]


@dataclass(frozen=True)
class UnitPlan:
    """How many ``unit``\\ s (pretrained encoders or seeds) resolve a true difference of ``effect`` with a chance of ``power``.

    At the level that each of ``comparisons`` planned ones has by Holm's first step. ``likely`` goes by the estimated spread,
    ``fewest`` and ``most`` by its lower and upper limit; None: no number up to ``MOST_UNITS``. ``obstacles``: what is too few
    by itself, so that no number of units resolves it. ``items``: the test images (or clusters) that it takes at the least,
    however many units; 0 where scores of single ones aren't known.
    """

    unit: Unit
    effect: float
    comparisons: int
    power: float
    fewest: int | None
    likely: int | None
    most: int | None
    obstacles: tuple[Obstacle, ...] = ()
    items: int = 0


def plan_units(
    difference: Difference, effect: float, comparisons: int = 1, power: float = POWER, unit: Unit | None = None
) -> UnitPlan | None:
    """The plan for an effect (a share, above 0) from the spread of runs there are; None where that isn't known.

    ``comparisons``: how many are planned (``analysis.Comparisons.planned``). With as many test items, labelled images and,
    where encoders are the units, seeds for each as there are now. Of encoders × seeds, ``unit`` says which of both is added;
    the other stays. Raises ValueError for an effect that isn't above 0.
    """
    if effect <= 0:
        raise ValueError(f"effect={effect}: expected a difference above 0, as a share")
    if not difference.known:
        return None
    added = difference.unit if unit is None else unit
    counts = [_fewest(difference, effect, comparisons, power, added, factor) for factor in _factors(difference, added)]
    low, likely, high = counts
    return UnitPlan(
        added,
        effect,
        comparisons,
        power,
        low,
        likely,
        high,
        _obstacles(difference, effect, comparisons, power, added),
        _items(difference, effect, comparisons, power),
    )


def _factors(difference: Difference, unit: Unit) -> tuple[float, float, float]:
    """The variance between units at the lower end of its range, as estimated, and at the upper end, as factors."""
    df = (difference.seeds if _adds_seeds(difference, unit) else difference.units) - 1
    low, high = (df / float(stats.chi2.isf(tail, df)) for tail in ((1 - RANGE) / 2, (1 + RANGE) / 2))
    return low, 1.0, high


def _adds_seeds(difference: Difference, unit: Unit) -> bool:
    """Whether seeds are added to a design of encoders × seeds."""
    return difference.seeds > 0 and unit == "seed"


def _with(difference: Difference, units: int, unit: Unit, factor: float) -> Difference:
    """The design with another number of units, whose variance is ``factor`` times the estimated one."""
    source = (
        factor * difference.of_source
        if difference.unit == "seed" or _adds_seeds(difference, unit)
        else difference.of_source
    )
    if _adds_seeds(difference, unit):
        alone = factor * difference.of_seeds * difference.seeds
        return replace(difference, seeds=units, of_seeds=alone / units, of_source=source, source_df=units - 1)
    alone = factor * difference.of_units * difference.units
    df = units - 1 if difference.unit == "seed" else difference.source_df
    return replace(difference, units=units, of_units=alone / units, of_source=source, source_df=df)


def _fewest(
    difference: Difference, effect: float, comparisons: int, power: float, unit: Unit, factor: float
) -> int | None:
    """The fewest units that resolve the effect, by bisection: more units never resolve less."""

    def resolves(units: int) -> bool:
        return _with(difference, units, unit, factor).resolvable(comparisons, power) <= effect

    low, high = 1, MOST_UNITS
    if not resolves(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if resolves(middle) else (middle, high)
    return high


def _obstacles(
    difference: Difference, effect: float, comparisons: int, power: float, unit: Unit
) -> tuple[Obstacle, ...]:
    """What of the design that more units leave as it is can't resolve the effect by itself."""
    images: Obstacle = "clusters of test images" if difference.clustered else "test images"
    nothing = replace(difference, of_units=0.0, of_items=0.0, of_seeds=0.0, of_source=0.0)
    alone: dict[Obstacle, Difference] = {
        images: replace(nothing, of_items=difference.of_items),
        "labelled images": replace(nothing, of_source=difference.of_source, source_df=math.inf),
    }
    if _adds_seeds(difference, unit):
        alone["encoders"] = replace(nothing, of_units=difference.of_units)
    else:
        alone["seeds"] = replace(nothing, of_seeds=difference.of_seeds)
    return tuple(name for name, one in alone.items() if one.se > 0 and one.resolvable(comparisons, power) > effect)


def _items(difference: Difference, effect: float, comparisons: int, power: float) -> int:
    """The test items by which alone, with no other luck, the effect is resolved."""
    if not difference.items or difference.of_items == 0:
        return 2 if difference.items else 0
    alpha = (1 - difference.confidence) / comparisons
    errors = float(stats.norm.isf(alpha / 2) + stats.norm.ppf(power))
    return max(2, math.ceil(difference.items * difference.of_items * (errors / effect) ** 2))
