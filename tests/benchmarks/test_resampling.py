"""Sign flips and the bootstrap-t keep their promise where luck is skewed, and agree with scipy and with enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from maelift.benchmarks.resampling import EXACT_UNITS, LEAST_UNITS, bootstrap_t_interval, sign_flip_p
from maelift.benchmarks.stats import Difference, crossed_difference, paired_difference
from scipy import stats


def difference(values: np.ndarray) -> Difference:
    """Of these values by seed."""
    return paired_difference(values.tolist(), [0.0] * len(values))


@pytest.mark.parametrize("units", [2, 3, 5, 8])
def test_every_pattern_of_signs_is_counted(units: int) -> None:
    values = np.random.default_rng(units).normal(0.5, 1, units)
    means = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=units)]
    expected = np.mean([mean >= abs(values.sum()) - 1e-12 for mean in means])
    assert sign_flip_p(difference(values)) == pytest.approx(expected)


@pytest.mark.parametrize("units", [10, EXACT_UNITS + 6])
def test_the_p_value_is_that_of_scipy(units: int) -> None:
    values = np.random.default_rng(units).gamma(1.0, size=units) - 0.6
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(0)
    ).pvalue
    assert sign_flip_p(difference(values)) == pytest.approx(expected, abs=0.012)
    assert sign_flip_p(difference(values)) == sign_flip_p(difference(values))


def test_few_units_cannot_be_significant_by_sign_flips() -> None:
    assert sign_flip_p(difference(np.array([0.1, 0.11, 0.1, 0.12, 0.1]))) == 2 / 2**5
    assert sign_flip_p(difference(np.array([0.1]))) == 1.0
    assert sign_flip_p(difference(np.zeros(4))) == 1.0


@pytest.mark.parametrize("units", [5, 6, 10])
def test_sign_flips_are_seldom_wrong_whatever_the_spread_of_luck(units: int) -> None:
    """Symmetric luck with heavy tails: the difference of two runs whose luck is Pareto-distributed."""
    generator = np.random.default_rng([10, units])
    luck = generator.pareto(1.5, size=(2000, 2, units))
    false = np.mean([sign_flip_p(difference(one - two)) <= 0.05 for one, two in luck])
    assert false <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("units", [8, 20])
def test_the_bootstrap_t_holds_skewed_luck_better_than_students_t(units: int) -> None:
    """Lognormal luck: an arm that now and then fails by far."""
    generator = np.random.default_rng([11, units])
    truth = -float(np.exp(0.5))
    held, repetitions = {"bootstrap-t": 0, "t": 0}, 500
    for _ in range(repetitions):
        found = difference(-generator.lognormal(size=units))
        ends = bootstrap_t_interval(found)
        assert ends is not None
        held["bootstrap-t"] += ends.low <= truth <= ends.high
        held["t"] += found.low <= truth <= found.high
    assert held["bootstrap-t"] > held["t"] and held["bootstrap-t"] / repetitions > 0.9


def test_with_symmetric_luck_the_bootstrap_t_is_near_students_t() -> None:
    found = difference(np.sort(np.random.default_rng(3).normal(1, 1, 40)))
    ends = bootstrap_t_interval(found)
    assert ends is not None
    assert (ends.low, ends.high) == pytest.approx((found.low, found.high), abs=0.1)


def test_the_part_of_the_test_images_stays_in_the_bootstrap_interval() -> None:
    generator = np.random.default_rng(4)
    table = 0.01 * generator.normal(size=(8, 1)) + generator.normal(size=(1, 50)) + 0.1 * generator.normal(size=(8, 50))
    found = crossed_difference(list(table), [np.zeros(50)] * 8)
    ends = bootstrap_t_interval(found)
    assert ends is not None and ends.high - ends.low > 1.5 * found.half(0.05)


def test_of_few_or_equal_units_there_is_no_bootstrap() -> None:
    assert bootstrap_t_interval(difference(np.arange(LEAST_UNITS - 1.0))) is None
    assert bootstrap_t_interval(difference(np.ones(10))) is None
    assert bootstrap_t_interval(difference(np.arange(LEAST_UNITS * 1.0))) is not None
