"""Trial run of an mmseg config: its heads, its pipelines on sample images, one training and one inference step."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..core.errors import CheckpointError
from ..core.models.encoder import Encoder
from .certificate import Step
from .mmseg_config import upernet_blocks
from .mmseg_images import type_name, unwrapped, write_image
from .parity import sample_images
from .trial import Cost, TrialReport, check_drop_path, cost_of, skip_reason, times

TRAIN, TEST = "train_dataloader", "test_dataloader"
MIXED = 2
"""Images of the training step: the heads' batch norm can't learn from one."""


def run_trial(
    config: Any, model: Any, encoder: Encoder, step_seconds: float, *, certified: bool = True
) -> tuple[Step, ...]:
    """Run a config's parts one by one; returns a step for each. ``model`` is trained for a step if it is ``certified``."""
    from mmengine.model import revert_sync_batchnorm

    trial = TrialReport()
    model = revert_sync_batchnorm(model)
    size = backbone_size(model.backbone)
    check_drop_path(trial, model.backbone, "model.backbone.drop_path_rate")
    check_blocks(trial, config, model)
    trial.run("neck and heads", partial(heads_fit, config, model, encoder, size))
    check_sliding(trial, config, size)
    with tempfile.TemporaryDirectory() as folder:
        batch = trial.run("training pipeline", partial(train_batch, config, model, encoder, size, Path(folder)))
        sample = trial.run("test pipeline", partial(test_batch, config, model, encoder, size, Path(folder)))
    if trial.failed or batch is None or sample is None:
        return tuple(trial.steps)
    shape = tuple(batch["inputs"].shape)
    reason: str | None = "the certificate failed"
    if certified:
        cost = cost_of(model, lambda empty: empty._forward(torch.empty(shape, device="meta")))
        reason = skip_reason(with_windows(cost, config, sample), step_seconds)
    if reason is not None:
        trial.skip_steps(reason)
        return tuple(trial.steps)
    trial.run("training step", partial(train_step, model, batch))
    trial.run("inference step", partial(test_step, model, sample))
    return tuple(trial.steps)


def backbone_size(backbone: Any) -> tuple[int, int] | None:
    """The one size (height, width) in pixels that mmseg's MAE takes; None for a backbone that takes any."""
    if not hasattr(backbone, "patch_shape"):
        return None
    rows, columns = backbone.patch_shape
    return rows * backbone.patch_size, columns * backbone.patch_size


def check_blocks(trial: TrialReport, config: Any, model: Any) -> None:
    """Record blocks that don't exist; mmseg's MAE silently gives no map for them."""
    given = config.model.backbone.get("out_indices")
    if not isinstance(given, Sequence):
        return
    depth = len(getattr(model.backbone, "layers", ())) or model.backbone.depth
    least = 0 if hasattr(model.backbone, "layers") else -depth  # MaeliftViT counts negative ones from the end
    if any(not least <= block < depth for block in given):
        blocks = upernet_blocks(depth)
        trial.fail(
            "blocks",
            f"model.backbone.out_indices={list(given)}: the encoder has blocks 0 to {depth - 1}. Set out_indices={blocks}, and "
            f"neck and heads for {len(blocks)} map{'s' if len(blocks) > 1 else ''} (docs/mmseg.md)",
        )


def heads_fit(config: Any, model: Any, encoder: Encoder, size: tuple[int, int] | None) -> tuple[str, None]:
    """Run backbone, neck and heads on the meta device; raises CheckpointError, naming what does not fit."""
    side = size or encoder.spec.image_size
    empty: Any = None

    def shapes(copied: Any) -> None:
        nonlocal empty
        empty = copied

    cost_of(model, shapes)
    if empty is None:
        return "not checked without values", None
    with torch.no_grad():
        maps = list(empty.backbone(torch.empty(MIXED, encoder.spec.channels, *side, device="meta")))
        given = f"{len(maps)} map{'s' if len(maps) != 1 else ''} of {maps[0].shape[1]} channels"
        if empty.with_neck:
            check_neck(config, len(maps), maps[0].shape[1])
            try:
                maps = list(empty.neck(tuple(maps)))
            except (AssertionError, RuntimeError, IndexError, ValueError) as error:
                raise CheckpointError(
                    f"model.neck: {type_name(config.model.neck)} doesn't take the backbone's {given} "
                    f"({first_line(error)}). Set its channels and scales for as many as model.backbone.out_indices names"
                ) from error
        for name in ("decode_head", "auxiliary_head"):
            check_heads(name, config.model.get(name), getattr(model, name, None), [found.shape[1] for found in maps])
    channels = ", ".join(dict.fromkeys(str(found.shape[1]) for found in maps))
    return f"the heads take the backbone's {len(maps)} map{'s' if len(maps) > 1 else ''} ({channels} channels)", None


def check_neck(config: Any, count: int, channels: int) -> None:
    """Raise CheckpointError for a neck made for more or fewer maps than the backbone gives, or for other channels."""
    neck = config.model.neck
    for key in ("rescales", "in_channels"):
        made = neck.get(key)
        if isinstance(made, Sequence) and len(made) != count:
            raise CheckpointError(
                f"model.neck.{key}={list(made)}: for {len(made)} maps, and the backbone gives {count} "
                f"(model.backbone.out_indices={list(config.model.backbone.get('out_indices', ()))}). Name {len(made)} blocks, or "
                f"give {key} {count} values"
            )
    for key in ("embed_dim", "in_channels"):
        made = neck.get(key)
        if made is not None and set(made if isinstance(made, Sequence) else [made]) != {channels}:
            raise CheckpointError(f"model.neck.{key}={made}: the encoder's maps have {channels} channels")


def check_heads(name: str, settings: Any, built: Any, channels: Sequence[int]) -> None:
    """Raise CheckpointError for heads that take maps which aren't there, or maps of other channels."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    several = isinstance(settings, Sequence)
    for number, head in enumerate(settings if several else [settings]):
        module = built[number] if several else built
        if not isinstance(module, BaseDecodeHead):  # others choose maps by rules of their own: the step shows it
            continue
        key = f"model.{name}{f'.{number}' if several else ''}"
        index, given = module.in_index, head.get("in_channels")
        indices = list(index) if isinstance(index, Sequence) else [index]
        if any(not -len(channels) <= entry < len(channels) for entry in indices):
            raise CheckpointError(
                f"{key}.in_index={index}: there are {len(channels)} maps, 0 to {len(channels) - 1} (one for each of "
                "model.backbone.out_indices, or what the neck makes of them). Name those"
            )
        due = [channels[entry] for entry in indices]
        if given is not None and (list(given) if isinstance(given, Sequence) else [given]) != due:
            expected = due if isinstance(given, Sequence) else due[0]
            raise CheckpointError(f"{key}.in_channels={given}: the maps that it takes have {expected}. Set it so")


def check_sliding(trial: TrialReport, config: Any, size: tuple[int, int] | None) -> None:
    """Record a sliding window of another size than the backbone takes."""
    settings = config.model.get("test_cfg") or {}
    if size is None or settings.get("mode") != "slide":
        return
    crop = tuple(settings.get("crop_size", ()))
    if crop != size:
        stride = tuple(side * 2 // 3 for side in size)
        trial.fail(
            "sliding window",
            f"model.test_cfg.crop_size={crop}: the backbone takes img_size={size} only. Set model.test_cfg.crop_size={size} "
            f"and stride={stride}",
        )


def train_batch(
    config: Any, model: Any, encoder: Encoder, size: tuple[int, int] | None, folder: Path
) -> tuple[str, dict[str, Any]]:
    """A prepared training batch: images and masks in files, through the config's own pipeline and preprocessor."""
    dataset = dataset_of(config, TRAIN)
    pipeline = composed(dataset, TRAIN)
    head = config.model.get("decode_head") or {}
    classes = int(head.get("num_classes", 2)) if isinstance(head, Mapping) else 2
    items = []
    for number in range(MIXED):
        image, mask = write_sample(
            encoder, sample_size(size or encoder.spec.image_size), classes, folder, f"train{number}"
        )
        items.append(packed(pipeline, dataset, image, mask, TRAIN))
    largest = [max(item["inputs"].shape[axis] for item in items) for axis in (1, 2)]
    if size is not None and (largest[0] > size[0] or largest[1] > size[1]):
        steps = [type_name(step) for step in dataset.pipeline]
        where = f"{TRAIN}.dataset.pipeline.{steps.index('RandomCrop')}." if "RandomCrop" in steps else "RandomCrop's "
        raise CheckpointError(
            f"{TRAIN}.dataset.pipeline gives images of {times(largest)} pixels, and the backbone takes img_size={size} only. "
            f"Set {where}crop_size={size}, or export the encoder for that crop"
        )
    samples = [item["data_samples"] for item in items]
    batch = model.data_preprocessor({"inputs": [item["inputs"] for item in items], "data_samples": samples}, True)
    check_input(batch["inputs"], size, "model.data_preprocessor.size")
    return f"images of {times(largest)} pixels, {times(batch['inputs'].shape[-2:])} as prepared", batch


def test_batch(
    config: Any, model: Any, encoder: Encoder, size: tuple[int, int] | None, folder: Path
) -> tuple[str, dict[str, Any]]:
    """An image as the test pipeline gives it, for ``test_step``."""
    dataset = dataset_of(config, TEST)
    image, mask = write_sample(encoder, sample_size(size or encoder.spec.image_size), 2, folder, "test")
    item = packed(composed(dataset, TEST), dataset, image, mask, TEST)
    sample = {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}
    mode = (config.model.get("test_cfg") or {}).get("mode")
    if size is not None and mode == "whole":
        prepared = model.data_preprocessor({key: list(value) for key, value in sample.items()}, False)["inputs"]
        stride = tuple(side * 2 // 3 for side in size)
        if tuple(prepared.shape[-2:]) != size:
            raise CheckpointError(
                f"model.test_cfg.mode=whole gives the backbone {times(prepared.shape[-2:])} pixels, and it takes img_size={size} "
                f"only. Set model.test_cfg=dict(mode='slide', crop_size={size}, stride={stride})"
            )
    return (
        f"images of {times(item['inputs'].shape[-2:])} pixels, tested {'by sliding' if mode == 'slide' else 'whole'}",
        sample,
    )


def check_input(images: torch.Tensor, size: tuple[int, int] | None, key: str) -> None:
    """Raise CheckpointError for prepared images of another size than the backbone takes."""
    found = tuple(images.shape[-2:])
    if size is not None and found != size:
        raise CheckpointError(
            f"{key}: prepared images have {times(found)} pixels, and the backbone takes img_size={size} only. Set {key}={size}"
        )


def train_step(model: Any, batch: Mapping[str, Any]) -> tuple[str, None]:
    """Loss and gradients of a batch; raises CheckpointError for a loss that is no number."""
    model.train()
    loss, _ = model.parse_losses(model(**batch, mode="loss"))
    loss.backward()
    if not torch.isfinite(loss):
        raise CheckpointError(f"the loss of the first step is {float(loss.detach())}")
    gradients = [parameter.grad for parameter in model.backbone.parameters() if parameter.grad is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise CheckpointError("the gradients of the first step are no numbers")
    return f"{MIXED} images, loss {float(loss.detach()):.3g}", None


def test_step(model: Any, sample: dict[str, Any]) -> tuple[str, None]:
    """Make a prediction; raises CheckpointError for one of another size than the image."""
    model.eval()
    due = tuple(sample["data_samples"][0].metainfo["ori_shape"])
    with torch.no_grad():
        found = model.test_step(sample)[0].pred_sem_seg.data
    if tuple(found.shape[-2:]) != due:
        raise CheckpointError(f"a prediction of {times(found.shape[-2:])} pixels for an image of {times(due)}")
    return f"an image of {times(due)} pixels", None


def with_windows(cost: Cost | None, config: Any, sample: Mapping[str, Any]) -> Cost | None:
    """The cost of a training step or, where it is more, of all windows that slide over an image."""
    settings = config.model.get("test_cfg") or {}
    if cost is None or settings.get("mode") != "slide":
        return cost
    height, width = sample["inputs"][0].shape[-2:]
    windows = 1
    for side, crop, stride in zip((height, width), settings["crop_size"], settings["stride"], strict=True):
        windows *= max(side - crop + stride - 1, 0) // stride + 1
    return Cost(cost.flops * max(1.0, windows / MIXED / 4), cost.bytes)


def dataset_of(config: Any, loader: str) -> Any:
    """A dataloader's dataset, wrappers such as RepeatDataset left out."""
    settings = config.get(loader) or (config.get("val_dataloader") if loader == TEST else None)
    if not settings:
        raise CheckpointError(f"the config has no {loader}, which mmseg's own tools need")
    return unwrapped(settings.dataset)


def composed(dataset: Any, loader: str) -> list[tuple[str, Any]]:
    """The steps of a pipeline, built, with their names."""
    from mmseg.registry import TRANSFORMS

    steps = []
    for number, step in enumerate(dataset.pipeline):
        try:
            steps.append((f"{loader}.dataset.pipeline.{number} ({type_name(step)})", TRANSFORMS.build(step)))
        except Exception as error:
            raise CheckpointError(
                f"{loader}.dataset.pipeline.{number} ({type_name(step)}): {first_line(error)}"
            ) from error
    return steps


def packed(steps: Sequence[tuple[str, Any]], dataset: Any, image: str, mask: str, loader: str) -> dict[str, Any]:
    """What a pipeline makes of an image and its mask; raises CheckpointError, naming the step that failed."""
    item: Any = {
        "img_path": image,
        "seg_map_path": mask,
        "label_map": None,
        "reduce_zero_label": reduces_zero(dataset),
        "seg_fields": [],
        "sample_idx": 0,
    }
    for name, step in steps:
        try:
            item = step(item)
        except Exception as error:
            raise CheckpointError(f"{name}: {first_line(error)}") from error
        if item is None:
            raise CheckpointError(f"{name}: gives nothing for an image")
    if not isinstance(item, dict) or not {"inputs", "data_samples"} <= set(item):
        raise CheckpointError(f"{loader}.dataset.pipeline: doesn't end with PackSegInputs")
    return item


def reduces_zero(dataset: Any) -> bool:
    """Whether a dataset takes 0 in masks for not labelled: its key, or its class' own default."""
    from mmseg.registry import DATASETS

    if "reduce_zero_label" in dataset:
        return bool(dataset.reduce_zero_label)
    kind = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    default = inspect.signature(kind).parameters.get("reduce_zero_label") if kind else None
    return default is not None and default.default is True


def write_sample(encoder: Encoder, size: tuple[int, int], classes: int, folder: Path, name: str) -> tuple[str, str]:
    """Write an image and a mask of blocks of classes as files."""
    pixels = sample_images(size, encoder.spec.channels, encoder.preprocessing.value_range)[0]
    image = write_image(pixels, encoder, folder / name)
    rows, columns = np.indices(size)
    mask = ((rows * 4 // size[0] + columns * 4 // size[1]) % max(2, min(classes, 4))).astype(np.uint8)
    Image.fromarray(mask).save(folder / f"{name}_mask.png")
    return image, str(folder / f"{name}_mask.png")


def sample_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size of an image larger than the crop, of another shape, and of no round size."""
    return size[0] * 5 // 4 + 3, size[1] * 3 // 2 + 5


def first_line(error: Exception) -> str:
    """The type and first line of an error."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{f': {reason[:200]}' if reason else ''}"
