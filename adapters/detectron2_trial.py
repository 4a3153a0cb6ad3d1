"""Trial run of a detectron2 config: its mappers on sample images, one training and one inference step."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from .certificate import Step
from .detectron2_format import image_format
from .parity import sample_images
from .trial import Cost, TrialReport, check_drop_path, cost_of, skip_reason, times

DRAWS = 4
"""Random augmentations of each sample image, of which the sizes are checked."""


@dataclass(frozen=True)
class ConfigParts:
    """What a config makes beside its model: how to make each mapper and the optimizer, None for what it hasn't.

    ``key``: the config's name for the mappers, "{}" standing for train or test.
    """

    mappers: Mapping[str, Callable[[], Any] | None]
    key: str
    optimizer: Callable[[Any], Any] | None = None


def run_trial(
    model: Any, vit: Any, parts: ConfigParts, encoder: Encoder, step_seconds: float, *, certified: bool = True
) -> tuple[Step, ...]:
    """Run a config's parts one by one; returns a step for each.

    ``vit`` is the backbone in ``model``, which is trained for a step, if it was ``certified`` before.
    """
    trial = TrialReport()
    check_drop_path(trial, vit, "model.backbone.net.drop_path_rate")
    samples: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "test"):
            name = "training images" if part == "train" else "test images"
            mapper = parts.mappers.get(part)
            if mapper is None:
                trial.record(name, "not run", f"the config has no {parts.key.format(part)}")
            elif image_format(encoder.preprocessing) is None:
                trial.record(
                    name, "not run", "detectron2 can't read such images, and mappers of your own need their data"
                )
            else:
                key = parts.key.format(part)
                samples[part] = (
                    trial.run(name, partial(run_mapper, mapper, key, model, vit, encoder, Path(folder), part)) or []
                )
    if trial.failed:
        return tuple(trial.steps)
    train = samples.get("train") or [synthetic_sample(model, vit, encoder)] * 2
    test = samples.get("test") or [synthetic_sample(model, vit, encoder)]
    trial.run("windows", partial(check_windows, model, vit, [sample["image"] for sample in (*train, *test)]))
    if trial.failed:
        return tuple(trial.steps)
    reason = untrainable_reason(model) if certified else "the certificate failed"
    reason = reason or skip_reason(cost(model, train[:2]), step_seconds)
    if reason is not None:
        trial.skip_steps(reason)
        return tuple(trial.steps)
    trial.run("training step", partial(train_step, model, train[:2], parts.optimizer))
    trial.run("inference step", partial(test_step, model, test[0]))
    return tuple(trial.steps)


def run_mapper(
    make: Callable[[], Any], key: str, model: Any, vit: Any, encoder: Encoder, folder: Path, part: str
) -> tuple[str, list[dict[str, Any]]]:
    """The samples that a mapper gives for images of several shapes, a training mapper several times.

    Raises CheckpointError for a mapper that fails, and for images that the model would cut.
    """
    mapper = make()
    side = 4 * vit.patch_embed.proj.kernel_size[0]
    sizes = [(side * 3, side * 4), (side * 9, side * 5), (side * 12 + 3, side * 16 + 5)]
    found = []
    for number, size in enumerate(sizes):
        record = write_record(encoder, size, folder, f"{part}{number}")
        for _ in range(DRAWS if part == "train" else 1):
            try:
                sample = mapper(record)
            except Exception as error:
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                raise CheckpointError(f"{key} fails on an image of {times(size)} pixels ({reason})") from error
            if sample is not None:
                found.append(sample)
    if not found:
        raise CheckpointError(f"{key} gives nothing for {len(sizes) * DRAWS} images")
    shown = check_cropping(model, vit, [sample["image"] for sample in found], key)
    if part == "train":  # those with objects, the largest first
        found.sort(key=lambda sample: (len(sample["instances"]) > 0, sample["image"].numel()), reverse=True)
    return shown, found


def check_cropping(model: Any, vit: Any, images: Sequence[Tensor], key: str) -> str:
    """The sizes of prepared images as text; raises CheckpointError where the model crops them."""
    patch = vit.patch_embed.proj.kernel_size[0]
    stride = math.lcm(patch, coarsest_stride(model))
    window = max((block.window_size for block in vit.blocks), default=0)
    padded = [grid_of(model, image) for image in images]
    largest = [max(int(image.shape[axis]) for image in images) for axis in (-2, -1)]
    multiple = math.lcm(stride, patch * max(1, window))
    pad, due = square_pad(model), -(-max(largest) // multiple) * multiple
    if pad and max(largest) > pad:
        raise CheckpointError(
            f"{key} gives images of up to {times(largest)} pixels, of which model.backbone.square_pad={pad} cuts off the rest. "
            f"Set model.backbone.square_pad={due}, or have the augmentations fit images into {pad} pixels"
        )
    for size in padded:
        if any(side % stride for side in size):
            raise CheckpointError(
                f"{key}: images are padded to {times(size)} pixels, and what is beyond a multiple of {stride} is lost. Set "
                f"model.backbone.square_pad={due}"
            )
    sizes = list(dict.fromkeys(times(size) for size in padded))
    more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    return f"up to {times(largest)} pixels, padded to {', '.join(sizes[:3])}{more}"


def check_windows(model: Any, vit: Any, images: Sequence[Tensor]) -> tuple[str, None]:
    """Raise CheckpointError where the windows of attention don't tile the patches of an image."""
    window = max((block.window_size for block in vit.blocks), default=0)
    patch = vit.patch_embed.proj.kernel_size[0]
    if not window:
        return "none: every block attends everywhere", None
    for image in images:
        grid = [side // patch for side in grid_of(model, image)]
        if any(side % window for side in grid):
            tiling = [side for side in range(2, min(grid) + 1) if all(length % side == 0 for length in grid)]
            due = min(tiling, key=lambda side: abs(side - window), default=0)
            raise CheckpointError(
                f"model.backbone.net.window_size={window} doesn't tile the {times(grid)} patches of an image, so that detectron2 "
                f"fills windows up with zeros, which the encoder never saw. Set model.backbone.net.window_size={due}"
            )
    return f"{window} patches, which tile the images", None


def coarsest_stride(model: Any) -> int:
    """What sides of images must be a multiple of, in pixels, for the pyramid to lose nothing of them."""
    return int(getattr(model.backbone, "_size_divisibility", 0) or 1)


def square_pad(model: Any) -> int:
    """The square that images are padded to, and cut to; 0 for none."""
    return int((model.backbone.padding_constraints or {}).get("square_size", 0))


def grid_of(model: Any, image: Tensor) -> tuple[int, int]:
    """The size (height, width) in pixels that the model makes of an image (C, H, W) alone."""
    height, width = model.preprocess_image([{"image": image}]).tensor.shape[-2:]
    return int(height), int(width)


def write_record(encoder: Encoder, size: tuple[int, int], folder: Path, name: str) -> dict[str, Any]:
    """The dataset record of an image file with two objects, as detectron2's datasets have it."""
    from detectron2.structures import BoxMode

    height, width = size
    pixels = sample_images(size, encoder.spec.channels)[0]
    drawn = pixels[..., ::-1] if is_bgr(encoder.preprocessing) else pixels
    path = folder / f"{name}.png"
    Image.fromarray(np.ascontiguousarray(drawn.squeeze(2) if drawn.shape[2] == 1 else drawn)).save(path)
    annotations = []
    for low, high in ((0.05, 0.95), (0.3, 0.7)):
        left, top, right, bottom = low * width, low * height, high * width, high * height
        outline = [left, top, right, top, right, bottom, left, bottom]
        annotations.append(
            {
                "bbox": [left, top, right, bottom],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "segmentation": [outline],
                "iscrowd": 0,
            }
        )
    return {"file_name": str(path), "height": height, "width": width, "image_id": 0, "annotations": annotations}


def synthetic_sample(model: Any, vit: Any, encoder: Encoder) -> dict[str, Any]:
    """A synthetic sample for a config without mappers: of the size that the model pads to, or of the encoder's."""
    from detectron2.structures import BitMasks, Boxes, Instances

    side = square_pad(model) or max(max(encoder.spec.image_size), 2 * coarsest_stride(model))
    pixels = sample_images((side, side), encoder.spec.channels, encoder.preprocessing.value_range)[0]
    target = Instances((side, side))
    target.gt_boxes = Boxes(torch.tensor([[0.1 * side, 0.1 * side, 0.8 * side, 0.9 * side]]))
    target.gt_classes = torch.zeros(1, dtype=torch.int64)
    target.gt_masks = BitMasks(torch.ones(1, side, side))
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return {"image": image, "instances": target, "height": side, "width": side}


def untrainable_reason(model: Any) -> str | None:
    """Why a model's heads can't have a training step here; None for those that can."""
    heads = getattr(model, "roi_heads", None)
    if getattr(heads, "keypoint_on", False) or getattr(heads, "keypoint_head", None) is not None:
        return "the sample images have no keypoints"
    return "the sample images have no labels of stuff" if hasattr(model, "sem_seg_head") else None


def cost(model: Any, samples: Sequence[Mapping[str, Any]]) -> Cost | None:
    """The cost of a forward pass over a batch: backbone, the heads on its levels, and on as many boxes as are drawn."""
    height, width = (max(sizes) for sizes in zip(*(grid_of(model, sample["image"]) for sample in samples), strict=True))
    channels = samples[0]["image"].shape[0]

    def forward(empty: Any) -> None:
        levels = empty.backbone(torch.empty(len(samples), channels, height, width, device="meta"))
        rpn = getattr(empty, "proposal_generator", None)
        if rpn is not None:
            rpn.rpn_head([levels[name] for name in rpn.in_features])
        heads = getattr(empty, "roi_heads", None)
        boxes = len(samples) * int(getattr(heads, "batch_size_per_image", 0))
        width_of = next(iter(levels.values())).shape[1]
        for name, count in (("box", boxes), ("mask", boxes // 4)):
            pooler: Any = getattr(heads, f"{name}_pooler", None)
            head: Any = getattr(heads, f"{name}_head", None)
            if pooler is None or head is None:
                continue
            pooled = torch.empty(count, width_of, *pooler.output_size, device="meta")
            stages: list[Any] = list(head) if isinstance(head, torch.nn.ModuleList) else [head]
            for stage in stages:
                (stage.layers if name == "mask" else stage)(pooled)

    return cost_of(model, forward)


def train_step(
    model: Any, samples: Sequence[Mapping[str, Any]], optimizer: Callable[[Any], Any] | None
) -> tuple[str, None]:
    """Losses, gradients and the config's own optimizer; raises CheckpointError for a loss that is no number."""
    from detectron2.utils.events import EventStorage

    model.train()
    update = optimizer(model) if optimizer is not None else None
    with EventStorage():
        losses = model(list(samples))
    total = sum(losses.values())
    total.backward()
    if not torch.isfinite(total):
        bad = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        raise CheckpointError(f"{', '.join(bad)} of the first step is no number")
    if update is not None:
        update.step()
    return (
        f"{len(samples)} images, {', '.join(f'{name} {float(loss.detach()):.3g}' for name, loss in losses.items())}",
        None,
    )


def test_step(model: Any, sample: Mapping[str, Any]) -> tuple[str, None]:
    """Make a prediction; raises CheckpointError for one of another size than the image."""
    model.eval()
    with torch.no_grad():
        found = model([dict(sample)])[0]["instances"]
    due = (sample["height"], sample["width"])
    if tuple(found.image_size) != due:
        raise CheckpointError(f"a prediction for {times(found.image_size)} pixels, of an image of {times(due)}")
    return f"an image of {times(due)} pixels, {len(found)} objects", None
