"""What a transfer would do and roughly cost, without training anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.data.labeled_dataset import draw_labeled
from ..core.device import choose_device
from ..core.distributed import Ranks
from ..core.dry_run import Plan
from ..core.models.cost import training_memory, training_seconds
from . import tasks
from .config import TransferConfig
from .init_weights import init_encoder, read_init_weights
from .label_counts import rarest_class
from .model_file import MODEL_FILE
from .task import Task

MIN_STEPS = 200
"""With fewer, a recipe given in epochs trains next to nothing, and says so."""


def plan(config: TransferConfig) -> Plan:
    """What ``run`` would do and roughly cost; writes nothing and trains nothing."""
    task_type = tasks.task_type(config)
    splits = task_type.read(config)
    labeled = splits.train if config.labels is None else draw_labeled(splits.train, config.labels, config.split_seed)
    device = choose_device(config.device)
    encoder, notes = init_encoder(config, read_init_weights(config), labeled.images, gray=False)
    task = task_type(config, encoder, replace(splits, train=labeled), Ranks(0, 1, device))
    steps = task.steps()
    model = task.build_model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rate = f"{task.config.peak_lr:.3g} after warm-up, layer decay {config.layer_decay:g}"
    counts = f"{len(labeled)} to train on, {len(splits.val)} validation, {len(splits.test)} test (unchecked yet)"
    return Plan(
        lines=(
            *(("beware", note) for note in [*notes, *step_warnings(task)]),
            ("images", counts),
            ("classes", f"{len(labeled.classes)}"),
            *([("rarest class", rarest_class(task.label_counts(labeled), labeled.classes))] if labeled.classes else []),
            ("start", "from nothing" if config.init == "scratch" else f"{config.encoder} ({config.init})"),
            ("recipe", config.recipe_text()),
            ("image size", encoder.size_text()),
            *((("learning rate", rate),) if steps else ()),
            ("device", str(device)),
            ("result", str(Path(config.out) / MODEL_FILE)),
        ),
        parameters=parameters,
        steps=steps,
        seconds=training_seconds(task.flops(model), task.images_seen(), device),
        memory_bytes=training_memory(parameters, encoder.activations, task.config.batch_size // config.accumulate),
    )


def step_warnings(task: Task[Any, Any]) -> list[str]:
    """Warnings for few labelled images, which make only a few steps of a recipe for a large data set."""
    steps, config = task.steps(), task.config
    if not 0 < steps < MIN_STEPS or config.steps is not None:
        return []
    small = isinstance(config, TransferConfig) and config.recipe == "small"
    better = "steps=1000" if small else "recipe=small, or steps=1000 with a small batch_size,"
    return [
        f"{len(task.splits.train)} labelled images make only {steps} steps of batch_size={config.batch_size}; the recipe is "
        f"for many more. With so few, {better} is a better start."
    ]
