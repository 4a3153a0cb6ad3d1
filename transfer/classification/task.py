"""Classification as a task: augmentation, loss, validation and scores of end-to-end fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from ...core.data.classification import ClassImages, LabelKeys, MultiLabeledImages
from ...core.data.classification_reader import class_parts
from ...core.data.labeled_dataset import Splits
from ...core.data.sampling import Sample, Uniforms
from ...core.data.transforms import random_resized_crop, to_array
from ...core.distributed import Ranks
from ...core.models.backbone import Backbone
from ...core.models.encoder_file import Provenance, save_encoder
from ...core.models.preprocessing import Preprocessing
from ...core.training.loader import Batch
from ..metrics import Scores
from ..task import Task
from ..visualize import ExampleImage, draw_classification, draw_text, readable
from .config import ClassifyRecipe
from .evaluation import Evaluation, evaluate_classifier, evaluate_items
from .model import Classifier, save_classifier

CROP_DRAWS = 5
EXAMPLES = 8
"""Right and wrong predictions, each, in the summary."""


class ClassificationTask(Task[ClassifyRecipe, ClassImages]):
    """End-to-end fine-tuning: random crops, mixup, cutmix, smoothing and erasing (MAE, Appendix A.1, Table 9).

    Validated by top-1 accuracy; images with several classes by mean average precision.
    """

    name: ClassVar[str] = "classify"
    best_metric: ClassVar[str] = "val/top1"
    draws: ClassVar[int] = CROP_DRAWS

    def __init__(self, config: ClassifyRecipe, encoder: Backbone, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        self.multi_label = isinstance(splits.train, MultiLabeledImages)
        self.objective = ClassificationLoss(config, splits.train, encoder.preprocessing, ranks.device)
        self.validation = Evaluation(splits.val, encoder.spec, encoder.preprocessing)

    @classmethod
    def read_parts(cls, config: Any) -> Mapping[str, Any]:
        keys = LabelKeys(config.multi_label, config.layout, config.label_column, config.group, config.slices)
        return class_parts(config.data, keys)

    def metric(self) -> str:
        return "val/map" if self.multi_label else self.best_metric

    def build_model(self) -> nn.Module:
        encoder = self.encoder.resized(self.encoder.spec.image_size, drop_path=self.config.drop_path).float()
        classes, pooling = self.splits.train.classes, encoder.usual_pooling
        return Classifier(encoder, classes, pooling=pooling, multi_label=self.multi_label)

    def sample(self, index: int, draws: Uniforms) -> Sample:
        spec = self.encoder.spec
        flips = draws if self.config.flip else np.append(draws[:4], 1.0)
        image = self.splits.train.images.open(index, self.encoder.preprocessing.reading)
        crop = random_resized_crop(image, spec.image_size, flips, self.config.crop_scale, turn=self.config.turn)
        return Sample(to_array(crop, spec.channels))

    def draw_sample(self, batch: Batch, place: int) -> Image.Image | None:
        truth = self.splits.train.label_text(int(batch.indices[place])) or "none"
        return self.sample_picture(batch, place, lambda image: draw_text(image, [(readable(truth), "")]))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective(model, batch)

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return self.validation.figures(model, self.ranks)

    def score(self, model: nn.Module, images: ClassImages, split: str) -> Scores:
        return evaluate_classifier(cast(Classifier, model), images, split, self.ranks)

    def score_items(
        self, model: nn.Module, images: ClassImages, split: str
    ) -> tuple[Scores, NDArray[np.float64] | None]:
        """With one class each, the value of an image is 1 where it is right, else 0."""
        if isinstance(images, MultiLabeledImages):
            return self.score(model, images, split), None
        scores, right = evaluate_items(cast(Classifier, model), images, split, self.ranks)
        return scores, right.astype(np.float64)

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        save_classifier(cast(Classifier, model), path, provenance)

    def save_encoder(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        save_encoder(cast(Classifier, model).encoder, path, provenance)

    def examples(self, model: nn.Module, images: ClassImages, split: str) -> list[ExampleImage]:
        classifier = cast(Classifier, model)
        logits = Evaluation(images, classifier.spec, classifier.preprocessing).logits(classifier, self.ranks)
        targets = torch.from_numpy(images.targets())
        right = ((logits >= 0) == (targets > 0)).all(dim=1) if self.multi_label else logits.argmax(dim=1) == targets
        shown = [number for found in (~right, right) for number in found.nonzero().flatten().tolist()[:EXAMPLES]]
        probabilities = classifier.probabilities(logits)
        pictures = []
        for number in shown:
            truth, found = images.label_text(number) or "none", classifier.classification(probabilities[number])
            taken_for = found.label if found.labels is None else "|".join(found.labels) or "none"
            opened = images.images.open(number, classifier.preprocessing.reading)
            drawn = draw_classification(self.display.image(opened), found, truth=truth)
            caption = f"{images.images.name(number)}: {truth}, taken for {taken_for}"
            pictures.append(ExampleImage.of(self.display.with_tiles(drawn, opened), caption, bool(right[number])))
        return pictures


class ClassificationLoss:
    """Cross-entropy on labelled crops, with mixup, cutmix, smoothing and erasing by timm.

    Of images with several classes the binary cross-entropy of each class; mixup and cutmix mix their targets, which are not
    smoothed: of 0 and 1 a class there is nothing to spread.
    """

    def __init__(
        self, recipe: ClassifyRecipe, labeled: ClassImages, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self.labels = torch.from_numpy(labeled.targets()).to(device)
        self.preprocessing = preprocessing
        self.multi_label = isinstance(labeled, MultiLabeledImages)
        self.smoothing = recipe.label_smoothing
        self.erase = (
            RandomErasing(recipe.random_erasing, mode="pixel", device=str(device)) if recipe.random_erasing else None
        )
        mixup = MultiLabelMixup if self.multi_label else Mixup
        self.mix = (
            mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=len(labeled.classes),
            )
            if recipe.mixup or recipe.cutmix
            else None
        )

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        images = self.preprocessing.normalize(batch.pixels)
        labels = self.labels[batch.indices]
        if self.erase is not None:
            images = self.erase(images)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        return self.of_logits(model(images).float(), labels)

    def of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits (B, K) under classes (B,), or under shares of each class (B, K)."""
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(logits, targets)
        smoothing = self.smoothing if targets.ndim == 1 else 0.0  # timm smooths what it mixes
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)


class MultiLabelMixup(Mixup):  # type: ignore[misc] # timm has no types
    """timm's mixup and cutmix for targets (B, K) of 0 and 1, which are mixed as they are."""

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        share = self._mix_batch(images)  # in place: each image with the one as far from the other end of the batch
        return images, targets * share + targets.flip(0) * (1 - share)
