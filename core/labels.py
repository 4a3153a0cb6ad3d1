"""Where labels come from: class folders, CSV and idx files; splits, and draws of a few labelled images."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .config import DataError, nearest
from .images import (
    SUFFIXES,
    ArrayImages,
    FolderImages,
    ImageSet,
    Manifest,
    audit,
    find_images,
    idx_file,
    idx_images,
    kinds,
    read_idx,
)
from .randomness import stream
from .tracking import counting

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class LabeledImages:
    """Images with a class each: ``labels`` are numbers into ``classes``."""

    images: ImageSet
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> LabeledImages:
        """The labelled images with these numbers, in this order."""
        return LabeledImages(self.images.subset(indices), tuple(self.labels[index] for index in indices), self.classes)


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images, which share their classes."""

    train: LabeledImages
    val: LabeledImages
    test: LabeledImages

    def items(self) -> tuple[tuple[str, LabeledImages], ...]:
        """The splits with their names."""
        return ("train", self.train), ("val", self.val), ("test", self.test)


@dataclass(frozen=True)
class SplitManifest:
    """What a look at every image of the splits found."""

    splits: Mapping[str, Manifest]
    classes: Mapping[str, tuple[str, ...]]
    """the class of each sound image of a split"""

    @property
    def digest(self) -> str:
        """A hash of the names, contents and classes of all images in all splits."""
        lines = []
        for split, manifest in sorted(self.splits.items()):
            lines.append(f"{split}:{manifest.digest}")
            lines += sorted(f"{name}\t{label}" for name, label in zip(manifest.names, self.classes[split], strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def gray(self) -> bool:
        """Whether every image is grayscale."""
        return all(all(manifest.gray) for manifest in self.splits.values())

    @property
    def rejected(self) -> tuple[tuple[str, str], ...]:
        """The broken images with the reasons."""
        return tuple(pair for manifest in self.splits.values() for pair in manifest.rejected)


def read_splits(data: str | Path, val: float | int = 0.1, test: float | int = 0.1, seed: int = 0) -> Splits:
    """Labelled images in three splits: those that the data has; missing ones are drawn from the training images.

    ``val`` and ``test`` are counts or shares of the training images, drawn evenly over the classes by ``seed``; each
    class keeps an image to be trained on. Raises DataError for data without labels, and for classes that differ between
    the splits.
    """
    parts = _read_parts(Path(data))
    if "train" not in parts:
        raise DataError(f"data={data}: no training images; found only {', '.join(sorted(parts))}.")
    train = parts["train"]
    for name, wanted in (("test", test), ("val", val)):
        if name in parts:
            continue
        order = _with_one_a_class_last(stratified_order(train.labels, seed, name), train.labels)
        count = wanted if isinstance(wanted, int) else round(wanted * len(train))
        if not 0 < count <= len(train) - len(set(train.labels)):
            raise DataError(
                f"data={data}: {name}={wanted} makes {count} of {len(train)} images, but there must be at least one for "
                f"{name} and one a class for training. Give another {name}, or more images."
            )
        parts[name] = train.subset(sorted(order[:count]))
        train = train.subset(sorted(order[count:]))
    return Splits(train, parts["val"], parts["test"])


def audit_splits(splits: Splits, max_rejected: float = 0.05) -> tuple[Splits, SplitManifest]:
    """Open every image once, and say how far it is; the splits without the broken ones, and what was found.

    See ``images.audit``.
    """
    sound: dict[str, LabeledImages] = {}
    manifests: dict[str, Manifest] = {}
    for name, labeled in splits.items():
        _, manifests[name] = audit(labeled.images, max_rejected, counting(f"looking through {name}"))
        sound[name] = labeled.subset(manifests[name].kept) if manifests[name].rejected else labeled
    classes = {name: tuple(part.classes[label] for label in part.labels) for name, part in sound.items()}
    return Splits(sound["train"], sound["val"], sound["test"]), SplitManifest(manifests, classes)


def draw_labeled(labeled: LabeledImages, count: float | int, seed: int) -> LabeledImages:
    """``count`` images (or that share), as even over the classes as the data allows.

    Nested: of two draws with one seed the smaller lies in the larger. Raises DataError when there are too few images, or
    fewer than one a class is asked for.
    """
    number = count if isinstance(count, int) else round(count * len(labeled))
    if number > len(labeled):
        raise DataError(f"labels={count}: only {len(labeled)} labelled images are there. Ask for fewer.")
    present = len(set(labeled.labels))
    if number < present:
        raise DataError(f"labels={count} makes {number} images for {present} classes: expected at least one a class.")
    return labeled.subset(stratified_order(labeled.labels, seed, "labels")[:number])


def stratified_order(labels: Sequence[int], seed: int, name: str) -> list[int]:
    """All images in an order in which every beginning is as even over the classes as the data allows.

    The classes take turns, in an order that is drawn anew each round; within a class the order is drawn. Classes give
    in proportion to what is even, not to their size: a class that has run out is passed over.
    """
    generator = stream(seed, name)
    members: dict[int, list[int]] = defaultdict(list)
    for index in generator.permutation(len(labels)):
        members[labels[index]].append(int(index))
    order: list[int] = []
    classes = sorted(members)
    while len(order) < len(labels):
        for label in generator.permutation(classes):
            if members[int(label)]:
                order.append(members[int(label)].pop())
    return order


def _with_one_a_class_last(order: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The order with the last image of each class moved to its end."""
    last = {labels[index]: index for index in order}
    return [index for index in order if last[labels[index]] != index] + list(last.values())


def _read_parts(data: Path) -> dict[str, LabeledImages]:
    if data.is_file() and data.suffix.lower() == ".csv":
        return _read_csv(data)
    if not data.is_dir():
        raise DataError(
            f"data={data}: expected a folder of class folders, a CSV path,label or a folder of idx files."
            if data.exists()
            else f"data={data}: no such folder or CSV."
        )
    if (data / "labels.csv").is_file():
        return _read_csv(data / "labels.csv")
    if idx_file(data, "train", "labels") is not None:
        return _read_idx_splits(data)
    folders = {path.name.lower(): path for path in sorted(data.iterdir()) if path.is_dir()}
    named = {split: folders[name] for split, names in SPLIT_NAMES.items() for name in names if name in folders}
    if "train" not in named:
        return {"train": _read_class_folders(data)}
    parts = {split: _read_class_folders(folder) for split, folder in named.items()}
    classes = parts["train"].classes
    for split, labeled in parts.items():
        strange = sorted(set(labeled.classes) - set(classes))
        if strange:
            close = nearest(strange[0], classes)
            raise DataError(
                f"{named[split]}: classes that the training images have not: {', '.join(strange[:5])}."
                + (f" Did you mean {close}?" if close else "")
            )
        numbers = [classes.index(name) for name in labeled.classes]
        parts[split] = LabeledImages(labeled.images, tuple(numbers[label] for label in labeled.labels), classes)
    return parts


def _read_class_folders(root: Path) -> LabeledImages:
    images = find_images(root)
    if not isinstance(images, FolderImages):
        raise DataError(
            f"data={root}: idx images without their labels file. Expected train-labels-idx1-ubyte beside it."
        )
    loose = [name for name in images.paths if "/" not in name]
    if loose:
        raise DataError(
            f"data={root}: {len(loose)} images lie outside class folders, such as {loose[0]}. Expected "
            "CLASS/IMAGE folders, or a labels.csv with the columns path,label."
        )
    names = [name.split("/", 1)[0] for name in images.paths]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise DataError(f"data={root}: a single class folder ({classes[0]}). Expected at least two.")
    number = {name: index for index, name in enumerate(classes)}
    return LabeledImages(images, tuple(number[name] for name in names), classes)


def _read_csv(path: Path) -> dict[str, LabeledImages]:
    rows = _csv_rows(path)
    aliases = {alias: split for split, names in SPLIT_NAMES.items() for alias in names}
    parts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    seen: dict[str, str] = {}
    for line, row in rows:
        split = (row.get("split") or "train").strip().lower()
        if split not in aliases:
            raise DataError(f"{path} line {line}: split '{split}': expected train, val or test.")
        other = seen.setdefault(row["path"], aliases[split])
        if other != aliases[split]:
            raise DataError(
                f"{path} line {line}: {row['path']} is in {other} already. Expected one split for an image."
            )
        parts[aliases[split]].append((row["path"], row["label"]))
        if not (path.parent / row["path"]).is_file():
            raise DataError(f"{path} line {line}: no such file: {row['path']}. Paths are relative to the CSV.")
        if Path(row["path"]).suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} line {line}: {row['path']} is not an image by its name. Expected {kinds()}.")
    names = sorted({label for _, label in parts.get("train", [])}, key=_natural)
    number = {name: index for index, name in enumerate(names)}
    if len(names) < 2:
        raise DataError(f"{path}: {len(names)} classes in the training rows. Expected at least two.")
    result: dict[str, LabeledImages] = {}
    for split, pairs in parts.items():
        strange = sorted({label for _, label in pairs if label not in number})
        if strange:
            raise DataError(f"{path}: the {split} rows have labels that no training row has: {', '.join(strange[:5])}.")
        images = FolderImages(path.parent, tuple(name for name, _ in pairs))
        result[split] = LabeledImages(images, tuple(number[label] for _, label in pairs), tuple(names))
    return result


def _csv_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            for needed in ("path", "label"):
                if needed not in columns:
                    raise DataError(f"{path}: no column '{needed}' (found: {', '.join(columns) or 'nothing'}).")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: can't be read as CSV ({error}).") from error
    for line, row in rows:
        if not (row["path"] or "").strip() or not (row["label"] or "").strip():
            raise DataError(f"{path} line {line}: a path or a label is missing.")
        row["path"], row["label"] = row["path"].strip(), row["label"].strip()
    if not rows:
        raise DataError(f"{path}: no rows. Expected path,label.")
    return rows


def _read_idx_splits(folder: Path) -> dict[str, LabeledImages]:
    parts: dict[str, LabeledImages] = {}
    arrays: dict[str, tuple[ArrayImages, NDArray[np.uint8]]] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        image_file, label_file = idx_file(folder, prefix, "images"), idx_file(folder, prefix, "labels")
        if image_file is None or label_file is None:
            if split == "train":
                raise DataError(f"data={folder}: labels without images: no {prefix}-images-idx3-ubyte.")
            continue
        images, labels = idx_images(image_file), read_idx(label_file)
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(f"{label_file}: {labels.shape} labels for {len(images)} images. Expected one each.")
        arrays[split] = (images, labels)
    values = sorted({int(value) for _, labels in arrays.values() for value in labels})
    number = {value: index for index, value in enumerate(values)}
    for split, (images, labels) in arrays.items():
        parts[split] = LabeledImages(
            images, tuple(number[int(value)] for value in labels), tuple(str(value) for value in values)
        )
    return parts


def _natural(label: str) -> tuple[int, int, str]:
    """Numbers by value before texts by name."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
