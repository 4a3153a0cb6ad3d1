"""The encoder file: safetensors and a contract; and the state dicts of others (reference MAE, timm, transformers)."""

from __future__ import annotations

import argparse
import hashlib
import json
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

from .config import CheckpointError
from .encoder import PRESETS, Encoder, EncoderSpec, Preprocessing
from .files import atomic_path

CONTRACT_KEY = "maelift.encoder"
CONTRACT_VERSION = 1


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


@dataclass(frozen=True)
class EncoderFile:
    """An encoder with its provenance; ``content_hash`` is the sha256 of its tensors."""

    encoder: Encoder
    provenance: Provenance
    content_hash: str


def save_encoder(encoder: Encoder, path: str | Path, provenance: Provenance) -> str:
    """Write the encoder file, all at once or not at all; returns the content hash of its tensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    digest = content_hash(state)
    contract = {
        "version": CONTRACT_VERSION,
        "spec": asdict(encoder.spec),
        "preprocessing": asdict(encoder.preprocessing),
        "provenance": asdict(provenance),
        "content_hash": digest,
    }
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={CONTRACT_KEY: json.dumps(contract)})
    return digest


def load_encoder(
    path: str | Path,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Encoder:
    """Read an encoder from a maelift file, or from a reference MAE, timm ViT or transformers ViT(MAE) state dict.

    The keywords are for foreign files, which do not say them: attention heads (else the usual count for the width),
    LayerNorm epsilon (else 1e-6), and image size in pixels (else a square one). Decoder and classifier weights are
    left out. Raises CheckpointError: not a weights file, a pickle with code in it, or missing and unexpected keys.
    """
    return read_encoder(path, num_heads=num_heads, norm_eps=norm_eps, image_size=image_size).encoder


def read_encoder(
    path: str | Path,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> EncoderFile:
    """``load_encoder`` with the provenance; for foreign files that is no more than what kind of file it was."""
    state, metadata = read_tensors(path)
    if CONTRACT_KEY in metadata:
        return _read_contract(Path(path), state, metadata[CONTRACT_KEY])
    method, state = _to_our_names(str(path), state)
    heads, eps = _transformers_config(Path(path)) if method.startswith("transformers") else (None, None)
    spec = infer_spec(
        state,
        num_heads=num_heads or heads,
        norm_eps=norm_eps or eps or 1e-6,
        image_size=image_size,
        source=str(path),
    )
    state = _with_class_position(state, spec)
    encoder = _load(Encoder(spec), state, str(path))
    return EncoderFile(encoder, Provenance(method=method, parent=str(path)), content_hash(encoder.state_dict()))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a ``.safetensors`` or torch file; raises CheckpointError, never runs code."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Expected encoder weights (.safetensors or .pth).")
    with path.open("rb") as file:
        head = file.read(16)
    if len(head) >= 9 and head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _tensors_in(path, _read_torch(path)), {}
    raise CheckpointError(f"{path}: not a weights file. Expected .safetensors, or a .pth written by torch.save.")


def content_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    dim, channels, patch, patch_width = state["patch_embed.proj.weight"].shape
    if patch != patch_width:
        raise CheckpointError(f"{source}: patches of {patch}×{patch_width} pixels: only square ones are supported.")
    class_token = "cls_token" in state
    count = state["pos_embed"].shape[1]
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is None:
        sides = [math.isqrt(patches) for patches in (count - class_token, count)]
        square = [side for side, patches in zip(sides, (count - class_token, count), strict=True) if side**2 == patches]
        if not square:
            raise CheckpointError(
                f"{source}: {count} positions are no square grid of patches. Give image_size=(height, width) in pixels."
            )
        size = (square[0] * patch, square[0] * patch)
    depth = 1 + max(int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name)))
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
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        parts.append(f"{label} ({len(names)}): {shown or 'none'}.")
    return CheckpointError(" ".join(parts))


def _read_contract(path: Path, state: dict[str, Tensor], text: str) -> EncoderFile:
    try:
        contract = json.loads(text)
        if contract["version"] != CONTRACT_VERSION:
            raise CheckpointError(
                f"{path}: contract version {contract['version']}, this maelift reads version {CONTRACT_VERSION}. "
                "Update maelift."
            )
        spec = EncoderSpec.from_json(contract["spec"])
        preprocessing = Preprocessing.from_json(contract["preprocessing"])
        provenance = Provenance(**contract["provenance"])
        expected_hash = contract["content_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its '{CONTRACT_KEY}' metadata can't be read ({error}).") from error
    digest = content_hash(state)
    if digest != expected_hash:
        raise CheckpointError(
            f"{path}: the tensors are not those that the file was written with (content hash {digest[:12]}, expected "
            f"{expected_hash[:12]}). The file was changed or damaged; get it anew."
        )
    dtype = state["pos_embed"].dtype if "pos_embed" in state else torch.float32
    encoder = _load(Encoder(spec, preprocessing=preprocessing).to(dtype), state, str(path))
    return EncoderFile(encoder, provenance, digest)


def _load(encoder: Encoder, state: Mapping[str, Tensor], source: str) -> Encoder:
    wanted = encoder.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    unexpected += [
        f"{name} of shape {tuple(state[name].shape)} where {tuple(wanted[name].shape)} is due"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if missing or unexpected:
        raise key_mismatch(source, missing, unexpected, "an encoder")
    encoder.load_state_dict(dict(state))
    return encoder


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: a damaged safetensors file ({error}).") from error


def _read_torch(path: Path) -> object:
    try:
        # Training scripts commonly keep their parsed arguments beside the weights: a plain record, safe to build.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path}: holds more than tensors{f' ({found[1]})' if found else ''}, which could run code when read; nothing "
            "was run. Save only the state dict: torch.save(model.state_dict(), ...)."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
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


_NOT_ENCODER = re.compile(r"(decoder_.*|decoder\..*|mask_token|head\..*|head_drop.*|pooler\..*|classifier\..*)")
_OURS = re.compile(r"(cls_token|pos_embed|patch_embed\.proj\..*|blocks\.\d+\..*|norm\.(weight|bias))")


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


def _to_our_names(source: str, state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Foreign tensors under our names, without decoders and classifiers, and what kind of file they came from."""
    with_decoder = any(name.startswith("decoder") for name in state)
    if any("embeddings.patch_embeddings" in name for name in state):
        method = "transformers ViTMAE" if with_decoder else "transformers ViT"
        return method, _from_transformers(source, state)
    method = "reference MAE" if with_decoder else "timm ViT"
    return method, {name: tensor for name, tensor in state.items() if not _NOT_ENCODER.fullmatch(name)}


_TRANSFORMERS_NAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)", r"blocks.\1.attn.query.\2"),
    (r"layers\.(\d+)\.attention\.k_proj\.(weight|bias)", r"blocks.\1.attn.key.\2"),
    (r"layers\.(\d+)\.attention\.v_proj\.(weight|bias)", r"blocks.\1.attn.value.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.attention\.o_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"layers\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
)
"""transformers' names, as 4.x and as 5.x write them, and ours."""


def _from_transformers(source: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = name.removeprefix("vit.")
        if _NOT_ENCODER.fullmatch(bare):
            continue
        for pattern, ours in _TRANSFORMERS_NAMES:
            if found := re.fullmatch(pattern, bare):
                renamed[found.expand(ours)] = tensor
                break
        else:
            renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name, name.replace(".query.", ".key."), name.replace(".query.", ".value.")]
        absent = [part for part in parts if part not in renamed]
        if absent:
            raise key_mismatch(source, absent, [], "an encoder")
        renamed[name.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _transformers_config(path: Path) -> tuple[int | None, float | None]:
    """Heads and epsilon from the ``config.json`` beside a transformers file.

    ViTMAE's configurations say 1e-12, a default that the weights were not trained with: theirs stays 1e-6.
    """
    file = path.parent / "config.json"
    try:
        config = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        config = {}
    eps = None if config.get("model_type") == "vit_mae" else config.get("layer_norm_eps")
    return config.get("num_attention_heads"), eps


def _with_class_position(state: dict[str, Tensor], spec: EncoderSpec) -> dict[str, Tensor]:
    """timm can leave the class token without a position of its own, which equals a position of zero."""
    positions = state["pos_embed"]
    if not spec.class_token or positions.shape[1] != spec.num_patches:
        return state
    return {**state, "pos_embed": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}
