"""Intervals keep their promise where test items come in clusters, labelled draws overlap, and encoders are crossed with seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from maelift.benchmarks.anova import NOTHING, ItemSums, three_way, two_way
from maelift.benchmarks.stats import Difference, crossed_difference, finite_population_factor, paired_difference
from numpy.typing import NDArray

CLUSTER_SIZES = np.array([2, 5, 10, 25, 60])
SIZE_CHANCES = np.array([0.25, 0.25, 0.2, 0.2, 0.1])
"""Images of a patient: most patients have few, a few have many."""


def clustered_answers(
    generator: np.random.Generator, clusters: int, correlation: float, seeds: int
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]], NDArray[np.int64]]:
    """Right or wrong answers of two arms, on patients with an effect each that depends on how many images they have."""
    sizes = generator.choice(CLUSTER_SIZES, size=clusters, p=SIZE_CHANCES)
    belongs = np.repeat(np.arange(clusters), sizes)
    effect = 0.002 * (sizes - 10) + math.sqrt(correlation) * 0.3 * generator.standard_t(6, size=clusters)
    ease = 0.65 + 0.2 * generator.uniform(-1, 1, size=clusters)
    luck = generator.normal(0, 0.01, size=(2, seeds, 1))
    chance = np.stack([ease + effect / 2, ease - effect / 2])[:, None, belongs] + luck
    answers = generator.random((2, seeds, len(belongs))) < np.clip(chance, 0, 1)
    return list(answers[0].astype(float)), list(answers[1].astype(float)), belongs


def clustered_truth(correlation: float) -> float:
    """The true mean difference over images, by 200,000 patients."""
    generator = np.random.default_rng(99)
    sizes = generator.choice(CLUSTER_SIZES, size=200_000, p=SIZE_CHANCES)
    effect = 0.002 * (sizes - 10) + math.sqrt(correlation) * 0.3 * generator.standard_t(6, size=len(sizes))
    ease = 0.65 + 0.2 * generator.uniform(-1, 1, size=len(sizes))
    return float(np.average(np.clip(ease + effect / 2, 0, 1) - np.clip(ease - effect / 2, 0, 1), weights=sizes))


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.05, 0.5])
@pytest.mark.parametrize("clusters", [20, 50, 100])
def test_the_interval_holds_with_patients_of_unequal_sizes(clusters: int, correlation: float) -> None:
    generator = np.random.default_rng([clusters, int(100 * correlation)])
    truth, draws = clustered_truth(correlation), 800
    held = {"clusters": 0, "images": 0}
    for _ in range(draws):
        ours, theirs, belongs = clustered_answers(generator, clusters, correlation, seeds=5)
        for name, groups in (("clusters", belongs), ("images", None)):
            difference = crossed_difference(ours, theirs, clusters=None if groups is None else groups.tolist())
            held[name] += difference.low <= truth <= difference.high
    assert 0.93 <= held["clusters"] / draws <= (0.985 if clusters == 20 else 0.975)
    assert held["images"] / draws < held["clusters"] / draws - 0.05 * (correlation > 0.1)


def test_clusters_of_one_size_are_items_with_their_mean_score() -> None:
    generator = np.random.default_rng(1)
    table = generator.normal(size=(4, 30, 6)) + generator.normal(size=(1, 30, 1))
    order = generator.permutation(180)
    images = list(table.reshape(4, 180)[:, order])
    clusters = np.repeat(np.arange(30), 6)[order].tolist()
    zero = [np.zeros(180)] * 4
    found = crossed_difference(images, zero, clusters=clusters)
    expected = crossed_difference(list(table.mean(axis=2)), [np.zeros(30)] * 4)
    assert found.clustered and found.items == expected.items == 30
    assert (found.mean, found.of_units, found.of_items, found.items_df) == pytest.approx(
        (expected.mean, expected.of_units, expected.of_items, 29)
    )
    assert (found.low, found.high, found.p) == pytest.approx((expected.low, expected.high, expected.p))


def test_few_large_clusters_count_for_fewer() -> None:
    equal, unequal = (ItemSums(np.zeros((2, 20)), np.array(sizes, float)) for sizes in ([5] * 20, [50, *[2] * 19]))
    assert equal.df == pytest.approx(19) and unequal.df == 1.0


def test_clusters_that_do_not_fit_the_items_are_refused() -> None:
    with pytest.raises(ValueError, match="3 clusters of 4 items"):
        crossed_difference([np.zeros(4)], [np.ones(4)], clusters=[0, 1, 1])


def overlapping_draws(generator: np.random.Generator, share: float, seeds: int, other: float) -> NDArray[np.float64]:
    """The difference by seed: the mean of what each labelled image brings, of a share of the 200 that there are.

    What an image brings is skewed, and its part of a seed's luck has a deviation of 1 over fresh sources; ``other`` is that of
    the remaining luck.
    """
    source, count = 200, round(200 * share)
    brings = (generator.exponential(size=source) - 1) * math.sqrt(count)
    drawn = generator.random((seeds, source)).argsort(axis=1)[:, :count]
    return np.asarray(brings[drawn].mean(axis=1) + other * generator.normal(size=seeds))


@pytest.mark.parametrize("other", [0.0, 0.5])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_the_interval_holds_where_draws_share_most_of_their_images(share: float, other: float) -> None:
    generator = np.random.default_rng([int(100 * share), int(10 * other)])
    draws, held = 2000, {True: 0, False: 0}
    for _ in range(draws):
        values = overlapping_draws(generator, share, 5, other).tolist()
        for wider in held:
            difference = paired_difference(values, [0.0] * 5, drawn=share if wider else 0.0)
            held[wider] += difference.low <= 0 <= difference.high
    corrected, plain = held[True] / draws, held[False] / draws
    assert corrected >= 0.93 and (other > 0 or corrected <= 0.97)
    assert plain < {0.2: 0.9, 0.5: 0.8, 0.95: 0.8}[share]


def test_what_a_limited_source_adds_is_the_covariance_of_two_draws() -> None:
    generator = np.random.default_rng(5)
    values = np.array([overlapping_draws(generator, 0.5, 2, 0.0) for _ in range(20_000)])
    shown = values.var(axis=1, ddof=1).mean()
    covariance = np.cov(values.T)[0, 1]
    assert covariance == pytest.approx(finite_population_factor(0.5) * shown, rel=0.08)
    assert finite_population_factor(0.0) == 0 and math.isinf(finite_population_factor(1.0))
    with pytest.raises(ValueError, match="expected a share"):
        finite_population_factor(1.5)


def test_with_all_labelled_images_in_every_seed_the_interval_is_of_this_labelled_set() -> None:
    values = [0.1, 0.2, 0.3, 0.2]
    every, few = (paired_difference(values, [0.0] * 4, drawn=drawn) for drawn in (1.0, 0.0))
    assert every.drawn == 1 and (every.low, every.high) == (few.low, few.high)
    half = paired_difference(values, [0.0] * 4, drawn=0.5)
    assert half.half(0.05) == pytest.approx(math.sqrt(5) * few.half(0.05))


LUCK = [(0.0, 1.0, 0.3), (1.0, 0.3, 0.3), (0.5, 0.5, 1.0), (0.0, 0.0, 1.0), (0.3, 1.0, 0.3)]
"""Deviations between encoders, between seeds, and of single runs."""


def crossed_runs(
    generator: np.random.Generator, encoders: int, seeds: int, luck: tuple[float, float, float]
) -> tuple[list[NDArray[np.float64]], list[int], list[int]]:
    """Differences on 60 test items of every encoder with every seed, items having an effect too; and which runs they are."""
    of_encoders, of_seeds, of_runs = luck
    table = of_encoders * generator.normal(size=(encoders, 1, 1)) + of_seeds * generator.normal(size=(1, seeds, 1))
    table = table + of_runs * generator.normal(size=(encoders, seeds, 1)) + generator.laplace(size=60)
    table = table + generator.normal(size=(encoders, 1, 60)) + 2 * generator.normal(size=(encoders, seeds, 60))
    runs = [(encoder, seed) for encoder in range(encoders) for seed in range(seeds)]
    rows = [table[run] for run in runs]
    return rows, [encoder for encoder, _ in runs], [seed for _, seed in runs]


@pytest.mark.slow
@pytest.mark.parametrize("design", [(2, 5), (3, 3), (3, 10), (5, 20)])
@pytest.mark.parametrize("luck", LUCK)
def test_the_interval_holds_where_every_encoder_ran_with_every_seed(
    design: tuple[int, int], luck: tuple[float, float, float]
) -> None:
    generator = np.random.default_rng([*design, LUCK.index(luck)])
    draws, held = 800, 0
    for _ in range(draws):
        rows, encoders, seeds = crossed_runs(generator, *design, luck)
        difference = crossed_difference(rows, [np.zeros(60)] * len(rows), encoders, seeds=seeds)
        held += difference.low <= 0 <= difference.high
    assert held / draws >= 0.93


def test_crossing_is_far_narrower_where_luck_is_in_the_labelled_draw() -> None:
    """Twelve seeds with all of three encoders, or each with one of them."""
    generator = np.random.default_rng(7)
    widths = []
    for _ in range(200):
        rows, encoders, seeds = crossed_runs(generator, 3, 12, (0.1, 1.0, 0.1))
        one_each = [run for run in range(36) if seeds[run] % 3 == encoders[run]]
        crossed = crossed_difference(rows, [np.zeros(60)] * 36, encoders, seeds=seeds)
        nested = crossed_difference(
            [rows[run] for run in one_each],
            [np.zeros(60)] * 12,
            [encoders[run] for run in one_each],
            seeds=[seeds[run] for run in one_each],
        )
        assert crossed.unit == nested.unit == "encoder" and crossed.units == nested.units == 3
        assert crossed.seeds == 12 and nested.seeds == 0
        widths.append((crossed.half(0.05), nested.half(0.05)))
    crossed_width, nested_width = np.median(widths, axis=0)
    assert crossed_width < 0.75 * nested_width


def test_the_parts_add_up_to_the_variance_of_the_mean() -> None:
    """Two-way and three-way, against the variance of the mean over repetitions."""
    generator = np.random.default_rng(8)
    means, parts = [], []
    for _ in range(1500):
        rows, *_ = crossed_runs(generator, 4, 6, (1.0, 1.0, 0.5))
        found = three_way(ItemSums.of(np.stack(rows).reshape(4, 6, 60), None))
        means.append(found.values.mean())
        parts.append(found.units.variance + found.seeds.variance + found.items.variance)
    assert np.mean(parts) == pytest.approx(np.var(means), rel=0.12)
    means, parts = [], []
    for _ in range(1500):
        table = generator.normal(size=(5, 1)) + 3 * generator.normal(size=(1, 40)) + generator.normal(size=(5, 40))
        scores = ItemSums.of(table, None)
        both = two_way(scores, NOTHING)
        means.append(both.values.mean())
        parts.append(both.units.variance + both.items.variance)
    assert np.mean(parts) == pytest.approx(np.var(means), rel=0.12)


def test_seeds_that_not_every_encoder_ran_with_are_left_out() -> None:
    generator = np.random.default_rng(9)
    rows, encoders, seeds = crossed_runs(generator, 3, 5, (1.0, 1.0, 1.0))
    zero = [np.zeros(60)] * 15
    there = [run for run in range(15) if (encoders[run], seeds[run]) != (1, 4)]
    found = crossed_difference(
        [rows[run] for run in there], zero[:14], [encoders[run] for run in there], seeds=[seeds[run] for run in there]
    )
    complete = [run for run in range(15) if seeds[run] != 4]
    expected = crossed_difference(
        [rows[run] for run in complete],
        zero[:12],
        [encoders[run] for run in complete],
        seeds=[seeds[run] for run in complete],
    )
    assert found == expected and found.seeds == 4
    one = [run for run in range(15) if seeds[run] == 0]
    alone = crossed_difference([rows[run] for run in one], zero[:3], [0, 1, 2], seeds=[0, 0, 0])
    assert not alone.known and isinstance(alone, Difference)
