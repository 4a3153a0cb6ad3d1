"""What a suite ends with: plain values that the report is written from. Accuracies are shares from 0 to 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.config import MaeliftError


@dataclass(frozen=True)
class Arm:
    """One way to come by an encoder.

    ``note`` is what a reader must know of it (that it is an upper bound, say), ``pretrain_seconds`` its
    compute.
    """

    name: str
    label: str
    note: str
    recipe: Mapping[str, object]
    pretrain_seconds: float


@dataclass(frozen=True)
class Curve:
    """Validation accuracy and training loss over a run, not always measured at the same steps."""

    steps: tuple[int, ...]
    val_accuracy: tuple[float, ...]
    loss_steps: tuple[int, ...]
    train_loss: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One finished run of an arm, at a label count, with a seed; ``key`` hashes all that determines it.

    ``encoder`` is the seed that its encoder was pretrained with; ``right`` tells which test images it got right, a bit an
    image, eight to a byte, the first highest, in hexadecimal; empty where that isn't known.
    """

    arm: str
    labels: int
    seed: int
    lr: float
    steps: int
    val_accuracy: float
    test_top1: float
    test_top5: float
    test_balanced: float
    curve: Curve
    seconds: float
    key: str
    encoder: int = 0
    right: str = ""

    def item_scores(self, count: int) -> NDArray[np.float64]:
        """1 for each of the ``count`` test images that it got right, 0 for the others."""
        return np.unpackbits(np.frombuffer(bytes.fromhex(self.right), dtype=np.uint8), count=count).astype(np.float64)


@dataclass(frozen=True)
class TuningRecord:
    """The learning rates that an arm tried at a label count; ``chosen`` did best on validation.

    An accuracy of 0 stands for a trial that diverged.
    """

    arm: str
    labels: int
    rates: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    chosen: float
    steps: int
    seed: int


@dataclass(frozen=True)
class ConvergenceCheck:
    """What twice the steps bring an arm on validation, over ``seeds``: ``gain`` against its ``noise``."""

    arm: str
    labels: int
    steps: int
    seeds: tuple[int, ...]
    val_accuracy: tuple[float, ...]
    val_accuracy_doubled: tuple[float, ...]
    gain: float
    noise: float
    converged: bool


@dataclass(frozen=True)
class SuiteResult:
    """Everything that the report of a suite says.

    ``seeds`` are those compared at each label count; ``counts`` are images by use (pool, labelled source,
    validation, test); ``guards`` what the overlap check found, in words; ``missing`` names runs that are not
    there, which makes the result partial; ``seconds_total`` is compute. ``failed``: runs that ended with an error, and which;
    ``unspent``: why others were not begun.
    """

    name: str
    title: str
    baseline: str
    arms: tuple[Arm, ...]
    label_counts: tuple[int, ...]
    seeds: Mapping[int, tuple[int, ...]]
    cells: tuple[Cell, ...]
    tunings: tuple[TuningRecord, ...]
    checks: tuple[ConvergenceCheck, ...]
    guards: tuple[str, ...]
    counts: Mapping[str, int]
    reconstructions: Path | None
    config_yaml: str
    versions: Mapping[str, str]
    machine: str
    seconds_total: float
    pretraining_seeds: int
    missing: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unspent: str = ""

    def to_json(self) -> str:
        """The result as text; ``from_json`` makes an equal one of it, to write its report again."""
        return json.dumps(asdict(self), default=str, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SuiteResult:
        """The result that ``to_json`` wrote; raises MaeliftError for any other text."""
        try:
            content = _tuples(json.loads(text))
            content["seeds"] = {int(labels): seeds for labels, seeds in content["seeds"].items()}
            content["arms"] = tuple(Arm(**arm) for arm in content["arms"])
            curves = [Curve(**cell.pop("curve")) for cell in content["cells"]]
            cells = zip(content["cells"], curves, strict=True)
            content["cells"] = tuple(Cell(**cell, curve=curve) for cell, curve in cells)
            content["tunings"] = tuple(TuningRecord(**tuning) for tuning in content["tunings"])
            content["checks"] = tuple(ConvergenceCheck(**check) for check in content["checks"])
            picture = content["reconstructions"]
            content["reconstructions"] = None if picture is None else Path(picture)
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            keys = ", ".join(field.name for field in fields(cls))
            raise MaeliftError(f"not a suite's result ({error!r}): expected JSON with {keys}.") from error


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
