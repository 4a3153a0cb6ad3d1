"""The status of a suite as a table: what is finished of each arm, task and label count."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.progress import duration
from .experiment import Context
from .protocol import Results, arm_state, encoder_runs, iter_cells, predict_runs, seconds_spent
from .results import TuningRecord


@dataclass(frozen=True)
class Status:
    """The status of a suite: a row a task, arm and label count (``COLUMNS``); runs done and predicted; seconds of computing."""

    rows: tuple[tuple[str, ...], ...]
    done: int
    runs: int
    seconds: float

    COLUMNS = ("task", "arm", "labels", "encoder", "rate", "steps", "compared seeds")

    def text(self) -> str:
        """The table, and a line on all of it."""
        table = [self.COLUMNS, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        more = "; more where rates or steps are extended" if self.done < self.runs else ""
        return "\n".join([*lines, f"{self.done} of {self.runs} runs done, {duration(self.seconds)} of computing{more}"])


def status_of(context: Context, results: Results) -> Status:
    """The status of a suite, by its finished runs."""
    runs = predict_runs(context, results)
    return Status(
        tuple(_row(context, *place, results) for place in iter_cells(context.config)),
        sum(results(run) is not None for run in runs.values()),
        len(runs),
        seconds_spent(runs.values(), results),
    )


def _row(context: Context, task: str, arm: str, labels: int, results: Results) -> tuple[str, ...]:
    """The status of an arm on a task at a label count, under ``Status.COLUMNS``."""
    state, design = arm_state(context, task, arm, labels, results), context.config.designs[task]
    encoders = encoder_runs(context, arm)
    made = sum(results(run) is not None for run in encoders)
    seeds = len(design.seeds_at(labels))
    if design.short:
        return (
            *(task, arm, f"{labels:,}", f"{made} of {len(encoders)}" if encoders else "none needed"),
            *("as given", f"{context.steps(task, arm, labels):,}", f"{len(state.cells)} of {seeds}"),
        )
    return (
        task,
        arm,
        f"{labels:,}",
        f"{made} of {len(encoders)}" if encoders else "none needed",
        *_chosen(state.tuning),
        f"{len(state.cells)} of {seeds}",
    )


def _chosen(tuning: TuningRecord | None) -> tuple[str, str]:
    """The rates and the steps that the seeds chose, or the variants."""
    if tuning is None:
        return "open", "open"
    chosen = tuning.chosen
    if chosen[0].variant:
        return ", ".join(sorted({one.variant for one in chosen})), "none"
    rates, steps = sorted({one.rate for one in chosen}), sorted({one.steps for one in chosen})
    return _range([f"{rate:g}" for rate in rates]), _range([f"{count:,}" for count in steps])


def _range(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
