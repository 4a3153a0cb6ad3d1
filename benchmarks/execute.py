"""Doing one run of a suite: make an encoder, train it on a task, or read the test split once."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core.data.labeled_dataset import Splits
from ..core.distributed import Ranks
from ..core.errors import MaeliftError
from ..core.files import atomic_write_text
from ..core.models.adapt_backbone import adapt_backbone
from ..core.models.backbone import Backbone
from ..core.models.build_backbone import build_backbone
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import Provenance, read_backbone
from ..core.models.stored_contract import ENCODER_FILE
from ..core.models.without_values import without_values
from ..core.progress import ProgressListener
from ..core.training.recovery import Diverged
from ..transfer.init_weights import fresh_encoder
from ..transfer.model_file import MODEL_FILE
from ..transfer.recipe import Recipe
from ..transfer.task import Task
from ..version import __version__
from .arm_kind import Training
from .experiment import Context
from .results import pack_items
from .run_training import fit_run
from .runs import RESULT_FILE, Run

SHARED = "features"
"""Folder in that of a suite for what several trainings use: features of frozen encoders."""


def execute(run: Run, context: Context, store: Path, listener: ProgressListener | None = None) -> None:
    """Do one run and write its result into ``store``; what it needs of its parents is there already."""
    folder = store / run.key
    folder.mkdir(parents=True, exist_ok=True)
    with Ranks.join(context.config.device) as ranks:
        if run.kind == "train":
            result = _train(run, context, store, ranks, listener)
        elif run.kind == "test":
            result = _test(run, context, store, ranks)
        else:
            result = context.config.arm_kind(run.arm).make_encoder(run, context, folder, ranks, listener)
    atomic_write_text(folder / RESULT_FILE, json.dumps({"run": asdict(run), **result}, indent=1) + "\n")


def _train(run: Run, context: Context, store: Path, ranks: Ranks, listener: ProgressListener | None) -> dict[str, Any]:
    folder, began, splits = store / run.key, time.monotonic(), context.splits_of(run)
    recipe = context.config.recipe(run.task, run.arm)
    if not run.variant:
        recipe = replace(recipe, steps=run.steps, lr=run.lr)
    kind = context.config.arm_kind(run.arm)
    encoder = _start(run, context, store) if kind.has_encoder else shape_only(run, context)
    task = kind.task(_training_of(run, context, recipe, encoder, splits, ranks, store))
    try:
        found, curve = fit_run(run, task, context.config.designs[run.task].evaluations, None, listener)
    except Diverged:
        if context.config.designs[run.task].short or context.is_refit(run):
            raise
        return {"seconds": time.monotonic() - began, "val": 0.0, "curve": []}  # that rate won't be chosen
    if run.fold < 0:
        _save(found.model, task, run, folder)
    seconds = time.monotonic() - began  # of all of it: such a run is never resumed
    return {"seconds": seconds, "val": found.best, "best_step": found.best_step, "curve": curve}


def _training_of(
    run: Run, context: Context, recipe: Recipe, encoder: Backbone, splits: Splits[Any], ranks: Ranks, store: Path
) -> Training:
    digests = context.pools.tasks[run.task].digests
    manifest = "".join(digests[split] for split in sorted(digests))
    folds = context.folds(run.task, run.labels, run.seed)
    return Training(
        *(recipe, run.variant, encoder, splits, ranks, manifest, store / run.key, store.parent / SHARED),
        folds=() if folds is None else folds.numbers,
    )


def shape_only(run: Run, context: Context) -> Encoder:
    """An encoder without weights: it says what an arm that has none is to be shown."""
    with without_values():
        return Encoder(context.config.spec_at(run.task), preprocessing=context.preprocessing)


def _save(model: nn.Module, task: Task[Any, Any], run: Run, folder: Path) -> None:
    provenance = Provenance(f"{run.task} with {run.labels} labelled images", seed=run.seed, tool_version=__version__)
    task.save(model, folder / MODEL_FILE, provenance)  # without its encoder beside it: a suite has hundreds of models


def _start(run: Run, context: Context, store: Path) -> Backbone:
    spec = context.config.spec_of(run.arm, run.task)
    if not run.parents:
        return fresh_encoder(spec, context.preprocessing, run.seed)
    encoder = read_backbone(_made_by_parent(run, store, ENCODER_FILE)).encoder
    if encoder.spec.channels != spec.channels:  # it was pretrained on some of the suite's channels
        key, names = f"arms.{run.arm}.pretrain.channels", context.preprocessing.channel_names
        encoder, _ = adapt_backbone(encoder, encoder.spec.image_size, spec.channels, run.arm, key, names)
        encoder.preprocessing = context.preprocessing
    return encoder if encoder.spec.image_size == spec.image_size else encoder.resized(spec.image_size)


def _test(run: Run, context: Context, store: Path, ranks: Ranks) -> dict[str, Any]:
    began = time.monotonic()
    kind, folder = context.config.arm_kind(run.arm), store / run.parents[0]
    if not (folder / MODEL_FILE).is_file() and not json.loads((folder / RESULT_FILE).read_text()).get("curve"):
        raise MaeliftError("training diverged at every rate that was tried. Give lower ones (tuning.rates).")
    model = kind.load_model(_made_by_parent(run, store, MODEL_FILE))
    recipe, splits = context.config.recipe(run.task, run.arm), context.pools.tasks[run.task].splits
    encoder = (
        build_backbone(model.spec, preprocessing=model.preprocessing) if kind.has_encoder else shape_only(run, context)
    )
    task = kind.task(_training_of(run, context, recipe, encoder, splits, ranks, store))
    scores, items = task.score_items(model.to(ranks.device), splits.test, "test")
    return {"seconds": time.monotonic() - began, "scores": asdict(scores), "items": pack_items(items)}


def _made_by_parent(run: Run, store: Path, name: str) -> Path:
    path = store / run.parents[0] / name
    if not path.is_file():
        raise MaeliftError(f"{path}: gone, though its run was finished. Remove that folder, and it is run again.")
    return path
