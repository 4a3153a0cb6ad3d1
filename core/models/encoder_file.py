"""The encoder file: safetensors and a contract; and the weights of others, whose names core/models/weight_formats.py knows."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..files import atomic_path
from ..public_names import public_name
from .contract import CHECKSUM, CONTENT_HASH, PROVENANCE, Metadata, content_hash, sealed, sealed_hash, shown
from .encoder import LARGEST, LARGEST_EPS, PRESETS, Encoder, EncoderSpec
from .preprocessing import Preprocessing
from .tensor_files import check_finite, check_safetensors, check_tensors, check_torch, first_bytes, names_the_file
from .weight_formats import ForeignWeights, from_mm, normalize_positions, normalize_weights, rename, without_heads
from .weight_hints import ConfigHints, hints_of, hints_of_architecture
from .weight_kinds import HEAD, refuse_other_kinds
from .weight_names import (
    flat_kernel,
    from_timm,
    from_torchvision,
    from_transformers,
    merge_projections,
    refuse_what_has_no_place,
)
from .weight_parts import (
    INDEX_SUFFIX,
    Chosen,
    choose,
    command,
    need_real_numbers,
    part_advice,
    parts_of,
    weights_file,
    whole_state,
    without_wrappers,
)

logger = logging.getLogger("maelift")

CONTRACT_KEY = "maelift.encoder"
CONTRACT_VERSION = 2
"""Up to version 1 the content hash was that of the tensors alone."""
ENCODER_FILE = "encoder.safetensors"
DECODER_FILE = "decoder.safetensors"
"""What a decoder file is called, beside the encoder file of its pretraining."""
DECODER_KEY = "maelift.decoder"
_NO_ENCODERS = {
    DECODER_KEY: "the decoder of a pretraining, whose encoder.safetensors lies beside it",
    "maelift.model": "a trained model of maelift, made by transfer (of a classifier, encoder.safetensors lies beside it)",
}
"""What our other files are, by the key of their metadata."""
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
    what of them was chosen, left out or changed, ``assumed`` what nothing says of them, ``final_norm`` whether they had one.
    """

    encoder: Encoder
    provenance: Provenance
    content_hash: str
    foreign: bool = False
    notes: tuple[str, ...] = ()
    final_norm: bool = True
    assumed: tuple[str, ...] = ()


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
    if contract.content[CONTENT_HASH] != "":  # a graph may be of an encoder that has no file
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
    act: str | None = None,
    architecture: str | None = None,
    weights_key: str | None = None,
) -> Encoder:
    """Read an encoder from a maelift file, or from the weights of others: a file, or the folder that they are in.

    Those are reference MAE, timm, transformers' plain ViTs, torchvision, mmsegmentation and mmpretrain MAE and ViT,
    detectron2 ViT; bare or in a whole model, whose heads and decoder are left out. The keywords are for them: attention
    heads, LayerNorm epsilon, activation and image size in pixels, which tensors don't show, or timm's name of the
    ``architecture`` that has them (else what the checkpoint or a file beside it says, or the usual, which is logged);
    ``weights_key``, which of several states or modules. Raises
    CheckpointError: not a weights file, a pickle with code in it, a ViT that is not plain, or missing and unexpected keys.
    """
    return read_encoder(
        path,
        num_heads=num_heads,
        norm_eps=norm_eps,
        image_size=image_size,
        act=act,
        architecture=architecture,
        weights_key=weights_key,
    ).encoder


@names_the_file
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
    """``load_encoder`` with the provenance; for foreign files that is no more than what kind of file it was.

    ``drop_relative_positions``: do without those of foreign weights, where they would otherwise be refused.
    ``preprocessing`` stands in where a maelift file has none. ``log``: log what was left out and assumed.
    """
    path = weights_file(Path(path))
    content, metadata = read_checkpoint(path)
    if CONTRACT_KEY in metadata:
        return _read_contract(path, whole_state(str(path), content), metadata[CONTRACT_KEY], preprocessing)
    for key, what in _NO_ENCODERS.items():
        if key in metadata:
            raise CheckpointError(f"{path}: not the weights of an encoder, but {what}. Expected an encoder file.")
    try:
        chosen = choose(str(path), content, weights_key)
        if not path.name.endswith(INDEX_SUFFIX):
            check_tensors(path, chosen.state)
        file = encoder_of(
            chosen,
            str(path),
            num_heads=num_heads,
            norm_eps=norm_eps,
            image_size=(image_size, image_size) if isinstance(image_size, int) else image_size,
            act=act,
            said=None if architecture is None else hints_of_architecture(architecture),
            drop_relative_positions=drop_relative_positions,
            preprocessing=preprocessing,
        )
    except CheckpointError as error:
        if advice := part_advice(path):
            raise CheckpointError(f"{error}{advice}") from error
        raise
    if log:
        for note in file.notes:
            logger.info("%s: %s", path, note)
        for line in file.assumed:
            logger.warning("%s: %s", path, line)
    return file


def encoder_of(
    chosen: Chosen,
    source: str,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: tuple[int, int] | None = None,
    act: str | None = None,
    said: ConfigHints | None = None,
    drop_relative_positions: bool = False,
    preprocessing: Preprocessing | None = None,
) -> EncoderFile:
    """The encoder that the tensors of others are; ``source``: their file, which errors name.

    ``said``: what is known of them; None: what their checkpoint and the files beside it say. The keywords go before that.
    """
    foreign, dense, doubt = _to_our_names(source, chosen)
    said = hints_of(Path(source), chosen.records, foreign.method) if said is None else said
    said = _fitting(source, said, foreign.state)
    foreign = normalize_weights(
        source,
        foreign,
        dense=dense,
        drop_relative_positions=drop_relative_positions,
        final_norm_said=said.final_norm,
    )
    refuse_what_has_no_place(source, foreign.state)
    if said.refusal:
        raise CheckpointError(f"{source}: {said.refusal}.")
    if doubt and said.act is None and not (act and doubt == SIGLIP):
        example = "vit_base_patch16_siglip_224" if doubt == SIGLIP else "eva_large_patch14_196"
        raise CheckpointError(
            f"{source}: {doubt}, which tensors don't show. Give {'act, or ' if doubt == SIGLIP else ''}the name that timm has "
            f"for it, as: {command(source, f'architecture={example}')}"
        )
    state = _with_flat_kernel(source, foreign.state)
    converted = need_real_numbers(source, state)
    check_finite(source, state)
    patch = state["patch_embed.proj.weight"].shape[-1]
    size, doubts = _said_size(said, image_size, state, patch)
    grid = normalize_positions(source, state, size, patch=patch, dense=dense)
    spec = infer_spec(
        grid.state,
        num_heads=num_heads or said.num_heads or _usual_heads_of(source, grid.state, foreign.method),
        norm_eps=norm_eps or said.norm_eps or 1e-6,
        image_size=grid.image_size,
        act=act or said.act or "gelu",
        source=source,
    )
    if said.depth not in (None, spec.depth):
        raise CheckpointError(
            f"{source}: has {spec.depth} blocks, and {said.sources[-1]} says {said.depth}: a part of the weights is missing, or "
            "what says so belongs to others. Get the file again, or move it away from that one."
        )
    check_shapes(spec, grid.state, source)
    encoder = _load(Encoder(spec, preprocessing=preprocessing), grid.state, source)
    given = {"num_heads": num_heads, "norm_eps": norm_eps, "act": act, "image_size": image_size}
    notes = (*chosen.notes, *foreign.notes, *converted, *_taken_from(said, given), *foreign.warnings)
    return EncoderFile(
        encoder,
        Provenance(method=foreign.method, parent=public_name(source)),
        content_hash(encoder.state_dict()),
        foreign=True,
        notes=notes,
        assumed=(*doubts, *grid.notes, *_assumed(spec, said, given)),
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
    content, metadata = read_checkpoint(path)
    state = _all_tensors(path, content)
    return (state if _is_safetensors(path) else without_wrappers(state)), metadata


def read_checkpoint(path: str | Path) -> tuple[object, dict[str, str]]:
    """What a ``.safetensors`` or torch file holds, or an index of such, and its metadata; never runs code.

    Raises CheckpointError for another kind of file, saying which it is, and for tensors that are not plain.
    """
    path = Path(path)
    if path.name.endswith(INDEX_SUFFIX):
        parts = [_all_tensors(part, read_checkpoint(part)[0]) for part in parts_of(path)]
        return {name: tensor for part in parts for name, tensor in part.items()}, {}
    head = first_bytes(path, "encoder weights (.safetensors or .pth)")
    if len(head) >= 9 and head[8:9] == b"{":
        return _read_safetensors(path)
    return read_torch_file(path), {}


def read_torch_file(path: Path) -> object:
    """The content of a torch file as it lies there, told by its first bytes; raises CheckpointError, never runs code.

    Tensors and plain values are as they were saved; the few records that mmengine saves beside them are left empty.
    """
    head = first_bytes(path, "weights that torch.save wrote", HEAD)
    refuse_other_kinds(path, head)
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
    act: str = "gelu",
    source: str = "state dict",
) -> EncoderSpec:
    """Read an encoder's shape off tensors under our names; raises CheckpointError when they are not an encoder's.

    The number of heads, the epsilon and the activation leave no trace in the tensors; a grid that is not square needs
    ``image_size``.
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
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid = normalize_positions(source, dict(state), size, patch=patch, dense=False)
    return EncoderSpec(
        image_size=grid.image_size,
        patch_size=patch,
        channels=channels,
        embed_dim=dim,
        depth=_depth(state, source),
        num_heads=num_heads or usual_heads(dim),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        norm_eps=norm_eps,
        class_token="cls_token" in state,
        act=act,
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
    """The number of attention heads that ViTs of this width usually have, where it is one of the presets'."""
    for preset in PRESETS.values():
        if preset.embed_dim == embed_dim:
            return preset.num_heads
    raise CheckpointError(f"width {embed_dim} has no usual number of attention heads. Give num_heads.")


_KNOWN_HEADS = {384: (12, 6), 512: (8,), 640: (10,), 1152: (16, 18), 1408: (16,), 1536: (24,), 1664: (16,)}
"""Heads that published ViTs of these widths have, of which none is usual enough to be assumed."""


def _usual_heads_of(source: str, state: Mapping[str, Tensor], method: str) -> int | None:
    """The usual number of heads for the width; raises CheckpointError, naming some, where several are in use."""
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4:
        return None
    width = len(kernel)
    common = {preset.embed_dim: preset.num_heads for preset in PRESETS.values()}
    if width in common and not ("MoCo" in method and width == 384):  # MoCo v3's ViT-S has 12 heads of 32 channels
        return common[width]
    known = _KNOWN_HEADS.get(width, ())
    other = [width // channels for channels in (64, 32, 72, 80, 88, 96, 128, 48, 16) if width % channels == 0]
    some = (
        list(dict.fromkeys([*known, *other]))[:3]
        or [number for number in (8, 6, 4, 3, 2, 1) if width % number == 0][:1]
    )
    more = f" (or {', '.join(map(str, some[1:]))})" if some[1:] else ""
    raise CheckpointError(
        f"{source}: nothing says its number of attention heads, which tensors don't show, and none is usual for a width of "
        f"{width}. Look it up where the weights are from, and give it: {command(source, f'num_heads={some[0]}')}{more}; or give "
        "timm's name of the model, architecture=..."
    )


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


def _all_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors of a file's state under the names that they have; raises CheckpointError for those that are not plain."""
    state = whole_state(str(path), content)
    if not path.name.endswith(INDEX_SUFFIX):  # which is smaller than what it stands for
        check_tensors(path, state)
    return state


def _is_safetensors(path: Path) -> bool:
    if path.name.endswith(INDEX_SUFFIX):
        return True
    return first_bytes(path, "encoder weights")[8:9] == b"{"


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


_OURS = re.compile(r"(cls_token|pos_embed|patch_embed\.proj\..*|blocks\.\d+\..*|norm\.(weight|bias))")


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


SIGLIP = "it is like SigLIP's ViTs, of which some have the exact GELU (act=gelu) and some its tanh form (act=gelu_tanh)"
_EVA = "its names are those of EVA and BEiT, whose blocks may norm after each layer or have rotary positions"
_UNBIASED = "its queries and keys have no biases, as in some ViTs whose blocks norm after each layer"


def _doubt(state: Mapping[str, Tensor]) -> str | None:
    """What tensors under timm's names leave open of a model; None where they are those of a plain ViT."""
    if any(re.fullmatch(r"blocks\.\d+\.(attn\.[qv]_bias|attn\.q_proj\.weight|gamma_[12])", name) for name in state):
        return _EVA
    if "blocks.0.attn.qkv.weight" in state and not any(name.endswith(".attn.qkv.bias") for name in state):
        return _UNBIASED
    return SIGLIP if any(name.startswith("attn_pool.") for name in state) else None


def _to_our_names(source: str, chosen: Chosen) -> tuple[ForeignWeights, bool, str | None]:
    """Foreign tensors under our names, without decoders, classifiers and other heads.

    And whether they are a backbone's, and what of the model they leave open.
    """
    state, prefix = dict(chosen.state), chosen.prefix
    with_decoder = any(name.startswith("decoder") for name in (*state, *chosen.outside.values()))
    state, notes, unknown = without_heads(state, chosen.outside)
    if unknown:
        raise CheckpointError(
            f"{key_mismatch(source, [], unknown, 'an encoder')} To leave them out, take only the module with the ViT: "
            f"{command(source, 'weights_key=' + prefix.removesuffix('.'))}"
        )
    dense, doubt = False, None
    if any(name.startswith("embeddings.") for name in state):
        method = "transformers ViTMAE" if with_decoder else "transformers ViT"
        foreign = ForeignWeights(method, from_transformers(state), notes)
        doubt = SIGLIP if "embeddings.patch_embedding.bias" in state and "cls_token" not in foreign.state else None
    elif "patch_embed.projection.weight" in state:
        foreign, dense = from_mm(state, notes), True
    elif any(name.startswith("conv_proj.") for name in state):
        foreign = ForeignWeights("torchvision ViT", from_torchvision(state), notes)
    elif prefix.endswith("net.") and "backbone" in prefix:
        foreign, dense = ForeignWeights("detectron2 ViT", state, notes), True
    else:
        bare = "cls_token" not in state and "norm.weight" not in state
        momentum = re.search(r"(base_encoder|momentum_encoder)\.", prefix)
        method = "reference MAE" if with_decoder else "MoCo v3" if momentum else "plain ViT" if bare else "timm ViT"
        foreign, dense = ForeignWeights(method, from_timm(state), notes), bare or "backbone." in prefix
        doubt = _doubt(chosen.state)
    merged, more = merge_projections(foreign.state)
    return replace(foreign, state=merged, notes=(*foreign.notes, *more)), dense, doubt


def _with_flat_kernel(source: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    needed = ["patch_embed.proj.weight", "pos_embed"]
    if absent := [name for name in needed if name not in state]:
        raise key_mismatch(source, absent, [name for name in state if not _is_ours(name)], "an encoder")
    positions = state["pos_embed"]
    kernel = flat_kernel(source, state[needed[0]], positions.shape[-1] if positions.ndim else None)
    return {**state, needed[0]: kernel}


def _fitting(source: str, said: ConfigHints, state: Mapping[str, Tensor]) -> ConfigHints:
    """What is said of the weights; nothing, with a warning, where it is of a model of another width."""
    kernel = state.get("patch_embed.proj.weight")
    if said.embed_dim is None or kernel is None or not kernel.ndim or len(kernel) == said.embed_dim:
        return said
    if said.given:
        raise CheckpointError(
            f"{source}: {said.sources[0]} has a width of {said.embed_dim}, and the weights have {len(kernel)}. Give the name of "
            "their own architecture."
        )
    logger.warning(
        "%s: %s says a width of %d, and the weights have %d: nothing of it is used",
        source,
        said.sources[-1] if said.sources else "what lies beside",
        said.embed_dim,
        len(kernel),
    )
    return ConfigHints()


def _said_size(
    said: ConfigHints, given: tuple[int, int] | None, state: Mapping[str, Tensor], patch: int
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """The image size that is given, or said and fits the positions; and that what is said doesn't fit, where so."""
    if given is not None or said.image_size is None:
        return given, ()
    height, width = said.image_size
    patches = (height // patch) * (width // patch)
    shape = state["pos_embed"].shape
    if (
        len(shape) == 3
        and shape[1] in (patches, patches + 1)
        and height % patch == 0
        and width % patch == 0
        and patches
    ):
        return said.image_size, ()
    return None, (
        f"{said.sources[-1]} says images of {height}×{width} pixels, which its positions are not for: not used",
    )


def _taken_from(said: ConfigHints, given: Mapping[str, object]) -> tuple[str, ...]:
    values = {"num_heads": said.num_heads, "norm_eps": said.norm_eps, "act": said.act}
    taken = [f"{key} {value}" for key, value in values.items() if value is not None and given[key] is None]
    return (f"{', '.join(taken)}: said by {' and '.join(said.sources)}",) if taken and said.sources else ()


def _assumed(spec: EncoderSpec, said: ConfigHints, given: Mapping[str, object]) -> tuple[str, ...]:
    """What neither the tensors nor the user nor a file says."""
    texts = {
        "num_heads": f"{spec.num_heads} attention heads",
        "norm_eps": f"an epsilon of {spec.norm_eps:g}",
        "act": "the exact GELU",
    }
    unsaid = {key: text for key, text in texts.items() if given[key] is None and getattr(said, key) is None}
    if not unsaid:
        return ()
    return (f"assumed, since tensors don't show it: {' and '.join(unsaid.values())}; else give {', '.join(unsaid)}",)


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
