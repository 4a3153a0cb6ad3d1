"""``maelift transfer TASK``: its first words, before the modules that train are imported, which takes seconds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .config import TransferConfig

if TYPE_CHECKING:
    from ..core.dry_run import Plan
    from .evaluate import EvaluationResult
    from .result import TransferResult

logger = logging.getLogger("maelift")


def plan(config: TransferConfig) -> Plan:
    """What ``run_or_evaluate`` would do and roughly cost; writes nothing."""
    _begin(config)
    from . import dry_run

    return dry_run.plan(config)


def run_or_evaluate(config: TransferConfig) -> TransferResult | EvaluationResult:
    """What the command does: a transfer, or with ``evaluate`` the evaluation of the model that one has saved."""
    _begin(config)
    from .evaluate import evaluate
    from .finetune import run

    return run(config) if config.evaluate is None else evaluate(config, config.evaluate)


def _begin(config: TransferConfig) -> None:
    start = config.encoder or f"random weights of {config.model}"
    logger.info("transfer %s: %s on %s, result in %s", config.task_name, start, config.data, config.out)
