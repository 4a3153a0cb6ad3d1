"""The model file of a transfer: safetensors, with all that is needed to use the model in its metadata, as JSON."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..core.errors import CheckpointError, ConfigError
from ..core.files import atomic_path
from ..core.models.contract import (
    CHECKSUM,
    CONTENT_HASH,
    PROVENANCE,
    Metadata,
    content_hash,
    sealed,
    sealed_hash,
    shown,
)
from ..core.models.decoder_file import DECODER_KEY
from ..core.models.encoder_file import CONTRACT_KEY, PREPROCESSING_FIELDS, SPEC_FIELDS, Provenance
from ..core.models.encoder_shapes import key_mismatch
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.models.tensor_files import check_finite, check_safetensors, first_bytes, read_tensors

MODEL_FILE = "model.safetensors"
"""What the model file is called in the folder of its run."""
MODEL_KEY = "maelift.model"
MODEL_VERSION = 3
"""Version 1 was a classifier's only; it had neither a head nor a content hash, which in version 2 was the tensors' alone."""
HOMES = {"classify": "classification.task", "detect": "detection.model", "segment": "segmentation.model"}
"""The module of each task whose ``load(file)`` builds the model of a model file."""

_KEYS_1 = ("version", "task", "classes", "spec", "preprocessing", PROVENANCE)
_KEYS = {1: _KEYS_1, 2: (*_KEYS_1, "head", CONTENT_HASH), 3: (*_KEYS_1, "head", CONTENT_HASH, CHECKSUM)}
"""What the metadata of each version consist of."""
_WIDTHS = ("pyramid_channels", "head_channels", "fc_dim")
"""Fields of a head's architecture that are widths of its layers."""
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds.

    ``head``: what rebuilds the model beside the encoder's ``spec``, as the task's module wrote it; ``state``: every
    tensor, under the model's own names; ``source``: the file, for messages.
    """

    task: str
    classes: tuple[str, ...]
    spec: EncoderSpec
    preprocessing: Preprocessing
    head: Mapping[str, object]
    provenance: Provenance
    state: Mapping[str, Tensor]
    content_hash: str
    source: str

    def head_as(self, schema: type[T]) -> T:
        """The head as the dataclass that it was written from, its fields checked; raises CheckpointError."""
        return Metadata(self.source, MODEL_KEY, {"head": self.head}).dataclass(schema, "head")

    def check_one_each(self, numbers: Sequence[int], key: str) -> None:
        """Raise CheckpointError unless there is one number a class, or none at all; ``key`` is theirs in the head."""
        if numbers and len(numbers) != len(self.classes):
            reason = f"head.{key}={shown(list(numbers))}: expected one for each of {len(self.classes)} classes"
            raise Metadata(self.source, MODEL_KEY, {}).error(reason)

    def fill(self, model: M) -> M:
        """Put the tensors into the model that they were taken from, and set it to judge; CheckpointError if they don't fit."""
        self.compare(model)
        if all(parameter.device.type != "meta" for parameter in model.parameters()):  # else only compared
            model.load_state_dict(self.state)
        return model.eval()

    def compare(self, model: nn.Module) -> None:
        """Raise CheckpointError unless the tensors have the names, shapes and kinds of the model's."""
        wanted = model.state_dict()
        missing = [name for name in wanted if name not in self.state]
        unexpected = [name for name in self.state if name not in wanted]
        unexpected += [
            f"{name} of shape {tuple(self.state[name].shape)} where {tuple(wanted[name].shape)} is due"
            for name in wanted
            if name in self.state and self.state[name].shape != wanted[name].shape
        ]
        unexpected += [
            f"{name} of type {self.state[name].dtype} where {wanted[name].dtype} is due"
            for name in wanted
            if name in self.state and self.state[name].is_floating_point() != wanted[name].is_floating_point()
        ]
        if missing or unexpected:
            raise key_mismatch(self.source, missing, unexpected, f"the model ({self.task}) that it describes")


class Trained(Protocol):
    """What every trained model tells of itself."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def spec(self) -> EncoderSpec: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    def state_dict(self) -> dict[str, Any]: ...


def write_model(
    path: str | Path, model: Trained, *, task: str, head: Mapping[str, object], provenance: Provenance
) -> None:
    """Write a trained model, all at once or not at all; ``head`` is what JSON can hold, and ``task`` one of ``HOMES``."""
    state = _apart(model.state_dict())
    description = {
        "version": MODEL_VERSION,
        "task": task,
        "classes": list(model.classes),
        "spec": asdict(model.spec),
        "preprocessing": asdict(model.preprocessing),
        "head": dict(head),
        PROVENANCE: asdict(provenance),
    }
    text = sealed(description, sealed_hash(description, state))
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={MODEL_KEY: text})


def read_model(path: str | Path) -> ModelFile:
    """What a model file holds; raises CheckpointError for every other file, of which nothing is run."""
    state, metadata = _read(Path(path))
    if MODEL_KEY not in metadata:
        raise CheckpointError(f"{path}: {_what_else(path, metadata)}")
    description = Metadata.parse(path, MODEL_KEY, metadata[MODEL_KEY])
    version = description.version(MODEL_VERSION)
    task = description.content.get("task")
    if not isinstance(task, str) or task not in HOMES:
        raise CheckpointError(
            f"{path}: a model for the task {shown(task)}, and this maelift knows {', '.join(HOMES)}. Update maelift."
        )
    description.check_keys(_KEYS[version])
    classes = description.value("classes", tuple[str, ...])
    if not classes:
        raise description.error("classes=[]: expected at least one")
    for name in classes:
        try:
            name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise description.error(f"classes={shown(name)}: expected text that UTF-8 can hold") from error
    spec = description.dataclass(EncoderSpec, "spec", SPEC_FIELDS)
    preprocessing = description.dataclass(Preprocessing, "preprocessing", PREPROCESSING_FIELDS)
    if len(preprocessing.mean) != spec.channels:
        raise description.error(
            f"preprocessing is for {len(preprocessing.mean)} channels, and spec for {spec.channels}"
        )
    file = ModelFile(
        task=task,
        classes=classes,
        spec=spec,
        preprocessing=preprocessing,
        head=description.value("head", dict[str, Any]) if version > 1 else {},
        provenance=description.dataclass(Provenance, PROVENANCE, ("method",)),
        state=state,
        content_hash=(
            content_hash(state) if version == 1 else description.check_tensors(state, tensors_only=version == 2)
        ),
        source=str(path),
    )
    check_finite(str(path), state)
    return file


def is_model(path: str | Path) -> bool:
    """Whether a file is a model file, by its metadata alone; False for what isn't there or can't be read."""
    try:
        if first_bytes(Path(path), "a model")[8:9] != b"{":
            return False
        check_safetensors(Path(path))
        with safetensors.safe_open(str(path), framework="pt") as file:
            return MODEL_KEY in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError, CheckpointError):
        return False


def load_model(path: str | Path) -> Any:
    """The trained model of a file, set to judge: a Classifier, Detector or Segmentor, each with ``predict(images)``.

    Raises CheckpointError for a file that is none.
    """
    return build_model(read_model(path))


def build_model(file: ModelFile) -> nn.Module:
    """The model that a file describes, by the ``load`` of its task's module.

    Nothing is made that is much larger than the file: modules of our own are built without memory first and compared.
    """
    home = importlib.import_module(f".{HOMES[file.task]}", __package__)
    try:
        _check_sizes(file)
        with _no_more_parameters(file):
            if _architecture(file).get("engine") not in ("detectron2", "mmseg"):  # theirs read values while building
                with torch.device("meta"):
                    home.load(file)
            return cast(nn.Module, home.load(file))
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
    widths = {"spec.embed_dim": file.spec.embed_dim, "spec.patch_size": file.spec.patch_size}
    widths |= {f"head.{key}": value for key in _WIDTHS if isinstance(value := _architecture(file).get(key), int)}
    most = {
        **dict.fromkeys(widths, largest),
        "spec.depth": len(file.state),
        "spec.image_size": 4 * largest + 4096,  # patches, of which positions may have been resized
        "classes": largest,
    }
    found = {
        **widths,
        "spec.depth": file.spec.depth,
        "spec.image_size": file.spec.num_patches,
        "classes": len(file.classes),
    }
    for key, value in found.items():
        if value > most[key]:
            raise CheckpointError(
                f"{file.source}: its '{MODEL_KEY}' metadata describe a larger model than its tensors are ({key}: {value}, and "
                f"at most {most[key]} fit). Get the file again."
            )


@contextmanager
def _no_more_parameters(file: ModelFile) -> Iterator[None]:
    """Raise CheckpointError as soon as modules have many more parameters than the file: it describes a larger model.

    An encoder is built and copied into a backbone, and modules are replaced: several times the file's number is usual.
    """
    most, made = 8 * len(file.state) + 1000, 0

    def count(module: nn.Module, name: str, parameter: object) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise CheckpointError(
                f"{file.source}: describes a model of more parameters than the {len(file.state)} tensors in it. Get the file "
                "again."
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    head = first_bytes(path, f"the {MODEL_FILE} of maelift transfer")
    if head[8:9] != b"{" and (head[:1] == b"\x80" or head[:2] == b"PK"):  # safetensors begin with a length, then "{"
        raise CheckpointError(
            f"{path}: a pickle, which could run code when read; nothing was run. Expected the {MODEL_FILE} of maelift "
            "transfer."
        )
    return read_tensors(path)


def _what_else(path: str | Path, metadata: Mapping[str, str]) -> str:
    """What to tell of a safetensors file that is no model."""
    if CONTRACT_KEY in metadata:
        return (
            "an encoder file, not a trained model. Expected a model.safetensors; train one: maelift transfer classify "
            f"encoder={path} data=... out=... (or detect, segment)"
        )
    if DECODER_KEY in metadata:
        return f"the decoder of a pretraining, not a trained model. Expected the {MODEL_FILE} of maelift transfer."
    return f"not a model of maelift. Expected the {MODEL_FILE} of maelift transfer."


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, those that share memory copied: safetensors holds each by itself."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        if kept.untyped_storage().data_ptr() in seen:
            kept = kept.clone()
        seen.add(kept.untyped_storage().data_ptr())
        state[name] = kept
    return state
