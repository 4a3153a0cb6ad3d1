"""Interquartile mean and probability of improvement as rliable defines them, ranks as Demšar's paper has them."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from maelift.benchmarks.across_tasks import (
    average_ranks,
    interquartile_mean,
    nemenyi_q,
    probability_of_improvement,
    rank_error,
)
from scipy import stats


def test_the_interquartile_mean_is_that_of_all_runs_together() -> None:
    scores = np.random.default_rng(1).gamma(2.0, size=(6, 4))  # 6 tasks of 4 runs
    found = interquartile_mean(scores.tolist())
    middle = np.sort(scores.ravel())[6:18]
    assert found.value == pytest.approx(middle.mean())
    assert found.low < found.value < found.high
    ruined = scores.copy()
    ruined[0] = -1000
    assert interquartile_mean(ruined.tolist()).value > 0


def test_the_probability_of_improvement_is_mann_whitneys_u_averaged_over_tasks() -> None:
    generator = np.random.default_rng(2)
    ours, theirs = (
        generator.integers(0, 10, size=(5, 6)).astype(float),
        generator.integers(0, 8, size=(5, 4)).astype(float),
    )
    expected = np.mean(
        [stats.mannwhitneyu(one, two).statistic / (6 * 4) for one, two in zip(ours, theirs, strict=True)]
    )
    found = probability_of_improvement(ours.tolist(), theirs.tolist())
    assert found.value == pytest.approx(expected) and found.low < expected < found.high
    assert probability_of_improvement([[1.0, 2.0]] * 4, [[1.0, 2.0]] * 4).value == 0.5
    with pytest.raises(ValueError, match="expected as many"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="at least 1 run"):
        interquartile_mean([[1.0], []])


@pytest.mark.slow
def test_the_bootstrap_of_runs_within_tasks_holds_the_true_values() -> None:
    """10 runs on each of 5 tasks of different difficulty and spread; the tasks are given."""
    generator = np.random.default_rng(3)
    means, spreads = np.array([0.2, 0.4, 0.5, 0.7, 0.9]), np.array([0.05, 0.02, 0.1, 0.04, 0.01])

    def drawn(runs: int, lift: float) -> np.ndarray:
        return means[:, None] + lift + spreads[:, None] * generator.normal(size=(5, runs))

    true_iqm = float(stats.trim_mean(drawn(50_000, 0.0).ravel(), 0.25))
    true_chance = float(np.mean(stats.norm.cdf(0.03 / (spreads * math.sqrt(2)))))
    held = {"iqm": 0, "chance": 0}
    for _ in range(100):
        ours, theirs = drawn(10, 0.03), drawn(10, 0.0)
        found = interquartile_mean(theirs.tolist())
        held["iqm"] += found.low <= true_iqm <= found.high
        chance = probability_of_improvement(ours.tolist(), theirs.tolist())
        held["chance"] += chance.low <= true_chance <= chance.high
    assert min(held.values()) / 100 > 0.85


def test_the_critical_values_are_those_of_demsars_table_5() -> None:
    published = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    assert {arms: nemenyi_q(arms) for arms in published} == pytest.approx(published, abs=1.5e-3)


def test_the_worked_example_of_demsars_paper_comes_out() -> None:
    """AUC of four versions of C4.5 on 14 data sets (Tables 6 and 5, Figure 1a).

    The paper ranks by more digits than it prints: with those, two of the scores are tied and two ranks differ by 0.036.
    """
    plain = [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957]
    leaf = [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978]
    fit = [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.000, 0.965, 0.614, 0.975, 0.946]
    both = [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.000, 0.962, 0.669, 0.975, 0.970]
    scores = {"C4.5": plain, "C4.5+m": leaf, "C4.5+cf": fit, "C4.5+m+cf": both}
    found, loose = average_ranks(scores), average_ranks(scores, alpha=0.1)
    assert found.average == pytest.approx(
        {"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}, abs=0.04
    )
    assert found.tasks == 14 and found.p < 0.02  # the paper's 0.02 is without the correction for ties
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    assert loose.critical_difference == pytest.approx(1.12, abs=0.005)
    apart = {
        (one, two)
        for one, two in combinations(scores, 2)
        if abs(found.average[one] - found.average[two]) >= loose.critical_difference
    }
    assert apart == {("C4.5", "C4.5+m"), ("C4.5", "C4.5+m+cf")}


def test_friedmans_test_is_that_of_the_ranks_sums() -> None:
    """Equation by equation from the paper's section 3.2.2, on scores without ties."""
    scores = np.random.default_rng(5).normal([[0.0], [0.2], [0.5], [1.0]], 1, size=(4, 9))
    found = average_ranks({str(arm): row.tolist() for arm, row in enumerate(scores)})
    ranks = np.array([found.average[str(arm)] for arm in range(4)])
    chi2 = 12 * 9 / (4 * 5) * (np.square(ranks).sum() - 4 * 5**2 / 4)
    assert found.p == pytest.approx(stats.f.sf(8 * chi2 / (9 * 3 - chi2), 3, 24))


def test_arms_without_effect_seldom_differ_by_the_critical_difference() -> None:
    generator = np.random.default_rng(4)
    ranks = generator.random((4000, 6, 5)).argsort(axis=2) + 1
    average = ranks.mean(axis=1)
    spread = average.max(axis=1) - average.min(axis=1)
    assert np.mean(spread >= nemenyi_q(5) * rank_error(5, 6)) <= 0.055


def test_two_arms_have_ranks_and_no_p_value_of_friedman() -> None:
    found = average_ranks({"a": [0.5, 0.6, 0.7, 0.7], "b": [0.4, 0.6, 0.6, 0.6]})
    assert found.average == {"a": 1.125, "b": 1.875} and math.isnan(found.p)
    with pytest.raises(ValueError, match="at least 2 arms"):
        average_ranks({"a": [0.5, 0.6]})
