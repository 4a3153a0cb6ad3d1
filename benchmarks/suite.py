"""A suite: which data, tasks, arms, label counts and seeds are compared, and how hard every arm is tuned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from ..core.config import resolve
from ..core.config_keys import nearest
from ..core.data.classification import ClassFolderLayout
from ..core.errors import ConfigError, MaeliftError
from ..core.models.encoder_spec import EncoderSpec, ModelName, check_divisible, preset_spec
from ..core.signals import Interrupted
from ..core.slurm import Slurm
from ..pretrain.config import PretrainConfig
from ..transfer.classification.task import ClassifyRecipe
from ..transfer.detection.task import DetectConfig
from ..transfer.recipe import Recipe, recipe_defaults
from ..transfer.segmentation.task import SegmentConfig
from ..transfer.task import TransferConfig
from .published import read_published
from .suite_file import named_suite, read_suite
from .task_design import CLASSIFY, TaskConfig, TaskDesign, Tuning, check_distinct

ArmKind = Literal["mae", "encoder", "supervised", "scratch"]

INITS: dict[ArmKind, Literal["encoder", "supervised", "scratch"]] = {
    "mae": "encoder",
    "encoder": "encoder",
    "supervised": "supervised",
    "scratch": "scratch",
}
"""Whose recipe, in transfer/recipes/, an arm is fine-tuned with, by its start."""


@dataclass(frozen=True)
class SuiteData:
    """What the images of a suite are used for; the parts share no image, by content."""

    path: str | None = None
    """images with a class each: class folders, CSV or idx files; null: classification isn't compared"""
    layout: ClassFolderLayout = "auto"
    """class_folders: every folder of path is a class, whatever its name; auto: folders that may be something else are refused"""
    label_column: str | tuple[str, ...] | None = None
    """path's, a CSV's, column of labels, or [a,b,c]: its columns of 0 and 1, a class each; null: as the header says"""
    unlabelled: str | tuple[str, ...] | None = None
    """images to pretrain on, without labels: what maelift pretrain takes as data; null: a part of path's"""
    pool: int | float | None = None
    """images to pretrain on, a count or a share: of path's training split (null: 0.8), or of unlabelled (null: all)"""
    val: int | float = 0.1
    """validation images where the data has no such split, a count or a share"""
    test: int | float = 0.1
    """test images where the data has no such split, a count or a share"""
    seed: int = 0
    """seeds the split"""
    group: str | None = None
    """what stays in one part, a patient, video or flight: a column of the CSV, or a regular expression over the images' paths;
    for other tasks it is a key of their recipe"""
    near: Literal["auto", "full", "off"] = "auto"
    """leave near-duplicates of validation or test images out of the pool and of training; auto: cropped ones up to 20 million
    pairs, others up to 2 billion"""
    broken: float = 0.05
    """largest share of broken images that is put up with"""

    def __post_init__(self) -> None:
        if self.path is None and self.unlabelled is None:
            raise ConfigError("path", None, "labelled images, or unlabelled ones to pretrain on")


@dataclass(frozen=True)
class ArmConfig:
    """One way to come by an encoder, and how it is fine-tuned."""

    start: ArmKind
    """mae: pretrained on the pool, without labels; supervised: with the pool's labels; encoder: as weights are; scratch"""
    label: str
    """the arm's name in the report"""
    weights: str | None = None
    """encoder file, public weights or timm:NAME. encoder, supervised: taken as they are; mae: gone on from, on the pool"""
    model: ModelName | None = None
    """shape of this arm's encoder; null: the suite's"""
    pool: int | float | None = None
    """how many of the pool's images it is pretrained on, a count or a share; the fewer are among the more; null: all"""
    x: float | None = None
    """the arm's place on the suite's axis"""
    compute_of: str | None = None
    """start=scratch: trained for longer, by the steps that this arm's pretraining took in floating-point operations"""
    pretrain: dict[str, Any] = field(default_factory=dict)
    """keys of maelift pretrain (start: mae), or of the scratch recipe (start: supervised)"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """keys that change the classification recipe of the start (transfer/recipes/)"""
    steps: dict[str, int] = field(default_factory=dict)
    """steps of classification for each label count; they are doubled for as long as that helps"""

    def __post_init__(self) -> None:
        if self.start == "encoder" and self.weights is None:
            raise ConfigError("weights", None, "weights to begin with, at start=encoder")
        if self.start == "scratch" and self.weights is not None:
            raise ConfigError("weights", self.weights, "none, at start=scratch")
        if self.compute_of is not None and self.start != "scratch":
            raise ConfigError("compute_of", self.compute_of, "null, but at start=scratch")
        if self.pool is not None and not self.trains_encoder:
            raise ConfigError("pool", self.pool, "null, but for an arm that is pretrained on the pool")
        if self.pool is not None and self.pool <= 0:
            raise ConfigError("pool", self.pool, "a count or share above 0")

    @property
    def trains_encoder(self) -> bool:
        """Whether the suite pretrains it: on the pool, with or without labels."""
        return self.start == "mae" or (self.start == "supervised" and self.weights is None)


@dataclass(frozen=True)
class Budget:
    """When to stop starting runs; the report is then a partial one, and the same command with more goes on."""

    hours: float | None = None
    """computing time of all runs together, those of earlier commands too and side by side counted each; null: no limit"""
    money: float | None = None
    """what that time may cost; null: no limit"""
    price: float | None = None
    """of an hour of computing, in the currency of money"""

    def __post_init__(self) -> None:
        for key in ("hours", "money", "price"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ConfigError(key, value, "0 or more, or null")
        if self.money is not None and not self.price:
            raise ConfigError("price", self.price, "a price above 0 where money is limited")

    @property
    def seconds(self) -> float:
        """The computing time that there is; infinite without a limit."""
        limits = [math.inf if self.hours is None else self.hours]
        if self.money is not None and self.price:
            limits.append(self.money / self.price)
        return 3600 * min(limits)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Compare pretrained and fresh encoders on your own labels, with error bars."""

    suite: str
    """name of a shipped suite, or a YAML file"""
    out: str
    """folder for the report and for every finished run"""
    title: str
    """the question that the report answers"""
    data: SuiteData
    labels: tuple[int, ...] = ()
    """numbers of labelled training images of data.path, for classification"""
    seeds: tuple[int, ...] | dict[str, tuple[int, ...]] = ()
    """for all label counts, or for each; a seed is one draw of labelled images, one head and one order, for all arms"""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """more tasks by name: task (detect, segment), data, labels, seeds, recipe, steps ..."""
    pretrain_seeds: tuple[int, ...] = (0,)
    """seeds of pretraining; fine-tuning seed i uses number i modulo their count"""
    model: ModelName = "vit_small"
    """the encoder's shape, for all arms without one of their own"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the model's usual one"""
    patch_size: int | None = None
    """pixels a side of a patch; null: the model's usual one"""
    channels: int = 3
    """1 (gray) or 3 (colour)"""
    arms: dict[str, dict[str, Any]]
    """arms by name: start, label, weights, pretrain, recipe, steps"""
    axis: str | None = None
    """what the arms differ in, where that is a number, each arm's x: the report then has a chart over it"""
    published: dict[str, str] = field(default_factory=dict)
    """for tasks that follow a paper's protocol to the letter, its name in benchmarks/published.yaml"""
    baseline: str = "scratch"
    """the arm that the others are compared with"""
    tuning: Tuning = field(default_factory=Tuning)
    budget: Budget = field(default_factory=Budget)
    evaluations: int = 10
    """times that validation accuracy is measured in a run, whatever its steps; the best weights are kept"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    executor: Literal["local", "slurm", "ray"] = "local"
    """who does the runs: processes of this machine, jobs of SLURM, tasks of Ray (RAY_ADDRESS names a cluster)"""
    slurm: Slurm = field(default_factory=lambda: Slurm(minutes=240, cpus_per_process=1))
    """what each job is given, with executor=slurm"""
    workers: int | None = None
    """runs at the same time; null: one a core, on a GPU one; with slurm and ray 8"""
    threads: int = 1
    """CPU threads of a run"""
    stall_minutes: float = 60.0
    """a run that gives no sign of life for so long is ended, and done once more by itself; training gives one each second"""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError("channels", self.channels, "1 or 3")
        _ = self.spec  # checks model, image_size and patch_size
        check_distinct("pretrain_seeds", self.pretrain_seeds)
        if not self.arms:
            raise ConfigError("arms", self.arms, "at least one arm, with its start and label")
        for name in self.arms:
            self._check_keys(name)
        self._check_tasks()
        for name in self.arms:
            self._check_recipes(name)
        if self.baseline not in self.arms:
            close = nearest(self.baseline, self.arms)
            advice = f"Did you mean {close}?" if close else ""
            raise ConfigError("baseline", self.baseline, f"one of the arms {', '.join(self.arms)}", advice)
        if self.executor == "slurm" and self.slurm.processes > 1:
            raise ConfigError("slurm.processes_per_node", self.slurm.processes, "one process a run")
        if self.stall_minutes <= 0:
            raise ConfigError("stall_minutes", self.stall_minutes, "a number above 0")
        for key in ("evaluations", "threads"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "1 or more")
        if self.workers is not None and self.workers < 1:
            raise ConfigError("workers", self.workers, "1 or more")

    @classmethod
    def resolve(cls, overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> BenchConfig:
        """The suite named in the overrides or the file, with what they say on top."""
        suite = named_suite(overrides, file)
        return resolve(cls, overrides, file, read_suite(suite))

    @property
    def spec(self) -> EncoderSpec:
        """The shape of the encoder of every arm without a model of its own."""
        return preset_spec(self.model, image_size=self.image_size, patch_size=self.patch_size, channels=self.channels)

    def spec_of(self, arm: str, task: str = CLASSIFY) -> EncoderSpec:
        """The shape of an arm's encoder on a task: its own model, with the task's image size and the suite's patches."""
        spec, model = self.spec_at(task), self.arm(arm).model
        if model is None:
            return spec
        return preset_spec(model, image_size=spec.image_size, patch_size=spec.patch_size, channels=spec.channels)

    @cached_property
    def designs(self) -> dict[str, TaskDesign]:
        """What is compared, by task: classification of the suite's own images first, where they have labels."""
        designs = {}
        if self.data.path is not None:
            designs[CLASSIFY] = TaskDesign(CLASSIFY, "classify", self.labels, self.seeds, self.tuning, self.evaluations)
        for name, task in self._tasks.items():
            tuning = replace(
                self.tuning,
                rates=self.tuning.rates if task.rates is None else task.rates,
                max_doublings=self.tuning.max_doublings if task.max_doublings is None else task.max_doublings,
            )
            often = self.evaluations if task.evaluations is None else task.evaluations
            designs[name] = TaskDesign(name, task.task, task.labels, task.seeds, tuning, often, task.short)
        return designs

    @cached_property
    def _tasks(self) -> dict[str, TaskConfig]:
        return {name: resolve(TaskConfig, keys) for name, keys in self.tasks.items()}

    @cached_property
    def _arms(self) -> dict[str, ArmConfig]:
        return {name: resolve(ArmConfig, keys) for name, keys in self.arms.items()}

    @cached_property
    def _recipes(self) -> dict[tuple[str, str], Recipe]:
        return {(task, arm): self._recipe(task, arm) for task in self.designs for arm in self._arms}

    def _recipe(self, task: str, arm: str) -> Recipe:
        if task == CLASSIFY:
            return resolve(ClassifyRecipe, self.arm(arm).recipe, defaults=self._classify_defaults(arm))
        return self._transfer(task, arm, self.task(task).arms.get(arm, {}))

    def _classify_defaults(self, arm: str) -> dict[str, Any]:
        return recipe_defaults(f"{CLASSIFY}_{INITS[self.arm(arm).start]}")

    def _transfer(self, task: str, arm: str, changes: Mapping[str, Any]) -> TransferConfig:
        """The keys of maelift transfer that an arm is trained with on a task."""
        own = self.task(task)
        return CONFIGS[own.task].resolve({**own.recipe, **changes, **self._of_all_transfers(task, arm)})

    def _of_all_transfers(self, task: str, arm: str) -> dict[str, Any]:
        """The keys of a task that the suite gives to all arms."""
        own = self.task(task)
        return {
            "data": own.data,
            "out": "out",
            "init": INITS[self.arm(arm).start],
            "encoder": "any",
            "val": own.val,
            "test": own.test,
            "split_seed": own.seed,
            "image_size": list(self.spec_at(task).image_size),
            "device": self.device,
        }

    def task(self, name: str) -> TaskConfig:
        """A task by name; classification of the suite's own images is none of them."""
        return self._tasks[name]

    def arm(self, name: str) -> ArmConfig:
        """An arm by name."""
        return self._arms[name]

    def recipe(self, task: str, arm: str) -> Recipe:
        """How an arm is fine-tuned on a task: the recipe of its start with the suite's changes."""
        return self._recipes[task, arm]

    def transfer(self, task: str) -> TransferConfig:
        """How the images of a task with data of its own are read: the same for all arms."""
        return cast(TransferConfig, self.recipe(task, next(iter(self.arms))))

    def spec_at(self, task: str) -> EncoderSpec:
        """The suite's shape of encoders on a task, at the task's image size."""
        size = None if task == CLASSIFY else self.task(task).image_size
        if size is None:
            return self.spec
        height, width = (size, size) if isinstance(size, int) else size
        check_divisible((height, width), self.spec.patch_size)
        return replace(self.spec, image_size=(height, width))

    def steps(self, task: str, arm: str, labels: int) -> int:
        """The steps that an arm's tuning on a task begins with."""
        if task == CLASSIFY:
            given = self.arm(arm).steps.get(str(labels))
        else:
            steps = self.task(task).steps
            given = steps.get(str(labels)) if isinstance(steps, dict) else steps
        return given or self.recipe(task, arm).total_steps(labels)

    def supervised_recipe(self, name: str) -> ClassifyRecipe:
        """How the encoder of a supervised arm is trained on the pool's labels."""
        return resolve(ClassifyRecipe, self.arm(name).pretrain, defaults=recipe_defaults(f"{CLASSIFY}_scratch"))

    def mae_config(self, name: str, seed: int, out: str) -> PretrainConfig:
        """How the encoder of a MAE arm is pretrained."""
        return PretrainConfig.resolve({**self._given(name, seed, out), **self.arm(name).pretrain})

    def _given(self, name: str, seed: int, out: str) -> dict[str, Any]:
        """The keys of an arm's pretraining that the suite gives."""
        return {
            "data": self.data.path or "any",
            "out": out,
            "init": self.arm(name).weights,
            "model": self.arm(name).model or self.model,
            "image_size": list(self.spec.image_size),
            "patch_size": self.spec.patch_size,
            "channels": self.channels,
            "statistics": "auto",
            "device": self.device,
            "seed": seed,
            "workers": 0,
        }

    def _check_keys(self, name: str) -> None:
        """Raise MaeliftError, with the full key, where an arm's own keys are mistaken."""
        keys = self.arms[name]
        others = [other for other in self.arms if other != name]
        if "start" not in keys and (close := nearest(name, others)):
            raise MaeliftError(
                f"arms.{name}: no such arm. Did you mean arms.{close}? (A new arm needs start and label.)"
            )
        with key_prefix(f"arms.{name}."):
            for labels, steps in resolve(ArmConfig, keys).steps.items():
                if not labels.isdigit() or steps < 1:
                    raise ConfigError(f"steps.{labels}", steps, "a count of labels with 1 or more steps")

    def _check_recipes(self, name: str) -> None:
        """Raise MaeliftError, with the full key, where an arm could not be pretrained or fine-tuned."""
        arm = self.arm(name)
        if arm.compute_of is not None and (arm.compute_of not in self.arms or self.arm(arm.compute_of).start != "mae"):
            raise ConfigError(f"arms.{name}.compute_of", arm.compute_of, "the name of an arm with start=mae")
        if CLASSIFY in self.designs:
            with key_prefix(f"arms.{name}.recipe."):
                _refuse_rates(arm.recipe)
                resolve(ClassifyRecipe, arm.recipe, defaults=self._classify_defaults(name)).check_passes(1)
        for task in self._tasks:
            with key_prefix(f"tasks.{task}.recipe."):
                self._transfer(task, name, {})
            with key_prefix(f"tasks.{task}.arms.{name}."):
                self._transfer(task, name, self.task(task).arms.get(name, {})).check_passes(1)
        with key_prefix(f"arms.{name}.pretrain."):
            if arm.start == "mae":
                for key in sorted(self._given(name, 0, "").keys() & arm.pretrain.keys()):
                    raise ConfigError(key, arm.pretrain[key], "no value here, as the suite gives one to all arms")
                self.mae_config(name, 0, "out")
            elif arm.trains_encoder:
                if self.data.path is None or self.data.unlabelled is not None:
                    raise MaeliftError(
                        f"arms.{name}: start=supervised needs labels of the pool, which data.unlabelled hasn't. Give weights, "
                        "timm:NAME for one, or leave the arm out."
                    )
                self.supervised_recipe(name).check_passes(1)
            elif arm.pretrain:
                key, value = next(iter(arm.pretrain.items()))
                what = "start=scratch" if arm.start == "scratch" else "weights that are taken as they are"
                raise ConfigError(key, value, f"nothing, at {what}")

    def _check_tasks(self) -> None:
        """Raise MaeliftError, with the full key, where a task can't be compared."""
        for name, keys in self.tasks.items():
            if name == CLASSIFY or not name.isidentifier():
                raise ConfigError("tasks", name, f"names of letters, digits and _, other than {CLASSIFY}")
            with key_prefix(f"tasks.{name}."):
                task = resolve(TaskConfig, keys)
                for arm in task.arms:
                    if arm not in self.arms:
                        raise ConfigError(f"arms.{arm}", "", f"one of the arms {', '.join(self.arms)}")
                for given in (task.recipe, *task.arms.values()):
                    _refuse_rates(given, short=task.short)
                    for key in ("data", "out", "init", "encoder", "seed", "labels", "steps", "epochs", *GIVEN):
                        if key in given:
                            raise ConfigError(f"recipe.{key}", given[key], "no value here, as the suite gives it")
                for steps in task.steps.values() if isinstance(task.steps, dict) else (task.steps,):
                    if steps is not None and steps < 1:
                        raise ConfigError("steps", task.steps, "1 or more")
        for name, design in self.designs.items():
            with key_prefix("" if name == CLASSIFY else f"tasks.{name}."):
                design.check()
                _ = self.spec_at(name)  # checks image_size
        if not self.designs:
            raise ConfigError("labels", [], "label counts and data.path for classification, or tasks")
        for name, protocol in self.published.items():
            if name not in self.designs:
                raise ConfigError(f"published.{name}", protocol, f"one of the tasks {', '.join(self.designs)}")
            if protocol not in read_published():
                raise ConfigError(f"published.{name}", protocol, f"one of {', '.join(read_published())}")
        if self.data.path is None and self.labels:
            raise ConfigError("labels", list(self.labels), "none without data.path")


GIVEN = (
    "val",
    "test",
    "split_seed",
    "image_size",
    "device",
    "model",
    "patch_size",
    "evaluate",
    "evaluations",
    "patience",
)
"""Keys of maelift transfer that no recipe of a suite may have: the suite says them, or they would be unequal."""

CONFIGS: dict[str, type[TransferConfig]] = {"detect": DetectConfig, "segment": SegmentConfig}


def _refuse_rates(recipe: Mapping[str, Any], short: bool = False) -> None:
    for key in ("lr", "base_lr") if not short else ():
        if recipe.get(key) is not None:
            raise ConfigError(key, recipe[key], "no rate, as every arm's is chosen from tuning.rates")


@contextmanager
def key_prefix(prefix: str) -> Iterator[None]:
    """Let errors within name their key in full."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(prefix + error.key, error.value, error.expected, error.advice) from error
    except Interrupted:  # a signal that came within is no mistake of the key's
        raise
    except MaeliftError as error:
        raise MaeliftError(f"{prefix}{error}") from error
