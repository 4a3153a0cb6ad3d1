"""An encoder from the weights of other libraries: their names, their shape, and what their configs say."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .config_hints import ConfigHints, hints_of
from .encoder import Encoder
from .encoder_shapes import check_shapes, infer_heads, infer_spec, load_exactly
from .encoder_spec import EncoderSpec
from .plain_vit_checks import check_plain_vit
from .position_grid import normalize_positions
from .preprocessing import Preprocessing
from .state_dicts import SelectedState
from .tensor_files import check_finite, check_float_dtypes
from .weight_files import import_command
from .weight_formats import SIGLIP, normalize_weights, to_our_names, with_4d_kernel

logger = logging.getLogger("maelift")


@dataclass(frozen=True)
class ConvertedEncoder:
    """An encoder made from weights of another library.

    ``method``: which library's weights they were; ``notes``: what was selected, left out or changed; ``assumed``: what
    neither the tensors nor a config states; ``final_norm``: whether the weights had one.
    """

    encoder: Encoder
    method: str
    notes: tuple[str, ...]
    assumed: tuple[str, ...]
    final_norm: bool


def convert_encoder(
    selected: SelectedState,
    source: str,
    *,
    num_heads: int | None = None,
    norm_eps: float | None = None,
    image_size: tuple[int, int] | None = None,
    act: str | None = None,
    hints: ConfigHints | None = None,
    drop_relative_positions: bool = False,
    preprocessing: Preprocessing | None = None,
) -> ConvertedEncoder:
    """Build the encoder of another library's tensors; errors name ``source``, their file.

    ``hints``: what is known of the model; None: what the checkpoint and the files beside it state. The other keywords take
    precedence over the hints. Raises CheckpointError for tensors that are not those of a plain ViT.
    """
    foreign = to_our_names(source, selected)
    hints = hints_of(Path(source), selected.records, foreign.method) if hints is None else hints
    hints = _matching_hints(source, hints, foreign.state)
    foreign = normalize_weights(
        source, foreign, drop_relative_positions=drop_relative_positions, final_norm_hint=hints.final_norm
    )
    check_plain_vit(source, foreign.state)
    if hints.refusal:
        raise CheckpointError(f"{source}: {hints.refusal}.")
    ambiguity = foreign.ambiguity
    if ambiguity and hints.act is None and not (act and ambiguity == SIGLIP):
        example = "vit_base_patch16_siglip_224" if ambiguity == SIGLIP else "eva_large_patch14_196"
        raise CheckpointError(
            f"{source}: {ambiguity}, which tensors don't show. Give {'act, or ' if ambiguity == SIGLIP else ''}the name that "
            f"timm has for it, as: {import_command(source, f'architecture={example}')}"
        )
    state = with_4d_kernel(source, foreign.state)
    dtype_notes = check_float_dtypes(source, state)
    check_finite(source, state)
    patch = state["patch_embed.proj.weight"].shape[-1]
    size, size_notes = _image_size(hints, image_size, state, patch)
    grid = normalize_positions(source, state, size, patch=patch, dense=foreign.dense)
    spec = infer_spec(
        grid.state,
        num_heads=num_heads or hints.num_heads or infer_heads(source, grid.state, foreign.method),
        norm_eps=norm_eps or hints.norm_eps or 1e-6,
        image_size=grid.image_size,
        act=act or hints.act or "gelu",
        source=source,
    )
    if hints.depth not in (None, spec.depth):
        raise CheckpointError(
            f"{source}: has {spec.depth} blocks, and {hints.sources[-1]} says {hints.depth}: a part of the weights is missing, "
            "or what says so belongs to others. Get the file again, or move it away from that one."
        )
    check_shapes(spec, grid.state, source)
    encoder = load_exactly(Encoder(spec, preprocessing=preprocessing), grid.state, source)
    given = {"num_heads": num_heads, "norm_eps": norm_eps, "act": act, "image_size": image_size}
    return ConvertedEncoder(
        encoder,
        foreign.method,
        notes=(*selected.notes, *foreign.notes, *dtype_notes, *_hints_used(hints, given), *foreign.warnings),
        assumed=(*size_notes, *grid.notes, *_assumptions(spec, hints, given)),
        final_norm=foreign.final_norm,
    )


def _matching_hints(source: str, hints: ConfigHints, state: Mapping[str, Tensor]) -> ConfigHints:
    """The hints if they are of a model of this width; none, with a warning, if they are of another."""
    kernel = state.get("patch_embed.proj.weight")
    if hints.embed_dim is None or kernel is None or not kernel.ndim or len(kernel) == hints.embed_dim:
        return hints
    if hints.given:
        raise CheckpointError(
            f"{source}: {hints.sources[0]} has a width of {hints.embed_dim}, and the weights have {len(kernel)}. Give the name "
            "of their own architecture."
        )
    logger.warning(
        "%s: %s says a width of %d, and the weights have %d: it is ignored",
        source,
        hints.sources[-1] if hints.sources else "the file beside",
        hints.embed_dim,
        len(kernel),
    )
    return ConfigHints()


def _image_size(
    hints: ConfigHints, given: tuple[int, int] | None, state: Mapping[str, Tensor], patch: int
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """The image size that is given, else that of the hints if it fits the positions; and a note where it doesn't."""
    if given is not None or hints.image_size is None:
        return given, ()
    height, width = hints.image_size
    patches = (height // patch) * (width // patch)
    shape = state["pos_embed"].shape
    if (
        len(shape) == 3
        and shape[1] in (patches, patches + 1)
        and height % patch == 0
        and width % patch == 0
        and patches
    ):
        return hints.image_size, ()
    return None, (
        f"{hints.sources[-1]} says images of {height}×{width} pixels, which its positions are not for: not used",
    )


def _hints_used(hints: ConfigHints, given: Mapping[str, object]) -> tuple[str, ...]:
    values = {"num_heads": hints.num_heads, "norm_eps": hints.norm_eps, "act": hints.act}
    taken = [f"{key} {value}" for key, value in values.items() if value is not None and given[key] is None]
    return (f"{', '.join(taken)}: from {' and '.join(hints.sources)}",) if taken and hints.sources else ()


def _assumptions(spec: EncoderSpec, hints: ConfigHints, given: Mapping[str, object]) -> tuple[str, ...]:
    """What follows from neither the tensors nor the user nor a file."""
    texts = {
        "num_heads": f"{spec.num_heads} attention heads",
        "norm_eps": f"an epsilon of {spec.norm_eps:g}",
        "act": "the exact GELU",
    }
    unknown = {key: text for key, text in texts.items() if given[key] is None and getattr(hints, key) is None}
    if not unknown:
        return ()
    return (f"assumed, since tensors don't show it: {' and '.join(unknown.values())}; else give {', '.join(unknown)}",)
