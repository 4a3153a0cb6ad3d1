"""The runs that a suite is made of: pretrain an encoder, fine-tune it, read the test split once.

Each is a ``Run``: a value whose ``key`` hashes all that determines its outcome, its parents' keys among it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from .. import __version__
from ..core.checkpoints import Checkpoints
from ..core.config import ConfigError, DataError, MaeliftError, to_dict
from ..core.distributed import Ranks, choose_device
from ..core.encoder import Encoder, Preprocessing, channel_names
from ..core.files import atomic_write_text
from ..core.images import ImageSet, channel_statistics
from ..core.labels import LabeledImages, Splits, audit_splits, draw_labeled, read_splits
from ..core.loop import Diverged
from ..core.randomness import stream
from ..core.run_folder import FREE_KEYS
from ..core.tracking import Listener, Tracker
from ..core.weights import ENCODER_FILE, Provenance, load_encoder, read_encoder, save_encoder
from ..pretrain.stage import pretrain
from ..transfer.classify import ClassificationTask, Classifier, ClassifyRecipe, save_classifier, score_items
from ..transfer.models import MODEL_FILE, load_model
from ..transfer.starts import fresh_encoder
from ..transfer.training import Fit, fit
from .suite import BenchConfig, SuiteData

RESULT_FILE = "result.json"
STATISTICS_SEED = 0

Kind = Literal["mae", "supervised", "train", "test"]

CODE_VERSIONS: dict[Kind, int] = {"mae": 2, "supervised": 2, "train": 2, "test": 3}
"""Raised whenever a change of the code would change what a run of the kind ends with."""

READS: dict[Kind, tuple[str, ...]] = {
    "mae": ("pool",),
    "supervised": ("pool", "val"),
    "train": ("pool", "source", "val"),
    "test": ("test",),
}
"""The parts of the images that determine what a run ends with; of the pool a fine-tuning reads gray images' statistics."""

WRITES: dict[Kind, tuple[str, ...]] = {
    "mae": ("seconds", "steps"),
    "supervised": ("seconds", "steps"),
    "train": ("seconds", "val_accuracy", "curve"),
    "test": ("seconds", "scores", "right"),
}
"""What must stand in the result of a finished run."""


def libraries() -> dict[str, str]:
    """The versions of what draws, decodes, computes and scores: another one may end in other numbers."""
    names = ("torchvision", "timm", "numpy", "pillow", "torchmetrics")
    return {"torch": str(torch.__version__), **{name: version(name) for name in names}}


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    ``recipe`` is all of its configuration that matters, ``context`` what it shares with the others of its kind;
    ``parents`` are the keys of the runs whose files it reads; ``images`` counts the images that go through training, a
    measure of its cost.
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

    @cached_property
    def key(self) -> str:
        """The hash of everything that determines the outcome; the arm's name is not among it."""
        content = {**asdict(self), "code": CODE_VERSIONS[self.kind], "maelift": __version__}
        for irrelevant in ("arm", "images"):
            del content[irrelevant]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def title(self) -> str:
        """The run in words."""
        if self.kind in ("mae", "supervised"):
            return f"{self.arm}: pretraining, seed {self.seed}"
        what = "test" if self.kind == "test" else f"{self.steps} steps at rate {self.lr:g}"
        return f"{self.arm}: {self.labels} labels, seed {self.seed}, {what}"


@dataclass(frozen=True)
class Pools:
    """The images of a suite, parted by use; no image is in two parts, by content.

    ``pool`` is for pretraining (its labels for the supervised arm only), ``source`` what labelled examples are drawn
    from. ``findings`` says in words what the overlap check found and did; ``digests`` hash the names, contents and
    labels of each part, in order; ``gray``: every image is.
    """

    pool: LabeledImages
    source: LabeledImages
    val: LabeledImages
    test: LabeledImages
    findings: tuple[str, ...]
    digests: Mapping[str, str]
    gray: bool


def read_pools(data: SuiteData) -> Pools:
    """Read, look through and part the images; an image that is in validation or test too is dropped elsewhere."""
    if not Path(data.path).exists():
        raise DataError(
            f"data.path={data.path}: no such folder or CSV. Give data.path=...; that of the quickstart is brought by "
            f"maelift data fashion-mnist out={data.path}."
        )
    splits, manifest = audit_splits(read_splits(data.path, data.val, data.test, data.seed), max_rejected=0.05)
    hashes = {name: manifest.splits[name].hashes for name in ("train", "val", "test")}
    findings: list[str] = []
    if manifest.rejected:
        findings.append(f"Broken images that were left out: {len(manifest.rejected)}.")
    held_back = set(hashes["test"])
    keep_val = [index for index, digest in enumerate(hashes["val"]) if digest not in held_back]
    findings.append(_finding("validation", len(hashes["val"]) - len(keep_val), "test"))
    held_back |= set(hashes["val"])
    order = stream(data.seed, "pool").permutation(len(hashes["train"]))
    count = data.pool if isinstance(data.pool, int) else int(data.pool * len(order))
    if not 0 < count < len(order):
        raise DataError(
            f"data.pool={data.pool}: {data.path} has {len(order)} training images besides validation and test; expected "
            "a count below that, so that some are left to draw labelled examples from."
        )
    pool = sorted(int(index) for index in order[:count] if hashes["train"][index] not in held_back)
    findings.append(_finding("pool", count - len(pool), "validation or test"))
    held_back |= {hashes["train"][index] for index in pool}
    source = sorted(int(index) for index in order[count:] if hashes["train"][index] not in held_back)
    findings.append(_finding("labelled source", len(order) - count - len(source), "pool, validation or test"))
    parts = {
        "pool": (splits.train, hashes["train"], pool),
        "source": (splits.train, hashes["train"], source),
        "val": (splits.val, hashes["val"], keep_val),
        "test": (splits.test, hashes["test"], range(len(splits.test))),
    }
    for name, (_, _, indices) in parts.items():
        if not indices:
            raise DataError(f"data.path={data.path}: no image is left for {name}, as all of it is elsewhere too.")
    return Pools(
        pool=splits.train.subset(pool),
        source=splits.train.subset(source),
        val=splits.val.subset(keep_val),
        test=splits.test,
        findings=tuple(findings),
        digests={name: _digest(*part) for name, part in parts.items()},
        gray=manifest.gray,
    )


def _finding(part: str, dropped: int, others: str) -> str:
    if dropped == 0:
        return f"No image of the {part} is in {others} too, by content."
    return f"Images of the {part} that are in {others} too, by content, and were left out of the {part}: {dropped}."


def _digest(labeled: LabeledImages, hashes: Sequence[str], indices: Sequence[int]) -> str:
    rows = [(labeled.images.name(index), hashes[index], labeled.labels[index]) for index in indices]
    return hashlib.sha256(json.dumps([labeled.classes, rows]).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Context:
    """What all runs of a suite share; ``facts`` are its part in every key, by the kind of the run."""

    config: BenchConfig
    pools: Pools

    def check(self) -> None:
        """Raise MaeliftError for what of the suite doesn't fit its data."""
        config = self.config
        if self.pools.gray and config.channels != 1:
            raise ConfigError("channels", config.channels, f"1, as every image of {config.data.path} is gray")
        if not self.pools.gray and config.channels != 3:
            raise ConfigError("channels", config.channels, f"3, as {config.data.path} has images in colour")
        for labels in config.labels:
            draw_labeled(self.pools.source, labels, config.tuning.seed)

    @cached_property
    def facts(self) -> Mapping[Kind, str]:
        """What determines the outcome of all runs of a kind, as one line of JSON.

        The number of threads is among it: it sets the order of sums. The place of the images and the number of workers
        are not.
        """
        shared = {
            "spec": asdict(self.config.spec),
            "device": choose_device(self.config.device).type,
            "threads": self.config.threads,
            "libraries": libraries(),
        }
        judged = {"evaluations": self.config.evaluations}
        return {
            kind: json.dumps(
                {
                    **shared,
                    **(judged if "val" in parts else {}),
                    "images": {part: self.pools.digests[part] for part in parts},
                },
                sort_keys=True,
            )
            for kind, parts in READS.items()
        }

    def pretraining(self, arm: str, seed: int) -> Run | None:
        """The run that makes an arm's encoder; none for the scratch arm."""
        if (arm, seed) not in self._pretrainings:
            self._pretrainings[arm, seed] = self._pretraining(arm, seed)
        return self._pretrainings[arm, seed]

    @cached_property
    def _pretrainings(self) -> dict[tuple[str, int], Run | None]:
        return {}

    def _pretraining(self, arm: str, seed: int) -> Run | None:
        start = self.config.arm(arm).start
        if start == "scratch":
            return None
        count = len(self.pools.pool)
        if start == "mae":
            config = self.config.mae_config(arm, seed, "")
            recipe = {key: value for key, value in to_dict(config).items() if key not in FREE_KEYS}
            images = int(config.epochs * count)
            return Run("mae", arm, seed, 0, 0, config.peak_lr, json.dumps(recipe), self.facts["mae"], images=images)
        supervised = self.config.supervised_recipe(arm)
        steps, lr = supervised.total_steps(count), supervised.peak_lr
        text, facts = _determining(supervised), self.facts["supervised"]
        return Run("supervised", arm, seed, 0, steps, lr, text, facts, images=steps * supervised.batch_size)

    def training(self, arm: str, labels: int, seed: int, steps: int, lr: float) -> Run:
        """One fine-tuning, judged on validation only."""
        recipe = self.config.recipe(arm)
        encoder = self.pretraining(arm, self.pretrain_seed(seed))
        return Run(
            "train",
            arm,
            seed,
            labels,
            steps,
            lr,
            _determining(recipe),
            self.facts["train"],
            parents=() if encoder is None else (encoder.key,),
            images=steps * recipe.batch_size,
        )

    def testing(self, run: Run) -> Run:
        """The one reading of the test split with a trained model."""
        return replace(
            run,
            kind="test",
            recipe="",
            context=self.facts["test"],
            parents=(run.key,),
            images=len(self.pools.test),
        )

    def pretrain_seed(self, seed: int) -> int:
        """The pretraining seed that goes with a seed of fine-tuning (the first for the tuning trials)."""
        seeds = self.config.pretrain_seeds
        return seeds[0] if seed == self.config.tuning.seed else seeds[seed % len(seeds)]

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What every arm's images are normalised by: ImageNet's statistics for colour, the pool's own for gray."""
        channels = self.config.channels
        if channels == 3:
            return Preprocessing.default(channels)
        mean, std = channel_statistics(self.pools.pool.images, channels, seed=STATISTICS_SEED)
        return Preprocessing(channel_names(channels), mean, std)


def _determining(recipe: ClassifyRecipe) -> str:
    """What of a recipe determines a run whose steps and learning rate are known."""
    known = ("epochs", "steps", "base_lr", "lr")
    return json.dumps({key: value for key, value in to_dict(recipe).items() if key not in known})


def execute(run: Run, context: Context, store: Path, listener: Listener | None = None) -> None:
    """Do one run and write its result into ``store``; what it needs of its parents is there already."""
    folder = store / run.key
    folder.mkdir(parents=True, exist_ok=True)
    perform = {"mae": _pretrain, "supervised": _pretrain_with_labels, "train": _train, "test": _test}[run.kind]
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
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(key in content for key in WRITES[run.kind]):
        raise MaeliftError(f"{path}: a damaged result")
    return content


def _pretrain(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: Listener | None
) -> dict[str, Any]:
    pool: ImageSet = context.pools.pool.images
    result = pretrain(
        replace(context.config.mae_config(run.arm, run.seed, str(folder)), checkpoint_minutes=0.5),
        images=pool,
        preprocessing=context.preprocessing,
        listener=listener,
    )
    seconds = result.seconds
    if seconds is None:  # it was done, by one process, before its result was written
        made = read_encoder(result.encoder).provenance
        seconds = 3600 * (made.cpu_hours + made.gpu_hours)
    return {"seconds": seconds, "held_out_loss": result.held_out_loss, "steps": result.steps}


def _pretrain_with_labels(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: Listener | None
) -> dict[str, Any]:
    recipe = context.config.supervised_recipe(run.arm)
    encoder = fresh_encoder(context.config.spec, context.preprocessing, run.seed)
    found, _ = _fit(run, recipe, encoder, context.pools.pool, context, folder, ranks, listener)
    provenance = Provenance(f"supervised classification of {len(context.pools.pool)} images", seed=run.seed)
    save_encoder(
        cast(Classifier, found.model).encoder, folder / ENCODER_FILE, replace(provenance, tool_version=__version__)
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {"seconds": found.seconds, "val_accuracy": found.best, "steps": found.steps}


def _train(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: Listener | None
) -> dict[str, Any]:
    recipe = replace(context.config.recipe(run.arm), steps=run.steps, lr=run.lr)
    encoder = _start(run, context, store)
    labeled = draw_labeled(context.pools.source, run.labels, run.seed)
    began = time.monotonic()
    try:
        found, curve = _fit(run, recipe, encoder, labeled, context, None, ranks, listener)
    except Diverged:
        if run.seed != context.config.tuning.seed:
            raise
        return {"seconds": time.monotonic() - began, "val_accuracy": 0.0, "curve": []}  # that rate won't be chosen
    provenance = Provenance(f"fine-tuning on {run.labels} labelled images", seed=run.seed, tool_version=__version__)
    save_classifier(cast(Classifier, found.model), folder / MODEL_FILE, provenance)
    return {"seconds": found.seconds, "val_accuracy": found.best, "best_step": found.best_step, "curve": curve}


def _start(run: Run, context: Context, store: Path) -> Encoder:
    if run.parents:
        return load_encoder(_made_by_parent(run, store, ENCODER_FILE))
    return fresh_encoder(context.config.spec, context.preprocessing, run.seed)


def _test(
    run: Run, context: Context, store: Path, folder: Path, ranks: Ranks, listener: Listener | None
) -> dict[str, Any]:
    began = time.monotonic()
    model: Classifier = load_model(_made_by_parent(run, store, MODEL_FILE))
    scores, right = score_items(model.to(ranks.device), context.pools.test, "test", ranks)
    return {"seconds": time.monotonic() - began, "scores": asdict(scores), "right": np.packbits(right).tobytes().hex()}


def _made_by_parent(run: Run, store: Path, name: str) -> Path:
    path = store / run.parents[0] / name
    if not path.is_file():
        raise MaeliftError(f"{path}: gone, though its run was finished. Remove that folder, and it is run again.")
    return path


def _fit(
    run: Run,
    recipe: ClassifyRecipe,
    encoder: Encoder,
    labeled: LabeledImages,
    context: Context,
    folder: Path | None,
    ranks: Ranks,
    listener: Listener | None,
) -> tuple[Fit, list[dict[str, float]]]:
    """Train with validation on the suite's images; only long runs, which give a folder, keep checkpoints."""
    curve: list[dict[str, float]] = []
    tracker = Tracker(
        None,
        run.title(),
        total=recipe.total_steps(len(labeled)),
        images_per_step=recipe.batch_size,
        listener=listener,
        record=curve,
    )
    task = ClassificationTask(recipe, encoder, Splits(labeled, context.pools.val, context.pools.test), ranks)
    with tracker:
        found = fit(
            task,
            seed=run.seed,
            tracker=tracker,
            evaluations=context.config.evaluations,
            workers=0 if ranks.device.type == "cpu" else None,
            checkpoints=None if folder is None else Checkpoints(folder / "checkpoints", ranks, keep=1),
            checkpoint_seconds=30.0,
        )
    return found, curve
