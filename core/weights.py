"""The encoder file: safetensors and a contract; and the weights of others, whose names core/foreign.py knows."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .config import CheckpointError, ConfigError
from .contract import CHECKSUM, CONTENT_HASH, PROVENANCE, Metadata, content_hash, sealed, sealed_hash, shown
from .encoder import LARGEST, LARGEST_EPS, PRESETS, Encoder, EncoderSpec, Preprocessing, check_divisible
from .files import atomic_path
from .foreign import Foreign, facts_beside, from_mm, rename, settle, without_class_row, without_heads
from .tensor_files import check_finite, check_safetensors, check_tensors, check_torch, first_bytes, names_the_file

logger = logging.getLogger("maelift")

CONTRACT_KEY = "maelift.encoder"
CONTRACT_VERSION = 2
"""Up to version 1 the content hash was that of the tensors alone."""
ENCODER_FILE = "encoder.safetensors"
DECODER_FILE = "decoder.safetensors"
"""What a decoder file is called, beside the encoder file of its pretraining."""
DECODER_KEY = "maelift.decoder"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What the tensors of an encoder may be."""
DECODER_VERSION = 2
"""As of encoder files."""
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
"""What every contract says of an encoder's shape; fields that came later have their defaults in older files."""
PREPROCESSING_FIELDS = ("channel_names", "mean", "std", "value_range", "bit_depth", "interpolation")
"""What every contract says of an encoder's images."""


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


@dataclass(frozen=True)
class EncoderFile:
    """An encoder with its provenance; ``content_hash`` is the sha256 of its tensors and of how they are used.

    ``foreign``: the weights came without a contract, and the preprocessing is no more than the usual one; ``notes`` tell
    what of them was left out or changed, ``final_norm`` whether they had one.
    """

    encoder: Encoder
    provenance: Provenance
    content_hash: str
    foreign: bool = False
    notes: tuple[str, ...] = ()
    final_norm: bool = True


def save_encoder(encoder: Encoder, path: str | Path, provenance: Provenance) -> str:
    """Write the encoder file, all at once or not at all; returns its content hash."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    digest = encoder_hash(encoder)
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(
            state, temporary, metadata={CONTRACT_KEY: contract_text(encoder, provenance, digest)}
        )
    return digest


def encoder_hash(encoder: Encoder) -> str:
    """The content hash of an encoder's file: sha256 over its tensors, its spec and its preprocessing."""
    return sealed_hash(_contract(encoder), encoder.state_dict())


def contract_text(encoder: Encoder, provenance: Provenance, digest: str) -> str:
    """The contract that goes with an encoder's tensors, as JSON; ``digest`` is the content hash of its file."""
    return sealed({**_contract(encoder), PROVENANCE: asdict(provenance)}, digest)


def read_contract(
    path: str | Path, text: str, fallback: Preprocessing | None = None
) -> tuple[Metadata, EncoderSpec, Preprocessing, Provenance]:
    """The contract in a file's metadata, each field checked; its hashes are not, as there may be other tensors with it.

    ``fallback`` stands in where it has no preprocessing. Raises CheckpointError.
    """
    contract = Metadata.parse(path, CONTRACT_KEY, text)
    version = contract.version(CONTRACT_VERSION)
    hashes = (CONTENT_HASH,) if version == 1 else (CONTENT_HASH, CHECKSUM)
    contract.check_keys(("version", "spec", PROVENANCE, *hashes), ("preprocessing",))
    spec = contract.dataclass(EncoderSpec, "spec", SPEC_FIELDS)
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
    contract.hash_under(CONTENT_HASH)
    if version > 1:
        contract.check_checksum()
    return contract, spec, preprocessing, provenance


def _contract(encoder: Encoder) -> dict[str, Any]:
    """What an encoder's file says of how its tensors are used."""
    return {
        "version": CONTRACT_VERSION,
        "spec": asdict(encoder.spec),
        "preprocessing": asdict(encoder.preprocessing),
    }


def load_encoder(
    path: str | Path,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Encoder:
    """Read an encoder from a maelift file, or from the weights of others.

    Those are reference MAE, timm, transformers ViT(MAE), mmsegmentation and mmpretrain MAE and ViT, detectron2 ViT; bare
    or in a whole model, whose heads and decoder are left out. The keywords are for them: attention heads (else what a
    file beside them says, or the usual count for the width), LayerNorm epsilon (else 1e-6), and image size in pixels
    (else a square one). Raises CheckpointError: not a weights file, a pickle with code in it, or missing and unexpected
    keys.
    """
    return read_encoder(path, num_heads=num_heads, norm_eps=norm_eps, image_size=image_size).encoder


@names_the_file
def read_encoder(
    path: str | Path,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    drop_relative_positions: bool = False,
    preprocessing: Preprocessing | None = None,
) -> EncoderFile:
    """``load_encoder`` with the provenance; for foreign files that is no more than what kind of file it was.

    ``drop_relative_positions``: do without those of foreign weights, where they would otherwise be refused.
    ``preprocessing`` stands in where a maelift file has none.
    """
    path = Path(path)
    state, metadata = read_tensors(path)
    if CONTRACT_KEY in metadata:
        return _read_contract(path, state, metadata[CONTRACT_KEY], preprocessing)
    foreign = _to_our_names(str(path), state, drop_relative_positions)
    facts = facts_beside(path, foreign.method)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size or facts.image_size
    state = without_class_row(foreign.state, size)
    spec = infer_spec(
        state,
        num_heads=num_heads or facts.num_heads,
        norm_eps=norm_eps or facts.norm_eps or 1e-6,
        image_size=size,
        source=str(path),
    )
    state = _with_class_position(state, spec)
    check_shapes(spec, state, str(path))
    encoder = _load(Encoder(spec, preprocessing=preprocessing), state, str(path))
    for warning in foreign.warnings:
        logger.warning("%s: %s", path, warning)
    return EncoderFile(
        encoder,
        Provenance(method=foreign.method, parent=str(path)),
        content_hash(encoder.state_dict()),
        foreign=True,
        notes=(*foreign.notes, *foreign.warnings),
        final_norm=foreign.final_norm,
    )


@dataclass(frozen=True)
class DecoderFile:
    """The decoder that an encoder was pretrained with.

    ``state``: its tensors, ``mask_token`` and ``decoder_*``; ``encoder``: the content hash of the encoder file that it
    belongs to; ``norm_pix_loss``: it predicts patches normalised by their own mean and deviation.
    """

    state: Mapping[str, Tensor]
    num_heads: int
    norm_eps: float
    norm_pix_loss: bool
    encoder: str


def save_decoder(decoder: DecoderFile, path: str | Path) -> None:
    """Write a decoder file, all at once or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state.items()}
    contract = {
        "version": DECODER_VERSION,
        "num_heads": decoder.num_heads,
        "norm_eps": decoder.norm_eps,
        "norm_pix_loss": decoder.norm_pix_loss,
        "encoder": decoder.encoder,
    }
    text = sealed(contract, sealed_hash(contract, state))
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={DECODER_KEY: text})


def read_decoder(path: str | Path) -> DecoderFile:
    """Read a decoder file; raises CheckpointError for other files, and for tensors or metadata that were changed."""
    state, metadata = read_tensors(path)
    if DECODER_KEY not in metadata:
        raise CheckpointError(
            f"{path}: not a decoder file of maelift. Expected the decoder.safetensors of a pretraining."
        )
    contract = Metadata.parse(path, DECODER_KEY, metadata[DECODER_KEY])
    version = contract.version(DECODER_VERSION)
    fields = ("num_heads", "norm_eps", "norm_pix_loss", "encoder")
    contract.check_keys(("version", *fields, CONTENT_HASH, *((CHECKSUM,) if version > 1 else ())))
    found = DecoderFile(
        state=state,
        num_heads=contract.value("num_heads", int),
        norm_eps=contract.value("norm_eps", float),
        norm_pix_loss=contract.value("norm_pix_loss", bool),
        encoder=contract.hash_under("encoder"),
    )
    if not 1 <= found.num_heads <= LARGEST["num_heads"]:
        raise contract.error(f"num_heads={shown(found.num_heads)}: expected 1 to {LARGEST['num_heads']}")
    if not 0 < found.norm_eps <= LARGEST_EPS:
        raise contract.error(f"norm_eps={shown(found.norm_eps)}: expected a number above 0, at most {LARGEST_EPS:g}")
    contract.check_tensors(state, tensors_only=version == 1)
    check_finite(str(path), state)
    return found


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a ``.safetensors`` or torch file; raises CheckpointError, never runs code."""
    path = Path(path)
    head = first_bytes(path, "encoder weights (.safetensors or .pth)")
    if len(head) >= 9 and head[8:9] == b"{":
        return _read_safetensors(path)
    state = _tensors_in(path, read_torch_file(path))
    check_tensors(path, state)
    return state, {}


def read_torch_file(path: Path) -> object:
    """The content of a torch file as it lies there, told by its first bytes; raises CheckpointError, never runs code.

    Tensors and plain values are as they were saved; the few records that mmengine saves beside them are left empty.
    """
    head = first_bytes(path, "weights that torch.save wrote")
    if head[:2] == b"PK" or head.startswith(_TORCH_BEFORE_ZIP):
        return _read_torch(path)
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: a bare pickle, as detectron2's .pkl are, which could run code when read; nothing was run. Where you "
            "trust it, write its arrays with torch.save as a dict of tensors, and give that file."
        )
    raise CheckpointError(f"{path}: not a weights file. Expected .safetensors, or a .pth written by torch.save.")


def infer_spec(
    state: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    norm_eps: float = 1e-6,
    image_size: int | tuple[int, int] | None = None,
    source: str = "state dict",
) -> EncoderSpec:
    """Read an encoder's shape off tensors under our names; raises CheckpointError when they are not an encoder's.

    The number of heads and the epsilon leave no trace in the tensors; a grid that is not square needs ``image_size``.
    """
    needed = ["patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"]
    absent = [name for name in needed if name not in state]
    if absent:
        raise key_mismatch(source, absent, [name for name in state if not _is_ours(name)], "an encoder")
    for name, rank in zip(needed, (4, 3, 2), strict=True):
        if state[name].ndim != rank or 0 in state[name].shape:
            raise CheckpointError(
                f"{source}: {name} has the shape {tuple(state[name].shape)}: expected {rank} dimensions, none of them 0."
            )
    dim, channels, patch, patch_width = state["patch_embed.proj.weight"].shape
    if patch != patch_width:
        raise CheckpointError(f"{source}: patches of {patch}×{patch_width} pixels: only square ones are supported.")
    class_token = "cls_token" in state
    count = state["pos_embed"].shape[1]
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None:
        check_divisible(size, patch)
        patches = (size[0] // patch) * (size[1] // patch)
        if count not in (patches, patches + class_token):
            raise CheckpointError(
                f"{source}: image_size={list(size)} makes {patches} patches of {patch} pixels, and its positions are for "
                f"{count - class_token}. Give the size that it was trained at; other sizes come where it is used."
            )
    else:
        sides = [math.isqrt(patches) for patches in (count - class_token, count)]
        square = [side for side, patches in zip(sides, (count - class_token, count), strict=True) if side**2 == patches]
        if not square:
            raise CheckpointError(
                f"{source}: {count} positions are no square grid of patches. Give image_size=(height, width) in pixels."
            )
        size = (square[0] * patch, square[0] * patch)
    depth = _depth(state, source)
    return EncoderSpec(
        image_size=size,
        patch_size=patch,
        channels=channels,
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads or usual_heads(dim),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        norm_eps=norm_eps,
        class_token=class_token,
    )


def _depth(state: Mapping[str, Tensor], source: str) -> int:
    """The number of blocks; raises CheckpointError where one is left out, before as many are built as the last one's number."""
    numbers = {found[1] for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    for number in map(str, range(len(numbers))):
        if number not in numbers:
            raise CheckpointError(
                f"{source}: has {len(numbers)} blocks, but no block {number}. Expected blocks 0 to {len(numbers) - 1}."
            )
    return len(numbers)


def usual_heads(embed_dim: int) -> int:
    """The number of attention heads that ViTs of this width usually have: the presets', else 64 channels a head."""
    for preset in PRESETS.values():
        if preset.embed_dim == embed_dim:
            return preset.num_heads
    if embed_dim % 64 == 0:
        return embed_dim // 64
    raise CheckpointError(f"width {embed_dim} has no usual number of attention heads. Give num_heads.")


def key_mismatch(source: str, missing: Iterable[str], unexpected: Iterable[str], what: str) -> CheckpointError:
    """The error for tensors that are not those of ``what``, listing missing and unexpected keys."""
    parts = [f"{source}: not the weights of {what}."]
    for label, names in (("Missing", list(missing)), ("Unexpected", list(unexpected))):
        listed = ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        parts.append(f"{label} ({len(names)}): {listed or 'none'}.")
    return CheckpointError(" ".join(parts))


def _read_contract(
    path: Path, state: dict[str, Tensor], text: str, fallback: Preprocessing | None = None
) -> EncoderFile:
    contract, spec, preprocessing, provenance = read_contract(path, text, fallback)
    digest = contract.check_tensors(state, tensors_only=contract.content["version"] == 1)
    check_shapes(spec, state, str(path))
    check_finite(str(path), state)
    dtype = state["pos_embed"].dtype
    if dtype not in FLOATS or any(tensor.dtype not in FLOATS for tensor in state.values()):
        raise CheckpointError(f"{path}: its tensors are not all real numbers of 16, 32 or 64 bits. Get the file again.")
    encoder = _load(Encoder(spec, preprocessing=preprocessing).to(dtype), state, str(path))
    return EncoderFile(encoder, provenance, digest)


def check_shapes(spec: EncoderSpec, state: Mapping[str, Tensor], source: str, prefix: str = "") -> None:
    """Raise CheckpointError unless tensors are those of an encoder of this shape, before one is built.

    ``prefix``: the encoder's names begin with it, and other names are left alone.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    blocks = {int(found[1]) for name in own if (found := re.match(r"blocks\.(\d{1,9})\.", name))}
    if len(blocks) != spec.depth:
        raise CheckpointError(
            f"{source}: describes an encoder of depth={spec.depth}, and has the tensors of {len(blocks)} blocks. Get the file "
            "again."
        )
    _compare(own, encoder_shapes(spec), source)


def encoder_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """The names and shapes of an encoder's tensors, without building one."""
    dim, hidden = spec.embed_dim, int(spec.embed_dim * spec.mlp_ratio)
    block = {
        "norm1.weight": (dim,),
        "norm1.bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "norm2.weight": (dim,),
        "norm2.bias": (dim,),
        "mlp.fc1.weight": (hidden, dim),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden),
        "mlp.fc2.bias": (dim,),
    }
    return {
        **({"cls_token": (1, 1, dim)} if spec.class_token else {}),
        "pos_embed": (1, spec.num_prefix_tokens + spec.num_patches, dim),
        "patch_embed.proj.weight": (dim, spec.channels, spec.patch_size, spec.patch_size),
        "patch_embed.proj.bias": (dim,),
        **{f"blocks.{number}.{name}": shape for number in range(spec.depth) for name, shape in block.items()},
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }


def _load(encoder: Encoder, state: Mapping[str, Tensor], source: str) -> Encoder:
    _compare(state, {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}, source)
    encoder.load_state_dict(dict(state))
    return encoder


def _compare(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], source: str) -> None:
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    unexpected += [
        f"{name} of shape {tuple(state[name].shape)} where {shape} is due"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if missing or unexpected:
        raise key_mismatch(source, missing, unexpected, "an encoder")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    check_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{path}: a damaged safetensors file ({shown(str(error))}).") from error
    check_tensors(path, state)
    return state, metadata


class _Inert:
    """Stands for records that training scripts keep beside the weights: takes whatever they hold, and does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


_TORCH_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF"
"""How files of torch.save began before they were zip archives: a pickle of torch's magic number."""
_RECORDS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "builtins.getattr",
)
"""What mmengine's checkpoints hold beside tensors: losses of the training. None of it is built, _Inert takes its place."""


def _read_torch(path: Path) -> object:
    check_torch(path)
    try:
        # Parsed arguments are a plain record, safe to build.
        known = torch.serialization.safe_globals([argparse.Namespace, *((_Inert, name) for name in _RECORDS)])
        with known, path.open("rb") as file:  # given a path, newer versions of torch go by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path}: holds more than tensors{f' ({found[1]})' if found else ''}, which could run code when read; nothing "
            "was run. Save only the state dict: torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # whatever a changed byte leads to: this reads what others wrote, and runs none of it
        reason = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise CheckpointError(f"{path}: a damaged or foreign torch file ({reason}).") from error


def _tensors_in(path: Path, content: object) -> dict[str, Tensor]:
    """The state dict in a checkpoint: itself, or what it keeps under 'model', 'state_dict' or 'module'."""
    for key in ("model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}. Expected a state dict of tensors.")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path}: holds no tensors. Expected a state dict.")
    for prefix in ("module.", "model.", "encoder.", "backbone."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


_OURS = re.compile(r"(cls_token|pos_embed|patch_embed\.proj\..*|blocks\.\d+\..*|norm\.(weight|bias))")


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


def _to_our_names(source: str, state: dict[str, Tensor], drop_relative_positions: bool) -> Foreign:
    """Foreign tensors under our names, without decoders, classifiers and other heads."""
    with_decoder = any(name.startswith("decoder") for name in state)
    state, notes, prefix = without_heads(state)
    if any("embeddings.patch_embeddings" in name for name in state):
        method = "transformers ViTMAE" if with_decoder else "transformers ViT"
        foreign, dense = Foreign(method, _from_transformers(source, state), notes), False
    elif "patch_embed.projection.weight" in state:
        foreign, dense = from_mm(state, notes), True
    elif prefix.endswith("net."):
        foreign, dense = Foreign("detectron2 ViT", state, notes), True
    else:
        bare = "cls_token" not in state and "norm.weight" not in state
        method = "reference MAE" if with_decoder else "plain ViT" if bare else "timm ViT"
        foreign, dense = Foreign(method, state, notes), bare or prefix == "backbone."
    return settle(source, foreign, dense=dense, drop_relative_positions=drop_relative_positions)


_LAYER_NAMES = (
    ("norm1.*", "layernorm_before.*", "layernorm_before.*"),
    ("norm2.*", "layernorm_after.*", "layernorm_after.*"),
    ("attn.query.*", "attention.attention.query.*", "attention.q_proj.*"),
    ("attn.key.*", "attention.attention.key.*", "attention.k_proj.*"),
    ("attn.value.*", "attention.attention.value.*", "attention.v_proj.*"),
    ("attn.proj.*", "attention.output.dense.*", "attention.o_proj.*"),
    ("mlp.fc1.*", "intermediate.dense.*", "mlp.fc1.*"),
    ("mlp.fc2.*", "output.dense.*", "mlp.fc2.*"),
)
_TRANSFORMERS_NAMES = (
    ("cls_token", "embeddings.cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings", "embeddings.position_embeddings"),
    ("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*", "embeddings.patch_embeddings.projection.*"),
    ("norm.*", "layernorm.*", "layernorm.*"),
    *((f"blocks.*.{ours}", f"encoder.layer.*.{old}", f"layers.*.{new}") for ours, old, new in _LAYER_NAMES),
    *(
        (f"decoder_blocks.*.{ours}", f"decoder.decoder_layers.*.{old}", f"decoder.decoder_layers.*.{new}")
        for ours, old, new in _LAYER_NAMES
    ),
    *(
        (f"decoder_blocks.*.{ours}", f"decoder.decoder_encoder.layer.*.{old}", f"decoder.decoder_encoder.layer.*.{new}")
        for ours, old, new in _LAYER_NAMES  # as 5.x saves them
    ),
    *((name, f"decoder.{name}", f"decoder.{name}") for name in ("mask_token", "decoder_pos_embed")),
    *(
        (f"{name}.*", f"decoder.{name}.*", f"decoder.{name}.*")
        for name in ("decoder_embed", "decoder_norm", "decoder_pred")
    ),
)
"""Our names, and transformers' as 4.x and as 5.x have them; "*" stands for a block's number, and for weight or bias."""


def to_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's tensors, and a decoder's, under the names of transformers 4.x, which 5.x reads as well."""
    table = [(ours, old) for ours, old, _ in _TRANSFORMERS_NAMES]
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = {name: tensor}
        if ".attn.qkv." in name:
            split = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            parts = {name.replace(".qkv.", f".{part}."): piece.contiguous() for part, piece in split}
        renamed |= {rename(ours, table): piece for ours, piece in parts.items()}
    return renamed


def from_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_transformers_names``, for the names of 4.x and of 5.x; those that it doesn't know stay."""
    table = [(theirs, ours) for ours, old, new in _TRANSFORMERS_NAMES for theirs in (old, new)]
    renamed = {rename(name.removeprefix("vit."), table): tensor for name, tensor in state.items()}
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name, name.replace(".query.", ".key."), name.replace(".query.", ".value.")]
        if all(part in renamed for part in parts):
            renamed[name.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _from_transformers(source: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = from_transformers_names(state)
    for name in renamed:
        if ".attn.query." in name:
            parts = [name.replace(".query.", f".{part}.") for part in ("key", "value")]
            raise key_mismatch(source, [part for part in parts if part not in renamed], [], "an encoder")
    return renamed


def _with_class_position(state: dict[str, Tensor], spec: EncoderSpec) -> dict[str, Tensor]:
    """timm can leave the class token without a position of its own, which equals a position of zero."""
    positions = state["pos_embed"]
    if not spec.class_token or positions.shape[1] != spec.num_patches:
        return state
    return {**state, "pos_embed": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}
