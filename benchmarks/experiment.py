"""A suite with its images: what its runs share, and how each of them is planned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ..adapters.pretrained import read_pretrained
from ..core.data.channel_statistics import channel_statistics
from ..core.data.classification import LabeledImages
from ..core.data.images import ImageSet
from ..core.data.labeled_dataset import Splits, draw_labeled
from ..core.data.reading_keys import StatedValues
from ..core.device import choose_device
from ..core.distributed import Ranks
from ..core.errors import ConfigError
from ..core.models.backbone_cost import backbone_flops
from ..core.models.cost import encoder_flops
from ..core.models.encoder import Encoder
from ..core.models.preprocessing import EIGHT_BITS, Preprocessing, band_names, channel_names, reading_fields
from ..core.models.timm_spec import TIMM
from ..core.seeding import stream
from ..transfer.tasks import CLASSIFY
from .data import SuiteImages, count_of
from .folds import Folds, cross_folds
from .run_training import task_of
from .runs import TEST_CODE, TRAIN_CODE, Run, libraries, spec_facts
from .suite import BenchConfig
from .suite_file import key_prefix
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
    origins: Mapping[str, str] = field(default_factory=dict)
    """what these weights are: as named, or timm:NAME where their file says that they are of it"""

    @classmethod
    def of(cls, config: BenchConfig, pools: SuiteImages) -> Context:
        """Also reads what weights the arms name; raises MaeliftError for those that don't fit the suite's model."""
        hashes, origins = {}, {}
        for name in config.arms:
            if (source := config.arms[name].weights) is not None:
                file = read_pretrained(source, f"arms.{name}.weights")
                config.arm_kind(name).fitted(file, config.spec_of(name), source, f"arms.{name}.weights")
                hashes[name], parent = file.content_hash, file.provenance.parent or ""
                origins[name] = parent if parent.startswith(TIMM) else source
        return cls(config, pools, hashes, origins)

    def check(self) -> None:
        """Raise MaeliftError for what of the suite doesn't fit its data."""
        config = self.config
        for arm in config.arms:
            self.pool_size(arm)
        data, channels = config.data.path or config.data.unlabelled, config.spec.channels
        if channels in (1, 3) and config.bands is None and channels != (1 if self.pools.gray else 3):
            expected = (
                f"1, as every image of {data} is gray" if self.pools.gray else f"3, as {data} has images in colour"
            )
            raise ConfigError("channels", config.channels, expected)
        for task, design in config.designs.items():
            for labels in design.labels:
                draw_labeled(self.pools.tasks[task].splits.train, labels, design.seeds_at(labels)[0])
                for seed in design.seeds_at(labels):
                    self.folds(task, labels, seed)
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
            **({} if self.config.plain_images else {"reading": self.config.reading}),
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
        task_flops = self.relative_cost(task) * backbone_flops(self.config.spec_of(arm))
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

    def folds(self, task: str, labels: int, seed: int) -> Folds | None:
        """The cross-validation of a seed's labelled images; None where there are validation images.

        Raises DataError where there are too few images for it.
        """
        design, place = self.config.designs[task], (task, labels, seed)
        if not design.cross:
            return None
        if place not in self._folds:
            images, numbers = self.pools.tasks[task], self._drawn_numbers(task, seed)[:labels]
            contents = [images.contents[number] for number in numbers]
            drawn = images.splits.train.subset(numbers)
            self._folds[place] = cross_folds(drawn, seed, contents, self.config.data.group)
        return self._folds[place]

    @cached_property
    def _folds(self) -> dict[tuple[str, int, int], Folds]:
        return {}

    def _drawn_numbers(self, task: str, seed: int) -> list[int]:
        """The images that a seed draws at the most labels; at fewer it draws the first of them."""
        if (task, seed) not in self._draws:
            order = self.pools.tasks[task].splits.train.label_sampling_order(seed)
            self._draws[task, seed] = order[: max(self.config.designs[task].labels)]
        return self._draws[task, seed]

    @cached_property
    def _draws(self) -> dict[tuple[str, int], list[int]]:
        return {}

    def scored_images(self, task: str, labels: int, seeds: Sequence[int]) -> int:
        """How many images a setting's score is a share of: validation images, or the fewest that a seed's folds leave out."""
        folds = [found for seed in seeds if (found := self.folds(task, labels, seed)) is not None]
        return min((found.scored for found in folds), default=len(self.pools.tasks[task].splits.val))

    def evaluated_images(self, run: Run) -> int:
        """How many images a training is evaluated on, each time."""
        folds = self.folds(run.task, run.labels, run.seed)
        if folds is None:
            return len(self.pools.tasks[run.task].splits.val)
        return run.labels if run.fold < 0 else folds.sizes[run.fold]

    def splits_of(self, run: Run) -> Splits[Any]:
        """What a training is trained and evaluated with: a seed's labelled images, and the validation images.

        With cross-validation a fold is evaluated on the images that it leaves out; a training on all is evaluated on these,
        for want of others, and a variant, which does its own cross-validation, on none.
        """
        images = self.pools.tasks[run.task].splits
        drawn = draw_labeled(images.train, run.labels, run.seed)
        folds = self.folds(run.task, run.labels, run.seed)
        if folds is None or run.variant:
            return replace(images, train=drawn)
        train, val = (drawn, drawn) if run.fold < 0 else folds.split(drawn, run.fold)
        return replace(images, train=train, val=val)

    def is_refit(self, run: Run) -> bool:
        """Whether a run trains what cross-validation chose, on all images of its seed: its own score is of these, and no use."""
        return run.kind == "train" and run.fold < 0 and not run.variant and self.config.designs[run.task].cross

    def trials(self, task: str, arm: str, labels: int, seed: int, setting: Setting) -> list[Run]:
        """The trainings whose mean score is that of a setting: one, or with cross-validation one a fold."""
        folds = self.folds(task, labels, seed)
        if folds is None or setting.variant:
            return [self.training(task, arm, labels, seed, setting)]
        return [self.training(task, arm, labels, seed, setting, fold) for fold in range(folds.count)]

    def training(self, task: str, arm: str, labels: int, seed: int, setting: Setting, fold: int = -1) -> Run:
        """One training for a task, evaluated on validation images, or on those of a ``fold`` that it leaves out."""
        place = (task, arm, labels, seed, setting, fold)
        if place not in self._trainings:
            self._trainings[place] = self._training(*place)
        return self._trainings[place]

    @cached_property
    def _trainings(self) -> dict[tuple[str, str, int, int, Setting, int], Run]:
        return {}

    def _training(self, task: str, arm: str, labels: int, seed: int, setting: Setting, fold: int) -> Run:
        folds = self.folds(task, labels, seed)
        cross: dict[str, object] = {} if folds is None else {"folds": folds.digest, "fold": fold}
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
                **cross,
            ),
            parents=() if encoder is None else (encoder.key,),
            task=task,
            variant=setting.variant,
            fold=fold,
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
        config, channels = self.config, self.config.spec.channels
        if config.plain_images:
            if channels == 3:
                return Preprocessing.default(channels)
            mean, std = channel_statistics(self.pools.pool, channels, seed=STATISTICS_SEED)
            return Preprocessing(channel_names(channels), mean, std, background="white")
        stated = StatedValues.of(self.pools.pool, config.form)
        form = stated.stated_in(config.form)
        mean, std = channel_statistics(self.pools.pool, channels, seed=STATISTICS_SEED, form=form)
        return Preprocessing(
            stated.names or band_names(form.bands) or channel_names(channels),
            mean,
            std,
            form.value_range or EIGHT_BITS,
            stated.bits,
            background="white",
            **reading_fields(form),
        )
