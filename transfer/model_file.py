"""The model file of a transfer: safetensors, with all that is needed to use the model in its metadata."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.files import atomic_path
from ..core.models.backbone import Backbone, BackboneSpec
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
from ..core.models.encoder_file import PREPROCESSING_FIELDS, TIMM_KIND, Provenance, read_spec, spec_json
from ..core.models.encoder_shapes import key_mismatch
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.models.stored_contract import CONTRACT_KEY
from ..core.models.tensor_files import check_finite, first_bytes, read_metadata, read_tensors
from ..core.models.timm_spec import TimmSpec

MODEL_FILE = "model.safetensors"
"""What the model file is called in the folder of its run."""
MODEL_KEY = "maelift.model"
MODEL_VERSION, TIMM_VERSION = 3, 4
"""The newest version of a model on a plain ViT, and of one on a model of timm, which has a ``kind``. Version 1 was a classifier's
only; it had neither a head nor a content hash, which in version 2 was the tensors' alone."""

_KEYS_1 = ("version", "task", "classes", "spec", "preprocessing", PROVENANCE)
_KEYS = {1: _KEYS_1, 2: (*_KEYS_1, "head", CONTENT_HASH), 3: (*_KEYS_1, "head", CONTENT_HASH, CHECKSUM)}
_KEYS[TIMM_VERSION] = (*_KEYS[MODEL_VERSION], "kind")
"""What the metadata of each version consist of."""
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds.

    ``head``: what is needed to build the model in addition to the encoder's ``spec``, as its task wrote it; ``state``: every
    tensor, under the model's own names; ``source``: the file, for messages.
    """

    task: str
    classes: tuple[str, ...]
    spec: BackboneSpec
    preprocessing: Preprocessing
    head: Mapping[str, object]
    provenance: Provenance
    state: Mapping[str, Tensor]
    content_hash: str
    source: str

    def head_as(self, schema: type[T]) -> T:
        """The head as the dataclass that it was written from, its fields checked; raises CheckpointError."""
        return Metadata(self.source, MODEL_KEY, {"head": self.head}).dataclass(schema, "head")

    def plain_spec(self, what: str) -> EncoderSpec:
        """The spec of a plain ViT; raises CheckpointError for a model of another architecture. ``what``: what needs one."""
        if isinstance(self.spec, EncoderSpec):
            return self.spec
        raise CheckpointError(
            f"{self.source}: a model on timm's {self.spec.architecture}, and {what} needs a plain ViT. maelift predict takes any "
            "architecture."
        )

    def check_one_each(self, numbers: Sequence[int], key: str) -> None:
        """Raise CheckpointError unless there is one number a class, or none at all; ``key`` is theirs in the head."""
        if numbers and len(numbers) != len(self.classes):
            reason = f"head.{key}={shown(list(numbers))}: expected one for each of {len(self.classes)} classes"
            raise Metadata(self.source, MODEL_KEY, {}).error(reason)

    def load_into(self, model: M) -> M:
        """Load the tensors into the model that they were taken from, in eval mode; CheckpointError if they don't fit."""
        self.check_fits(model)
        if all(parameter.device.type != "meta" for parameter in model.parameters()):  # else only compared
            model.load_state_dict(self.state)
        return model.eval()

    def check_fits(self, model: nn.Module) -> None:
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


class TrainedModel(nn.Module, ABC):
    """A trained model of any task: an encoder under a head, with what its file says of it.

    ``classes`` in the order of the head's outputs; ``spec`` and ``preprocessing`` are the encoder's.
    """

    def __init__(self, encoder: Backbone, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.spec: BackboneSpec = encoder.spec
        self.preprocessing = encoder.preprocessing

    @abstractmethod
    def predict(self, images: Sequence[str | Path | Image.Image | NDArray[np.generic]]) -> Sequence[Any]:
        """The prediction for each image: files, PIL images, or arrays (H, W) or (H, W, C) of stored values."""


def write_model(
    path: str | Path, model: TrainedModel, *, task: str, head: Mapping[str, object], provenance: Provenance
) -> None:
    """Write a trained model, all at once or not at all; ``head`` is what JSON can hold, ``task`` the task's name."""
    state = _without_shared_memory(model.state_dict())
    timm = isinstance(model.spec, TimmSpec)
    description = {
        "version": TIMM_VERSION if timm else MODEL_VERSION,
        **({"kind": TIMM_KIND} if timm else {}),
        "task": task,
        "classes": list(model.classes),
        "spec": spec_json(model.spec),
        "preprocessing": model.preprocessing.to_json(),
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
    version = description.version(TIMM_VERSION if "kind" in description.content else MODEL_VERSION)
    description.check_keys(_KEYS[version])
    classes = description.value("classes", tuple[str, ...])
    if not classes:
        raise description.error("classes=[]: expected at least one")
    for name in classes:
        try:
            name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise description.error(f"classes={shown(name)}: expected text that UTF-8 can hold") from error
    spec = read_spec(description)
    preprocessing = description.dataclass(Preprocessing, "preprocessing", PREPROCESSING_FIELDS)
    if len(preprocessing.mean) != spec.channels:
        raise description.error(
            f"preprocessing is for {len(preprocessing.mean)} channels, and spec for {spec.channels}"
        )
    file = ModelFile(
        task=description.value("task", str),
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
        return MODEL_KEY in read_metadata(Path(path))
    except (OSError, CheckpointError):
        return False


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    head = first_bytes(path, f"the {MODEL_FILE} of maelift transfer")
    if head[8:9] != b"{" and (head[:1] == b"\x80" or head[:2] == b"PK"):  # safetensors start with a length, then "{"
        raise CheckpointError(
            f"{path}: a pickle, which could run code when read; nothing was run. Expected the {MODEL_FILE} of maelift "
            "transfer."
        )
    return read_tensors(path)


def _what_else(path: str | Path, metadata: Mapping[str, str]) -> str:
    """What a safetensors file is that is not a model, for the error."""
    if CONTRACT_KEY in metadata:
        return (
            "an encoder file, not a trained model. Expected a model.safetensors; train one: maelift transfer classify "
            f"encoder={path} data=... out=... (or detect, segment)"
        )
    if DECODER_KEY in metadata:
        return f"the decoder of a pretraining, not a trained model. Expected the {MODEL_FILE} of maelift transfer."
    return f"not a model of maelift. Expected the {MODEL_FILE} of maelift transfer."


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, those that share memory copied: safetensors holds each by itself."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        if stored.untyped_storage().data_ptr() in seen:
            stored = stored.clone()
        seen.add(stored.untyped_storage().data_ptr())
        state[name] = stored
    return state
