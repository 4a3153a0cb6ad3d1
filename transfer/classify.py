"""Classification: labelled images and an encoder in, a fine-tuned classifier out (MAE, Appendix A.1, Table 9)."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from .. import __version__
from ..core.batches import Batch, Batches, Order, Uniforms
from ..core.config import CheckpointError, ConfigError, DataError, resolve, to_dict
from ..core.cost import encoder_flops, training_memory, training_seconds
from ..core.distributed import Precision, Ranks, autocast, choose_device
from ..core.encoder import Encoder, EncoderSpec, Preprocessing, channel_names, preset_spec
from ..core.files import atomic_path, atomic_write_text, output_folder
from ..core.images import ImageSet, channel_statistics, fit_and_crop, random_resized_crop, to_array, write_rejected
from ..core.labels import LabeledImages, audit_splits, draw_labeled, read_splits
from ..core.loop import Schedule, State, Upkeep, WeightAverage, evenly, train
from ..core.optim import parameter_groups
from ..core.plan import Plan
from ..core.randomness import isolated
from ..core.run_folder import RunFolder
from ..core.tracking import Listener, Tracker
from ..core.weights import EncoderFile, Provenance, read_encoder, read_tensors, save_encoder

logger = logging.getLogger("maelift")

MODEL_FILE = "model.safetensors"
MODEL_KEY = "maelift.model"
CROP_DRAWS = 5
FEW_STEPS = 200
"""With fewer, a recipe given in epochs trains next to nothing, and says so."""
CACHE_BYTES = 2**30
"""Evaluation images are decoded once and kept when they take up no more than this."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained; the numbers of each start stand in transfer/recipes/."""

    epochs: float
    """times that every labelled image is seen"""
    steps: int | None = None
    """steps of the optimiser; given, it takes the place of epochs"""
    batch_size: int
    """labelled images in a step, over all processes and accumulations"""
    base_lr: float
    """learning rate for a batch of 256; that used is base_lr * batch_size / 256"""
    lr: float | None = None
    """learning rate itself; null: from base_lr"""
    layer_decay: float
    """factor on the learning rate from each layer to the one below it; 1: the same for all"""
    weight_decay: float
    """AdamW's weight decay; none for vectors, biases, positions and the class token"""
    betas: tuple[float, float]
    """AdamW's momenta"""
    warmup: float
    """share of the steps with linear warm-up"""
    drop_path: float
    """probability that the last block is left out in a step; it rises from 0 at the first"""
    label_smoothing: float
    """share of the target spread over all classes"""
    mixup: float
    """mixup's alpha; 0: off"""
    cutmix: float
    """cutmix's alpha; 0: off"""
    random_erasing: float
    """probability that a rectangle of an image is filled with noise"""
    ema_decay: float | None
    """decay of the moving average of weights that is evaluated and kept; null: none"""
    clip_grad: float | None
    """largest norm of the gradient; null: not clipped"""
    crop_scale: tuple[float, float]
    """smallest and largest area of a training crop, as shares of the image"""
    flip: bool
    """mirror every second training image left to right, at random"""

    def __post_init__(self) -> None:
        for key in ("epochs", "steps", "batch_size", "base_lr", "lr", "layer_decay", "clip_grad"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        for key in ("weight_decay", "mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise ConfigError(key, getattr(self, key), "0 or more")
        for key in ("warmup", "drop_path", "label_smoothing", "random_erasing", "ema_decay"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(key, value, "a share from 0 to below 1")
        if self.layer_decay > 1:
            raise ConfigError("layer_decay", self.layer_decay, "a factor of at most 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", list(self.betas), "two shares from 0 to below 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError("crop_scale", list(self.crop_scale), "two shares with 0 < smallest <= largest <= 1")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / 256

    def check_passes(self, count: int) -> None:
        """Raise ConfigError when a step can't be split into ``count`` passes, over all processes and accumulations."""
        if self.batch_size % count:
            raise ConfigError("batch_size", self.batch_size, f"a multiple of {count} (processes × accumulate)")
        if (self.mixup or self.cutmix) and self.batch_size // count % 2:
            expected = f"a multiple of {2 * count} (2 × processes × accumulate), as mixup and cutmix pair images"
            raise ConfigError("batch_size", self.batch_size, expected)

    def total_steps(self, images: int) -> int:
        """Steps of the optimiser for ``images`` labelled images."""
        return self.steps or max(1, math.ceil(self.epochs * images / self.batch_size))


def recipe_defaults(start: str) -> dict[str, Any]:
    """The numbers of the recipe for a start, "encoder" or "scratch", from transfer/recipes/."""
    text = (Path(__file__).parent / "recipes" / f"{start}.yaml").read_text()
    return cast(dict[str, Any], yaml.safe_load(text))


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(Recipe):
    """Fine-tune an encoder on labelled images, or train the same architecture from nothing."""

    data: str
    """class folders (also train/ val/ test/ of them), CSV path,label[,split], or folder of idx files"""
    out: str
    """folder for the model, its test results and metrics"""
    encoder: str | None = None
    """encoder file, or weights of the reference MAE, timm or transformers"""
    init: Literal["encoder", "scratch"] = "encoder"
    """begin with the encoder's weights, or from nothing with the scratch recipe"""
    model: Literal["vit_nano", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"] = "vit_base"
    """the shape for init=scratch without an encoder to take it from"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the encoder's, or the model's usual one"""
    patch_size: int | None = None
    """pixels a side of a patch for init=scratch without an encoder; null: the model's usual one"""
    labels: int | float | None = None
    """labelled images to train on, a count or a share, drawn evenly over the classes; null: all"""
    val: int | float = 0.1
    """validation images where the data has no such split, a count or a share of the training images"""
    test: int | float = 0.1
    """test images where the data has no such split, a count or a share of the training images"""
    split_seed: int = 0
    """seeds the draws of validation, test and labelled images"""
    accumulate: int = 1
    """passes that a step is split into, to save memory; mixup, cutmix, erasing and drop path draw anew in each"""
    evaluations: int = 20
    """times that validation accuracy is measured; the best of these weights are kept"""
    precision: Precision = "auto"
    """of the forward pass; auto: bfloat16 on a GPU that has it, else float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    workers: int | None = None
    """processes that load images; null: one a core, none for idx files"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""
    max_rejected: float = 0.05
    """largest share of broken images that is put up with"""
    seed: int = 0
    """seeds the head, the order and the augmentation"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("accumulate", "evaluations", "checkpoint_minutes"):
            if getattr(self, key) <= 0:
                raise ConfigError(key, getattr(self, key), "a number above 0")
        if self.workers is not None and self.workers < 0:
            raise ConfigError("workers", self.workers, "0 or more")
        if self.init == "encoder" and not self.encoder:
            raise ConfigError("encoder", self.encoder, "an encoder file, or init=scratch")
        self.check_passes(self.accumulate)

    @classmethod
    def resolve(cls, overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> ClassifyConfig:
        """The configuration with the recipe of its start beneath what the user says."""
        first = resolve(cls, overrides, file, {**recipe_defaults("encoder"), "encoder": "any"})
        return resolve(cls, overrides, file, recipe_defaults(first.init))


class Classifier(nn.Module):
    """An encoder with a linear head on its mean-pooled patch tokens."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.spec.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, classes)."""
        return cast(Tensor, self.head(self.encoder.forward_features(images).pooled()))


@dataclass(frozen=True)
class Scores:
    """How a classifier does on a split of ``count`` images; accuracies are shares from 0 to 1.

    ``balanced`` is the mean accuracy of the classes that have images; ``confusion[i][j]`` counts images of class i taken for j.
    """

    split: str
    count: int
    top1: float
    top5: float
    balanced: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Fit:
    """A trained classifier, with the weights of its best validation accuracy (a share, at ``best_step``)."""

    model: Classifier
    val_accuracy: float
    best_step: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class ClassifyResult:
    """What a transfer leaves: the model file, its test scores, and its validation accuracy (a share)."""

    model: Path
    test: Scores
    val_accuracy: float
    val_count: int
    seed: int

    def summary(self) -> str:
        """The result in a few lines."""
        test = self.test
        return (
            f"model: {self.model}\n"
            f"test accuracy {100 * test.top1:.2f} % (top-5 {100 * test.top5:.2f} %, balanced {100 * test.balanced:.2f} %; "
            f"{test.count} test images, 1 seed); validation {100 * self.val_accuracy:.2f} % ({self.val_count} images)\n"
            f"next: maelift predict model={self.model} images=FOLDER out=predictions.csv"
        )


def classify(config: ClassifyConfig, *, listener: Listener | None = None) -> ClassifyResult:
    """Fine-tune as ``config`` says, or go on where the same run was stopped; the test split is read once, at the end.

    ``listener`` hears of progress in place of the terminal. Raises MaeliftError for what a user can mend.
    """
    with Ranks.here(config.device) as ranks:
        config.check_passes(ranks.world_size * config.accumulate)
        splits = read_splits(config.data, config.val, config.test, config.split_seed)
        source = read_encoder(config.encoder) if config.encoder else None
        folder = RunFolder.open(output_folder(config.out), config, ranks)
        splits, manifest = audit_splits(splits, config.max_rejected)
        if ranks.is_main and manifest.rejected:
            write_rejected(folder.path / "rejected.csv", manifest.rejected)
            logger.warning(
                "transfer classify: %d broken images are left out; see %s",
                len(manifest.rejected),
                folder.path / "rejected.csv",
            )
        labeled = splits.train
        if config.labels is not None:
            labeled = draw_labeled(labeled, config.labels, config.split_seed)
        encoder = start_encoder(config, source, labeled, manifest.gray)
        folder.check_data(manifest.digest, ranks, source.content_hash if source is not None else None)
        if (folder.path / "test.json").exists():
            logger.info("transfer classify: %s is there already; nothing was done again", folder.path / "test.json")
            return _read_result(folder.path, config, len(splits.val))
        if beware := _too_few_steps(config, len(labeled)):
            logger.warning("transfer classify: %s", beware)
        with Tracker(
            folder.path,
            "transfer classify",
            total=config.total_steps(len(labeled)),
            images_per_step=config.batch_size,
            active=ranks.is_main,
            listener=listener,
        ) as tracker:
            fit = fit_classifier(
                config,
                encoder,
                labeled,
                splits.val,
                seed=config.seed,
                ranks=ranks,
                tracker=tracker,
                evaluations=config.evaluations,
                accumulate=config.accumulate,
                precision=config.precision,
                workers=config.workers,
                checkpoint=folder.checkpoint,
                checkpoint_seconds=60 * config.checkpoint_minutes,
            )
        if ranks.is_main:
            provenance = _provenance(config, source, fit, len(labeled), manifest.digest, ranks)
            save_encoder(fit.model.encoder, folder.path / "encoder.safetensors", provenance)
            save_classifier(fit.model, folder.path / MODEL_FILE, splits.train.classes, provenance)
            write_scores(score(fit.model, splits.test, "test", ranks), splits.test.classes, fit, folder.path)
            folder.checkpoint.unlink(missing_ok=True)
        ranks.barrier()
        return _read_result(folder.path, config, len(splits.val))


def _too_few_steps(config: ClassifyConfig, labeled: int) -> str:
    """What to tell those whose few labelled images make next to no steps of a recipe for a million; "" for others."""
    steps = config.total_steps(labeled)
    if steps >= FEW_STEPS or config.steps is not None:
        return ""
    return (
        f"{labeled} labelled images make only {steps} steps of batch_size={config.batch_size}; the recipe is for a "
        "million. With so few, batch_size=32 steps=1000 lr=1e-3 is a better start."
    )


def fit_classifier(
    recipe: Recipe,
    encoder: Encoder,
    labeled: LabeledImages,
    validation: LabeledImages,
    *,
    seed: int,
    ranks: Ranks,
    tracker: Tracker,
    evaluations: int,
    accumulate: int = 1,
    precision: Precision = "auto",
    workers: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 300.0,
) -> Fit:
    """Train a head and the encoder on labelled images; keep the weights of the best validation accuracy.

    The head, the order and the augmentation depend on ``seed`` only, not on the encoder: two encoders with one seed are
    a pair.
    """
    size, channels = encoder.spec.image_size, encoder.spec.channels
    recipe.check_passes(ranks.world_size * accumulate)
    with isolated(seed, "head"):
        model = Classifier(_with_drop_path(encoder, recipe.drop_path), len(labeled.classes)).to(ranks.device)
    steps = recipe.total_steps(len(labeled))
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=recipe.weight_decay,
        depth=encoder.spec.depth,
        layer_decay=recipe.layer_decay,
    )
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, fused=True)
    average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
    state = State(model, optimizer, average)
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
        logger.info("transfer classify: going on from step %d of %d", state.step, steps)

    def make(index: int, draws: Uniforms) -> NDArray[np.generic]:
        flips = draws if recipe.flip else np.append(draws[:4], 1.0)
        return to_array(random_resized_crop(labeled.images.open(index), size, flips, recipe.crop_scale), channels)

    batches = Batches(
        Order(len(labeled), recipe.batch_size, seed),
        make,
        draws=CROP_DRAWS,
        ranks=ranks,
        accumulate=accumulate,
        workers=labeled.images.default_workers() if workers is None else workers,
    )
    evaluation = Evaluation(validation, encoder.spec, encoder.preprocessing)
    train(
        state,
        batches,
        _Objective(recipe, labeled, encoder.preprocessing, ranks.device),
        Schedule(steps, recipe.peak_lr, warmup=recipe.warmup * steps),
        seed=seed,
        ranks=ranks,
        tracker=tracker,
        upkeep=Upkeep(
            evaluate=lambda judged, step: {"val/top1": evaluation.accuracy(judged, ranks)},
            evaluate_at=evenly(steps, evaluations),
            best_metric="val/top1",
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
        ),
        precision=precision,
        clip_grad=recipe.clip_grad,
    )
    if state.best_weights:
        model.load_state_dict(state.best_weights)
    return Fit(model.eval(), state.best_value, state.best_step, steps, state.seconds)


class _Objective:
    """Cross-entropy on labelled crops, with mixup, cutmix, smoothing and erasing by timm."""

    def __init__(
        self, recipe: Recipe, labeled: LabeledImages, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self.labels = torch.tensor(labeled.labels, device=device)
        self.num_classes = len(labeled.classes)
        self.preprocessing = preprocessing
        self.smoothing = recipe.label_smoothing
        self.erase = (
            RandomErasing(recipe.random_erasing, mode="pixel", device=str(device)) if recipe.random_erasing else None
        )
        self.mix = (
            Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=self.num_classes,
            )
            if recipe.mixup or recipe.cutmix
            else None
        )

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        images = self.preprocessing.normalize(batch.pixels)
        labels = self.labels[batch.indices]
        if self.erase is not None:
            images = self.erase(images)
        if self.mix is None:
            return F.cross_entropy(model(images).float(), labels, label_smoothing=self.smoothing)
        images, targets = self.mix(images, labels)
        return F.cross_entropy(model(images).float(), targets)


class Evaluation:
    """Labelled images as a model sees them when it is judged: the shorter side fitted, the centre cut out."""

    def __init__(self, labeled: LabeledImages, spec: EncoderSpec, preprocessing: Preprocessing) -> None:
        self.labeled, self.spec, self.preprocessing = labeled, spec, preprocessing
        self._kept: list[Tensor] | None = None
        self._small = len(labeled) * spec.channels * math.prod(spec.image_size) <= CACHE_BYTES

    def logits(self, model: nn.Module, ranks: Ranks, precision: Precision = "auto", batch_size: int = 250) -> Tensor:
        """Logits (N, classes), float32, on the CPU."""
        if self._kept is None and self._small:
            self._kept = list(pixel_batches(self.labeled.images, self.spec, batch_size))
        batches = self._kept if self._kept is not None else pixel_batches(self.labeled.images, self.spec, batch_size)
        results = []
        with torch.inference_mode(), autocast(ranks.device, precision):
            for pixels in batches:
                results.append(model(self.preprocessing.normalize(pixels.to(ranks.device))).float().cpu())
        return torch.cat(results)

    def accuracy(self, model: nn.Module, ranks: Ranks) -> float:
        """The share of images whose highest logit is their label's."""
        return float((self.logits(model, ranks).argmax(dim=1) == torch.tensor(self.labeled.labels)).float().mean())


def pixel_batches(images: ImageSet, spec: EncoderSpec, batch_size: int) -> Any:
    """Images as they are judged, in batches (B, C, H, W) of stored values."""
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        arrays = [to_array(fit_and_crop(images.open(number), spec.image_size), spec.channels) for number in numbers]
        yield torch.from_numpy(np.stack(arrays))


def score(model: Classifier, labeled: LabeledImages, split: str, ranks: Ranks) -> Scores:
    """Judge a classifier on a split, by torchmetrics."""
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

    classes = len(labeled.classes)
    logits = Evaluation(labeled, model.encoder.spec, model.encoder.preprocessing).logits(model, ranks)
    labels = torch.tensor(labeled.labels)

    def accuracy(top_k: int) -> float:
        return float(MulticlassAccuracy(classes, average="micro", top_k=min(top_k, classes))(logits, labels))

    confusion = MulticlassConfusionMatrix(classes)(logits, labels)
    count = confusion.sum(dim=1)
    return Scores(
        split=split,
        count=len(labeled),
        top1=accuracy(1),
        top5=accuracy(5),
        balanced=float((confusion.diag() / count)[count > 0].mean()),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def start_encoder(config: ClassifyConfig, source: EncoderFile | None, labeled: LabeledImages, gray: bool) -> Encoder:
    """The encoder that training starts from: the file's weights, or fresh ones of the same or the named shape."""
    size = (config.image_size, config.image_size) if isinstance(config.image_size, int) else config.image_size
    if source is not None:
        if source.encoder.spec.channels not in (1, 3):
            raise DataError(
                f"encoder={config.encoder}: takes {source.encoder.spec.channels} channels, but image files have 1 or 3. "
                "Give an encoder that was pretrained on 1 or 3."
            )
        if config.patch_size not in (None, source.encoder.spec.patch_size):
            raise ConfigError(
                "patch_size", config.patch_size, f"null, or the encoder's {source.encoder.spec.patch_size}"
            )
        encoder = source.encoder.resized(size) if size is not None else source.encoder
        if config.init == "encoder":
            return encoder
        return fresh_encoder(encoder.spec, encoder.preprocessing, config.seed)
    channels = 1 if gray else 3
    spec = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size, channels=channels)
    preprocessing = Preprocessing.default(channels)
    if channels == 1:
        mean, std = channel_statistics(labeled.images, channels, seed=config.seed)
        preprocessing = Preprocessing(channel_names(channels), mean, std)
    return fresh_encoder(spec, preprocessing, config.seed)


def fresh_encoder(spec: EncoderSpec, preprocessing: Preprocessing, seed: int) -> Encoder:
    """An encoder with weights drawn from ``seed``."""
    with isolated(seed, "weights"):
        return Encoder(spec, preprocessing=preprocessing)


def _with_drop_path(encoder: Encoder, drop_path: float) -> Encoder:
    return encoder.resized(encoder.spec.image_size, drop_path=drop_path).float()


def save_classifier(model: Classifier, path: Path, classes: Sequence[str], provenance: Provenance) -> None:
    """Write a classifier as safetensors, with all that is needed to use it in its metadata."""
    description = {
        "version": 1,
        "task": "classify",
        "classes": list(classes),
        "spec": asdict(model.encoder.spec),
        "preprocessing": asdict(model.encoder.preprocessing),
        "provenance": asdict(provenance),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={MODEL_KEY: json.dumps(description)})


def load_classifier(path: str | Path) -> tuple[Classifier, tuple[str, ...]]:
    """A classifier that ``save_classifier`` wrote, and its classes; raises CheckpointError for any other file."""
    state, metadata = read_tensors(path)
    try:
        description = json.loads(metadata[MODEL_KEY])
        spec = EncoderSpec.from_json(description["spec"])
        preprocessing = Preprocessing.from_json(description["preprocessing"])
        model = Classifier(Encoder(spec, preprocessing=preprocessing), len(description["classes"]))
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a classifier. Expected the {MODEL_FILE} that maelift transfer classify wrote."
        ) from error
    return model.eval(), tuple(description["classes"])


def write_scores(scores: Scores, classes: Sequence[str], fit: Fit, folder: Path) -> None:
    """Write the confusion matrix as CSV and then, last of a run, test.json."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["true class (rows), predicted (columns), counts", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, scores.confusion, strict=True))
    atomic_write_text(folder / "confusion_test.csv", table.getvalue())
    content = {**asdict(scores), "val_accuracy": fit.val_accuracy, "best_step": fit.best_step, "steps": fit.steps}
    atomic_write_text(folder / "test.json", json.dumps(content, indent=1) + "\n")


def plan(config: ClassifyConfig) -> Plan:
    """What ``classify`` would do and roughly cost; writes nothing and trains nothing."""
    splits = read_splits(config.data, config.val, config.test, config.split_seed)
    labeled = splits.train if config.labels is None else draw_labeled(splits.train, config.labels, config.split_seed)
    source = read_encoder(config.encoder) if config.encoder else None
    encoder = start_encoder(config, source, labeled, gray=False)
    spec, device = encoder.spec, choose_device(config.device)
    parameters = sum(parameter.numel() for parameter in Classifier(encoder, len(labeled.classes)).parameters())
    steps = config.total_steps(len(labeled))
    tokens = (spec.num_patches + spec.num_prefix_tokens) * spec.embed_dim * spec.depth
    beware = _too_few_steps(config, len(labeled))
    return Plan(
        lines=(
            *((("beware", beware),) if beware else ()),
            (
                "images",
                f"{len(labeled)} to train on, {len(splits.val)} validation, {len(splits.test)} test (unchecked yet)",
            ),
            ("classes", f"{len(labeled.classes)}"),
            ("start", "from nothing" if config.init == "scratch" else str(config.encoder)),
            ("image size", f"{spec.image_size[0]}×{spec.image_size[1]} px, patch {spec.patch_size} px"),
            ("learning rate", f"{config.peak_lr:.3g} after warm-up, layer decay {config.layer_decay:g}"),
            ("device", str(device)),
            ("result", str(Path(config.out) / MODEL_FILE)),
        ),
        parameters=parameters,
        steps=steps,
        seconds=training_seconds(encoder_flops(spec), steps * config.batch_size, device),
        memory_bytes=training_memory(parameters, tokens, config.batch_size // config.accumulate),
    )


def _provenance(
    config: ClassifyConfig, source: EncoderFile | None, fit: Fit, labeled: int, digest: str, ranks: Ranks
) -> Provenance:
    hours, on_gpu = fit.seconds / 3600 * ranks.world_size, ranks.device.type == "cuda"
    starting = source is not None and config.init == "encoder"
    return Provenance(
        method=f"supervised classification of {labeled} labelled images, start: {config.init}",
        config={key: value for key, value in to_dict(config).items() if key not in ("data", "out", "encoder")},
        seed=config.seed,
        steps=fit.steps,
        images_seen=fit.steps * config.batch_size,
        cpu_hours=0.0 if on_gpu else round(hours, 6),
        gpu_hours=round(hours, 6) if on_gpu else 0.0,
        data_manifest=digest,
        parent=source.content_hash if starting and source is not None else None,
        licence=source.provenance.licence if starting and source is not None else None,
        tool_version=__version__,
    )


def _read_result(folder: Path, config: ClassifyConfig, val_count: int) -> ClassifyResult:
    content = json.loads((folder / "test.json").read_text())
    confusion = tuple(tuple(row) for row in content["confusion"])
    scores = Scores(
        content["split"], content["count"], content["top1"], content["top5"], content["balanced"], confusion
    )
    return ClassifyResult(folder / MODEL_FILE, scores, content["val_accuracy"], val_count, config.seed)
