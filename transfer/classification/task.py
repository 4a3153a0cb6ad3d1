"""Classification: labelled images and an encoder in, a classifier out, fine-tuned as a whole, in part, or its head alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from ...core.data.classification import ClassFolderLayout, ClassImages, LabeledImages, LabelKeys, MultiLabeledImages
from ...core.data.classification_reader import class_parts
from ...core.data.images import ImageSet, as_image
from ...core.data.labeled_dataset import Splits
from ...core.data.pixel_format import PLAIN_FORMAT, PixelFormat
from ...core.data.sampling import Sample, Uniforms
from ...core.data.transforms import fit_and_crop, random_resized_crop, to_array
from ...core.device import Precision, autocast
from ...core.distributed import Ranks
from ...core.errors import ConfigError
from ...core.models.encoder import Encoder
from ...core.models.encoder_file import Provenance, save_encoder
from ...core.models.encoder_spec import EncoderSpec
from ...core.models.preprocessing import Preprocessing
from ...core.models.probes import AttentiveProbe, NearestNeighbours, Pooling, pool, pooled_dim
from ...core.optional_imports import require
from ...core.training.loader import Batch
from ..metrics import Scores
from ..model_file import ModelFile, write_model
from ..predictions import Classification
from ..recipe import Recipe
from ..task import Task, TransferConfig
from ..visualize import Picture, draw_classification
from .metrics import mean_average_precision, multi_label_scores, single_label_scores
from .partial_lora import Lora, add_lora, check_blocks, merged, train_last_blocks

CROP_DRAWS = 5
CACHE_BYTES = 2**30
"""Evaluation images are decoded once and kept when they take up no more than this."""
SHOWN = 8
"""Right and wrong predictions each that a summary shows."""


@dataclass(frozen=True, kw_only=True)
class ClassifyRecipe(Recipe):
    """How a classifier is trained; the numbers of each start stand in transfer/recipes/."""

    label_smoothing: float
    """share of the target spread over all classes"""
    mixup: float
    """mixup's alpha; 0: off"""
    cutmix: float
    """cutmix's alpha; 0: off"""
    random_erasing: float
    """probability that a rectangle of an image is filled with noise"""
    crop_scale: tuple[float, float]
    """smallest and largest area of a training crop, as shares of the image"""
    flip: bool
    """mirror every second training image left to right, at random"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise ConfigError(key, getattr(self, key), "0 or more")
        for key in ("label_smoothing", "random_erasing"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "a share from 0 to below 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError("crop_scale", list(self.crop_scale), "two shares with 0 < smallest <= largest <= 1")

    def check_passes(self, count: int) -> None:
        """Raise ConfigError when a step can't be split into ``count`` passes, over all processes and accumulations."""
        super().check_passes(count)
        if (self.mixup or self.cutmix) and self.batch_size // count % 2:
            expected = f"a multiple of {2 * count} (2 × processes × accumulate), as mixup and cutmix pair images"
            raise ConfigError("batch_size", self.batch_size, expected)


Method = Literal["full", "partial", "lora", "linear", "attentive", "knn"]
PROBES = ("linear", "attentive", "knn")
"""The methods that leave the encoder as it is, and compute its features once."""


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TransferConfig, ClassifyRecipe):
    """Fine-tune an encoder on labelled images, judge it by a probe, or train the same architecture from nothing.

    ``data`` are class folders (also train/ val/ test/ of them), a CSV, a folder of idx files, or tar shards. A CSV has the
    columns path,label[,split], for several labels an image with ``|`` or ``;`` between them, or path[,split] and a column of
    0 and 1 for each class. Shards (a folder of .tar, or shards/{000..009}.tar) hold KEY.jpg with KEY.cls or KEY.json.
    """

    method: Method = "full"
    """what is trained: all, the last blocks, low-rank updates, or with a frozen encoder a linear, attentive or kNN probe"""
    multi_label: bool | None = None
    """images have any number of classes each; null: as the data says (a column a class, or several labels in a cell)"""
    layout: ClassFolderLayout = "auto"
    """class_folders: every folder is a class, whatever its name; auto: folders that may be something else are refused"""
    label_column: str | tuple[str, ...] | None = None
    """the CSV's column of labels, or [a,b,c]: its columns of 0 and 1, a class each; null: as the header says"""
    blocks: float = 1.0
    """method=partial: last blocks that are trained; 0.5: the last one's MLP; 0: the head alone"""
    lora: Lora = field(default_factory=Lora)
    features: Pooling = "mean"
    """method=linear or knn: mean of the patch tokens, class_token, or both side by side"""
    crops: int = 0
    """method=linear or attentive: random crops of each training image that features are kept of; 0: of the image as judged"""
    cache: str | None = None
    """folder that features are kept in, for other runs too; null: features/ in out. It may be removed when the run has ended"""
    solver: Literal["lars", "lbfgs"] = "lars"
    """method=linear: lars as the paper has it, or lbfgs: logistic regression, which needs no learning rate"""
    l2: float | None = None
    """solver=lbfgs: weight of half the squared weights beside the summed loss; null: validation chooses one from 0.1 to 1000"""
    probe_heads: int | None = None
    """method=attentive: attention heads of the probe; null: the encoder's"""
    neighbours: int = 20
    """method=knn: labelled images that vote"""
    temperature: float | None = 0.07
    """method=knn: votes weigh exp(cosine / temperature); null: all the same"""

    def __post_init__(self) -> None:
        ClassifyRecipe.__post_init__(self)
        TransferConfig.__post_init__(self)
        for key in ("l2", "probe_heads", "neighbours", "temperature"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        if self.crops < 0 or (self.crops and self.method not in ("linear", "attentive")):
            raise ConfigError("crops", self.crops, "0 or more, with method=linear or attentive")
        if self.blocks < 0 or self.blocks not in (0.5, int(self.blocks)):
            raise ConfigError("blocks", self.blocks, "0, 0.5 or a whole number")
        for key in ("mixup", "cutmix", "random_erasing", "drop_path") if self.method in PROBES else ():
            if getattr(self, key):
                raise ConfigError(
                    key, getattr(self, key), f"0 with method={self.method}, whose features are computed once"
                )

    @classmethod
    def task(cls) -> type[ClassificationTask]:
        """Classification."""
        return ClassificationTask

    def chosen_task(self) -> type[ClassificationTask]:
        """Classification by ``method``."""
        from .probe import ProbeTask  # it stands on this file

        if self.method in PROBES:
            return ProbeTask
        return {"full": ClassificationTask, "partial": PartialTask, "lora": LoraTask}[self.method]

    def recipe_name(self) -> str:
        """The start's recipe for end-to-end fine-tuning, else the method's own."""
        if self.method == "full":
            return super().recipe_name()
        return f"classify_{self.method}" + ("_small" if self.recipe == "small" else "")

    @classmethod
    def recipes(cls) -> dict[str, str]:
        """The recipes by the keys that choose them."""
        methods = ("partial", "lora", *PROBES)
        return {**super().recipes(), **{f"method={method}": f"classify_{method}" for method in methods}}


class Classifier(nn.Module):
    """An encoder with a head on its features: by default a linear layer on the mean of the patch tokens.

    ``head`` takes features that are pooled as ``pooling`` says, an ``AttentiveProbe`` all patch tokens. With ``multi_label``
    the probability of each class is the sigmoid of its logit.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: Sequence[str],
        head: nn.Module | None = None,
        *,
        pooling: Pooling = "mean",
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes = tuple(classes)
        self.pooling, self.multi_label = pooling, multi_label
        self.head = head or _new_head(pooled_dim(encoder.spec, pooling), len(self.classes))

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's shape."""
        return self.encoder.spec

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for the encoder."""
        return self.encoder.preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, classes)."""
        features = self.encoder.forward_features(images)
        whole = isinstance(self.head, AttentiveProbe)
        return cast(Tensor, self.head(features.tokens if whole else pool(features, self.pooling)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, classes) to the probability of each class: of one among all, or of each by itself."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    @torch.inference_mode()
    def predict(
        self, images: Sequence[str | Path | Image.Image | NDArray[np.generic]], *, precision: Precision = "auto"
    ) -> list[Classification]:
        """The classes of images: files, PIL images or arrays (H, W) or (H, W, C); all go through the network at once."""
        if not len(images):
            return []
        form, size = self.preprocessing.reading, self.spec.image_size
        arrays = [to_array(fit_and_crop(as_image(image, form), size), self.spec.channels) for image in images]
        device = self.encoder.pos_embed.device
        with autocast(device, precision):
            logits = self(self.preprocessing.normalize(torch.from_numpy(np.stack(arrays)).to(device)))
        return [self.classification(row) for row in self.probabilities(logits.float()).cpu()]

    def classification(self, probabilities: Tensor) -> Classification:
        """Probabilities (classes,) in words."""
        by_class = dict(zip(self.classes, probabilities.tolist(), strict=True))
        likely = tuple(name for name, probability in by_class.items() if probability >= 0.5)
        return Classification(self.classes[int(probabilities.argmax())], by_class, likely if self.multi_label else None)


def _new_head(dim: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=2e-5)
    nn.init.zeros_(head.bias)
    return head


class ClassificationTask(Task[ClassifyRecipe, ClassImages]):
    """End-to-end fine-tuning: random crops, mixup, cutmix, smoothing and erasing (MAE, Appendix A.1, Table 9).

    Judged by top-1 accuracy; of images with several classes by mean average precision.
    """

    name: ClassVar[str] = "classify"
    best_metric: ClassVar[str] = "val/top1"
    draws: ClassVar[int] = CROP_DRAWS

    def __init__(self, config: ClassifyRecipe, encoder: Encoder, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        self.multi_label = isinstance(splits.train, MultiLabeledImages)
        self.objective = _Objective(config, splits.train, encoder.preprocessing, ranks.device)
        self.validation = Evaluation(splits.val, encoder.spec, encoder.preprocessing)

    @classmethod
    def read_parts(cls, config: Any) -> Mapping[str, Any]:
        keys = LabelKeys(config.multi_label, config.layout, config.label_column, config.group)
        return class_parts(config.data, keys)

    def metric(self) -> str:
        return "val/map" if self.multi_label else self.best_metric

    def build_model(self) -> nn.Module:
        encoder = self.encoder.resized(self.encoder.spec.image_size, drop_path=self.config.drop_path).float()
        return Classifier(encoder, self.splits.train.classes, multi_label=self.multi_label)

    def sample(self, index: int, draws: Uniforms) -> Sample:
        spec = self.encoder.spec
        flips = draws if self.config.flip else np.append(draws[:4], 1.0)
        image = self.splits.train.images.open(index, self.encoder.preprocessing.reading)
        crop = random_resized_crop(image, spec.image_size, flips, self.config.crop_scale)
        return Sample(to_array(crop, spec.channels))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective(model, batch)

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return self.validation.figures(model, self.ranks)

    def score(self, model: nn.Module, images: ClassImages, split: str) -> Scores:
        return score(cast(Classifier, model), images, split, self.ranks)

    def score_items(
        self, model: nn.Module, images: ClassImages, split: str
    ) -> tuple[Scores, NDArray[np.float64] | None]:
        """With one class each, an image brings 1 where it is right, else 0."""
        if isinstance(images, MultiLabeledImages):
            return self.score(model, images, split), None
        scores, right = score_items(cast(Classifier, model), images, split, self.ranks)
        return scores, right.astype(np.float64)

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        """Write the model and, beside it, its fine-tuned encoder by itself."""
        classifier = cast(Classifier, model)
        save_encoder(classifier.encoder, path.with_name("encoder.safetensors"), provenance)
        save_classifier(classifier, path, provenance)

    def pictures(self, model: nn.Module, images: ClassImages, split: str) -> list[Picture]:
        classifier = cast(Classifier, model)
        logits = Evaluation(images, classifier.spec, classifier.preprocessing).logits(classifier, self.ranks)
        targets = torch.from_numpy(images.targets())
        right = ((logits >= 0) == (targets > 0)).all(dim=1) if self.multi_label else logits.argmax(dim=1) == targets
        shown = [number for found in (~right, right) for number in found.nonzero().flatten().tolist()[:SHOWN]]
        probabilities = classifier.probabilities(logits)
        pictures = []
        for number in shown:
            truth, found = images.label_text(number) or "none", classifier.classification(probabilities[number])
            taken_for = found.label if found.labels is None else "|".join(found.labels) or "none"
            image = draw_classification(
                images.images.open(number, classifier.preprocessing.reading), found, truth=truth
            )
            caption = f"{images.images.name(number)}: {truth}, taken for {taken_for}"
            pictures.append(Picture.of(image, caption, bool(right[number])))
        return pictures


class PartialTask(ClassificationTask):
    """Fine-tuning of the last blocks, the final norm and the head (MAE, Sec. 4.4, Fig. 9)."""

    def __init__(self, config: ClassifyConfig, encoder: Encoder, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        check_blocks(config.blocks, encoder.spec.depth)

    def build_model(self) -> nn.Module:
        model = cast(Classifier, super().build_model())
        train_last_blocks(model.encoder, cast(ClassifyConfig, self.config).blocks)
        return model

    def finished(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)


class LoraTask(ClassificationTask):
    """Fine-tuning of low-rank updates and the head; the updates are added to the weights that are kept."""

    def __init__(self, config: ClassifyConfig, encoder: Encoder, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        require("peft")

    def build_model(self) -> nn.Module:
        model = cast(Classifier, super().build_model())
        add_lora(model.encoder, cast(ClassifyConfig, self.config).lora)
        return model

    def finished(self, model: nn.Module) -> nn.Module:
        classifier = cast(Classifier, model)
        return Classifier(
            merged(classifier.encoder), classifier.classes, classifier.head, multi_label=classifier.multi_label
        )


class _Objective:
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
        mixup = _MixupOfSets if self.multi_label else Mixup
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


class _MixupOfSets(Mixup):  # type: ignore[misc] # timm has no types
    """timm's mixup and cutmix for targets (B, K) of 0 and 1, which are mixed as they are."""

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        share = self._mix_batch(images)  # in place: each image with the one as far from the other end of the batch
        return images, targets * share + targets.flip(0) * (1 - share)


class Evaluation:
    """Labelled images as a model sees them when it is judged: the shorter side fitted, the centre cut out."""

    def __init__(self, labeled: ClassImages, spec: EncoderSpec, preprocessing: Preprocessing) -> None:
        self.labeled, self.spec, self.preprocessing = labeled, spec, preprocessing
        self._kept: list[Tensor] | None = None
        self._small = len(labeled) * spec.channels * math.prod(spec.image_size) <= CACHE_BYTES

    def logits(self, model: nn.Module, ranks: Ranks, precision: Precision = "auto", batch_size: int = 250) -> Tensor:
        """Logits (N, classes), float32, on the CPU."""
        if self._kept is None and self._small:
            self._kept = list(self._pixels(batch_size))
        batches = self._kept if self._kept is not None else self._pixels(batch_size)
        results = []
        with torch.inference_mode(), autocast(ranks.device, precision):
            for pixels in batches:
                results.append(model(self.preprocessing.normalize(pixels.to(ranks.device))).float().cpu())
        return torch.cat(results)

    def _pixels(self, batch_size: int) -> Iterator[Tensor]:
        return pixel_batches(self.labeled.images, self.spec, batch_size, self.preprocessing.reading)

    def figures(self, model: nn.Module, ranks: Ranks) -> dict[str, float]:
        """What a model is chosen by, of these images: see ``validation_figures``."""
        return validation_figures(self.logits(model, ranks), torch.from_numpy(self.labeled.targets()))


def pixel_batches(
    images: ImageSet, spec: EncoderSpec, batch_size: int, form: PixelFormat = PLAIN_FORMAT
) -> Iterator[Tensor]:
    """Images as they are judged, in batches (B, C, H, W) of stored values."""
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


def score(model: Classifier, labeled: ClassImages, split: str, ranks: Ranks) -> Scores:
    """Judge a classifier on a split."""
    scores = single_label_scores if isinstance(labeled, LabeledImages) else multi_label_scores
    return scores(split, _logits(model, labeled, ranks), torch.from_numpy(labeled.targets()), labeled.classes)


def score_items(
    model: Classifier, labeled: LabeledImages, split: str, ranks: Ranks
) -> tuple[Scores, NDArray[np.bool_]]:
    """Judge a classifier on a split; and which of its images (N,) it got right."""
    logits, targets = _logits(model, labeled, ranks), torch.from_numpy(labeled.targets())
    right = (logits.argmax(dim=1).cpu() == targets).numpy()
    return single_label_scores(split, logits, targets, labeled.classes), right


def _logits(model: Classifier, labeled: ClassImages, ranks: Ranks) -> Tensor:
    return Evaluation(labeled, model.spec, model.preprocessing).logits(model, ranks)


def save_classifier(model: Classifier, path: Path, provenance: Provenance) -> None:
    """Write a classifier, with all that is needed to use it."""
    write_model(
        path,
        model,
        task="classify",
        head={"pooling": model.pooling, "multi_label": model.multi_label, **_describe_head(model.head)},
        provenance=provenance,
    )


def _describe_head(head: nn.Module) -> dict[str, object]:
    """What ``_build_head`` needs to build a head like this."""
    if isinstance(head, AttentiveProbe):
        return {"kind": "attentive", "num_heads": head.num_heads}
    if isinstance(head, NearestNeighbours):
        return {"kind": "knn", "k": head.k, "temperature": head.temperature, "count": len(head.bank)}
    return {"kind": "linear"}


@dataclass(frozen=True)
class _Stored:
    """What a model file says of a classifier's head; files of version 1 have the defaults."""

    kind: Literal["linear", "attentive", "knn"] = "linear"
    pooling: Pooling = "mean"
    multi_label: bool = False
    num_heads: int | None = None
    k: int | None = None
    temperature: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        needed = {"attentive": ("num_heads",), "knn": ("k", "count")}.get(self.kind, ())
        for key in ("num_heads", "k", "count", "temperature"):
            value = getattr(self, key)
            if (value is None and key in needed) or (value is not None and value <= 0):
                raise ConfigError(key, value, f"a number above 0, for a head of the kind {self.kind}")


def load(file: ModelFile) -> Classifier:
    """The classifier of a model file."""
    head = file.head_as(_Stored)
    encoder = Encoder(file.spec, preprocessing=file.preprocessing)
    built = _build_head(head, pooled_dim(file.spec, head.pooling), len(file.classes))
    return file.fill(Classifier(encoder, file.classes, built, pooling=head.pooling, multi_label=head.multi_label))


def _build_head(head: _Stored, dim: int, num_classes: int) -> nn.Module:
    if head.kind == "attentive" and head.num_heads is not None:
        if dim % head.num_heads:
            raise ConfigError("num_heads", head.num_heads, f"a divisor of {dim}")
        return AttentiveProbe(dim, num_classes, head.num_heads)
    if head.kind == "knn" and head.count is not None and head.k is not None:
        return NearestNeighbours(
            dim, num_classes, head.count, k=head.k, temperature=head.temperature, multi_label=head.multi_label
        )
    return _new_head(dim, num_classes)
