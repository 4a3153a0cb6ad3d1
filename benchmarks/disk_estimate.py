"""What a suite's runs take on the disk: weights in float32, and checkpoints of those that are at work."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from ..core.models.cost import FLOAT_BYTES, checkpoint_bytes
from ..core.models.encoder import Encoder
from ..core.models.encoder_spec import EncoderSpec
from ..pretrain.dry_run import mae_parameters
from .runs import PRETRAINING, Context, Run


def bytes_left(context: Context, runs: Iterable[Run]) -> int:
    """What runs leave: an encoder, with MAE its decoder too, or a model; results of a few kB are not counted."""
    return sum(_left(context, run) for run in runs)


def bytes_held(context: Context, runs: Iterable[Run], workers: int) -> int:
    """The most that ``workers`` runs at a time hold besides, until they end."""
    return sum(sorted((_held(context, run) for run in runs), reverse=True)[:workers])


def _left(context: Context, run: Run) -> int:
    if run.kind in PRETRAINING:
        return FLOAT_BYTES * _pretrained_parameters(context, run)
    if run.kind == "train" and not context.is_trial(run.task, run.seed):
        encoder = encoder_parameters(context.config.spec_of(run.arm, run.task))
        return FLOAT_BYTES * (encoder + context.head_parameters(run.task))
    return 0


def _held(context: Context, run: Run) -> int:
    config = context.config
    if run.kind == "mae":
        mae = config.mae_config(run.arm, run.seed, "")
        kept, averaged = mae.checkpoints, mae.ema_decay is not None
    elif run.kind == "supervised":
        kept, averaged = 1, bool(config.supervised_recipe(run.arm).ema_decay)
    else:
        return 0
    return checkpoint_bytes(_pretrained_parameters(context, run), kept, averaged=averaged)


def _pretrained_parameters(context: Context, run: Run) -> int:
    """Of the encoder that a run makes; with MAE, of its decoder too."""
    spec = context.config.spec_of(run.arm)
    if run.kind == "mae":
        return mae_parameters(context.config.mae_config(run.arm, run.seed, ""), spec)
    return encoder_parameters(spec)


@cache
def encoder_parameters(spec: EncoderSpec) -> int:
    """How many parameters an encoder of this shape has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Encoder(spec).parameters())
