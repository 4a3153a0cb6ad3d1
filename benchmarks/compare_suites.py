"""Two finished suites side by side: settings that differ, scores and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..core.dry_run import Plan
from ..core.errors import MaeliftError, show
from ..core.files import atomic_write_text, output_folder, read_regular_text
from ..core.report.html import MINUS, Table, escape_markdown, render
from .analysis import Comparison, Comparisons
from .results import AUTO, SuiteResult
from .stats import Difference, Independent, independent_difference

RESULT = "results.json"


@dataclass(frozen=True)
class CompareConfig:
    """Set two finished suites side by side: settings, scores and verdicts."""

    one: str
    """folder of a suite, with its results.json"""
    two: str
    """folder of another"""
    out: str | None = None
    """folder for comparison.html and comparison.md; null: they are only shown"""


@dataclass(frozen=True)
class SideBySide:
    """The comparison as text, and the page that was written, if any."""

    text: str
    page: Path | None

    def summary(self) -> str:
        """The text, and where the page is."""
        return self.text if self.page is None else f"{self.text}\n\nwritten: {self.page}"


def compare_results(config: CompareConfig) -> SideBySide:
    """Set the results of two folders side by side; raises MaeliftError where one has none."""
    names = _names(config)
    results = (read_result(Path(config.one)), read_result(Path(config.two)))
    tables = [table for table in (_settings(*results, names), _scores(*results, names)) if table.rows]
    tables += [table for table in (_verdicts(*results, names),) if table.rows]
    title = f"{escape_markdown(results[0].title)} / {escape_markdown(results[1].title)}"
    notes = list(_notes(*results))
    text = "\n\n".join(
        [f"# {title}", *(f"- {escape_markdown(note)}" for note in notes), *(table.markdown() for table in tables)]
    )
    if config.out is None:
        return SideBySide(text, None)
    out = output_folder(config.out)
    atomic_write_text(out / "comparison.md", text + "\n")
    page = out / "comparison.html"
    html = render(
        Path(__file__).with_name("comparison.html.j2"), title=f"{names[0]} / {names[1]}", notes=notes, tables=tables
    )
    atomic_write_text(page, html)
    return SideBySide(text, page)


def plan(config: CompareConfig) -> Plan:
    """What ``compare_results`` would read and write."""
    return Plan((("one", config.one), ("two", config.two), ("page", config.out or "none")))


def read_result(folder: Path) -> SuiteResult:
    """The result that a suite left in its folder."""
    path = folder / RESULT
    try:
        text = read_regular_text(path)
    except UnicodeDecodeError as error:
        raise MaeliftError(f"{path}: not a suite's result (not UTF-8). Give a suite's out.") from error
    except OSError as error:
        raise MaeliftError(
            f"{path}: can't be read ({(error.strerror or str(error)).lower()}). Give a suite's out."
        ) from error
    try:
        return SuiteResult.from_json(text, path.parent)
    except MaeliftError as error:
        raise MaeliftError(f"{path}: {error}") from error


def _names(config: CompareConfig) -> tuple[str, str]:
    """What the two are called: their folders' names, with letters where those are the same."""
    one, two = (Path(folder).resolve().name for folder in (config.one, config.two))
    return (one, two) if one != two else (f"{one} (A)", f"{two} (B)")


def _notes(one: SuiteResult, two: SuiteResult) -> Iterator[str]:
    """What a reader must know before comparing."""
    for name, result in (("first", one), ("second", two)):
        if result.missing:
            yield f"The {name} result is partial."
    if one.guards != two.guards or one.pool != two.pool:
        yield "The two have different images, or parted them differently: differences between them may be the images'."
    yield (
        f"The columns A{MINUS}B are of independent runs (Welch's t): nothing is paired between two suites, and they are not "
        "corrected for there being several."
    )


def _settings(one: SuiteResult, two: SuiteResult, names: tuple[str, str]) -> Table:
    """The keys that differ."""
    left, right = (_keys(result.config_yaml) for result in (one, two))
    keys = [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key) and key != "out"]
    rows = tuple((key, *("none" if key not in side else show(side[key]) for side in (left, right))) for key in keys)
    versions = sorted(one.versions.keys() | two.versions.keys())
    rows += tuple(
        (name, one.versions.get(name, "none"), two.versions.get(name, "none"))
        for name in versions
        if one.versions.get(name) != two.versions.get(name)
    )
    return Table("Settings and versions that differ", ("key", *names), rows)


def _keys(text: str) -> dict[str, Any]:
    """The keys of a configuration by their full names; none where it can't be read."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return _flat(content) if isinstance(content, Mapping) else {}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _scores(one: SuiteResult, two: SuiteResult, names: tuple[str, str]) -> Table:
    """The arms' scores, and how much A's are above B's."""
    rows = []
    for task, arm, labels in _shared_cells(one, two):
        means = [_mean(result, task, arm, labels) for result in (one, two)]
        difference = _between(one, two, task, arm, labels)
        text = "" if difference is None else _interval_text(difference)
        rows.append((f"{task}: {arm}", f"{labels:,}", *("none" if math.isnan(m) else f"{m:.2f}" for m in means), text))
    return Table(
        "Scores in % on the test images, mean over the seeds, by task and arm; A−B in points with its 95 % interval",
        ("task: arm", "labels", *names, f"A{MINUS}B"),
        tuple(rows),
    )


def _shared_cells(one: SuiteResult, two: SuiteResult) -> list[tuple[str, str, int]]:
    """Every task, arm and label count of either, in the order of the first."""
    places: dict[tuple[str, str, int], None] = {}
    for result in (one, two):
        for part in result.parts:
            for labels in part.label_counts:
                places.update(dict.fromkeys((part.name, arm.name, labels) for arm in result.arms))
    return list(places)


def _values(result: SuiteResult, task: str, arm: str, labels: int) -> list[float]:
    return [
        part.score(cell) for part in result.parts if part.name == task for cell in part.by_seed(arm, labels).values()
    ]


def _mean(result: SuiteResult, task: str, arm: str, labels: int) -> float:
    values = _values(result, task, arm, labels)
    return 100 * sum(values) / len(values) if values else math.nan


def _between(one: SuiteResult, two: SuiteResult, task: str, arm: str, labels: int) -> Independent | None:
    """A's mean less B's, where the two tasks have the same scores."""
    kinds = {part.kind for result in (one, two) for part in result.parts if part.name == task}
    ours, theirs = (_values(result, task, arm, labels) for result in (one, two))
    return independent_difference(ours, theirs) if ours and theirs and len(kinds) == 1 else None


def _interval_text(difference: Difference | Independent) -> str:
    mean = f"{100 * difference.mean:+.2f}"
    if difference.known:
        mean += f" ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    return mean.replace("-", MINUS)


def _verdicts(one: SuiteResult, two: SuiteResult, names: tuple[str, str]) -> Table:
    """What each says of its arms against its baseline."""
    sides = [{_place(found): found for found in Comparisons(result).comparisons} for result in (one, two)]
    rows = [
        (f"{task}: {arm}", f"{labels:,}", *(_verdict(side.get((task, arm, labels))) for side in sides))
        for task, arm, labels in _shared_cells(one, two)
        if any((task, arm, labels) in side for side in sides)
    ]
    figures = " and ".join(sorted({part.scores.label for result in (one, two) for part in result.parts}))
    baselines = " / ".join(
        "the best without pretraining" if side.baseline == AUTO else side.label(side.baseline) for side in (one, two)
    )
    return Table(
        f"Verdicts, each against its own baseline ({baselines}), on the test images: points of {figures}, mean over paired seeds",
        ("task: arm", "labels", *names),
        tuple(rows),
    )


def _place(found: Comparison) -> tuple[str, str, int]:
    return found.part.name, found.arm.name, found.labels


def _verdict(found: Comparison | None) -> str:
    if found is None or found.difference is None:
        return "none"
    if found.part.short:
        return f"short run ({_interval_text(found.difference)})"
    interval = _interval_text(found.difference)
    return f"{found.verdict} ({interval})" if found.tested else interval
