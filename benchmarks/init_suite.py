"""maelift init: a suite file for one's own images, made from what is in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..core.data.audit import common_channels
from ..core.data.classification import MultiLabeledImages
from ..core.data.format_evidence import PRETRAIN
from ..core.data.images import ImageSet, opened
from ..core.data.pixel_format import PixelFormat
from ..core.data.reading_keys import PartKeys
from ..core.data.sources import find_source
from ..core.data.task_data import AnnotationKeys
from ..core.dry_run import Plan
from ..core.errors import DataError, MaeliftError
from ..core.files import atomic_write_text, output_folder
from ..core.models.encoder_spec import PRESETS
from ..core.terminal import quoted
from ..core.tools.check_data import DataCheckConfig, tasks_of
from ..transfer.tasks import annotated_tasks, entry
from .suite import BenchConfig
from .task_design import CLASSIFY, LARGEST_DRAW

ANY_RANGE = (-1e15, 1e15)
"""Of values as they are in the files."""
LOW_BITS = 12
"""Images of 16 bits that use so few are given the range of these, as they would be nearly black in all 16."""
TEMPLATE = Path(__file__).with_name("own_images.yaml.j2")
SIZED_IMAGES = 50
"""Images whose size decides which model fits."""
PAPERS_DECODER = 512
"""Width of the paper's decoder (Table 1)."""
SHOWN_CLASSES = 6
"""Classes whose names are shown."""
FEWEST, MOST = 20, 2000
"""Labelled images of the smaller label count: at least, and no more than."""
POOL_SHARES = (0.8, 0.65, 0.5)
"""Of the training images, to pretrain on: the first that leaves enough to draw labelled ones from."""


@dataclass(frozen=True)
class InitConfig(PartKeys):
    """Write a suite for your own images: open it, read it, then run it with maelift bench."""

    data: str
    """folder of labelled images: class folders or a CSV, COCO JSON, or images/ and masks/"""
    unlabelled: str | None = None
    """more images to pretrain on, as maelift pretrain takes them; null: a part of data, without its labels"""
    out: str = "suite.yaml"
    """the suite file; it must not be there yet"""
    layout: Literal["auto", "class_folders", "folders", "ade20k", "cityscapes", "coco", "yolo", "voc"] = "auto"
    """class_folders: every folder of data is a class; coco, yolo, voc: how boxes are written; folders, ade20k, cityscapes: how
    images and masks are arranged in folders; auto: as found"""
    label_column: str | tuple[str, ...] | None = None
    """the CSV's column of labels, or [a,b,c]: its columns of 0 and 1, a class each; null: as the header says"""
    group: str | None = None
    """what stays in one part, a patient, video or flight: a column of the CSV, a regular expression over the images' paths, or of
    GeoTIFF files tile:SIZE, squares of the map"""

    def __post_init__(self) -> None:
        self.check_parts()


@dataclass(frozen=True)
class Suite:
    """The suite file that was written, and what it compares."""

    file: Path
    lines: tuple[str, ...]

    def summary(self) -> str:
        """What was found, and what to do next."""
        return "\n".join(
            [*self.lines, f"suite: {self.file}", f"next: maelift bench {quoted(self.file)} out=FOLDER --dry-run"]
        )


@dataclass(frozen=True)
class _Found:
    """Annotated images of a task: how many there are to learn from, of how many classes, and where its images are."""

    task: str
    images: ImageSet
    train: int
    names: tuple[str, ...]
    splits: tuple[str, ...]
    root: str
    keys: Mapping[str, object]
    least: int
    """the fewest labelled images that can be drawn"""

    @property
    def line(self) -> str:
        """What was found, as one line."""
        splits, shown = ", ".join(self.splits), ", ".join(self.names[:SHOWN_CLASSES])
        named = shown if self.classes <= SHOWN_CLASSES else f"{shown}, …"
        return f"{self.task}: {self.train:,} training images, {self.classes} classes ({named}); splits there: {splits}"

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.names)


def init(config: InitConfig) -> Suite:
    """Scan a folder and write a suite for what is there; raises MaeliftError where nothing can be compared."""
    file = Path(config.out)
    if file.exists():
        raise MaeliftError(
            f"out={file}: is there already, and may have been changed by hand. Give another name, or remove it."
        )
    found = [_find(task, config) for task in _tasks(config)]
    shares = {
        one.task: _pool_share(one) if config.unlabelled is None and one.task == CLASSIFY else 0.0 for one in found
    }
    labels = {one.task: _labels(one, shares[one.task]) for one in found}
    pool = config.unlabelled or (None if found[0].task == "classify" else found[0].root)
    images = found[0].images if pool is None else find_source(pool, config.slices)
    look = _look(images, config)
    model, image_size = _model_for(look.side)
    values = {
        "data": config.data,
        "tasks": found,
        "classify": found[0] if found[0].task == "classify" else None,
        "pool": pool,
        "labelled_pool": pool is None,
        "pool_share": shares[found[0].task],
        "look": look,
        "model": model,
        "image_size": image_size,
        "patch_size": PRESETS[model].patch_size,
        "decoder": _decoder_width(model),
        "epochs": _epochs(len(images)),
        "batch_size": _batch_size(len(images)),
        "labels": labels,
        "group": config.group,
        "parts": _given_parts(config),
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = _in_yaml
    text = environment.get_template(TEMPLATE.name).render(**values)
    output_folder(file.parent)
    atomic_write_text(file, text)
    BenchConfig.resolve({"suite": str(file), "out": "out"})  # a suite that can't be read would be our mistake
    lines = [
        *(one.line for one in found),
        f"pool: {len(images):,} images, {look.kind}, about {look.side} pixels a side",
    ]
    lines += [f"model: {model} at {image_size} pixels, patch {values['patch_size']}"]
    return Suite(file, (*lines, *_warnings(found, labels, shares)))


def _given_parts(config: InitConfig) -> dict[str, object]:
    """The keys that say which part of files is read, those that differ from their defaults."""
    values = {field.name: (getattr(config, field.name), field.default) for field in fields(PartKeys)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, (value, usual) in values.items()
        if value != usual
    }


def plan(config: InitConfig) -> Plan:
    """What ``init`` would read."""
    return Plan((("data", config.data), ("as", ", ".join(_tasks(config))), ("suite", config.out)))


def _tasks(config: InitConfig) -> tuple[str, ...]:
    """The tasks that the data is annotated for, or pretrain."""
    return tasks_of(DataCheckConfig(config.data, layout=config.layout), annotated_tasks())


def _find(task: str, config: InitConfig) -> _Found:
    """The annotated images of a task; raises DataError where there are none."""
    data = config.data
    if task == PRETRAIN:
        raise DataError(
            f"data={data}: images without labels. A benchmark needs some with: class folders, a CSV with path,label, COCO "
            "JSON, or masks. Give these as data, and this folder as unlabelled."
        )
    keys = AnnotationKeys(config.layout, None, config.label_column, config.group, slices=config.slices)
    annotated = entry(task).annotated_task()
    parts = annotated.labeled_splits(data, keys)
    if any(isinstance(part, MultiLabeledImages) for part in parts.values()):
        raise DataError(f"data={data}: images with several classes each. A benchmark needs one class for each image.")
    if "train" not in parts:
        raise DataError(f"data={data}: no training images; found only {', '.join(sorted(parts))}.")
    train = parts["train"]
    root = str(getattr(train.images, "root", data))
    task_keys = {**({} if config.group is None else {"group": config.group}), **annotated.transfer_keys(data, keys)}
    return _Found(
        task,
        train.images,
        len(train),
        train.classes,
        tuple(sorted(parts)),
        root,
        task_keys,
        train.min_train,
    )


@dataclass(frozen=True)
class _FirstImages:
    """What the first images are like: channels and their names, the shorter ``side`` that is usual, in pixels, and the range of
    stored values where it must be given; None where it is that of 8 or 16 bits."""

    channels: int
    side: int
    names: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None

    @property
    def kind(self) -> str:
        """The images in words."""
        known = {1: "gray", 3: "colour"}
        kind = known.get(self.channels, f"{self.channels} channels")
        kind += f" ({', '.join(self.names)})" if self.names else ""
        return (
            kind if self.value_range is None else f"{kind}, values {self.value_range[0]:g} to {self.value_range[1]:g}"
        )


def _look(images: ImageSet, keys: PartKeys) -> _FirstImages:
    """Open the first images, with a window where there is one; those of gray and of colour together count as colour."""
    form = keys.with_parts(PixelFormat(value_range=None if keys.window else ANY_RANGE))
    found, names, ends = [], set(), []
    for number in range(min(SIZED_IMAGES, len(images))):
        try:
            picture = opened(images, number, form)
            pixels = picture.pixels()
        except DataError:
            continue
        found.append((pixels.shape[2], min(picture.size)))
        names.add(picture.channel_names)
        if pixels.dtype != np.uint8:
            ends.append((float(np.nanmin(pixels)), float(np.nanmax(pixels))))
    if not found:
        raise DataError(f"none of the first {SIZED_IMAGES} images can be read. See maelift data check.")
    channels = common_channels(channels for channels, _ in found)
    stated = names.pop() if len(names) == 1 else ()
    named = stated if channels not in (1, 3) and len(stated) == channels else ()
    value_range = None if keys.window is not None else _value_range(images, ends)
    return _FirstImages(channels, int(median(side for _, side in found)), named, value_range)


def _value_range(images: ImageSet, ends: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The range that must be given for values from ``ends``: of floats, signed integers, and of 16 bits that use a sixteenth."""
    if not ends:
        return None
    low, high = math.floor(min(low for low, _ in ends)), math.ceil(max(high for _, high in ends))
    try:
        opened(images, 0).pixels()
    except DataError:
        return float(low), float(max(high, low + 1))
    bits = max(1, high).bit_length()
    return (0.0, float(2**bits - 1)) if low >= 0 and bits <= LOW_BITS else None


def _model_for(side: int) -> tuple[str, int]:
    """A model for images of this size, and the multiple of its patch that is nearest to them."""
    model = "vit_nano" if side <= 40 else "vit_micro" if side <= 96 else "vit_small"
    patch = PRESETS[model].patch_size
    return model, max(2, round(min(side, 224) / patch)) * patch


def _decoder_width(model: str) -> int | None:
    """Of a decoder for a small encoder; None for the paper's. It should cost little beside the encoder (paper, Section 3)."""
    width = PRESETS[model].embed_dim
    return width if width < PAPERS_DECODER // 2 else None


def _epochs(images: int) -> int:
    """Of pretraining: some 20 million images seen, within what is usual."""
    return max(20, min(800, 20_000_000 // max(images, 1)))


def _batch_size(images: int) -> int:
    """Of pretraining: the usual one, or such that an epoch has some steps."""
    return max(8, min(256, 1 << (max(images, 64) // 16).bit_length()))


def _source(found: _Found, pool_share: float) -> int:
    """How many images labelled ones are drawn from, besides validation, test and the pool."""
    left = found.train if "test" in found.splits else int(0.9 * found.train)
    left = left if "val" in found.splits else int(0.9 * left)
    return int((1 - pool_share) * left)


def _wanted(found: _Found) -> int:
    """The smaller label count: some for each class."""
    return max(FEWEST, min(MOST, 10 * found.classes))


def _pool_share(found: _Found) -> float:
    """The share of the training images to pretrain on."""
    enough = (share for share in POOL_SHARES if LARGEST_DRAW * _source(found, share) >= _wanted(found))
    return next(enough, POOL_SHARES[-1])


def _labels(found: _Found, pool_share: float) -> Sequence[int]:
    """Two label counts, ten times apart or as far as there are images: of more than a fifth of them seeds share too many."""
    most = max(found.least, int(LARGEST_DRAW * _source(found, pool_share)))
    fewer = max(found.least, min(_wanted(found), most))
    more = min(10 * fewer, most)
    return [fewer] if more < 2 * fewer else [fewer, more]


def _warnings(
    found: Sequence[_Found], labels: Mapping[str, Sequence[int]], shares: Mapping[str, float]
) -> Iterator[str]:
    """What a user should know of a suite before it runs."""
    for one in found:
        source = _source(one, shares[one.task])
        if max(labels[one.task]) > LARGEST_DRAW * source:
            yield (
                f"beware: {one.task}: there are {source:,} images to draw labelled ones from, few for {one.classes} classes: "
                "seeds share many of them. Label more images, or give unlabelled ones to pretrain on (unlabelled=...)."
            )
        elif max(labels[one.task]) < _wanted(one):
            yield (
                f"beware: {one.task}: {max(labels[one.task])} labels are few for {one.classes} classes, as there are {source:,} "
                "images to draw them from."
            )


def _in_yaml(value: object) -> str:
    """A value as YAML reads it back, whatever is in it: JSON."""
    return json.dumps(value, ensure_ascii=False)
