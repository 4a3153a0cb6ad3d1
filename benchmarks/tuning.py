"""The search for an arm's learning rate and steps on validation: it asks for scores and ends with settings.

The search is part of a seed: each compared seed chooses with its own labelled images, head and order, so that seeds are
independent repetitions of all of it, and intervals over them cover the luck of the choice. It knows nothing of images or
models: ``score`` says what a training would reach, or None while that isn't known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .results import ConvergenceCheck, Trial
from .stats import gain_limit

AHEAD = 2
"""Doublings of the steps that are looked ahead: beyond the best length that many were tried."""


@dataclass(frozen=True, order=True)
class Setting:
    """What a training is done with: learning rate and steps, or, where these aren't tuned, a ``variant`` of the arm."""

    rate: float = 0.0
    steps: int = 0
    variant: str = ""


Score = Callable[[int, Setting], float | None]
"""The validation score of a training with a seed and a setting; None while it isn't finished."""


@dataclass(frozen=True)
class SearchSpace:
    """What is tried: ``rates`` at ``steps``, then more steps; or ``variants``, where there are some.

    ``max_doublings``: how often the steps may be doubled; ``max_extensions``: rates tried beyond each end of ``rates``.
    ``per_seed``: whether each seed chooses for itself; else the mean over the first ``draws`` seeds chooses for all.
    """

    rates: tuple[float, ...]
    steps: int
    variants: tuple[str, ...] = ()
    max_doublings: int = 0
    max_extensions: int = 0
    per_seed: bool = True
    draws: int = 3


@dataclass
class Search:
    """What a search has asked for, and, when every score is there, what it chose for each seed.

    ``asked`` are all trainings, of which ``missing`` have no score yet; ``edge`` is the end of the rates, "lowest" or "highest",
    that still does best though no more are tried.
    """

    asked: list[tuple[int, Setting]] = field(default_factory=list)
    missing: list[tuple[int, Setting]] = field(default_factory=list)
    chosen: dict[int, Setting] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    edge: str = ""
    check: ConvergenceCheck | None = None


def search(space: SearchSpace, seeds: Sequence[int], score: Score, val_images: int | None = None) -> Search:
    """Choose a setting for each seed, as far as scores are known.

    In order: every rate at the fewest steps, and rates beyond an end that does best in the mean over seeds; each seed's best
    rate at two and four times the steps, and at twice as many as long as the mean still rises; the two rates beside it at the
    steps that were best. ``val_images``: images behind a score that is a share of them, for the limit's noise.
    """
    return _Searching(space, seeds, score, val_images).run()


class _Searching:
    """The state of a search."""

    def __init__(self, space: SearchSpace, seeds: Sequence[int], score: Score, val_images: int | None) -> None:
        self.space, self.seeds, self.score, self.val_images = space, tuple(seeds), score, val_images
        self.tuned = self.seeds if space.per_seed else self.seeds[: space.draws]
        self.found = Search()
        self.known: dict[tuple[int, Setting], float] = {}

    def run(self) -> Search:
        """Ask stage by stage; return at the first whose scores aren't all there."""
        settings = self._choose()
        if settings is not None and self._ask((seed, settings[seed]) for seed in self.seeds):
            self.found.chosen = settings
            self.found.trials = tuple(
                Trial(seed, one.rate, one.steps, one.variant, self.known[seed, one], settings[seed] == one)
                for seed, one in self.found.asked
            )
        return self.found

    def _choose(self) -> dict[int, Setting] | None:
        if self.space.variants:
            variants = [Setting(variant=name) for name in self.space.variants]
            if not self._ask((seed, one) for seed in self.tuned for one in variants):
                return None
            return self._for_all(self._best({seed: variants for seed in self.tuned}))
        rates = self._rates()
        if rates is None:
            return None
        best = self._best({seed: [Setting(rate, self.space.steps) for rate in rates] for seed in self.tuned})
        lengths = self._lengths(best)
        if lengths is None:
            return None
        longer = {seed: [Setting(best[seed].rate, steps) for steps in lengths] for seed in self.tuned}
        self.found.check = self._check(longer, lengths)
        best = self._best(longer)
        around = {seed: _neighbours(rates, best[seed], self.space.steps) for seed in self.tuned}
        if not self._ask((seed, one) for seed, settings in around.items() for one in settings):
            return None
        return self._for_all(self._best(around))

    def _for_all(self, best: Mapping[int, Setting]) -> dict[int, Setting]:
        """The setting of each seed: its own, or the one that was chosen for all."""
        if self.space.per_seed:
            return dict(best)
        (common,) = set(best.values())
        return dict.fromkeys(self.seeds, common)

    def _rates(self) -> list[float] | None:
        """The rates tried at the fewest steps, in order; more beyond an end while that does best in the mean."""
        rates, below, above = sorted(self.space.rates), 0, 0
        while True:
            if not self._ask((seed, Setting(rate, self.space.steps)) for seed in self.tuned for rate in rates):
                return None
            place = _middle_best([self._mean(Setting(rate, self.space.steps)) for rate in rates])
            self.found.edge = {0: "lowest", len(rates) - 1: "highest"}.get(place, "") if len(rates) > 1 else ""
            if self.found.edge == "lowest" and below < self.space.max_extensions:
                below, rates = below + 1, [rates[0] ** 2 / rates[1], *rates]
            elif self.found.edge == "highest" and above < self.space.max_extensions:
                above, rates = above + 1, [*rates, rates[-1] ** 2 / rates[-2]]
            else:
                return rates

    def _lengths(self, best: Mapping[int, Setting]) -> list[int] | None:
        """The numbers of steps tried, each twice the one before."""
        lengths = [self.space.steps << doubling for doubling in range(min(AHEAD, self.space.max_doublings) + 1)]
        while True:
            if not self._ask((seed, Setting(best[seed].rate, steps)) for seed in self.tuned for steps in lengths):
                return None
            means = [
                _mean(self.known[seed, Setting(best[seed].rate, steps)] for seed in self.tuned) for steps in lengths
            ]
            rises = means.index(max(means)) > len(lengths) - 1 - AHEAD
            if not rises or len(lengths) > self.space.max_doublings:
                return lengths
            lengths.append(2 * lengths[-1])

    def _check(self, longer: Mapping[int, Sequence[Setting]], lengths: Sequence[int]) -> ConvergenceCheck | None:
        """What four times the steps (fewer, where fewer were tried) bring in the mean, and what they bring at most."""
        if len(lengths) < 2:
            return None
        at = max(0, len(lengths) - 1 - AHEAD)
        low, high = ([self.known[seed, settings[place]] for seed, settings in longer.items()] for place in (at, -1))
        gain, limit = gain_limit(low, high, self.val_images)
        means = [
            _mean(self.known[seed, settings[place]] for seed, settings in longer.items())
            for place in range(len(lengths))
        ]
        settled = len(lengths) > AHEAD and means.index(max(means)) <= at
        return ConvergenceCheck(
            "", 0, lengths[at], self.tuned, tuple(low), tuple(high), gain, limit, settled, lengths[-1]
        )

    def _best(self, settings: Mapping[int, Sequence[Setting]]) -> dict[int, Setting]:
        """The best setting of each seed by its own scores, or of all by their mean, which needs the same settings of all."""
        if self.space.per_seed:
            return {seed: own[_middle_best([self.known[seed, one] for one in own])] for seed, own in settings.items()}
        common = settings[self.tuned[0]]
        return dict.fromkeys(settings, common[_middle_best([self._mean(one) for one in common])])

    def _mean(self, setting: Setting) -> float:
        return _mean(self.known[seed, setting] for seed in self.tuned)

    def _ask(self, wanted: Iterable[tuple[int, Setting]]) -> bool:
        """Ask for scores; whether all are there."""
        complete = True
        for one in wanted:
            if one in self.known:
                continue
            if one not in self.found.asked:
                self.found.asked.append(one)
            value = self.score(*one)
            if value is None:
                complete = False
                if one not in self.found.missing:
                    self.found.missing.append(one)
            else:
                self.known[one] = value
        return complete


def guessed_settings(space: SearchSpace, rate: float, *, short: bool) -> list[Setting]:
    """The settings that a search will try for a seed, where nothing is extended; one at ``rate`` where nothing is tuned."""
    if space.variants:
        return [Setting(variant=name) for name in space.variants]
    if short:
        return [Setting(rate, space.steps)]
    first = [Setting(rate, space.steps) for rate in space.rates]
    middle = sorted(space.rates)[(len(space.rates) - 1) // 2]
    longer = [Setting(middle, space.steps << doubling) for doubling in range(1, min(AHEAD, space.max_doublings) + 1)]
    return [*first, *longer]


def _neighbours(rates: Sequence[float], best: Setting, fewest: int) -> list[Setting]:
    """A setting, and the rates beside it at its steps; itself alone where these were tried at the fewest steps."""
    if best.steps == fewest:
        return [best]
    place = rates.index(best.rate)
    return [Setting(rate, best.steps) for rate in rates[max(0, place - 1) : place + 2]]


def _middle_best(scores: Sequence[float]) -> int:
    """The place of the best score; of several equal ones the middle one."""
    best = [place for place, score in enumerate(scores) if score == max(scores)]
    return best[(len(best) - 1) // 2]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
