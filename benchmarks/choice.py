"""Which arm to use at each place: the one that validates best, how certain that is, what a cheaper one gives up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.report.html import Table
from ..transfer.tasks import CLASSIFY
from .analysis import difference_of
from .charts import capital
from .model_cost import cheaper, cost_phrase
from .results import Arm, Cell, SuiteResult, TaskResult
from .score_text import at_labels, listed, percent, place, signed
from .selection import Range, first_shares, joint_means, selected_difference, selected_score
from .stats import NO_SPREAD, Difference, crossed_difference, paired_difference

LEAST_SHARE = 0.01
"""Shares of resamples below it, and above 1 less it, are given as under and over: they are known within half a percent."""
READING = (
    "The arm to use is the one that validates best; its score is of the test images, and the interval allows for its having been "
    "selected among all. It comes first: has the highest mean test score where seeds, encoders and test images are drawn again."
)


@dataclass(frozen=True)
class Alternative:
    """The cheaper arm that validates best, and what the selected one scores more: a difference of shares."""

    arm: Arm
    gives_up: Range


@dataclass(frozen=True)
class Choice:
    """The arm to use on a task at a label count: that of the ``candidates`` with the best mean validation score.

    ``score``: its test score, a share, with an interval that allows for its having been selected; ``uncorrected``: the same
    without. ``first``: how often each candidate comes first on the test images where seeds, encoders and test images are drawn
    again. ``unresolved``: other candidates that may be as good, the likeliest first; all of them with one seed, of which
    nothing more is known. ``left_out``: arms without runs there.
    """

    part: TaskResult
    labels: int
    arm: Arm
    candidates: tuple[Arm, ...]
    seeds: tuple[int, ...]
    score: Range
    uncorrected: Difference
    first: Mapping[str, float]
    unresolved: tuple[Arm, ...]
    alternative: Alternative | None
    left_out: tuple[Arm, ...] = ()

    @property
    def known(self) -> bool:
        """Whether anything is known of how certain the choice is."""
        return bool(self.first)

    @property
    def ahead(self) -> Arm | None:
        """Another arm that comes first more often on the test images than the one that validates best."""
        if not self.known:
            return None
        likeliest = max(self.candidates, key=lambda arm: self.first[arm.name])
        return None if self.first[likeliest.name] <= self.first[self.arm.name] else likeliest


def choices(result: SuiteResult) -> list[Choice]:
    """The choice at every place where two arms or more have runs; none of short tasks, and of arms that are upper bounds."""
    found = (choose(result, part, labels) for part in result.parts if not part.short for labels in part.label_counts)
    return [one for one in found if one is not None]


def choose(result: SuiteResult, part: TaskResult, labels: int) -> Choice | None:
    """The choice on a task at a label count, by the seeds that all arms with runs have; None of fewer than two such arms."""
    arms = [arm for arm in result.arms if not arm.upper_bound]
    runs = {arm.name: part.by_seed(arm.name, labels) for arm in arms}
    candidates = [arm for arm in arms if runs[arm.name]]
    seeds = sorted(set.intersection(*(set(runs[arm.name]) for arm in candidates))) if candidates else []
    if len(candidates) < 2 or not seeds:
        return None
    cells = {arm.name: [runs[arm.name][seed] for seed in seeds] for arm in candidates}
    validation = {name: float(np.mean([cell.val for cell in own])) for name, own in cells.items()}
    best = max(candidates, key=lambda arm: validation[arm.name])
    first = _first(part, cells, labels) if len(seeds) > 1 else {}
    score = _score(part, cells[best.name], labels)
    return Choice(
        part,
        labels,
        best,
        tuple(candidates),
        tuple(seeds),
        selected_score(score, len(candidates)),
        score,
        first,
        _unresolved(part, best, candidates, labels, first),
        _alternative(result, part, best, candidates, validation, labels),
        tuple(arm for arm in arms if not runs[arm.name]),
    )


def _drawn(part: TaskResult, labels: int) -> float:
    """The labelled images of a seed, as a share of those that they were drawn from."""
    source = part.counts.get("labelled source", 0)
    return min(1.0, labels / source) if source else 0.0


def _rows(part: TaskResult, cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Scores of single test items (runs, items); where they aren't known the score of all (runs, 1)."""
    rows = [cell.item_scores() for cell in cells]
    if len({len(row) for row in rows}) == 1 and len(rows[0]):
        return np.stack(rows)
    return np.array([[part.score(cell)] for cell in cells])


def _score(part: TaskResult, cells: Sequence[Cell], labels: int) -> Difference:
    """The mean score of an arm's runs, as its difference from 0."""
    encoders, seeds = [cell.encoder for cell in cells], [cell.seed for cell in cells]
    rows, drawn = _rows(part, cells), _drawn(part, labels)
    if rows.shape[1] == 1:
        return paired_difference(rows[:, 0].tolist(), [0.0] * len(rows), encoders, seeds=seeds, drawn=drawn)
    clusters = part.clusters if len(part.clusters) == rows.shape[1] else None
    zeros = list(np.zeros_like(rows))
    return crossed_difference(list(rows), zeros, encoders, seeds=seeds, clusters=clusters, drawn=drawn)


def _first(part: TaskResult, cells: Mapping[str, Sequence[Cell]], labels: int) -> dict[str, float]:
    """How often each arm comes first in resamples; nothing where seeds differ by nothing."""
    tables = [_rows(part, own) for own in cells.values()]
    if len({table.shape for table in tables}) != 1:
        tables = [np.array([[part.score(cell)] for cell in own]) for own in cells.values()]
    encoders = list(zip(*([cell.encoder for cell in own] for own in cells.values()), strict=True))
    clusters = part.clusters if len(part.clusters) == tables[0].shape[1] else None
    means = joint_means(np.stack(tables), encoders, clusters=clusters, drawn=_drawn(part, labels))
    if np.sqrt(np.trace(means.units)) <= NO_SPREAD:
        return {}
    return dict(zip(cells, first_shares(means).tolist(), strict=True))


def _unresolved(
    part: TaskResult, best: Arm, candidates: Sequence[Arm], labels: int, first: Mapping[str, float]
) -> tuple[Arm, ...]:
    """The candidates that are not resolved to be worse than the selected one, the likeliest first."""
    found = []
    for arm in candidates:
        if arm == best:
            continue
        difference = difference_of(part, best.name, arm.name, labels)
        if difference is None or not selected_difference(difference, len(candidates)).low > 0:
            found.append(arm)
    return tuple(sorted(found, key=lambda arm: -first.get(arm.name, 0.0)))


def _alternative(
    result: SuiteResult,
    part: TaskResult,
    best: Arm,
    candidates: Sequence[Arm],
    validation: Mapping[str, float],
    labels: int,
) -> Alternative | None:
    """The arm that validates best among those that are cheaper to use; None where none is."""
    cheap = [arm for arm in candidates if cheaper(result.costs, part.name, arm.name, best.name)]
    if not cheap:
        return None
    arm = max(cheap, key=lambda arm: validation[arm.name])
    difference = difference_of(part, best.name, arm.name, labels)
    return None if difference is None else Alternative(arm, selected_difference(difference, len(candidates)))


def choice_sentences(found: Sequence[Choice]) -> list[str]:
    """Which arm to use at each place, and how certain that is, a sentence or two each."""
    return [_sentence(one) for one in found]


def reading_of(found: Sequence[Choice]) -> list[str]:
    """How the sentences are read; nothing where there are none."""
    return [READING] if any(one.known for one in found) else []


def _sentence(one: Choice) -> str:
    """The choice at a place in words."""
    what = (
        "of the test images classified right"
        if one.part.scores.is_accuracy
        else f"{one.part.figure} on the test images"
    )
    where = f"{capital(at_labels(one.labels))}{'' if one.part.name == CLASSIFY else f' on {one.part.name}'}"
    head = f"{where}, use {one.arm.label}: {percent(one.score.mean)} %{_ends(one.score)} {what}"
    if not one.known:
        why = "of one seed" if len(one.seeds) == 1 else "the same of every seed"
        return f"{head}; {why}, so that nothing is known of how certain that is."
    return f"{head}. {_certainty(one)}{_left_out(one)}"


def _ends(value: Range) -> str:
    """The ends of a score's interval in brackets, within what a score can be; empty where they aren't known."""
    if not value.known:
        return ""
    return f" ({percent(max(0.0, value.low))} to {percent(min(1.0, value.high))} %)"


def _certainty(one: Choice) -> str:
    """How often the selected arm comes first, and which others may be as good."""
    share = f"It comes first in {_share(one.first[one.arm.name])} of resamples"
    if not one.unresolved:
        return f"{share}, and is resolved to be better than every other arm."
    others = listed([f"{arm.label} ({_share(one.first[arm.name])})" for arm in one.unresolved])
    ahead = one.ahead
    more = f", and on the test images {ahead.label} comes first more often" if ahead is not None else ""
    return f"{share}; {others} may be as good{more}."


def _left_out(one: Choice) -> str:
    """The arms that could not be chosen."""
    if not one.left_out:
        return ""
    return f" Runs are missing of {listed([arm.label for arm in one.left_out])}."


def _share(share: float) -> str:
    """A share of resamples, whose own error is half a percent."""
    if share < LEAST_SHARE:
        return "under 1 %"
    return "over 99 %" if share > 1 - LEAST_SHARE else f"{100 * share:.0f} %"


def alternative_sentence(result: SuiteResult, one: Choice) -> str:
    """What the best cheaper arm gives up at a place, empty where none is; it depends on times that were measured."""
    if one.alternative is None:
        return ""
    arm, gives_up = one.alternative.arm, one.alternative.gives_up
    cost = cost_phrase(result.costs, one.part.name, arm.name, one.arm.name)
    mean, low, high = (signed(end).removeprefix("+") for end in (gives_up.mean, gives_up.low, gives_up.high))
    ends = f" ({low} to {high})" if gives_up.known else ""
    return f"Cheaper to use: {arm.label}, {cost}, gives up {mean} points{ends}."


def choice_table(found: Sequence[Choice]) -> Table:
    """The choice at every place, with the intervals of its score with and without allowing for the selection."""
    rows = []
    for one in found:
        plain = one.uncorrected
        rows.append(
            (
                place(one.part, one.labels),
                one.arm.label,
                percent(one.score.mean),
                _ends(one.score).strip(" ()%") or "unknown",
                f"{percent(plain.low)} to {percent(plain.high)}" if plain.known else "unknown",
                _share(one.first[one.arm.name]) if one.known else "unknown",
                ", ".join(f"{arm.label} ({_share(one.first[arm.name])})" for arm in one.unresolved)
                if one.known
                else "all",
                f"{len(one.candidates)}",
                f"{len(one.seeds)}",
            )
        )
    return Table(
        "Which arm to use: selected by its mean validation score; its test score in %, with a 95 % interval that allows for its "
        "having been selected, and without; how often it comes first in resamples of seeds, encoders and test images; arms that "
        "are not resolved to be worse, with how often these come first",
        ("place", "use", "score", "interval", "not allowing for it", "first", "not resolved", "arms", "seeds"),
        tuple(rows),
    )


def first_table(result: SuiteResult, chosen: Sequence[Choice]) -> Table:
    """How often each arm comes first at each place."""
    found = [one for one in chosen if one.known]
    rows = [
        (
            arm.label,
            *(_share(one.first[arm.name]) if arm.name in one.first else "missing" for one in found),
        )
        for arm in result.arms
        if any(arm.name in one.first for one in found)
    ]
    return Table(
        "How often each arm has the highest mean test score where seeds, encoders and test images are drawn again "
        "(10,000 resamples)",
        ("arm", *(place(one.part, one.labels) for one in found)),
        tuple(rows) if found else (),
    )
