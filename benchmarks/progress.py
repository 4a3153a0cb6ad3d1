"""How far a suite is, told while it runs."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from ..core.progress import LOG_INTERVAL, TrainingProgress, duration
from .answer_cache import RunningNote
from .estimates import RunCosts, RuntimeHistory
from .experiment import Context
from .protocol import Results, predict_runs, seconds_spent
from .runs import Run
from .status import standing

logger = logging.getLogger("maelift")

TELLING = 0.02
"""Share of a run from which on its time tells that of others: the first steps are slow."""


class Board:
    """Shows how far the suite is: on a terminal the runs at work, elsewhere a line now and then."""

    def __init__(self, context: Context, results: Results, workers: int, costs: RunCosts) -> None:
        self._cost = costs.of
        self.context, self.results, self.workers = context, results, workers
        self.count = 0
        self._heard: dict[str, TrainingProgress] = {}
        self._began = self._said = time.monotonic()
        self._begun: dict[str, tuple[float, TrainingProgress]] = {}
        self._history = RuntimeHistory(self._cost)
        self._left: list[Run] = []
        self._spent = 0.0
        self._live: Any = None
        self._note = RunningNote(context.config)

    def __enter__(self) -> Board:
        foreseen = self._look_ahead()
        self._spent = seconds_spent(foreseen, self.results)
        self._history = RuntimeHistory.of(foreseen, self.results, self._cost)
        logger.info("bench: %d runs to do, %d at a time; more where steps are doubled", len(self._left), self.workers)
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give the terminal back; ``--status`` is told by the finished runs from now on."""
        self._note.remove()
        if self._live is not None:
            self._live.stop()

    def spent(self) -> float:
        """Seconds of computing of the finished runs, those of earlier commands too."""
        return self._spent

    def hear(self, key: str, progress: TrainingProgress) -> None:
        """Take in a worker's message."""
        if key not in self._heard or progress.step < self._heard[key].step:
            self._begun[key] = time.monotonic(), progress
        self._heard[key] = progress

    def finished(self, run: Run) -> None:
        """Count a run that is done."""
        self.count += 1
        result = self.results(run) or {}
        seconds = float(result.get("seconds", 0))
        self._spent += seconds
        self._history.add(run, seconds)
        self._look_ahead()
        score = f", {100 * result['val']:.1f} % on validation" if "val" in result else ""
        text = f"bench: {run.title()}: done in {duration(seconds)}{score}"
        if self._live is None:
            logger.info(text)
        else:
            self._live.console.print(text, markup=False, highlight=False)

    def show(self, running: list[Run]) -> None:
        """Show the runs at work and the time left, if no arm needs its steps doubled."""
        if self._note.is_due:
            self._note.write("\n".join([standing(self.context, self.results).text(), "", *self._lines(running)]))
        if self._live is not None:
            self._live.update(self._table(running))
        elif time.monotonic() - self._said >= LOG_INTERVAL:
            self._said = time.monotonic()
            logger.info("\n".join(self._lines(running)))

    def _lines(self, running: list[Run]) -> list[str]:
        """How far the suite is, and a line for each run at work."""
        lines = [self._summary(running)]
        for run, progress in self._under_way(running):
            lines.append(
                f"  {run.title()}: step {progress.step}/{progress.total}, loss {progress.loss:.3f}, "
                f"{progress.images_per_second:.0f} images/s"
            )
        return lines

    def _under_way(self, running: list[Run]) -> list[tuple[Run, TrainingProgress]]:
        """The runs at work that have told how far they are."""
        return [(run, self._heard[run.key]) for run in running if run.key in self._heard]

    def _table(self, running: list[Run]) -> Any:
        """What a terminal shows: how far the suite is, and a row for each run at work."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("run", box=None, pad_edge=False)
        for column in ("step", "loss", "images/s"):
            table.add_column(column, justify="right")
        known = dict(self._under_way(running))
        for run in running:
            far = ("", "", "")
            if (progress := known.get(run)) is not None:
                far = (f"{progress.step}/{progress.total}", f"{progress.loss:.3f}", f"{progress.images_per_second:.0f}")
            table.add_row(Text(run.title()), *far)
        return Group(Text(self._summary(running)), table)

    def _look_ahead(self) -> list[Run]:
        """All runs that are foreseen; keeps those that are to be done."""
        foreseen = list(predict_runs(self.context, self.results).values())
        self._left = [run for run in foreseen if self.results(run) is None]
        return foreseen

    def _summary(self, running: list[Run]) -> str:
        elapsed, ahead = time.monotonic() - self._began, self._ahead(running)
        left = "time left unknown yet" if ahead is None else f"about {duration(ahead)} left unless steps are doubled"
        return f"bench: {self.count} runs done in {duration(elapsed)}, {len(self._left)} to do, {left}"

    def _ahead(self, running: list[Run]) -> float | None:
        """Seconds until all is done, by what runs took so far; None while no run is far enough to tell."""
        history, now = self._history.copy(), time.monotonic()
        shares = {}
        for run, progress in self._under_way(running):
            began, first = self._begun[run.key]
            shares[run.key] = progress.step / max(progress.total, 1)
            seen = (progress.step - first.step) / max(progress.total, 1)
            if seen > TELLING and not self._history.knows(run):
                history.add(run, now - began, seen)
        times = [(run, history.seconds(run)) for run in self._left]
        if any(seconds is None for _, seconds in times):
            return None
        return sum(seconds * (1 - shares.get(run.key, 0)) for run, seconds in times if seconds) / self.workers
