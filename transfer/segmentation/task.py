"""Segmentation: images and mask PNGs in, a model that gives every pixel its class out (MAE, Appendix A.4; UPerNet)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ...core.data.dataset_format import hint
from ...core.data.labeled_dataset import Splits
from ...core.data.pixel_format import PLAIN_FORMAT, PixelFormat
from ...core.data.sampling import Sample, Uniforms
from ...core.data.segmentation import SegmentationImages
from ...core.data.segmentation_reader import segmentation_parts
from ...core.data.transforms import resized_part, to_array
from ...core.device import autocast
from ...core.distributed import Ranks
from ...core.errors import ConfigError, DataError
from ...core.models.encoder import Encoder
from ...core.models.encoder_file import Provenance
from ...core.training.loader import Batch
from ..metrics import Scores
from ..predictions import Segmentation as Prediction
from ..task import Task, TransferConfig
from ..visualize import Picture, draw_segmentation, side_by_side
from .metrics import Counts, PixelCounts
from .model import ENCODER_PREFIX, IMAGES_AT_ONCE, Architecture, Inference, Segmentor

Mask = NDArray[np.integer[Any]]
Pair = tuple[NDArray[np.generic], Mask]
"""An image (C, H, W) of stored values and its mask (H, W)."""
CROP_TRIES = 10
DISTORTION_DRAWS = 9
CACHE_BYTES = 2**29
"""Validation images and masks are decoded once and kept when they take up no more than this."""
PICTURES = 4
"""Pictures of right and of wrong predictions, each."""
PICTURED = 100
"""Images that these are chosen from."""
RIGHT = 0.5
"""The mean intersection over union of an image from which its picture is shown among the right predictions."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(Architecture, TransferConfig):
    """Fine-tune an encoder to give every pixel a class, or train the same architecture from nothing."""

    layout: Literal["folders", "ade20k", "cityscapes"] = "folders"
    """how data is laid out: images/ and masks/ of one name each, with or without train/ val/ test/; or as published"""
    ignore: int | tuple[int, ...] | None = None
    """values in the masks that mean nothing, in place of 255; null: 255, unless it is a class, or the layout's own"""
    scale: tuple[float, float]
    """smallest and largest factor, drawn anew for each training image, on its size at short_side"""
    cat_max_ratio: float
    """a crop is drawn again, up to ten times, while one class takes this share of it or more; 1: never"""
    flip: bool
    """mirror every second training image left to right, at random"""
    distort: bool
    """change brightness, contrast, saturation and hue of colour images at random"""
    inference: Literal["slide", "whole"] = "slide"
    """slide: in windows of image_size whose logits are averaged where they overlap; whole: at once"""
    stride: int | tuple[int, int] | None = None
    """pixels from one window to the next, one number or [down,across]; null: two thirds of image_size"""
    short_side: int | None = None
    """pixels of the shorter side that images are resized to, in training times scale; null: image_size's; 0: not at all"""

    def __post_init__(self) -> None:
        TransferConfig.__post_init__(self)
        Architecture.__post_init__(self)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError("scale", list(self.scale), "two factors with 0 < smallest <= largest")
        if not 0 < self.cat_max_ratio <= 1:
            raise ConfigError("cat_max_ratio", self.cat_max_ratio, "a share above 0 and up to 1")
        if self.short_side is not None and self.short_side < 0:
            raise ConfigError("short_side", self.short_side, "0 or more")

    @classmethod
    def task(cls) -> type[SegmentationTask]:
        return SegmentationTask

    def check_passes(self, count: int) -> None:
        super().check_passes(count)
        if self.engine == "mmseg" and self.batch_size // count < 2:
            raise ConfigError(
                "batch_size", self.batch_size, f"at least {2 * count}: mmseg's batch norm can't learn from one image"
            )

    def architecture(self) -> Architecture:
        """What stands on the encoder."""
        return Architecture(**{field.name: getattr(self, field.name) for field in fields(Architecture)})

    def inference_at(self, image_size: tuple[int, int]) -> Inference:
        """How images are segmented by a model that is trained on crops of ``image_size``."""
        usual = Inference.usual(image_size)
        stride = (self.stride, self.stride) if isinstance(self.stride, int) else self.stride
        side = usual.short_side if self.short_side is None else self.short_side
        return Inference(mode=self.inference, crop=image_size, stride=stride or usual.stride, short_side=side)


class SegmentationTask(Task[SegmentConfig, SegmentationImages]):
    """Semantic segmentation with any of the segmentors, judged by mean intersection over union."""

    name: ClassVar[str] = "segment"
    best_metric: ClassVar[str] = "val/mIoU"
    draws: ClassVar[int] = 2 + 2 * CROP_TRIES + DISTORTION_DRAWS
    encoder_prefix: ClassVar[str] = ENCODER_PREFIX

    def __init__(
        self, config: SegmentConfig, encoder: Encoder, splits: Splits[SegmentationImages], ranks: Ranks
    ) -> None:
        super().__init__(config, encoder, splits, ranks)
        self.inference = config.inference_at(encoder.spec.image_size)
        self._kept: list[Pair] | None = None

    @classmethod
    def read_parts(cls, config: SegmentConfig) -> Mapping[str, SegmentationImages]:
        try:
            return segmentation_parts(config.data, config.layout, config.ignore)
        except DataError as error:
            raise DataError(f"{error}{hint(config.data, 'segment')}") from error

    def build_model(self) -> Segmentor:
        return Segmentor(
            self.encoder,
            self.splits.train.classes,
            self.config.architecture(),
            self.inference,
            drop_path=self.config.drop_path,
        )

    def sample(self, index: int, draws: Uniforms) -> Sample:
        config, images = self.config, self.splits.train
        image, whole = images.images.open(index, self.encoder.preprocessing.reading), images.mask(index)
        base = self.inference.working_size((whole.shape[0], whole.shape[1]))
        factor = config.scale[0] + (config.scale[1] - config.scale[0]) * draws[0]
        scaled = max(1, round(base[0] * factor)), max(1, round(base[1] * factor))
        places = draws[2 : 2 + 2 * CROP_TRIES]
        size = self.encoder.spec.image_size
        box, mask = random_crop(whole, scaled, size, places, config.cat_max_ratio, images.ignore_index)
        how = self.encoder.preprocessing.interpolation
        known = how if how.upper() in Image.Resampling.__members__ else "bicubic"
        crop = resized_part(image, box, (mask.shape[0], mask.shape[1]), known)
        pixels = to_array(crop, self.encoder.spec.channels)
        if config.distort and pixels.shape[0] == 3 and pixels.dtype == np.uint8:
            pixels = distorted(pixels, draws[-DISTORTION_DRAWS:])
        if config.flip and draws[1] < 0.5:
            pixels, mask = pixels[:, :, ::-1], mask[:, ::-1]
        pixels = padded(pixels, size, self.encoder.preprocessing.pixel_mean)
        return Sample(pixels, {"mask": padded(mask[None], size, (images.ignore_index,))[0]})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        masks = torch.stack([target["mask"] for target in batch.targets]).long()
        return cast(Tensor, model(self.encoder.preprocessing.normalize(batch.pixels), masks))

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        if self._kept is None and stored_bytes(self.splits.val, self.encoder.spec.channels) <= CACHE_BYTES:
            self._kept = list(self._pairs(self.splits.val))
        pairs = self._kept if self._kept is not None else self._pairs(self.splits.val)
        metrics = self._counted(model, self.splits.val, pairs).metrics()
        if metrics["mIoU"] is None or metrics["aAcc"] is None:
            raise DataError(
                "no pixel of the validation masks counts: all have ignored values. Label some, or see ignore."
            )
        return {f"val/{name}": value for name, value in metrics.items() if value is not None}

    def score(self, model: nn.Module, images: SegmentationImages, split: str) -> Scores:
        return self._counted(model, images, self._pairs(images)).scores(split, images.classes)

    def score_items(
        self, model: nn.Module, images: SegmentationImages, split: str
    ) -> tuple[Scores, NDArray[np.float64] | None]:
        """An image brings the mean intersection over union with its own influence on it (infinitesimal jackknife)."""
        areas: list[tuple[Counts, Counts]] = []
        whole = self._counted(model, images, self._pairs(images), lambda own: areas.append((own.hits, own.unions)))
        return whole.scores(split, images.classes), whole.influences(areas)

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        cast(Segmentor, model).save(path, provenance, self.splits.train.values)

    def pictures(self, model: nn.Module, images: SegmentationImages, split: str) -> list[Picture]:
        """The best and the worst predictions, by each image's own mean intersection over union."""
        segmentor, judged = cast(Segmentor, model), []
        for index in range(min(PICTURED, len(images))):
            image = images.images.open(index, segmentor.preprocessing.reading)
            (found,) = segmentor.segment([to_array(image, segmentor.spec.channels)])
            counts = PixelCounts(len(images.classes), images.ignore_index)
            counts.add(found, images.mask(index), images.images.name(index))
            if (value := counts.metrics()["mIoU"]) is not None:
                judged.append((value, index, found))
        judged.sort(key=lambda item: (-item[0], item[1]))
        half = min(PICTURES, len(judged) // 2)
        chosen = [*judged[:half], *judged[len(judged) - half :]]
        form = segmentor.preprocessing.reading
        return [picture(images, index, found, value, split, form) for value, index, found in chosen]

    def _pairs(self, images: SegmentationImages) -> Iterator[Pair]:
        for index in range(len(images)):
            image = images.images.open(index, self.encoder.preprocessing.reading)
            yield to_array(image, self.encoder.spec.channels), images.mask(index)

    def _counted(
        self,
        model: nn.Module,
        images: SegmentationImages,
        pairs: Iterable[Pair],
        tell: Callable[[PixelCounts], object] | None = None,
    ) -> PixelCounts:
        """The pixel counts of a model's predictions over all images; ``tell`` hears of each image's own."""
        segmentor, counts, rest = (
            cast(Segmentor, model),
            PixelCounts(len(images.classes), images.ignore_index),
            iter(pairs),
        )
        while some := list(itertools.islice(rest, IMAGES_AT_ONCE)):
            with autocast(self.ranks.device, self.config.precision):
                found = segmentor.segment([pixels for pixels, _ in some])
            for prediction, (_, mask) in zip(found, some, strict=True):
                own = PixelCounts(len(images.classes), images.ignore_index)
                own.add(prediction, mask, images.images.name(counts.images))
                counts.merge(own)
                if tell is not None:
                    tell(own)
        return counts


def stored_bytes(images: SegmentationImages, channels: int) -> int:
    """About what the images and masks take up in memory, going by the first."""
    return len(images) * images.mask(0).size * (channels + 1) if len(images) else 0


def random_crop(
    mask: Mask,
    scaled: tuple[int, int],
    size: tuple[int, int],
    draws: Uniforms,
    cat_max_ratio: float,
    ignore_index: int,
) -> tuple[tuple[float, float, float, float], Mask]:
    """A part of at most ``size`` of an image that is resized to ``scaled``, all (height, width): where it is, and its mask.

    The place is a box (left, top, right, bottom) in pixels of the image as stored, to be resized in one go with the crop;
    the mask's pixels are the nearest. ``draws`` are two a try: while one class takes ``cat_max_ratio`` or more of what
    counts, the next place is tried, the last one taken as it is (mmseg's RandomCrop).
    """
    height, width = min(size[0], scaled[0]), min(size[1], scaled[1])
    down, across = mask.shape[0] / scaled[0], mask.shape[1] / scaled[1]
    for top_draw, left_draw in draws.reshape(-1, 2):
        top = int((scaled[0] - height + 1) * top_draw)
        left = int((scaled[1] - width + 1) * left_draw)
        rows = _nearest(top, height, scaled[0], mask.shape[0])
        part = mask[np.ix_(rows, _nearest(left, width, scaled[1], mask.shape[1]))]
        if cat_max_ratio >= 1:
            break
        counts = np.unique(part[part != ignore_index], return_counts=True)[1]
        if len(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
    right, bottom = min(mask.shape[1], (left + width) * across), min(mask.shape[0], (top + height) * down)
    return (left * across, top * down, right, bottom), part


def _nearest(start: int, length: int, scaled: int, side: int) -> NDArray[np.int64]:
    """The stored rows (or columns) nearest to ``length`` rows from ``start`` of an axis that is resized to ``scaled``."""
    centres = (np.arange(start, start + length) + 0.5) * side / scaled
    return np.minimum(centres.astype(np.int64), side - 1)


def padded(pixels: NDArray[np.generic], size: tuple[int, int], values: Sequence[float]) -> NDArray[np.generic]:
    """Pixels (C, h, w) with a value a channel at the right and bottom, up to ``size``; rounded for whole numbers."""
    if pixels.shape[1:] == size:
        return np.ascontiguousarray(pixels)
    whole = np.empty((len(pixels), *size), dtype=pixels.dtype)
    fill = np.asarray(values, dtype=np.float64)[:, None, None]
    whole[:] = np.rint(fill) if np.issubdtype(pixels.dtype, np.integer) else fill
    whole[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return whole


def distorted(pixels: NDArray[np.generic], draws: Uniforms) -> NDArray[np.generic]:
    """Colour pixels (3, H, W) uint8, their brightness, contrast, saturation and hue changed, each in half of all cases.

    ``draws`` are nine: for each of the four whether, and how much; and whether contrast comes before the colours or after.
    The ranges are those of mmseg's PhotoMetricDistortion: ±32, 0.5 to 1.5, 0.5 to 1.5, ±36 degrees.
    """
    values = pixels.astype(np.float32)
    if draws[0] < 0.5:
        values = np.clip(values + (64 * draws[1] - 32), 0, 255)
    contrast = 0.5 + draws[3] if draws[2] < 0.5 else 1.0
    if draws[4] < 0.5:
        values = np.clip(values * contrast, 0, 255)
    if draws[5] < 0.5 or draws[7] < 0.5:
        picture = Image.fromarray(values.astype(np.uint8).transpose(1, 2, 0)).convert("HSV")
        colours = np.asarray(picture).astype(np.float32)
        if draws[5] < 0.5:
            colours[..., 1] = np.clip(colours[..., 1] * (0.5 + draws[6]), 0, 255)
        if draws[7] < 0.5:
            colours[..., 0] = (colours[..., 0] + round(51.2 * draws[8] - 25.6)) % 256  # 256 steps are 360 degrees
        back = Image.fromarray(colours.astype(np.uint8), mode="HSV").convert("RGB")
        values = np.asarray(back).transpose(2, 0, 1).astype(np.float32)
    if draws[4] >= 0.5:
        values = np.clip(values * contrast, 0, 255)
    return values.astype(np.uint8)


def picture(
    images: SegmentationImages, index: int, found: Mask, value: float, split: str, form: PixelFormat = PLAIN_FORMAT
) -> Picture:
    """The truth beside the prediction, with the image's name and mean intersection over union."""
    image, truth = images.images.open(index, form), images.mask(index)
    panels = [
        (title, draw_segmentation(image, Prediction(mask, images.classes), ignored=images.ignore_index))
        for title, mask in (("truth", truth), ("prediction", found))
    ]
    caption = f"{images.images.name(index)} ({split}): mIoU of this image {100 * value:.0f} %"
    return Picture.of(side_by_side(panels), caption, value >= RIGHT)
