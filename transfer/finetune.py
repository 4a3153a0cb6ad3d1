"""Fine-tuning for any task: a task says what is particular (data, model, loss, metric); all the rest stands here.

``Task`` is what a new task writes; ``run`` is what its command does: read and check the data, take the start, train with
``core/training/loop.py``, keep the best weights on validation, read the test split once, and leave model, figures and summary.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import Self

from ..core.config import format_help, raw_value, resolve, to_dict
from ..core.data.audit import audit, told_once, write_rejected
from ..core.data.decode import PixelFormat, background_colour
from ..core.data.labeled_dataset import Images, Splits, draw_labeled
from ..core.data.missing_splits import SplitManifest, audited_splits, draw_missing_splits
from ..core.data.sampling import Batch, Batches, Sample, Sampler, Uniforms, each
from ..core.device import Precision, choose_device
from ..core.distributed import Ranks
from ..core.dry_run import Plan
from ..core.errors import ConfigError, DataError, MaeliftError, show
from ..core.files import TableWriter, atomic_path, output_folder
from ..core.models.cost import training_memory, training_seconds
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile, Provenance
from ..core.progress import Listener
from ..core.public_names import public_config
from ..core.seeding import seeded_rng
from ..core.terminal import quoted
from ..core.training.checkpoints import Checkpoints
from ..core.training.ema import WeightAverage
from ..core.training.loop import Callbacks, train
from ..core.training.optimizers import parameter_groups
from ..core.training.run_dir import RunFolder, read_run_config
from ..core.training.schedule import Decay, Schedule, evenly_spaced_steps
from ..core.training.state import State
from ..core.training.tracker import Tracker, read_metrics
from ..version import __version__
from .init_weights import Start, background_of, read_start, start_encoder
from .metrics import Scores
from .model_file import MODEL_FILE, load_model
from .report import write_summary
from .visualize import Picture

logger = logging.getLogger("maelift")

TEST_FILE = "test.json"
"""The figures of the test split, written last: a run that has it is finished."""
SPLITS_FILE = "splits.csv"
"""Which image is in which split."""
FEW_STEPS = 200
"""With fewer, a recipe given in epochs trains next to nothing, and says so."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained; the numbers of each task and start stand in transfer/recipes/."""

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
    schedule: Decay = "cosine"
    """how the rate falls after it: cosine and linear to 0; steps: by 10 after 8/9 and 26/27 of all steps"""
    drop_path: float
    """probability that the last block is left out in a step; it rises from 0 at the first"""
    ema_decay: float | None
    """decay of the moving average of weights that is evaluated and kept; null: none"""
    clip_grad: float | None
    """largest norm of the gradient; null: not clipped"""

    def __post_init__(self) -> None:
        for key in ("epochs", "steps", "batch_size", "base_lr", "lr", "layer_decay", "clip_grad"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        if self.weight_decay < 0:
            raise ConfigError("weight_decay", self.weight_decay, "0 or more")
        for key in ("warmup", "drop_path", "ema_decay"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(key, value, "a share from 0 to below 1")
        if self.layer_decay > 1:
            raise ConfigError("layer_decay", self.layer_decay, "a factor of at most 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", list(self.betas), "two shares from 0 to below 1")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / 256

    def check_passes(self, count: int) -> None:
        """Raise ConfigError when a step can't be split into ``count`` passes, over all processes and accumulations."""
        if self.batch_size % count:
            raise ConfigError("batch_size", self.batch_size, f"a multiple of {count} (processes × accumulate)")

    def total_steps(self, images: int) -> int:
        """Steps of the optimiser for ``images`` labelled images."""
        return self.steps or max(1, math.ceil(self.epochs * images / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class Paths:
    """What a run reads and where it writes."""

    data: str
    """the annotated images: see the docs page of the task"""
    out: str
    """folder for the model, its test results and metrics"""


@dataclass(frozen=True, kw_only=True)
class TransferConfig(Recipe, Start, Paths):
    """The keys that the commands of all tasks share."""

    recipe: Literal["paper", "small"] = "paper"
    """paper: as published for the start, for large images and many labels; small: for small images and few labels"""
    labels: int | float | None = None
    """labelled images to train on, a count or a share, the smaller draw in the larger; null: all"""
    val: int | float = 0.1
    """validation images where the data has no such split, a count or a share of the training images"""
    test: int | float = 0.1
    """test images where the data has no such split, a count or a share of the training images"""
    split_seed: int = 0
    """seeds the draws of validation, test and labelled images"""
    group: str | None = None
    """what stays in one split, a patient, video or flight: a column of the CSV, or a regular expression over the images' paths
    ("(patient[0-9]+)")"""
    folds: int | None = None
    """parts that the images are cut into for cross-validation; one of them is the test split, in place of a draw by test"""
    fold: int = 0
    """which of the folds is tested with, from 0"""
    accumulate: int = 1
    """passes that a step is split into, to save memory; what is drawn within the model is drawn anew in each"""
    evaluations: int = 20
    """times that the validation images are judged; the best of these weights are kept"""
    patience: int | None = None
    """evaluations without a better one after which training ends; null: it goes on to the last step"""
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
    evaluate: Literal["train", "val", "test"] | None = None
    """--evaluate SPLIT: score the finished model in out on this split of data (its own, if data is not given)"""

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        Start.__post_init__(self)
        for key in ("accumulate", "evaluations", "patience", "checkpoint_minutes"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        if self.workers is not None and self.workers < 0:
            raise ConfigError("workers", self.workers, "0 or more")
        if self.folds is not None and self.folds < 2:
            raise ConfigError("folds", self.folds, "2 or more, or null")
        if not 0 <= self.fold < (self.folds or 1):
            raise ConfigError("fold", self.fold, f"0 to {(self.folds or 1) - 1}, with folds={show(self.folds)}")
        self.check_passes(self.accumulate)

    @classmethod
    def task(cls) -> type[Task[Any, Any]]:
        """The task that this configures."""
        raise NotImplementedError

    def chosen_task(self) -> type[Task[Any, Any]]:
        """The task as this very configuration wants it done, where there are several ways."""
        return self.task()

    def recipe_name(self) -> str:
        """The file in transfer/recipes/, without its ending, whose numbers stand beneath what the user says."""
        return f"{self.task().name}_{self.init}" + ("_small" if self.recipe == "small" else "")

    @classmethod
    def resolve(cls, overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> Self:
        """The configuration: what the user says, over the recipe that it names or the finished run that it is to judge."""
        # any recipe that goes with what the user says: the right one is known only when that is
        likely = [name for key, name in cls.recipes().items() if _says(key, overrides, file)]
        usual = recipe_defaults([f"{cls.task().name}_encoder", *likely][-1])
        first = resolve(cls, overrides, file, {**usual, "encoder": "any", "data": "any"})
        if first.evaluate is not None:
            return resolve(cls, overrides, file, _finished_config(Path(first.out)))
        return resolve(cls, overrides, file, recipe_defaults(first.recipe_name()))

    @classmethod
    def help(cls) -> str:
        """Every key, those of the recipe with their value for each start."""
        usual, *others = [(chosen, recipe_defaults(name)) for chosen, name in cls.recipes().items()]
        texts = {}
        for key, value in usual[1].items():
            different = [f"with {chosen} {show(own[key])}" for chosen, own in others if own.get(key, value) != value]
            texts[key] = ", ".join([f"default {show(value)}", *different])
        return format_help(cls, texts)

    @classmethod
    def recipes(cls) -> dict[str, str]:
        """The recipes by the key that chooses them, the usual one first."""
        return {f"init={init}": f"{cls.task().name}_{init}" for init in ("encoder", "supervised", "scratch")}


def _says(key_value: str, overrides: Sequence[str] | Mapping[str, object], file: Path | None) -> bool:
    key, _, value = key_value.partition("=")
    return raw_value(key, overrides, file) == value


def recipe_defaults(name: str) -> dict[str, Any]:
    """The numbers of a recipe, "classify_encoder", say, from transfer/recipes/."""
    path = Path(__file__).parent / "recipes" / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in path.parent.glob(f"{name.partition('_')[0]}_*.yaml")))
        raise ConfigError("recipe", name, f"a recipe that is there: {there}")
    return cast(dict[str, Any], yaml.safe_load(path.read_text(encoding="utf-8")))


Config = TypeVar("Config", bound=Recipe)


class Task(ABC, Generic[Config, Images]):
    """What is particular to a task. A new task is one file with such a class, its recipes, and a line in cli.py and models.py.

    ``encoder`` holds the weights of the start, at the image size of the run; ``splits`` the images that are trained on,
    chosen by and judged by.
    """

    name: ClassVar[str]
    """the word after maelift transfer"""
    best_metric: ClassVar[str]
    """the validation metric whose best weights are kept, "val/top1", say; higher is better"""
    draws: ClassVar[int]
    """uniform draws in [0, 1) that a training sample takes: all of its randomness"""
    encoder_prefix: ClassVar[str] = "encoder."
    """what the names of the encoder's parameters begin with in the model, before timm's names"""
    manifest: str = ""
    """hash of what the images of ``splits`` contain, where a run has looked through them"""

    def __init__(self, config: Config, encoder: Encoder, splits: Splits[Images], ranks: Ranks) -> None:
        self.config, self.encoder, self.splits, self.ranks = config, encoder, splits, ranks

    @classmethod
    @abstractmethod
    def read_parts(cls, config: Any) -> Mapping[str, Images]:
        """The splits of annotated images that ``config.data`` has, by name; a whole without splits is "train"."""

    @classmethod
    def read(cls, config: Any) -> Splits[Images]:
        """Three splits: those that the data has, and the missing ones drawn from the training images, none of them opened."""
        keys = {"group": config.group, "folds": config.folds, "fold": config.fold}
        parts = cls.read_parts(config)
        return draw_missing_splits(parts, config.data, config.val, config.test, config.split_seed, **keys)

    @classmethod
    def read_audited(cls, config: Any, form: PixelFormat | None = None) -> tuple[Splits[Images], SplitManifest]:
        """The same of images that are opened first: without the broken ones, and with equal pictures in one split.

        ``form``: what is made of the values in their files; see ``audit.audit``.
        """
        keys = {"group": config.group, "folds": config.folds, "fold": config.fold, "form": form}
        parts, rejected = cls.read_parts(config), config.max_rejected
        return audited_splits(parts, config.data, config.val, config.test, config.split_seed, rejected, **keys)

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The encoder under a new head. What the head draws must not depend on the encoder: pairs share their heads."""

    @abstractmethod
    def sample(self, index: int, draws: Uniforms) -> Sample:
        """Training image number ``index``, augmented as ``draws`` (draws,) say, with its target."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over a micro-batch. ``model`` may be wrapped: it must be called as a whole."""

    @abstractmethod
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Figures of the validation images, ``best_metric`` among them."""

    @abstractmethod
    def score(self, model: nn.Module, images: Images, split: str) -> Scores:
        """All figures of a trained model on a split."""

    def score_items(self, model: nn.Module, images: Images, split: str) -> tuple[Scores, NDArray[np.float64] | None]:
        """``score``, and what each item brings to its first figure, the items' mean (items,); None where it isn't known.

        An item is an image or a group of images: what of a test set was drawn by itself.
        """
        return self.score(model, images, split), None

    @abstractmethod
    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        """Write the model file."""

    @abstractmethod
    def pictures(self, model: nn.Module, images: Images, split: str) -> list[Picture]:
        """Some right and some wrong predictions."""

    def metric(self) -> str:
        """``best_metric``, or another where the data want it."""
        return self.best_metric

    @torch.no_grad()
    def flops(self, model: nn.Module) -> float:
        """Floating-point operations of the model on one image of the encoder's size, forward: counted on an empty one."""
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, self.encoder.spec.channels, *self.encoder.spec.image_size))
        return float(counter.get_total_flops())

    def steps(self) -> int:
        """Steps of the optimiser; 0: the model is finished when it has begun."""
        return self.config.total_steps(len(self.splits.train))

    def images_seen(self) -> float:
        """Images that go through the encoder forward and back; those that go forward only count a third."""
        return self.steps() * self.config.batch_size

    def loaders(self, wanted: int | None) -> int:
        """Processes that load training samples; ``wanted`` None: as many as the images take."""
        return self.splits.train.images.default_workers() if wanted is None else wanted

    def begin(self, model: nn.Module) -> None:
        """What comes before the first step, on every process."""

    def finished(self, model: nn.Module) -> nn.Module:
        """The trained model as it is scored and kept."""
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with layer-wise learning-rate decay."""
        groups = parameter_groups(
            model.named_parameters(),
            weight_decay=self.config.weight_decay,
            depth=self.encoder.spec.depth,
            layer_decay=self.config.layer_decay,
            prefix=self.encoder_prefix,
        )
        return torch.optim.AdamW(groups, lr=self.config.peak_lr, betas=self.config.betas, fused=True)


@dataclass(frozen=True)
class Fit:
    """A trained model, with the weights of its best validation figure (a share, at ``best_step``)."""

    model: nn.Module
    best: float
    best_step: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class TransferResult:
    """What a transfer leaves: the model file, its test scores, and its best validation figure (a share)."""

    task: str
    model: Path
    test: Scores
    metric: str
    val: float
    val_count: int
    seed: int

    def summary(self) -> str:
        """The result in a few lines."""
        metric = self.metric.removeprefix("val/")
        return (
            f"model: {self.model}\n{self.test.line()}\n"
            f"val: best {metric} {100 * self.val:.2f} % ({self.val_count} images, 1 seed)\n"
            f"pictures and curves: {self.model.with_name('summary.html')}\n"
            f"next: maelift predict model={quoted(self.model)} images=FOLDER"
        )


def fit(
    task: Task[Any, Any],
    *,
    seed: int,
    tracker: Tracker,
    evaluations: int,
    patience: int | None = None,
    accumulate: int = 1,
    precision: Precision = "auto",
    workers: int | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 300.0,
) -> Fit:
    """Train the task's model on its training images; keep the weights of the best validation figure.

    The head, the order and the augmentation depend on ``seed`` only, not on the encoder: two encoders with one seed are a
    pair.
    """
    recipe, ranks, labeled = task.config, task.ranks, task.splits.train
    recipe.check_passes(ranks.world_size * accumulate)
    with seeded_rng(seed, "head"):
        model = task.build_model().to(ranks.device)
    task.begin(model)
    steps = task.steps()
    if steps == 0:
        metrics = task.validate(model.eval())
        tracker.log(0, metrics)
        return Fit(task.finished(model).eval(), metrics[task.metric()], 0, 0, 0.0)
    average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
    state = State(model, task.optimizer(model), average)
    if checkpoints is not None and state.load(checkpoints):
        logger.info("transfer %s: going on from step %d of %d", task.name, state.step, steps)
    batches = Batches(
        Sampler(len(labeled), recipe.batch_size, seed),
        each(task.sample),
        draws=task.draws,
        ranks=ranks,
        accumulate=accumulate,
        workers=task.loaders(workers),
    )
    train(
        state,
        batches,
        task.loss,
        Schedule(steps, recipe.peak_lr, warmup=recipe.warmup * steps, decay=recipe.schedule),
        seed=seed,
        ranks=ranks,
        tracker=tracker,
        upkeep=Callbacks(
            evaluate=lambda judged, step: task.validate(judged),
            evaluate_at=evenly_spaced_steps(steps, evaluations),
            best_metric=task.metric(),
            patience=patience,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
        ),
        precision=precision,
        clip_grad=recipe.clip_grad,
    )
    if state.best_weights:
        model.load_state_dict(state.best_weights)
    return Fit(task.finished(model).eval(), state.best_value, state.best_step, state.step, state.seconds)


def run_or_evaluate(config: TransferConfig) -> TransferResult | EvaluationResult:
    """What the command does: ``run``, or with ``evaluate`` the judgement of a model that a run has left."""
    return run(config) if config.evaluate is None else evaluate(config, config.evaluate)


def run(config: TransferConfig, listener: Listener | None = None) -> TransferResult:
    """Fine-tune as ``config`` says, or go on where the same run was stopped; the test split is read once, at the end.

    ``listener`` hears of progress in place of the terminal. Raises MaeliftError for what a user can mend.
    """
    task_type = config.chosen_task()
    title = f"transfer {task_type.name}"
    with Ranks.here(config.device) as ranks, ExitStack() as held:
        config.check_passes(ranks.world_size * config.accumulate)
        source = read_start(config)
        folder = held.enter_context(RunFolder.open(output_folder(config.out), config, ranks))
        form = PixelFormat(background=background_colour(background_of(config, source)), plain=True)
        splits, manifest = task_type.read_audited(config, form)
        if ranks.is_main:
            if manifest.rejected:
                _tell_rejected(title, manifest, folder.path)
            for line in told_once(manifest.sound, manifest.unusual):
                logger.warning("%s: %s", title, line)
        labeled = (
            splits.train if config.labels is None else draw_labeled(splits.train, config.labels, config.split_seed)
        )
        encoder, notes = start_encoder(config, source, labeled.images, manifest.gray)
        task = task_type(config, encoder, replace(splits, train=labeled), ranks)
        task.manifest = manifest.digest
        folder.check_data(manifest.digest, ranks, source.content_hash if source is not None else None)
        if (folder.path / TEST_FILE).exists():
            logger.info("%s: %s is there already; nothing was done again", title, folder.path / TEST_FILE)
            return _read_result(task, folder.path)
        for note in [*notes, *_too_few_steps(task)]:
            logger.warning("%s: %s", title, note)
        if ranks.is_main:
            _write_splits(task.splits, folder.path / SPLITS_FILE)
        with Tracker(
            folder.path,
            title,
            total=task.steps(),
            images_per_step=task.config.batch_size,
            active=ranks.is_main,
            listener=listener,
        ) as tracker:
            checkpoints = Checkpoints(folder.checkpoints, ranks)
            found = fit(
                task,
                seed=config.seed,
                tracker=tracker,
                evaluations=config.evaluations,
                patience=config.patience,
                accumulate=config.accumulate,
                precision=config.precision,
                workers=config.workers,
                checkpoints=checkpoints,
                checkpoint_seconds=60 * config.checkpoint_minutes,
            )
        if ranks.is_main:
            provenance = _provenance(config, source, found, len(labeled), manifest.digest, ranks)
            _finish(task, found, provenance, folder, notes)
        checkpoints.remove()
        return _read_result(task, folder.path)


def _finish(task: Task[Any, Any], found: Fit, provenance: Provenance, folder: RunFolder, notes: Sequence[str]) -> None:
    """Write the model, score it on the test split, and write what people read; the test's figures come last."""
    path, splits = folder.path, task.splits
    task.save(found.model, path / MODEL_FILE, provenance)
    scores = task.score(found.model, splits.test, "test")
    validation = {task.metric(): found.best, "count": len(splits.val)}
    write_summary(
        path,
        task=task.name,
        config=to_dict(task.config),
        scores=scores,
        curves=read_metrics(path / "metrics.jsonl"),
        pictures=task.pictures(found.model, splits.test, "test"),
        notes=notes,
        seconds=found.seconds,
    )
    if scores.confusion is not None:
        scores.write_confusion(path / "confusion_test.csv")
    scores.write(path / TEST_FILE, val=validation, best_step=found.best_step, steps=found.steps)


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a finished model on a split, and the file that they were written to."""

    scores: Scores
    file: Path

    def summary(self) -> str:
        """The result in two lines."""
        return f"{self.scores.line()}\nwritten: {self.file}"


def evaluate(config: TransferConfig, split: str) -> EvaluationResult:
    """Score the model of the finished run in ``config.out`` on a split of its data, or of other data of the same classes.

    Other data that have not got that split, but are a whole, are taken as a whole.
    """
    folder, task_type = Path(config.out), config.chosen_task()
    model = load_model(folder / MODEL_FILE)
    own = config.data == _finished_config(folder)["data"]
    parts = task_type.read_parts(config)
    images = part_of_run(parts, config, split) if own else _part_of_others(parts, config.data, split)
    if tuple(images.classes) != model.classes:
        raise DataError(
            f"data={config.data}: classes {', '.join(images.classes[:5])}; the model in {folder} knows "
            f"{', '.join(model.classes[:5])}. Expected the same, in the same order."
        )
    with Ranks.here(config.device) as ranks:
        _, manifest = audit(images.images, config.max_rejected, form=model.preprocessing.reading)
        images = images.subset(manifest.kept) if manifest.rejected else images
        encoder = Encoder(model.spec, preprocessing=model.preprocessing)
        task = task_type(config, encoder, Splits(images, images, images), ranks)
        name = split if own else f"{split}_{manifest.digest[:8]}"
        scores = replace(task.score(model.to(ranks.device), images, name), split=split)
    file = folder / f"evaluation_{name}.json"
    scores.write(file, data=config.data, rejected=len(manifest.rejected))
    return EvaluationResult(scores, file)


def part_of_run(parts: Mapping[str, Images], config: TransferConfig, split: str) -> Images:
    """A split as the run in ``config.out`` had it: what it drew stands in its splits.csv."""
    file = Path(config.out) / SPLITS_FILE
    if split in parts and split != "train":
        return parts[split]
    if "train" not in parts:
        raise DataError(f"data={config.data}: no training images; found only {', '.join(sorted(parts))}.")
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
        rows = [row for row in csv.DictReader(table) if row["split"] not in parts]
    drawn = {row["path"]: row["split"] for row in rows}
    whole = parts["train"]
    place = {whole.images.name(index): index for index in range(len(whole))}
    if gone := [name for name in drawn if name not in place]:
        raise DataError(
            f"data={config.data}: {len(gone)} images of the run's {drawn[gone[0]]} split aren't there, such as {gone[0]} "
            f"({file}). Bring them back, or give other images as data."
        )
    if split == "train":
        return whole.subset([index for name, index in place.items() if name not in drawn])
    return whole.subset(sorted(place[name] for name, drawn_split in drawn.items() if drawn_split == split))


def _part_of_others(parts: Mapping[str, Images], data: str, split: str) -> Images:
    if split in parts:
        return parts[split]
    if len(parts) == 1:
        return next(iter(parts.values()))
    raise DataError(f"data={data}: no {split} images; found only {', '.join(sorted(parts))}. Give one of these.")


def _finished_config(out: Path) -> dict[str, Any]:
    """The configuration of the run in ``out``; raises MaeliftError when there is no finished one."""
    if not (out / TEST_FILE).is_file() or not (out / "config.yaml").is_file():
        raise MaeliftError(f"out={out}: no finished run. --evaluate judges the model of one; run it without first.")
    return read_run_config(out / "config.yaml")


def plan(config: TransferConfig) -> Plan:
    """What ``run`` would do and roughly cost; writes nothing and trains nothing."""
    task_type = config.chosen_task()
    splits = task_type.read(config)
    labeled = splits.train if config.labels is None else draw_labeled(splits.train, config.labels, config.split_seed)
    device = choose_device(config.device)
    encoder, notes = start_encoder(config, read_start(config), labeled.images, gray=False)
    task = task_type(config, encoder, replace(splits, train=labeled), Ranks(0, 1, device))
    spec, steps = encoder.spec, task.steps()
    model = task.build_model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = (spec.num_patches + spec.num_prefix_tokens) * spec.embed_dim * spec.depth
    rate = f"{task.config.peak_lr:.3g} after warm-up, layer decay {config.layer_decay:g}"
    counts = f"{len(labeled)} to train on, {len(splits.val)} validation, {len(splits.test)} test (unchecked yet)"
    return Plan(
        lines=(
            *(("beware", note) for note in [*notes, *_too_few_steps(task)]),
            ("images", counts),
            ("classes", f"{len(labeled.classes)}"),
            ("start", "from nothing" if config.init == "scratch" else f"{config.encoder} ({config.init})"),
            ("recipe", f"transfer/recipes/{config.recipe_name()}.yaml"),
            ("image size", f"{spec.image_size[0]}×{spec.image_size[1]} px, patch {spec.patch_size} px"),
            *((("learning rate", rate),) if steps else ()),
            ("device", str(device)),
            ("result", str(Path(config.out) / MODEL_FILE)),
        ),
        parameters=parameters,
        steps=steps,
        seconds=training_seconds(task.flops(model), task.images_seen(), device),
        memory_bytes=training_memory(parameters, tokens, task.config.batch_size // config.accumulate),
    )


def _too_few_steps(task: Task[Any, Any]) -> list[str]:
    """What to tell those whose few labelled images make next to no steps of a recipe for a large data set."""
    steps, config = task.steps(), task.config
    if not 0 < steps < FEW_STEPS or config.steps is not None:
        return []
    small = isinstance(config, TransferConfig) and config.recipe == "small"
    better = "steps=1000" if small else "recipe=small, or steps=1000 with a small batch_size,"
    return [
        f"{len(task.splits.train)} labelled images make only {steps} steps of batch_size={config.batch_size}; the recipe is "
        f"for many more. With so few, {better} is a better start."
    ]


def _write_splits(splits: Splits[Any], path: Path) -> None:
    """Write which image is in which split, drawn or given: those of val and test should be in no pretraining."""
    table = io.StringIO()
    writer = TableWriter(table)
    writer.writerow(["path", "split"])
    for name, part in splits.items():
        writer.writerows([part.images.name(index), name] for index in range(len(part)))
    with atomic_path(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8", errors="surrogateescape")


def _tell_rejected(title: str, manifest: SplitManifest, folder: Path) -> None:
    file = folder / "rejected.csv"
    write_rejected(file, manifest.rejected)
    logger.warning("%s: %d broken images are left out; see %s", title, len(manifest.rejected), file)


def _provenance(
    config: TransferConfig, source: EncoderFile | None, found: Fit, labeled: int, digest: str, ranks: Ranks
) -> Provenance:
    hours, on_gpu = found.seconds / 3600 * ranks.world_size, ranks.device.type == "cuda"
    starting = source is not None and config.init != "scratch"
    return Provenance(
        method=f"supervised {config.task().name} with {labeled} labelled images, start: {config.init}",
        config=public_config(
            {key: value for key, value in to_dict(config).items() if key not in ("data", "out", "encoder")}
        ),
        seed=config.seed,
        steps=found.steps,
        images_seen=found.steps * config.batch_size,
        cpu_hours=0.0 if on_gpu else round(hours, 6),
        gpu_hours=round(hours, 6) if on_gpu else 0.0,
        data_manifest=digest,
        parent=source.content_hash if starting and source is not None else None,
        licence=source.provenance.licence if starting and source is not None else None,
        tool_version=__version__,
    )


def _read_result(task: Task[Any, Any], folder: Path) -> TransferResult:
    content = json.loads((folder / TEST_FILE).read_text(encoding="utf-8", errors="surrogateescape"))
    validation = content["val"]
    return TransferResult(
        task.name,
        folder / MODEL_FILE,
        Scores.from_json(content),
        task.metric(),
        validation[task.metric()],
        validation["count"],
        task.config.seed,
    )
