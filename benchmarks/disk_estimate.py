"""What a suite's runs take on the disk: weights in float32, and checkpoints of the runs in progress."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.models.backbone_cost import backbone_parameters
from ..core.models.cost import FLOAT_BYTES, checkpoint_bytes
from .experiment import Context
from .runs import Run


def bytes_saved(context: Context, runs: Iterable[Run]) -> int:
    """What runs save: an encoder, with MAE its decoder too, or a model; results of a few kB are not counted."""
    return sum(_saved(context, run) for run in runs)


def checkpoint_peak(context: Context, runs: Iterable[Run], workers: int) -> int:
    """The most that checkpoints of ``workers`` runs at a time take, until they end."""
    return sum(sorted((_checkpoints(context, run) for run in runs), reverse=True)[:workers])


def _saved(context: Context, run: Run) -> int:
    if run.makes_encoder:
        return FLOAT_BYTES * context.config.arm_kind(run.arm).saved(context, run.arm).parameters
    if run.kind == "train" and run.fold < 0:
        encoder = backbone_parameters(context.config.spec_of(run.arm, run.task))
        return FLOAT_BYTES * (encoder + context.task_model(run.task).head_parameters)
    return 0


def _checkpoints(context: Context, run: Run) -> int:
    if not run.makes_encoder:
        return 0
    saved = context.config.arm_kind(run.arm).saved(context, run.arm)
    return checkpoint_bytes(saved.parameters, saved.checkpoints, averaged=saved.averaged) if saved.checkpoints else 0
