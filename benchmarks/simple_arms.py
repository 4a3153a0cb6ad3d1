"""Arms that any pretraining must beat: pixels, a small CNN from scratch, and an arm's own encoder, frozen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from ..core.cache import cache_folder
from ..core.config import resolve
from ..core.distributed import Ranks
from ..core.errors import ConfigError
from ..core.models.backbone import Backbone, BackboneSpec
from ..core.models.encoder_file import EncoderFile
from ..core.models.encoder_spec import EncoderSpec
from ..core.progress import ProgressListener
from ..transfer.classification.config import ClassifyConfig, ClassifyRecipe
from ..transfer.classification.probe import ProbeTask
from ..transfer.config import TransferConfig
from ..transfer.detection.config import DetectConfig
from ..transfer.model_file import is_model
from ..transfer.recipe import Recipe, recipe_defaults
from ..transfer.segmentation.config import SegmentConfig
from ..transfer.task import Task
from ..transfer.tasks import CLASSIFY
from .arm_kind import ArmConfig, ArmContext, ArmKind, ArmSuite, EncoderCost, Init, SavedWeights, Speed, Training
from .baseline_model import load_baseline
from .baseline_tasks import ConvDetectionTask, ConvNetTask, ConvSegmentationTask, PixelTask
from .conv_models import load_conv_model
from .runs import Run, recipe_facts

PROBES = ("linear", "knn1", "knn5", "knn20")
"""Heads on fixed features, the best of which is taken by validation: logistic regression, and the nearest 1, 5 or 20."""


class _WithoutEncoder(ArmKind):
    """An arm of classification with a model of its own, which sees only the labelled examples."""

    init: Init = "scratch"
    pretrained: ClassVar[bool] = False
    has_encoder: ClassVar[bool] = False

    def check_keys(self, arm: ArmConfig) -> None:
        for key in ("weights", "model"):
            if getattr(arm, key) is not None:
                raise ConfigError(key, getattr(arm, key), f"null, at start={arm.start}")
        super().check_keys(arm)

    def compares(self, task: str) -> bool:
        return task == CLASSIFY

    def plan(self, context: ArmContext, name: str, seed: int) -> None:
        return None

    def load_model(self, path: Path) -> Any:
        return load_baseline(path)


class Pixels(_WithoutEncoder):
    """Logistic regression and nearest neighbours on small copies of the images."""

    variants = PROBES

    def task(self, training: Training) -> Task[Any, Any]:
        recipe = cast(ClassifyRecipe, training.recipe)
        task = PixelTask(training.variant, recipe, training.encoder, training.splits, training.ranks)
        task.folds = training.folds
        return task

    def recipe_facts(self, recipe: Recipe, variant: str) -> str:
        return json.dumps({"pixels": variant, "version": PixelTask.version})

    def describe(self, arm: ArmConfig) -> str:
        return "logistic regression or nearest neighbours on the pixels of small copies, the better by validation; no network"


class ConvNet(_WithoutEncoder):
    """A small ResNet of timm, trained from random weights; detection and segmentation have it under a feature pyramid."""

    def compares(self, task: str) -> bool:
        return task in (CLASSIFY, "detect", "segment")

    def task(self, training: Training) -> Task[Any, Any]:
        recipe, (encoder, splits, ranks) = training.recipe, (training.encoder, training.splits, training.ranks)
        if isinstance(recipe, TransferConfig) and training.folder is not None:
            recipe = replace(recipe, out=str(training.folder))
        if isinstance(recipe, DetectConfig):
            return ConvDetectionTask(recipe, encoder, splits, ranks)
        if isinstance(recipe, SegmentConfig):
            return ConvSegmentationTask(recipe, encoder, splits, ranks)
        return ConvNetTask(cast(ClassifyRecipe, recipe), encoder, splits, ranks)

    def recipe_facts(self, recipe: Recipe, variant: str) -> str:
        return json.dumps({"convnet": ConvNetTask.version, **json.loads(recipe_facts(recipe))})

    def load_model(self, path: Path) -> Any:
        return load_conv_model(path) if is_model(path) else load_baseline(path)

    def describe(self, arm: ArmConfig) -> str:
        return "a small ResNet (timm) from random weights: sees only the labelled examples"


class Frozen(ArmKind):
    """Probes on the features of another kind's encoder, which stays as it is."""

    variants = PROBES

    def __init__(self, kind: ArmKind) -> None:
        self.kind, self.init = kind, kind.init
        self.trains_on_pool, self.upper_bound = kind.trains_on_pool, kind.upper_bound
        self.own_architecture = kind.own_architecture

    def check_keys(self, arm: ArmConfig) -> None:
        if not self.kind.pretrained:
            raise ConfigError("frozen", True, f"false, at start={arm.start}: its weights are random")
        for key in ("recipe", "steps"):
            if getattr(arm, key):
                raise ConfigError(key, getattr(arm, key), "nothing, with frozen: true, as no rate or step is chosen")
        self.kind.check_keys(arm)

    def check(self, suite: ArmSuite, name: str) -> None:
        self.kind.check(suite, name)

    def spec(self, suite: ArmSuite, name: str, shape: EncoderSpec, image_size: tuple[int, int]) -> BackboneSpec:
        return self.kind.spec(suite, name, shape, image_size)

    def fitted(
        self, file: EncoderFile[Backbone], spec: BackboneSpec, source: str, key: str, names: Sequence[str] = ()
    ) -> tuple[Backbone, list[str]]:
        return self.kind.fitted(file, spec, source, key, names)

    def compares(self, task: str) -> bool:
        return task == CLASSIFY

    def plan(self, context: ArmContext, name: str, seed: int) -> Run | None:
        return self.kind.plan(context, name, seed)

    def make_encoder(
        self, run: Run, context: ArmContext, folder: Path, ranks: Ranks, listener: ProgressListener | None
    ) -> dict[str, Any]:
        return self.kind.make_encoder(run, context, folder, ranks, listener)

    def cost(self, context: ArmContext, name: str) -> EncoderCost:
        return self.kind.cost(context, name)

    def saved(self, context: ArmContext, name: str) -> SavedWeights:
        return self.kind.saved(context, name)

    def measure(
        self, context: ArmContext, name: str, device: torch.device, measure_task: Callable[[Task[Any, Any]], Speed]
    ) -> Speed:
        return self.kind.measure(context, name, device, measure_task)

    def pretraining(self, suite: ArmSuite, name: str) -> Mapping[str, object]:
        return self.kind.pretraining(suite, name)

    def task(self, training: Training) -> Task[Any, Any]:
        method, neighbours = ("knn", int(training.variant[3:])) if training.variant != "linear" else ("linear", 1)
        folder = str(training.folder or cache_folder() / "features")
        config = resolve(
            ClassifyConfig,
            {
                **{
                    "data": "any",
                    "out": folder,
                    "init": self.init,
                    "encoder": "any",
                    "cache": str(training.shared or folder),
                },
                **{"method": method, "neighbours": neighbours, "solver": "lbfgs", "workers": 0},
                "features": training.encoder.usual_pooling,
                **dict.fromkeys(("mixup", "cutmix", "random_erasing", "drop_path"), 0.0),
            },
            defaults=recipe_defaults(f"{CLASSIFY}_{self.init}"),
        )
        task = ProbeTask(config, training.encoder, training.splits, training.ranks)
        task.manifest, task.folds = training.manifest, training.folds
        return task

    def recipe_facts(self, recipe: Recipe, variant: str) -> str:
        return json.dumps({"frozen": variant})

    def describe(self, arm: ArmConfig) -> str:
        probes = "logistic regression or nearest neighbours on its frozen features, the better by validation"
        return f"{self.kind.describe(arm)}; {probes}"


def frozen_copy(arm: ArmConfig) -> ArmConfig:
    """The arm with the same encoders, frozen."""
    return replace(arm, label=f"{arm.label}, frozen", frozen=True, recipe={}, steps={}, x=None)
