"""Shapes of an encoder's tensors: those that a spec expects, and the spec inferred from a state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import CheckpointError
from .contract import shown
from .encoder import Encoder
from .encoder_spec import PRESETS, EncoderSpec
from .position_grid import normalize_positions
from .weight_files import import_command


def infer_spec(
    state: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    norm_eps: float = 1e-6,
    image_size: int | tuple[int, int] | None = None,
    act: str = "gelu",
    source: str = "state dict",
) -> EncoderSpec:
    """Infer an encoder's shape from tensors under our names; raises CheckpointError if they are not an encoder's.

    The number of heads, the epsilon and the activation can't be inferred from tensors; a grid that is not square needs
    ``image_size``.
    """
    needed = ["patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"]
    absent = [name for name in needed if name not in state]
    if absent:
        raise key_mismatch(source, absent, [name for name in state if not is_our_name(name)], "an encoder")
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
    """The number of blocks; raises CheckpointError if one is missing, before any is built."""
    numbers = {found[1] for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    for number in map(str, range(len(numbers))):
        if number not in numbers:
            raise CheckpointError(
                f"{source}: has {len(numbers)} blocks, but no block {number}. Expected blocks 0 to {len(numbers) - 1}."
            )
    return len(numbers)


def usual_heads(embed_dim: int) -> int:
    """The number of attention heads of the preset of this width; raises CheckpointError if there is none."""
    for preset in PRESETS.values():
        if preset.embed_dim == embed_dim:
            return preset.num_heads
    raise CheckpointError(f"width {embed_dim} has no usual number of attention heads. Give num_heads.")


_KNOWN_HEADS = {384: (12, 6), 512: (8,), 640: (10,), 1152: (16, 18), 1408: (16,), 1536: (24,), 1664: (16,)}
"""Heads of published ViTs by width, none of which is common enough to be assumed."""


def infer_heads(source: str, state: Mapping[str, Tensor], method: str) -> int | None:
    """The usual number of heads for the width; raises CheckpointError with suggestions if there is none."""
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
        f"{source}: its number of attention heads is unknown (tensors don't show it), and none is usual for a width of "
        f"{width}. Look it up where the weights are from, and give it: {import_command(source, f'num_heads={some[0]}')}{more}; "
        "or give timm's name of the model, architecture=..."
    )


def key_mismatch(source: str, missing: Iterable[str], unexpected: Iterable[str], what: str) -> CheckpointError:
    """The error for tensors that are not those of ``what``, with missing and unexpected keys."""
    parts = [f"{source}: not the weights of {what}."]
    for label, names in (("Missing", list(missing)), ("Unexpected", list(unexpected))):
        listed = ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        parts.append(f"{label} ({len(names)}): {listed or 'none'}.")
    return CheckpointError(" ".join(parts))


def check_shapes(spec: EncoderSpec, state: Mapping[str, Tensor], source: str, prefix: str = "") -> None:
    """Raise CheckpointError, before an encoder is built, unless tensors have the names and shapes of ``spec``.

    ``prefix``: only names with it are checked, without it.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    blocks = {int(found[1]) for name in own if (found := re.match(r"blocks\.(\d{1,9})\.", name))}
    if len(blocks) != spec.depth:
        raise CheckpointError(
            f"{source}: describes an encoder of depth={spec.depth}, and has the tensors of {len(blocks)} blocks. Get the file "
            "again."
        )
    compare_shapes(own, encoder_shapes(spec), source)


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


def compare_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], source: str) -> None:
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    unexpected += [
        f"{name} of shape {tuple(state[name].shape)} where {shape} is due"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if missing or unexpected:
        raise key_mismatch(source, missing, unexpected, "an encoder")


_OURS = re.compile(r"(cls_token|pos_embed|patch_embed\.proj\..*|blocks\.\d+\..*|norm\.(weight|bias))")


def is_our_name(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


def load_exactly(encoder: Encoder, state: Mapping[str, Tensor], source: str) -> Encoder:
    """Load tensors into an encoder; raises CheckpointError unless names and shapes are exactly its own."""
    compare_shapes(state, {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}, source)
    encoder.load_state_dict(dict(state))
    return encoder
