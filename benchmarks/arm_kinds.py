"""The kinds of arms of a suite: a class and a row in ``ARM_KINDS`` each.

A new kind is one more: it says what it plans (``plan``), does (``make_encoder``), costs (``cost``, ``saved``, ``measure``) and
is called in the report (``describe``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from ..core.config import resolve
from ..core.config_keys import nearest
from ..core.data.classification import LabeledImages
from ..core.data.labeled_dataset import Splits
from ..core.distributed import Ranks
from ..core.errors import ConfigError, MaeliftError
from ..core.models.backbone_cost import backbone_parameters
from ..core.models.cost import encoder_flops
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import Provenance, read_encoder, save_encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.models.stored_contract import ENCODER_FILE
from ..core.progress import ProgressListener
from ..core.public_names import public_name
from ..core.training.run_dir import FREE_KEYS
from ..core.yaml_files import to_dict
from ..pretrain.config import PretrainConfig
from ..pretrain.dry_run import forward_flops, loading_seconds, mae_parameters, training_seconds_an_image
from ..pretrain.train import pretrain
from ..transfer.classification.config import ClassifyRecipe
from ..transfer.classification.model import Classifier
from ..transfer.classification.task import ClassificationTask
from ..transfer.init_weights import fresh_encoder
from ..transfer.recipe import recipe_defaults
from ..transfer.task import Task
from ..transfer.tasks import CLASSIFY
from ..version import __version__
from .arm_kind import (
    MEASURED_EVALUATION,
    ArmConfig,
    ArmContext,
    ArmKind,
    ArmSuite,
    EncoderCost,
    Init,
    SavedWeights,
    Speed,
    part_of_pool,
    plain_spec,
    pool_words,
)
from .given_weights import AnyWeights, GivenWeights, given_encoder
from .run_training import fit_run
from .runs import Run, pretraining_facts, recipe_facts
from .simple_arms import ConvNet, Frozen, Pixels, frozen_copy
from .suite_file import key_prefix


class Mae(ArmKind):
    """Masked autoencoder pretraining on the pool, from random weights or from given ones."""

    init: Init = "encoder"
    code_version = 2
    trains_on_pool = True

    def check(self, suite: ArmSuite, name: str) -> None:
        with key_prefix(f"arms.{name}.pretrain."):
            own = suite.arms[name].pretrain
            given = _suite_keys(suite, name, 0, "").keys() - (
                {"channels"} if suite.spec.channels not in (1, 3) else set()
            )
            for key in sorted(given & own.keys()):
                raise ConfigError(key, own[key], "no value here, as the suite gives one to all arms")
            mae_config(suite, name, 0, "out")

    def plan(self, context: ArmContext, name: str, seed: int) -> Run:
        config = mae_config(context.config, name, seed, "")
        recipe = {key: value for key, value in to_dict(config).items() if key not in (*FREE_KEYS, "init")}
        recipe |= {} if config.background == "white" else {"background": config.background}
        recipe = pretraining_facts(recipe)
        text = json.dumps({**recipe, "weights": context.weights.get(name), **part_of_pool(context, name)})
        facts, action = context.facts(name, "pool"), f"pretraining, seed {seed}"
        return Run("mae", name, seed, 0, 0, config.peak_lr, text, facts, action=action, code=self.code_version)

    def make_encoder(
        self, run: Run, context: ArmContext, folder: Path, ranks: Ranks, listener: ProgressListener | None
    ) -> dict[str, Any]:
        source, preprocessing = context.config.arms[run.arm].weights, _preprocessing(context, run.arm)
        if source is not None:
            planned = json.loads(run.recipe)["weights"]
            preprocessing = given_encoder(self, context, run.arm, source, planned)[0].preprocessing
        result = pretrain(
            replace(mae_config(context.config, run.arm, run.seed, str(folder)), checkpoint_minutes=0.5),
            images=context.pool_of(run.arm),
            preprocessing=preprocessing,
            listener=listener,
        )
        seconds = result.seconds
        if seconds is None:  # it was done, by one process, before its result was written
            made = read_encoder(result.encoder).provenance
            seconds = 3600 * (made.cpu_hours + made.gpu_hours)
        return {"seconds": seconds, "held_out_loss": result.held_out_loss, "steps": result.steps}

    def cost(self, context: ArmContext, name: str) -> EncoderCost:
        config = mae_config(context.config, name, 0, "")
        flops = forward_flops(config, _plain(context, name))
        return EncoderCost(trained=config.epochs * context.pool_size(name), flops=flops)

    def saved(self, context: ArmContext, name: str) -> SavedWeights:
        config = mae_config(context.config, name, 0, "")
        parameters = mae_parameters(config, _plain(context, name))  # those of the decoder too
        return SavedWeights(parameters, config.checkpoints, config.ema_decay is not None)

    def measure(
        self, context: ArmContext, name: str, device: torch.device, measure_task: Callable[[Task[Any, Any]], Speed]
    ) -> Speed:
        spec = _plain(context, name)
        config = replace(mae_config(context.config, name, 0, ""), channels=spec.channels)
        loading = loading_seconds(config, context.pool_of(name), spec) or 0.0
        return Speed(training_seconds_an_image(config, spec, device) + loading, 0.0)

    def pretraining(self, suite: ArmSuite, name: str) -> Mapping[str, object]:
        config = to_dict(mae_config(suite, name, 0, "out"))
        return {key: value for key, value in config.items() if key not in (*FREE_KEYS, "seed")}

    def describe(self, arm: ArmConfig) -> str:
        start = "" if arm.weights is None else f", begun with {public_name(arm.weights)}"
        return f"pretrained on {pool_words(arm)} without {'its' if arm.pool is None else 'their'} labels{start}"


class SupervisedOnPool(ArmKind):
    """Classification of the pool's images with their labels: an upper bound. With weights it is ``GivenWeights``."""

    init: Init = "supervised"
    code_version = 2
    trains_on_pool = True
    upper_bound = True

    def for_arm(self, arm: ArmConfig) -> ArmKind:
        return self if arm.weights is None else LABELLED_WEIGHTS

    def check(self, suite: ArmSuite, name: str) -> None:
        if not suite.pool_has_labels:
            raise MaeliftError(
                f"arms.{name}: start=supervised needs labels of the pool, which data.unlabelled hasn't. Give weights, "
                "timm:NAME for one, or leave the arm out."
            )
        with key_prefix(f"arms.{name}.pretrain."):
            _supervised_recipe(suite, name).check_passes(1)

    def plan(self, context: ArmContext, name: str, seed: int) -> Run:
        recipe, (_, evaluations) = _supervised_recipe(context.config, name), _validation(context, name)
        part = part_of_pool(context, name)
        facts = context.facts(name, "pool", f"{CLASSIFY}.val", evaluations=evaluations, **part)
        return Run(
            *("supervised", name, seed, 0, recipe.total_steps(context.pool_size(name)), recipe.peak_lr),
            *(recipe_facts(recipe), facts),
            action=f"pretraining, seed {seed}",
            code=self.code_version,
        )

    def make_encoder(
        self, run: Run, context: ArmContext, folder: Path, ranks: Ranks, listener: ProgressListener | None
    ) -> dict[str, Any]:
        pool, (val, evaluations) = context.labelled_pool_of(run.arm), _validation(context, run.arm)
        encoder = fresh_encoder(_plain(context, run.arm), context.preprocessing, run.seed)
        recipe = _supervised_recipe(context.config, run.arm)
        task = ClassificationTask(recipe, encoder, Splits(pool, val, context.classify.test), ranks)
        found, _ = fit_run(run, task, evaluations, folder, listener)
        provenance = Provenance(f"supervised classification of {len(pool)} images", seed=run.seed)
        made = cast(Classifier, found.model).encoder
        save_encoder(made, folder / ENCODER_FILE, replace(provenance, tool_version=__version__))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        score = {"val": found.best} if len(context.classify.val) else {}
        return {"seconds": found.seconds, **score, "steps": found.steps}

    def cost(self, context: ArmContext, name: str) -> EncoderCost:
        recipe, (val, evaluations) = _supervised_recipe(context.config, name), _validation(context, name)
        return EncoderCost(
            trained=recipe.total_steps(context.pool_size(name)) * recipe.batch_size,
            evaluated=evaluations * len(val),
            flops=encoder_flops(_plain(context, name)),
        )

    def saved(self, context: ArmContext, name: str) -> SavedWeights:
        averaged = bool(_supervised_recipe(context.config, name).ema_decay)
        return SavedWeights(backbone_parameters(_plain(context, name)), 1, averaged)

    def measure(
        self, context: ArmContext, name: str, device: torch.device, measure_task: Callable[[Task[Any, Any]], Speed]
    ) -> Speed:
        val, _ = _validation(context, name)
        few = val.subset(range(min(len(val), MEASURED_EVALUATION)))
        splits = Splits(context.labelled_pool_of(name), few, context.classify.test)
        encoder = Encoder(_plain(context, name), preprocessing=context.preprocessing)
        recipe = _supervised_recipe(context.config, name)
        return measure_task(ClassificationTask(recipe, encoder, splits, Ranks(0, 1, device)))

    def pretraining(self, suite: ArmSuite, name: str) -> Mapping[str, object]:
        return to_dict(_supervised_recipe(suite, name))

    def describe(self, arm: ArmConfig) -> str:
        pool = pool_words(arm)
        return f"pretrained with the labels of {pool}, which are those of the task itself: an upper bound, not a rival"


class Scratch(ArmKind):
    """No pretraining: every training begins with random weights of its own seed."""

    init: Init = "scratch"
    may_train_longer = True
    pretrained = False

    def check_keys(self, arm: ArmConfig) -> None:
        if arm.weights is not None:
            raise ConfigError("weights", arm.weights, "none, at start=scratch")
        super().check_keys(arm)

    def plan(self, context: ArmContext, name: str, seed: int) -> None:
        return None

    def describe(self, arm: ArmConfig) -> str:
        longer = f", trained longer by the compute that pretraining {arm.compute_of} took" if arm.compute_of else ""
        return f"no pretraining: sees only the labelled examples{longer}"


LABELLED_WEIGHTS = GivenWeights("supervised", "with labels")

ARM_KINDS: dict[str, ArmKind] = {
    "mae": Mae(),
    "encoder": GivenWeights("encoder", "without labels"),
    "supervised": SupervisedOnPool(),
    "weights": AnyWeights("encoder"),
    "scratch": Scratch(),
    "cnn": ConvNet(),
    "pixels": Pixels(),
}
"""The kinds of arms, by what a suite calls them: their ``start``."""


def kind_of(arm: ArmConfig) -> ArmKind:
    """The kind of an arm; raises ConfigError for a ``start`` that there isn't."""
    if arm.start not in ARM_KINDS:
        close = nearest(arm.start, ARM_KINDS)
        advice = f"Did you mean {close}?" if close else ""
        raise ConfigError("start", arm.start, f"one of {', '.join(ARM_KINDS)}", advice)
    kind = ARM_KINDS[arm.start].for_arm(arm)
    return Frozen(kind) if arm.frozen else kind


VIT_KEYS = ("layer_decay", "drop_path")
"""Keys of a recipe that say nothing of a ResNet."""


def with_simple_arms(arms: Mapping[str, ArmConfig], *, classifies: bool) -> dict[str, ArmConfig]:
    """A suite's arms with those that any pretraining must beat, as far as it has none of the kind itself.

    The small CNN is trained as the arm from scratch is. A suite that ``classifies`` gets pixels too, and a frozen arm for each
    that was pretrained without the task's labels.
    """
    found, starts = dict(arms), {arm.start for arm in arms.values()}
    frozen = [(arm.start, arm.weights) for arm in arms.values() if arm.frozen]
    for name, arm in arms.items():
        kind = kind_of(arm)
        if classifies and kind.pretrained and not kind.upper_bound and (arm.start, arm.weights) not in frozen:
            found.setdefault(f"{name}_frozen", frozen_copy(arm))
    if "cnn" not in starts:
        scratch = next((arm for arm in arms.values() if arm.start == "scratch"), None)
        recipe = {} if scratch is None else {key: value for key, value in scratch.recipe.items() if key not in VIT_KEYS}
        steps = {} if scratch is None else scratch.steps
        found.setdefault("cnn", ArmConfig("cnn", "a small CNN from scratch", recipe=recipe, steps=steps))
    if classifies and "pixels" not in starts:
        found.setdefault("pixels", ArmConfig("pixels", "pixels without a network"))
    return found


def mae_config(suite: ArmSuite, name: str, seed: int, out: str) -> PretrainConfig:
    """How the encoder of a MAE arm is pretrained."""
    return PretrainConfig.resolve({**_suite_keys(suite, name, seed, out), **suite.arms[name].pretrain})


def _suite_keys(suite: ArmSuite, name: str, seed: int, out: str) -> dict[str, Any]:
    """The keys of an arm's pretraining that the suite gives."""
    return {
        "data": suite.images_path,
        "out": out,
        "init": suite.arms[name].weights,
        "model": suite.arms[name].model or suite.model,
        "image_size": list(suite.spec.image_size),
        "patch_size": suite.spec.patch_size,
        **suite.reading,
        "statistics": "auto",
        "device": suite.device,
        "seed": seed,
        "workers": 0,
    }


def _supervised_recipe(suite: ArmSuite, name: str) -> ClassifyRecipe:
    """How the encoder of a supervised arm is trained on the pool's labels."""
    return resolve(ClassifyRecipe, suite.arms[name].pretrain, defaults=recipe_defaults(f"{CLASSIFY}_scratch"))


def _preprocessing(context: ArmContext, name: str) -> Preprocessing | None:
    """What a MAE arm's images are normalised by: as every arm's; None, as pretraining finds, where it takes other channels."""
    return context.preprocessing if context.config.arms[name].pretrain.get("channels") is None else None


def _validation(context: ArmContext, name: str) -> tuple[LabeledImages, int]:
    """What training on the pool's labels is evaluated on, and how often.

    A suite without validation images has it evaluated once, at its end, on a few of its own: nothing is chosen by that.
    """
    val = context.classify.val
    if len(val):
        return val, context.config.evaluations
    pool = context.labelled_pool_of(name)
    return pool.subset(range(min(len(pool), MEASURED_EVALUATION))), 1


def _plain(context: ArmContext, name: str) -> EncoderSpec:
    """The shape of an arm that is a plain ViT."""
    return plain_spec(context.config, name, context.config.spec)
