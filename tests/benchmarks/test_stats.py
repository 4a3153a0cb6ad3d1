"""Intervals, verdicts and the convergence check keep what they promise, on simulated seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from maelift.benchmarks.stats import (
    Difference,
    crossed_difference,
    gain_limit,
    holm,
    mean_interval,
    paired_difference,
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


def test_equal_differences_are_not_taken_for_certainty() -> None:
    difference = paired_difference([0.8, 0.7, 0.6], [0.7, 0.6, 0.5])
    assert difference.verdict == "not resolved"
    assert math.isinf(difference.low) and math.isinf(difference.high)


@pytest.mark.parametrize(("treated", "baseline"), [([], []), ([0.5], [0.5, 0.6])])
def test_values_that_are_not_paired_are_refused(treated: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="expected as many"):
        paired_difference(treated, baseline)


def test_what_a_design_resolves_is_resolved_in_80_of_100_cases() -> None:
    generator = np.random.default_rng(8)
    for units, unit_sd, items in ((3, 0.05, 400), (6, 0.0, 400), (5, 0.01, 100)):

        def drawn(effect: float, units: int = units, unit_sd: float = unit_sd, items: int = items) -> Difference:
            table = effect + unit_sd * generator.normal(size=(units, 1)) + 0.3 * generator.normal(size=(1, items))
            table = table + 0.5 * generator.normal(size=(units, items))
            return crossed_difference(list(table), [np.zeros(items)] * units)

        told = float(np.median([drawn(0.0).smallest_resolved for _ in range(200)]))
        assert 0.6 < np.mean([drawn(told).verdict == "helps" for _ in range(400)]) < 0.95


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


def test_a_mean_tells_its_deviation_and_interval_only_where_they_are_known() -> None:
    mean, half, sd = mean_interval([0.6, 0.7, 0.8])
    assert mean == pytest.approx(0.7) and sd == pytest.approx(0.1)
    assert half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    alone, no_half, no_sd = mean_interval([0.6])
    assert alone == 0.6 and math.isnan(no_half) and math.isnan(no_sd)
    _, unknown, zero = mean_interval([0.6, 0.6, 0.6])
    assert math.isnan(unknown) and zero == pytest.approx(0, abs=1e-12)


def test_the_limit_of_a_gain_is_seldom_below_the_true_gain() -> None:
    """Validation accuracy of 3 or 5 seeds on 200 images, before and after training that brings 2 points."""
    generator = np.random.default_rng(15)
    for seeds in (3, 5):
        held = 0
        for _ in range(2000):
            images = generator.random((seeds, 200))
            at, longer = (images < 0.7).mean(axis=1), (images < 0.72).mean(axis=1) + generator.normal(0, 0.01, seeds)
            held += gain_limit(at.tolist(), longer.tolist(), val_images=200)[1] >= 0.02
        assert held / 2000 > 0.93


def test_the_limit_of_a_gain_is_unknown_of_one_seed_and_never_0_by_chance() -> None:
    gain, limit = gain_limit([0.70], [0.72], val_images=1000)
    assert gain == pytest.approx(0.02) and math.isinf(limit)
    assert gain_limit([0.7, 0.7], [0.7, 0.7], val_images=100)[1] > 0.1
    assert math.isinf(gain_limit([0.7, 0.7], [0.7, 0.7], val_images=None)[1])
    rising = gain_limit([0.50, 0.52, 0.51], [0.53, 0.55, 0.55], val_images=None)[1]
    expected = stats.ttest_1samp([0.03, 0.03, 0.04], 0).confidence_interval(0.9).high
    assert rising == pytest.approx(expected)


def test_a_difference_at_the_limit_is_seldom_said_to_be_smaller() -> None:
    """Two one-sided tests: of a true difference of X, "no larger than X" is said in at most 5 %, on test images too."""
    generator = np.random.default_rng(16)
    false = 0
    for _ in range(1500):
        table = 0.02 + 0.01 * generator.normal(size=(5, 1)) + 0.2 * generator.normal(size=(1, 200))
        table = table + 0.3 * generator.normal(size=(5, 200))
        false += crossed_difference(list(table), [np.zeros(200)] * 5).equivalence_limit() < 0.02
    assert false / 1500 <= 0.06


def test_the_equivalence_limit_is_that_of_two_one_sided_tests() -> None:
    values = np.array([0.004, -0.002, 0.001, 0.003, 0.0])
    limit = paired_difference(list(values), [0.0] * 5).equivalence_limit()
    lower = stats.ttest_1samp(values, -limit, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, limit, alternative="less").pvalue
    assert max(lower, upper) == pytest.approx(0.05)
    assert math.isinf(paired_difference([0.1], [0.1]).equivalence_limit())


def test_the_p_value_with_a_known_gain_is_that_of_the_shifted_test() -> None:
    values = [0.03, 0.05, 0.04, 0.06]
    difference = paired_difference(values, [0.0] * 4)
    assert difference.p_beyond(0.0, 0.0) == difference.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert difference.p_beyond(0.02, 0.02) == pytest.approx(stats.ttest_1samp(values, 0.02).pvalue)
    assert difference.p_beyond(0.0, 0.046) == difference.p_beyond(0.01, math.inf) == 1.0
    assert difference.p_beyond(0.01, 0.03) > difference.p_beyond(0.01, 0.02) > difference.p_beyond(0.01, 0.01)
    assert paired_difference([-one for one in values], [0.0] * 4).p_beyond(0.01, 0.02) == difference.p_beyond(
        0.01, 0.02
    )


def test_an_arm_that_would_catch_up_is_seldom_said_to_be_worse() -> None:
    """The baseline would gain all of the difference; that is estimated on 5 seeds' validation, as noisy as the test or less."""
    generator = np.random.default_rng(17)
    for noise in (0.005, 0.01, 0.02):
        for lag in (0.0, 0.01, 0.03):
            false = 0
            for _ in range(1000):
                difference = paired_difference(list(lag + generator.normal(0, 0.01, 5)), [0.0] * 5)
                gain, limit = gain_limit([0.0] * 5, list(lag + generator.normal(0, noise, 5)), None)
                false += difference.mean > 0 and difference.p_beyond(max(0.0, gain), limit) <= 0.05
            assert false / 1000 <= 0.05
