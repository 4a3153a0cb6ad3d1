"""What all exports share: their keys, the bundle that an adapter writes, checks of what a framework can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..core.errors import CheckpointError, ConfigError, MaeliftError
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from ..core.models.encoder_spec import check_divisible
from .certificate import Certificate


@dataclass(frozen=True)
class ExportConfig:
    """Write an encoder for another framework, proven equal."""

    encoder: str
    """encoder file of maelift, or hf:NAME/MODEL to fetch one"""
    to: str
    """timm, transformers, torchvision, detectron2, mmseg or onnx"""
    out: str
    """folder to be written; it must not be there yet, or be empty"""


@dataclass(frozen=True)
class Bundle:
    """What an adapter wrote into its folder.

    ``files``: what each of them is, by name; ``usage``: the commands or lines of Python to go on with, "{out}" standing
    for the folder; ``notes``: what was not exported, or what the framework does differently.
    """

    files: Mapping[str, str]
    certificate: Certificate
    usage: str
    notes: tuple[str, ...] = ()


def at_size(encoder: Encoder, image_size: int | tuple[int, int] | None, patch_size: int | None = None) -> Encoder:
    """The encoder for images of another size in pixels (one side or (height, width)) or patches of another size.

    Without ``image_size`` the trained one, with the same grid when the patches change. Raises ConfigError for sizes that the
    patches do not divide.
    """
    if patch_size is not None:
        if patch_size < 1:
            raise ConfigError("patch_size", patch_size, "a whole number of at least 1")
        encoder = encoder.with_patch_size(patch_size)
    if image_size is None:
        return encoder
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_divisible(size, encoder.spec.patch_size)
    return encoder if size == encoder.spec.image_size else encoder.resized(size)


def check_8_bit(encoder: Encoder, framework: str) -> None:
    """Raise MaeliftError unless stored values run from 0 to 255, for frameworks that scale by 255 themselves."""
    low, high = encoder.preprocessing.value_range
    if (low, high) != (0.0, 255.0):
        raise MaeliftError(
            f"the encoder's images have values from {low:g} to {high:g}, and {framework} reads 0 to 255 only. Nothing was "
            "written. Pretrain on 8-bit images, or export to torchvision or onnx, which take arrays."
        )


def check_rgb(encoder: Encoder, framework: str) -> None:
    """Raise MaeliftError for an encoder of blue, green, red, for frameworks that read images as red, green, blue."""
    if is_bgr(encoder.preprocessing):
        raise MaeliftError(
            f"the encoder's channels are blue, green, red, and {framework} reads images as red, green, blue. Nothing was "
            "written. Export to detectron2 or mmseg, which read either, or to torchvision or onnx, which take arrays."
        )


def check_gelu(encoder: Encoder, framework: str, advice: str) -> None:
    """Raise MaeliftError unless the encoder's MLPs have the exact GELU, for frameworks without other activations."""
    if encoder.spec.act != "gelu":
        raise MaeliftError(
            f"the encoder's activation is {encoder.spec.act}, and {framework} has the exact GELU only. Nothing was written. "
            f"{advice}"
        )


def check_same_shape(
    path: Path, encoder: Encoder, *, channels: int, embed_dim: int, depth: int, class_token: bool | None = None
) -> None:
    """Raise CheckpointError unless the model found at ``path`` has the encoder's shape, so that they can be compared.

    ``class_token``: whether the model has one; None where that doesn't matter.
    """
    spec = encoder.spec
    pairs = {"channels": (channels, spec.channels), "width": (embed_dim, spec.embed_dim), "blocks": (depth, spec.depth)}
    if class_token is not None:
        pairs["class tokens"] = (int(class_token), int(spec.class_token))
    wrong = [f"{name} {found} where the encoder has {due}" for name, (found, due) in pairs.items() if found != due]
    if wrong:
        raise CheckpointError(f"{path}: a model of another shape: {', '.join(wrong)}. Expected the encoder's.")


def detector_state(encoder: Encoder) -> dict[str, Tensor]:
    """The tensors that a plain backbone of a detector has a place for: no class token, no final norm (ViTDet, Sec. 3)."""
    state = encoder.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith(("cls_token", "norm."))}
