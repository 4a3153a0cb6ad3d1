"""The model file of a transfer: safetensors, with all that is needed to use the model in its metadata, as JSON."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..core.config import CheckpointError
from ..core.encoder import EncoderSpec, Preprocessing
from ..core.files import atomic_path
from ..core.weights import CONTRACT_KEY, DECODER_KEY, Provenance, content_hash, key_mismatch, read_tensors

MODEL_FILE = "model.safetensors"
"""What the model file is called in the folder of its run."""
MODEL_KEY = "maelift.model"
MODEL_VERSION = 2
"""Version 1 was a classifier's only; it had neither a head nor a content hash."""
HOMES = {"classify": "classify", "detect": "detectors", "segment": "segmentors"}
"""The module of each task whose ``load(file)`` builds the model of a model file."""

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

    def fill(self, model: M) -> M:
        """Put the tensors into the model that they were taken from, and set it to judge; CheckpointError if they don't fit."""
        wanted = model.state_dict()
        missing = [name for name in wanted if name not in self.state]
        unexpected = [name for name in self.state if name not in wanted]
        unexpected += [
            f"{name} of shape {tuple(self.state[name].shape)} where {tuple(wanted[name].shape)} is due"
            for name in wanted
            if name in self.state and self.state[name].shape != wanted[name].shape
        ]
        if missing or unexpected:
            raise key_mismatch(self.source, missing, unexpected, f"the model ({self.task}) that it describes")
        model.load_state_dict(self.state)
        return model.eval()


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
        "provenance": asdict(provenance),
        "content_hash": content_hash(state),
    }
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={MODEL_KEY: json.dumps(description)})


def read_model(path: str | Path) -> ModelFile:
    """What a model file holds; raises CheckpointError for every other file, of which nothing is run."""
    state, metadata = _read(Path(path))
    if MODEL_KEY not in metadata:
        raise CheckpointError(f"{path}: {_what_else(path, metadata)}")
    try:
        content = json.loads(metadata[MODEL_KEY])
        version, task = content["version"], content["task"]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(version, int) or not 1 <= version <= MODEL_VERSION:
        raise CheckpointError(
            f"{path}: model version {version}, this maelift reads versions 1 to {MODEL_VERSION}. Update maelift."
        )
    if task not in HOMES:
        raise CheckpointError(
            f"{path}: a model for the task '{task}', and this maelift knows {', '.join(HOMES)}. Update maelift."
        )
    digest = content_hash(state)
    if version > 1 and digest != content.get("content_hash"):
        raise CheckpointError(f"{path}: the tensors are not those that the file was written with. Get it anew.")
    try:
        return ModelFile(
            task=task,
            classes=tuple(map(str, content["classes"])),
            spec=EncoderSpec.from_json(content["spec"]),
            preprocessing=Preprocessing.from_json(content["preprocessing"]),
            head=dict(content["head"]) if version > 1 else {},
            provenance=Provenance(**content["provenance"]),
            state=state,
            content_hash=digest,
            source=str(path),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


def is_model(path: str | Path) -> bool:
    """Whether a file is a model file, by its metadata alone; False for what isn't there or can't be read."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return MODEL_KEY in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def load_model(path: str | Path) -> Any:
    """The trained model of a file, set to judge: a Classifier, Detector or Segmentor, each with ``predict(images)``.

    Raises CheckpointError for a file that is none.
    """
    return build_model(read_model(path))


def build_model(file: ModelFile) -> nn.Module:
    """The model that a file describes, by the ``load`` of its task's module."""
    home = importlib.import_module(f".{HOMES[file.task]}", __package__)
    try:
        return cast(nn.Module, home.load(file))
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(file.source, error) from error


def from_json(schema: type[T], content: object) -> T:
    """A dataclass of plain values that ``dataclasses.asdict`` and JSON turned into a mapping; TypeError for other content."""
    fields = cast(Mapping[str, Any], content)
    return schema(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Expected the {MODEL_FILE} of maelift transfer.")
    with path.open("rb") as file:
        head = file.read(9)
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


def _unreadable(path: str | Path, error: Exception) -> CheckpointError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return CheckpointError(f"{path}: its '{MODEL_KEY}' metadata can't be read ({reason}). Get the file anew.")


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
