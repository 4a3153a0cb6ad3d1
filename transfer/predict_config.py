"""The keys of ``maelift predict``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.compute_types import Precision
from ..core.data.composite import PictureKeys
from ..core.errors import ConfigError


@dataclass(frozen=True)
class PredictConfig(PictureKeys):
    """Predictions of a trained model: classes, objects, or a class for every pixel."""

    model: str
    """model.safetensors of maelift transfer"""
    images: str
    """image file, folder of images (nested or flat), idx, .npy or .parquet file"""
    out: str | None = None
    """CSV (classify), COCO JSON (detect) or new folder of mask PNGs (segment); null: predictions.csv, .json or masks"""
    draw: bool = False
    """also draw every prediction, into a new folder next to out: NAME.pictures"""
    score_threshold: float | None = None
    """least score of an object, 0 to 1 (detect); null: the detector's own (0.05 by default), and 0.5 in pictures"""
    coco: str | None = None
    """COCO JSON whose image and category ids are used, by file and class name (detect); null: images are counted from 1"""
    batch_size: int = 64
    """images at a time"""
    precision: Precision = "auto"
    """of the computation; auto: bfloat16 on a GPU that has it, else float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: a GPU when there is one"""

    def __post_init__(self) -> None:
        self.check_shown()
        if self.shown is not None and not self.draw:
            raise ConfigError("shown", self.shown, "null without draw=true")
        if self.batch_size < 1:
            raise ConfigError("batch_size", self.batch_size, "1 or more")
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ConfigError("score_threshold", self.score_threshold, "a score from 0 to 1")
