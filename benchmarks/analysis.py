"""Paired differences of a result's arms from the baseline, corrected for multiple comparisons; verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from .results import Arm, Cell, SuiteResult, TaskResult
from .stats import Difference, Verdict, crossed_difference, holm, paired_difference

ALPHA = 0.05
"""Chance of any false verdict among a report's comparisons with the baseline, where no arm has an effect."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline on a task at a label count; ``difference`` is None where no seed has both.

    ``p`` is corrected for all comparisons of the report (Holm); None on a short task, of which nothing is concluded.
    """

    part: TaskResult
    arm: Arm
    labels: int
    difference: Difference | None
    p: float | None

    @property
    def verdict(self) -> Verdict:
        """What is said of it."""
        if self.difference is None or self.p is None or self.p > ALPHA:
            return "not resolved"
        return self.difference.verdict


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a result."""

    result: SuiteResult

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every arm against the baseline, by task and label count."""
        found = [
            (part, labels, arm, difference_of(part, arm.name, self.result.reference(part, labels), labels))
            for part in self.result.parts
            for labels, arm in product(part.label_counts, self.result.rivals)
        ]
        p_values = holm(
            {
                f"{part.name} {arm.name} {labels}": difference.p
                for part, labels, arm, difference in found
                if difference is not None and not part.short
            }
        )
        return tuple(
            Comparison(part, arm, labels, difference, p_values.get(f"{part.name} {arm.name} {labels}"))
            for part, labels, arm, difference in found
        )

    def of(self, part: TaskResult) -> tuple[Comparison, ...]:
        """Those of a task."""
        return tuple(one for one in self.comparisons if one.part.name == part.name)

    def between(self, part: TaskResult, arm: str, other: str, labels: int) -> tuple[Difference | None, float | None]:
        """The difference of any two arms; and its corrected p-value, where the other is the baseline."""
        if other != self.result.reference(part, labels) or arm not in [one.name for one in self.result.rivals]:
            return difference_of(part, arm, other, labels), None
        found = next(one for one in self.of(part) if one.arm.name == arm and one.labels == labels)
        return found.difference, found.p


def difference_of(part: TaskResult, arm: str, other: str, labels: int) -> Difference | None:
    """The paired difference of test scores over the seeds that both arms have, and over test items where they are known."""
    mine, theirs = part.by_seed(arm, labels), part.by_seed(other, labels)
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    return paired([(mine[seed], theirs[seed]) for seed in seeds], part)


def paired(pairs: Sequence[tuple[Cell, Cell]], part: TaskResult) -> Difference:
    """The difference of pairs of runs, at least one, by Student's t over what of them was drawn independently."""
    drawn = [(one.encoder, two.encoder) for one, two in pairs]
    encoders = [sorted(set(drawn)).index(pair) for pair in drawn]
    items = [[cell.item_scores() for cell in cells] for cells in zip(*pairs, strict=True)]
    lengths = {len(row) for rows in items for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        ours, theirs = ([part.score(cell) for cell in cells] for cells in zip(*pairs, strict=True))
        return paired_difference(ours, theirs, encoders)
    return crossed_difference(items[0], items[1], encoders)
