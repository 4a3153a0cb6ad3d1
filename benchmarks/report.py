"""The report of a suite: a self-contained HTML page, Markdown, LaTeX, and all runs as CSV and Parquet."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import TableWriter, atomic_path, atomic_write_text, safe_cell
from ..core.optional_imports import installed_version
from ..core.progress import duration
from ..core.report.html import Table, data_url, escape_markdown, render
from ..transfer import tasks
from ..transfer.tasks import CLASSIFY
from .analysis import Comparisons
from .charts import Chart, score_charts, training_charts
from .choice import Choice, alternative_sentence, choice_sentences, choice_table, choices, first_table, reading_of
from .cost_report import cost_charts, use_table
from .fairness import (
    convergence_table,
    effort_seconds_table,
    effort_table,
    fairness_note,
    pretraining_table,
    settings_table,
    tuning_table,
)
from .forest import forest_plot
from .headline import cost_table, headline, notes_of
from .report_tables import across_tasks_table, coverage_table, task_tables, with_rows
from .results import Cell, SuiteResult, TaskResult
from .score_text import place
from .verdicts import coverage_note, verdict_sentences, warnings_of

SHOWN_WARNINGS = 4
"""Warnings on the first screen; more are folded below them."""
SHOWN_CHOICES = 2
"""Places whose choice is a sentence on the first screen; the table has all."""


@dataclass(frozen=True)
class Report:
    """The files of a report, and what it says: the answer to the suite's title, then every verdict as a sentence.

    ``choices``: which arm to use at each place, and how certain that is.
    """

    html: Path
    markdown: Path
    latex: Path
    csv: Path
    json: Path
    verdicts: tuple[str, ...]
    choices: tuple[str, ...] = ()


def write_report(result: SuiteResult, out: Path) -> Report:
    """Write report.html, report.md, report.tex, results.csv (.parquet where pyarrow is there) and results.json into ``out``.

    ``out`` is a folder that is there. Equal results give equal bytes. No table depends on timings but that of the section on
    time. ``results.json`` is what ``maelift bench compare`` reads.
    """
    found = Comparisons(result)
    verdicts, chosen = (headline(found), *verdict_sentences(found)), choices(result)
    names = ("report.html", "report.md", "report.tex", "results.csv", "results.json")
    html, markdown, latex, table, json = (out / name for name in names)
    report = Report(html, markdown, latex, table, json, verdicts, tuple(choice_sentences(chosen)))
    rows = [_row(part, cell) for part in result.parts for cell in part.cells]
    atomic_write_text(report.csv, _csv(rows))
    if installed_version(["pyarrow"]) is not None:
        _write_parquet(rows, report.csv.with_suffix(".parquet"))
    atomic_write_text(report.json, result.to_json(Path(out)))
    sections = _sections(found)
    atomic_write_text(report.markdown, _markdown(found, report, chosen, sections))
    tables = [*with_rows(choice_table(chosen)), *(table for section in sections for table in section.tables)]
    atomic_write_text(report.latex, "\n".join(table.latex() for table in tables))
    atomic_write_text(report.html, _html(found, report, chosen, sections))
    return report


@dataclass(frozen=True)
class Section:
    """A task in the report: its heading, tables, what its intervals cover, and how its arms were tuned."""

    heading: str
    tables: Sequence[Table]
    coverage: Table
    covers: str
    charts: Sequence[Chart]
    checks: Sequence[Table]
    differing: Sequence[Table]
    images: Sequence[str]
    recipes: Mapping[str, Mapping[str, object]]


def _sections(found: Comparisons) -> list[Section]:
    result = found.result
    return [
        Section(
            _heading(part),
            task_tables(found, part),
            coverage_table(result, part),
            coverage_note(found, part),
            training_charts(result, part),
            with_rows(tuning_table(result, part), convergence_table(result, part)),
            with_rows(settings_table(result, part)),
            [f"{name}: {count:,} images" for name, count in part.counts.items()],
            {result.label(arm): recipe for arm, recipe in part.recipes.items()},
        )
        for part in result.parts
    ]


def _heading(part: TaskResult) -> str:
    what = tasks.entry(part.kind).title
    name = "" if part.name in (CLASSIFY, part.kind) else f" ({part.name})"
    return f"{what}{name}{': a short run, for demonstration only' if part.short else ''}"


def _html(found: Comparisons, report: Report, chosen: Sequence[Choice], sections: Sequence[Section]) -> str:
    result, verdicts = found.result, report.verdicts
    return render(
        Path(__file__).with_name("report.html.j2"),
        result=result,
        title=_title(result),
        headline=verdicts[0],
        choices=[
            f"{sentence} {alternative_sentence(result, one)}"
            for sentence, one in zip(report.choices[:SHOWN_CHOICES], chosen, strict=False)
        ],
        notes=[*reading_of(chosen), *notes_of(found)],
        plot=forest_plot(found),
        scores=[*(chart for part in result.parts for chart in score_charts(result, part)), *cost_charts(result)],
        costs=with_rows(cost_table(found), use_table(result)),
        chosen=_choice_tables(result, chosen),
        warnings=warnings_of(found),
        shown=SHOWN_WARNINGS,
        verdicts=verdicts[1:],
        sections=sections,
        across=with_rows(across_tasks_table(found)),
        fairness=fairness_note(result),
        differing=[*(table for one in sections for table in one.differing), *_of_all_tasks(result)],
        picture=_reconstructions(result.reconstructions),
        examples=_examples(result),
        hours=effort_seconds_table(result),
        spent=duration(result.seconds_total),
    )


def _choice_tables(result: SuiteResult, chosen: Sequence[Choice]) -> list[Table]:
    """Which arm to use at each place, and how often each comes first."""
    return with_rows(choice_table(chosen), first_table(result, chosen))


def _of_all_tasks(result: SuiteResult) -> list[Table]:
    """The fairness tables that aren't of one task."""
    return with_rows(pretraining_table(result), effort_table(result))


def _markdown(found: Comparisons, report: Report, chosen: Sequence[Choice], sections: Sequence[Section]) -> str:
    result, warnings, verdicts = found.result, warnings_of(found), report.verdicts
    parts = [
        f"# {escape_markdown(_title(result))}",
        f"**{escape_markdown(verdicts[0])}**",
        _bullets([*report.choices, *reading_of(chosen), *notes_of(found)]),
        f"**Beware**\n\n{_bullets(warnings)}" if warnings else "",
        "## What is compared",
        _bullets([f"{arm.label}: {arm.note}." for arm in result.arms]),
        "Charts and pictures are in [report.html](report.html), every run in [results.csv](results.csv).",
        f"## Every comparison\n\n{_bullets(verdicts[1:])}" if verdicts[1:] else "",
    ]
    if chosen:
        parts += ["## Which arm to use", *(table.markdown() for table in _choice_tables(result, chosen))]
    for section in sections:
        parts += [f"## {section.heading}", *(table.markdown() for table in section.tables)]
        parts += [section.coverage.markdown(), section.covers]
        parts += [*(table.markdown() for table in section.checks), _bullets(section.images)]
    parts += [table.markdown() for table in with_rows(across_tasks_table(found))]
    differing = [*(table for one in sections for table in one.differing), *_of_all_tasks(result)]
    parts += [
        "## Fairness",
        fairness_note(result),
        *(table.markdown() for table in differing),
        _bullets([f"pool: {result.pool:,} images", *result.guards, *result.seen]),
        "## How it was run",
        _bullets([*(f"{name} {version}" for name, version in result.versions.items()), result.machine]),
        f"```yaml\n{result.config_yaml.rstrip()}\n```",
        "## Time",
        _bullets(
            [f"{place(one.part, one.labels)}: {said}" for one in chosen if (said := alternative_sentence(result, one))]
        ),
        *(table.markdown() for table in with_rows(cost_table(found), use_table(result))),
        effort_seconds_table(result).markdown(),
        f"All runs together, tuning and checks included: {duration(result.seconds_total)}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


Row = dict[str, Any]


def _row(part: TaskResult, cell: Cell) -> Row:
    """A run as a row of a table, scores in percent; None where one could not be measured."""
    scores = {f"test_{name}_percent": _in_percent(cell.test.get(name)) for name in part.scores.labels}
    return {
        "task": part.name,
        "arm": cell.arm,
        "labels": cell.labels,
        "seed": cell.seed,
        "encoder": cell.encoder if cell.encoder >= 0 else None,
        "learning_rate": cell.lr,
        "steps": cell.steps,
        f"val_{part.scores.key}_percent": _in_percent(cell.val),
        **scores,
        "seconds": round(cell.seconds, 3),
        "run": cell.key,
    }


def _in_percent(share: float | None) -> float | None:
    return None if share is None or math.isnan(share) else round(100 * share, 4)


def _columns(rows: Sequence[Row]) -> list[str]:
    """The columns of rows of several tasks, each task's own where its first row has them."""
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    last = ("seconds", "run")
    return [*(name for name in columns if name not in last), *(name for name in last if name in columns)]


def _csv(rows: Sequence[Row]) -> str:
    """As a table that does not change from one run of the suite to the next: without the seconds."""
    table, columns = io.StringIO(), [name for name in _columns(rows) if name != "seconds"]
    writer = TableWriter(table)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_in_csv(row.get(name)) for name in columns])
    return table.getvalue()


def _in_csv(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return safe_cell(value) if isinstance(value, str) else value


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row.get(name) for row in rows] for name in _columns(rows)}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _title(result: SuiteResult) -> str:
    return f"{result.title} (partial result)" if result.missing else result.title


def _examples(result: SuiteResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """Test images that an arm wins or loses, as (heading, pictures with captions)."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for example in result.examples:
        where = "" if example.task == CLASSIFY else f"On {example.task}, "
        heading = (
            f"{where}{result.label(example.arm)} does {'better' if example.won else 'worse'} than "
            f"{result.label(example.other or result.baseline)} at {example.labels:,} labels (test images)"
        )
        caption = f"{example.name}: {example.truth}; {example.outcome}"
        groups.setdefault(heading, []).append((caption, example.picture))
    return list(groups.items())


def _reconstructions(picture: Path | None) -> str | None:
    if picture is None or not picture.is_file():
        return None
    return data_url(picture.read_bytes(), "png")


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)
