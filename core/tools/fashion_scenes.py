"""Fashion scenes: a small set for detection and segmentation, composed of real Fashion-MNIST items on canvases.

The recipe: each scene takes 2 to 4 items, resizes each to a side of 18 to 32 pixels (bilinear), mirrors half of them, and
lays them one after the other at random places of a black canvas. A later item covers earlier ones where its own pixels are
brighter than ``FAINTEST``; places at which an item would hide too much of another are drawn again. Boxes, areas and masks are
of the visible parts. Fashion-MNIST's background is black, so the canvas is: nothing in a scene is invented.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import config_difference
from ..data.readers.mnist_idx import idx_file, idx_images, read_idx
from ..dry_run import Plan
from ..errors import ConfigError, DataError
from ..files import output_folder, sync_tree
from ..progress import progress_logger
from ..seeding import stream
from ..terminal import quoted
from .scene_bands import NAMES as BANDS
from .scene_bands import bands_of, write_bands

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
"""Fashion-MNIST's classes by label; in the scenes' JSON and masks each has the number of its label + 1."""

BACKGROUND = "background"
FAINTEST = 8
"""Pixels up to this value (of 255) are not the item's: specks of the scans, and what resizing makes of an edge."""

LEAST_VISIBLE = 0.5
"""share of its own pixels that each item of a scene must show"""

VAL_SHARE = 1 / 12
"""share of the training items that is set aside for val"""

PLACES = 50
"""places that are tried for an item before the scene is laid out again"""

RECORD = "scenes.json"
FORMAT = 2
"""Raised when the recipe changes, so that scenes of two recipes are never taken for the same."""


@dataclass(frozen=True)
class FashionScenesConfig:
    """Compose scenes of Fashion-MNIST items for detection (COCO JSON) and segmentation (mask PNGs)."""

    out: str
    """folder that is made: train/val/test.json, images/, masks/, classes.txt, pool/ (unlabelled, for pretraining)"""
    source: str = "data/fashion-mnist"
    """folder of Fashion-MNIST's idx files, as 'maelift data fashion-mnist' brings them"""
    train: int = 4000
    """training scenes"""
    val: int = 300
    """validation scenes, of training items that no other scene has"""
    test: int = 500
    """test scenes, of Fashion-MNIST's test items"""
    pool: int = 20000
    """unlabelled scenes to pretrain on, of training items (never those of val or test)"""
    size: int = 64
    """side of a scene, in pixels"""
    items: tuple[int, int] = (2, 4)
    """fewest and most items in a scene"""
    item_sizes: tuple[int, int] = (18, 32)
    """smallest and largest side of an item, in pixels"""
    bands: int = 1
    """1: PNG files in gray; 2 to 5: TIFF files of so many bands, with names and strips without data, as satellites' are"""
    bits: Literal[8, 16] = 8
    """of a value, with several bands"""
    seed: int = 0
    """all draws come from it: the same seed gives the same bytes"""

    def __post_init__(self) -> None:
        for key, least in (("train", 1), ("val", 0), ("test", 0), ("pool", 0)):
            if getattr(self, key) < least:
                raise ConfigError(key, getattr(self, key), f"a count of at least {least}")
        for key, least in (("items", 1), ("item_sizes", 8)):
            low, high = getattr(self, key)
            if not least <= low <= high:
                raise ConfigError(key, (low, high), f"two numbers from {least} up, the smaller first")
        if not 1 <= self.bands <= len(BANDS):
            raise ConfigError("bands", self.bands, f"1 to {len(BANDS)} ({', '.join(BANDS)})")
        if self.bits != 8 and self.bands == 1:
            raise ConfigError("bits", self.bits, "8 with bands=1")
        side = self.item_sizes[1]
        if self.items[1] > (self.size // side) ** 2:
            raise ConfigError(
                "size", self.size, f"a canvas on which {self.items[1]} items of {side}×{side} px can lie side by side"
            )


@dataclass(frozen=True)
class FashionScenes:
    """Where the scenes are, and how many of each split."""

    folder: Path
    counts: tuple[tuple[str, int], ...]
    seed: int
    new: bool

    def summary(self) -> str:
        """The result in a line."""
        listed = ", ".join(f"{count:,} {split}" for split, count in self.counts if count)
        what = "written" if self.new else "already there, with the same settings"
        return f"fashion scenes: {listed} in {self.folder} (seed {self.seed}; {what})"


@dataclass(frozen=True)
class Scene:
    """A composed scene: ``pixels`` (H, W) uint8; ``owner`` (H, W) int64, the place in ``labels`` of each pixel's item, or -1."""

    pixels: NDArray[np.uint8]
    owner: NDArray[np.int64]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class _Items:
    """Fashion-MNIST items that a split may use: ``images`` (N, 28, 28) and ``labels`` (N,); ``numbers`` are those allowed."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    numbers: NDArray[np.int64]


def fashion_scenes(config: FashionScenesConfig) -> FashionScenes:
    """Compose the scenes into ``config.out``: all of them or nothing.

    The folder appears under its name once everything is in it. A folder with scenes of the same settings is left as it
    is. Raises DataError when the items can't be read, or the folder holds something else.
    """
    out = Path(config.out)
    counts = tuple((split, getattr(config, split)) for split in ("train", "val", "test", "pool"))
    sources = {split: _read_items(Path(config.source), split) for split in ("train", "t10k")}
    settings = _settings(config, sources)
    if _already_there(out, settings):
        return FashionScenes(out, counts, config.seed, new=False)
    output_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as name:
        temporary = Path(name) / out.name
        temporary.mkdir()
        _write(temporary, config, _items_by_split(config.seed, sources), settings)
        sync_tree(temporary)
        os.replace(temporary, out)
    return FashionScenes(out, counts, config.seed, new=True)


def plan(config: FashionScenesConfig) -> Plan:
    """What ``fashion_scenes`` would do; writes nothing."""
    out = Path(config.out)
    sources = {split: _read_items(Path(config.source), split) for split in ("train", "t10k")}
    there = _already_there(out, _settings(config, sources))
    scenes = config.train + config.val + config.test + config.pool
    listed = ", ".join(f"{getattr(config, split):,} {split}" for split in ("train", "val", "test", "pool"))
    return Plan(
        (
            ("scenes", f"{listed}, {config.size}×{config.size} px"),
            ("from", config.source),
            ("into", str(out)),
            ("there already", "yes" if there else "no"),
        ),
        seconds=0.0 if there else scenes / 1000,
    )


def compose(
    items: list[NDArray[np.uint8]], labels: tuple[int, ...], config: FashionScenesConfig, generator: np.random.Generator
) -> Scene:
    """Lay out ``items`` ((28, 28) uint8 each) on a canvas: sizes, mirroring and places are drawn from ``generator``.

    Each item shows at least ``LEAST_VISIBLE`` of its own pixels.
    """
    low, high = config.item_sizes
    sides = generator.integers(low, high + 1, len(items))
    mirrored = generator.random(len(items)) < 0.5
    patches = [
        _resized(item[:, ::-1] if mirror else item, int(side))
        for item, mirror, side in zip(items, mirrored, sides, strict=True)
    ]
    while True:
        scene = _lay_out(patches, labels, config.size, generator)
        if scene is not None:
            return scene


def _lay_out(
    patches: list[NDArray[np.uint8]], labels: tuple[int, ...], size: int, generator: np.random.Generator
) -> Scene | None:
    """One try at placing all items; None when one has found no place."""
    pixels = np.zeros((size, size), np.uint8)
    owner = np.full((size, size), -1, np.int64)
    least = [LEAST_VISIBLE * np.count_nonzero(patch > FAINTEST) for patch in patches]
    for number, patch in enumerate(patches):
        own, side = patch > FAINTEST, len(patch)
        for _ in range(PLACES):
            top, left = generator.integers(0, size - side + 1, 2)
            place = (slice(top, top + side), slice(left, left + side))
            covered = owner.copy()
            covered[place][own] = number
            visible = np.bincount(covered[covered >= 0], minlength=number + 1)
            if all(count >= share for count, share in zip(visible, least, strict=False)):
                break
        else:
            return None
        owner = covered
        pixels[place][own] = patch[own]
    return Scene(pixels, owner, labels)


def _resized(item: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(item))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _write(folder: Path, config: FashionScenesConfig, items: dict[str, _Items], settings: dict[str, Any]) -> None:
    used: dict[str, list[int]] = {}
    total = config.train + config.val + config.test + config.pool
    progress, done = progress_logger("composing scenes"), 0
    for split in ("train", "val", "test", "pool"):
        count = getattr(config, split)
        if not count:
            continue
        labelled = split != "pool"
        images = folder / "images" / split if labelled else folder / "pool"
        masks = folder / "masks" / split
        images.mkdir(parents=True)
        if labelled:
            masks.mkdir(parents=True)
        content = _empty_json()
        width = max(5, len(str(count - 1)))
        numbers: set[int] = set()
        for index, (scene, members) in enumerate(_scenes(config, split, items[split], count)):
            name = f"{index:0{width}d}"
            file = _save(scene, images / name, config, stream(config.seed, f"scene bands {split}", index))
            if labelled:
                Image.fromarray(_class_mask(scene)).save(masks / f"{name}.png")
                _add(content, scene, f"{split}/{file}")
            numbers.update(members)
            done += 1
            progress(done, total)
        used[split] = sorted(numbers)
        if labelled:
            (folder / f"{split}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    lines = [f"{name}, {value}" for value, name in enumerate((BACKGROUND, *CLASSES))]
    (folder / "classes.txt").write_text("\n".join(lines) + "\n")
    (folder / RECORD).write_text(json.dumps({"settings": settings, "items": used}, separators=(",", ":")) + "\n")


def _save(scene: Scene, path: Path, config: FashionScenesConfig, generator: np.random.Generator) -> str:
    """Write a scene to a path without its suffix; gives the file's name."""
    if config.bands == 1:
        path = path.with_suffix(".png")
        Image.fromarray(scene.pixels).save(path)
    else:
        path = path.with_suffix(".tif")
        write_bands(path, bands_of(scene.pixels, scene.owner, config.bands, config.bits, generator), config.bits)
    return path.name


def _scenes(
    config: FashionScenesConfig, split: str, items: _Items, count: int
) -> Iterator[tuple[Scene, tuple[int, ...]]]:
    """The scenes of a split with the numbers of their items; fewer scenes of one seed are the beginning of more."""
    sequence = _endless(items.numbers, config.seed, split)
    for index in range(count):
        generator = stream(config.seed, f"scenes {split}", index)
        size = int(generator.integers(config.items[0], config.items[1] + 1))
        members = tuple(next(sequence) for _ in range(size))
        labels = tuple(int(items.labels[number]) for number in members)
        yield compose([items.images[number] for number in members], labels, config, generator), members


def _endless(numbers: NDArray[np.int64], seed: int, split: str) -> Iterator[int]:
    """All items in a drawn order, then all in another, and so on."""
    generator = stream(seed, f"scene items {split}")
    while True:
        yield from (int(number) for number in generator.permutation(numbers))


def _class_mask(scene: Scene) -> NDArray[np.uint8]:
    """(H, W): 0 for the background, else the label + 1 of the item that is seen."""
    values = np.array([*(label + 1 for label in scene.labels), 0], np.uint8)  # the owner -1 is the last
    return values[scene.owner]


def _empty_json() -> dict[str, Any]:
    return {
        "info": {"description": "maelift fashion scenes: Fashion-MNIST items on canvases", "version": str(FORMAT)},
        "licenses": [{"id": 1, "name": "MIT", "url": "https://github.com/zalandoresearch/fashion-mnist"}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
        "images": [],
        "annotations": [],
    }


def _add(content: dict[str, Any], scene: Scene, name: str) -> None:
    """Add a scene to its split's COCO JSON: boxes, areas and run-lengths of the visible parts."""
    from faster_coco_eval.core import mask as coco_mask

    height, width = scene.owner.shape
    image_id = len(content["images"]) + 1
    content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width, "license": 1})
    for number, label in enumerate(scene.labels):
        visible = scene.owner == number
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        counts = coco_mask.encode(np.asfortranarray(visible, np.uint8))["counts"]
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(np.count_nonzero(visible)),
                "segmentation": {"size": [height, width], "counts": counts.decode()},
                "iscrowd": 0,
            }
        )


def _read_items(source: Path, split: str) -> tuple[Path, NDArray[np.uint8], NDArray[np.uint8]]:
    """The file of a split's images, the images (N, 28, 28) and the labels (N,)."""
    where = f"source={source}"
    if not source.is_dir():
        raise DataError(
            f"{where}: no such folder. Bring the items with 'maelift data fashion-mnist out={quoted(source)}'."
        )
    files = [idx_file(source, split, content) for content in ("images", "labels")]
    if files[0] is None or files[1] is None:
        raise DataError(
            f"{where}: no {split}-images and {split}-labels idx files. Bring them with 'maelift data fashion-mnist "
            f"out={quoted(source)}'."
        )
    images, labels = idx_images(files[0]).array, read_idx(files[1])
    if labels.shape != (len(images),) or (len(labels) and labels.max() >= len(CLASSES)):
        raise DataError(f"{files[1]}: expected {len(images)} labels from 0 to {len(CLASSES) - 1}, one an image.")
    bright = (images > FAINTEST).any(axis=(1, 2))
    if not bright.all():
        raise DataError(f"{files[0]}: image {int(np.argmin(bright))} is black; there is no item on it.")
    return files[0], images, labels


def _items_by_split(
    seed: int, sources: dict[str, tuple[Path, NDArray[np.uint8], NDArray[np.uint8]]]
) -> dict[str, _Items]:
    """Which items each split may use: no item of val or test is in any other."""
    _, images, labels = sources["train"]
    order = stream(seed, "scene splits").permutation(len(images)).astype(np.int64)
    aside = max(1, round(VAL_SHARE * len(images)))
    train = _Items(images, labels, order[aside:])
    if not len(train.numbers):
        raise DataError(f"{sources['train'][0]}: {len(images)} items are too few to set some aside for val.")
    _, test_images, test_labels = sources["t10k"]
    test = _Items(test_images, test_labels, np.arange(len(test_images)))
    return {"train": train, "val": _Items(images, labels, order[:aside]), "test": test, "pool": train}


def _settings(
    config: FashionScenesConfig, sources: dict[str, tuple[Path, NDArray[np.uint8], NDArray[np.uint8]]]
) -> dict[str, Any]:
    """All that decides the scenes: the settings, the recipe's number and the items' content."""
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("out", "source")}
    if config.bands == 1:  # as before there were others
        del settings["bands"], settings["bits"]
    digests = {}
    for split, (_, images, labels) in sources.items():
        digests[split] = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return {"format": FORMAT, **json.loads(json.dumps(settings)), "sources": digests}


def _already_there(out: Path, settings: dict[str, Any]) -> bool:
    """Whether ``out`` holds these scenes; raises DataError when it holds others, or something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        there = json.loads((out / RECORD).read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"out={out}: something else is there (no {RECORD}). Choose another folder.") from None
    difference = config_difference(there, settings)
    if difference:
        raise DataError(
            f"out={out}: scenes with other settings are there ({'; '.join(difference)}). Choose another folder, or "
            "remove this one."
        )
    return True
