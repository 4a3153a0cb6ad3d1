"""The configuration of the online probes: the labelled images, and how often and by what they are evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..core.data.classification import ClassFolderLayout
from ..core.errors import ConfigError

ProbeKind = Literal["knn", "linear", "attentive"]


@dataclass(frozen=True)
class ProbeConfig:
    """Evaluate the encoder on a few labels during the run; this does not change the weights."""

    data: str | None = None
    """labelled images, as transfer classify reads them: class folders, CSV, folder of idx files, tar shards; null: no probe"""
    labels: int = 1000
    """labelled images that a probe learns from, balanced over the classes; all if there are fewer"""
    val: int = 2000
    """validation images that it is evaluated on; all if there are fewer"""
    kinds: tuple[ProbeKind, ...] = field(default=("knn", "linear"))
    """knn, linear, attentive; knn and linear understate what fine-tuning makes of MAE (paper, Sec. 4.3)"""
    times: int = 5
    """number of evaluations during the run, the last at its end"""
    layout: ClassFolderLayout = "auto"
    """class_folders: every folder of data is a class, whatever its name; auto: folders that may be something else are refused"""
    label_column: str | tuple[str, ...] | None = None
    """data's, a CSV's, column of labels, or [a,b,c]: its columns of 0 and 1, a class each; null: as the header says"""

    def __post_init__(self) -> None:
        for key in ("labels", "val", "times"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "a whole number of at least 1")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ConfigError("kinds", list(self.kinds), "one or more of knn, linear and attentive, each once")
