"""Levels of planned looks at the results keep the chance of any false verdict at 5 %, and are those of the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from maelift.benchmarks.sequential import Spending, levels_by_units, sequential_levels, sequential_p
from maelift.benchmarks.stats import crossed_difference
from scipy import stats

PUBLISHED: dict[Spending, list[float]] = {
    "obrien-fleming": [4.8769, 3.3569, 2.6803, 2.2898, 2.0310],
    "pocock": [2.4380, 2.4268, 2.4101, 2.3966, 2.3859],
}
"""Bounds of 5 equal looks at two-sided 5 % by spending (Reboussin, DeMets, Kim & Lan, Controlled Clinical Trials 21, 2000)."""


@pytest.mark.parametrize("spending", PUBLISHED)
def test_the_bounds_are_the_published_ones(spending: Spending) -> None:
    levels = sequential_levels(5, 0.05, spending)
    assert stats.norm.isf(np.array(levels) / 2) == pytest.approx(PUBLISHED[spending], abs=2e-3)


@pytest.mark.parametrize(("classic", "bound"), [("pocock", 2.413), ("obrien-fleming", 2.040)])
def test_the_classic_bounds_of_five_looks_are_recovered(classic: str, bound: float) -> None:
    """Pocock's 2.413 and O'Brien and Fleming's 2.040 · sqrt(5 / k), by simulated paths: their levels fit no spending function."""
    generator = np.random.default_rng(1)
    paths = generator.normal(size=(400_000, 5)).cumsum(axis=1) / np.sqrt(np.arange(1, 6))
    bounds = bound * (np.sqrt(5 / np.arange(1, 6)) if classic == "obrien-fleming" else 1.0)
    assert np.mean((np.abs(paths) > bounds).any(axis=1)) == pytest.approx(0.05, abs=0.0012)
    ours = np.array(stats.norm.isf(np.array(sequential_levels(5, 0.05, classic)) / 2))  # type: ignore[arg-type]
    assert np.mean((np.abs(paths) > ours).any(axis=1)) == pytest.approx(0.05, abs=0.0012)
    assert ours[-1] == pytest.approx(bound, abs=0.03)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
@pytest.mark.parametrize("spending", PUBLISHED)
@pytest.mark.parametrize("looks", [(2, 4, 6), (3, 6, 9), (4, 8, 12, 16), (3, 5, 8, 10, 20)])
def test_stopping_at_the_first_significant_look_is_seldom_wrong(
    looks: tuple[int, ...], spending: Spending, alpha: float
) -> None:
    """By t-tests of the seeds up to each look; reading them all at 5 % each is wrong in 11 to 16 %."""
    generator = np.random.default_rng([*looks])
    values = generator.normal(size=(150_000, looks[-1]))
    p = np.stack([stats.ttest_1samp(values[:, :look], 0, axis=1).pvalue for look in looks], axis=1)
    error = 2 * (alpha / len(p)) ** 0.5  # two standard errors of the share below
    assert 0.85 * alpha < np.mean((p <= levels_by_units(looks, alpha, spending)).any(axis=1)) < alpha + error
    assert np.mean((p <= alpha).any(axis=1)) > 1.9 * alpha


@pytest.mark.slow
def test_with_test_images_and_several_comparisons_looks_are_seldom_wrong() -> None:
    """Three comparisons without effect at 4, 8 and 12 seeds on the same 200 test images, by Holm's first step at each look."""
    generator = np.random.default_rng(2)
    looks, false, repetitions = (4, 8, 12), 0, 800
    levels = levels_by_units(looks, 0.05 / 3)
    for _ in range(repetitions):
        tables = 0.05 * generator.normal(size=(3, 12, 1)) + 0.3 * generator.normal(size=(3, 1, 200))
        tables = tables + 0.5 * generator.normal(size=(3, 12, 200))
        false += any(
            crossed_difference(list(table[:look]), [np.zeros(200)] * look).p <= level
            for table in tables
            for look, level in zip(looks, levels, strict=True)
        )
    assert false / repetitions <= 0.06


def test_one_look_is_no_correction() -> None:
    assert sequential_levels(1, 0.05) == pytest.approx((0.05,), rel=1e-4)
    assert levels_by_units([5], 0.05) == (0.05,)
    assert sequential_p(0.031, 0, [5]) == pytest.approx(0.031, rel=1e-3)


@pytest.mark.parametrize("spending", PUBLISHED)
@pytest.mark.parametrize("look", [0, 1, 2])
def test_an_adjusted_p_value_is_at_alpha_where_its_level_is_reached(look: int, spending: Spending) -> None:
    looks = [4, 8, 12]
    for alpha in (0.05, 0.05 / 7):
        level = levels_by_units(looks, alpha, spending)[look]
        assert sequential_p(level, look, looks, spending) == pytest.approx(alpha, rel=1e-3)
        assert sequential_p(2 * level, look, looks, spending) > alpha > sequential_p(level / 2, look, looks, spending)
    assert sequential_p(1.0, look, looks, spending) == 1.0 and math.isfinite(sequential_p(1e-12, look, looks, spending))


@pytest.mark.parametrize("looks", [0, [], [0.5, 0.5], [0.0, 1.0], [0.5, 1.2], [1.0, 0.5]])
def test_looks_that_do_not_rise_to_the_end_are_refused(looks: int | list[float]) -> None:
    with pytest.raises(ValueError, match="looks"):
        sequential_levels(looks)


@pytest.mark.parametrize("looks", [[], [1, 4], [4, 4], [8, 4]])
def test_numbers_of_units_that_do_not_rise_are_refused(looks: list[int]) -> None:
    with pytest.raises(ValueError, match="looks"):
        levels_by_units(looks)
