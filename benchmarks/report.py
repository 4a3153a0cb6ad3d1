"""The report of a suite: one self-contained HTML page, Markdown, and a CSV of every run."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.files import atomic_write_text
from ..core.tracking import duration
from .results import Arm, Cell, SuiteResult
from .stats import PairedDifference, mean_interval, paired_difference, seeds_to_resolve

COLOURS = ("#0072b2", "#d55e00", "#6b7280", "#009e73", "#cc79a7", "#e69f00")
"""Told apart by the colour-blind too (Okabe and Ito), and legible on light and dark."""


@dataclass(frozen=True)
class Report:
    """The files of a report, and its verdicts in words, the first of them the answer to the suite's question."""

    html: Path
    markdown: Path
    csv: Path
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table for a reader: ``caption`` says unit, split and seeds."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return f"{self.caption}\n\n" + "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )


def write_report(result: SuiteResult, out: Path) -> Report:
    """Write report.html, report.md and results.csv into ``out``; none of the tables depends on timings."""
    verdicts = tuple(_verdicts(result))
    atomic_write_text(out / "results.csv", _csv(result.cells))
    atomic_write_text(out / "report.md", _markdown(result, verdicts))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        result=result,
        verdicts=verdicts,
        warnings=_warnings(result),
        tables=_tables(result),
        checks=_check_tables(result),
        covers=_what_the_intervals_cover(result),
        charts=_charts(result),
        picture=_data_url(result.reconstructions),
        hours=_hours(result),
        spent=duration(result.seconds_total),
    )
    atomic_write_text(out / "report.html", page)
    return Report(out / "report.html", out / "report.md", out / "results.csv", verdicts)


def _verdicts(result: SuiteResult) -> Iterable[str]:
    others = [arm for arm in result.arms if arm.name != result.baseline]
    ordered = [(labels, arm) for labels in result.label_counts for arm in others]
    for labels, arm in ordered:
        difference = _difference(result, arm.name, result.baseline, labels)
        yield (
            f"At {labels:,} labels: {arm.label} cannot be compared with {_label(result, result.baseline)}, as runs are "
            "missing."
            if difference is None
            else _sentence(arm, _label(result, result.baseline), labels, difference, result.counts["test"])
        )


def _sentence(arm: Arm, baseline: str, labels: int, difference: PairedDifference, test_images: int) -> str:
    begin = (
        f"At {labels:,} labels, {arm.label} {difference.verdict}"
        if difference.verdict != "not resolved"
        else f"At {labels:,} labels, whether {arm.label} helps is not resolved"
    )
    if math.isinf(difference.low):
        spread = "no interval: one seed" if difference.n == 1 else "no interval: every seed gave the same difference"
        return f"{begin}: {_signed(difference.mean)} points of test accuracy over {baseline} ({spread}). More seeds are needed."
    numbers = (
        f"{_signed(difference.mean)} points of test accuracy over {baseline} (95 % interval {_signed(difference.low)} to "
        f"{_signed(difference.high)}; {difference.n} paired seeds, {test_images:,} test images)"
    )
    if difference.verdict != "not resolved":
        return f"{begin}: {numbers}."
    needed = seeds_to_resolve(difference)
    advice = (
        "no realistic number of seeds would likely resolve it"
        if needed is None
        else f"about {needed - difference.n} more seeds would likely resolve it, if mean and spread stay as they are"
    )
    return f"{begin}: {numbers}; {advice}."


def _difference(result: SuiteResult, arm: str, other: str, labels: int) -> PairedDifference | None:
    """The paired difference of test accuracies over the seeds that both arms have."""
    mine, theirs = _by_seed(result, arm, labels), _by_seed(result, other, labels)
    seeds = sorted(set(mine) & set(theirs))
    if not seeds:
        return None
    return paired_difference([mine[seed].test_top1 for seed in seeds], [theirs[seed].test_top1 for seed in seeds])


def _by_seed(result: SuiteResult, arm: str, labels: int) -> dict[int, Cell]:
    return {cell.seed: cell for cell in result.cells if cell.arm == arm and cell.labels == labels}


def _label(result: SuiteResult, name: str) -> str:
    return next(arm.label for arm in result.arms if arm.name == name)


def _warnings(result: SuiteResult) -> list[str]:
    warnings = []
    if result.missing:
        warnings.append(f"This report is partial. Missing: {'; '.join(result.missing)}.")
    for check in result.checks:
        if not check.converged:
            warnings.append(
                f"{_label(result, check.arm)} still gains at {check.labels:,} labels: twice the {check.steps:,} steps bring "
                f"{_signed(check.gain)} points of validation accuracy (noise {_percent(check.noise)}). Its result is too low; "
                "raise tuning.max_doublings."
            )
    for tuning in result.tunings:
        if tuning.chosen in (min(tuning.rates), max(tuning.rates)):
            side = "lowest" if tuning.chosen == min(tuning.rates) else "highest"
            warnings.append(
                f"{_label(result, tuning.arm)} at {tuning.labels:,} labels did best at the {side} rate tried "
                f"({tuning.chosen:g}); a rate beyond it might do better."
            )
    return warnings


def _what_the_intervals_cover(result: SuiteResult) -> str:
    pretraining = (
        f"They also cover the luck of pretraining, with {result.pretraining_seeds} pretraining seeds."
        if result.pretraining_seeds > 1
        else "They do not cover the luck of pretraining: each encoder was pretrained once, with one seed."
    )
    seeds = ", ".join(f"{len(seeds)} at {labels:,} labels" for labels, seeds in result.seeds.items())
    return (
        f"Intervals are for the mean over the seeds ({seeds}), by Student's t on paired differences. A seed is one "
        "draw of the labelled images, one initial head, one order and one set of augmentation draws, the same for every "
        f"arm. They cover that luck. {pretraining} They hold for this validation and this test split, and are not corrected "
        "for there being several of them."
    )


def _tables(result: SuiteResult) -> list[Table]:
    counts = result.counts
    accuracy_rows = []
    for labels in result.label_counts:
        for arm in result.arms:
            cells = list(_by_seed(result, arm.name, labels).values())
            if not cells:
                accuracy_rows.append((f"{labels:,}", arm.label, "missing", "", "", "", "0"))
                continue
            top1 = mean_interval([cell.test_top1 for cell in cells])
            accuracy_rows.append(
                (
                    f"{labels:,}",
                    arm.label,
                    _percent(top1[0]),
                    _percent(top1[2]),
                    _percent(mean_interval([cell.test_top5 for cell in cells])[0]),
                    _percent(mean_interval([cell.test_balanced for cell in cells])[0]),
                    str(len(cells)),
                )
            )
    pairs = [(arm.name, result.baseline) for arm in result.arms if arm.name != result.baseline]
    names = [name for name, _ in pairs]
    pairs += [(names[first], names[second]) for first in range(len(names)) for second in range(first + 1, len(names))]
    difference_rows = []
    for labels in result.label_counts:
        for arm_name, other in pairs:
            difference = _difference(result, arm_name, other, labels)
            if difference is None:
                continue
            difference_rows.append(
                (
                    f"{labels:,}",
                    f"{_label(result, arm_name)} − {_label(result, other)}",
                    _signed(difference.mean),
                    "none"
                    if math.isinf(difference.low)
                    else f"{_signed(difference.low)} to {_signed(difference.high)}",
                    _percent(difference.sd) if math.isfinite(difference.sd) else "unknown",
                    str(difference.n),
                    difference.verdict,
                )
            )
    return [
        Table(
            f"Accuracy in % on the {counts['test']:,} test images, mean over seeds; deviation over seeds in points",
            ("labels", "arm", "top-1", "deviation", "top-5", "balanced", "seeds"),
            tuple(accuracy_rows),
        ),
        Table(
            "Paired differences of top-1 test accuracy, in points",
            ("labels", "difference", "mean", "95 % interval", "deviation", "seeds", "verdict"),
            tuple(difference_rows),
        ),
    ]


def _check_tables(result: SuiteResult) -> list[Table]:
    n_val = result.counts["validation"]
    tuning_rows = tuple(
        (
            f"{tuning.labels:,}",
            _label(result, tuning.arm),
            f"{tuning.steps:,}",
            ", ".join(
                f"{rate:g}: {_percent(value)}" for rate, value in zip(tuning.rates, tuning.val_accuracy, strict=True)
            ),
            f"{tuning.chosen:g}",
            str(len(tuning.rates)),
        )
        for tuning in result.tunings
    )
    check_rows = tuple(
        (
            f"{check.labels:,}",
            _label(result, check.arm),
            f"{check.steps:,}",
            _percent(sum(check.val_accuracy) / len(check.val_accuracy)),
            _percent(sum(check.val_accuracy_doubled) / len(check.val_accuracy_doubled)),
            _signed(check.gain),
            _percent(check.noise),
            str(len(check.seeds)),
            "yes" if check.converged else "no",
        )
        for check in result.checks
    )
    return [
        Table(
            f"Learning rates tried, each with its accuracy in % on the {n_val:,} validation images (1 seed, not among those "
            "compared)",
            ("labels", "arm", "steps", "rate: accuracy", "chosen", "trials"),
            tuning_rows,
        ),
        Table(
            f"What twice the steps bring: accuracy in % on the {n_val:,} validation images, mean over the check's seeds; gain "
            "and noise (a standard error) in points",
            ("labels", "arm", "steps", "accuracy", "at twice the steps", "gain", "noise", "seeds", "enough steps"),
            check_rows,
        ),
    ]


def _hours(result: SuiteResult) -> Table:
    rows = []
    for arm in result.arms:
        tuned = sum(cell.seconds for cell in result.cells if cell.arm == arm.name)
        rows.append((arm.label, duration(arm.pretrain_seconds), duration(tuned)))
    return Table(
        "Compute on this machine, of one run's threads; tuning trials and checks are in the total only",
        ("arm", "pretraining", "fine-tuning, all compared runs"),
        tuple(rows),
    )


def _markdown(result: SuiteResult, verdicts: Sequence[str]) -> str:
    warnings = _warnings(result)
    sections = [
        f"# {result.title}",
        "\n".join(f"- {verdict}" for verdict in verdicts),
        *(["**Beware**\n\n" + "\n".join(f"- {warning}" for warning in warnings)] if warnings else []),
        "## Results",
        *(table.markdown() for table in _tables(result)),
        _what_the_intervals_cover(result),
        "\n".join(f"- {arm.label}: {arm.note}." for arm in result.arms),
        "## Fairness",
        *(table.markdown() for table in _check_tables(result)),
        "\n".join(f"- {finding}" for finding in result.guards),
        "## How it was run",
        "\n".join(f"- {name} {version}" for name, version in result.versions.items()) + f"\n- {result.machine}",
        f"```yaml\n{result.config_yaml.rstrip()}\n```",
        "## Time",
        _hours(result).markdown(),
        f"All runs together, tuning and checks included: {duration(result.seconds_total)}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _csv(cells: Sequence[Cell]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        [
            "arm",
            "labels",
            "seed",
            "learning_rate",
            "steps",
            "val_top1_percent",
            "test_top1_percent",
            "test_top5_percent",
            "test_balanced_percent",
            "run",
        ]
    )
    for cell in cells:
        scores = (cell.val_accuracy, cell.test_top1, cell.test_top5, cell.test_balanced)
        percents = [f"{100 * value:.4f}" for value in scores]
        writer.writerow([cell.arm, cell.labels, cell.seed, f"{cell.lr:g}", cell.steps, *percents, cell.key])
    return table.getvalue()


def _charts(result: SuiteResult) -> list[tuple[str, Markup]]:
    """The charts as (description, inline SVG)."""
    if not result.cells:
        return []
    charts = [("Test accuracy over the number of labelled images, with 95 % intervals over seeds", _by_labels(result))]
    for labels in result.label_counts:
        if any(cell.labels == labels for cell in result.cells):
            description = f"Validation accuracy while training on {labels:,} labels: mean over seeds, and range"
            charts.append((description, _curves(result, labels)))
    return charts


def _by_labels(result: SuiteResult) -> Markup:
    figure, axes = _figure()
    for number, (arm, colour) in enumerate(zip(result.arms, _colours(result), strict=True)):
        points = [
            (labels, *mean_interval([cell.test_top1 for cell in cells.values()])[:2])
            for labels in result.label_counts
            if (cells := _by_seed(result, arm.name, labels))
        ]
        shift = 1 + 0.03 * (number - (len(result.arms) - 1) / 2)
        axes.errorbar(
            [labels * shift for labels, _, _ in points],
            [100 * mean for _, mean, _ in points],
            yerr=[0 if math.isnan(half) else 100 * half for _, _, half in points],
            label=arm.label,
            color=colour,
            marker="o",
            capsize=4,
        )
    axes.set_xscale("log")
    axes.set_xticks(result.label_counts, [f"{labels:,}" for labels in result.label_counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled training images")
    axes.set_ylabel(f"top-1 accuracy, % ({result.counts['test']:,} test images)")
    axes.legend(frameon=False, loc="best")
    return _svg(figure, "labels")


def _curves(result: SuiteResult, labels: int) -> Markup:
    figure, axes = _figure()
    for arm, colour in zip(result.arms, _colours(result), strict=True):
        curves = [cell.curve for cell in _by_seed(result, arm.name, labels).values()]
        if not curves:
            continue
        steps = curves[0].steps
        columns = list(zip(*(curve.val_accuracy for curve in curves), strict=True))
        axes.plot(steps, [100 * sum(column) / len(column) for column in columns], label=arm.label, color=colour)
        low, high = ([100 * extreme(column) for column in columns] for extreme in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel("steps of training")
    axes.set_ylabel(f"top-1 accuracy, % ({result.counts['validation']:,} validation images)")
    axes.legend(frameon=False, loc="best")
    return _svg(figure, f"curves{labels}")


def _colours(result: SuiteResult) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(result.arms))]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def _svg(figure: Figure, name: str) -> Markup:
    """A figure as inline SVG: the same bytes each time, its black drawn in the colour of the page's text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    return Markup(text.replace('style="font: ', 'fill="currentColor" style="font: ').replace("#b0b0b0", "currentColor"))


def _data_url(picture: Path | None) -> str | None:
    if picture is None or not picture.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def _percent(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.2f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")
