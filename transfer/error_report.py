"""The parts of a report that show how a model errs: its confusion matrix, and precision over recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.report.charts import CurveChart
from .metrics import RECALLS, Scores

MOST_IN_MATRIX = 30
"""Classes that a confusion matrix is shown for as a table; of more, the commonest confusions are listed alone."""
CONFUSIONS = 10
MATRIX_CAPTIONS = {
    "images": "Confusion matrix: images of the class in the row that were taken for the class of the column",
    "objects": (
        "Confusion matrix of objects: those of the class in the row that were found as the class of the column, by boxes of "
        "score 0.5 and overlap (IoU) 0.5 or more"
    ),
}
OVERLAPS = {
    "AP": "mean over overlaps (IoU) from 0.5 to 0.95",
    "AP50": "overlap (IoU) 0.5 or more",
    "AP75": "overlap (IoU) 0.75 or more",
}


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as it is shown: of each cell the count, its share of the row, and whether it is right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float, bool], ...]], ...]


def confusion_matrix(scores: Scores) -> Matrix | None:
    """The matrix for a page; None without one, and of too many classes."""
    if scores.confusion is None or len(scores.confusion) > MOST_IN_MATRIX:
        return None
    names, columns = scores.confusion_names
    classes = _classes(scores)
    rows = tuple(
        (name, tuple((count, count / max(1, sum(row)), number == column < classes) for column, count in enumerate(row)))
        for number, (name, row) in enumerate(zip(names, scores.confusion, strict=True))
    )
    return Matrix(MATRIX_CAPTIONS[scores.confusion_of], tuple(columns), rows)


def confusions(scores: Scores) -> list[str]:
    """The commonest confusions, in words."""
    found = [
        (-count, true, taken)
        for true, row in enumerate(scores.confusion or ())
        for taken, count in enumerate(row)
        if count and true != taken
    ]
    return [_confusion(scores, true, taken) for _, true, taken in sorted(found)[:CONFUSIONS]]


def _confusion(scores: Scores, true: int, taken: int) -> str:
    matrix, (names, _), none = scores.confusion or (), scores.confusion_names, _classes(scores)
    count, total = matrix[true][taken], sum(matrix[true])
    if true == none:
        return f"{names[taken]} found where there is none: {count:,} of {sum(row[taken] for row in matrix):,} found"
    if taken == none:
        return f"{names[true]} missed: {count:,} of {total:,}"
    return f"{names[true]} taken for {names[taken]}: {count:,} of {total:,}"


def _classes(scores: Scores) -> int:
    """The number of classes in the matrix: the place of the row and column of no class, where it has such."""
    return len(scores.confusion or ()) - (scores.confusion_of == "objects")


def precision_recall_charts(scores: Scores) -> list[CurveChart]:
    """A chart a measure: precision over recall of each class that has a curve, and of the mean over all classes."""
    return [_precision_recall(scores, measure, curves) for measure, curves in scores.precision_recall.items()]


def _precision_recall(scores: Scores, measure: str, curves: Mapping[str, Sequence[float]]) -> CurveChart:
    areas = {name: f"{100 * sum(values) / len(values):.2f}" for name, values in curves.items()}
    lines = tuple(
        (f"{name}: {areas[name]}", [(100 * recall, 100 * value) for recall, value in zip(RECALLS, values, strict=True)])
        for name, values in curves.items()
    )
    own = measure.removeprefix("mask_")
    left_out = len(scores.per_class) - (len(curves) - 1)
    some = f"; {left_out:,} classes with fewer objects, or none, have no curve of their own" if left_out else ""
    return CurveChart(
        key=f"recall-{measure}",
        caption=(
            f"{measure}: precision over recall of {'boxes' if own == measure else 'masks'}, {OVERLAPS[own]}, on the "
            f"{scores.count:,} {scores.split} images (1 seed); in the legend the area below each curve, which is {measure}, in "
            f"%{some}"
        ),
        label="precision, %",
        lines=lines,
        below="recall, %",
        ends=(-2, 102),
        words="; ".join(f"{measure} of {name}: {area} %" for name, area in areas.items()),
    )
