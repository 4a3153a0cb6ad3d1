"""Labels needed, read off a curve, and their interval by paired tests at every number of labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from maelift.benchmarks.label_savings import LabelRange, labels_needed, labels_needed_interval
from numpy.typing import NDArray

COUNTS = [50, 100, 200, 400, 800]


def test_labels_needed_are_read_off_the_curve_of_the_baseline() -> None:
    counts = [100, 1000, 10_000]
    found = labels_needed(counts, [0.6, 0.8, 0.9], [0.5, 0.7, 0.8])
    assert found[0] == pytest.approx(10**2.5) and found[1] == pytest.approx(10_000) and found[2] is None
    assert labels_needed(counts, [0.4, 0.7, 0.75], [0.5, 0.7, 0.8])[:2] == [None, pytest.approx(1000)]
    assert labels_needed(counts, [0.6, 0.6, 0.6], [0.6, 0.6, 0.6])[0] == pytest.approx(100)
    assert labels_needed([100], [0.6], [0.5]) == [None]


def curve(labels: float) -> float:
    """The true accuracy of the baseline with so many labels."""
    return 0.5 + 0.08 * math.log2(labels / 50)


def simulated(
    generator: np.random.Generator, seeds: int, items: int | None
) -> tuple[dict[int, NDArray[np.float64]], list[dict[int, NDArray[np.float64]]]]:
    """An arm that with 100 labels is as good as the baseline with 283, a point of luck shared by all runs of a seed."""
    luck, ease = 0.02 * generator.normal(size=seeds), 0.1 * generator.normal(size=items or 1)

    def runs(accuracy: float) -> dict[int, NDArray[np.float64]]:
        own = accuracy + luck + 0.01 * generator.normal(size=seeds)
        if items is None:
            return {seed: np.array([own[seed]]) for seed in range(seeds)}
        return {seed: (generator.random(items) < np.clip(own[seed] + ease, 0, 1)) * 1.0 for seed in range(seeds)}

    return runs(curve(100 * 2**1.5)), [runs(curve(count)) for count in COUNTS]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "items"), [(3, None), (5, None), (5, 400)])
def test_the_interval_holds_the_true_number_of_labels(seeds: int, items: int | None) -> None:
    generator = np.random.default_rng([seeds, items or 0])
    truth, held, repetitions = 100 * 2**1.5, 0, 300
    for _ in range(repetitions):
        found = labels_needed_interval(COUNTS, *simulated(generator, seeds, items))
        held += found is not None and (found.low or 0) <= truth <= (found.high or math.inf)
    assert held / repetitions >= 0.92


def test_the_interval_is_where_the_paired_difference_from_the_curve_is_not_significant() -> None:
    generator = np.random.default_rng(3)
    treated, baseline = simulated(generator, 8, None)
    found = labels_needed_interval(COUNTS, treated, baseline)
    assert found is not None and found.low is not None and found.high is not None
    (needed,) = labels_needed(
        COUNTS,
        [float(np.mean([*treated.values()]))],
        [float(np.mean([*runs.values()])) for runs in baseline],
    )
    assert needed is not None and found.low < needed < found.high
    assert found.low < 283 < found.high and found.high / found.low < 4


def test_an_end_beyond_the_counts_tried_is_left_open() -> None:
    flat = [{seed: np.array([0.7 + 0.01 * seed]) for seed in range(3)} for _ in COUNTS]
    noisy = {seed: np.array([0.7 + 0.01 * seed + (-1) ** seed * 0.05]) for seed in range(3)}
    assert labels_needed_interval(COUNTS, noisy, flat) == LabelRange(None, None)
    above = {seed: np.array([0.95 + 0.011 * seed]) for seed in range(3)}
    assert labels_needed_interval(COUNTS, above, flat) is None
    assert labels_needed_interval(COUNTS, {7: np.array([0.7])}, flat) is None
