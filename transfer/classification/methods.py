"""The methods of classification: which task trains as ``method`` says."""

from __future__ import annotations

from .config import PROBES, ClassifyConfig
from .partial_lora import LoraTask, PartialTask
from .probe import ProbeTask
from .task import ClassificationTask


def task_type(config: ClassifyConfig) -> type[ClassificationTask]:
    """The task for a configuration's ``method``."""
    if config.method in PROBES:
        return ProbeTask
    return {"full": ClassificationTask, "partial": PartialTask, "lora": LoraTask}[config.method]
