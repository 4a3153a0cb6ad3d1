"""summary.html: the configuration, scores, curves and example predictions of a finished transfer, in a page."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.files import atomic_write_bytes
from ..core.optional_imports import installed_versions
from ..core.progress import duration
from ..core.public_names import public_config
from ..core.report.charts import MAX_LINES, CurveChart, points
from ..core.report.html import Table, data_url, describe_machine, keys_table, render
from ..version import __version__
from .error_report import confusion_matrix, confusions, precision_recall_charts
from .label_counts import LabelCounts
from .metrics import NOT_SHARES, Scores
from .visualize import ExampleImage

SUMMARY_FILE = "summary.html"
LIBRARIES = ("torch", "torchvision", "timm", "torchmetrics", "numpy", "pillow", "detectron2", "onedl-mmsegmentation")
FOLDED_FROM = 40
"""Rows from which a table is folded away."""
COUNTS = ("count", "images", "objects", "pixels", "boxes", "instances")
"""Figures of a class that are numbers of something, not shares."""


def write_summary(
    folder: Path,
    *,
    title: str,
    config: Mapping[str, object],
    scores: Scores,
    curves: Sequence[Mapping[str, float]] = (),
    pictures: Sequence[ExampleImage] = (),
    notes: Sequence[str] = (),
    seconds: float | None = None,
    labels: LabelCounts | None = None,
    batch: tuple[bytes, str] | None = None,
) -> Path:
    """Write summary.html into a folder, all at once; it needs nothing from elsewhere.

    ``title``: what was done; ``config``: the run's keys; ``curves``: the records of its metrics.jsonl; ``notes``: what its
    reader should beware of; ``seconds`` of training; ``batch``: the contact sheet of the first batch, and its kind.
    """
    config = public_config(config)
    html = render(
        Path(__file__).with_name("report.html.j2"),
        title=f"{title}: {config.get('out', folder.name)}",
        headline=_headline(scores),
        split=scores.split,
        notes=list(notes),
        start=_start(config),
        figures=_metrics_table(scores),
        classes=_class_table(scores),
        empty=_without_examples(scores),
        matrix=confusion_matrix(scores),
        confusions=confusions(scores),
        recalls=[chart.inline() for chart in precision_recall_charts(scores)],
        charts=[chart.inline() for chart in curve_charts(curves)],
        pictures=[
            (heading, nothing, [(data_url(picture.data, picture.kind), picture.caption) for picture in shown])
            for heading, nothing, shown in _sorted(pictures)
        ],
        recipe=keys_table(config),
        versions={"maelift": __version__, "python": platform.python_version(), **installed_versions(*LIBRARIES)},
        machine=describe_machine(),
        spent=None if seconds is None else duration(seconds),
        folded_from=FOLDED_FROM,
        labels=labels,
        mixed=any(config.get(key) for key in ("mixup", "cutmix", "random_erasing")),
        batch=None if batch is None else data_url(*batch),
    )
    path = folder / SUMMARY_FILE
    atomic_write_bytes(path, html.encode("utf-8", "replace"))  # file names need not be UTF-8
    return path


def _headline(scores: Scores) -> str:
    measured = [(name, value) for name, value in scores.metrics.items() if value is not None]
    where = f"{scores.count:,} {scores.split} images"
    if not measured:
        return f"There was nothing to measure on the {where}."
    name, value = measured[0]
    return f"{name} {_percent(value)} % on the {where}"


def _start(config: Mapping[str, object]) -> str:
    """What training began with, in a sentence."""
    if config.get("init") == "scratch":
        return "Trained from nothing, with random weights."
    kind = {"supervised": "weights that were trained with labels", "encoder": "a pretrained encoder"}
    name = config.get("encoder")
    begun = kind.get(str(config.get("init")), "an encoder")
    return f"Trained from {begun}: {name}." if name else f"Trained from {begun}."


def _metrics_table(scores: Scores) -> Table:
    rows = tuple(
        (f"{name} (not a share)", f"{value:.3f}")
        if name in NOT_SHARES and value is not None
        else (name, _percent(value))
        for name, value in scores.metrics.items()
    )
    return Table(f"Figures in % on the {scores.count:,} {scores.split} images (1 seed)", ("figure", "value"), rows)


def _class_table(scores: Scores) -> Table | None:
    if not scores.per_class:
        return None
    figures = list(dict.fromkeys(name for values in scores.per_class.values() for name in values))
    rows = tuple(
        (name, *(_cell(figure, values.get(figure)) for figure in figures)) for name, values in scores.per_class.items()
    )
    caption = f"Each class on the {scores.count:,} {scores.split} images, shares in % (1 seed)"
    return Table(caption, ("class", *figures), rows)


def _cell(figure: str, value: float | None) -> str:
    if value is not None and math.isfinite(value) and figure in COUNTS:
        return f"{round(value):,}"
    return _percent(value)


def _without_examples(scores: Scores) -> list[str]:
    """The classes that nothing could be measured of."""
    names = list(scores.per_class)
    if scores.confusion is not None and len(scores.confusion) == len(names):
        return [name for name, row in zip(names, scores.confusion, strict=True) if not sum(row)]
    return [
        name
        for name, values in scores.per_class.items()
        if not any(value is not None and math.isfinite(value) for key, value in values.items() if key not in COUNTS)
    ]


def _sorted(pictures: Sequence[ExampleImage]) -> list[tuple[str, str, list[ExampleImage]]]:
    """The pictures under two headings, the wrong ones first: they say more."""
    if not pictures:
        return []
    wrong, right = ([picture for picture in pictures if picture.right is which] for which in (False, True))
    return [
        ("Wrong predictions", "None among the images that were examined.", wrong),
        ("Right predictions", "None among the images that were examined.", right),
    ]


def curve_charts(curves: Sequence[Mapping[str, float]]) -> list[CurveChart]:
    """The charts of the records of a metrics.jsonl: losses, validation figures, learning rate, those there are."""
    names = list(dict.fromkeys(name for record in curves for name in record if name != "step"))
    losses = [name for name in names if "loss" in name]
    figures = [name for name in names if name.startswith("val/") and "loss" not in name]
    found = []
    for key, caption, label, chosen, factor in (
        ("loss", "Loss while training", "loss", losses, 1.0),
        ("validation", "Figures of the validation images while training", "%", figures, 100.0),
        ("rate", "Learning rate", "learning rate", [name for name in names if name == "lr"], 1.0),
    ):
        lines = [(name, values) for name in chosen[:MAX_LINES] if (values := points(curves, name, factor))]
        if lines:
            left_out = f" (the first {MAX_LINES} of {len(chosen)})" if len(chosen) > MAX_LINES else ""
            found.append(CurveChart(key, caption + left_out, label, tuple(lines)))
    return found


def _percent(share: float | None) -> str:
    return "none" if share is None or not math.isfinite(share) else f"{100 * share:.2f}"
