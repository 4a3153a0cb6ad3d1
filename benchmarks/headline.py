"""The first screen of a report: one sentence without statistics, what it rests on, and cost beside gain."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.progress import duration
from ..core.report.html import Table
from ..transfer.tasks import CLASSIFY
from .analysis import Comparison, Comparisons
from .results import AUTO, Arm, SuiteResult, TaskResult
from .score_text import at_labels, listed, place, pretraining_time, signed

READING = (
    "In the plot a dot is the difference that was measured, and its bar where the true one lies with a confidence of 95 %: a bar "
    "that crosses the line of no difference may be luck, and of several comparisons one that just clears it may be, too."
)

MAY_BE = {False: "may be luck", True: "longer training could make up for"}
"""Of a difference without a verdict, by whether that is only because an arm may still gain."""


def headline(found: Comparisons) -> str:
    """The answer to the suite's question in one sentence.

    It is of the first pretrained arm of the suite, which no score has chosen, against the arm that all are compared with.
    """
    result = found.result
    planned = [one for one in found.comparisons if one.tested]
    there = [one for one in planned if one.difference is not None]
    if not there:
        return _nothing(result, planned)
    mine = [one for one in there if one.arm.pretrained]
    if not mine or any(arm.pretrained for arm in result.arms if arm.name == result.baseline):
        return _of_all(result, there)
    first = next(arm for arm in result.arms if any(one.arm == arm for one in mine))
    return _of_one(result, [one for one in mine if one.arm == first])


def _nothing(result: SuiteResult, planned: Sequence[Comparison]) -> str:
    """Why nothing is concluded."""
    if len(result.arms) == 1:
        return f"Nothing is compared: {result.arms[0].label} is the only arm."
    if planned:
        others = "the arms without pretraining" if result.baseline == AUTO else result.label(result.baseline)
        return f"Nothing can be said yet: runs are missing to compare {planned[0].arm.label} with {others}."
    if result.parts and all(part.short for part in result.parts):
        return "Nothing is concluded: these are short runs for demonstration only."
    return "Nothing is compared: no pretrained arm stands beside one without pretraining."


def _of_one(result: SuiteResult, there: Sequence[Comparison]) -> str:
    """The sentence on one arm, and what both scored at each place."""
    references = list(dict.fromkeys(result.label(one.reference) for one in there))
    against = _against(result, there, references)
    name = min(there, key=lambda one: one.encoders).subject
    helped, hurt = ([one for one in there if one.verdict == verdict] for verdict in ("helps", "hurts"))
    rest = [one for one in there if one.verdict == "not resolved"]
    if len(helped) == len(there):
        head = f"{name} helps, compared with {against}"
    elif len(hurt) == len(there):
        head = f"{name} does worse than {against}"
    elif helped:
        parts = [f"{name} helps {_compared_at(helped)}, compared with {against}"]
        parts += [f"it does worse {_compared_at(hurt)}"] if hurt else []
        parts += [f"{_compared_at(rest)} it is not shown to help"] if rest else []
        head = "; ".join(parts)
    else:
        head = f"{name} is not shown to beat {against}{f', and does worse {_compared_at(hurt)}' if hurt else ''}"
    scores = "; ".join(_scores(result, one, len(references) > 1, one is there[0]) for one in there)
    return f"{head[:1].upper()}{head[1:]}: {scores}."


def _against(result: SuiteResult, there: Sequence[Comparison], references: Sequence[str]) -> str:
    """What an arm is compared with, in words."""
    if sum(not arm.pretrained for arm in result.arms) == 1:
        return f"{references[0]}, the only method without pretraining"
    if any(result.best_unpretrained(one.part, one.labels) != one.reference for one in there):
        return f"{listed(references)}, which is not the best method without pretraining"
    return f"the best method without pretraining{f' ({references[0]})' if len(references) == 1 else ''}"


def _compared_at(found: Sequence[Comparison]) -> str:
    """Where comparisons are made: "with 25 and 50 labels", "with 100 labels on detect"."""
    by_task: dict[str, list[int]] = {}
    for one in found:
        by_task.setdefault(one.part.name, []).append(one.labels)
    several = len({one.part.name for one in found}) > 1 or found[0].part.name != CLASSIFY
    words = []
    for task, counts in by_task.items():
        numbers = listed([f"{labels:,}" for labels in counts])
        words.append(f"with {numbers} label{'' if counts == [1] else 's'}{f' on {task}' if several else ''}")
    return listed(words)


def _scores(result: SuiteResult, one: Comparison, named: bool, first: bool) -> str:
    """What both arms scored at a place, over the seeds that both have; the ``first`` says what the figures are."""
    part, labels = one.part, one.labels
    runs = [part.by_seed(name, labels) for name in (one.arm.name, one.reference)]
    shared = sorted(runs[0].keys() & runs[1].keys())
    mine, theirs = (100 * sum(part.score(cells[seed]) for seed in shared) / len(shared) for cells in runs)
    by = f" by {result.label(one.reference)}" if named else ""
    where = at_labels(labels) if part.name == CLASSIFY else f"on {part.name} {at_labels(labels)}"
    luck = f", a difference that {MAY_BE[one.within_margin]}" if one.verdict == "not resolved" else ""
    if part.scores.is_accuracy:
        of = " of the test images are classified right" if first else ""
        return f"{where}, {mine:.1f} %{of} instead of {theirs:.1f} %{by}{luck}"
    return f"{where}, {part.figure} is {mine:.1f} % instead of {theirs:.1f} %{by}{luck}"


def _of_all(result: SuiteResult, there: Sequence[Comparison]) -> str:
    """The sentence of a suite whose arms are compared with one that is pretrained itself: which are better, which worse."""
    words = {"helps": "better", "hurts": "worse", "not resolved": "with a difference that may be luck"}
    groups = []
    for verdict, word in words.items():
        arms = list(dict.fromkeys(one.arm.label for one in there if one.verdict == verdict))
        found = [
            f"{label} {_compared_at([one for one in there if one.arm.label == label and one.verdict == verdict])}"
            for label in arms
        ]
        groups += [f"{word}: {listed(found)}"] if found else []
    return f"Compared with {result.label(result.baseline)}, {'; '.join(groups)}."


def notes_of(found: Comparisons) -> list[str]:
    """What the first sentence rests on: labels, and how the plot is read."""
    result = found.result
    if all(part.short for part in result.parts):
        return []
    better = [
        f"{result.label(best)} {at_labels(labels)}{'' if part.name == CLASSIFY else f' on {part.name}'}"
        for part in result.parts
        for labels in part.label_counts
        if not part.short
        and (best := result.best_unpretrained(part, labels)) not in ("", result.reference(part, labels))
        and not any(arm.pretrained for arm in result.arms if arm.name == result.baseline)
    ]
    notes = [f"Better on validation, without pretraining too: {listed(better)}."] if better else []
    return [*notes, labels_used(result), READING]


def labels_used(result: SuiteResult) -> str:
    """Which labels the arms of each task have seen, those of validation among them."""
    sentences = []
    for part in result.parts:
        if part.short:
            continue
        counts = listed([f"{labels:,}" for labels in part.label_counts], "or")
        task = "" if part.name == CLASSIFY else f" on {part.name}"
        chosen = (
            f", of which the choice of rate and length is part ({part.cross_folds}-fold cross-validation)"
            if part.cross_folds
            else f" to train with, and {part.counts['validation']:,} labelled validation images that settings and weights are "
            "chosen by"
        )
        sentences.append(f"Labels used{task}: {counts}{chosen}; the {part.counts['test']:,} test images are read last.")
    return " ".join(sentences)


def cost_table(found: Comparisons) -> Table:
    """What each arm cost, and what it gained over the arm that all are compared with."""
    result, rows = found.result, []
    parts = [(part, labels) for part in result.parts if not part.short for labels in part.label_counts]
    best = "the best without pretraining" if result.baseline == AUTO else result.label(result.baseline)
    for arm in result.arms:
        cells = [cell for part in result.parts for cell in part.cells if cell.arm == arm.name]
        tuned = sum(part.tuning_seconds.get(arm.name, 0.0) for part in result.parts)
        rows.append(
            (
                arm.label,
                pretraining_time(arm),
                duration(tuned + sum(cell.seconds for cell in cells)),
                *(_gain(found, part, labels, arm) for part, labels in parts),
            )
        )
    return Table(
        f"Cost and gain: computing time on this machine, all seeds together; points of the score more than {best}",
        ("arm", "pretraining", "tuning and training", *(place(part, labels) for part, labels in parts)),
        tuple(rows),
    )


def _gain(found: Comparisons, part: TaskResult, labels: int, arm: Arm) -> str:
    """The points that an arm gained at a place."""
    if found.result.reference(part, labels) == arm.name:
        return "compared with"
    one = next((one for one in found.of(part) if one.arm == arm and one.labels == labels), None)
    return "missing" if one is None or one.difference is None else signed(one.difference.mean)
