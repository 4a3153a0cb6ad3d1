"""Segmentation as a task: augmentation, loss, validation and scores (MAE, Appendix A.4; UPerNet)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ...core.data.composite import Display
from ...core.data.dataset_format import hint
from ...core.data.labeled_dataset import Splits
from ...core.data.pixel_format import PixelFormat
from ...core.data.sampling import Sample, Uniforms
from ...core.data.segmentation import SegmentationImages
from ...core.data.segmentation_reader import segmentation_parts
from ...core.data.transforms import quarter_turns, resized_part, to_array
from ...core.device import autocast
from ...core.distributed import Ranks
from ...core.errors import DataError
from ...core.models.backbone import Backbone
from ...core.models.encoder_file import Provenance
from ...core.training.loader import Batch
from ..metrics import Scores
from ..predictions import Segmentation as Prediction
from ..task import Task
from ..visualize import ExampleImage, draw_segmentation, side_by_side
from .augmentation import Mask, distorted, pad_to, random_crop
from .backbone_settings import architecture_on
from .config import SegmentConfig
from .metrics import Counts, PixelCounts
from .model import ENCODER_PREFIX, Segmentor
from .sliding_window import MAX_BATCH

Pair = tuple[NDArray[np.generic], Mask]
"""An image (C, H, W) of stored values and its mask (H, W)."""
CROP_TRIES = 10
DISTORTION_DRAWS = 9
CACHE_BYTES = 2**29
"""Validation images and masks are decoded once and cached up to this size in bytes."""
EXAMPLES = 4
"""Images of right and of wrong predictions, each, in the summary."""
MAX_EXAMPLE_CANDIDATES = 100
"""Images that these are chosen from."""
EXAMPLE_MIOU = 0.5
"""The mean intersection over union of an image from which its picture is shown among the right predictions."""


class SegmentationTask(Task[SegmentConfig, SegmentationImages]):
    """Semantic segmentation with any of the segmentors, evaluated by mean intersection over union."""

    name: ClassVar[str] = "segment"
    best_metric: ClassVar[str] = "val/mIoU"
    draws: ClassVar[int] = 2 + 2 * CROP_TRIES + DISTORTION_DRAWS
    encoder_prefix: ClassVar[str] = ENCODER_PREFIX

    def __init__(
        self, config: SegmentConfig, encoder: Backbone, splits: Splits[SegmentationImages], ranks: Ranks
    ) -> None:
        super().__init__(config, encoder, splits, ranks)
        self.inference = config.inference_at(encoder.spec.image_size)
        self._cached: list[Pair] | None = None

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
            architecture_on(self.encoder, self.config.architecture()),
            self.inference,
            drop_path=self.config.drop_path,
        )

    def sample(self, index: int, draws: Uniforms) -> Sample:
        config, images = self.config, self.splits.train
        image, full_mask = images.images.open(index, self.encoder.preprocessing.reading), images.mask(index)
        base = self.inference.working_size((full_mask.shape[0], full_mask.shape[1]))
        factor = config.scale[0] + (config.scale[1] - config.scale[0]) * draws[0]
        scaled = max(1, round(base[0] * factor)), max(1, round(base[1] * factor))
        places = draws[2 : 2 + 2 * CROP_TRIES]
        size = self.encoder.spec.image_size
        box, mask = random_crop(full_mask, scaled, size, places, config.cat_max_ratio, images.ignore_index)
        how = self.encoder.preprocessing.interpolation
        known = how if how.upper() in Image.Resampling.__members__ else "bicubic"
        crop = resized_part(image, box, (mask.shape[0], mask.shape[1]), known)
        pixels = to_array(crop, self.encoder.spec.channels)
        mask = without_values(mask, pixels, images.ignore_index)
        if config.distort:
            pixels = distorted(pixels, draws[-DISTORTION_DRAWS:], self.encoder.preprocessing.value_range)
        if config.flip and draws[1] < 0.5:
            pixels, mask = pixels[:, :, ::-1], mask[:, ::-1]
        pixels = pad_to(pixels, size, self.encoder.preprocessing.pixel_mean)
        mask = pad_to(mask[None], size, (images.ignore_index,))[0]
        if config.turn and size[0] == size[1] and (turns := quarter_turns(draws[1])):
            pixels, mask = (np.ascontiguousarray(np.rot90(part, turns, (-2, -1))) for part in (pixels, mask))
        return Sample(pixels, {"mask": mask})

    def draw_sample(self, batch: Batch, place: int) -> Image.Image | None:
        images = self.splits.train
        mask = Prediction(batch.targets[place]["mask"].cpu().numpy(), images.classes)
        return self.sample_picture(
            batch, place, lambda image: draw_segmentation(image, mask, ignored=images.ignore_index)
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        masks = torch.stack([target["mask"] for target in batch.targets]).long()
        return cast(Tensor, model(self.encoder.preprocessing.normalize(batch.pixels), masks))

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        if self._cached is None and decoded_bytes(self.splits.val, self.encoder.spec.channels) <= CACHE_BYTES:
            self._cached = list(self._pairs(self.splits.val))
        pairs = self._cached if self._cached is not None else self._pairs(self.splits.val)
        metrics = self._count_pixels(model, self.splits.val, pairs).metrics()
        if metrics["mIoU"] is None or metrics["aAcc"] is None:
            raise DataError(
                "no pixel of the validation masks counts: all have ignored values. Label some, or see ignore."
            )
        return {f"val/{name}": value for name, value in metrics.items() if value is not None}

    def score(self, model: nn.Module, images: SegmentationImages, split: str) -> Scores:
        return self._count_pixels(model, images, self._pairs(images)).scores(split, images.classes)

    def score_items(
        self, model: nn.Module, images: SegmentationImages, split: str
    ) -> tuple[Scores, NDArray[np.float64] | None]:
        """The value of an image is the mIoU plus the image's influence on it (infinitesimal jackknife)."""
        areas: list[tuple[Counts, Counts]] = []
        counts = self._count_pixels(
            model, images, self._pairs(images), lambda own: areas.append((own.hits, own.unions))
        )
        return counts.scores(split, images.classes), counts.influences(areas)

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        cast(Segmentor, model).save(path, provenance, self.splits.train.values)

    def examples(self, model: nn.Module, images: SegmentationImages, split: str) -> list[ExampleImage]:
        """The best and the worst predictions, by each image's own mean intersection over union."""
        segmentor, evaluated = cast(Segmentor, model), []
        for index in range(min(MAX_EXAMPLE_CANDIDATES, len(images))):
            image = images.images.open(index, segmentor.preprocessing.reading)
            (found,) = segmentor.segment([to_array(image, segmentor.spec.channels)])
            counts = PixelCounts(len(images.classes), images.ignore_index)
            counts.add(found, images.mask(index), images.images.name(index))
            if (value := counts.metrics()["mIoU"]) is not None:
                evaluated.append((value, index, found))
        evaluated.sort(key=lambda item: (-item[0], item[1]))
        half = min(EXAMPLES, len(evaluated) // 2)
        chosen = [*evaluated[:half], *evaluated[len(evaluated) - half :]]
        form = segmentor.preprocessing.reading
        return [example_image(images, index, found, value, split, form, self.display) for value, index, found in chosen]

    def _pairs(self, images: SegmentationImages) -> Iterator[Pair]:
        for index in range(len(images)):
            image = images.images.open(index, self.encoder.preprocessing.reading)
            pixels = to_array(image, self.encoder.spec.channels)
            yield pixels, without_values(images.mask(index), pixels, images.ignore_index)

    def _count_pixels(
        self,
        model: nn.Module,
        images: SegmentationImages,
        pairs: Iterable[Pair],
        on_image: Callable[[PixelCounts], object] | None = None,
    ) -> PixelCounts:
        """The pixel counts of a model's predictions over all images; ``on_image`` receives each image's own."""
        segmentor, counts, rest = (
            cast(Segmentor, model),
            PixelCounts(len(images.classes), images.ignore_index),
            iter(pairs),
        )
        while some := list(itertools.islice(rest, MAX_BATCH)):
            with autocast(self.ranks.device, self.config.precision):
                found = segmentor.segment([pixels for pixels, _ in some])
            for prediction, (_, mask) in zip(found, some, strict=True):
                own = PixelCounts(len(images.classes), images.ignore_index)
                own.add(prediction, mask, images.images.name(counts.images))
                counts.merge(own)
                if on_image is not None:
                    on_image(own)
        return counts


def without_values(mask: Mask, pixels: NDArray[np.generic], ignore_index: int) -> Mask:
    """A mask (H, W) with ignored pixels where an image (C, H, W) has no value in any channel."""
    if pixels.dtype.kind != "f" or not (missing := np.isnan(pixels).all(axis=0)).any():
        return mask
    return np.where(missing, np.asarray(ignore_index, dtype=mask.dtype), mask)


def decoded_bytes(images: SegmentationImages, channels: int) -> int:
    """About what the images and masks take up in memory, going by the first."""
    return len(images) * images.mask(0).size * (channels + 1) if len(images) else 0


def example_image(
    images: SegmentationImages, index: int, found: Mask, value: float, split: str, form: PixelFormat, display: Display
) -> ExampleImage:
    """The truth next to the prediction, with the image's name and mean intersection over union."""
    opened, truth = images.images.open(index, form), images.mask(index)
    image = display.image(opened)
    panels = [
        (title, draw_segmentation(image, Prediction(mask, images.classes), ignored=images.ignore_index))
        for title, mask in (("truth", truth), ("prediction", found))
    ]
    caption = f"{images.images.name(index)} ({split}): mIoU of this image {100 * value:.0f} %"
    return ExampleImage.of(display.with_tiles(side_by_side(panels), opened), caption, value >= EXAMPLE_MIOU)
