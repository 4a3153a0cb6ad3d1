"""A suite: which data, tasks, arms, label counts and seeds are compared, and how hard every arm is tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..core.config import MissingKeyError, resolve
from ..core.config_keys import nearest, schema_defaults
from ..core.errors import ConfigError, MaeliftError
from ..core.models.backbone import BackboneSpec
from ..core.models.encoder_spec import EncoderSpec, ModelName, check_divisible, preset_spec
from ..core.models.timm_spec import TimmSpec
from ..core.slurm import SlurmConfig
from ..core.yaml_files import to_dict
from ..transfer import tasks
from ..transfer.classification.config import ClassifyRecipe
from ..transfer.config import TransferConfig
from ..transfer.families import family_defaults
from ..transfer.recipe import Recipe, recipe_defaults
from ..transfer.tasks import CLASSIFY
from .arm_kind import ArmConfig, ArmKind
from .arm_kinds import kind_of, with_simple_arms
from .public_data import SuiteSource, source_of
from .published import read_published
from .results import AUTO
from .suite_data import SuiteData
from .suite_file import key_prefix, listed_arms, named_suite, over, read_suite, without_arms
from .suite_reading import SuiteReading
from .task_design import TaskConfig, TaskDesign, Tuning, check_distinct


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
class BenchConfig(SuiteReading):
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
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """more tasks by name: task (detect, segment), data, labels, seeds, recipe, steps ..."""
    pretrain_seeds: tuple[int, ...] = (0,)
    """seeds of pretraining; fine-tuning seed i uses number i modulo their count"""
    effect: float | None = None
    """the difference worth resolving, in points: the report says how many seeds or encoders resolve it"""
    looks: tuple[int, ...] = ()
    """numbers of seeds (of encoders, with several pretrain_seeds) at which the report may be read and more be added, fixed before
    the first run, the last for the most; verdicts are corrected for them. Empty: the seeds are fixed, and read once"""
    model: ModelName = "vit_small"
    """the encoder's shape, for all arms without one of their own"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the model's usual one"""
    patch_size: int | None = None
    """pixels a side of a patch; null: the model's usual one"""
    arms: dict[str, ArmConfig]
    """arms by name: start, label, weights, pretrain, recipe, steps"""
    steps: dict[str, int] = field(default_factory=dict)
    """steps of classification that every arm's tuning begins with, for each label count; an arm's own steps go before"""
    axis: str | None = None
    """what the arms differ in, where that is a number, each arm's x: the report then has a chart over it"""
    published: dict[str, str] = field(default_factory=dict)
    """for tasks that follow a paper's protocol to the letter, its name in benchmarks/published.yaml"""
    baseline: str = "auto"
    """the arm that the others are compared with; auto: at each label count the arm without pretraining that validates best"""
    simple_arms: bool = True
    """with baseline: auto, add what any pretraining must beat, where no arm does it: a small CNN from scratch, and for
    classification pixels, and probes on the frozen encoder of each arm that was pretrained without labels of the task"""
    tuning: Tuning = field(default_factory=Tuning)
    budget: Budget = field(default_factory=Budget)
    evaluations: int = 10
    """times that validation accuracy is measured in a run, whatever its steps; the best weights are used"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    executor: Literal["local", "slurm", "ray"] = "local"
    """who does the runs: processes of this machine, jobs of SLURM, tasks of Ray (RAY_ADDRESS names a cluster)"""
    slurm: SlurmConfig = field(default_factory=lambda: SlurmConfig(minutes=240, cpus_per_process=1))
    """what each job is given, with executor=slurm"""
    workers: int | None = None
    """runs at the same time; null: one a core, on a GPU one; with slurm and ray 8"""
    threads: int = 1
    """CPU threads of a run"""
    stall_minutes: float = 60.0
    """a run that reports no progress for so long is ended, and done once more by itself; training reports each second"""

    def __post_init__(self) -> None:
        self.check_reading()
        self.check_shown()
        _ = self.spec  # checks model, image_size and patch_size
        check_distinct("pretrain_seeds", self.pretrain_seeds)
        if self.effect is not None and not 0 < self.effect < 100:
            raise ConfigError("effect", self.effect, "points above 0 and below 100")
        if self.looks and (self.looks[0] < 2 or list(self.looks) != sorted(set(self.looks))):
            raise ConfigError("looks", list(self.looks), "rising numbers of seeds or encoders, from 2 up")
        if not self.arms:
            raise ConfigError("arms", self.arms, "at least one arm, with its start and label")
        for name, arm in self.arms.items():
            with key_prefix(f"arms.{name}."):
                kind_of(arm).check_keys(arm)
        self._check_tasks()
        for name in self.arms:
            self._check_recipes(name)
        if self.baseline != AUTO and self.baseline not in self.arms:
            close = nearest(self.baseline, self.arms)
            advice = f"Did you mean {close}?" if close else ""
            raise ConfigError("baseline", self.baseline, f"auto, or one of the arms {', '.join(self.arms)}", advice)
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
        suite = read_suite(named_suite(overrides, file))
        if (arms := listed_arms(overrides)) is not None:
            suite, overrides = over(suite, {"arms": arms}), without_arms(overrides)
        try:
            config = resolve(cls, overrides, file, suite)
            if config.baseline != AUTO or not config.simple_arms:
                return config
            return replace(config, arms=with_simple_arms(config.arms, classifies=CLASSIFY in config.designs))
        except MissingKeyError as error:
            group, _, name = error.key.removesuffix(".start").partition(".")
            others = [other for other in suite.get("arms") or {} if other != name]
            if group == "arms" and error.key.endswith(".start") and (close := nearest(name, others)):
                raise MaeliftError(
                    f"arms.{name}: no such arm. Did you mean arms.{close}? (A new arm needs start and label.)"
                ) from error
            raise

    @property
    def spec(self) -> EncoderSpec:
        """The shape of the encoder of every arm without a model of its own."""
        shape = {"image_size": self.image_size, "patch_size": self.patch_size, "channels": self.channel_count or 3}
        return preset_spec(self.model, **shape)  # type: ignore[arg-type]

    def spec_of(self, arm: str, task: str = CLASSIFY) -> BackboneSpec:
        """The shape of an arm's encoder on a task: its own model, with the task's image size and the suite's patches."""
        shape, size = self.spec_at(task), self.arms[arm].image_size if task == CLASSIFY else None
        own = shape.image_size if size is None else (size, size) if isinstance(size, int) else size
        return self.arm_kind(arm).spec(self, arm, shape, own)

    @cached_property
    def designs(self) -> dict[str, TaskDesign]:
        """What is compared, by task: classification of the suite's own images first, where they have labels."""
        designs = {}
        if self.data.path is not None:
            cross = self.data.cross  # a training is then evaluated once, so that no step is chosen by looking
            own = CLASSIFY, CLASSIFY, self.labels, self.seeds, self.tuning, 1 if cross else self.evaluations
            designs[CLASSIFY] = TaskDesign(*own, cross=cross)
        for name, task in self.tasks.items():
            tuning = replace(
                self.tuning,
                rates=self.tuning.rates if task.rates is None else task.rates,
                max_doublings=self.tuning.max_doublings if task.max_doublings is None else task.max_doublings,
            )
            often = self.evaluations if task.evaluations is None else task.evaluations
            designs[name] = TaskDesign(name, task.task, task.labels, task.seeds, tuning, often, task.short)
        return designs

    @property
    def images_path(self) -> str:
        """Where the suite's own images are, as pretraining's configuration names it."""
        return self.data.path or "any"

    @property
    def pool_has_labels(self) -> bool:
        """Whether the images to pretrain on have labels."""
        return self.data.path is not None and self.data.unlabelled is None

    def public_sources(self) -> list[SuiteSource]:
        """The public data sets that the images of the tasks are of, each once."""
        own = [source_of(self.data.path, self.data.public, "data.public")] if self.data.path is not None else []
        own += [source_of(task.data, task.public, f"tasks.{name}.public") for name, task in self.tasks.items()]
        return list({source.name: source for source in own}.values())

    def given(self) -> dict[str, Any]:
        """The settings as a suite file has them: its arms and tasks without the defaults."""
        content = to_dict(self)
        for key, schema in (("arms", ArmConfig), ("tasks", TaskConfig)):
            defaults = schema_defaults(schema)
            content[key] = {
                name: {key: value for key, value in own.items() if key not in defaults or value != defaults[key]}
                for name, own in content[key].items()
            }
        return content

    def arms_on(self, task: str) -> list[str]:
        """The arms that are compared on a task."""
        kind = self.designs[task].kind
        return [name for name in self.arms if self.arm_kind(name).compares(kind)]

    def arm_kind(self, arm: str) -> ArmKind:
        """How an arm gets its encoder."""
        return kind_of(self.arms[arm])

    @cached_property
    def _recipes(self) -> dict[tuple[str, str], Recipe]:
        return {(task, arm): self._recipe(task, arm) for task in self.designs for arm in self.arms}

    def _recipe(self, task: str, arm: str) -> Recipe:
        if task == CLASSIFY:
            return resolve(ClassifyRecipe, self.arms[arm].recipe, defaults=self._classify_defaults(arm))
        return self._transfer(task, arm, self.tasks[task].arms.get(arm, {}))

    def _classify_defaults(self, arm: str) -> dict[str, Any]:
        """The recipe of an arm's start; that of weights of any architecture is the one for few labels, by its family."""
        kind = self.arm_kind(arm)
        if not kind.own_architecture:
            return recipe_defaults(f"{CLASSIFY}_{kind.init}")
        name, spec = f"{CLASSIFY}_{kind.init}_small", self.spec_of(arm)
        return {**recipe_defaults(name), **(family_defaults(spec, name) if isinstance(spec, TimmSpec) else {})}

    def _transfer(self, task: str, arm: str, changes: Mapping[str, Any]) -> TransferConfig:
        """The keys of maelift transfer that an arm is trained with on a task."""
        own = self.tasks[task]
        return (
            tasks.entry(own.task).config_type().resolve({**own.recipe, **changes, **self._of_all_transfers(task, arm)})
        )

    def _of_all_transfers(self, task: str, arm: str) -> dict[str, Any]:
        """The keys of a task that the suite gives to all arms."""
        own = self.tasks[task]
        return {
            "data": own.data,
            "out": "out",
            "init": self.arm_kind(arm).init,
            "encoder": self.arms[arm].weights if self.arm_kind(arm).own_architecture else "any",
            "val": own.val,
            "test": own.test,
            "split_seed": own.seed,
            "image_size": list(self.spec_at(task).image_size),
            "device": self.device,
        }

    def recipe(self, task: str, arm: str) -> Recipe:
        """How an arm is fine-tuned on a task: the recipe of its start with the suite's changes."""
        return self._recipes[task, arm]

    def transfer(self, task: str) -> TransferConfig:
        """How the images of a task with data of its own are read: the same for all arms."""
        recipe = self.recipe(task, next(iter(self.arms)))
        if not isinstance(recipe, TransferConfig):
            raise TypeError(f"{task} has no data of its own")
        return recipe

    def spec_at(self, task: str) -> EncoderSpec:
        """The suite's shape of encoders on a task, at the task's image size."""
        size = None if task == CLASSIFY else self.tasks[task].image_size
        if size is None:
            return self.spec
        height, width = (size, size) if isinstance(size, int) else size
        check_divisible((height, width), self.spec.patch_size)
        return replace(self.spec, image_size=(height, width))

    def initial_steps(self, task: str, arm: str, labels: int) -> int:
        """The steps that an arm's tuning on a task begins with."""
        if task == CLASSIFY:
            given = self.arms[arm].steps.get(str(labels)) or self.steps.get(str(labels))
        else:
            steps = self.tasks[task].steps
            given = steps.get(str(labels)) if isinstance(steps, dict) else steps
        return given or self.recipe(task, arm).total_steps(labels)

    def _check_recipes(self, name: str) -> None:
        """Raise MaeliftError, with the full key, where an arm could not be pretrained or fine-tuned."""
        arm, other = self.arms[name], self.arms[name].compute_of
        if other is not None and (other not in self.arms or not self.arm_kind(other).trains_on_pool):
            raise ConfigError(f"arms.{name}.compute_of", other, "the name of an arm that is pretrained on the pool")
        if CLASSIFY in self.designs:
            with key_prefix(f"arms.{name}.recipe."):
                _refuse_rates(arm.recipe)
                resolve(ClassifyRecipe, arm.recipe, defaults=self._classify_defaults(name)).check_passes(1)
        for task, own in self.tasks.items():
            with key_prefix(f"tasks.{task}.recipe."):
                self._transfer(task, name, {})
            with key_prefix(f"tasks.{task}.arms.{name}."):
                self._transfer(task, name, own.arms.get(name, {})).check_passes(1)
        self.arm_kind(name).check(self, name)

    def _check_tasks(self) -> None:
        """Raise MaeliftError, with the full key, where a task can't be compared."""
        for name, task in self.tasks.items():
            if name == CLASSIFY or not name.isidentifier():
                raise ConfigError("tasks", name, f"names of letters, digits and _, other than {CLASSIFY}")
            with key_prefix(f"tasks.{name}."):
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


def _refuse_rates(recipe: Mapping[str, Any], short: bool = False) -> None:
    for key in ("lr", "base_lr") if not short else ():
        if recipe.get(key) is not None:
            raise ConfigError(key, recipe[key], "no rate, as every arm's is chosen from tuning.rates")
