"""Intervals, verdicts and the convergence check keep what they promise, on simulated seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from maelift.benchmarks.stats import (
    MOST_SEEDS,
    PairedDifference,
    converged,
    mean_interval,
    paired_difference,
    seeds_to_resolve,
)
from scipy import stats

DRAWS = 4000
SEEDS = 4


def simulated(effect: float, seed: int) -> list[PairedDifference]:
    """Differences of arms that share a seed's luck: a spread of 5 between seeds, of 1 within pairs."""
    generator = np.random.default_rng(seed)
    luck = generator.normal(0, 5, (DRAWS, SEEDS))
    treated, baseline = (luck + generator.normal(0, math.sqrt(0.5), luck.shape) for _ in range(2))
    return [paired_difference(list(a), list(b)) for a, b in zip(treated + effect, baseline, strict=True)]


def test_the_95_percent_interval_holds_the_true_difference_in_95_of_100_draws() -> None:
    holds = [difference.low < 0.7 < difference.high for difference in simulated(0.7, seed=1)]
    assert 0.93 < np.mean(holds) < 0.97


def test_an_arm_without_effect_is_seldom_said_to_help_or_hurt() -> None:
    verdicts = [difference.verdict for difference in simulated(0.0, seed=2)]
    assert verdicts.count("helps") <= 0.035 * DRAWS
    assert verdicts.count("hurts") <= 0.035 * DRAWS


def test_pairing_takes_the_luck_that_both_arms_share_out_of_the_interval() -> None:
    luck = np.array([0.60, 0.66, 0.72, 0.78])
    effects = np.array([0.020, 0.021, 0.019, 0.020])
    paired = paired_difference(list(luck + effects), list(luck))
    assert paired.verdict == "helps"
    assert paired_difference(list(luck + effects), list(luck[::-1])).verdict == "not resolved"


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    treated, baseline = [0.71, 0.74, 0.69, 0.75, 0.72], [0.70, 0.70, 0.70, 0.71, 0.70]
    expected = stats.ttest_rel(treated, baseline).confidence_interval(0.9)
    difference = paired_difference(treated, baseline, confidence=0.9)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.n == 5


def test_a_worse_arm_hurts() -> None:
    assert paired_difference([0.60, 0.61, 0.59], [0.70, 0.72, 0.70]).verdict == "hurts"


def test_one_seed_resolves_nothing() -> None:
    difference = paired_difference([0.9], [0.1])
    assert difference.mean == pytest.approx(0.8) and difference.verdict == "not resolved"
    assert math.isinf(difference.low) and math.isinf(difference.high) and math.isnan(difference.sd)
    assert seeds_to_resolve(difference) is None


def test_equal_differences_are_not_taken_for_certainty() -> None:
    difference = paired_difference([0.8, 0.7, 0.6], [0.7, 0.6, 0.5])
    assert difference.verdict == "not resolved"
    assert math.isinf(difference.low) and math.isinf(difference.high)
    assert seeds_to_resolve(difference) is None


@pytest.mark.parametrize(("treated", "baseline"), [([], []), ([0.5], [0.5, 0.6])])
def test_values_that_are_not_paired_are_refused(treated: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="expected as many"):
        paired_difference(treated, baseline)


@pytest.mark.parametrize("mean", [0.003, -0.003, 0.012, 0.016])
def test_the_forecast_is_the_smallest_number_of_seeds_that_would_resolve(mean: float) -> None:
    differences = mean + np.array([-0.01, 0.01, -0.01, 0.01])
    difference = paired_difference(list(differences), [0.0] * 4)
    needed = seeds_to_resolve(difference)
    assert difference.verdict == "not resolved" and needed is not None

    def excludes_zero(n: int) -> bool:
        return bool(stats.t.ppf(0.975, n - 1) * difference.sd / math.sqrt(n) < abs(mean))

    assert excludes_zero(needed)
    assert not any(excludes_zero(n) for n in range(2, needed))


def test_a_hopeless_difference_has_no_forecast() -> None:
    difference = paired_difference([0.1, -0.1, 0.10001, -0.1], [0.0] * 4)
    assert seeds_to_resolve(difference) is None
    assert seeds_to_resolve(PairedDifference(4, 0.0, 0.1, -0.2, 0.2)) is None
    assert MOST_SEEDS >= 100


def test_a_mean_tells_its_deviation_and_interval_only_where_they_are_known() -> None:
    mean, half, sd = mean_interval([0.6, 0.7, 0.8])
    assert mean == pytest.approx(0.7) and sd == pytest.approx(0.1)
    assert half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    alone, no_half, no_sd = mean_interval([0.6])
    assert alone == 0.6 and math.isnan(no_half) and math.isnan(no_sd)
    _, unknown, zero = mean_interval([0.6, 0.6, 0.6])
    assert math.isnan(unknown) and zero == pytest.approx(0, abs=1e-12)


def test_an_arm_that_gains_more_than_the_noise_is_not_converged() -> None:
    gain, noise, enough = converged([0.70, 0.71], [0.73, 0.74], n_val=1000)
    assert gain == pytest.approx(0.03) and noise < 0.015 and not enough


@pytest.mark.parametrize("doubled", [[0.70, 0.71], [0.68, 0.69], [0.701, 0.711]])
def test_an_arm_that_gains_nothing_to_speak_of_is_converged(doubled: list[float]) -> None:
    assert converged([0.70, 0.71], doubled, n_val=1000)[2]


def test_one_check_seed_still_has_the_noise_of_the_validation_images() -> None:
    assert converged([0.70], [0.71], n_val=1000)[2]
    assert not converged([0.70], [0.71], n_val=10_000)[2]
    assert math.isfinite(converged([1.0], [1.0], n_val=10)[1])


def test_the_convergence_check_rather_trains_too_long_than_too_short() -> None:
    """Two seeds on 1,000 validation images: a gain of 3 points is seldom missed, none seldom imagined."""
    generator = np.random.default_rng(3)
    spread = math.sqrt(0.7 * 0.3 / 1000)

    def share_converged(gain: float) -> float:
        gains = generator.normal(gain, spread, (1000, 2))
        return float(np.mean([converged([0.7, 0.7], list(0.7 + pair), n_val=1000)[2] for pair in gains]))

    assert share_converged(0.03) < 0.1
    assert share_converged(0.0) > 1 - 1 / 6
