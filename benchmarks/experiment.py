"""A suite with its images: what its runs share, and how each of them is planned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from ..adapters.pretrained import read_pretrained
from ..core.data.channel_statistics import channel_statistics
from ..core.data.classification import LabeledImages
from ..core.data.images import ImageSet
from ..core.data.labeled_dataset import Splits, draw_labeled
from ..core.data.pixel_format import PixelFormat
from ..core.device import choose_device
from ..core.distributed import Ranks
from ..core.errors import ConfigError
from ..core.models.adapt_encoder import adapt_encoder
from ..core.models.cost import encoder_flops
from ..core.models.encoder import Encoder
from ..core.models.preprocessing import Preprocessing, channel_names, reading_fields
from ..core.seeding import stream
from .data import SuiteImages, count_of
from .run_training import task_of
from .runs import TEST_CODE, TRAIN_CODE, Run, libraries, spec_facts
from .suite import BenchConfig
from .suite_file import key_prefix
from .task_design import CLASSIFY
from .tuning import Setting

STATISTICS_SEED = 0


@dataclass(frozen=True)
class TaskModel:
    """Of a task's model: floating-point operations on an image, forward, and parameters on top of its encoder."""

    flops: float
    head_parameters: int


@dataclass(frozen=True, eq=False)
class Context:
    """What all runs of a suite share: its configuration and its images."""

    config: BenchConfig
    pools: SuiteImages
    weights: Mapping[str, str] = field(default_factory=dict)
    """hash of the weights that an arm begins with, where it names some"""

    @classmethod
    def of(cls, config: BenchConfig, pools: SuiteImages) -> Context:
        """Also reads what weights the arms name; raises MaeliftError for those that don't fit the suite's model."""
        hashes = {}
        for name in config.arms:
            if (source := config.arms[name].weights) is not None:
                file = read_pretrained(source, f"arms.{name}.weights")
                adapt_encoder(file.encoder, config.spec_of(name), source, f"arms.{name}.weights")
                hashes[name] = file.content_hash
        return cls(config, pools, hashes)

    def check(self) -> None:
        """Raise MaeliftError for what of the suite doesn't fit its data."""
        config = self.config
        for arm in config.arms:
            self.pool_size(arm)
        data = config.data.path or config.data.unlabelled
        if self.pools.gray and config.channels != 1:
            raise ConfigError("channels", config.channels, f"1, as every image of {data} is gray")
        if not self.pools.gray and config.channels != 3:
            raise ConfigError("channels", config.channels, f"3, as {data} has images in colour")
        for task, design in config.designs.items():
            for labels in design.labels:
                draw_labeled(self.pools.tasks[task].splits.train, labels, design.seeds_at(labels)[0])
            with key_prefix("" if task == CLASSIFY else f"tasks.{task}.recipe."):
                self.task_model(task)

    def facts(self, arm: str, *parts: str, **more: object) -> str:
        """What determines the outcome of all runs of an arm that read these parts of the images, as one line of JSON.

        The number of threads is among it: it sets the order of sums. The place of the images and the number of workers
        are not. ``parts``: "pool", or task and split with a point between.
        """
        own = {"spec": spec_facts(self.config.spec_of(arm)), "images": [self._digests[part] for part in parts]}
        return json.dumps({**self._shared, **own, **more}, sort_keys=True)

    @cached_property
    def _shared(self) -> dict[str, object]:
        device = self.config.device
        return {
            "device": choose_device("auto").type if device == "auto" else device,
            "threads": self.config.threads,
            "libraries": libraries(),
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        digests = {"pool": self.pools.pool_digest}
        for task, images in self.pools.tasks.items():
            digests |= {f"{task}.{split}": digest for split, digest in images.digests.items()}
        return digests

    def pretraining(self, arm: str, seed: int) -> Run | None:
        """The run that makes an arm's encoder; None where every training begins with a fresh one."""
        if (arm, seed) not in self._pretrainings:
            self._pretrainings[arm, seed] = self.config.arm_kind(arm).plan(self, arm, seed)
        return self._pretrainings[arm, seed]

    @cached_property
    def _pretrainings(self) -> dict[tuple[str, int], Run | None]:
        return {}

    @property
    def classify(self) -> Splits[LabeledImages]:
        """The suite's own images with a class each."""
        return self.pools.classify

    def pool_of(self, arm: str) -> ImageSet:
        """The images that an arm is pretrained on: the pool, or the first of its images in an order that all arms share."""
        numbers = self._pool_numbers(arm)
        return self.pools.pool if numbers is None else self.pools.pool.subset(numbers)

    def labelled_pool_of(self, arm: str) -> LabeledImages:
        """The same with their labels; raises ValueError for a suite whose pool has none."""
        numbers, pool = self._pool_numbers(arm), self.pools.labelled_pool
        if pool is None:
            raise ValueError("the pool has no labels")
        return pool if numbers is None else pool.subset(numbers)

    def _pool_numbers(self, arm: str) -> list[int] | None:
        """Which images of the pool an arm is pretrained on; None: all."""
        if self.config.arms[arm].pool is None:
            return None
        order = stream(self.config.data.seed, "part of the pool").permutation(len(self.pools.pool))
        return sorted(int(index) for index in order[: self.pool_size(arm)])

    def pool_size(self, arm: str) -> int:
        """How many images an arm is pretrained on; raises ConfigError where that is more than there are, or none."""
        wanted, total = self.config.arms[arm].pool, len(self.pools.pool)
        if wanted is None:
            return total
        if not 0 < (count := count_of(wanted, total)) <= total:
            raise ConfigError(f"arms.{arm}.pool", wanted, f"at most the {total:,} images of the pool")
        return count

    def steps(self, task: str, arm: str, labels: int) -> int:
        """The steps that an arm's tuning begins with; with ``compute_of``, those of another's pretraining on top."""
        steps, other = self.config.initial_steps(task, arm, labels), self.config.arms[arm].compute_of
        if other is None:
            return steps
        cost = self.config.arm_kind(other).cost(self, other)
        task_flops = self.relative_cost(task) * encoder_flops(self.config.spec_of(arm))
        return steps + round(cost.flops * cost.trained / (task_flops * self.config.recipe(task, arm).batch_size))

    def relative_cost(self, task: str) -> float:
        """What a task's model computes on an image, as a multiple of what the encoder does at the suite's image size."""
        return self.task_model(task).flops / encoder_flops(self.config.spec)

    def task_model(self, task: str) -> TaskModel:
        """What is known of a task's model; raises ConfigError for a recipe that doesn't fit the data."""
        if task not in self._task_models:
            self._task_models[task] = self._built(task)
        return self._task_models[task]

    @cached_property
    def _task_models(self) -> dict[str, TaskModel]:
        return {}

    def _built(self, task: str) -> TaskModel:
        config, splits = self.config, self.pools.tasks[task].splits
        if task == CLASSIFY:  # whose head has next to nothing
            return TaskModel(encoder_flops(config.spec), 0)
        encoder = Encoder(config.spec_at(task), preprocessing=self.preprocessing)
        built = task_of(config.transfer(task), encoder, splits, Ranks(0, 1, torch.device("cpu")))
        model = built.build_model()
        own, full = (sum(parameter.numel() for parameter in part.parameters()) for part in (encoder, model))
        return TaskModel(built.flops(model), full - own)

    def training(self, task: str, arm: str, labels: int, seed: int, setting: Setting) -> Run:
        """One training for a task, evaluated on validation only."""
        place = (task, arm, labels, seed, setting)
        if place not in self._trainings:
            self._trainings[place] = self._training(*place)
        return self._trainings[place]

    @cached_property
    def _trainings(self) -> dict[tuple[str, str, int, int, Setting], Run]:
        return {}

    def _training(self, task: str, arm: str, labels: int, seed: int, setting: Setting) -> Run:
        recipe = self.config.recipe(task, arm)
        encoder = self.encoder_of(arm, seed)
        return Run(
            "train",
            arm,
            seed,
            labels,
            setting.steps,
            setting.rate,
            self.config.arm_kind(arm).recipe_facts(recipe, setting.variant),
            self.facts(
                arm,
                "pool",
                f"{task}.train",
                f"{task}.val",
                evaluations=self.config.designs[task].evaluations,
                image_size=self.config.spec_at(task).image_size,
            ),
            parents=() if encoder is None else (encoder.key,),
            task=task,
            variant=setting.variant,
            code=TRAIN_CODE,
        )

    def testing(self, run: Run) -> Run:
        """The one reading of the test split with a trained model."""
        if run.key not in self._tests:
            self._tests[run.key] = replace(
                run,
                kind="test",
                recipe="",
                context=self.facts(run.arm, f"{run.task}.test"),
                parents=(run.key,),
                code=TEST_CODE,
            )
        return self._tests[run.key]

    @cached_property
    def _tests(self) -> dict[str, Run]:
        return {}

    def encoder_of(self, arm: str, seed: int) -> Run | None:
        """The run that makes the encoder of a seed of a task's training."""
        return self.pretraining(arm, self.pretrain_seed(arm, seed))

    def pretrain_seed(self, arm: str, seed: int) -> int:
        """The pretraining seed that goes with a seed of a task's training."""
        seeds = self.config.pretrain_seeds
        return seeds[seed % len(seeds)] if self.config.arm_kind(arm).trains_on_pool else seeds[0]

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What every arm's images are normalised by: ImageNet's statistics for colour, the pool's own for gray."""
        channels = self.config.channels
        read = reading_fields(self.config.data.with_parts(PixelFormat()))
        if channels == 3:
            return replace(Preprocessing.default(channels), **read)
        mean, std = channel_statistics(self.pools.pool, channels, seed=STATISTICS_SEED)
        return Preprocessing(channel_names(channels), mean, std, background="white", **read)
