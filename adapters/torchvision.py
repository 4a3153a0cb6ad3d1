"""Exports to torchvision: the encoder with a simple feature pyramid, as backbone of Faster and Mask R-CNN."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.files import atomic_path, atomic_write_text, read_regular_text
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from ..core.optional_imports import require
from .bundle import Bundle, ExportConfig, at_size, check_same_shape, detector_state
from .certificate import Certificate
from .checkpoints import check_described, read_checkpoint, square_of
from .parity import Candidate, Level, Pixels, certificate_sizes, compare_keys, measure_parity, tiled, tokens_of
from .vitdet_sizes import detector_shape, usual_global_blocks

if TYPE_CHECKING:
    from .simple_feature_pyramid import SimpleFeaturePyramid

MODULE = "plain_vit"
UNUSED = {
    "cls_token": "a plain backbone for detection has no class token (ViTDet, Sec. 3)",
    r"norm\..*": "the pyramid begins with the last block's output; it has norms of its own (ViTDet, Sec. 3)",
}
USAGE = """\
import sys; sys.path.insert(0, "{out}")
from plain_vit import load_backbone, mask_rcnn          # needs torch and torchvision only
model = mask_rcnn(load_backbone("{out}"), num_classes=3)  # the background counts; faster_rcnn without masks"""


@dataclass(frozen=True)
class TorchvisionExport(ExportConfig):
    """A backbone for torchvision's Faster and Mask R-CNN."""

    image_size: int | tuple[int, int] | None = None
    """pixels that detectors resize images to, one side or [height,width]; null: 64 patches a side (1024 for patch 16)"""
    patch_size: int | None = None
    """pixels a side of a patch, to resample the patch kernel to (16 for ViT-H's 14); null: as trained"""
    window_size: int | None = None
    """patches a side of the attention windows, 0 for none; null: the divisor of the grid nearest to 14, none up to 16×16"""
    out_channels: int = 256
    """channels of every level of the pyramid"""


def export(file: EncoderFile, folder: Path, config: TorchvisionExport) -> Bundle:
    """Write ``backbone.pth``, ``backbone.json`` and the module that reads them; raises ConfigError for sizes."""
    require("torchvision")
    encoder = at_size(file.encoder, None, config.patch_size)
    shape = detector_shape(encoder, config.image_size, config.window_size)
    with atomic_path(folder / "backbone.pth") as temporary:
        torch.save(detector_state(encoder), temporary)
    settings = vit_settings(encoder, shape.window) | {"out_channels": config.out_channels}
    transform = transform_settings(encoder, shape.size)
    atomic_write_text(folder / "backbone.json", json.dumps({"backbone": settings, "transform": transform}, indent=1))
    copy_module(folder / MODULE)
    notes = [
        f"images are resized to {shape.size[0]}×{shape.size[1]} pixels at most; give min_size and max_size for others"
    ]
    if shape.window and not settings["window_size"]:
        notes.append(f"no windows: each of {encoder.spec.depth} blocks closes a quarter, and so attends everywhere")
    return Bundle(
        files={
            "backbone.pth": "weights, under timm's names",
            "backbone.json": "shape, windows, image size, mean and deviation",
            f"{MODULE}/": "the backbone, its pyramid, and Faster and Mask R-CNN on it, without maelift",
        },
        certificate=certify_folder(folder, file),
        usage=USAGE,
        notes=tuple(notes),
    )


def copy_module(folder: Path) -> None:
    """Write the package ``plain_vit``, which reads an export without maelift."""
    from .plain_vit import PARTS

    folder.mkdir()
    here = Path(__file__).parent
    shutil.copyfile(here / f"{MODULE}.py", folder / "__init__.py")
    for name in PARTS:
        shutil.copyfile(here / name, folder / name)


def certify_folder(folder: Path, file: EncoderFile) -> Certificate:
    """Compare the backbone that the export's own module loads with the encoder."""
    require("torchvision")
    from .plain_vit import load_backbone

    content = read_checkpoint(folder / "backbone.pth", key="weights")
    try:
        settings = json.loads(read_regular_text(folder / "backbone.json"))["backbone"]
        described = [
            settings[key] for key in ("depth", "embed_dim", "mlp_ratio", "channels", "image_size", "patch_size")
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/backbone.json: can't be read ({type(error).__name__}: {error}).") from error
    check_described(
        folder / "backbone.json",
        folder / "backbone.pth",
        **dict(zip(("depth", "width", "mlp_ratio", "channels"), described, strict=False)),
        patches=square_of(*described[4:]),
    )
    written = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    try:
        backbone = load_backbone(folder)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: can't be loaded ({reason or type(error).__name__}).") from error
    net = backbone.net
    check_same_shape(folder, file.encoder, channels=net.channels, embed_dim=net.embed_dim, depth=net.depth)
    encoder = at_size(file.encoder, None, backbone.net.patch_size)
    return measure_parity(
        lambda size: candidate(backbone, encoder, written, size),
        certificate_sizes(encoder.spec, backbone.net.window_size),
        framework="torchvision",
        encoder=file.content_hash,
        distributions=["torchvision"],
    )


def candidate(
    backbone: SimpleFeaturePyramid, encoder: Encoder, written: Mapping[str, Tensor], image_size: tuple[int, int]
) -> Candidate:
    """The backbone below the pyramid, fed as torchvision's detectors feed it: arrays in 0..1, normalised by them."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = GeneralizedRCNNTransform(**backbone.transform_settings)
    low, high = encoder.preprocessing.value_range
    net = copy.deepcopy(backbone.net).eval()
    if not tiled(image_size, net.patch_size, net.window_size):
        net.attend_everywhere()

    def prepare(stored: Sequence[Pixels]) -> Tensor:
        images = [torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) for image in stored]
        return torch.stack([transform.normalize((image - low) / (high - low)) for image in images])

    return Candidate(
        reference=encoder,
        levels=(Level("last map", encoder.spec.depth - 1),),
        keys=compare_keys(encoder, written, net.state_dict(), unused=UNUSED, missing={}),
        prepare=prepare,
        features=lambda images: [tokens_of(maps) for maps in net.to(images.dtype)(images)],
        class_token=False,
        windows=net.windows,
    )


def build_backbone(
    encoder: Encoder,
    *,
    image_size: tuple[int, int] | None = None,
    window_size: int = 0,
    out_channels: int = 256,
    scale_factors: Sequence[float] | None = None,
    use_rel_pos: bool = False,
    drop_path: float = 0.0,
) -> SimpleFeaturePyramid:
    """The encoder under a new pyramid, (B, C, H, W) to ``{"0": …, "pool": …}``, for torchvision's detectors.

    ``image_size`` in pixels is what ``faster_rcnn`` and ``mask_rcnn`` of ``plain_vit`` then resize images to, and the
    size that relative positions are laid out for; ``scale_factors`` are the pyramid's, None for ViTDet's.
    """
    require("torchvision")
    from .simple_feature_pyramid import SimpleFeaturePyramid
    from .windowed_vit import PlainViT, load_weights

    shape, patch = detector_shape(encoder, image_size, window_size), encoder.spec.patch_size
    net = PlainViT(
        **vit_settings(encoder, window_size),
        use_rel_pos=use_rel_pos,
        relative_grid=(shape.size[0] // patch, shape.size[1] // patch),
        drop_path=drop_path,
    )
    load_weights(net, encoder.state_dict())
    backbone = SimpleFeaturePyramid(net, out_channels, scale_factors)
    backbone.transform_settings = transform_settings(encoder, shape.size)
    return backbone


def vit_settings(encoder: Encoder, window_size: int) -> dict[str, Any]:
    """The keywords of ``PlainViT`` for an encoder: no class token, no final norm, windows but in four blocks."""
    spec = encoder.spec
    everywhere = usual_global_blocks(spec.depth)
    if len(everywhere) == spec.depth:  # up to four blocks: each closes a quarter
        window_size = 0
    return {
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "channels": spec.channels,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_ratio,
        "norm_eps": spec.norm_eps,
        **({} if spec.act == "gelu" else {"act": spec.act}),
        "class_token": False,
        "class_position": spec.class_token,
        "window_size": window_size,
        "global_blocks": everywhere if window_size else (),
    }


def transform_settings(encoder: Encoder, image_size: tuple[int, int]) -> dict[str, Any]:
    """The keywords of torchvision's detectors that say how images are resized and normalised."""
    return {
        "min_size": min(image_size),
        "max_size": max(image_size),
        "image_mean": list(encoder.preprocessing.mean),
        "image_std": list(encoder.preprocessing.std),
    }
