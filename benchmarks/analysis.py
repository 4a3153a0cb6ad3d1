"""What a result says: arms against the reference, corrected for all planned comparisons; labels saved; all tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from .across_tasks import LEAST_TASKS, Aggregate, Ranks, average_ranks, interquartile_mean, probability_of_improvement
from .label_savings import LabelRange, Runs, labels_needed, labels_needed_interval
from .power import UnitPlan, plan_units
from .results import Arm, Cell, SuiteResult, TaskResult
from .sequential import sequential_p
from .stats import Difference, Verdict, crossed_difference, holm, paired_difference

ALPHA = 0.05
"""Chance of any false verdict among a report's comparisons with the reference, where no arm has an effect."""

GENERAL_ENCODERS = 3
"""From so many pretrained encoders on, a verdict is about the way to pretrain; below, about the encoders at hand."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the ``reference`` on a task at a label count; ``difference`` is None where no seed has both.

    ``p`` is corrected for all planned comparisons of the report (Holm); None where no verdict was planned: of a short task, an
    upper bound, an arm without pretraining. ``gain`` and ``margin``: what the arm that is behind would gain by longer training,
    and at most, by its convergence check; ``p_beyond`` is the corrected p-value of a difference that this can't make up for, by
    which verdicts go: none of a difference within ``margin``. ``missing``: planned seeds that don't have both runs.
    ``encoders``: how many pretrained encoders of the arm are in it.
    """

    part: TaskResult
    arm: Arm
    labels: int
    difference: Difference | None
    p: float | None
    reference: str = ""
    p_beyond: float | None = None
    gain: float = 0.0
    margin: float = 0.0
    missing: tuple[int, ...] = ()
    encoders: int = 0

    @property
    def tested(self) -> bool:
        """Whether a verdict was planned; else it is shown with its interval alone, not as higher or lower."""
        return self.p is not None

    @property
    def verdict(self) -> Verdict:
        """What is said of it."""
        if self.difference is None or self.p_beyond is None or self.p_beyond > ALPHA:
            return "not resolved"
        return "helps" if self.difference.mean > 0 else "hurts"

    @property
    def within_margin(self) -> bool:
        """Whether there is no verdict only because longer training could make up for the difference."""
        return self.p is not None and self.p <= ALPHA and self.verdict == "not resolved"

    @property
    def subject(self) -> str:
        """What a verdict is about, in the singular: the arm, or with few pretrained encoders these alone."""
        if not 0 < self.encoders < GENERAL_ENCODERS:
            return self.arm.label
        return f"{'this encoder' if self.encoders == 1 else 'this pair of encoders'} ({self.arm.label})"


@dataclass(frozen=True)
class LabelSaving:
    """The labels that the reference needs for what an arm reaches with ``labels``.

    ``needed``: None where its curve doesn't reach ``score``, and ``beyond`` says on which side. ``interval`` as in
    ``labels_needed_interval``, over seeds and test items.
    """

    arm: Arm
    labels: int
    score: float
    needed: float | None
    beyond: str
    interval: LabelRange | None


@dataclass(frozen=True)
class AcrossTasks:
    """All tasks at once: of each arm's test scores the interquartile mean, its probability of improving on the reference, ranks.

    Every task at every label count counts by itself for the first two; for the ranks, a task's mean over its label counts.
    """

    interquartile_means: Mapping[str, Aggregate]
    improvements: Mapping[str, Aggregate]
    ranks: Ranks


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a result."""

    result: SuiteResult

    def is_tested(self, part: TaskResult, arm: Arm) -> bool:
        """Whether verdicts on an arm were planned: one of the result's rivals, on a task that isn't short."""
        return not part.short and arm in self.result.rivals

    @property
    def planned(self) -> int:
        """How many comparisons the correction is for: all that were planned, finished or not."""
        return sum(
            len(part.label_counts)
            for part in self.result.parts
            for arm in self.result.arms
            if self.is_tested(part, arm)
        )

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every arm against the reference, by task and label count; of those tested, also what has no runs yet."""
        found = list(self._untested())
        p, beyond = dict[str, float](), dict[str, float]()
        for key, one in found:
            if self.is_tested(one.part, one.arm):
                p[key], beyond[key] = self._p(one, 0.0, 0.0), self._p(one, one.gain, one.margin)
        p, beyond = holm(p), holm(beyond)
        return tuple(replace(one, p=p.get(key), p_beyond=beyond.get(key)) for key, one in found)

    def _untested(self) -> Iterator[tuple[str, Comparison]]:
        """The comparisons without p-values, and a key for each."""
        for part in self.result.parts:
            for labels, arm in product(part.label_counts, self.result.arms):
                reference = self.result.reference(part, labels)
                if arm.name == reference:
                    continue
                pairs = pairs_of(part, arm.name, reference, labels)
                difference = paired(pairs, part) if pairs else None
                behind = reference if difference is None or difference.mean > 0 else arm.name
                there = {one.seed for one, _ in pairs}
                gain, margin = _remaining_gain(part, behind, labels)
                yield (
                    f"{part.name} {arm.name} {labels}",
                    Comparison(
                        part,
                        arm,
                        labels,
                        difference,
                        None,
                        reference,
                        gain=gain,
                        margin=margin,
                        missing=tuple(seed for seed in part.seeds.get(labels, ()) if seed not in there),
                        encoders=len({one.encoder for one, _ in pairs if one.encoder >= 0}),
                    ),
                )

    def _p(self, one: Comparison, gain: float, limit: float) -> float:
        """The p-value of a planned comparison before Holm's correction; 1 of one without runs."""
        if one.difference is None:
            return 1.0
        return p_at_look(one.difference.p_beyond(gain, limit), one.difference.units, self.result.looks)

    def of(self, part: TaskResult) -> tuple[Comparison, ...]:
        """Those of a task."""
        return tuple(one for one in self.comparisons if one.part.name == part.name)

    def tested(self, part: TaskResult) -> tuple[Comparison, ...]:
        """Those of a task that verdicts were planned on."""
        return tuple(one for one in self.of(part) if one.tested)

    def between(self, part: TaskResult, arm: str, other: str, labels: int) -> tuple[Difference | None, float | None]:
        """The difference of any two arms; and its corrected p-value, where a verdict on it was planned."""
        if other != self.result.reference(part, labels):
            return difference_of(part, arm, other, labels), None
        found = next(one for one in self.of(part) if one.arm.name == arm and one.labels == labels)
        return found.difference, found.p

    def plan(self, one: Comparison) -> UnitPlan | None:
        """How many encoders or seeds resolve the suite's ``effect`` at the corrected level; None without it or a spread."""
        effect = self.result.effect
        if one.difference is None or effect is None:
            return None
        return plan_units(one.difference, effect, max(1, self.planned))

    def label_savings(self, part: TaskResult) -> list[LabelSaving]:
        """What pretrained arms save in labels, by the reference's runs at each label count; none with one count."""
        reference = {labels: self.result.reference(part, labels) for labels in sorted(part.label_counts)}
        counts = [labels for labels, name in reference.items() if part.by_seed(name, labels)]
        curve = [_runs(part, reference[labels], labels) for labels in counts]
        if len(counts) < 2:
            return []
        means = [float(np.mean([row.mean() for row in runs.values()])) for runs in curve]
        found = []
        for arm, labels in product(self.result.arms, counts):
            runs = _runs(part, arm.name, labels)
            if arm.name == reference[labels] or not arm.pretrained or not runs:
                continue
            score = float(np.mean([row.mean() for row in runs.values()]))
            (needed,) = labels_needed(counts, [score], means)
            beyond = (
                "" if needed is not None else "more than were tried" if score > max(means) else "fewer than were tried"
            )
            found.append(LabelSaving(arm, labels, score, needed, beyond, labels_needed_interval(counts, runs, curve)))
        return found

    def across_tasks(self) -> AcrossTasks | None:
        """All tasks at once, of arms with runs at every place; None below ``LEAST_TASKS`` tasks."""
        parts = [part for part in self.result.parts if not part.short]
        places = [(part, labels) for part in parts for labels in part.label_counts]
        scores = {
            arm.name: [[part.score(cell) for cell in part.cells_of(arm.name, labels)] for part, labels in places]
            for arm in self.result.arms
        }
        scores = {name: runs for name, runs in scores.items() if all(runs)}
        references = [self.result.reference(part, labels) for part, labels in places]
        if len(parts) < LEAST_TASKS or len(scores) < 2:
            return None
        ours = [
            [part.score(cell) for cell in part.cells_of(reference, labels)]
            for (part, labels), reference in zip(places, references, strict=True)
        ]
        tested = [
            arm.name
            for arm in self.result.arms
            if arm.name in scores and arm.pretrained and set(references) != {arm.name}
        ]
        return AcrossTasks(
            {name: interquartile_mean(runs) for name, runs in scores.items()},
            {name: probability_of_improvement(scores[name], ours) for name in tested} if all(ours) else {},
            average_ranks(
                {
                    name: [
                        float(np.mean([part.mean_score(name, labels) for labels in part.label_counts]))
                        for part in parts
                    ]
                    for name in scores
                }
            ),
        )


def p_at_look(p: float, units: int, looks: Sequence[int]) -> float:
    """The p-value of a result read with so many units, adjusted for the ``looks`` that were planned; 1 before the first."""
    if not looks:
        return p
    if units < looks[0]:
        return 1.0
    reached = [*(look for look in looks if look < units), units]
    return sequential_p(p, len(reached) - 1, [*reached, *(look for look in looks if look > units)])


def _remaining_gain(part: TaskResult, arm: str, labels: int) -> tuple[float, float]:
    """What longer training brings an arm, and at most; 0 where it isn't trained in steps, and so not checked."""
    checks = [check for check in part.checks if (check.arm, check.labels) == (arm, labels)]
    return (max(0.0, checks[0].gain), checks[0].limit) if checks else (0.0, 0.0)


def _runs(part: TaskResult, arm: str, labels: int) -> Runs:
    """The runs of an arm by seed: scores of single test items, where all runs have them."""
    cells = part.by_seed(arm, labels)
    if all(cell.items for cell in part.cells):
        return {seed: cell.item_scores() for seed, cell in cells.items()}
    return {seed: np.array([part.score(cell)]) for seed, cell in cells.items()}


def difference_of(part: TaskResult, arm: str, other: str, labels: int) -> Difference | None:
    """The paired difference of test scores over the seeds that both arms have, and over test items where they are known."""
    pairs = pairs_of(part, arm, other, labels)
    return paired(pairs, part) if pairs else None


def pairs_of(part: TaskResult, arm: str, other: str, labels: int) -> list[tuple[Cell, Cell]]:
    """The runs of two arms with the same seed, and the same encoder where both ran a seed with several; by seed."""
    pairs = []
    ours, theirs = part.cells_of(arm, labels), part.cells_of(other, labels)
    for seed in sorted({cell.seed for cell in ours} & {cell.seed for cell in theirs}):
        one, two = ([cell for cell in cells if cell.seed == seed] for cells in (ours, theirs))
        single = len(one) == 1 or len(two) == 1
        pairs += [(a, b) for a, b in product(one, two) if single or a.encoder == b.encoder]
    return pairs


def paired(pairs: Sequence[tuple[Cell, Cell]], part: TaskResult) -> Difference:
    """The difference of pairs of runs at a label count, at least one, by what of them was drawn independently."""
    drawn = [(one.encoder, two.encoder) for one, two in pairs]
    encoders = [sorted(set(drawn)).index(pair) for pair in drawn]
    seeds = [one.seed for one, _ in pairs]
    labels, source = pairs[0][0].labels, part.counts.get("labelled source", 0)
    share = min(1.0, labels / source) if source else 0.0
    items = [[cell.item_scores() for cell in cells] for cells in zip(*pairs, strict=True)]
    lengths = {len(row) for rows in items for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        ours, theirs = ([part.score(cell) for cell in cells] for cells in zip(*pairs, strict=True))
        return paired_difference(ours, theirs, encoders, seeds=seeds, drawn=share)
    clusters = part.clusters if len(part.clusters) in lengths else None
    return crossed_difference(items[0], items[1], encoders, seeds=seeds, clusters=clusters, drawn=share)
