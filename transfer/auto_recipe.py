"""recipe=auto: the published recipe or the small one, by the number of labelled images and the device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from ..core.config import raw_value
from ..core.data.task_data import AnnotationKeys
from ..core.errors import MaeliftError
from ..core.training.run_dir import read_run_config
from . import tasks
from .config import AUTO, TransferConfig

Config = TypeVar("Config", bound=TransferConfig)

logger = logging.getLogger("maelift")

LEAST_STEPS = 1000
"""Steps that the published recipe has to make to be taken: as many as the small recipe of classification makes."""


def resolve_config(
    schema: type[Config], overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None
) -> Config:
    """The configuration of a user's overrides and file, over the recipe that they name; over the fitting one for recipe=auto."""
    if raw_value("recipe", overrides, file) != AUTO:
        return schema.resolve(overrides, file)
    published = schema.resolve(overrides, file, recipe="paper")
    return (
        published
        if published.evaluate is not None
        else schema.resolve(overrides, file, recipe=choose_recipe(published))
    )


def choose_recipe(config: TransferConfig) -> Literal["paper", "small"]:
    """The recipe for the labelled images of ``config``, which has the keys of the published one; the reason is logged.

    It is the published one where its epochs make at least ``LEAST_STEPS`` steps and there is a GPU, whose memory and speed it was
    made for; a run that is in ``out`` already keeps its own. Raises DataError for annotations that can't be read.
    """
    name: Literal["paper", "small"]
    if (before := _recipe_before(config)) is not None:
        name, reason = before, f"as it was chosen for the run in {config.out}"
    elif not (config.recipe_folder() / f"{config.recipe_name()}_small.yaml").is_file():
        name, reason = "paper", "as there is no other"
    else:
        name, reason = _fitting(config, _labelled(config))
    logger.info("transfer %s: recipe=auto: %s, %s", config.task_name, name, reason)
    return name


def _fitting(config: TransferConfig, count: int) -> tuple[Literal["paper", "small"], str]:
    """The recipe for so many labelled images, and why."""
    steps = config.total_steps(count)
    made = f"{count:,} labelled images make {steps:,} steps of the published recipe"
    if steps < LEAST_STEPS:
        return "small", f"as {made}, fewer than {LEAST_STEPS:,}"
    from ..core.device import choose_device

    if choose_device(config.device).type == "cpu":
        return "small", f"as there is no GPU for the published recipe's batches of {config.batch_size:,} images"
    return "paper", f"as {made}"


def _labelled(config: TransferConfig) -> int:
    """How many images there are to train on, about: where test images are drawn from them, some more are counted."""
    given = {key: value for key in _ANNOTATION_KEYS if (value := getattr(config, key, None)) is not None}
    keys = AnnotationKeys(**given, slices=config.slices)
    parts = tasks.entry(config.task_name).annotated_task().labeled_splits(config.data, keys)
    found = len(parts["train"]) if "train" in parts else 0
    if config.labels is None:
        return found
    return round(config.labels * found) if isinstance(config.labels, float) else min(found, config.labels)


_ANNOTATION_KEYS = ("layout", "multi_label", "label_column", "group", "ignore")


def _recipe_before(config: TransferConfig) -> Literal["paper", "small"] | None:
    """The recipe of a run that is in the output folder; None where there is none that can be read."""
    file = Path(config.out) / "config.yaml"
    try:
        found = read_run_config(file).get("recipe") if file.is_file() else None
    except (MaeliftError, OSError):  # RunFolder says what is wrong with it
        return None
    return found if found in ("paper", "small") else None
