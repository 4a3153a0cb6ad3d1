"""Fine-tuning for any task: data, encoder, training, best weights, test scores, model file and summary.

What is particular to a task (data, model, loss, metrics) is in its ``Task``; the training loop is ``core/training/loop.py``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core.compute_types import Precision
from ..core.data.audit import summary_lines, write_rejected
from ..core.data.labeled_dataset import draw_labeled
from ..core.data.missing_splits import SplitManifest
from ..core.data.sampling import Sampler, each
from ..core.distributed import Ranks
from ..core.files import output_folder
from ..core.models.backbone import Backbone
from ..core.models.encoder_file import EncoderFile, Provenance
from ..core.progress import ProgressListener
from ..core.public_names import public_config
from ..core.seeding import seeded_rng
from ..core.training.batch_sheet import sheet_for_page, write_batch_sheet
from ..core.training.checkpoints import Checkpoints
from ..core.training.ema import WeightAverage
from ..core.training.loader import Batch, Batches
from ..core.training.loop import Callbacks, train
from ..core.training.run_dir import RunFolder
from ..core.training.schedule import Schedule, evenly_spaced_steps
from ..core.training.state import State
from ..core.training.tracker import Tracker, read_metrics
from ..core.yaml_files import to_dict
from ..version import __version__
from . import tasks
from .config import TransferConfig
from .dry_run import step_warnings
from .init_weights import init_encoder, init_form, read_init_weights
from .label_counts import label_counts
from .metrics import Scores
from .model_file import MODEL_FILE
from .report import write_summary
from .result import TransferResult
from .run_files import ENCODER_FILE, SPLITS_FILE, TEST_FILE, write_splits
from .task import Task

logger = logging.getLogger("maelift")


@dataclass(frozen=True)
class FitResult:
    """A trained model, with the weights of its best validation score (a share, at ``best_step``)."""

    model: nn.Module
    best: float
    best_step: int
    steps: int
    seconds: float


def fit(
    task: Task[Any, Any],
    *,
    seed: int,
    tracker: Tracker,
    evaluations: int,
    patience: int | None = None,
    accumulate: int = 1,
    precision: Precision = "auto",
    workers: int | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 300.0,
    first_batch: Callable[[Sequence[Batch]], object] | None = None,
) -> FitResult:
    """Train the task's model on its training images; return the weights of the best validation score.

    The head, the order and the augmentation depend on ``seed`` only, not on the encoder: two encoders with the same seed are
    compared as a pair. ``first_batch`` receives the micro-batches of the first step.
    """
    recipe, ranks, labeled = task.config, task.ranks, task.splits.train
    recipe.check_passes(ranks.world_size * accumulate)
    with seeded_rng(seed, "head"):
        model = task.build_model().to(ranks.device)
    task.prepare(model)
    steps = task.steps()
    if steps == 0:
        metrics = task.validate(model.eval())
        tracker.log(0, metrics)
        return FitResult(task.final_model(model).eval(), metrics[task.metric()], 0, 0, 0.0)
    average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
    state = State(model, task.optimizer(model), average)
    if checkpoints is not None and state.load(checkpoints):
        logger.info("transfer %s: going on from step %d of %d", task.name, state.step, steps)
    batches = Batches(
        Sampler(len(labeled), recipe.batch_size, seed),
        each(task.sample),
        draws=task.draws,
        ranks=ranks,
        accumulate=accumulate,
        workers=task.loader_workers(workers),
    )
    train(
        state,
        batches,
        task.loss,
        Schedule(steps, recipe.peak_lr, warmup=recipe.warmup * steps, decay=recipe.schedule),
        seed=seed,
        ranks=ranks,
        tracker=tracker,
        callbacks=Callbacks(
            evaluate=lambda model, step: task.validate(model),
            evaluate_at=evenly_spaced_steps(steps, evaluations),
            best_metric=task.metric(),
            patience=patience,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            first_batch=first_batch,
        ),
        precision=precision,
        clip_grad=recipe.clip_grad,
    )
    if state.best_weights:
        model.load_state_dict(state.best_weights)
    return FitResult(task.final_model(model).eval(), state.best_value, state.best_step, state.step, state.seconds)


def run(config: TransferConfig, listener: ProgressListener | None = None) -> TransferResult:
    """Fine-tune as ``config`` says, or resume a run that was stopped; the test split is read once, at the end.

    ``listener`` receives the progress in place of the terminal. Raises MaeliftError for what a user can fix.
    """
    task_type = tasks.task_type(config)
    title = f"transfer {task_type.name}"
    with Ranks.join(config.device) as ranks, ExitStack() as stack:
        config.check_passes(ranks.world_size * config.accumulate)
        source = read_init_weights(config)
        folder = stack.enter_context(RunFolder.open(output_folder(config.out), config, ranks))
        form = init_form(config, source)
        splits, manifest = task_type.read_audited(config, form)
        if ranks.is_main:
            if manifest.rejected:
                _report_rejected(title, manifest, folder.path)
            for line in summary_lines(manifest.sound, manifest.unusual):
                logger.warning("%s: %s", title, line)
        labeled = (
            splits.train if config.labels is None else draw_labeled(splits.train, config.labels, config.split_seed)
        )
        encoder, notes = init_encoder(config, source, labeled.images, manifest.gray)
        task = task_type(config, encoder, replace(splits, train=labeled), ranks)
        task.manifest, task.shown = manifest.digest, config.shown
        task.display.positions(encoder.spec.channels)  # an error now, not after the training
        folder.check_data(manifest.digest, ranks, source.content_hash if source is not None else None)
        if (folder.path / TEST_FILE).exists():
            logger.info("%s: %s is there already; nothing was done again", title, folder.path / TEST_FILE)
            return _read_result(task, folder.path)
        for note in [*notes, *step_warnings(task)]:
            logger.warning("%s: %s", title, note)
        if ranks.is_main:
            write_splits(task.splits, folder.path / SPLITS_FILE)
        with Tracker(
            folder.path,
            title,
            total=task.steps(),
            images_per_step=task.config.batch_size,
            active=ranks.is_main,
            listener=listener,
        ) as tracker:
            checkpoints = Checkpoints(folder.checkpoints, ranks)
            found = fit(
                task,
                seed=config.seed,
                tracker=tracker,
                evaluations=config.evaluations,
                patience=config.patience,
                accumulate=config.accumulate,
                precision=config.precision,
                workers=config.workers,
                checkpoints=checkpoints,
                checkpoint_seconds=60 * config.checkpoint_minutes,
                first_batch=_sheet_writer(task, title, folder.path) if ranks.is_main else None,
            )
        if ranks.is_main:
            provenance = _provenance(config, source, found, len(labeled), manifest.digest, ranks)
            _finish(task, found, provenance, folder, notes)
        checkpoints.remove()
        return _read_result(task, folder.path)


def _sheet_writer(task: Task[Any, Any], title: str, folder: Path) -> Callable[[Sequence[Batch]], None]:
    """Writes what the model sees of the first batch, with labels."""

    def write(batches: Sequence[Batch]) -> None:
        if (path := write_batch_sheet(batches, task.draw_sample, folder)) is not None:
            logger.info("%s: the first batch, as augmented, with its labels: %s", title, path)

    return write


def _finish(
    task: Task[Any, Any], found: FitResult, provenance: Provenance, folder: RunFolder, notes: Sequence[str]
) -> None:
    """Write the model, score it on the test split, and write the summary; the test scores come last."""
    path, splits = folder.path, task.splits
    task.save_encoder(found.model, path / ENCODER_FILE, provenance)
    task.save(found.model, path / MODEL_FILE, provenance)
    scores = task.score(found.model, splits.test, "test")
    validation = {task.metric(): found.best, "count": len(splits.val)}
    write_summary(
        path,
        title=tasks.entry(task.name).title,
        config=to_dict(task.config),
        scores=scores,
        curves=read_metrics(path / "metrics.jsonl"),
        pictures=task.examples(found.model, splits.test, "test"),
        notes=notes,
        seconds=found.seconds,
        labels=label_counts(task, splits),
        batch=sheet_for_page(path),
    )
    if scores.confusion is not None:
        scores.write_confusion(path / "confusion_test.csv")
    if scores.precision_recall:
        scores.write_precision_recall(path / "pr_curves.csv")
    scores.write(path / TEST_FILE, val=validation, best_step=found.best_step, steps=found.steps)


def _report_rejected(title: str, manifest: SplitManifest, folder: Path) -> None:
    file = folder / "rejected.csv"
    write_rejected(file, manifest.rejected)
    logger.warning("%s: %d broken images are left out; see %s", title, len(manifest.rejected), file)


def _provenance(
    config: TransferConfig,
    source: EncoderFile[Backbone] | None,
    found: FitResult,
    labeled: int,
    digest: str,
    ranks: Ranks,
) -> Provenance:
    hours, on_gpu = found.seconds / 3600 * ranks.world_size, ranks.device.type == "cuda"
    starting = source is not None and config.init != "scratch"
    return Provenance(
        method=f"supervised {config.task_name} with {labeled} labelled images, start: {config.init}",
        config=public_config(
            {key: value for key, value in to_dict(config).items() if key not in ("data", "out", "encoder")}
        ),
        seed=config.seed,
        steps=found.steps,
        images_seen=found.steps * config.batch_size,
        cpu_hours=0.0 if on_gpu else round(hours, 6),
        gpu_hours=round(hours, 6) if on_gpu else 0.0,
        data_manifest=digest,
        parent=source.parent if starting and source is not None else None,
        licence=source.provenance.licence if starting and source is not None else None,
        tool_version=__version__,
    )


def _read_result(task: Task[Any, Any], folder: Path) -> TransferResult:
    content = json.loads((folder / TEST_FILE).read_text(encoding="utf-8", errors="surrogateescape"))
    validation = content["val"]
    return TransferResult(
        task.name,
        folder / MODEL_FILE,
        Scores.from_json(content),
        task.metric(),
        validation[task.metric()],
        validation["count"],
        task.config.seed,
    )
