"""The runs that a suite is made of: come by an encoder, train it for a task, read the test split once.

Each is a ``Run``: a value whose ``key`` hashes all that determines its outcome, its parents' keys among it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from ..adapters.pretrained import read_parent
from ..core.data.images import ImageSet, channel_statistics
from ..core.data.labeled_dataset import Splits, draw_labeled
from ..core.device import choose_device
from ..core.distributed import Ranks
from ..core.errors import ConfigError, MaeliftError
from ..core.files import atomic_write_text
from ..core.models.adapt_encoder import adapt_encoder
from ..core.models.cost import encoder_flops
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import ENCODER_FILE, Provenance, load_encoder, read_encoder, save_encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing, channel_names
from ..core.progress import ProgressListener
from ..core.seeding import stream
from ..core.training.checkpoints import Checkpoints
from ..core.training.recovery import Diverged
from ..core.training.run_dir import FREE_KEYS
from ..core.training.tracker import Tracker
from ..core.yaml_files import to_dict
from ..pretrain.config import PretrainConfig
from ..pretrain.dry_run import forward_flops
from ..pretrain.train import pretrain
from ..transfer.classification.task import ClassificationTask, Classifier, save_classifier
from ..transfer.finetune import Fit, fit
from ..transfer.init_weights import fresh_encoder
from ..transfer.model_file import MODEL_FILE
from ..transfer.recipe import Recipe
from ..transfer.task import Task
from ..transfer.trained_model import load_model
from ..version import __version__
from .data import SuiteImages, count_of
from .results import pack_items
from .suite import BenchConfig, key_prefix
from .task_design import CLASSIFY

RESULT_FILE = "result.json"
STATISTICS_SEED = 0

Kind = Literal["mae", "supervised", "weights", "train", "test"]

PRETRAINING: tuple[Kind, ...] = ("mae", "supervised", "weights")

CODE_VERSIONS: dict[Kind, int] = {"mae": 2, "supervised": 2, "weights": 1, "train": 3, "test": 4}
"""Raised whenever a change of the code would change what a run of the kind ends with."""

WRITES: dict[Kind, tuple[str, ...]] = {
    "mae": ("seconds", "steps"),
    "supervised": ("seconds", "steps"),
    "weights": ("seconds", "steps"),
    "train": ("seconds", "val", "curve"),
    "test": ("seconds", "scores", "items"),
}
"""What must stand in the result of a finished run."""


@cache
def libraries() -> dict[str, str]:
    """The versions of what draws, decodes, computes and scores: another one may end in other numbers."""
    names = ("torchvision", "timm", "numpy", "pillow", "torchmetrics")
    return {"torch": str(torch.__version__), **{name: version(name) for name in names}}


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    ``recipe`` is all of its configuration that matters, ``context`` what it shares with the others of its kind;
    ``parents`` are the keys of the runs whose files it reads; ``images`` counts the images that go through training, each as
    many as it costs times one of the encoder's own size. ``task``: what it is trained for; none for an encoder.
    """

    kind: Kind
    arm: str
    seed: int
    labels: int
    steps: int
    lr: float
    recipe: str
    context: str
    parents: tuple[str, ...] = ()
    images: int = 0
    task: str = ""

    @cached_property
    def key(self) -> str:
        """The hash of everything that determines the outcome; the names of arm and task are not among it."""
        content = {**asdict(self), "code": CODE_VERSIONS[self.kind], "maelift": __version__}
        for irrelevant in ("arm", "images", "task"):
            del content[irrelevant]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def title(self) -> str:
        """The run in words."""
        if self.kind == "weights":
            return f"{self.arm}: reading its weights"
        if self.kind in PRETRAINING:
            return f"{self.arm}: pretraining, seed {self.seed}"
        what = "test" if self.kind == "test" else f"{self.steps} steps at rate {self.lr:g}"
        task = "" if self.task == CLASSIFY else f"{self.task}, "
        return f"{self.arm}: {task}{self.labels} labels, seed {self.seed}, {what}"


@dataclass(frozen=True)
class _Built:
    """Of a task's model: operations on an image, forward, and parameters on top of its encoder."""

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
            if (source := config.arm(name).weights) is not None:
                file = read_parent(source, f"arms.{name}.weights")
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
                draw_labeled(self.pools.tasks[task].splits.train, labels, design.tuning.seed)
            if task != CLASSIFY:
                with key_prefix(f"tasks.{task}.recipe."):
                    self._built(task)

    def facts(self, arm: str, *parts: str, **more: object) -> str:
        """What determines the outcome of all runs of an arm that read these parts of the images, as one line of JSON.

        The number of threads is among it: it sets the order of sums. The place of the images and the number of workers
        are not. ``parts``: "pool", or task and split with a point between.
        """
        own = {"spec": _shape(self.config.spec_of(arm)), "images": [self._digests[part] for part in parts]}
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
        """The run that makes an arm's encoder; none for the scratch arm."""
        if (arm, seed) not in self._pretrainings:
            self._pretrainings[arm, seed] = self._pretraining(arm, seed)
        return self._pretrainings[arm, seed]

    @cached_property
    def _pretrainings(self) -> dict[tuple[str, int], Run | None]:
        return {}

    def _pretraining(self, arm: str, seed: int) -> Run | None:
        own, count = self.config.arm(arm), self.pool_size(arm)
        if own.start == "scratch":
            return None
        part = {} if own.pool is None else {"pool": count}
        if own.start == "mae":
            config = self.config.mae_config(arm, seed, "")
            recipe = {key: value for key, value in to_dict(config).items() if key not in (*FREE_KEYS, "init")}
            recipe |= {} if config.background == "white" else {"background": config.background}
            text = json.dumps({**recipe, "weights": self.weights.get(arm), **part})
            images = round(self._pretraining_flops(arm, config) / encoder_flops(self.config.spec))
            return Run("mae", arm, seed, 0, 0, config.peak_lr, text, self.facts(arm, "pool"), images=images)
        if not own.trains_encoder:
            return Run("weights", arm, 0, 0, 0, 0.0, self.weights[arm], json.dumps(_shape(self.config.spec_of(arm))))
        supervised = self.config.supervised_recipe(arm)
        steps, lr = supervised.total_steps(count), supervised.peak_lr
        facts = self.facts(arm, "pool", f"{CLASSIFY}.val", evaluations=self.config.evaluations, **part)
        images = round(steps * supervised.batch_size * self._size(arm))
        return Run("supervised", arm, seed, 0, steps, lr, _determining(supervised), facts, images=images)

    def pool_of(self, arm: str) -> ImageSet:
        """The images that an arm is pretrained on: the pool, or the first of its images in an order that all arms share."""
        return cast(ImageSet, self._part_of_pool(arm, self.pools.pool))

    def labelled_pool_of(self, arm: str) -> Any:
        """The same with their labels."""
        return self._part_of_pool(arm, self.pools.labelled_pool)

    def _part_of_pool(self, arm: str, pool: Any) -> Any:
        if self.config.arm(arm).pool is None:
            return pool
        order = stream(self.config.data.seed, "part of the pool").permutation(len(pool))
        return pool.subset(sorted(int(index) for index in order[: self.pool_size(arm)]))

    def pool_size(self, arm: str) -> int:
        """How many images an arm is pretrained on; raises ConfigError where that is more than there are, or none."""
        wanted, whole = self.config.arm(arm).pool, len(self.pools.pool)
        if wanted is None:
            return whole
        if not 0 < (count := count_of(wanted, whole)) <= whole:
            raise ConfigError(f"arms.{arm}.pool", wanted, f"at most the {whole:,} images of the pool")
        return count

    def _size(self, arm: str) -> float:
        """What an arm's encoder costs an image, as a multiple of what one of the suite's shape costs."""
        return encoder_flops(self.config.spec_of(arm)) / encoder_flops(self.config.spec)

    def _pretraining_flops(self, arm: str, config: PretrainConfig) -> float:
        """Floating-point operations of a pretraining, forward."""
        return forward_flops(config, self.config.spec_of(arm)) * config.epochs * self.pool_size(arm)

    def steps(self, task: str, arm: str, labels: int) -> int:
        """The steps that an arm's tuning begins with; with ``compute_of``, those of another's pretraining on top."""
        own = self.config.arm(arm)
        steps = self.config.steps(task, arm, labels)
        if own.compute_of is None:
            return steps
        flops = self._pretraining_flops(own.compute_of, self.config.mae_config(own.compute_of, 0, ""))
        a_step = self.cost(task) * encoder_flops(self.config.spec_of(arm)) * self.config.recipe(task, arm).batch_size
        return steps + round(flops / a_step)

    def cost(self, task: str) -> float:
        """What a task's model costs an image, forward, as a multiple of the encoder's cost at the suite's image size."""
        return 1.0 if task == CLASSIFY else self._built(task).flops / encoder_flops(self.config.spec)

    def head_parameters(self, task: str) -> int:
        """How many parameters a task's model has on top of its encoder; that of classification has next to none."""
        return 0 if task == CLASSIFY else self._built(task).head_parameters

    def is_trial(self, task: str, seed: int) -> bool:
        """Whether a training with this seed is one of those that choose the learning rate."""
        return seed == self.config.designs[task].tuning.seed

    def _built(self, task: str) -> _Built:
        """What is known of a task's model, as it would be trained; raises ConfigError for a recipe that doesn't fit the data."""
        if task not in self._known:
            config, splits = self.config, self.pools.tasks[task].splits
            encoder = Encoder(config.spec_at(task), preprocessing=self.preprocessing)
            built = task_of(task, config.transfer(task), encoder, splits, Ranks(0, 1, torch.device("cpu")))
            model = built.build_model()
            own, whole = (sum(parameter.numel() for parameter in part.parameters()) for part in (encoder, model))
            self._known[task] = _Built(built.flops(model), whole - own)
        return self._known[task]

    @cached_property
    def _known(self) -> dict[str, _Built]:
        return {}

    def training(self, task: str, arm: str, labels: int, seed: int, steps: int, lr: float) -> Run:
        """One training for a task, judged on validation only."""
        place = (task, arm, labels, seed, steps, lr)
        if place not in self._trainings:
            self._trainings[place] = self._training(*place)
        return self._trainings[place]

    @cached_property
    def _trainings(self) -> dict[tuple[str, str, int, int, int, float], Run]:
        return {}

    def _training(self, task: str, arm: str, labels: int, seed: int, steps: int, lr: float) -> Run:
        recipe = self.config.recipe(task, arm)
        encoder = self.pretraining(arm, self.pretrain_seed(arm, seed, task))
        return Run(
            "train",
            arm,
            seed,
            labels,
            steps,
            lr,
            _determining(recipe),
            self.facts(
                arm,
                "pool",
                f"{task}.train",
                f"{task}.val",
                evaluations=self.config.designs[task].evaluations,
                **({"trial": True} if self.is_trial(task, seed) else {}),  # it may diverge, and leaves no model
                image_size=self.config.spec_at(task).image_size,
            ),
            parents=() if encoder is None else (encoder.key,),
            images=round(steps * recipe.batch_size * self.cost(task) * self._size(arm)),
            task=task,
        )

    def testing(self, run: Run) -> Run:
        """The one reading of the test split with a trained model."""
        if run.key not in self._tests:
            count = len(self.pools.tasks[run.task].splits.test)
            self._tests[run.key] = replace(
                run,
                kind="test",
                recipe="",
                context=self.facts(run.arm, f"{run.task}.test"),
                parents=(run.key,),
                images=round(count * self.cost(run.task) * self._size(run.arm)),
            )
        return self._tests[run.key]

    @cached_property
    def _tests(self) -> dict[str, Run]:
        return {}

    def pretrain_seed(self, arm: str, seed: int, task: str) -> int:
        """The pretraining seed that goes with a seed of a task's training (the first for the tuning trials)."""
        seeds = self.config.pretrain_seeds
        one = self.is_trial(task, seed) or not self.config.arm(arm).trains_encoder
        return seeds[0] if one else seeds[seed % len(seeds)]

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What every arm's images are normalised by: ImageNet's statistics for colour, the pool's own for gray."""
        channels = self.config.channels
        if channels == 3:
            return Preprocessing.default(channels)
        mean, std = channel_statistics(self.pools.pool, channels, seed=STATISTICS_SEED)
        return Preprocessing(channel_names(channels), mean, std, background="white")


def _shape(spec: EncoderSpec) -> dict[str, object]:
    """An encoder's spec in a run's key; the usual activation is left out, as keys had none before there were others."""
    return {key: value for key, value in asdict(spec).items() if (key, value) != ("act", "gelu")}


def _determining(recipe: Recipe) -> str:
    """What of a recipe determines a run whose data, start, steps and learning rate are known."""
    known = (
        "epochs",
        "steps",
        "base_lr",
        "lr",
        "data",
        "out",
        "encoder",
        "seed",
        "workers",
        "checkpoint_minutes",
        "device",
        "group",
        "folds",
        "fold",
    )
    chosen = {key: value for key, value in to_dict(recipe).items() if key not in known}
    return json.dumps({key: value for key, value in chosen.items() if (key, value) != ("background", None)})


def execute(run: Run, context: Context, store: Path, listener: ProgressListener | None = None) -> None:
    """Do one run and write its result into ``store``; what it needs of its parents is there already."""
    folder = store / run.key
    folder.mkdir(parents=True, exist_ok=True)
    perform = {
        "mae": _pretrain,
        "supervised": _pretrain_with_labels,
        "weights": _take_weights,
        "train": _train,
        "test": _test,
    }[run.kind]
    with Ranks.here(context.config.device) as ranks:
        result = perform(run, context, store, folder, ranks, listener)
    atomic_write_text(folder / RESULT_FILE, json.dumps({"run": asdict(run), **result}, indent=1) + "\n")


def read_result(run: Run, store: Path) -> Mapping[str, Any] | None:
    """What a finished run wrote; None when it isn't finished. Raises MaeliftError for a damaged result."""
    path = store / run.key / RESULT_FILE
    try:
        content: Any = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        content = None
    numbers = ("seconds", "steps", "val")
    if not isinstance(content, dict) or not all(
        key in content and (key not in numbers or type(content[key]) in (int, float)) for key in WRITES[run.kind]
    ):
        raise MaeliftError(f"{path}: a damaged result")
    return content


def _pretrain(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: ProgressListener | None
) -> dict[str, Any]:
    source, preprocessing = context.config.arm(run.arm).weights, context.preprocessing
    if source is not None:
        key = f"arms.{run.arm}.weights"
        spec = context.config.spec_of(run.arm)
        encoder, _ = adapt_encoder(read_parent(source, key).encoder, spec, source, key)
        preprocessing = encoder.preprocessing
    result = pretrain(
        replace(context.config.mae_config(run.arm, run.seed, str(folder)), checkpoint_minutes=0.5),
        images=context.pool_of(run.arm),
        preprocessing=preprocessing,
        listener=listener,
    )
    seconds = result.seconds
    if seconds is None:  # it was done, by one process, before its result was written
        made = read_encoder(result.encoder).provenance
        seconds = 3600 * (made.cpu_hours + made.gpu_hours)
    return {"seconds": seconds, "held_out_loss": result.held_out_loss, "steps": result.steps}


def _pretrain_with_labels(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: ProgressListener | None
) -> dict[str, Any]:
    recipe = context.config.supervised_recipe(run.arm)
    pool = context.labelled_pool_of(run.arm)
    encoder = fresh_encoder(context.config.spec_of(run.arm), context.preprocessing, run.seed)
    classify = context.pools.classify
    task = ClassificationTask(recipe, encoder, Splits(pool, classify.val, classify.test), ranks)
    found, _ = _fit(run, task, context.config.evaluations, folder, listener)
    provenance = Provenance(f"supervised classification of {len(pool)} images", seed=run.seed)
    save_encoder(
        cast(Classifier, found.model).encoder, folder / ENCODER_FILE, replace(provenance, tool_version=__version__)
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {"seconds": found.seconds, "val": found.best, "steps": found.steps}


def _take_weights(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: ProgressListener | None
) -> dict[str, Any]:
    began, key = time.monotonic(), f"arms.{run.arm}.weights"
    source = cast(str, context.config.arm(run.arm).weights)
    file = read_parent(source, key)
    encoder, notes = adapt_encoder(file.encoder, context.config.spec_of(run.arm), source, key)
    save_encoder(encoder, folder / ENCODER_FILE, replace(file.provenance, parent=file.content_hash))
    return {"seconds": time.monotonic() - began, "steps": 0, "notes": notes}


def _train(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: ProgressListener | None
) -> dict[str, Any]:
    began, images = time.monotonic(), context.pools.tasks[run.task].splits
    trial = context.is_trial(run.task, run.seed)
    splits = replace(images, train=draw_labeled(images.train, run.labels, run.seed))
    recipe = replace(context.config.recipe(run.task, run.arm), steps=run.steps, lr=run.lr)
    task = task_of(run.task, recipe, _start(run, context, store), splits, ranks, folder)
    try:
        found, curve = _fit(run, task, context.config.designs[run.task].evaluations, None, listener)
    except Diverged:
        if not trial:
            raise
        return {"seconds": time.monotonic() - began, "val": 0.0, "curve": []}  # that rate won't be chosen
    if not trial:  # whose model nobody reads
        _save(found.model, task, run, folder)
    seconds = time.monotonic() - began  # of all of it: such a run is never resumed
    return {"seconds": seconds, "val": found.best, "best_step": found.best_step, "curve": curve}


def _save(model: nn.Module, task: Task[Any, Any], run: Run, folder: Path) -> None:
    provenance = Provenance(f"{run.task} with {run.labels} labelled images", seed=run.seed, tool_version=__version__)
    if isinstance(task, ClassificationTask):  # without its encoder beside it: a suite has hundreds of models
        save_classifier(cast(Classifier, model), folder / MODEL_FILE, provenance)
    else:
        task.save(model, folder / MODEL_FILE, provenance)


def _start(run: Run, context: Context, store: Path) -> Encoder:
    spec = context.config.spec_of(run.arm, run.task)
    if not run.parents:
        return fresh_encoder(spec, context.preprocessing, run.seed)
    encoder = load_encoder(_made_by_parent(run, store, ENCODER_FILE))
    return encoder if encoder.spec.image_size == spec.image_size else encoder.resized(spec.image_size)


def task_of(
    name: str, recipe: Recipe, encoder: Encoder, splits: Splits[Any], ranks: Ranks, folder: Path | None = None
) -> Task[Any, Any]:
    """A task of a suite with these images in its splits; ``folder``: where it may leave files."""
    if name == CLASSIFY:
        return ClassificationTask(cast(Any, recipe), encoder, splits, ranks)
    config = cast(Any, recipe) if folder is None else replace(cast(Any, recipe), out=str(folder))
    return cast("Task[Any, Any]", config.chosen_task()(config, encoder, splits, ranks))


def _test(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: ProgressListener | None
) -> dict[str, Any]:
    began = time.monotonic()
    model: Any = load_model(_made_by_parent(run, store, MODEL_FILE))
    recipe, splits = context.config.recipe(run.task, run.arm), context.pools.tasks[run.task].splits
    encoder = Encoder(model.spec, preprocessing=model.preprocessing)
    task = task_of(run.task, recipe, encoder, splits, ranks, folder)
    scores, items = task.score_items(model.to(ranks.device), splits.test, "test")
    return {"seconds": time.monotonic() - began, "scores": asdict(scores), "items": pack_items(items)}


def _made_by_parent(run: Run, store: Path, name: str) -> Path:
    path = store / run.parents[0] / name
    if not path.is_file():
        raise MaeliftError(f"{path}: gone, though its run was finished. Remove that folder, and it is run again.")
    return path


def _fit(
    run: Run, task: Task[Any, Any], evaluations: int, folder: Path | None, listener: ProgressListener | None
) -> tuple[Fit, list[dict[str, float]]]:
    """Train with validation on the suite's images; only long runs, which give a folder, keep checkpoints."""
    curve: list[dict[str, float]] = []
    tracker = Tracker(
        None,
        run.title(),
        total=task.steps(),
        images_per_step=task.config.batch_size,
        listener=listener,
        record=curve,
    )
    with tracker:
        found = fit(
            task,
            seed=run.seed,
            tracker=tracker,
            evaluations=evaluations,
            workers=0 if task.ranks.device.type == "cpu" else None,
            checkpoints=None if folder is None else Checkpoints(folder / "checkpoints", task.ranks, max_saved=1),
            checkpoint_seconds=30.0,
        )
    return found, curve
