"""A suite: which data, arms, label counts and seeds are compared, and how hard every arm is tuned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from ..core.config import ConfigError, MaeliftError, nearest, raw_value, resolve
from ..core.encoder import EncoderSpec, ModelName, preset_spec
from ..pretrain.config import PretrainConfig
from ..transfer.classify import ClassifyRecipe
from ..transfer.training import recipe_defaults

SUITES = Path(__file__).parent / "suites"
RECIPES = {"mae": "classify_encoder", "supervised": "classify_supervised", "scratch": "classify_scratch"}
"""The recipe, in transfer/recipes/, that an arm is fine-tuned with, by its start."""


@dataclass(frozen=True)
class SuiteData:
    """What the images of a suite are used for; the parts share no image, by content."""

    path: str
    """labelled images: class folders, CSV or idx files; labels of the pool are seen by the supervised arm only"""
    pool: int | float = 0.8
    """images of the training split to pretrain on, a count or a share"""
    val: int | float = 0.1
    """validation images where the data has no such split, a count or a share"""
    test: int | float = 0.1
    """test images where the data has no such split, a count or a share"""
    seed: int = 0
    """seeds the split"""


@dataclass(frozen=True)
class ArmConfig:
    """One way to come by an encoder, and how it is fine-tuned."""

    start: Literal["mae", "supervised", "scratch"]
    """mae: pretrained on the pool without labels; supervised: with the pool's labels; scratch: not at all"""
    label: str
    """the arm's name in the report"""
    pretrain: dict[str, Any] = field(default_factory=dict)
    """keys of maelift pretrain (start: mae), or of the scratch recipe (start: supervised)"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """keys that change the recipe of the start (transfer/recipes/)"""
    steps: dict[str, int] = field(default_factory=dict)
    """steps of fine-tuning for each label count; they are doubled for as long as that helps"""


@dataclass(frozen=True)
class Tuning:
    """What every arm gets at every label count, on validation only."""

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """learning rates tried"""
    seed: int = 1000
    """seed of the trials; none of the seeds that are compared"""
    check_seeds: int = 2
    """how many of the seeds are also trained for twice the steps, to see whether an arm still gains"""
    max_doublings: int = 3
    """how often an arm's steps may be doubled"""

    def __post_init__(self) -> None:
        if len(self.rates) < 4 or len(set(self.rates)) < len(self.rates):
            raise ConfigError("rates", list(self.rates), "at least 4 rates, all different")
        if min(self.rates) <= 0:
            raise ConfigError("rates", list(self.rates), "rates above 0")
        if self.seed < 0:
            raise ConfigError("seed", self.seed, "0 or more")
        if self.check_seeds < 1:
            raise ConfigError("check_seeds", self.check_seeds, "1 or more")
        if self.max_doublings < 0:
            raise ConfigError("max_doublings", self.max_doublings, "0 or more")


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
    labels: tuple[int, ...]
    """numbers of labelled training images"""
    seeds: tuple[int, ...] | dict[str, tuple[int, ...]]
    """for all label counts, or for each; a seed is one draw of labelled images, one head and one order, for all arms"""
    pretrain_seeds: tuple[int, ...] = (0,)
    """seeds of pretraining; fine-tuning seed i uses number i modulo their count"""
    model: ModelName = "vit_small"
    """the encoder's shape, for all arms"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the model's usual one"""
    patch_size: int | None = None
    """pixels a side of a patch; null: the model's usual one"""
    channels: int = 3
    """1 (gray) or 3 (colour)"""
    arms: dict[str, dict[str, Any]]
    """arms by name: start, label, pretrain, recipe, steps"""
    baseline: str = "scratch"
    """the arm that the others are compared with"""
    tuning: Tuning = field(default_factory=Tuning)
    budget: Budget = field(default_factory=Budget)
    evaluations: int = 10
    """times that validation accuracy is measured in a run, whatever its steps; the best weights are kept"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    workers: int | None = None
    """runs at the same time; null: one a core, on a GPU one"""
    threads: int = 1
    """CPU threads of a run"""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError("channels", self.channels, "1 or 3")
        _ = self.spec  # checks model, image_size and patch_size
        for key in ("labels", "pretrain_seeds"):
            _check_different(key, getattr(self, key))
        if min(self.labels) < 1:
            raise ConfigError("labels", list(self.labels), "counts of at least 1")
        for labels in self.labels:
            if isinstance(self.seeds, dict) and str(labels) not in self.seeds:
                raise ConfigError("seeds", self.seeds, f"seeds for {labels} labels too")
            seeds = self.seeds_at(labels)
            _check_different("seeds", seeds)
            if self.tuning.seed in seeds:
                raise ConfigError("tuning.seed", self.tuning.seed, f"none of the compared seeds {list(seeds)}")
            if self.tuning.check_seeds > len(seeds):
                raise ConfigError("tuning.check_seeds", self.tuning.check_seeds, f"at most the {len(seeds)} seeds")
        if not self.arms:
            raise ConfigError("arms", self.arms, "at least one arm, with its start and label")
        for name in self.arms:
            self._check_keys(name)
        for name in self.arms:
            self._check_recipes(name)
        if self.baseline not in self.arms:
            close = nearest(self.baseline, self.arms)
            advice = f"Did you mean {close}?" if close else ""
            raise ConfigError("baseline", self.baseline, f"one of the arms {', '.join(self.arms)}", advice)
        for key in ("evaluations", "threads"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "1 or more")
        if self.workers is not None and self.workers < 1:
            raise ConfigError("workers", self.workers, "1 or more")

    @classmethod
    def resolve(cls, overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> BenchConfig:
        """The suite named in the overrides or the file, with what they say on top."""
        suite = _named_suite(overrides, file)
        return resolve(cls, overrides, file, read_suite(suite))

    @property
    def spec(self) -> EncoderSpec:
        """The shape of every arm's encoder."""
        return preset_spec(self.model, image_size=self.image_size, patch_size=self.patch_size, channels=self.channels)

    def seeds_at(self, labels: int) -> tuple[int, ...]:
        """The seeds that are compared at a label count."""
        return self.seeds[str(labels)] if isinstance(self.seeds, dict) else self.seeds

    @cached_property
    def _arms(self) -> dict[str, ArmConfig]:
        return {name: resolve(ArmConfig, keys) for name, keys in self.arms.items()}

    @cached_property
    def _recipes(self) -> dict[str, ClassifyRecipe]:
        return {
            name: resolve(ClassifyRecipe, arm.recipe, defaults=recipe_defaults(RECIPES[arm.start]))
            for name, arm in self._arms.items()
        }

    def arm(self, name: str) -> ArmConfig:
        """An arm by name."""
        return self._arms[name]

    def recipe(self, name: str) -> ClassifyRecipe:
        """How an arm is fine-tuned: the recipe of its start with the suite's changes."""
        return self._recipes[name]

    def steps(self, name: str, labels: int) -> int:
        """The steps that an arm's tuning begins with."""
        return self.arm(name).steps.get(str(labels)) or self.recipe(name).total_steps(labels)

    def supervised_recipe(self, name: str) -> ClassifyRecipe:
        """How the encoder of a supervised arm is trained on the pool's labels."""
        return resolve(ClassifyRecipe, self.arm(name).pretrain, defaults=recipe_defaults(RECIPES["scratch"]))

    def mae_config(self, name: str, seed: int, out: str) -> PretrainConfig:
        """How the encoder of a MAE arm is pretrained."""
        return PretrainConfig.resolve({**self._of_all_arms(seed, out), **self.arm(name).pretrain})

    def _of_all_arms(self, seed: int, out: str) -> dict[str, Any]:
        """The keys of pretraining that are the same for all arms."""
        return {
            "data": self.data.path,
            "out": out,
            "model": self.model,
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
        with _keys_of(f"arms.{name}."):
            for labels, steps in resolve(ArmConfig, keys).steps.items():
                if not labels.isdigit() or steps < 1:
                    raise ConfigError(f"steps.{labels}", steps, "a count of labels with 1 or more steps")

    def _check_recipes(self, name: str) -> None:
        """Raise MaeliftError, with the full key, where an arm could not be pretrained or fine-tuned."""
        arm = self.arm(name)
        with _keys_of(f"arms.{name}.recipe."):
            for key in sorted({"lr", "base_lr"} & arm.recipe.keys()):
                raise ConfigError(key, arm.recipe[key], "no rate, as every arm's is chosen from tuning.rates")
            resolve(ClassifyRecipe, arm.recipe, defaults=recipe_defaults(RECIPES[arm.start])).check_passes(1)
        with _keys_of(f"arms.{name}.pretrain."):
            if arm.start == "mae":
                for key in sorted(self._of_all_arms(0, "").keys() & arm.pretrain.keys()):
                    raise ConfigError(key, arm.pretrain[key], "no value here, as the suite gives one to all arms")
                self.mae_config(name, 0, "out")
            elif arm.start == "supervised":
                self.supervised_recipe(name).check_passes(1)
            elif arm.pretrain:
                raise ConfigError(
                    next(iter(arm.pretrain)), next(iter(arm.pretrain.values())), "nothing, at start=scratch"
                )


@contextmanager
def _keys_of(prefix: str) -> Iterator[None]:
    """Let errors within name their key in full."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(prefix + error.key, error.value, error.expected, error.advice) from error
    except MaeliftError as error:
        raise MaeliftError(f"{prefix}{error}") from error


def _check_different(key: str, values: tuple[int, ...]) -> None:
    if not values or len(set(values)) != len(values) or min(values) < 0:
        raise ConfigError(key, list(values), "one or more whole numbers from 0 up, all different")


def read_suite(suite: str) -> dict[str, Any]:
    """The keys of a shipped suite or of a YAML file."""
    path = SUITES / f"{suite}.yaml"
    if not path.is_file():
        path = Path(suite)
    if not path.is_file():
        names = sorted(file.stem for file in SUITES.glob("*.yaml"))
        close = nearest(suite, names)
        raise ConfigError(
            "suite", suite, f"a YAML file or one of {', '.join(names)}", f"Did you mean {close}?" if close else ""
        )
    return _read_keys(path)


def _read_keys(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, its numbers as in all of maelift's: 1e-3 is one."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MaeliftError(f"{path}: can't be read ({(error.strerror or str(error)).lower()}).") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise MaeliftError(f"{path}: not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not content or list(content.values()) == [None]:
        raise MaeliftError(f"{path}: expected keys and values, such as title, data, labels, seeds and arms.")
    return {str(key): value for key, value in content.items()}


def _named_suite(overrides: Sequence[str] | Mapping[str, object], file: Path | None) -> str:
    named = raw_value("suite", overrides)
    if named is None and file is not None:
        named = _read_keys(file).get("suite")
    if named is None:
        raise MaeliftError("suite: needed (name of a shipped suite, or a YAML file). Give maelift bench SUITE out=DIR.")
    return str(named)
