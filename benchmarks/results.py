"""What a suite ends with: plain values that the report is written from. Accuracies are shares from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arm:
    """One way to come by an encoder; ``note`` is what a reader must know of it, ``pretrain_seconds`` its compute."""

    name: str
    label: str
    note: str
    recipe: Mapping[str, object]
    pretrain_seconds: float


@dataclass(frozen=True)
class Curve:
    """Validation accuracy and training loss over the steps of a run; the two need not be measured at the same steps."""

    steps: tuple[int, ...]
    val_accuracy: tuple[float, ...]
    loss_steps: tuple[int, ...]
    train_loss: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One finished run of an arm, at a label count, with a seed; ``key`` hashes all that determines it."""

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


@dataclass(frozen=True)
class TuningRecord:
    """The learning rates that an arm tried at a label count, and the one with the best validation accuracy."""

    arm: str
    labels: int
    rates: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    chosen: float
    steps: int
    seed: int


@dataclass(frozen=True)
class ConvergenceCheck:
    """What twice the steps bring an arm, on validation, paired over ``seeds``: ``gain`` against its ``noise``."""

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

    ``counts`` are images by use (pool, labelled source, validation, test); ``guards`` what the overlap check found, in
    words; ``missing`` names runs that are not there, which makes the result partial; ``seconds_total`` is compute.
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
