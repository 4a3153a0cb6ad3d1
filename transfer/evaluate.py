"""Evaluation of a finished model on a split of its data, or of other data of the same classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.data.audit import audit
from ..core.data.labeled_dataset import Images, Splits
from ..core.distributed import Ranks
from ..core.errors import DataError
from ..core.models.build_backbone import build_backbone
from ..core.notebook import facts_table
from . import tasks
from .config import TransferConfig
from .metrics import Scores
from .model_file import MODEL_FILE
from .run_files import finished_config, split_of_run
from .trained_model import load_model


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a finished model on a split, and the file that they were written to."""

    scores: Scores
    file: Path

    def summary(self) -> str:
        """The result in two lines."""
        return f"{self.scores.line()}\nwritten: {self.file}"

    def _repr_html_(self) -> str:
        return facts_table("Evaluation", [("scores", self.scores.line()), ("written", self.file)])


def evaluate(config: TransferConfig, split: str) -> EvaluationResult:
    """Score the model of the finished run in ``config.out`` on a split of its data, or of other data of the same classes.

    Other data without splits are evaluated in full.
    """
    folder, task_type = Path(config.out), tasks.task_type(config)
    model = load_model(folder / MODEL_FILE)
    own = config.data == finished_config(folder)["data"]
    parts = task_type.read_parts(config)
    images = split_of_run(parts, config.data, folder, split) if own else _split_of_others(parts, config.data, split)
    if tuple(images.classes) != model.classes:
        raise DataError(
            f"data={config.data}: classes {', '.join(images.classes[:5])}; the model in {folder} knows "
            f"{', '.join(model.classes[:5])}. Expected the same, in the same order."
        )
    with Ranks.join(config.device) as ranks:
        _, manifest = audit(images.images, config.max_rejected, form=model.preprocessing.reading)
        images = images.subset(manifest.kept) if manifest.rejected else images
        encoder = build_backbone(model.spec, preprocessing=model.preprocessing)
        task = task_type(config, encoder, Splits(images, images, images), ranks)
        name = split if own else f"{split}_{manifest.digest[:8]}"
        scores = replace(task.score(model.to(ranks.device), images, name), split=split)
    file = folder / f"evaluation_{name}.json"
    scores.write(file, data=config.data, rejected=len(manifest.rejected))
    return EvaluationResult(scores, file)


def _split_of_others(parts: Mapping[str, Images], data: str, split: str) -> Images:
    if split in parts:
        return parts[split]
    if len(parts) == 1:
        return next(iter(parts.values()))
    raise DataError(f"data={data}: no {split} images; found only {', '.join(sorted(parts))}. Give one of these.")
