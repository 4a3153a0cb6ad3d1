"""Prediction: a trained classifier and images in, a CSV of classes and probabilities out."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
import torch

from ..core.config import ConfigError, DataError, MaeliftError
from ..core.distributed import Ranks, autocast, choose_device
from ..core.files import atomic_path, output_folder
from ..core.images import find_images, fit_and_crop, to_array, write_rejected
from ..core.plan import Plan
from ..core.tracking import counting
from .classify import load_classifier

logger = logging.getLogger("maelift")


@dataclass(frozen=True)
class PredictConfig:
    """Classes and probabilities of images."""

    model: str
    """model.safetensors of maelift transfer classify"""
    images: str
    """folder of images (nested or flat), or idx file"""
    out: str = "predictions.csv"
    """CSV to write: path, predicted class, a column of probability for each class"""
    batch_size: int = 64
    """images at a time"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: a GPU when there is one"""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError("batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True)
class PredictResult:
    """Where the predictions are, of how many images, and how many could not be read."""

    out: Path
    count: int
    rejected: int

    def summary(self) -> str:
        """The result in a line."""
        broken = (
            f"; {self.rejected} broken images are named in {self.out.with_suffix('.rejected.csv')}"
            if self.rejected
            else ""
        )
        return f"predictions of {self.count} images: {self.out}{broken}"


def predict(config: PredictConfig) -> PredictResult:
    """Classify images; a broken one is left out, named beside the predictions and counted.

    Raises MaeliftError when the model or the images can't be read, or when every image is broken.
    """
    with Ranks.here(config.device) as ranks:
        model, classes = load_classifier(config.model)
        model.to(ranks.device)
        images = find_images(config.images, "images")
        out = Path(config.out)
        if out.is_dir():
            raise MaeliftError(f"out={out}: a folder. Expected the name of a CSV file.")
        output_folder(out.parent)
        spec, preprocessing = model.encoder.spec, model.encoder.preprocessing
        rejected: list[tuple[str, str]] = []
        count, tell = 0, counting("predict")
        with atomic_path(out) as temporary, _open_csv(temporary) as file, torch.inference_mode():
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "predicted", *(f"probability_{name}" for name in classes)])
            for start in range(0, len(images), config.batch_size):
                names, arrays = [], []
                for number in range(start, min(start + config.batch_size, len(images))):
                    try:
                        arrays.append(to_array(fit_and_crop(images.open(number), spec.image_size), spec.channels))
                        names.append(images.name(number))
                    except DataError as error:
                        rejected.append((images.name(number), str(error)))
                if not arrays:
                    continue
                pixels = torch.from_numpy(np.stack(arrays)).to(ranks.device)
                with autocast(ranks.device, "auto"):
                    logits = model(preprocessing.normalize(pixels))
                for name, row in zip(names, logits.float().softmax(dim=1).cpu().tolist(), strict=True):
                    best = max(range(len(classes)), key=row.__getitem__)
                    writer.writerow([name, classes[best], *(f"{value:.6f}" for value in row)])
                count += len(names)
                tell(count + len(rejected), len(images))
            if count == 0:
                raise DataError(
                    f"images={config.images}: none of {len(images)} can be read; the first: {rejected[0][1]}"
                )
        if rejected:
            write_rejected(out.with_suffix(".rejected.csv"), rejected)
        else:
            out.with_suffix(".rejected.csv").unlink(missing_ok=True)  # of an earlier prediction
        return PredictResult(out, count, len(rejected))


def _open_csv(path: Path) -> TextIO:
    """A file to write in UTF-8, with the names of files that are not UTF-8 as the system has them."""
    return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")


def plan(config: PredictConfig) -> Plan:
    """What ``predict`` would do; writes nothing."""
    model, classes = load_classifier(config.model)
    count = len(find_images(config.images, "images"))
    return Plan(
        (
            ("images", f"{count} in {config.images} (unchecked yet)"),
            ("classes", f"{len(classes)}"),
            ("device", str(choose_device(config.device))),
            ("result", config.out),
        ),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
