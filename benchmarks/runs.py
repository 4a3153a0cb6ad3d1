"""A run of a suite: what it computes, the key that its result is saved under, and that result.

``key`` hashes all that determines the outcome, its parents' keys among it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..core.errors import MaeliftError
from ..core.models.backbone import BackboneSpec
from ..core.yaml_files import to_dict
from ..transfer.recipe import Recipe
from ..transfer.tasks import CLASSIFY
from ..version import __version__

RESULT_FILE = "result.json"

TRAIN_CODE, TEST_CODE = 3, 4
"""Code versions of training on a task and of the reading of its test split. See ``Run.code``."""

ENCODER_KEYS = ("seconds", "steps")
RESULT_KEYS = {"train": ("seconds", "val", "curve"), "test": ("seconds", "scores", "items")}
"""What must stand in the result of a finished run, by its kind; in that of a run that makes an encoder, ``ENCODER_KEYS``."""


@cache
def libraries() -> dict[str, str]:
    """The versions of what draws, decodes, computes and scores: another one may end in other numbers."""
    names = ("torchvision", "timm", "numpy", "pillow", "torchmetrics")
    return {"torch": str(torch.__version__), **{name: version(name) for name in names}}


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    ``kind``: "train" (on a task), "test" (the one reading of the test split), or what makes an encoder: "mae", say. ``recipe``
    is all of its configuration that matters, ``context`` what it shares with the others of its kind; ``parents`` are the keys of
    the runs whose files it reads. ``task``: what it is trained for; none for an encoder. ``code`` is raised whenever a change of
    the code would change what a run of the kind ends with. ``action``: what makes an encoder, as a title says it. ``variant``:
    which of its arm's settings it trains, where these are no rates and steps. ``fold``: which fold of its labelled images it
    leaves out and is evaluated on, -1 for none; ``context`` holds it too.
    """

    kind: str
    arm: str
    seed: int
    labels: int
    steps: int
    lr: float
    recipe: str
    context: str
    parents: tuple[str, ...] = ()
    task: str = ""
    action: str = ""
    variant: str = ""
    fold: int = -1
    code: int = field(kw_only=True)

    @property
    def makes_encoder(self) -> bool:
        """Whether it makes an arm's encoder, which other runs begin with."""
        return self.kind not in RESULT_KEYS

    @cached_property
    def key(self) -> str:
        """The hash of everything that determines the outcome; the names of arm and task are not among it.

        Nor is what another field holds: ``recipe`` the variant, ``context`` the fold.
        """
        content = {**asdict(self), "maelift": __version__}
        for irrelevant in ("arm", "task", "action", "variant", "fold"):
            del content[irrelevant]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def title(self) -> str:
        """The run as log lines and messages name it."""
        if self.makes_encoder:
            return f"{self.arm}: {self.action}"
        trained = self.variant or f"{self.steps} steps at rate {self.lr:g}"
        what = "test" if self.kind == "test" else trained
        task = "" if self.task == CLASSIFY else f"{self.task}, "
        fold = f", fold {self.fold}" if self.fold >= 0 else ""
        return f"{self.arm}: {task}{self.labels} labels, seed {self.seed}, {what}{fold}"


def spec_facts(spec: BackboneSpec) -> dict[str, object]:
    """An encoder's spec in a run's key; the usual activation is left out, as keys had none before there were others."""
    return {key: value for key, value in asdict(spec).items() if (key, value) != ("act", "gelu")}


def recipe_facts(recipe: Recipe) -> str:
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
        "shown",
    )
    chosen = {key: value for key, value in to_dict(recipe).items() if key not in known}
    later = {**LATER_KEYS, "background": None, "channels": None, "value_range": None}
    return json.dumps({key: value for key, value in chosen.items() if key not in later or value != later[key]})


LATER_KEYS: Mapping[str, object] = {
    **{"nodata": None, "max_nodata": 0.9, "unscale": False, "turn": False, "budget": None, "optimizer": "adamw"},
    **{"window": None, "frame": None, "slice_axis": None, "slice_step": 1, "slice_content": 0.0},
}
"""Keys that came later, with what was done before: such a value is left out of a run's key, so that finished runs are found."""


def pretraining_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a pretraining as its run's key has them: without later keys, and in the order that they had before."""
    kept = {key: value for key, value in config.items() if key not in LATER_KEYS or value != LATER_KEYS[key]}
    kept.pop("shown", None)  # of pictures, which are no part of a result
    if "crop" in kept:
        kept["crop"] = {key: value for key, value in kept["crop"].items() if (key, value) != ("turn", False)}
    moved: dict[str, Any] = {key: kept.pop(key) for key in ("channels", "value_range") if key in kept}
    ordered: dict[str, Any] = {}
    for key, value in kept.items():
        ordered[key] = value
        if key == "patch_size":
            ordered.update(moved)
    return ordered


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
        key in content and (key not in numbers or type(content[key]) in (int, float))
        for key in RESULT_KEYS.get(run.kind, ENCODER_KEYS)
    ):
        raise MaeliftError(f"{path}: a damaged result")
    return content
