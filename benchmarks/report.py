"""The report of a suite: one self-contained HTML page, Markdown, LaTeX, and tables of every run as CSV and Parquet."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from ..core.files import TableWriter, atomic_path, atomic_write_text, safe_cell
from ..core.optional_imports import installed_version
from ..core.progress import duration
from ..core.report.html import MINUS, Table, data_url, plain, render
from .analysis import ALPHA, Comparison, Comparisons
from .charts import Chart, charts
from .results import METRICS, Arm, Cell, ConvergenceCheck, SuiteResult, TaskResult
from .stats import POWER, SMALLEST_GAIN, Difference, labels_needed, mean_interval, units_needed
from .suite import CLASSIFY, read_published

FAIRNESS = (
    "Every arm gets the same learning rates to try at every label count, judged on validation images only, "
    "at the steps that its tuning begins with. Then its steps are doubled for as long as that raises its "
    "validation score beyond the noise. In every run the validation score is measured equally often, and "
    "the best weights are kept. The test images are read once for each compared run, after everything is "
    "chosen."
)


@dataclass(frozen=True)
class Report:
    """The files of a report, and its verdicts in words, the first of them the answer to the suite's title."""

    html: Path
    markdown: Path
    latex: Path
    csv: Path
    json: Path
    verdicts: tuple[str, ...]


def write_report(result: SuiteResult, out: Path) -> Report:
    """Write report.html, report.md, report.tex, results.csv (.parquet where pyarrow is there) and results.json into ``out``.

    ``out`` is a folder that is there. Equal results give equal bytes. No table depends on timings but that of the section on
    time. ``results.json`` is what ``maelift bench compare`` reads.
    """
    found = Comparisons(result)
    verdicts = tuple(_verdicts(found))
    names = ("report.html", "report.md", "report.tex", "results.csv", "results.json")
    html, markdown, latex, table, json = (out / name for name in names)
    report = Report(html, markdown, latex, table, json, verdicts)
    rows = [_row(part, cell) for part in result.parts for cell in part.cells]
    atomic_write_text(report.csv, _csv(rows))
    if installed_version(["pyarrow"]) is not None:
        _write_parquet(rows, report.csv.with_suffix(".parquet"))
    atomic_write_text(report.json, result.to_json(Path(out)))
    sections, hours = _sections(found), _hours(found)
    atomic_write_text(report.markdown, _markdown(result, verdicts, sections, hours))
    atomic_write_text(report.latex, "\n".join(table.latex() for section in sections for table in section.tables))
    atomic_write_text(report.html, _html(result, verdicts, sections, hours))
    return report


@dataclass(frozen=True)
class Section:
    """A task in the report: its heading, what its intervals cover, tables, charts, and how its arms were tuned."""

    heading: str
    covers: str
    tables: Sequence[Table]
    charts: Sequence[Chart]
    checks: Sequence[Table]
    images: Sequence[str]
    recipes: Mapping[str, Mapping[str, object]]


def _sections(found: Comparisons) -> list[Section]:
    result = found.result
    return [
        Section(
            _heading(part),
            _what_the_intervals_cover(result, part),
            _tables(found, part),
            charts(found, part),
            _filled(_tuning_table(result, part), _convergence_table(result, part)),
            [f"{name}: {count:,} images" for name, count in part.counts.items()],
            {result.label(arm): recipe for arm, recipe in part.recipes.items()},
        )
        for part in result.parts
    ]


def _heading(part: TaskResult) -> str:
    what = {"classify": "Classification", "detect": "Detection", "segment": "Segmentation"}[part.kind]
    name = "" if part.name in (CLASSIFY, part.kind) else f" ({part.name})"
    return f"{what}{name}{': a short run, for a look only' if part.short else ''}"


def _tables(found: Comparisons, part: TaskResult) -> list[Table]:
    """What came of a task."""
    result = found.result
    return _filled(
        _score_table(result, part),
        *([] if part.short else [_difference_table(found, part), _savings_table(result, part)]),
        _published_table(result, part),
    )


def _html(result: SuiteResult, verdicts: Sequence[str], sections: Sequence[Section], hours: Table) -> str:
    return render(
        Path(__file__).with_name("report.html.j2"),
        result=result,
        title=_title(result),
        verdicts=verdicts,
        warnings=_warnings(result),
        sections=sections,
        fairness=FAIRNESS,
        picture=_reconstructions(result.reconstructions),
        examples=_examples(result),
        hours=hours,
        spent=duration(result.seconds_total),
    )


def _markdown(result: SuiteResult, verdicts: Sequence[str], sections: Sequence[Section], hours: Table) -> str:
    warnings = _warnings(result)
    parts = [
        f"# {plain(_title(result))}",
        _bullets(verdicts),
        f"**Beware**\n\n{_bullets(warnings)}" if warnings else "",
        _bullets([f"{arm.label}: {arm.note}." for arm in result.arms]),
        "Charts and pictures are in [report.html](report.html), every run in [results.csv](results.csv).",
    ]
    for section in sections:
        parts += [f"## {section.heading}", section.covers, *(table.markdown() for table in section.tables)]
        parts += [*(table.markdown() for table in section.checks), _bullets(section.images)]
    parts += [
        "## Fairness",
        FAIRNESS,
        _bullets([f"pool: {result.pool:,} images", *result.guards]),
        "## How it was run",
        _bullets([*(f"{name} {version}" for name, version in result.versions.items()), result.machine]),
        f"```yaml\n{result.config_yaml.rstrip()}\n```",
        "## Time",
        hours.markdown(),
        f"All runs together, tuning and checks included: {duration(result.seconds_total)}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _filled(*tables: Table) -> list[Table]:
    """The tables that have rows: a partial result has no trials, checks or pairs yet."""
    return [table for table in tables if table.rows]


Row = dict[str, Any]


def _row(part: TaskResult, cell: Cell) -> Row:
    """A run as a row of a table, scores in percent; None where one could not be measured."""
    scores = {f"test_{name}_percent": _in_percent(cell.test.get(name)) for name, _ in METRICS[part.kind]}
    return {
        "task": part.name,
        "arm": cell.arm,
        "labels": cell.labels,
        "seed": cell.seed,
        "encoder": cell.encoder if cell.encoder >= 0 else None,
        "learning_rate": cell.lr,
        "steps": cell.steps,
        f"val_{METRICS[part.kind][0][0]}_percent": _in_percent(cell.val),
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


def _verdicts(found: Comparisons) -> Iterator[str]:
    """One sentence for each arm against the baseline, on each task at each label count."""
    result = found.result
    baseline = result.label(result.baseline)
    if not any(cell.arm == result.baseline for part in result.parts for cell in part.cells):
        yield f"Nothing can be said yet: there are no runs of {baseline}, which the others are compared with."
        return
    if not result.rivals:
        yield f"Nothing is compared: {baseline} is the only arm."
    for part in result.parts:
        if part.short:
            yield from _short_lines(result, part)
            continue
        for one in found.of(part):
            if one.difference is None or one.p is None:
                yield f"{_where(part, one.labels)}, runs are missing to compare {one.arm.label} with {baseline}."
            else:
                sentence = _sentence(result, one, one.difference, one.p)
                yield f"{_where(part, one.labels)}, {sentence}{_reservation(result, one)}"


def _where(part: TaskResult, labels: int) -> str:
    """The place of a comparison, at the beginning of a sentence."""
    return f"At {labels:,} labels" if part.name == CLASSIFY else f"On {part.name} at {labels:,} labels"


def _short_lines(result: SuiteResult, part: TaskResult) -> Iterator[str]:
    """What a short task shows, of which nothing is concluded."""
    for labels in part.label_counts:
        shown = [
            f"{arm.label} {_percent(_mean(part, arm.name, labels))} %"
            for arm in result.arms
            if part.by_seed(arm.name, labels)
        ]
        if shown:
            seeds = len(part.seeds[labels])
            yield (
                f"{_where(part, labels)}, a short run for a look only, nothing tuned and nothing concluded: test {part.figure} "
                f"{', '.join(shown)} ({seeds} seed{'' if seeds == 1 else 's'} each, {part.counts['test']:,} test images)."
            )


def _sentence(result: SuiteResult, one: Comparison, difference: Difference, p: float) -> str:
    part, arm = one.part, one.arm
    what = "accuracy" if part.kind == "classify" else part.figure
    points = f"{_signed(difference.mean)} points of test {what} compared with {result.label(result.baseline)}"
    unresolved = f"whether {arm.label} helps is not resolved: {points}"
    images = f"{part.counts['test']:,} test images"
    if difference.units == 1:
        return f"{unresolved} (1 seed, {images}). One seed gives no interval; add more."
    units = _units(result, one, difference)
    if not difference.known:
        return (
            f"{unresolved} ({units}, {images}). Every seed gave the same difference, which says nothing of its spread, "
            "so there is no interval; add more seeds."
        )
    numbers = f"{points} ({_confidence(difference)} interval {_interval(difference)}; {_p(p)}; {units}, {images})"
    if one.verdict != "not resolved":
        return f"{arm.label} {one.verdict}: {numbers}."
    counted = (
        " The interval by itself excludes 0, but several comparisons were made."
        if difference.verdict != one.verdict
        else ""
    )
    return f"whether {arm.label} helps is not resolved: {numbers}.{counted} {_forecast(difference)}"


def _units(result: SuiteResult, one: Comparison, difference: Difference) -> str:
    """What the differences are over, in words."""
    part, labels = one.part, one.labels
    seeds = len(part.by_seed(one.arm.name, labels).keys() & part.by_seed(result.baseline, labels).keys())
    return f"{seeds} paired seeds" + (f" on {difference.units} encoders" if difference.units < seeds else "")


def _p(p: float) -> str:
    return "adjusted p below 0.001" if p < 0.001 else f"adjusted p = {p:.2g}"


def _reservation(result: SuiteResult, one: Comparison) -> str:
    """What takes from a verdict: that one of its two arms could still be trained on."""
    unfinished = [
        result.label(check.arm)
        for check in one.part.checks
        if check.labels == one.labels and check.arm in (one.arm.name, result.baseline) and not check.converged
    ]
    return f" Not final: more steps still improve {' and '.join(unfinished)}." if unfinished else ""


def _forecast(difference: Difference) -> str:
    needed = units_needed(difference)
    if needed is None:
        return "No realistic number of seeds would resolve so small a difference on these test images."
    more = max(1, needed - difference.units)
    seeds = "1 more seed" if more == 1 else f"{more:,} more seeds"
    return f"About {seeds} would resolve a difference of this size with a chance of {100 * POWER:.0f} %."


def _what_the_intervals_cover(result: SuiteResult, part: TaskResult) -> str:
    if part.short:
        return "One rate, few steps, and no check whether more steps would help: this shows that it runs, and no more."
    most = max((len(seeds) for seeds in part.seeds.values()), default=0)
    encoders = result.pretraining_seeds
    if encoders < 2:
        luck = "They do not cover the luck of pretraining: each encoder was pretrained once, with 1 seed."
    elif encoders < most:
        luck = (
            f"They also cover the luck of pretraining: {encoders} pretrained encoders an arm are shared by up to {most} "
            "seeds, and count as the independent draws where an arm is pretrained."
        )
    else:
        luck = f"They also cover the luck of pretraining: there are as many encoders as seeds ({encoders})."
    counts = ", ".join(f"{len(seeds)} at {labels:,} labels" for labels, seeds in part.seeds.items())
    drawn = "test images, as if they were drawn anew"
    if part.kind == "detect":
        drawn += " (by leaving out groups of them)"
    items = f" and that of the {drawn}" if all(cell.items for cell in part.cells) else ""
    return (
        f"Intervals are 95 % intervals of the mean over seeds ({counts}), by Student's t on paired "
        "differences. A seed is one draw of the labelled images, one initial head, one order of the images "
        f"and one set of augmentation draws, the same for every arm. The intervals cover that luck{items}. {luck} "
        "Verdicts are corrected for there being several comparisons with the baseline, those of all tasks (Holm): where no arm "
        f"has an effect, the chance of any false verdict is at most {100 * ALPHA:.0f} %. The intervals themselves are not "
        "corrected."
    )


def _warnings(result: SuiteResult) -> list[str]:
    warnings = [f"This result is partial. Missing: {'; '.join(result.missing)}."] if result.missing else []
    if result.unspent:
        warnings.append(result.unspent)
    warnings += [f"A run failed, and is not among the results: {failure}" for failure in result.failed]
    for part in result.parts:
        warnings += _warnings_of(result, part)
    return warnings


def _warnings_of(result: SuiteResult, part: TaskResult) -> Iterator[str]:
    """What is unequal or unfinished about the arms of a task."""
    task = "" if part.name == CLASSIFY else f" on {part.name}"
    for check in part.checks:
        if not check.converged:
            yield _still_gaining(result, check, task)
    for labels in part.label_counts:
        trials = {len(tuning.rates) for tuning in part.tunings if tuning.labels == labels}
        if len(trials) > 1:
            yield f"At {labels:,} labels{task} the arms had different numbers of learning rates to try."
    for tuning in part.tunings:
        if edge := _edge(tuning.chosen, tuning.rates):
            yield (
                f"{result.label(tuning.arm)}{task} at {tuning.labels:,} labels did best at the {edge} learning "
                f"rate tried ({tuning.chosen:g}); one beyond it might do better (tuning.rates)."
            )


def _still_gaining(result: SuiteResult, check: ConvergenceCheck, task: str) -> str:
    consequence = (
        "As it is the baseline, what the others gain over it is overstated"
        if check.arm == result.baseline
        else "Its result is too low"
    )
    return (
        f"{result.label(check.arm)} still gains{task} at {check.labels:,} labels: twice the {check.steps:,} "
        f"steps bring {_signed(check.gain)} points on validation (noise {_percent(check.noise)}). "
        f"{consequence}; raise tuning.max_doublings."
    )


def _edge(chosen: float, rates: Sequence[float]) -> str:
    """Which end of the rates tried the chosen one is, if any."""
    return {min(rates): "lowest", max(rates): "highest"}.get(chosen, "")


def _score_table(result: SuiteResult, part: TaskResult) -> Table:
    groups = product(part.label_counts, result.arms)
    shown = [
        (key, name) for key, name in METRICS[part.kind] if any(cell.test.get(key) is not None for cell in part.cells)
    ]
    rows = tuple(_scores(part, arm, labels, [key for key, _ in shown]) for labels, arm in groups) if shown else ()
    what = "Accuracy" if part.kind == "classify" else "Scores"
    return Table(
        f"{what} in % on the {part.counts['test']:,} test images, mean ± standard deviation over seeds",
        ("arm", "labels", *(name for _, name in shown), "seeds"),
        rows,
    )


def _scores(part: TaskResult, arm: Arm, labels: int, keys: Sequence[str]) -> tuple[str, ...]:
    cells = list(part.by_seed(arm.name, labels).values())
    if not cells:
        return (arm.label, f"{labels:,}", "missing", *[""] * (len(keys) - 1), "0")
    columns = [[value for cell in cells if (value := cell.test.get(key)) is not None] for key in keys]
    return (
        arm.label,
        f"{labels:,}",
        *(_mean_and_sd(values) if values else "none" for values in columns),
        str(len(cells)),
    )


def _difference_table(found: Comparisons, part: TaskResult) -> Table:
    """Every arm against the baseline, then the others against each other."""
    result = found.result
    names = [arm.name for arm in result.rivals]
    pairs = [*((name, result.baseline) for name in names), *combinations(names, 2)]
    rows = []
    for labels, (first, second) in product(part.label_counts, pairs):
        difference, p = found.between(part, first, second, labels)
        if difference is not None:
            rows.append(_difference_row(result, first, second, labels, difference, p))
    return Table(
        f"Paired differences of {part.figure} on the {part.counts['test']:,} test images, in points, over "
        "the seeds that both arms have; resolves: the true difference that would be resolved with a chance of "
        f"{100 * POWER:.0f} %; p adjusted for the comparisons with the baseline",
        ("difference", "labels", "mean", "95 % interval", "adjusted p", "resolves", "deviation", "seeds", "verdict"),
        tuple(rows),
    )


def _difference_row(
    result: SuiteResult, first: str, second: str, labels: int, difference: Difference, p: float | None
) -> tuple[str, ...]:
    words = {"helps": "higher", "hurts": "lower"}
    if p is None:
        verdict = words.get(difference.verdict, difference.verdict)
    else:
        verdict = difference.verdict if p <= ALPHA else "not resolved"
    return (
        f"{result.label(first)} {MINUS} {result.label(second)}",
        f"{labels:,}",
        _signed(difference.mean),
        _interval(difference) if difference.known else "none",
        "" if p is None else f"{p:.2g}" if p >= 0.001 else "below 0.001",
        _percent(difference.smallest_resolved) if difference.known else "unknown",
        _percent(difference.sd) if difference.known else "unknown",
        str(difference.units),
        verdict,
    )


def _savings_table(result: SuiteResult, part: TaskResult) -> Table:
    """How many labels the baseline needs for what each arm reaches."""
    counts = [labels for labels in part.label_counts if part.by_seed(result.baseline, labels)]
    curve = [_mean(part, result.baseline, labels) for labels in counts]
    rows = []
    for arm in result.rivals:
        there = [labels for labels in counts if part.by_seed(arm.name, labels)]
        reached = [_mean(part, arm.name, labels) for labels in there]
        for labels, score, needed in zip(there, reached, labels_needed(counts, reached, curve), strict=True):
            beyond = "more than were tried" if score > max(curve) else "fewer than were tried"
            told = beyond if needed is None else f"{needed:,.0f}"
            rows.append((arm.label, f"{labels:,}", _percent(score), told))
    return Table(
        f"Labels that {result.label(result.baseline)} needs for the same test {part.figure} in %, by its means over the seeds; "
        "a line over the logarithm of the labels between those tried",
        ("arm", "labels", METRICS[part.kind][0][1], "labels needed"),
        tuple(rows) if len(counts) > 1 else (),
    )


def _mean(part: TaskResult, arm: str, labels: int) -> float:
    cells = part.by_seed(arm, labels).values()
    return sum(part.score(cell) for cell in cells) / len(cells)


def _published_table(result: SuiteResult, part: TaskResult) -> Table:
    """Published figures beside ours, where the suite follows their protocol."""
    protocol = read_published().get(result.published.get(part.name, ""))
    header = ("start", "published", "ours", "seeds", "within noise")
    if protocol is None:
        return Table("", header, ())
    rows = []
    for name, value in protocol["rows"].items():
        cells = [cell for cell in part.cells if cell.arm == name and cell.labels == max(part.label_counts)]
        ours = [100 * part.score(cell) for cell in cells]
        if not ours:
            rows.append((name, f"{value:.1f}", "missing", "0", ""))
            continue
        mean, _, sd = mean_interval(ours)
        bar = 2 * math.hypot(protocol["noise"], 0.05, 0.0 if math.isnan(sd) else sd / math.sqrt(len(ours)))
        within = "yes" if abs(mean - value) <= bar else "no"
        rows.append((name, f"{value:.1f}", f"{mean:.2f}", str(len(ours)), within))
    return Table(
        f"Published {protocol['figure']} in % ({protocol['source']}; its noise over seeds: {protocol['noise']:g}) and ours; "
        "within noise: they differ by no more than two standard errors of both and of rounding",
        header,
        tuple(rows),
    )


def _tuning_table(result: SuiteResult, part: TaskResult) -> Table:
    seeds = ", ".join(str(seed) for seed in sorted({tuning.seed for tuning in part.tunings}))
    rows = tuple(
        (
            result.label(tuning.arm),
            f"{tuning.labels:,}",
            f"{tuning.steps:,}",
            ", ".join(
                f"{rate:g}:\N{NO-BREAK SPACE}{_percent(value)}{' (chosen)' if rate == tuning.chosen else ''}"
                for rate, value in zip(tuning.rates, tuning.val, strict=True)
            ),
            str(len(tuning.rates)),
            _edge(tuning.chosen, tuning.rates) or "no",
        )
        for tuning in part.tunings
    )
    return Table(
        f"Learning rates tried, each with its {part.figure} in % on the {part.counts['validation']:,} "
        f"validation images, 0.00 where it diverged (seed {seeds}, kept apart from those compared)",
        ("arm", "labels", "steps", f"rate: {_score_word(part)}", "trials", "at the edge"),
        rows,
    )


def _score_word(part: TaskResult) -> str:
    return "accuracy" if part.kind == "classify" else "score"


def _convergence_table(result: SuiteResult, part: TaskResult) -> Table:
    rows = tuple(
        (
            result.label(check.arm),
            f"{check.labels:,}",
            f"{check.steps:,}",
            _percent(sum(check.val) / len(check.val)),
            _percent(sum(check.val_doubled) / len(check.val_doubled)),
            _signed(check.gain),
            _percent(check.noise),
            str(len(check.seeds)),
            "yes" if check.converged else "no",
        )
        for check in part.checks
    )
    return Table(
        f"What twice the steps bring: {part.figure} in % on the {part.counts['validation']:,} validation "
        "images, mean over the check's seeds; gain, and noise (its standard error, at least "
        f"{_percent(SMALLEST_GAIN)}), in points",
        ("arm", "labels", "steps", _score_word(part), "at twice the steps", "gain", "noise", "seeds", "enough"),
        rows,
    )


def _hours(found: Comparisons) -> Table:
    """Cost beside gain."""
    result, rows = found.result, []
    for arm in result.arms:
        cells = [cell for part in result.parts for cell in part.cells if cell.arm == arm.name]
        gains = [
            f"{_signed(one.difference.mean)} on {one.part.name} at {one.labels:,}"
            for one in found.comparisons
            if one.arm.name == arm.name and one.difference is not None and not one.part.short
        ]
        spent = duration(sum(cell.seconds for cell in cells))
        rows.append((arm.label, duration(arm.pretrain_seconds), spent, "; ".join(gains)))
    return Table(
        "Computing time on this machine, runs side by side counted each; learning-rate trials and checks "
        f"are in the sum below only. Gain: points more than {result.label(result.baseline)} on test, mean over the seeds",
        ("arm", "pretraining", "fine-tuning, all compared runs", "gain"),
        tuple(rows),
    )


def _examples(result: SuiteResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """Test images that an arm wins or loses, as (heading, pictures with captions)."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for example in result.examples:
        where = "" if example.task == CLASSIFY else f"On {example.task}, "
        heading = (
            f"{where}{result.label(example.arm)} does {'better' if example.won else 'worse'} than "
            f"{result.label(result.baseline)} at {example.labels:,} labels (test images)"
        )
        caption = f"{example.name}: {example.truth}; {example.outcome}"
        groups.setdefault(heading, []).append((caption, example.picture))
    return list(groups.items())


def _reconstructions(picture: Path | None) -> str | None:
    if picture is None or not picture.is_file():
        return None
    return data_url(picture.read_bytes(), "png")


def _mean_and_sd(shares: Sequence[float]) -> str:
    mean, _, sd = mean_interval(shares)
    return _percent(mean) if math.isnan(sd) else f"{_percent(mean)} ± {_percent(sd)}"


def _interval(difference: Difference) -> str:
    return f"{_signed(difference.low)} to {_signed(difference.high)}"


def _confidence(difference: Difference) -> str:
    return f"{100 * difference.confidence:g} %"


def _percent(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.2f}"


def _signed(share: float) -> str:
    """A difference in points, with its sign; a small one with as many digits as show that it isn't 0."""
    points = round(100 * share, 10)
    digits = f"{points:+.2f}" if abs(points) >= 0.005 else f"{points:+.1g}"
    return "0.00" if points == 0 else digits.replace("-", MINUS)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)
