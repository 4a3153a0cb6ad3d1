"""Training of a run: the task that it is trained for, by the loop of maelift transfer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..core.data.labeled_dataset import Splits
from ..core.distributed import Ranks
from ..core.models.backbone import Backbone
from ..core.progress import ProgressListener
from ..core.training.checkpoints import Checkpoints
from ..core.training.tracker import Tracker
from ..transfer.classification.config import ClassifyRecipe
from ..transfer.classification.task import ClassificationTask
from ..transfer.config import TransferConfig
from ..transfer.finetune import FitResult, fit
from ..transfer.recipe import Recipe
from ..transfer.task import Task
from ..transfer.tasks import task_type
from .runs import Run


def task_of(
    recipe: Recipe, encoder: Backbone, splits: Splits[Any], ranks: Ranks, folder: Path | None = None
) -> Task[Any, Any]:
    """The task that a recipe trains, with these images in its splits; ``folder``: where it may leave files."""
    if not isinstance(recipe, TransferConfig):  # of the suite's own images with a class each
        return ClassificationTask(cast(ClassifyRecipe, recipe), encoder, splits, ranks)
    config = recipe if folder is None else replace(recipe, out=str(folder))
    return task_type(config)(config, encoder, splits, ranks)


def fit_run(
    run: Run, task: Task[Any, Any], evaluations: int, folder: Path | None, listener: ProgressListener | None
) -> tuple[FitResult, list[dict[str, float]]]:
    """Train with validation on the suite's images; also the curve. Only long runs, which give a folder, save checkpoints."""
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
