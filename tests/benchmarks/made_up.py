"""Results that no suite brought about, for reports to be written of; and what is in a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from maelift.benchmarks.results import (
    Arm,
    Cell,
    ConvergenceCheck,
    Curve,
    SuiteResult,
    TaskResult,
    Trial,
    TuningRecord,
    pack_items,
)
from maelift.benchmarks.stats import gain_limit

Accuracies = Mapping[tuple[str, int], tuple[float, ...]]

ACCURACIES: Accuracies = {
    ("mae", 100): (0.744, 0.751, 0.739, 0.760),
    ("supervised", 100): (0.80, 0.81, 0.79, 0.80),
    ("scratch", 100): (0.672, 0.681, 0.660, 0.683),
    ("mae", 1000): (0.84, 0.85, 0.83, 0.84),
    ("supervised", 1000): (0.87, 0.88, 0.87, 0.88),
    ("scratch", 1000): (0.84, 0.84, 0.84, 0.85),
}
ARMS = (
    Arm("mae", "MAE on the pool", "pretrained on the pool without its labels", 72.0),
    Arm("supervised", "supervised on the pool", "saw the task's own labels: an upper bound", 41.0, upper_bound=True),
    Arm("scratch", "scratch", "sees only the labelled examples", 0.0, pretrained=False),
)


def made_up(accuracies: Accuracies = ACCURACIES, **changes: object) -> SuiteResult:
    """A result with these test accuracies, one for each seed; ``changes`` are of the result or of its one part."""
    own = {name: changes.pop(name) for name in ("cells", "tunings", "checks", "counts") if name in changes}
    names = {arm for arm, _ in accuracies}
    result = SuiteResult(
        name="made-up",
        title="Does it help?",
        baseline="scratch",
        arms=tuple(arm for arm in ARMS if arm.name in names),
        parts=(replace(part(accuracies), **own),),  # type: ignore[arg-type]
        pool=50_000,
        guards=("No image of the pool is in test too, by content.",),
        reconstructions=None,
        config_yaml="suite: made-up\n",
        versions={"maelift": "0.1.0"},
        machine="cpu, 2 cores",
        seconds_total=1100.0,
        pretraining_seeds=1,
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def part(scores: Accuracies, kind: str = "classify") -> TaskResult:
    """A task with these test scores, one for each seed."""
    counts = tuple(sorted({labels for _, labels in scores}))
    arms = sorted({arm for arm, _ in scores})
    return TaskResult(
        name=kind,
        kind=kind,
        label_counts=counts,
        seeds={labels: tuple(range(len(scores[arms[0], labels]))) for labels in counts},
        cells=tuple(
            cell(arm, labels, seed, score, kind)
            for (arm, labels), by_seed in scores.items()
            for seed, score in enumerate(by_seed)
        ),
        tunings=tuple(tuning(arm, labels, (0.4, 0.6, 0.5, 0.4)) for arm, labels in scores),
        checks=tuple(check(arm, labels, gain=0.001) for arm, labels in scores),
        counts={"labelled source": 9_000, "validation": 1_000, "test": 10_000},
        recipes={arm: {"lr": 1e-3} for arm in arms},
    )


def cell(arm: str, labels: int, seed: int, accuracy: float, kind: str = "classify") -> Cell:
    """A run that ended with this test score."""
    steps = (10, 20, 40)
    curve = Curve(steps, (accuracy - 0.2, accuracy - 0.1, accuracy), steps, (2.0, 1.0, 0.5))
    test: dict[str, float | None] = {  # type: ignore[assignment]
        "classify": {"top1": accuracy, "top5": 0.97, "balanced": accuracy},
        "detect": {"AP": accuracy, "AP50": accuracy + 0.1, "mask_AP": None},
        "segment": {"mIoU": accuracy, "aAcc": 0.9, "mAcc": accuracy},
    }.get(kind, {})
    key, encoder = f"{kind}-{arm}-{labels}-{seed}", -1 if arm == "scratch" else 0
    return Cell(arm, labels, seed, 1e-3, 40, accuracy, test, curve, 20.0, key, encoder)


def tuning(arm: str, labels: int, val_accuracy: tuple[float, ...], seeds: int = 4) -> TuningRecord:
    """Trials of as many of the rates, from the highest down, as there are accuracies, by each seed; the best is chosen."""
    rates = (5e-4, 1e-3, 2e-3, 4e-3)[-len(val_accuracy) :]
    best = val_accuracy.index(max(val_accuracy))
    trials = tuple(
        Trial(seed, rate, 200, "", value, place == best)
        for seed in range(seeds)
        for place, (rate, value) in enumerate(zip(rates, val_accuracy, strict=True))
    )
    edge = {0: "lowest", len(rates) - 1: "highest"}.get(best, "")
    return TuningRecord(arm, labels, trials, per_seed=True, edge=edge)


def check(arm: str, labels: int, gain: float) -> ConvergenceCheck:
    """What 1,600 steps in place of 400 brought, by four seeds that nearly agree."""
    at = (0.70, 0.71, 0.70, 0.71)
    longer = tuple(value + gain + noise for value, noise in zip(at, (0.001, -0.001, 0.001, -0.001), strict=True))
    found, limit = gain_limit(at, longer, None)
    return ConvergenceCheck(arm, labels, 400, (0, 1, 2, 3), at, longer, found, limit, gain < 0.01, 1600)


class Page(HTMLParser):
    """What is in a page: its text, tables as rows of cells, tags with attributes, ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(path.read_text())

    @property
    def text(self) -> str:
        """All of its text, on one line."""
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def values(self, *names: str) -> list[str]:
        """The values of attributes, wherever they are."""
        return [value for _, attributes in self.tags for name in names if (value := attributes.get(name))]


def answers(shares: tuple[float, ...], seed: int, count: int = 400) -> list[str]:
    """Which of the test images, some of them harder, each seed got right, as a cell keeps it."""
    generator = np.random.default_rng(seed)
    hard = np.random.default_rng(0).normal(0, 0.2, count)
    return [pack_items((generator.random(count) < np.clip(share + hard, 0, 1)).astype(float)) for share in shares]


def answered(accuracies: Accuracies, encoders: int = 1) -> SuiteResult:
    """A result whose cells tell which images they got right."""
    result = made_up(accuracies, pretraining_seeds=encoders)
    rights = {key: answers(shares, seed) for seed, (key, shares) in enumerate(accuracies.items())}
    (only,) = result.parts
    cells = tuple(
        replace(
            one,
            items=rights[one.arm, one.labels][one.seed],
            encoder=-1 if one.arm == "scratch" else one.seed % encoders,
        )
        for one in only.cells
    )
    return replace(result, parts=(replace(only, cells=cells, counts={**only.counts, "test": 400}),))
