"""Evaluation of a classifier on labelled images: the centre of each, and the scores of a split."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core.compute_types import Precision
from ...core.data.classification import ClassImages, LabeledImages
from ...core.data.images import ImageSet
from ...core.data.pixel_format import PLAIN_FORMAT, PixelFormat
from ...core.data.transforms import fit_and_crop, to_array
from ...core.device import autocast
from ...core.distributed import Ranks
from ...core.models.backbone import BackboneSpec
from ...core.models.preprocessing import Preprocessing
from ..metrics import Scores
from .metrics import mean_average_precision, multi_label_scores, single_label_scores
from .model import Classifier

CACHE_BYTES = 2**30
"""Evaluation images are decoded once and cached up to this size in bytes."""


class Evaluation:
    """Labelled images as a model sees them in evaluation: the shorter side fitted, the centre cut out."""

    def __init__(self, labeled: ClassImages, spec: BackboneSpec, preprocessing: Preprocessing) -> None:
        self.labeled, self.spec, self.preprocessing = labeled, spec, preprocessing
        self._cached: list[Tensor] | None = None
        self._small = len(labeled) * spec.channels * math.prod(spec.image_size) <= CACHE_BYTES

    def logits(self, model: nn.Module, ranks: Ranks, precision: Precision = "auto", batch_size: int = 250) -> Tensor:
        """Logits (N, classes), float32, on the CPU."""
        if self._cached is None and self._small:
            self._cached = list(self._pixels(batch_size))
        batches = self._cached if self._cached is not None else self._pixels(batch_size)
        results = []
        with torch.inference_mode(), autocast(ranks.device, precision):
            for pixels in batches:
                results.append(model(self.preprocessing.normalize(pixels.to(ranks.device))).float().cpu())
        return torch.cat(results)

    def _pixels(self, batch_size: int) -> Iterator[Tensor]:
        return pixel_batches(self.labeled.images, self.spec, batch_size, self.preprocessing.reading)

    def figures(self, model: nn.Module, ranks: Ranks) -> dict[str, float]:
        """The validation scores of these images, see ``validation_figures``."""
        return validation_figures(self.logits(model, ranks), torch.from_numpy(self.labeled.targets()))


def pixel_batches(
    images: ImageSet, spec: BackboneSpec, batch_size: int, form: PixelFormat = PLAIN_FORMAT
) -> Iterator[Tensor]:
    """Images as they are evaluated, in batches (B, C, H, W) of stored values."""
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        arrays = [
            to_array(fit_and_crop(images.open(number, form), spec.image_size), spec.channels) for number in numbers
        ]
        yield torch.from_numpy(np.stack(arrays))


def validation_figures(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """What a model is chosen by: val/top1 of classes (N,), val/map of 0 and 1 for each class (N, K)."""
    if targets.ndim == 2:
        return {"val/map": mean_average_precision(logits, targets)}
    return {"val/top1": float((logits.argmax(dim=1) == targets).double().mean())}


def evaluate_classifier(model: Classifier, labeled: ClassImages, split: str, ranks: Ranks) -> Scores:
    """Evaluate a classifier on a split."""
    scores = single_label_scores if isinstance(labeled, LabeledImages) else multi_label_scores
    return scores(
        split, _classifier_logits(model, labeled, ranks), torch.from_numpy(labeled.targets()), labeled.classes
    )


def evaluate_items(
    model: Classifier, labeled: LabeledImages, split: str, ranks: Ranks
) -> tuple[Scores, NDArray[np.bool_]]:
    """Evaluate a classifier on a split; also which of its images (N,) it got right."""
    logits, targets = _classifier_logits(model, labeled, ranks), torch.from_numpy(labeled.targets())
    right = (logits.argmax(dim=1).cpu() == targets).numpy()
    return single_label_scores(split, logits, targets, labeled.classes), right


def _classifier_logits(model: Classifier, labeled: ClassImages, ranks: Ranks) -> Tensor:
    return Evaluation(labeled, model.spec, model.preprocessing).logits(model, ranks)
