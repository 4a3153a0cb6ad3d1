"""Training of the arms without pretraining that aren't ViTs: probes on pixels, and a small ResNet."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.data.classification import ClassImages
from ..core.data.labeled_dataset import Splits
from ..core.distributed import Ranks
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import Provenance
from ..core.models.logistic_regression import fit_linear_probe
from ..core.models.probes import LinearProbe, NearestNeighbours
from ..core.training.optimizers import parameter_groups
from ..transfer.classification.config import ClassifyRecipe
from ..transfer.classification.evaluation import pixel_batches, validation_figures
from ..transfer.classification.task import ClassificationTask
from ..transfer.detection.task import DetectionTask
from ..transfer.recipe import Recipe
from ..transfer.segmentation.task import SegmentationTask
from .baseline_model import BaselineClassifier, Kind, save_baseline
from .conv_models import ConvDetector, ConvSegmentor


def adamw(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, with one rate for all layers."""
    groups = parameter_groups(model.named_parameters(), weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, fused=True)


class ConvNetTask(ClassificationTask):
    """A small ResNet with the augmentation of the other arms; all of it is trained."""

    version: ClassVar[int] = 1
    """raised whenever a change of the code would change what a training ends with"""

    def build_model(self) -> nn.Module:
        spec, preprocessing = self.encoder.spec, self.encoder.preprocessing
        return BaselineClassifier("convnet", spec, preprocessing, self.splits.train.classes)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return adamw(self.config, model)

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        save_baseline(cast(BaselineClassifier, model), path)


class ConvDetectionTask(DetectionTask):
    """Detection by the heads of the ViT's detector on a small ResNet; the augmentation is the other arms'."""

    def new_detector(self) -> ConvDetector:
        return ConvDetector(self.encoder, self.splits.train.classes, self.architecture)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return adamw(self.config, model)


class ConvSegmentationTask(SegmentationTask):
    """Segmentation by a small ResNet with a feature pyramid; the augmentation is the other arms'."""

    def build_model(self) -> ConvSegmentor:
        return ConvSegmentor(self.encoder, self.splits.train.classes, self.config.architecture(), self.inference)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return adamw(self.config, model)


class PixelTask(ClassificationTask):
    """Logistic regression, or the nearest neighbours, on the pixels of small copies of the images; nothing is trained in steps.

    ``variant``: "linear", of whose penalties the best on validation is taken, or "knn" with the number of neighbours.
    """

    version: ClassVar[int] = 1
    """raised whenever a change of the code would change what a training ends with"""

    def __init__(
        self, variant: str, config: ClassifyRecipe, encoder: Encoder, splits: Splits[ClassImages], ranks: Ranks
    ) -> None:
        super().__init__(config, encoder, splits, ranks)
        self.kind: Kind = "linear" if variant == "linear" else "knn"
        self.neighbours = int(variant[3:]) if self.kind == "knn" else 1

    def steps(self) -> int:
        return 0

    def images_seen(self) -> float:
        return 0.0

    def build_model(self) -> nn.Module:
        spec, preprocessing, train = self.encoder.spec, self.encoder.preprocessing, self.splits.train
        voting = {"neighbours": self.neighbours, "count": len(train)}
        return BaselineClassifier(self.kind, spec, preprocessing, train.classes, **voting)

    def prepare(self, model: nn.Module) -> None:
        """Fit the head."""
        network = cast(nn.Sequential, cast(BaselineClassifier, model).network)
        vectors, head = network[:-1], network[-1]
        train, val = self.splits.train, self.splits.val
        rows, targets = self._vectors(vectors, train), torch.from_numpy(train.targets())
        if isinstance(head, NearestNeighbours):
            head.fill(rows, F.one_hot(targets, len(train.classes)))
            return
        seen, answers = self._vectors(vectors, val), torch.from_numpy(val.targets())
        probe = LinearProbe(rows.shape[1], len(train.classes)).to(rows.device).eval()
        found: list[tuple[float, float, Mapping[str, Tensor]]] = []  # accuracy, log loss below zero, weights
        for _ in fit_linear_probe(probe, rows, targets, device=rows.device):
            logits = probe(seen).detach().float().cpu()
            accuracy = validation_figures(logits, answers)[self.metric()]
            found.append((accuracy, -float(F.cross_entropy(logits, answers)), copy.deepcopy(probe.state_dict())))
        probe.load_state_dict(max(found, key=lambda entry: entry[:2])[2])
        head.load_state_dict(probe.folded().state_dict())

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        save_baseline(cast(BaselineClassifier, model), path)

    @torch.inference_mode()
    def _vectors(self, vectors: nn.Module, images: ClassImages) -> Tensor:
        """The small copies (N, D) of images as they are evaluated."""
        spec, preprocessing = self.encoder.spec, self.encoder.preprocessing
        batches = pixel_batches(images.images, spec, 250, preprocessing.reading)
        parts = [vectors(preprocessing.normalize(pixels.to(self.ranks.device))) for pixels in batches]
        return torch.cat(parts).clone()
