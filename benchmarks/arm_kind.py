"""An arm of a suite: its settings, and the interface of a kind of arm, which makes its encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch

from ..core.data.classification import LabeledImages
from ..core.data.images import ImageSet
from ..core.data.labeled_dataset import Splits
from ..core.distributed import Ranks
from ..core.errors import ConfigError
from ..core.models.adapt_encoder import adapt_encoder
from ..core.models.backbone import Backbone, BackboneSpec
from ..core.models.backbone_cost import backbone_parameters
from ..core.models.encoder_file import EncoderFile
from ..core.models.encoder_spec import EncoderSpec, ModelName, preset_spec
from ..core.models.preprocessing import Preprocessing
from ..core.progress import ProgressListener
from ..transfer.recipe import Recipe
from ..transfer.task import Task
from ..transfer.trained_model import load_model
from .run_training import task_of
from .runs import Run, recipe_facts

Init = Literal["encoder", "supervised", "scratch"]
"""Whose recipe, in transfer/recipes/, an arm is fine-tuned with."""


@dataclass(frozen=True)
class ArmConfig:
    """One way to get an encoder, and how it is fine-tuned."""

    start: str
    """mae: pretrained on the pool, without labels; supervised: with the pool's labels; encoder: as weights are; weights: the same
    of any architecture of timm's; scratch; cnn: a small ResNet from scratch; pixels: probes on pixels, without a network"""
    label: str
    """the arm's name in the report"""
    weights: str | None = None
    """encoder file, public weights, timm:NAME, timm:NAME@FILE or hf:NAME/MODEL. encoder, supervised, weights: used as they are;
    mae: where pretraining starts"""
    model: ModelName | None = None
    """shape of this arm's encoder; null: the suite's"""
    image_size: int | tuple[int, int] | None = None
    """start=weights: pixels of its images of classification, one side or [height,width]; null: the suite's"""
    pool: int | float | None = None
    """how many of the pool's images it is pretrained on, a count or a share; the fewer are among the more; null: all"""
    frozen: bool = False
    """of classification: the encoder stays as it is, under logistic regression or nearest neighbours, the better by validation"""
    x: float | None = None
    """the arm's place on the suite's axis"""
    compute_of: str | None = None
    """start=scratch: trained for longer, by the steps that this arm's pretraining took in floating-point operations"""
    pretrain: dict[str, Any] = field(default_factory=dict)
    """keys of maelift pretrain (start: mae), or of the scratch recipe (start: supervised)"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """keys that change the classification recipe of the start (transfer/recipes/)"""
    steps: dict[str, int] = field(default_factory=dict)
    """steps of classification that this arm's tuning begins with, for each label count; null: the suite's, or the recipe's"""

    def __post_init__(self) -> None:
        if self.pool is not None and self.pool <= 0:
            raise ConfigError("pool", self.pool, "a count or share above 0")
        for labels, steps in self.steps.items():
            if not labels.isdigit() or steps < 1:
                raise ConfigError(f"steps.{labels}", steps, "a count of labels with 1 or more steps")


class ArmSuite(Protocol):
    """What an arm kind reads of its suite's settings (``BenchConfig``)."""

    @property
    def arms(self) -> Mapping[str, ArmConfig]: ...

    @property
    def images_path(self) -> str:
        """Where the suite's own images are."""
        ...

    @property
    def pool_has_labels(self) -> bool:
        """Whether the images to pretrain on have labels."""
        ...

    @property
    def model(self) -> ModelName: ...

    @property
    def spec(self) -> EncoderSpec:
        """The shape of the encoder of every arm without a model of its own."""
        ...

    def spec_of(self, arm: str) -> BackboneSpec:
        """The shape of an arm's encoder."""
        ...

    @property
    def reading(self) -> Mapping[str, Any]:
        """The keys that say how image files are read, as ``maelift pretrain`` has them."""
        ...

    @property
    def evaluations(self) -> int: ...

    @property
    def device(self) -> str: ...


class ArmContext(Protocol):
    """What an arm kind reads of its suite with its images (``Context``)."""

    @property
    def config(self) -> ArmSuite: ...

    @property
    def weights(self) -> Mapping[str, str]:
        """Hash of the weights that an arm begins with, where it names some."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """What every arm's images are normalised by."""
        ...

    @property
    def classify(self) -> Splits[LabeledImages]:
        """The suite's own images with a class each."""
        ...

    def pool_size(self, arm: str) -> int:
        """How many images an arm is pretrained on."""
        ...

    def pool_of(self, arm: str) -> ImageSet:
        """The images that an arm is pretrained on."""
        ...

    def labelled_pool_of(self, arm: str) -> LabeledImages:
        """The same with their labels."""
        ...

    def facts(self, arm: str, *parts: str, **more: object) -> str:
        """What determines the outcome of all runs of an arm that read these parts of the images, as one line of JSON."""
        ...


@dataclass(frozen=True)
class EncoderCost:
    """What a run that makes an encoder computes: images trained on and evaluated, each as often as it is seen.

    ``flops``: floating-point operations on one of them, forward.
    """

    trained: float = 0.0
    evaluated: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class SavedWeights:
    """What such a run writes: parameters that stay, and checkpoints while it runs, with an average of the weights or without."""

    parameters: int
    checkpoints: int = 0
    averaged: bool = False


@dataclass(frozen=True)
class Training:
    """What a training of an arm on a task is made of.

    ``variant``: which of the arm's settings, where these are no rates and steps; ``encoder`` is one without weights, of
    which the shape of the images alone is of use, for an arm without. ``manifest`` hashes what the images contain. ``folder``:
    where the task may leave files, ``shared`` where it may leave those that other trainings use too. ``folds`` (N,) are those
    of the training images, by which a variant that takes no steps validates itself; empty where validation images do.
    """

    recipe: Recipe
    variant: str
    encoder: Backbone
    splits: Splits[Any]
    ranks: Ranks
    manifest: str = ""
    folder: Path | None = None
    shared: Path | None = None
    folds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Speed:
    """Seconds of training on an image, and of evaluating one."""

    training: float
    evaluating: float


MEASURED_EVALUATION = 32
"""Images that are evaluated to measure how long that takes."""


class ArmKind(ABC):
    """How an arm gets its encoder."""

    init: Init
    """whose recipe, in transfer/recipes/, it is fine-tuned with"""
    code_version: ClassVar[int] = 1
    """raised whenever a change of the code would change the encoders; see ``Run.code``"""
    trains_on_pool: bool = False
    """whether the suite pretrains it, once for each of ``pretrain_seeds``; else there is one encoder"""
    may_train_longer: ClassVar[bool] = False
    """whether ``compute_of`` may be given"""
    pretrained: ClassVar[bool] = True
    """whether its trainings begin with trained weights"""
    upper_bound: bool = False
    """whether it has seen labels that the other arms haven't: it is shown, but no verdict is drawn"""
    has_encoder: ClassVar[bool] = True
    """whether it trains an encoder of the suite's kind"""
    own_architecture: bool = False
    """whether its network is that of its weights, whatever the suite's model is"""
    variants: tuple[str, ...] = ()
    """settings that are tried in place of rates and steps, the better by validation; none where those are tuned"""

    def for_arm(self, arm: ArmConfig) -> ArmKind:
        """The kind of this very arm, where there are several with the same ``start``."""
        return self

    def check_keys(self, arm: ArmConfig) -> None:
        """Raise ConfigError for keys of an arm that the kind has no use for, or lacks."""
        if arm.compute_of is not None and not self.may_train_longer:
            raise ConfigError("compute_of", arm.compute_of, "null, but at start=scratch")
        if arm.image_size is not None and not self.own_architecture:
            raise ConfigError("image_size", arm.image_size, "null, but at start=weights: other arms have the suite's")
        if arm.pool is not None and not self.trains_on_pool:
            raise ConfigError("pool", arm.pool, "null, but for an arm that is pretrained on the pool")

    def check(self, suite: ArmSuite, name: str) -> None:
        """Raise MaeliftError, with the full key, where the arm of this name can't be had in a suite."""
        for key, value in suite.arms[name].pretrain.items():
            raise ConfigError(f"arms.{name}.pretrain.{key}", value, f"nothing, at start={suite.arms[name].start}")

    def spec(self, suite: ArmSuite, name: str, shape: EncoderSpec, image_size: tuple[int, int]) -> BackboneSpec:
        """The shape of the arm's network where the suite's model has this ``shape``; ``image_size``: of its own architecture."""
        return plain_spec(suite, name, shape)

    def fitted(
        self, file: EncoderFile[Backbone], spec: BackboneSpec, source: str, key: str, names: Sequence[str] = ()
    ) -> tuple[Backbone, list[str]]:
        """The network of an arm with the weights of a file, and what was adapted; raises ConfigError where they don't fit."""
        if not isinstance(spec, EncoderSpec):
            raise ConfigError(key, source, "weights of a plain ViT")
        return adapt_encoder(file.encoder, spec, source, key, names)

    def compares(self, task: str) -> bool:
        """Whether the kind is compared on a task, by its name in the table of tasks."""
        return True

    def task(self, training: Training) -> Task[Any, Any]:
        """What a training fits."""
        return task_of(training.recipe, training.encoder, training.splits, training.ranks, training.folder)

    def recipe_facts(self, recipe: Recipe, variant: str) -> str:
        """What of a recipe, or of a variant, determines a training, for its key."""
        return recipe_facts(recipe)

    def load_model(self, path: Path) -> Any:
        """The model that a training saved, in eval mode."""
        return load_model(path)

    @abstractmethod
    def plan(self, context: ArmContext, name: str, seed: int) -> Run | None:
        """The run that makes the arm's encoder with a seed of pretraining; None where every training begins with a fresh one."""

    def make_encoder(
        self, run: Run, context: ArmContext, folder: Path, ranks: Ranks, listener: ProgressListener | None
    ) -> dict[str, Any]:
        """Do a run that ``plan`` planned: write ``ENCODER_FILE`` into ``folder``. The result has ``seconds`` and ``steps``."""
        raise NotImplementedError

    def cost(self, context: ArmContext, name: str) -> EncoderCost:
        """What a run that ``plan`` planned computes; nothing that counts, of weights that are only read."""
        return EncoderCost()

    def saved(self, context: ArmContext, name: str) -> SavedWeights:
        """What such a run writes."""
        return SavedWeights(backbone_parameters(context.config.spec_of(name)))

    def measure(
        self, context: ArmContext, name: str, device: torch.device, measure_task: Callable[[Task[Any, Any]], Speed]
    ) -> Speed:
        """The speed of such a run on this machine, by a few steps; ``measure_task`` measures a task's."""
        raise NotImplementedError

    def pretraining(self, suite: ArmSuite, name: str) -> Mapping[str, object]:
        """The resolved settings of the arm's pretraining, for the report; none where the suite doesn't pretrain it."""
        return {}

    @abstractmethod
    def describe(self, arm: ArmConfig) -> str:
        """How the arm gets its encoder, as the report says it."""


def part_of_pool(context: ArmContext, name: str) -> dict[str, int]:
    """What a run's key says of an arm that is pretrained on a part of the pool."""
    return {} if context.config.arms[name].pool is None else {"pool": context.pool_size(name)}


def pool_words(arm: ArmConfig) -> str:
    """The images that an arm is pretrained on, as the report says it."""
    if arm.pool is None:
        return "the pool"
    return f"{arm.pool:,} images of the pool" if isinstance(arm.pool, int) else f"{100 * arm.pool:g} % of the pool"


def plain_spec(suite: ArmSuite, name: str, shape: EncoderSpec) -> EncoderSpec:
    """The shape of a plain ViT of the suite's: of the suite's model, or of the arm's own with as large images and patches."""
    model = suite.arms[name].model
    if model is None:
        return shape
    return preset_spec(model, image_size=shape.image_size, patch_size=shape.patch_size, channels=shape.channels)
