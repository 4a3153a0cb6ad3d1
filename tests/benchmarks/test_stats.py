"""Intervals, verdicts and the convergence check keep what they promise, on simulated seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from maelift.benchmarks.stats import (
    MOST_SEEDS,
    Difference,
    converged,
    crossed_difference,
    holm,
    labels_needed,
    mean_interval,
    paired_difference,
    units_needed,
)
from scipy import stats

DRAWS = 4000
SEEDS = 4


def simulated(effect: float, seed: int) -> list[Difference]:
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
    assert difference.units == 5


def test_a_worse_arm_hurts() -> None:
    assert paired_difference([0.60, 0.61, 0.59], [0.70, 0.72, 0.70]).verdict == "hurts"


def test_one_seed_resolves_nothing() -> None:
    difference = paired_difference([0.9], [0.1])
    assert difference.mean == pytest.approx(0.8) and difference.verdict == "not resolved"
    assert math.isinf(difference.low) and math.isinf(difference.high) and math.isnan(difference.sd)
    assert units_needed(difference) is None


def test_equal_differences_are_not_taken_for_certainty() -> None:
    difference = paired_difference([0.8, 0.7, 0.6], [0.7, 0.6, 0.5])
    assert difference.verdict == "not resolved"
    assert math.isinf(difference.low) and math.isinf(difference.high)
    assert units_needed(difference) is None


@pytest.mark.parametrize(("treated", "baseline"), [([], []), ([0.5], [0.5, 0.6])])
def test_values_that_are_not_paired_are_refused(treated: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="expected as many"):
        paired_difference(treated, baseline)


@pytest.mark.parametrize("mean", [0.008, -0.008, 0.012, 0.016])
def test_the_forecast_is_the_smallest_number_of_seeds_that_resolves_in_80_of_100_cases(mean: float) -> None:
    differences = mean + np.array([-0.01, 0.01, -0.01, 0.01])
    difference = paired_difference(list(differences), [0.0] * 4)
    needed = units_needed(difference)
    assert needed is not None
    generator = np.random.default_rng(7)

    def resolved(n: int) -> float:
        draws = generator.normal(mean, difference.sd, (2000, n))
        return float(
            np.mean(np.abs(draws.mean(axis=1)) > stats.t.ppf(0.975, n - 1) * draws.std(axis=1, ddof=1) / n**0.5)
        )

    assert resolved(needed) > 0.77
    assert needed == 2 or resolved(needed - 1) < 0.83


def test_what_a_design_resolves_is_resolved_in_80_of_100_cases() -> None:
    generator = np.random.default_rng(8)
    for units, unit_sd, items in ((3, 0.05, 400), (6, 0.0, 400), (5, 0.01, 100)):

        def drawn(effect: float, units: int = units, unit_sd: float = unit_sd, items: int = items) -> Difference:
            table = effect + unit_sd * generator.normal(size=(units, 1)) + 0.3 * generator.normal(size=(1, items))
            table = table + 0.5 * generator.normal(size=(units, items))
            return crossed_difference(list(table), [np.zeros(items)] * units)

        told = float(np.median([drawn(0.0).smallest_resolved for _ in range(200)]))
        assert 0.6 < np.mean([drawn(told).verdict == "helps" for _ in range(400)]) < 0.95


@pytest.mark.slow
def test_a_hopeless_difference_has_no_forecast() -> None:
    difference = paired_difference([0.1, -0.1, 0.10001, -0.1], [0.0] * 4)
    assert units_needed(difference) is None
    assert units_needed(Difference(4, 0.0, 0.1)) is None
    few_items = Difference(4, 0.01, 1e-6, items=50, of_items=1e-3)
    assert units_needed(few_items) is None
    assert MOST_SEEDS >= 100


SOURCES = [(0.0, 0.0, 1.0), (0.0, 0.3, 1.0), (0.1, 0.3, 0.5), (0.02, 0.0, 0.5), (0.03, 0.1, 0.5)]
"""Deviations between units, between items, and of single scores."""


@pytest.mark.parametrize("units", [2, 3, 5, 10])
@pytest.mark.parametrize("source", SOURCES)
def test_with_random_items_the_interval_holds_the_true_difference_too(
    units: int, source: tuple[float, float, float]
) -> None:
    generator = np.random.default_rng([units, SOURCES.index(source)])
    items, draws = 200, 1500
    unit_sd, item_sd, rest_sd = source
    held = helps = 0
    for _ in range(draws):
        effects = unit_sd * generator.normal(size=(units, 1)) + item_sd * generator.normal(size=(1, items))
        treated = effects + rest_sd * generator.normal(size=(units, items))
        difference = crossed_difference(list(treated), [np.zeros(items)] * units)
        held += abs(difference.mean) < difference.half(0.05)
        helps += difference.mean > difference.half(0.05)
    assert 0.93 < held / draws < 0.985  # above 97 only where items and single scores weigh alike, at two or three units
    assert helps / draws < 0.04


def test_right_and_wrong_answers_of_few_seeds_keep_the_promise_too() -> None:
    """Answers to hard and easy questions, by arms that are equally good: 3 seeds, 500 test images."""
    generator = np.random.default_rng(11)
    verdicts = []
    for _ in range(1500):
        easy = generator.beta(2, 1, size=500)
        luck = generator.normal(0, 0.03, size=(2, 3, 1))
        arms = generator.random((2, 3, 500)) < np.clip(easy + luck, 0, 1)
        verdicts.append(crossed_difference(list(arms[0]), list(arms[1])).verdict)
    assert verdicts.count("helps") < 0.04 * 1500 and verdicts.count("hurts") < 0.04 * 1500


def test_encoders_are_the_units_where_several_were_pretrained() -> None:
    """Seeds that share an encoder aren't independent: taken for such, they would say too much."""
    generator = np.random.default_rng(12)
    encoders = [0, 1, 2] * 4
    false = {"encoders": 0, "seeds": 0}
    for _ in range(600):
        luck = generator.normal(0, 0.1, size=3)[encoders]
        table = luck[:, None] + generator.normal(0, 0.3, size=(12, 100))
        zero = [np.zeros(100)] * 12
        by_encoder = crossed_difference(list(table), zero, encoders)
        assert by_encoder.units == 3 and by_encoder.mean == pytest.approx(table.mean())
        false["encoders"] += by_encoder.verdict != "not resolved"
        false["seeds"] += crossed_difference(list(table), zero).verdict != "not resolved"
    assert false["encoders"] / 600 < 0.08 < false["seeds"] / 600


def test_many_items_and_no_spread_of_theirs_give_the_paired_t_test() -> None:
    generator = np.random.default_rng(13)
    rows = np.repeat(generator.normal(0.1, 0.05, size=(6, 1)), 50, axis=1)
    crossed = crossed_difference(list(rows), [np.zeros(50)] * 6)
    paired = paired_difference(list(rows[:, 0]), [0.0] * 6)
    assert (crossed.low, crossed.high, crossed.p) == pytest.approx((paired.low, paired.high, paired.p))
    assert paired.p == pytest.approx(stats.ttest_1samp(rows[:, 0], 0).pvalue)


def test_tables_that_do_not_fit_are_refused() -> None:
    row = np.zeros(4)
    for treated, baseline in (([row], []), ([], []), ([row], [np.zeros(3)]), ([row, np.zeros(3)], [row, row])):
        with pytest.raises(ValueError, match="all of one length"):
            crossed_difference(treated, baseline)
    assert not crossed_difference([row], [row]).known
    assert not crossed_difference([row, row], [row, row]).known


def test_p_values_are_adjusted_as_statsmodels_does() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_many_comparisons_without_effect_seldom_give_any_verdict() -> None:
    generator = np.random.default_rng(14)
    false = 0
    for _ in range(500):
        drawn = {str(n): paired_difference(list(generator.normal(size=3)), [0.0] * 3).p for n in range(6)}
        false += min(holm(drawn).values()) <= 0.05
    assert false / 500 < 0.08


def test_labels_needed_are_read_off_the_curve_of_the_baseline() -> None:
    counts = [100, 1000, 10_000]
    found = labels_needed(counts, [0.6, 0.8, 0.9], [0.5, 0.7, 0.8])
    assert found[0] == pytest.approx(10**2.5) and found[1] == pytest.approx(10_000) and found[2] is None
    assert labels_needed(counts, [0.4, 0.7, 0.75], [0.5, 0.7, 0.8])[:2] == [None, pytest.approx(1000)]
    assert labels_needed(counts, [0.6, 0.6, 0.6], [0.6, 0.6, 0.6])[0] == pytest.approx(100)
    assert labels_needed([100], [0.6], [0.5]) == [None]


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
