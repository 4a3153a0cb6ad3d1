"""The progress of a running suite, on a terminal or as log lines: runs in progress, runs to do, time left."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from ..core.progress import LOG_INTERVAL, TrainingProgress, duration
from .answer_cache import RunningStatus
from .estimates import RunCosts, RuntimeHistory
from .experiment import Context
from .protocol import Results, predict_runs, seconds_spent
from .runs import Run
from .status import status_of

logger = logging.getLogger("maelift")

MIN_SHARE = 0.02
"""Share of a run from which on its time counts for the time left: the first steps are slow."""


class RunProgress:
    """Reports the progress of a suite: on a terminal the runs in progress, elsewhere a line now and then.

    ``status_file``: where ``--status`` finds the status while the suite runs.
    """

    def __init__(
        self,
        context: Context,
        results: Results,
        workers: int,
        costs: RunCosts,
        status_file: RunningStatus | None = None,
    ) -> None:
        self.context, self.results, self.workers = context, results, workers
        self.count = 0
        self._cost, self._status_file = costs.of, status_file
        self._latest: dict[str, TrainingProgress] = {}
        self._first: dict[str, tuple[float, TrainingProgress]] = {}
        self._began = self._logged = time.monotonic()
        self._history = RuntimeHistory(self._cost)
        self._left: list[Run] = []
        self._spent = 0.0
        self._live: Any = None

    def __enter__(self) -> RunProgress:
        predicted = self._predict()
        self._spent = seconds_spent(predicted, self.results)
        self._history = RuntimeHistory.of(predicted, self.results, self._cost)
        logger.info(
            "bench: %d runs to do, %d at a time; more where rates or steps are extended", len(self._left), self.workers
        )
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Release the terminal; from now on ``--status`` follows from the finished runs."""
        if self._status_file is not None:
            self._status_file.remove()
        if self._live is not None:
            self._live.stop()

    def spent(self) -> float:
        """Seconds of computing of the finished runs, those of earlier commands too."""
        return self._spent

    def update(self, key: str, progress: TrainingProgress) -> None:
        """Set the progress of the run with this key."""
        if key not in self._latest or progress.step < self._latest[key].step:
            self._first[key] = time.monotonic(), progress
        self._latest[key] = progress

    def finished(self, run: Run) -> None:
        """Count a run that is done."""
        self.count += 1
        result = self.results(run) or {}
        seconds = float(result.get("seconds", 0))
        self._spent += seconds
        self._history.add(run, seconds)
        self._predict()
        scored = "val" in result and not self.context.is_refit(run)
        score = f", {100 * result['val']:.1f} % on validation" if scored else ""
        text = f"bench: {run.title()}: done in {duration(seconds)}{score}"
        if self._live is None:
            logger.info(text)
        else:
            self._live.console.print(text, markup=False, highlight=False)

    def show(self, running: list[Run]) -> None:
        """Show the runs in progress and the time left, if no arm needs more rates or steps."""
        if self._status_file is not None and self._status_file.is_due:
            status = status_of(self.context, self.results).text()
            self._status_file.write("\n".join([status, "", *self._lines(running)]))
        if self._live is not None:
            self._live.update(self._table(running))
        elif time.monotonic() - self._logged >= LOG_INTERVAL:
            self._logged = time.monotonic()
            logger.info("\n".join(self._lines(running)))

    def _lines(self, running: list[Run]) -> list[str]:
        """The summary, and a line for each run in progress."""
        lines = [self._summary(running)]
        for run, progress in self._reported(running):
            lines.append(
                f"  {run.title()}: step {progress.step}/{progress.total}, loss {progress.loss:.3f}, "
                f"{progress.images_per_second:.0f} images/s"
            )
        return lines

    def _reported(self, running: list[Run]) -> list[tuple[Run, TrainingProgress]]:
        """The runs in progress that have reported it."""
        return [(run, self._latest[run.key]) for run in running if run.key in self._latest]

    def _table(self, running: list[Run]) -> Any:
        """What a terminal shows: the summary, and a row for each run in progress."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("run", box=None, pad_edge=False)
        for column in ("step", "loss", "images/s"):
            table.add_column(column, justify="right")
        known = dict(self._reported(running))
        for run in running:
            cells = ("", "", "")
            if (progress := known.get(run)) is not None:
                step = f"{progress.step}/{progress.total}"
                cells = (step, f"{progress.loss:.3f}", f"{progress.images_per_second:.0f}")
            table.add_row(Text(run.title()), *cells)
        return Group(Text(self._summary(running)), table)

    def _predict(self) -> list[Run]:
        """All predicted runs; remembers those that are to be done."""
        predicted = list(predict_runs(self.context, self.results).values())
        self._left = [run for run in predicted if self.results(run) is None]
        return predicted

    def _summary(self, running: list[Run]) -> str:
        elapsed, left = time.monotonic() - self._began, self._time_left(running)
        said = (
            "time left unknown yet"
            if left is None
            else f"about {duration(left)} left unless rates or steps are extended"
        )
        return f"bench: {self.count} runs done in {duration(elapsed)}, {len(self._left)} to do, {said}"

    def _time_left(self, running: list[Run]) -> float | None:
        """Seconds until all is done, by what runs took so far; None while no run is far enough for an estimate."""
        history, now = self._history.copy(), time.monotonic()
        shares = {}
        for run, progress in self._reported(running):
            began, first = self._first[run.key]
            shares[run.key] = progress.step / max(progress.total, 1)
            seen = (progress.step - first.step) / max(progress.total, 1)
            if seen > MIN_SHARE and not self._history.knows(run):
                history.add(run, now - began, seen)
        times = [(run, history.seconds(run)) for run in self._left]
        if any(seconds is None for _, seconds in times):
            return None
        return sum(seconds * (1 - shares.get(run.key, 0)) for run, seconds in times if seconds) / self.workers
