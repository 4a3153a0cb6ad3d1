"""The result of a suite: the values that its report is written from; scores are shares from 0 to 1."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import MaeliftError
from ..transfer import tasks
from ..transfer.tasks import ReportedScores
from .model_cost import ModelCost
from .stats import gain_limit

AUTO = "auto"
"""As a suite's baseline: at each label count the arm without pretraining that is best on validation."""


def pack_items(values: NDArray[np.float64] | None) -> str:
    """Scores of single items as text, with seven digits; empty where they aren't known."""
    if values is None:
        return ""
    return base64.b64encode(zlib.compress(np.asarray(values, dtype="<f4").tobytes())).decode()


def unpack_items(text: str) -> NDArray[np.float64]:
    """What ``pack_items`` packed."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<f4").astype(np.float64)


@dataclass(frozen=True)
class Arm:
    """One way to get an encoder.

    ``note`` is what a reader must know of it (that it is an upper bound, say), ``pretrain_seconds`` its
    compute, ``x`` its place on the suite's axis, if it has one. ``pretrained``: it begins with trained weights. ``upper_bound``:
    it has seen labels that the others haven't, so that no verdict is drawn. ``pretraining``: its resolved settings,
    where the suite pretrains it. ``network``: its architecture and image size, where these aren't the suite's.
    """

    name: str
    label: str
    note: str
    pretrain_seconds: float
    x: float | None = None
    pretrained: bool = True
    upper_bound: bool = False
    pretraining: Mapping[str, object] = field(default_factory=dict)
    network: str = ""


@dataclass(frozen=True)
class Curve:
    """Validation score and training loss over a run, not always measured at the same steps."""

    steps: tuple[int, ...]
    val: tuple[float, ...]
    loss_steps: tuple[int, ...]
    train_loss: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One finished run of an arm, at a label count, with a seed; ``key`` hashes all that determines it.

    ``test`` are its scores on the test split, by the keys of its task's ``ReportedScores``; None where one can't be measured.
    ``encoder`` is the seed that its encoder was pretrained with, -1 where it was not; ``items`` what each test item brings to the
    first score, packed.
    """

    arm: str
    labels: int
    seed: int
    lr: float
    steps: int
    val: float
    test: Mapping[str, float | None]
    curve: Curve
    seconds: float
    key: str
    encoder: int = -1
    items: str = ""

    def item_scores(self) -> NDArray[np.float64]:
        """What each test item brings to the first score; none where it isn't known."""
        return unpack_items(self.items) if self.items else np.zeros(0)


@dataclass(frozen=True)
class Trial:
    """A training that was tried for a seed, with its validation score (0 where it diverged); ``chosen``: it was compared."""

    seed: int
    rate: float
    steps: int
    variant: str
    val: float
    chosen: bool


@dataclass(frozen=True)
class TuningRecord:
    """What an arm tried at a label count.

    ``per_seed``: each seed chose for itself, so that the choice is part of what the intervals cover. ``edge``: the end of the
    rates, "lowest" or "highest", that did best in the mean though none beyond it was tried; empty for none. ``runs``: trainings
    that it took, those of all folds among them; 0 of earlier results, which had one a trial.
    """

    arm: str
    labels: int
    trials: tuple[Trial, ...]
    per_seed: bool
    edge: str = ""
    runs: int = 0

    @property
    def chosen(self) -> tuple[Trial, ...]:
        """The compared trainings, one a seed."""
        return tuple(trial for trial in self.trials if trial.chosen)


@dataclass(frozen=True)
class ConvergenceCheck:
    """What more steps bring an arm on validation, over ``seeds``: from ``steps`` to the ``longest`` that were tried.

    ``gain`` is the mean, ``limit`` the most that it is (one-sided 95 %; infinite for one seed). ``settled``: two doublings were
    looked ahead, and the fewest of these steps did best in the mean.
    """

    arm: str
    labels: int
    steps: int
    seeds: tuple[int, ...]
    val: tuple[float, ...]
    val_longer: tuple[float, ...]
    gain: float
    limit: float
    settled: bool
    longest: int


@dataclass(frozen=True)
class TaskResult:
    """A task of a suite, and what came of it.

    ``kind``: its name in the table of tasks (transfer/tasks.py). ``seeds`` are those compared at each label count; ``counts`` are
    images by use (labelled source, validation, test). ``short``: nothing was tuned or checked. ``recipes``: each arm's.
    ``clusters``: which patient, video or flight each test item is of, as numbers; empty where every item is drawn by itself.
    ``class_counts``: test images of each class, where each has one. ``tuning_seconds``: each arm's trainings to tune.
    ``cross_folds``: the most folds of a seed's labelled images, by which settings were chosen; 0: by validation images.
    """

    name: str
    kind: str
    label_counts: tuple[int, ...]
    seeds: Mapping[int, tuple[int, ...]]
    cells: tuple[Cell, ...]
    tunings: tuple[TuningRecord, ...]
    checks: tuple[ConvergenceCheck, ...]
    counts: Mapping[str, int]
    recipes: Mapping[str, Mapping[str, object]]
    short: bool = False
    clusters: tuple[int, ...] = ()
    class_counts: tuple[int, ...] = ()
    tuning_seconds: Mapping[str, float] = field(default_factory=dict)
    cross_folds: int = 0

    @property
    def scores(self) -> ReportedScores:
        """The scores that are reported of it."""
        return tasks.entry(self.kind).scores

    @property
    def figure(self) -> str:
        """The name of the score that verdicts go by, in a sentence."""
        return self.scores.figure

    def score(self, cell: Cell) -> float:
        """The test score of a run that verdicts go by, a share; 0 where nothing could be measured."""
        return cell.test.get(self.scores.key) or 0.0

    def cells_of(self, arm: str, labels: int) -> list[Cell]:
        """The runs of an arm at a label count."""
        return [cell for cell in self.cells if cell.arm == arm and cell.labels == labels]

    def by_seed(self, arm: str, labels: int) -> dict[int, Cell]:
        """The same by seed; one of each, where a seed was run with several encoders."""
        return {cell.seed: cell for cell in self.cells_of(arm, labels)}

    def mean_score(self, arm: str, labels: int) -> float:
        """The mean test score of an arm at a label count; at least one run must be there."""
        cells = self.by_seed(arm, labels).values()
        return sum(self.score(cell) for cell in cells) / len(cells)


@dataclass(frozen=True)
class Example:
    """A test image of a task on which an arm does better than the ``other`` (``won``), or worse.

    ``truth`` is what it shows, ``outcome`` how both did; ``picture`` is a data URL of a small copy.
    """

    task: str
    arm: str
    labels: int
    won: bool
    name: str
    truth: str
    outcome: str
    picture: str
    other: str = ""


@dataclass(frozen=True)
class NearPair:
    """An image left out of ``part``, and the evaluation image that it is a near-duplicate of; pictures as in ``Example``."""

    part: str
    name: str
    other: str
    likeness: float
    pictures: tuple[str, str]


@dataclass(frozen=True)
class SuiteResult:
    """Everything that the report of a suite says.

    ``parts`` are its tasks; ``pool`` counts the images to pretrain on; ``guards``: findings of the overlap check; ``missing``
    names runs that are not there, which makes the result partial; ``seconds_total`` is compute. ``failed``: runs that ended with
    an error, and which; ``unspent``: why others were not started. ``axis``: what the arms differ in, where it is a number;
    ``published``: the protocol in ``published.yaml`` that a task follows, if any; ``examples``: test images that arms win and
    lose; ``near``: near-duplicates that were left out. ``baseline``: an arm, or "auto" for the best without pretraining by
    validation, at each label count of each task. ``looks``: the numbers of units at which results may be read, planned before
    the first run; empty: once, at the end. ``effect``: the difference worth resolving, a share, which the report plans for.
    ``costs``: what the trained models cost to use, of those that were measured. ``seen``: what is known of arms' weights having
    been trained on the public data set that the images are of.
    ``shown``: a sentence on the channels that pictures of test images show, where that must be said.
    """

    name: str
    title: str
    baseline: str
    arms: tuple[Arm, ...]
    parts: tuple[TaskResult, ...]
    pool: int
    guards: tuple[str, ...]
    reconstructions: Path | None
    config_yaml: str
    versions: Mapping[str, str]
    machine: str
    seconds_total: float
    pretraining_seeds: int
    missing: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unspent: str = ""
    axis: str | None = None
    published: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    near: tuple[NearPair, ...] = ()
    looks: tuple[int, ...] = ()
    effect: float | None = None
    costs: tuple[ModelCost, ...] = ()
    seen: tuple[str, ...] = ()
    shown: str = ""

    def label(self, name: str) -> str:
        """What an arm is called."""
        return next((arm.label for arm in self.arms if arm.name == name), name)

    @property
    def rivals(self) -> list[Arm]:
        """The arms with a verdict: all but a named baseline, or with ``AUTO`` those that were pretrained; no upper bound."""
        return [
            arm
            for arm in self.arms
            if not arm.upper_bound and (arm.pretrained if self.baseline == AUTO else arm.name != self.baseline)
        ]

    def reference(self, part: TaskResult, labels: int) -> str:
        """The arm that others are compared with at a label count: the named one, with ``AUTO`` the best unpretrained."""
        return self.baseline if self.baseline != AUTO else self.best_unpretrained(part, labels)

    def best_unpretrained(self, part: TaskResult, labels: int) -> str:
        """The arm without pretraining that is best on validation, so that the test images have no say in it; empty for none.

        By the mean over the seeds that all of them have, where there are such.
        """
        runs = {
            arm.name: found
            for arm in self.arms
            if not (arm.pretrained or arm.upper_bound) and (found := part.by_seed(arm.name, labels))
        }
        shared = set.intersection(*(set(found) for found in runs.values())) if runs else set()
        means = {
            name: float(np.mean([cell.val for seed, cell in found.items() if seed in shared or not shared]))
            for name, found in runs.items()
        }
        return max(means, key=means.__getitem__) if means else ""

    def to_json(self, folder: Path | None = None) -> str:
        """The result as text; ``from_json`` makes an equal one of it, to write its report again.

        A picture in ``folder``, where the text is going to be, is named from there.
        """
        content, picture = asdict(self), self.reconstructions
        if picture is not None and folder is not None and picture.is_relative_to(folder):
            content["reconstructions"] = picture.relative_to(folder)
        return json.dumps(content, default=str, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, folder: Path | None = None) -> SuiteResult:
        """The result that ``to_json`` wrote, into a file of ``folder``; raises MaeliftError for any other text."""
        try:
            content = _tuples(json.loads(text))
            content["arms"] = tuple(Arm(**arm) for arm in content["arms"])
            content["parts"] = tuple(_part(part) for part in content["parts"])
            content["examples"] = tuple(Example(**example) for example in content["examples"])
            content["near"] = tuple(NearPair(**pair) for pair in content["near"])
            content["costs"] = tuple(ModelCost(**cost) for cost in content.get("costs", ()))
            picture = content["reconstructions"]
            content["reconstructions"] = None if picture is None else (folder or Path()) / picture
            return cls(**content)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            keys = ", ".join(field.name for field in fields(cls))
            raise MaeliftError(f"not a suite's result ({error!r}): expected JSON with {keys}.") from error


def _part(content: dict[str, Any]) -> TaskResult:
    content["seeds"] = {int(labels): seeds for labels, seeds in content["seeds"].items()}
    curves = [Curve(**cell.pop("curve")) for cell in content["cells"]]
    content["cells"] = tuple(Cell(**cell, curve=curve) for cell, curve in zip(content["cells"], curves, strict=True))
    content["tunings"] = tuple(_tuning(tuning) for tuning in content["tunings"])
    content["checks"] = tuple(_check(check) for check in content["checks"])
    return TaskResult(**content)


def _tuning(content: dict[str, Any]) -> TuningRecord:
    """A record; also of a result of version 0.1, which tried its rates with one seed that wasn't compared."""
    if "trials" in content:
        return TuningRecord(**{**content, "trials": tuple(Trial(**trial) for trial in content["trials"])})
    tried = zip(content["rates"], content["val"], strict=True)
    trials = (Trial(content["seed"], rate, content["steps"], "", val, rate == content["chosen"]) for rate, val in tried)
    return TuningRecord(content["arm"], content["labels"], tuple(trials), per_seed=False)


def _check(content: dict[str, Any]) -> ConvergenceCheck:
    """A check; also of a result of version 0.1, which looked one doubling ahead."""
    if "limit" in content:
        return ConvergenceCheck(**content)
    kept = {key: content[key] for key in ("arm", "labels", "steps", "seeds", "val")}
    gain, limit = gain_limit(content["val"], content["val_doubled"], None)
    longest, settled = 2 * content["steps"], content["converged"]
    return ConvergenceCheck(
        **kept, val_longer=content["val_doubled"], gain=gain, limit=limit, settled=settled, longest=longest
    )


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
