"""Loading of trained models: the table of tasks says what builds the model of a file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, ConfigError
from ..core.models.backbone import BackboneSpec
from ..core.models.contract import Metadata, shown
from ..core.models.timm_spec import TimmSpec
from ..core.models.without_values import limited_parameters, without_values
from . import tasks
from .model_file import MODEL_KEY, ModelFile, TrainedModel, read_model
from .tasks import TaskEntry

_WIDTHS = ("pyramid_channels", "head_channels", "fc_dim")
"""Fields of a head's architecture that are widths of its layers."""


def load_model(path: str | Path) -> Any:
    """The trained model of a file, in eval mode: a Classifier, Detector or Segmentor, each with ``predict(images)``.

    Raises CheckpointError for a file that is none.
    """
    return build_model(read_model(path))


def task_entry(file: ModelFile) -> TaskEntry:
    """The row of the task that a model file is of; raises CheckpointError for a task that isn't known here."""
    if file.task not in tasks.names():
        known = ", ".join(tasks.names())
        raise CheckpointError(
            f"{file.source}: a model for the task {shown(file.task)}, and this maelift knows {known}. Update maelift, or install "
            "the package that brings the task."
        )
    return tasks.entry(file.task)


def build_model(file: ModelFile) -> TrainedModel:
    """The model that a file describes, by the ``load`` of its task's row.

    Nothing is made that is much larger than the file: modules of our own are built without memory first and compared.
    """
    entry = task_entry(file)
    try:
        _check_sizes(file)
        with _no_more_parameters(file):
            if _architecture(file).get("engine") not in ("detectron2", "mmseg"):  # theirs read values while building
                with without_values():
                    entry.build_model(file)
            return entry.build_model(file)
    except ConfigError as error:
        reason = f"{error.key}={shown(error.value)}: expected {error.expected}"
        raise Metadata(file.source, MODEL_KEY, {}).error(reason) from error
    except (ValueError, TypeError, LookupError, RuntimeError, AssertionError, ArithmeticError) as error:
        reason = f"it describes a model that can't be built: {shown(str(error) or type(error).__name__)}"
        raise Metadata(file.source, MODEL_KEY, {}).error(reason) from error


def _architecture(file: ModelFile) -> Mapping[str, Any]:
    found = file.head.get("architecture")
    return found if isinstance(found, Mapping) else {}


def _check_sizes(file: ModelFile) -> None:
    """Raise CheckpointError where the metadata describe wider layers or more of them than the tensors can be."""
    largest = max((side for tensor in file.state.values() for side in tensor.shape), default=0)
    widths, found = _sizes_of(file.spec)
    widths |= {f"head.{key}": value for key in _WIDTHS if isinstance(value := _architecture(file).get(key), int)}
    most = {
        **dict.fromkeys(widths, largest),
        "spec.depth": len(file.state),
        "spec.image_size": 4 * largest + 4096,  # patches, of which positions may have been resized
        "classes": largest,
    }
    for key, value in {**widths, **found, "classes": len(file.classes)}.items():
        if value > most[key]:
            raise CheckpointError(
                f"{file.source}: its '{MODEL_KEY}' metadata describe a larger model than its tensors are ({key}: {value}, and "
                f"at most {most[key]} fit). Get the file again."
            )


def _sizes_of(spec: BackboneSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Widths of layers, and counts of blocks and patches, that a spec states; of timm's models none is stated."""
    if isinstance(spec, TimmSpec):
        return {}, {}
    widths = {"spec.embed_dim": spec.embed_dim, "spec.patch_size": spec.patch_size}
    return widths, {"spec.depth": spec.depth, "spec.image_size": spec.num_patches}


def _no_more_parameters(file: ModelFile) -> AbstractContextManager[None]:
    """Raise CheckpointError as soon as modules have many more parameters than the file: it describes a larger model.

    An encoder is built and copied into a backbone, and modules are replaced: several times the file's number is usual.
    """
    error = CheckpointError(
        f"{file.source}: describes a model of more parameters than the {len(file.state)} tensors in it. Get the file again."
    )
    return limited_parameters(8 * len(file.state) + 1000, error)
