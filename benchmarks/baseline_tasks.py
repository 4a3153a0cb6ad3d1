"""Training of the arms without pretraining that aren't ViTs: probes on pixels, and a small ResNet."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.data.classification import ClassImages
from ..core.data.labeled_dataset import Splits
from ..core.distributed import Ranks
from ..core.models.backbone import Backbone
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import Provenance
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.logistic_regression import L2_GRID, fit_linear_probe
from ..core.models.probes import LinearProbe, NearestNeighbours
from ..core.training.optimizers import parameter_groups
from ..transfer.classification.config import ClassifyRecipe
from ..transfer.classification.cross_validation import cross_validated_neighbours, cross_validated_penalty
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
        spec, preprocessing = cast(EncoderSpec, self.encoder.spec), self.encoder.preprocessing
        return BaselineClassifier("convnet", spec, preprocessing, self.splits.train.classes)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return adamw(self.config, model)

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        save_baseline(cast(BaselineClassifier, model), path)


class ConvDetectionTask(DetectionTask):
    """Detection by the heads of the ViT's detector on a small ResNet; the augmentation is the other arms'."""

    def new_detector(self) -> ConvDetector:
        return ConvDetector(cast(Encoder, self.encoder), self.splits.train.classes, self.architecture)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return adamw(self.config, model)


class ConvSegmentationTask(SegmentationTask):
    """Segmentation by a small ResNet with a feature pyramid; the augmentation is the other arms'."""

    def build_model(self) -> ConvSegmentor:
        encoder, classes = cast(Encoder, self.encoder), self.splits.train.classes
        return ConvSegmentor(encoder, classes, self.config.architecture(), self.inference)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return adamw(self.config, model)


class PixelTask(ClassificationTask):
    """Logistic regression, or the nearest neighbours, on the pixels of small copies of the images; nothing is trained in steps.

    ``variant``: "linear", of whose penalties the best on validation is taken, or "knn" with the number of neighbours.
    With ``folds`` (N,) of the training images both are cross-validated on these, in place of validation images.
    """

    version: ClassVar[int] = 1
    """raised whenever a change of the code would change what a training ends with"""
    folds: Sequence[int] = ()

    def __init__(
        self, variant: str, config: ClassifyRecipe, encoder: Backbone, splits: Splits[ClassImages], ranks: Ranks
    ) -> None:
        super().__init__(config, encoder, splits, ranks)
        self.kind: Kind = "linear" if variant == "linear" else "knn"
        self.neighbours = int(variant[3:]) if self.kind == "knn" else 1

    def steps(self) -> int:
        return 0

    def images_seen(self) -> float:
        return 0.0

    def build_model(self) -> nn.Module:
        spec, preprocessing, train = cast(EncoderSpec, self.encoder.spec), self.encoder.preprocessing, self.splits.train
        voting = {"neighbours": self.neighbours, "count": len(train)}
        return BaselineClassifier(self.kind, spec, preprocessing, train.classes, **voting)

    def prepare(self, model: nn.Module) -> None:
        """Fit the head."""
        network = cast(nn.Sequential, cast(BaselineClassifier, model).network)
        vectors, head = network[:-1], network[-1]
        train, classes = self.splits.train, len(self.splits.train.classes)
        rows, targets = self._vectors(vectors, train), torch.from_numpy(train.targets())
        if isinstance(head, NearestNeighbours):
            head.fill(rows, F.one_hot(targets, classes))
            if self.folds:
                self._figures = cross_validated_neighbours(head, rows, targets, self.folds)
            return
        probe = LinearProbe(rows.shape[1], classes).to(rows.device).eval()
        if self.folds:
            best, self._figures = cross_validated_penalty(rows, targets, classes, self.folds, L2_GRID, rows.device)
            list(fit_linear_probe(probe, rows, targets, (best,), device=rows.device))
        else:
            probe.load_state_dict(self._best_on_validation(probe, vectors, rows, targets))
        head.load_state_dict(probe.folded().state_dict())

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return self._figures if self.folds else super().validate(model)

    def _best_on_validation(
        self, probe: LinearProbe, vectors: nn.Module, rows: Tensor, targets: Tensor
    ) -> Mapping[str, Tensor]:
        """The weights of a probe with the penalty that is best on the validation images."""
        val = self.splits.val
        seen, answers = self._vectors(vectors, val), torch.from_numpy(val.targets())
        found: list[tuple[float, float, Mapping[str, Tensor]]] = []  # accuracy, log loss below zero, weights
        for _ in fit_linear_probe(probe, rows, targets, device=rows.device):
            logits = probe(seen).detach().float().cpu()
            accuracy = validation_figures(logits, answers)[self.metric()]
            found.append((accuracy, -float(F.cross_entropy(logits, answers)), copy.deepcopy(probe.state_dict())))
        return max(found, key=lambda entry: entry[:2])[2]

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        save_baseline(cast(BaselineClassifier, model), path)

    @torch.inference_mode()
    def _vectors(self, vectors: nn.Module, images: ClassImages) -> Tensor:
        """The small copies (N, D) of images as they are evaluated."""
        spec, preprocessing = self.encoder.spec, self.encoder.preprocessing
        batches = pixel_batches(images.images, spec, 250, preprocessing.reading)
        parts = [vectors(preprocessing.normalize(pixels.to(self.ranks.device))) for pixels in batches]
        return torch.cat(parts).clone()
