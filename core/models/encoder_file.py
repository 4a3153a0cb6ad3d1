"""The encoder file: safetensors with a contract; reading and writing it, and reading weights of other libraries."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import TypeVar

from ..errors import CheckpointError, ConfigError
from ..files import atomic_path
from ..public_names import public_name
from .backbone import Backbone, BackboneSpec
from .config_hints import hints_of_architecture
from .contract import CHECKSUM, CONTENT_HASH, PROVENANCE, Metadata, content_hash, sealed, sealed_hash, shown
from .convert_weights import ConvertedEncoder, convert_encoder
from .decoder_file import DECODER_KEY
from .encoder import Encoder
from .encoder_shapes import check_shapes, compare_shapes, load_exactly
from .encoder_spec import EncoderSpec
from .hub_names import cached_name
from .preprocessing import Preprocessing
from .state_dicts import full_state, select_state
from .stored_contract import CONTRACT_KEY
from .tensor_files import check_finite, check_tensors, name_file_in_errors, read_checkpoint
from .timm_backbone import TimmBackbone
from .timm_models import fitting_state, timm_version
from .timm_spec import TimmSpec
from .weight_files import INDEX_SUFFIX, shard_advice, weights_file
from .without_values import limited_parameters, without_values

logger = logging.getLogger("maelift")

CONTRACT_VERSION, TIMM_VERSION = 2, 3
"""The newest version of a plain ViT's contract, and of the contract of a model of timm, which has a ``kind``. Up to version 1 the
content hash was that of the tensors alone."""
TIMM_KIND = "timm"
"""``kind`` in the contract of a model of timm; that of a plain ViT has no such key."""
_NO_ENCODERS = {
    DECODER_KEY: "the decoder of a pretraining, whose encoder.safetensors lies beside it",
    "maelift.model": "a trained model of maelift, made by transfer (of a classifier, encoder.safetensors lies beside it)",
}
"""Descriptions of our other files, by their metadata key."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Dtypes that an encoder's tensors may have."""
SPEC_FIELDS = (
    "image_size",
    "patch_size",
    "channels",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "norm_eps",
    "class_token",
)
"""Fields of the spec in every contract; later fields get their defaults in older files."""
PREPROCESSING_FIELDS = ("channel_names", "mean", "std", "value_range", "bit_depth", "interpolation")
"""Fields of the preprocessing in every contract."""
TIMM_FIELDS = ("architecture", "image_size", "channels", "arguments", "timm_version")
"""Fields of the spec of a model of timm."""
EncoderT = TypeVar("EncoderT", bound=Backbone, default=Encoder, covariant=True)


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from.

    ``images_seen`` counts images with repetition; ``cpu_hours`` and ``gpu_hours`` are wall-clock hours times devices;
    ``data_manifest`` is the hash of the images' names and contents; ``parent`` the weights that training began with,
    with their ``licence``.
    """

    method: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    steps: int = 0
    images_seen: int = 0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    data_manifest: str | None = None
    parent: str | None = None
    licence: str | None = None
    tool_version: str = ""

    def __post_init__(self) -> None:
        for key in ("steps", "images_seen", "cpu_hours", "gpu_hours"):
            if getattr(self, key) < 0:
                raise ConfigError(key, getattr(self, key), "a number of at least 0")

    def line(self) -> str:
        """The provenance in a line: method, length, what it began with."""
        length = f"{self.steps:,} steps, {self.images_seen:,} images seen, with repetition" if self.steps else ""
        parent = f"from {self.parent}" if self.parent else ""
        licence = f"licence of those weights: {self.licence}" if self.licence else ""
        version = f"maelift {self.tool_version}" if self.tool_version else ""
        return "; ".join(text for text in (self.method, length, parent, licence, version) if text)


@dataclass(frozen=True)
class EncoderFile(Generic[EncoderT]):
    """An encoder with its provenance; ``content_hash`` is the sha256 of its tensors and of how they are used.

    ``foreign``: the weights came without a contract, and the preprocessing is the usual one. For such, ``notes`` list what
    was selected, left out or changed, ``assumed`` what no file states, and ``final_norm`` is whether they had one.
    ``hub_name``: hf:NAME/MODEL@COMMIT of a file that was fetched from the Hugging Face Hub.
    """

    encoder: EncoderT
    provenance: Provenance
    content_hash: str
    foreign: bool = False
    notes: tuple[str, ...] = ()
    final_norm: bool = True
    assumed: tuple[str, ...] = ()
    hub_name: str = ""

    @property
    def parent(self) -> str:
        """What the provenance of an encoder that began with this one calls it: its content hash, and where it was fetched."""
        return f"{self.hub_name} (sha256 {self.content_hash})" if self.hub_name else self.content_hash

    @classmethod
    def of_converted(cls, converted: ConvertedEncoder, source: str) -> EncoderFile[Encoder]:
        """An encoder from the weights of another library at ``source``, which its provenance names."""
        return EncoderFile(
            converted.encoder,
            Provenance(method=converted.method, parent=public_name(source)),
            content_hash(converted.encoder.state_dict()),
            foreign=True,
            notes=converted.notes,
            assumed=converted.assumed,
            final_norm=converted.final_norm,
        )

    def plain(self, source: str) -> EncoderFile[Encoder]:
        """The same where the encoder is a plain ViT; raises CheckpointError, which names ``source``, for other architectures."""
        if isinstance(self.encoder, Encoder):
            return cast("EncoderFile[Encoder]", self)
        architecture = cast(TimmBackbone, self.encoder).spec.architecture
        raise CheckpointError(
            f"{source}: timm's {architecture}, where only a plain ViT can be used. maelift transfer and predict take any "
            "architecture, and timm itself reads the tensors: timm.create_model(...).load_state_dict(...)."
        )


def save_encoder(encoder: Backbone, path: str | Path, provenance: Provenance) -> str:
    """Write the encoder file atomically; returns its content hash."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.file_state().items()}
    digest = encoder_hash(encoder)
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(
            state, temporary, metadata={CONTRACT_KEY: contract_text(encoder, provenance, digest)}
        )
    return digest


def encoder_hash(encoder: Backbone) -> str:
    """The content hash of an encoder's file: sha256 over its tensors, its spec and its preprocessing."""
    return sealed_hash(_contract(encoder), encoder.file_state())


def contract_text(encoder: Backbone, provenance: Provenance, digest: str) -> str:
    """The contract of an encoder as JSON; ``digest`` is the content hash of its file."""
    return sealed({**_contract(encoder), PROVENANCE: asdict(provenance)}, digest)


def read_contract(
    path: str | Path, text: str, fallback: Preprocessing | None = None
) -> tuple[Metadata, BackboneSpec, Preprocessing, Provenance]:
    """The contract in a file's metadata, each field checked, but not its hashes, as it may come with other tensors.

    ``fallback`` is used if it has no preprocessing. Raises CheckpointError.
    """
    contract = Metadata.parse(path, CONTRACT_KEY, text)
    version = contract.version(TIMM_VERSION if "kind" in contract.content else CONTRACT_VERSION)
    hashes = (CONTENT_HASH,) if version == 1 else (CONTENT_HASH, CHECKSUM)
    kind = ("kind",) if version == TIMM_VERSION else ()
    contract.check_keys(("version", *kind, "spec", PROVENANCE, *hashes), ("preprocessing",))
    spec = read_spec(contract)
    provenance = contract.dataclass(Provenance, PROVENANCE, ("method",))
    if contract.content.get("preprocessing") is not None:
        preprocessing = contract.dataclass(Preprocessing, "preprocessing", PREPROCESSING_FIELDS)
    elif fallback is not None:
        preprocessing = fallback
    else:
        if version > 1 and not contract.intact:
            raise CheckpointError(
                f"{path}: an encoder file without preprocessing, which was written with it: the file was changed. Get it again."
            )
        raise CheckpointError(
            f"{path}: an encoder file without preprocessing: how images must be prepared for it is not known. Write the "
            f"file again with maelift, or give it: maelift import {path} out=... mean=[...] std=[...]"
        )
    if len(preprocessing.mean) != spec.channels:
        raise contract.error(
            f"preprocessing is for {len(preprocessing.mean)} channels: expected the {spec.channels} of spec"
        )
    if contract.content[CONTENT_HASH] != "":  # a graph may be of an encoder that has no file
        contract.hash_under(CONTENT_HASH)
    if version > 1:
        contract.check_checksum()
    return contract, spec, preprocessing, provenance


def read_spec(contract: Metadata) -> BackboneSpec:
    """The spec in a contract, of the kind that it says."""
    if contract.content.get("kind") is None:
        return contract.dataclass(EncoderSpec, "spec", SPEC_FIELDS)
    if contract.content["kind"] != TIMM_KIND:
        raise contract.error(f"kind {shown(contract.content['kind'])}: expected {TIMM_KIND}")
    return contract.dataclass(TimmSpec, "spec", TIMM_FIELDS)


def _contract(encoder: Backbone) -> dict[str, Any]:
    """The part of the contract on how the tensors are used."""
    timm = isinstance(encoder, TimmBackbone)
    return {
        "version": TIMM_VERSION if timm else CONTRACT_VERSION,
        **({"kind": TIMM_KIND} if timm else {}),
        "spec": spec_json(encoder.spec),
        "preprocessing": encoder.preprocessing.to_json(),
    }


def spec_json(spec: BackboneSpec) -> dict[str, Any]:
    """A spec as JSON; that of a model of timm with the version of timm that is installed."""
    if isinstance(spec, TimmSpec):
        spec = replace(spec, timm_version=spec.timm_version or timm_version())
    return asdict(spec)


def load_encoder(
    path: str | Path,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    act: str | None = None,
    architecture: str | None = None,
    weights_key: str | None = None,
) -> Any:
    """Read an encoder from a maelift file, or from the weights of another library: a file or its folder.

    ``hf:NAME/MODEL[@REVISION]``: a maelift file on the Hugging Face Hub, which is fetched into its cache (docs/hub.md).

    An ``Encoder``; from a maelift file of another architecture a ``TimmBackbone``.

    Supported are reference MAE, timm, transformers' plain ViTs, torchvision, mmsegmentation and mmpretrain MAE and ViT, and
    detectron2 ViT; bare or in a full model, whose heads and decoder are left out. The keywords are for those: attention
    heads, LayerNorm epsilon, activation and image size in pixels, which tensors don't show, or timm's name of the
    ``architecture`` that has them (default: what the checkpoint or a file beside it states, else the usual, which is
    logged); ``weights_key`` selects one of several states or modules. Raises CheckpointError: not a weights file, a pickle
    with code in it, a ViT that is not plain, or missing and unexpected keys.
    """
    file = read_backbone(
        path,
        num_heads=num_heads,
        norm_eps=norm_eps,
        image_size=image_size,
        act=act,
        architecture=architecture,
        weights_key=weights_key,
    )
    file.encoder.origin = file.provenance.line()
    return file.encoder


def read_encoder(
    path: str | Path,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    act: str | None = None,
    architecture: str | None = None,
    weights_key: str | None = None,
    drop_relative_positions: bool = False,
    preprocessing: Preprocessing | None = None,
    log: bool = True,
) -> EncoderFile:
    """``read_backbone`` where only a plain ViT will do; raises CheckpointError for a file of another architecture."""
    return read_backbone(
        path,
        num_heads=num_heads,
        norm_eps=norm_eps,
        image_size=image_size,
        act=act,
        architecture=architecture,
        weights_key=weights_key,
        drop_relative_positions=drop_relative_positions,
        preprocessing=preprocessing,
        log=log,
    ).plain(str(path))


@name_file_in_errors
def read_backbone(
    path: str | Path,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    act: str | None = None,
    architecture: str | None = None,
    weights_key: str | None = None,
    drop_relative_positions: bool = False,
    preprocessing: Preprocessing | None = None,
    log: bool = True,
) -> EncoderFile[Backbone]:
    """``load_encoder`` with the provenance; for foreign files that is only the kind of file.

    ``drop_relative_positions``: leave them out of foreign weights, which are otherwise refused. ``preprocessing`` is used
    where a maelift file has none. ``log``: log what was left out and assumed.
    """
    path = weights_file(Path(path))
    content, metadata = read_checkpoint(path)
    if CONTRACT_KEY in metadata:
        return _read_own(path, full_state(str(path), content), metadata[CONTRACT_KEY], preprocessing)
    for key, what in _NO_ENCODERS.items():
        if key in metadata:
            raise CheckpointError(f"{path}: not the weights of an encoder, but {what}. Expected an encoder file.")
    try:
        selected = select_state(str(path), content, weights_key)
        if not path.name.endswith(INDEX_SUFFIX):
            check_tensors(path, selected.state)
        converted = convert_encoder(
            selected,
            str(path),
            num_heads=num_heads,
            norm_eps=norm_eps,
            image_size=(image_size, image_size) if isinstance(image_size, int) else image_size,
            act=act,
            hints=None if architecture is None else hints_of_architecture(architecture),
            drop_relative_positions=drop_relative_positions,
            preprocessing=preprocessing,
        )
    except CheckpointError as error:
        if advice := shard_advice(path):
            raise CheckpointError(f"{error}{advice}") from error
        raise
    file = EncoderFile.of_converted(converted, str(path))
    if log:
        for note in file.notes:
            logger.info("%s: %s", path, note)
        for line in file.assumed:
            logger.warning("%s: %s", path, line)
    return file


def _read_own(
    path: Path, state: dict[str, Tensor], text: str, fallback: Preprocessing | None = None
) -> EncoderFile[Backbone]:
    contract, spec, preprocessing, provenance = read_contract(path, text, fallback)
    digest = contract.check_tensors(state, tensors_only=contract.content["version"] == 1)
    if isinstance(spec, TimmSpec):
        backbone = _timm_backbone(path, spec, preprocessing, state)
        return EncoderFile(backbone, provenance, digest, hub_name=cached_name(path))
    check_shapes(spec, state, str(path))
    check_finite(str(path), state)
    dtype = state["pos_embed"].dtype
    if dtype not in FLOATS or any(tensor.dtype not in FLOATS for tensor in state.values()):
        raise CheckpointError(f"{path}: its tensors are not all real numbers of 16, 32 or 64 bits. Get the file again.")
    encoder = load_exactly(Encoder(spec, preprocessing=preprocessing).to(dtype), state, str(path))
    return EncoderFile(encoder, provenance, digest, hub_name=cached_name(path))


def _timm_backbone(path: Path, spec: TimmSpec, preprocessing: Preprocessing, state: dict[str, Tensor]) -> TimmBackbone:
    check_finite(str(path), state)
    larger = CheckpointError(
        f"{path}: describes a model of more parameters than the {len(state)} tensors in it. Get the file again."
    )
    with limited_parameters(8 * len(state) + 1000, larger):
        with suppress(NotImplementedError), without_values():  # nothing is made that is larger than the file
            own = TimmBackbone(spec).net.state_dict()
            compare_shapes(state, {name: tuple(tensor.shape) for name, tensor in own.items()}, str(path))
        backbone = TimmBackbone(spec, preprocessing=preprocessing)
    backbone.net.load_state_dict(fitting_state(backbone.net, state, str(path)))
    return backbone.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
