"""What is compared on a task of a suite: label counts, seeds, and how every arm is tuned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.config_keys import nearest
from ..core.errors import ConfigError
from ..transfer import tasks
from ..transfer.tasks import CLASSIFY, ReportedScores
from .public_data import PublicSet
from .tuning import SearchSpace


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Another task that the same arms are compared on, with annotated images of its own."""

    task: str
    """what is trained: see maelift transfer detect -h, segment -h"""
    data: str
    """annotated images, as maelift transfer takes them: COCO JSON, or masks"""
    labels: tuple[int, ...]
    """numbers of annotated training images"""
    seeds: tuple[int, ...] | dict[str, tuple[int, ...]]
    """for all label counts, or for each; a seed is one draw of annotated images, one head and one order, for all arms"""
    val: int | float = 0.1
    """validation images where the data has no such split, a count or a share"""
    test: int | float = 0.1
    """test images where the data has no such split, a count or a share"""
    seed: int = 0
    """seeds the split"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the suite's"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """keys of maelift transfer for all arms, recipe: small among them"""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """keys of maelift transfer that an arm has in place of those"""
    steps: int | dict[str, int] | None = None
    """steps of training, or those of each label count; doubled for as long as that helps; null: the recipe's epochs"""
    rates: tuple[float, ...] | None = None
    """learning rates tried; null: those of tuning"""
    max_doublings: int | None = None
    """how often an arm's steps may be doubled; null: as tuning says"""
    evaluations: int | None = None
    """times that a run is evaluated on validation images, which is expensive in detection; null: the suite's"""
    short: bool = False
    """one run a seed at the recipe's own rate: nothing is tuned or checked, and no verdict is drawn"""
    public: PublicSet | None = None
    """the public data set that the images are of, as data.public; null: by the names of the last two folders of data"""

    def __post_init__(self) -> None:
        known = [name for name in tasks.names() if name != CLASSIFY]
        if self.task not in known:
            close = nearest(self.task, known)
            raise ConfigError(
                "task", self.task, f"one of {', '.join(known)}", f"Did you mean {close}?" if close else ""
            )


@dataclass(frozen=True)
class Tuning:
    """What every arm tries at every label count, chosen on validation only."""

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """learning rates tried at the fewest steps; more beyond an end that does best"""
    per_seed: bool = True
    """each compared seed chooses its rate and steps itself, so that the intervals cover the luck of that choice; false: the mean
    over draws chooses for all seeds, which takes less computing, and the intervals don't cover it"""
    draws: int = 3
    """per_seed=false: compared seeds whose mean chooses"""
    max_doublings: int = 4
    """how often an arm's steps may be doubled; twice and four times as many are always tried, where this allows it"""
    max_extensions: int = 2
    """rates tried beyond each end of rates, while the end does best"""
    seed: int | None = None
    """without effect: trials are made with the compared seeds"""
    check_seeds: int | None = None
    """without effect: more steps are tried with all seeds that choose"""

    def __post_init__(self) -> None:
        if len(self.rates) < 4 or len(set(self.rates)) < len(self.rates):
            raise ConfigError("rates", list(self.rates), "at least 4 rates, all different")
        if min(self.rates) <= 0:
            raise ConfigError("rates", list(self.rates), "rates above 0")
        if self.draws < 1:
            raise ConfigError("draws", self.draws, "1 or more")
        for key in ("max_doublings", "max_extensions"):
            if getattr(self, key) < 0:
                raise ConfigError(key, getattr(self, key), "0 or more")

    @property
    def unused(self) -> list[str]:
        """Keys of earlier versions that were given, and have no effect."""
        return [key for key in ("seed", "check_seeds") if getattr(self, key) is not None]


@dataclass(frozen=True)
class TaskDesign:
    """What is compared on a task: label counts, seeds, and how every arm is tuned and evaluated; ``short``: it isn't tuned.

    ``cross``: settings are chosen by cross-validation within the labelled images of a seed, not on validation images.
    """

    name: str
    kind: str
    """its name in the table of tasks (transfer/tasks.py)"""
    labels: tuple[int, ...]
    seeds: tuple[int, ...] | dict[str, tuple[int, ...]]
    tuning: Tuning
    evaluations: int
    short: bool = False
    cross: bool = False

    @property
    def scores(self) -> ReportedScores:
        """The scores that are reported of it."""
        return tasks.entry(self.kind).scores

    def space(self, steps: int, variants: tuple[str, ...]) -> SearchSpace:
        """What an arm tries whose tuning begins with so many steps."""
        tuning = self.tuning
        return SearchSpace(
            tuning.rates,
            steps,
            variants,
            max_doublings=tuning.max_doublings,
            max_extensions=tuning.max_extensions,
            per_seed=tuning.per_seed,
            draws=tuning.draws,
        )

    def seeds_at(self, labels: int) -> tuple[int, ...]:
        """The seeds that are compared at a label count."""
        return self.seeds[str(labels)] if isinstance(self.seeds, dict) else self.seeds

    def check(self) -> None:
        """Raise ConfigError for what can't be compared."""
        check_distinct("labels", self.labels)
        if min(self.labels) < 1:
            raise ConfigError("labels", list(self.labels), "counts of at least 1")
        if self.evaluations < 1:
            raise ConfigError("evaluations", self.evaluations, "1 or more")
        for labels in self.labels:
            if isinstance(self.seeds, dict) and str(labels) not in self.seeds:
                raise ConfigError("seeds", self.seeds, f"seeds for {labels} labels too")
            seeds = self.seeds_at(labels)
            check_distinct("seeds", seeds)
            if not self.tuning.per_seed and self.tuning.draws > len(seeds) and not self.short:
                raise ConfigError("tuning.draws", self.tuning.draws, f"at most the {len(seeds)} seeds")


def check_distinct(key: str, values: tuple[int, ...]) -> None:
    """Raise ConfigError unless there are values, none negative and no two equal."""
    if not values or len(set(values)) != len(values) or min(values) < 0:
        raise ConfigError(key, list(values), "one or more whole numbers from 0 up, all different")
