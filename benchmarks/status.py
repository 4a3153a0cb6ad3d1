"""The status of a suite as a table: what is finished of each arm, task and label count."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.progress import duration
from .experiment import Context
from .protocol import Results, arm_state, encoder_runs, iter_cells, predict_runs, seconds_spent


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
        more = "; more where steps are doubled" if self.done < self.runs else ""
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
        "open" if state.tuning is None else f"{state.tuning.chosen:g}",
        "open" if state.check is None else f"{state.check.steps:,}{'' if state.check.converged else ' or more'}",
        f"{len(state.cells)} of {seeds}",
    )
