"""Segmentation models: an encoder under a linear, convolutional or UPerNet head, or inside mmseg's EncoderDecoder."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ...adapters.mmseg_config import MmsegExport, config_text, upernet_blocks, upernet_scales
from ...adapters.simple_feature_pyramid import ChannelNorm
from ...adapters.torchvision import vit_settings
from ...adapters.windowed_vit import PlainViT, load_weights, pad
from ...core.data.images import stored_pixels
from ...core.data.segmentation import ignore_index
from ...core.errors import ConfigError, DataError, MaeliftError
from ...core.models.encoder import Encoder
from ...core.models.encoder_file import Provenance
from ...core.models.encoder_spec import LARGEST_SIDE, EncoderSpec
from ..model_file import ModelFile, write_model
from ..predictions import Segmentation

ENCODER_PREFIX = "network.backbone."
"""What the names of the encoder's parameters begin with in a segmentor of either engine, before timm's names."""
AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary head's loss beside UPerNet's (BEiT's and mmseg's configs, which MAE's Appendix A.4 follows)."""
WIDEST = 65536
"""Channels of a head at most."""
PIXELS_AT_ONCE, IMAGES_AT_ONCE = 2**20, 16
"""What goes through the network together, of windows or images of one size; but always one."""
LONGEST = 4
"""The longer side of an image is not enlarged beyond so many times the shorter one (mmseg's 2048 × 512)."""
VALUES_AT_ONCE = 2**26
"""Logits that are resized to an image's size together: photographs times many classes would not fit in memory."""

Engine = Literal["torch", "mmseg"]
Head = Literal["linear", "conv", "upernet"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What stands on the encoder."""

    engine: Engine = "torch"
    """torch: modules of maelift and segmentation_models_pytorch; mmseg: its EncoderDecoder, with its heads and losses"""
    head: Head = "upernet"
    """linear: on the last map; conv: 3×3 convolutions up to the image's own resolution, for small images, in mmseg its FCN
    head; upernet: on four blocks (MAE, A.4)"""
    head_channels: int | None = None
    """channels of the head; null: the encoder's width"""
    window_size: int = 0
    """patches a side of the attention windows of all but four blocks, for big crops; 0: every block attends everywhere"""
    relative_positions: bool = False
    """learn relative positions in attention, from zero (MAE, A.4); then, and with windows, without the class token"""

    def __post_init__(self) -> None:
        if self.head_channels is not None and not 1 <= self.head_channels <= WIDEST:
            raise ConfigError("head_channels", self.head_channels, f"a whole number of at least 1, at most {WIDEST}")
        if self.window_size < 0:
            raise ConfigError("window_size", self.window_size, "0 or more")
        if self.engine == "mmseg" and self.head == "linear":
            raise ConfigError("head", self.head, "upernet or conv with engine=mmseg")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How images of any size are segmented.

    They are resized, in proportion, to a shorter side of ``short_side`` pixels and a longer one of at most four times as
    many (0: left as they are); then taken as a ``whole``, or in windows of ``crop`` (height, width) that lie ``stride``
    apart, whose logits are averaged where they overlap. The logits are resized to the image's own size before the
    likeliest class is taken.
    """

    mode: Literal["whole", "slide"]
    crop: tuple[int, int]
    stride: tuple[int, int]
    short_side: int

    def __post_init__(self) -> None:
        if not all(0 < step <= side for step, side in zip(self.stride, self.crop, strict=True)):
            raise ConfigError(
                "stride", list(self.stride), f"from 1 to the crop's sides {list(self.crop)}, none left out"
            )
        if not 0 <= self.short_side <= LARGEST_SIDE:
            raise ConfigError("short_side", self.short_side, f"a whole number of pixels from 0 to {LARGEST_SIDE}")

    @classmethod
    def usual(cls, image_size: tuple[int, int]) -> Inference:
        """Windows of the training crop that overlap by a third, at the scale of training (mmseg's configs/mae)."""
        stride = (max(1, image_size[0] * 2 // 3), max(1, image_size[1] * 2 // 3))
        return cls(mode="slide", crop=image_size, stride=stride, short_side=min(image_size))

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) in pixels that an image of ``size`` is segmented at."""
        if not self.short_side:
            return size
        scale = min(self.short_side / min(size), LONGEST * self.short_side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a model file says of a segmentor beside its encoder."""

    architecture: Architecture
    inference: Inference
    values: tuple[int, ...] = ()


class Segmentor(nn.Module):
    """An encoder with a head that gives every pixel a class; normalised images (B, C, H, W) to logits (B, K, H, W).

    Images of sizes that the patches do not divide are padded with zeros at the right and bottom, and the logits cut back.
    ``encoder`` is copied, not kept. Raises ConfigError for settings that it doesn't fit.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: Sequence[str],
        architecture: Architecture,
        inference: Inference | None = None,
        *,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.spec, self.preprocessing, self.architecture = encoder.spec, encoder.preprocessing, architecture
        self.ignore_index = ignore_index(len(self.classes))
        self.inference = inference or Inference.usual(encoder.spec.image_size)
        build = mmseg_network if architecture.engine == "mmseg" else Network
        self.network: Any = build(encoder, self.classes, architecture, drop_path)
        backbone: PlainViT = cast(Any, self.network).backbone
        self.divisor = backbone.size_divisibility
        self.least = self.spec.patch_size * least_patches(self.spec, architecture)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Logits (B, K, H, W); with ``masks`` (B, H, W) int64, the loss on them, ``ignore_index`` left out."""
        height, width = images.shape[-2:]
        enough = F.pad(images, (0, max(0, self.least - width), 0, max(0, self.least - height)))
        padded = pad(enough, self.divisor)
        of_mmseg = self.architecture.engine == "mmseg"
        if masks is None:
            logits = mmseg_logits(self.network, padded) if of_mmseg else self.network.logits(padded)
            return cast(Tensor, logits[:, :, :height, :width])
        bottom, right = padded.shape[-2] - height, padded.shape[-1] - width
        due = F.pad(masks, (0, right, 0, bottom), value=self.ignore_index)
        return mmseg_loss(self.network, padded, due) if of_mmseg else cast(Tensor, self.network.loss(padded, due))

    def inferred(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of normalised images of any size, taken whole or in windows as ``inference`` says."""
        if self.inference.mode == "whole":
            return cast(Tensor, self(images))
        return slide(self, images, self.inference.crop, self.inference.stride)

    @torch.inference_mode()
    def segment(self, images: Sequence[NDArray[np.generic]]) -> list[NDArray[np.integer[Any]]]:
        """The likeliest class of every pixel, (H, W) each, of images (C, H, W) of stored values and any sizes.

        uint8 for up to 256 classes, else int64. The module should be set to judge (``eval``).
        """
        alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            alike[self._checked_shape(image)].append(number)
        device = next(self.parameters()).device
        found: dict[int, NDArray[np.integer[Any]]] = {}
        for (_, height, width), numbers in alike.items():
            size = self.inference.working_size((height, width))
            together = at_once(max(height * width, math.prod(size)))
            for start in range(0, len(numbers), together):
                chosen = numbers[start : start + together]
                pixels = torch.from_numpy(np.stack([images[number] for number in chosen])).to(device)
                logits = self.inferred(self._resized(self.preprocessing.normalize(pixels), size)).float()
                for number, one in zip(chosen, logits, strict=True):
                    found[number] = likeliest(one, (height, width)).cpu().numpy()
        return [found[number] for number in range(len(images))]

    def predict(self, images: Sequence[str | Path | Image.Image | NDArray[np.generic]]) -> list[Segmentation]:
        """A class for every pixel of each image, at the image's own size.

        ``images`` are paths, PIL images, or arrays (H, W) or (H, W, C) of stored values. Raises DataError for one that
        can't be read, and for arrays of other channels than an encoder of neither 1 nor 3 takes.
        """
        was_training = self.training
        self.eval()
        try:
            form = self.preprocessing.reading
            return [
                Segmentation(self.segment([stored_pixels(image, self.spec.channels, form)])[0], self.classes)
                for image in images
            ]
        finally:
            self.train(was_training)

    def save(self, path: Path, provenance: Provenance, values: Sequence[int] = ()) -> None:
        """Write the model file; ``values`` are what stands for the classes in the masks that it was trained on."""
        write_model(
            path,
            self,
            task="segment",
            head={
                "architecture": asdict(self.architecture),
                "inference": asdict(self.inference),
                "values": list(values),
            },
            provenance=provenance,
        )

    def _checked_shape(self, image: NDArray[np.generic]) -> tuple[int, int, int]:
        if image.ndim != 3 or image.shape[0] != self.spec.channels or 0 in image.shape:
            raise DataError(f"an image of shape {image.shape}: expected ({self.spec.channels}, height, width).")
        return image.shape[0], image.shape[1], image.shape[2]

    def _resized(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if images.shape[-2:] == size:
            return images
        mode = {"bilinear": "bilinear", "nearest": "nearest-exact"}.get(self.preprocessing.interpolation, "bicubic")
        return F.interpolate(images, size=size, mode=mode, antialias=mode != "nearest-exact")


def load(file: ModelFile) -> Segmentor:
    """The segmentor that a model file holds, set to judge; raises CheckpointError for tensors that don't fit it."""
    head = file.head_as(_Stored)
    file.check_one_each(head.values, "values")
    encoder = Encoder(file.spec, preprocessing=file.preprocessing)
    return file.fill(Segmentor(encoder, file.classes, head.architecture, head.inference))


def slide(
    logits_of: Callable[[Tensor], Tensor], images: Tensor, crop: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Logits (B, K, H, W) of images of any size from windows of ``crop`` that lie ``stride`` apart (height, width).

    The last window of a row or column is moved back to end with the image; where windows overlap, their logits are
    averaged. An image smaller than the crop is one smaller window. The same as mmseg's slide_inference.
    """
    batch, _, height, width = images.shape
    window = min(crop[0], height), min(crop[1], width)
    corners = [
        (top, left)
        for top in _window_starts(height, window[0], stride[0])
        for left in _window_starts(width, window[1], stride[1])
    ]
    together = max(1, at_once(math.prod(window)) // batch)
    total: Tensor | None = None
    count = images.new_zeros((1, 1, height, width))
    for start in range(0, len(corners), together):
        some = corners[start : start + together]
        cut = torch.cat([images[:, :, top : top + window[0], left : left + window[1]] for top, left in some])
        for (top, left), logits in zip(some, torch.split(logits_of(cut), batch), strict=True):
            if total is None:
                total = logits.new_zeros((batch, logits.shape[1], height, width), dtype=torch.float32)
            total[:, :, top : top + window[0], left : left + window[1]] += logits
            count[:, :, top : top + window[0], left : left + window[1]] += 1
    assert total is not None  # there is at least one window
    return total / count


def _window_starts(side: int, window: int, stride: int) -> list[int]:
    number = max(side - window + stride - 1, 0) // stride + 1
    return [min(index * stride, side - window) for index in range(number)]


def at_once(pixels: int) -> int:
    """Images of so many pixels that go through the network together."""
    return max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // pixels))


def likeliest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The number of the highest logit (K, h, w), resized to (H, W), at each pixel: uint8, or int64 with over 256 classes.

    Of equal ones the first. Takes a few classes at a time, so that memory is not K times the image.
    """
    kind = torch.uint8 if len(logits) <= 256 else torch.int64
    best = torch.full(size, -math.inf, device=logits.device)
    number = torch.zeros(size, dtype=kind, device=logits.device)
    step = max(1, VALUES_AT_ONCE // math.prod(size))
    for start in range(0, len(logits), step):
        values, places = _resize(logits[None, start : start + step], size)[0].max(dim=0)
        higher = values > best
        best = torch.where(higher, values, best)
        number = torch.where(higher, (places + start).to(kind), number)
    return number


def _resize(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


torch.fx.wrap("_resize")  # the ONNX export follows the heads with torch.fx, and takes this as one step


class Network(nn.Module):
    """The plain ViT and a head, on images whose sides the patches divide."""

    def __init__(self, encoder: Encoder, classes: Sequence[str], architecture: Architecture, drop_path: float) -> None:
        super().__init__()
        self.backbone = PlainViT(**plain_settings(encoder, architecture, drop_path))
        load_weights(self.backbone, encoder.state_dict())
        self.head = build_head(encoder, len(classes), architecture)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W)."""
        return _resize(self.head(images, self.backbone(images)), images.shape[-2:])

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """Cross-entropy, the mean over the pixels that count; 0 where none does."""
        maps = self.backbone(images)
        loss = cross_entropy(self.head(images, maps), masks)
        if isinstance(self.head, UPerNet):
            loss = loss + AUXILIARY_WEIGHT * cross_entropy(self.head.auxiliary_logits(maps), masks)
        return loss


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Of logits (B, K, h, w), resized to the masks (B, H, W); the mean over the pixels that count, 0 where none does."""
    resized, ignored = _resize(logits.float(), masks.shape[-2:]), ignore_index(logits.shape[1])
    total = F.cross_entropy(resized, masks, ignore_index=ignored, reduction="sum")
    return total / (masks != ignored).sum().clamp(min=1)


def plain_settings(encoder: Encoder, architecture: Architecture, drop_path: float) -> dict[str, Any]:
    """The keywords of ``PlainViT`` for an encoder that gives the maps which the head wants.

    The class token stays, where nothing is against it: it was there in pretraining, and mmseg's MAE keeps it.
    """
    spec = encoder.spec
    settings = vit_settings(encoder, architecture.window_size)
    patches_only = settings["window_size"] > 0 or architecture.relative_positions
    return settings | {
        "class_token": spec.class_token and not patches_only,
        "use_rel_pos": architecture.relative_positions,
        "out_indices": head_taps(spec.depth, architecture),
        "final_norm": architecture.head == "linear",
        "drop_path": drop_path,
    }


def head_taps(depth: int, architecture: Architecture) -> tuple[int, ...]:
    """The blocks whose maps a head reads: UPerNet's four, for the others the last."""
    return upernet_blocks(depth) if architecture.head == "upernet" else (depth - 1,)


def build_head(encoder: Encoder, num_classes: int, architecture: Architecture) -> nn.Module:
    """A head of our own: called with the images (B, C, H, W) and the encoder's maps, it gives logits (B, K, h, w)."""
    spec = encoder.spec
    channels = architecture.head_channels or spec.embed_dim
    if architecture.head == "linear":
        return LinearHead(spec.embed_dim, num_classes)
    if architecture.head == "conv":
        return ConvHead(spec.embed_dim, channels, num_classes, spec.patch_size, spec.channels)
    return UPerNet(spec.embed_dim, channels, num_classes, upernet_scales(spec.patch_size, spec.image_size))


class LinearHead(nn.Module):
    """A class for each patch from its normed token, by a linear layer."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(dim, num_classes, 1)
        nn.init.trunc_normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(cast(Tensor, self.classify.bias))

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        return cast(Tensor, self.classify(maps[-1]))


class ConvHead(nn.Module):
    """3×3 convolutions from the last map up to the image's own resolution, with skips from the image (as UNETR has them).

    Light, and exact at the borders of things that are a few patches large. Any patch size: each step goes up to the next
    power of two of pixels below it.
    """

    def __init__(self, dim: int, channels: int, num_classes: int, patch_size: int, image_channels: int) -> None:
        super().__init__()
        steps = max(1, math.ceil(math.log2(patch_size)))
        widths = [max(16, channels >> (step + 1)) for step in range(steps)]  # from coarse to fine
        self.enter = nn.Sequential(
            ChannelNorm(dim),
            nn.Conv2d(dim, channels, 1),
            *conv_block(channels, channels),
            *conv_block(channels, channels),
        )
        self.up = nn.ModuleList(
            nn.Sequential(*conv_block(before, width))
            for before, width in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.merge = nn.ModuleList(nn.Sequential(*conv_block(width, width)) for width in widths)
        fine_first = widths[::-1]
        self.stem = nn.ModuleList(
            nn.Sequential(*conv_block(before, width, stride=1 if number == 0 else 2))
            for number, (before, width) in enumerate(zip([image_channels, *fine_first[:-1]], fine_first, strict=True))
        )
        self.classify = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        skips: list[Tensor] = []
        skip = images
        for stage in self.stem:
            skip = stage(skip)
            skips.append(skip)
        features = self.enter(maps[-1])
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            features = merge(up(_resize(features, skip.shape[-2:])) + skip)
        return cast(Tensor, self.classify(features))


class UPerNet(nn.Module):
    """UPerNet on four blocks' maps, and an auxiliary head on the third (MAE, Appendix A.4; decoder of smp).

    The maps are resampled to four strides first, as BEiT does it. Group norm stands in place of the decoder's batch norm,
    so that small batches will do.
    """

    def __init__(self, dim: int, channels: int, num_classes: int, scales: Sequence[float]) -> None:
        super().__init__()
        decoder = upernet_decoder()
        self.pyramid = nn.ModuleList(resample(dim, scale) for scale in scales)
        self.decoder = with_group_norm(decoder([0, 0, dim, dim, dim, dim], encoder_depth=5, decoder_channels=channels))
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        auxiliary = min(256, channels)
        self.auxiliary = nn.Sequential(
            ChannelNorm(dim),
            *conv_block(dim, auxiliary),
            nn.Dropout2d(0.1),
            nn.Conv2d(auxiliary, num_classes, 1),
        )

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        levels = [resampled(plane) for resampled, plane in zip(self.pyramid, self._four(maps), strict=True)]
        return cast(Tensor, self.classify(self.decoder([images, images, *levels])))

    def auxiliary_logits(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, K, h, w) of the auxiliary head, which is there to be trained only."""
        return cast(Tensor, self.auxiliary(self._four(maps)[2]))

    @staticmethod
    def _four(maps: list[Tensor]) -> list[Tensor]:
        return maps if len(maps) == 4 else [maps[-1]] * 4  # encoders of less than four blocks


def upernet_decoder() -> Any:
    """smp's decoder class; raises MaeliftError where the library is missing."""
    try:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
    except ModuleNotFoundError as error:
        raise MaeliftError(
            "segmentation_models_pytorch is not installed here, and head=upernet needs it. Install it: "
            "pip install segmentation-models-pytorch; or take head=conv."
        ) from error
    return UPerNetDecoder


def least_patches(spec: EncoderSpec, architecture: Architecture) -> int:
    """Patches a side that an image must have, so that the coarsest map of mmseg's neck has a pixel; ours always has."""
    return round(1 / min(upernet_scales(spec.patch_size, spec.image_size))) if architecture.engine == "mmseg" else 1


def resample(dim: int, scale: float) -> nn.Module:
    """Enlarge or shrink a map (B, dim, h, w), no side below 1."""
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, 2), ChannelNorm(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)
        )
    if scale == 2:
        return nn.ConvTranspose2d(dim, dim, 2, 2)
    if scale == 1:
        return nn.Identity()
    step = round(1 / scale)
    return nn.MaxPool2d(step, step, ceil_mode=True)


def conv_block(channels: int, out_channels: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    """A 3×3 convolution, group norm and GELU."""
    convolution = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return convolution, group_norm(out_channels), nn.GELU()


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at least 8 channels a group, so that a map of one pixel is not normed away."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 8))), channels)


def with_group_norm(module: nn.Module) -> nn.Module:
    """The module with group norm in place of every batch norm, which learns nothing from batches of one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        else:
            with_group_norm(child)
    return module


def mmseg_logits(network: Any, images: Tensor) -> Tensor:
    """Logits (B, K, H, W) of mmseg's EncoderDecoder, as its whole inference gives them."""
    size = images.shape[-2:]
    return cast(Tensor, network.encode_decode(images, [{"img_shape": size, "pad_shape": size} for _ in images]))


def mmseg_loss(network: Any, images: Tensor, masks: Tensor) -> Tensor:
    """The sum of mmseg's own losses: cross-entropy, by its default over all pixels, and 0.4 times the auxiliary head's."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=mask[None]), metainfo={"img_shape": tuple(mask.shape)})
        for mask in masks
    ]
    total, _ = network.parse_losses(network.loss(images, samples))
    return cast(Tensor, total)


def mmseg_network(encoder: Encoder, classes: Sequence[str], architecture: Architecture, drop_path: float) -> nn.Module:
    """mmseg's EncoderDecoder, with the heads of the configs that ``maelift export --to mmseg`` writes, on our plain ViT.

    Its SyncBN, which CPUs have not, becomes plain batch norm but in a process group on GPUs.
    """
    from ...adapters.mmseg_model import load_framework, quiet

    load_framework()
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    head = "upernet" if architecture.head == "upernet" else "fcn"
    size = encoder.spec.image_size
    settings = MmsegExport(
        encoder="",
        to="mmseg",
        out="",
        num_classes=len(classes),
        head_channels=architecture.head_channels,
        ignore_index=ignore_index(len(classes)),
    )
    with quiet():
        init_default_scope("mmseg")
        config = Config.fromstring(config_text(head, encoder, size, settings), ".py").model
        config.data_preprocessor = None  # images come normalised
        config.backbone = {"type": PlainViT, **plain_settings(encoder, architecture, drop_path)}
        model: Any = MODELS.build(config)
        model.init_weights()
    load_weights(model.backbone, encoder.state_dict())
    spread = torch.distributed.is_available() and torch.distributed.is_initialized() and torch.cuda.is_available()
    return cast(nn.Module, model if spread else revert_sync_batchnorm(model))
