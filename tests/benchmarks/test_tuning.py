"""The search for rates and steps: what it asks for, and by simulation that intervals cover its luck."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from maelift.benchmarks.stats import gain_limit
from maelift.benchmarks.tuning import Search, SearchSpace, Setting, guessed_settings, search
from scipy import stats

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SPACE = SearchSpace(RATES, 100, max_doublings=4, max_extensions=2)


def finished(space: SearchSpace, seeds: range, score: Callable[[int, Setting], float]) -> Search:
    found = search(space, seeds, score)
    assert not found.missing and set(found.chosen) == set(seeds)
    return found


def test_each_seed_gets_the_rate_and_steps_that_are_best_for_it() -> None:
    best = {0: 1e-3, 1: 2e-3, 2: 1e-3}
    long = {0: 100, 1: 200, 2: 100}

    def score(seed: int, setting: Setting) -> float:
        return 0.9 - 0.1 * abs(math.log2(setting.rate / best[seed])) - 0.05 * abs(math.log2(setting.steps / long[seed]))

    found = finished(SPACE, range(3), score)
    assert found.chosen == {seed: Setting(best[seed], long[seed]) for seed in range(3)}
    assert {one.steps for _, one in found.asked} == {100, 200, 400} and found.edge == ""
    assert {one.rate for seed, one in found.asked if seed == 1 and one.steps == 200} == {1e-3, 2e-3, 4e-3}
    assert found.check is not None and found.check.settled and (found.check.steps, found.check.longest) == (100, 400)
    chosen = [trial for trial in found.trials if trial.chosen]
    assert sorted(trial.seed for trial in chosen) == [0, 1, 2] and len(found.trials) == len(found.asked)


def test_it_asks_in_stages_and_for_nothing_twice() -> None:
    known: dict[tuple[int, Setting], float] = {}
    stages = []
    while True:
        found = search(SPACE, range(2), lambda *one: known.get(one))  # noqa: B023
        if found.chosen:
            break
        assert found.missing and len(set(found.missing)) == len(found.missing) and not found.trials
        assert not set(found.missing) & known.keys()
        stages.append(len(found.missing))
        known |= {one: 0.5 + 0.01 * one[1].steps / 100 - abs(one[1].rate - 1e-3) for one in found.missing}
    # Rates; twice and four times the steps; twice as many again, twice; the neighbouring rates at the longest.
    assert stages == [8, 4, 2, 2, 4]
    assert found.check is not None and not found.check.settled and found.check.longest == 1600


def test_rates_go_beyond_an_end_that_does_best() -> None:
    def higher(seed: int, setting: Setting) -> float:
        return setting.rate

    found = finished(SPACE, range(2), higher)
    assert {one.rate for _, one in found.asked} == {*RATES, 8e-3, 16e-3} and found.edge == "highest"
    found = finished(SPACE, range(2), lambda seed, setting: 0.5 - abs(math.log2(setting.rate / 2.5e-4)))
    assert min(one.rate for _, one in found.asked) == pytest.approx(1.25e-4) and found.edge == ""
    assert found.chosen[0].rate == pytest.approx(2.5e-4)


def test_a_choice_for_all_seeds_takes_fewer_trainings() -> None:
    def score(seed: int, setting: Setting) -> float:
        return 0.5 - abs(math.log2(setting.rate / (1e-3 if seed < 2 else 4e-3)))

    each = finished(SPACE, range(6), score)
    once = finished(SearchSpace(RATES, 100, max_doublings=4, per_seed=False, draws=3), range(6), score)
    assert {one.rate for one in each.chosen.values()} == {1e-3, 4e-3}
    assert len(set(once.chosen.values())) == 1 and next(iter(once.chosen.values())).rate == 1e-3
    assert len(once.asked) < len(each.asked) and {seed for seed, _ in once.asked} == set(range(6))


def test_variants_are_compared_by_each_seed_and_have_no_steps() -> None:
    space = SearchSpace(RATES, 0, variants=("linear", "knn"))
    found = finished(space, range(4), lambda seed, setting: float((setting.variant == "knn") == (seed % 2 == 0)))
    assert [found.chosen[seed].variant for seed in range(4)] == ["knn", "linear", "knn", "linear"]
    assert found.check is None and len(found.asked) == 8
    assert guessed_settings(space, 1e-3, short=False) == [Setting(variant="linear"), Setting(variant="knn")]


def test_guesses_are_what_a_search_asks_for_where_nothing_is_extended() -> None:
    def score(seed: int, setting: Setting) -> float:
        return -abs(math.log2(setting.rate / 1e-3)) - setting.steps / 1e4

    found = finished(SPACE, range(1), score)
    assert [one for _, one in found.asked] == guessed_settings(SPACE, 1e-3, short=False)


def test_the_limit_holds_the_true_gain_of_more_steps() -> None:
    generator = np.random.default_rng(1)
    for seeds in (3, 5, 10):
        held = []
        for _ in range(2000):
            luck = generator.normal(0, 0.02, seeds)
            short, long = (luck + generator.normal(mean, 0.01, seeds) for mean in (0.70, 0.71))
            held.append(gain_limit(short.tolist(), long.tolist(), None)[1] >= 0.01)
        assert 0.93 < np.mean(held) < 0.97
    assert math.isinf(gain_limit([0.7], [0.8], 1000)[1])
    assert gain_limit([0.7, 0.7, 0.7], [0.7, 0.7, 0.7], 1000)[1] > 0.01  # three seeds that agree by chance


class Arm:
    """An arm whose accuracy over rate and steps is known: an optimum that moves from draw to draw, and a slow rise with steps.

    ``run`` draws what a training reaches on test images without end, and on 1,000 validation images.
    """

    def __init__(self, generator: np.random.Generator, level: float, *, rises: float = 0.02) -> None:
        self.generator, self.level, self.rises = generator, level, rises
        self.tests: dict[tuple[int, Setting], float] = {}
        self.best: dict[int, float] = {}

    def run(self, luck: float, seed: int, setting: Setting) -> float:
        centre = self.best.setdefault(seed, 1.4e-3 * 2 ** self.generator.normal(0, 0.5))
        surface = 0.012 * math.log2(setting.rate / centre) ** 2 + self.rises * 250 / setting.steps
        test = self.level + luck - surface + self.generator.normal(0, 0.008)
        self.tests[seed, setting] = test
        return float(self.generator.binomial(1000, min(max(test, 0.0), 1.0))) / 1000


def compared(
    generator: np.random.Generator, space: SearchSpace, other: SearchSpace, seeds: int, levels: tuple[float, float]
) -> tuple[list[float], float]:
    """Differences of two arms' test scores over the seeds, each arm after its own search; and the limit of the second arm."""
    lucks = generator.normal(0, 0.025, seeds)
    tests, limit = [], 0.0
    for one, level in zip((space, other), levels, strict=True):
        arm, known = Arm(generator, level), dict[tuple[int, Setting], float]()

        def score(
            seed: int, setting: Setting, arm: Arm = arm, known: dict[tuple[int, Setting], float] = known
        ) -> float:
            if (seed, setting) not in known:
                known[seed, setting] = arm.run(lucks[seed], seed, setting)
            return known[seed, setting]

        found = search(one, range(seeds), score, 1000)
        tests.append([arm.tests[seed, found.chosen[seed]] for seed in range(seeds)])
        limit = max(limit, found.check.limit if found.check else 0.0)
    return [one - two for one, two in zip(*tests, strict=True)], limit


def half_width(differences: list[float]) -> float:
    """Half of Student's 95 % interval of the mean, as scipy has it."""
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return float(interval.high - interval.low) / 2


@pytest.mark.slow
def test_intervals_over_seeds_cover_the_luck_of_the_search() -> None:
    """Measured over 1,000 suites of each size: 94 to 96 % with a search a seed; chosen once for all, 20 seeds hold 70 to 85 %."""
    generator = np.random.default_rng(2)
    once = SearchSpace(RATES, 250, max_doublings=2, max_extensions=1, per_seed=False, draws=1)
    each = SearchSpace(RATES, 250, max_doublings=2, max_extensions=1)
    covered = {}
    for name, space, seeds, suites in (
        ("each", each, 3, 400),
        ("each", each, 5, 400),
        ("each", each, 20, 300),
        ("once", once, 20, 300),
    ):
        found = [compared(generator, space, space, seeds, (0.62, 0.58))[0] for _ in range(suites)]
        truth = float(np.mean([np.mean(differences) for differences in found]))
        covered[name, seeds] = np.mean([abs(np.mean(one) - truth) < half_width(one) for one in found])
    assert all(0.92 <= covered["each", seeds] <= 0.98 for seeds in (3, 5, 20)), covered
    assert covered["once", 20] < 0.9, covered


@pytest.mark.slow
def test_one_recipe_under_two_names_is_no_effect_wherever_its_search_begins() -> None:
    """250 steps against 1,000, by simulation: a difference is only named where it is beyond what more steps might bring."""
    generator = np.random.default_rng(3)
    early, late = (SearchSpace(RATES, steps, max_doublings=4, max_extensions=1) for steps in (250, 1000))
    false = []
    for _ in range(300):
        differences, limit = compared(generator, early, late, 5, (0.6, 0.6))
        mean = float(np.mean(differences))
        false.append(abs(mean) > half_width(differences) and abs(mean) > limit)
    assert np.mean(false) <= 0.05
