"""The keys of ``maelift transfer segment``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from ...core.data.transforms import check_turn
from ...core.errors import ConfigError
from ..config import TransferConfig
from .architecture import Architecture
from .inference import Inference


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(Architecture, TransferConfig):
    """Fine-tune an encoder to give every pixel a class, or train the same architecture from scratch."""

    task_name: ClassVar[str] = "segment"
    layout: Literal["folders", "ade20k", "cityscapes"] = "folders"
    """how data is laid out: images/ and masks/ of one name each, with or without train/ val/ test/; or as published"""
    ignore: int | tuple[int, ...] | None = None
    """values in the masks that mean nothing, in place of 255; null: 255, unless it is a class, or the layout's own"""
    scale: tuple[float, float]
    """smallest and largest factor, drawn for each training image, on its size at short_side"""
    cat_max_ratio: float
    """a crop is drawn again, up to ten times, while one class takes this share of it or more; 1: never"""
    flip: bool
    """mirror every second training image left to right, at random"""
    turn: bool = False
    """with flip, also turn training images by quarters at random, where crops are square: for images that have no up"""
    distort: bool
    """change brightness, contrast, saturation and hue of colour images at random; of others, but gray ones of 8 bits, brightness
    and contrast of each channel, and leave one out now and then"""
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
        check_turn(self.turn, self.flip)
        if not 0 < self.cat_max_ratio <= 1:
            raise ConfigError("cat_max_ratio", self.cat_max_ratio, "a share above 0 and up to 1")
        if self.short_side is not None and self.short_side < 0:
            raise ConfigError("short_side", self.short_side, "0 or more")

    def check_passes(self, count: int) -> None:
        super().check_passes(count)
        if self.engine == "mmseg" and self.batch_size // count < 2:
            raise ConfigError(
                "batch_size", self.batch_size, f"at least {2 * count}: mmseg's batch norm can't learn from one image"
            )

    def architecture(self) -> Architecture:
        """The architecture that the keys describe."""
        return Architecture(**{field.name: getattr(self, field.name) for field in fields(Architecture)})

    def inference_at(self, image_size: tuple[int, int]) -> Inference:
        """How images are segmented by a model that is trained on crops of ``image_size``."""
        usual = Inference.usual(image_size)
        stride = (self.stride, self.stride) if isinstance(self.stride, int) else self.stride
        side = usual.short_side if self.short_side is None else self.short_side
        return Inference(mode=self.inference, crop=image_size, stride=stride or usual.stride, short_side=side)
