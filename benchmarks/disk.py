"""What a suite's runs take on the disk: weights in float32, and checkpoints of those that are at work."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from ..core.encoder import Encoder, EncoderSpec
from ..pretrain.planning import disk_bytes
from .arms import PRETRAINING, Context, Run

FLOAT = 4
STATE = 4
"""Copies of the weights in a checkpoint: they, two moments, the average."""


def bytes_left(context: Context, runs: Iterable[Run]) -> int:
    """What runs leave: an encoder, with MAE its decoder too, or a model; results of a few kB are not counted."""
    return sum(_left(context, run) for run in runs)


def bytes_held(context: Context, runs: Iterable[Run], workers: int) -> int:
    """The most that ``workers`` runs at a time hold besides, until they end."""
    return sum(sorted((_held(context, run) for run in runs), reverse=True)[:workers])


def _left(context: Context, run: Run) -> int:
    config = context.config
    if run.kind == "mae":
        return disk_bytes(config.mae_config(run.arm, run.seed, ""), config.spec_of(run.arm)).left
    if run.kind in PRETRAINING:
        return FLOAT * encoder_parameters(config.spec_of(run.arm))
    if run.kind == "train" and not context.is_trial(run.task, run.seed):
        return FLOAT * (encoder_parameters(config.spec_of(run.arm, run.task)) + context.head_parameters(run.task))
    return 0


def _held(context: Context, run: Run) -> int:
    config = context.config
    if run.kind == "mae":
        return disk_bytes(config.mae_config(run.arm, run.seed, ""), config.spec_of(run.arm)).checkpoints
    if run.kind == "supervised":
        return 2 * STATE * FLOAT * encoder_parameters(config.spec_of(run.arm))  # one kept, one being written
    return 0


@cache
def encoder_parameters(spec: EncoderSpec) -> int:
    """How many parameters an encoder of this shape has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Encoder(spec).parameters())
