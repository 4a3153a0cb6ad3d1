"""A plan names as many encoders or seeds as give the stated power under Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from maelift.benchmarks.power import MOST_UNITS, plan_units
from maelift.benchmarks.stats import Difference, crossed_difference, holm, paired_difference
from scipy import stats

ITEMS = 300


def known_spread(units: int, unit_sd: float, item_sd: float, rest_sd: float) -> Difference:
    """A pilot whose estimates happen to be the true variances."""
    of_units = (unit_sd**2 + rest_sd**2 / ITEMS) / units
    return Difference(units, 0.0, of_units, items=ITEMS, of_items=item_sd**2 / ITEMS, items_df=ITEMS - 1)


def power_under_holm(
    units: int, effect: float, comparisons: int, spread: tuple[float, float, float], repetitions: int = 400
) -> float:
    """How often an effect is resolved among other comparisons without one, each with luck of its own."""
    generator = np.random.default_rng([units, comparisons])
    unit_sd, item_sd, rest_sd = spread
    resolved = 0
    for _ in range(repetitions):
        p = {}
        for number in range(comparisons):
            table = unit_sd * generator.normal(size=(units, 1)) + item_sd * generator.normal(size=(1, ITEMS))
            table = table + rest_sd * generator.normal(size=(units, ITEMS)) + (effect if number == 0 else 0.0)
            p[str(number)] = crossed_difference(list(table), [np.zeros(ITEMS)] * units).p
        resolved += holm(p)["0"] <= 0.05
    return resolved / repetitions


@pytest.mark.slow
@pytest.mark.parametrize("comparisons", [1, 6])
@pytest.mark.parametrize("spread", [(0.03, 0.0, 0.5), (0.02, 0.3, 0.4), (0.0, 0.3, 0.6)])
def test_the_planned_number_resolves_in_80_of_100_under_holm(
    spread: tuple[float, float, float], comparisons: int
) -> None:
    effect = 0.08
    plan = plan_units(known_spread(4, *spread), effect, comparisons)
    assert plan is not None and plan.likely is not None and plan.comparisons == comparisons
    assert power_under_holm(plan.likely, effect, comparisons, spread) > 0.76
    assert plan.likely <= 3 or power_under_holm(plan.likely - 1, effect, comparisons, spread) < 0.84


def test_correcting_for_more_comparisons_takes_more_units() -> None:
    pilot = known_spread(4, 0.03, 0.1, 0.5)
    likely = [plan.likely for m in (1, 4, 20) if (plan := plan_units(pilot, 0.05, m)) is not None]
    assert likely == sorted(likely) and likely[0] < likely[-1]  # type: ignore[type-var, operator]
    assert pilot.resolvable(20) > pilot.resolvable(4) > pilot.resolvable(1)


@pytest.mark.slow
def test_the_range_holds_the_number_that_the_true_spread_asks_for_in_80_of_100() -> None:
    generator = np.random.default_rng(3)
    for units in (3, 6, 12):
        true = plan_units(Difference(units, 0.0, 0.02**2 / units), 0.02, 4)
        assert true is not None and true.likely is not None
        held = 0
        for _ in range(250):
            plan = plan_units(paired_difference(list(generator.normal(0, 0.02, units)), [0.0] * units), 0.02, 4)
            assert plan is not None
            fewest, most = (MOST_UNITS if end is None else end for end in (plan.fewest, plan.most))
            held += fewest <= true.likely <= most
        assert 0.75 < held / 250 < 0.9


def test_the_observed_difference_does_not_matter_to_the_plan() -> None:
    small, large = (paired_difference([shift + 0.01, shift - 0.02, shift], [0.0] * 3) for shift in (0.001, 0.3))
    plans = plan_units(small, 0.02), plan_units(large, 0.02)
    assert plans[0] == plans[1]


def test_too_few_test_images_are_named_with_the_number_that_it_takes() -> None:
    pilot = Difference(4, 0.01, 1e-6, items=50, of_items=1e-3, items_df=49)
    plan = plan_units(pilot, 0.02, 3)
    assert plan is not None and plan.likely is None and plan.obstacles == ("test images",)
    errors = stats.norm.isf(0.05 / 3 / 2) + stats.norm.ppf(0.8)
    assert plan.items == math.ceil(50 * 1e-3 * (errors / 0.02) ** 2)
    more = Difference(
        4, 0.01, 1e-6, items=2 * plan.items, of_items=1e-3 * 50 / (2 * plan.items), items_df=2 * plan.items - 1
    )
    again = plan_units(more, 0.02, 3)
    assert again is not None and again.likely is not None and again.obstacles == ()


def test_a_source_that_is_mostly_drawn_is_named() -> None:
    values = [0.02, 0.05, 0.03, 0.06, 0.04]
    plan = plan_units(paired_difference(values, [0.0] * 5, drawn=0.9), 0.02)
    assert plan is not None and plan.likely is None and plan.obstacles == ("labelled images",)
    free = plan_units(paired_difference(values, [0.0] * 5), 0.02)
    assert free is not None and free.likely is not None and free.items == 0


def test_encoders_are_planned_where_encoders_are_the_units() -> None:
    generator = np.random.default_rng(4)
    encoders = [0, 1, 2] * 4
    values = (generator.normal(0, 0.02, 3)[encoders] + generator.normal(0, 0.005, 12)).tolist()
    plan = plan_units(paired_difference(values, [0.0] * 12, encoders), 0.03)
    assert plan is not None and plan.unit == "encoder" and plan.likely is not None
    alone = plan_units(paired_difference(values, [0.0] * 12), 0.03)
    assert alone is not None and alone.unit == "seed"


def test_of_crossed_runs_either_is_planned() -> None:
    generator = np.random.default_rng(5)
    rows = generator.normal(0, 0.01, (3, 1)) + generator.normal(0, 0.03, (1, 6)) + generator.normal(0, 0.004, (3, 6))
    encoders, seeds = np.repeat([0, 1, 2], 6).tolist(), [*range(6)] * 3
    found = paired_difference(rows.ravel().tolist(), [0.0] * 18, encoders, seeds=seeds)
    by_encoder, by_seed = plan_units(found, 0.025), plan_units(found, 0.025, unit="seed")
    assert by_encoder is not None and by_encoder.unit == "encoder" and "seeds" in by_encoder.obstacles
    assert by_seed is not None and by_seed.unit == "seed"


def test_nothing_is_planned_without_a_spread_or_an_effect() -> None:
    assert plan_units(paired_difference([0.3], [0.2]), 0.05) is None
    with pytest.raises(ValueError, match="above 0"):
        plan_units(paired_difference([0.3, 0.4], [0.2, 0.2]), 0.0)
