"""maelift init: a suite file for one's own images, made from what is in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.data.classification import MultiLabeledImages
from ..core.data.first_images import first_images
from ..core.data.format_evidence import PRETRAIN
from ..core.data.images import ImageSet
from ..core.data.labeled_dataset import LARGEST_DRAW
from ..core.data.reading_keys import PartKeys
from ..core.data.sources import find_source
from ..core.data.task_data import AnnotationKeys
from ..core.dry_run import Plan
from ..core.errors import DataError, MaeliftError
from ..core.files import atomic_write_text, output_folder
from ..core.models.encoder_spec import PRESETS
from ..core.terminal import quoted
from ..core.text_templates import text_template
from ..core.tools.check_data import DataCheckConfig, tasks_of
from ..transfer.tasks import CLASSIFY, annotated_tasks, entry

TEMPLATE = Path(__file__).with_name("own_images.yaml.j2")
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
class SuiteSize:
    """How much a suite compares: encoders (seeds of pretraining), seeds, and steps that every arm's tuning begins with.

    ``hours``: of computing, after which no run is begun; ``pretrain``: keys of pretraining, with model and sizes, in place of
    those by the size and number of images. ``supervised``: the upper bound, pretraining with the pool's labels, is an arm.
    """

    encoders: int = 3
    seeds: int = 6
    steps: int = 250
    max_doublings: int = 3
    hours: float = 24
    supervised: bool = True
    pretrain: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def work(self) -> float:
        """Steps of all trainings of an arm at a rate, doubled ones too."""
        return float(self.seeds * self.steps * sum(2**number for number in range(self.max_doublings + 1)))


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
class AnnotatedTask:
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
    if Path(config.out).exists():
        raise MaeliftError(
            f"out={config.out}: is there already, and may have been changed by hand. Give another name, or remove it."
        )
    return write_suite(config, annotated(config), SuiteSize())


def annotated(config: InitConfig) -> list[AnnotatedTask]:
    """The annotated images of each task that the data is annotated for; raises DataError where there are none."""
    return [_find(task, config) for task in _tasks(config)]


def _pool(config: InitConfig, found: Sequence[AnnotatedTask]) -> str | None:
    """Where the images to pretrain on are; None for a part of the labelled ones."""
    return config.unlabelled or (None if found[0].task == CLASSIFY else found[0].root)


def pool_images(config: InitConfig, found: Sequence[AnnotatedTask]) -> ImageSet:
    """The images to pretrain on; where they will be drawn from labelled ones, about as many of these, evenly spaced."""
    pool = _pool(config, found)
    if pool is not None:
        return find_source(pool, config.slices)
    images = found[0].images
    count = max(1, int(_pool_share(found[0]) * _left_to_train(found[0])))
    return images.subset(np.linspace(0, len(images) - 1, count).round().astype(np.int64))


def write_suite(config: InitConfig, found: Sequence[AnnotatedTask], design: SuiteSize) -> Suite:
    """Write the suite that compares as much as ``design`` says on what was found."""
    file, pool = Path(config.out), _pool(config, found)
    shares = {
        one.task: _pool_share(one) if config.unlabelled is None and one.task == CLASSIFY else 0.0 for one in found
    }
    labels = {one.task: _labels(one, shares[one.task]) for one in found}
    images = pool_images(config, found)
    look = first_images(images, config)
    usual = _usual_pretraining(look.side, len(images))
    pretraining = {**usual, **{key: value for key, value in design.pretrain.items() if key in _SHOWN_KEYS}}
    values = {
        "data": config.data,
        "tasks": found,
        "classify": found[0] if found[0].task == CLASSIFY else None,
        "pool": pool,
        "labelled_pool": pool is None,
        "pool_share": shares[found[0].task],
        "look": look,
        "labels": labels,
        "group": config.group,
        "parts": given_parts(config),
        "design": design,
        **pretraining,
    }
    text = text_template(TEMPLATE, yaml=_in_yaml).render(**values)
    output_folder(file.parent)
    atomic_write_text(file, text)
    lines = [
        *(one.line for one in found),
        f"pool: {len(images):,} images, {look.kind}, about {look.side} pixels a side",
        f"model: {values['model']} at {values['image_size']} pixels, patch {values['patch_size']}",
    ]
    return Suite(file, (*lines, *_warnings(found, labels, shares)))


_SHOWN_KEYS = ("model", "image_size", "patch_size", "epochs", "batch_size", "base_lr", "decoder")
"""Keys of pretraining that a suite's file states."""


def _usual_pretraining(side: int, images: int) -> dict[str, Any]:
    """Those keys by the size and number of the images."""
    model, image_size = _model_for(side)
    return {
        "model": model,
        "image_size": image_size,
        "patch_size": PRESETS[model].patch_size,
        "decoder": _light_decoder(model),
        "epochs": _epochs(images),
        "batch_size": _batch_size(images),
        "base_lr": None,
    }


def given_parts(config: InitConfig) -> dict[str, object]:
    """The keys that say which part of files is read, those that differ from their defaults."""
    values = {field.name: (getattr(config, field.name), field.default) for field in fields(PartKeys)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, (value, usual) in values.items()
        if value != usual
    }


def plan(config: InitConfig) -> Plan:
    """What ``init`` would read."""
    return Plan(plan_lines(config))


def plan_lines(config: InitConfig) -> tuple[tuple[str, str], ...]:
    """The same as lines."""
    return ("data", config.data), ("as", ", ".join(_tasks(config))), ("suite", config.out)


def _tasks(config: InitConfig) -> tuple[str, ...]:
    """The tasks that the data is annotated for, or pretrain."""
    return tasks_of(DataCheckConfig(config.data, layout=config.layout), annotated_tasks())


def _find(task: str, config: InitConfig) -> AnnotatedTask:
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
    return AnnotatedTask(
        task,
        train.images,
        len(train),
        train.classes,
        tuple(sorted(parts)),
        root,
        task_keys,
        train.min_train,
    )


def _model_for(side: int) -> tuple[str, int]:
    """A model for images of this size, and the multiple of its patch that is nearest to them."""
    model = "vit_nano" if side <= 40 else "vit_micro" if side <= 96 else "vit_small"
    patch = PRESETS[model].patch_size
    return model, max(2, round(min(side, 224) / patch)) * patch


def _light_decoder(model: str) -> dict[str, int] | None:
    """A decoder for a small encoder; None for the paper's. It should cost little beside the encoder (paper, Section 3)."""
    width = PRESETS[model].embed_dim
    return {"embed_dim": width, "depth": 2, "num_heads": 4} if width < PAPERS_DECODER // 2 else None


def _epochs(images: int) -> int:
    """Of pretraining: some 20 million images seen, within what is usual."""
    return max(20, min(800, 20_000_000 // max(images, 1)))


def _batch_size(images: int) -> int:
    """Of pretraining: the usual one, or such that an epoch has some steps."""
    return max(8, min(256, 1 << (max(images, 64) // 16).bit_length()))


def _source(found: AnnotatedTask, pool_share: float) -> int:
    """How many images labelled ones are drawn from, besides validation, test and the pool."""
    return int((1 - pool_share) * _left_to_train(found))


def _left_to_train(found: AnnotatedTask) -> int:
    """How many images there are besides validation and test."""
    left = found.train if "test" in found.splits else int(0.9 * found.train)
    return left if "val" in found.splits else int(0.9 * left)


def _wanted(found: AnnotatedTask) -> int:
    """The smaller label count: some for each class."""
    return max(FEWEST, min(MOST, 10 * found.classes))


def _pool_share(found: AnnotatedTask) -> float:
    """The share of the training images to pretrain on."""
    enough = (share for share in POOL_SHARES if LARGEST_DRAW * _source(found, share) >= _wanted(found))
    return next(enough, POOL_SHARES[-1])


def _labels(found: AnnotatedTask, pool_share: float) -> Sequence[int]:
    """Two label counts, ten times apart or as far as there are images: of more than a fifth of them seeds share too many."""
    most = max(found.least, int(LARGEST_DRAW * _source(found, pool_share)))
    fewer = max(found.least, min(_wanted(found), most))
    more = min(10 * fewer, most)
    return [fewer] if more < 2 * fewer else [fewer, more]


def _warnings(
    found: Sequence[AnnotatedTask], labels: Mapping[str, Sequence[int]], shares: Mapping[str, float]
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
