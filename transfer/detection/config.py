"""The keys of ``maelift transfer detect``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from ...core.data.transforms import check_turn
from ...core.errors import ConfigError
from ..config import TransferConfig
from .architecture import Architecture, DetectorSizes, Engine, Head

if TYPE_CHECKING:
    from ...core.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class DetectConfig(DetectorSizes, TransferConfig):
    """Fine-tune an encoder to find objects, with boxes and masks, or train the same architecture from scratch."""

    task_name: ClassVar[str] = "detect"
    layout: Literal["auto", "coco", "yolo", "voc"] = "auto"
    """how boxes are written: COCO JSON, YOLO's text files or data.yaml, Pascal VOC's XML; auto: as found"""
    engine: Engine = "torchvision"
    """torchvision: Faster and Mask R-CNN, nothing to install; detectron2: those and Cascade R-CNN"""
    head: Literal["auto", "faster", "mask", "cascade"] = "auto"
    """faster: boxes; mask: masks too; cascade: three box heads, masks where the data has them; auto: mask, or faster"""
    window_size: int | None = None
    """patches a side of the attention windows of all but four blocks, 0 for none; null: near 14, none up to 16×16"""
    jitter: tuple[float, float]
    """smallest and largest size of a training image, drawn for each step, as a multiple of what fits image_size"""
    flip: bool
    """mirror every second training image left to right, at random"""
    turn: bool = False
    """with flip, also turn training images by quarters at random, where image_size is square: for images that have no up"""

    def __post_init__(self) -> None:
        TransferConfig.__post_init__(self)
        DetectorSizes.__post_init__(self)
        if not 0 < self.jitter[0] <= self.jitter[1]:
            raise ConfigError("jitter", list(self.jitter), "two factors with 0 < smallest <= largest")
        check_turn(self.turn, self.flip)
        if self.engine == "torchvision" and self.head == "cascade":
            raise ConfigError("head", self.head, "faster or mask; torchvision has no cascade. Give engine=detectron2.")

    def architecture(self, encoder: Backbone, has_masks: bool) -> Architecture:
        """The architecture for data with or without masks; raises ConfigError for a mask head without masks."""
        from ...adapters.vitdet_sizes import usual_window
        from ...core.models.encoder import Encoder

        if self.head == "mask" and not has_masks:
            raise ConfigError("head", self.head, "faster, since not every object of the data has a segmentation")
        head: Head = "mask" if has_masks else "faster"
        if self.head == "cascade":
            head = "cascade_mask" if has_masks else "cascade"
        elif self.head == "faster":
            head = "faster"
        sizes = {field.name: getattr(self, field.name) for field in fields(DetectorSizes)}
        if not isinstance(encoder, Encoder):
            if self.window_size:
                raise ConfigError(
                    "window_size", self.window_size, "0 or null: the attention of timm's models is their own"
                )
            return Architecture(engine=self.engine, head=head, **{**sizes, "relative_positions": False})
        window = usual_window(encoder.spec.grid) if self.window_size is None else self.window_size
        return Architecture(engine=self.engine, head=head, window_size=window, **sizes)
