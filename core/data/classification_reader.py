"""Reading images with classes: from class folders, tables, idx files and tar shards."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..config_keys import nearest
from ..errors import DataError
from .class_folders import ClassLayout, class_layout
from .classification import ClassFolderLayout, ClassImages, LabeledImages, LabelKeys, MultiLabeledImages
from .dataset_format import identify
from .folder_names import SPLIT_NAMES, split_folders
from .format_evidence import FORMATS, ambiguous_format
from .images import ImageSet
from .label_table import TABLE_SUFFIXES, LabeledFile, read_label_table
from .labeled_dataset import Splits
from .missing_splits import draw_missing_splits
from .readers.folder import FolderImages, find_images, report_unused, with_slices
from .readers.mnist_idx import ArrayImages, idx_file, idx_images, read_idx
from .readers.tar_shards import find_shards, read_shards
from .slices import Slices, file_of
from .table_paths import names_differing_in_case_only

logger = logging.getLogger("maelift")

AS_FOUND = LabelKeys()
"""No key given: labels are read as found."""


def read_splits(
    data: str | Path,
    val: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
    layout: ClassFolderLayout = "auto",
) -> Splits[LabeledImages]:
    """Images with a class each in three splits; see ``draw_missing_splits``.

    Raises DataError for data without labels, and for classes that differ between the splits.
    """
    return draw_missing_splits(single_label_parts(data, LabelKeys(layout=layout)), data, val, test, seed)


def single_label_parts(data: str | Path, keys: LabelKeys = AS_FOUND) -> dict[str, LabeledImages]:
    """The splits of a data set of images with one class each; raises DataError for images with several."""
    return {name: _only_class_each(part, data) for name, part in read_parts(data, keys).items()}


def read_class_splits(
    data: str | Path, val: float | int = 0.1, test: float | int = 0.1, seed: int = 0, multi_label: bool | None = None
) -> Splits[LabeledImages] | Splits[MultiLabeledImages]:
    """Images with one class each or with any number of them, in three splits; see ``class_parts``."""
    parts = class_parts(data, LabelKeys(multi_label))
    return cast("Splits[LabeledImages]", draw_missing_splits(parts, data, val, test, seed))  # or of the other kind


def class_parts(
    data: str | Path, keys: LabelKeys = AS_FOUND
) -> dict[str, LabeledImages] | dict[str, MultiLabeledImages]:
    """The splits of labelled images that a data set has.

    Images have any number of classes where a CSV has a 0/1 column for each class or a cell with ``|`` or ``;``, or a shard a
    list of labels; ``keys.multi_label`` decides otherwise, True or False. Raises DataError as ``read_splits`` does.
    """
    found = read_parts(data, keys)
    many = {name: part for name, part in found.items() if isinstance(part, MultiLabeledImages)}
    single = {name: part for name, part in found.items() if isinstance(part, LabeledImages)}
    if not many and not keys.multi_label:
        return single
    for name, part in single.items():
        labels = tuple((label,) for label in part.labels)
        many[name] = MultiLabeledImages(part.images, labels, part.classes, part.groups)
    return many


def _only_class_each(part: ClassImages, data: str | Path) -> LabeledImages:
    if isinstance(part, MultiLabeledImages):
        raise DataError(f"data={data}: images with several classes each. Expected one class for each image here.")
    return part


def read_parts(data: str | Path, keys: LabelKeys = AS_FOUND) -> Mapping[str, ClassImages]:
    """The splits that the data has, as found; raises DataError as ``read_splits`` does."""
    folder = Path(data)
    if folder.is_file() and folder.suffix.lower() in TABLE_SUFFIXES:
        return _read_table(folder, keys)
    if (shards := _shards_of_splits(str(data))) is not None:
        return _read_shard_splits(str(data), shards, keys.multi_label)
    if not folder.is_dir():
        raise DataError(
            f"data={data}: expected a folder of class folders, a CSV path,label, a folder of idx files or tar shards."
            if folder.exists()
            else f"data={data}: no such folder, CSV or shards."
        )
    if (folder / "labels.csv").is_file():
        parts = _read_table(folder / "labels.csv", keys)
        report_unused(folder, [part.images for part in parts.values()], "row of labels.csv")
        return parts
    if idx_file(folder, "train", "labels") is not None:
        return _read_idx_splits(folder)
    return _read_folder_splits(folder, keys.layout, keys.slices)


def _read_folder_splits(data: Path, layout: ClassFolderLayout, slices: Slices) -> dict[str, LabeledImages]:
    found = find_images(data, slices=slices)
    if not isinstance(found, FolderImages):
        raise DataError(
            f"data={data}: idx images without their labels file. Expected train-labels-idx1-ubyte in the same folder."
        )
    names = list(found.paths)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"data={data}: {len(loose)} images are outside class folders, such as {loose[0]}. Expected "
            "CLASS/IMAGE folders, or a labels.csv with the columns path,label."
        )
    classes = ClassLayout({"train": ""}) if layout == "class_folders" else _class_layout(data, names)
    for folder, why in classes.left_out.items():
        logger.warning("data=%s: %s/ is left out: %s", data, folder, why)
    splits = {split: data / folder for split, folder in classes.splits.items()}
    inside = {split: _names_within(names, folder, classes) for split, folder in classes.splits.items()}
    parts = {
        split: _read_class_folders(replace(found, root=folder, paths=inside[split])) for split, folder in splits.items()
    }
    known = parts.get("train", next(iter(parts.values()))).classes
    for split, labeled in parts.items():
        strange = sorted(set(labeled.classes) - set(known))
        if strange:
            close = nearest(strange[0], known)
            raise DataError(
                f"{splits[split]}: classes that are not in training: {', '.join(strange[:5])}."
                + (f" Did you mean {close}?" if close else "")
            )
        numbers = [known.index(name) for name in labeled.classes]
        parts[split] = LabeledImages(labeled.images, tuple(numbers[label] for label in labeled.labels), known)
    if len(known) < 2:
        where = splits.get("train", data)
        raise DataError(f"data={where}: a single class folder ({known[0]}). Expected at least two.")
    return parts


def _class_layout(data: Path, names: Sequence[str]) -> ClassLayout:
    """The layout of class folders; raises DataError where the folders may mean something else."""
    for found in identify(data):
        if found.format != "class_folders" or not found.sure:
            known = FORMATS[found.format]
            advice = f"{known.command} reads {known.holds}. If each folder is a class, give layout=class_folders."
            raise ambiguous_format(data, replace(found, advice=found.advice or advice))
    return class_layout(data, names)


def _names_within(names: Sequence[str], folder: str, layout: ClassLayout) -> tuple[str, ...]:
    """The paths of a split's images below its folder, without those of other splits and folders that are left out."""
    if folder:
        return tuple(name[len(folder) + 1 :] for name in names if name.startswith(f"{folder}/"))
    others = {other for other in layout.splits.values() if other} | layout.left_out.keys()
    return tuple(name for name in names if name.split("/", 1)[0] not in others)


def _read_class_folders(images: FolderImages) -> LabeledImages:
    root, paths = images.root, images.paths
    loose = [name for name in paths if "/" not in name]
    if loose:
        raise DataError(
            f"data={root}: {len(loose)} images are outside class folders, such as {loose[0]}. Expected "
            "CLASS/IMAGE folders, or a labels.csv with the columns path,label."
        )
    names = [name.split("/", 1)[0] for name in paths]
    classes = tuple(sorted(set(names)))
    _check_class_names(f"data={root}", classes)
    number = {name: index for index, name in enumerate(classes)}
    return LabeledImages(images, tuple(number[name] for name in names), classes)


def _read_table(path: Path, keys: LabelKeys) -> Mapping[str, ClassImages]:
    table = read_label_table(path, keys.multi_label, keys.label_column, keys.group)
    parts: dict[str, list[LabeledFile]] = defaultdict(list)
    known = {file.path: file for file in table.files}
    listed = with_slices(FolderImages(path.parent, tuple(known)), keys.slices)
    for name in listed.paths:
        file = known[file_of(name)]
        parts[file.split].append(replace(file, path=name))
    images = {split: replace(listed, paths=tuple(file.path for file in files)) for split, files in parts.items()}
    labels = {split: [file.labels for file in files] for split, files in parts.items()}
    groups = {split: tuple(file.group for file in files) for split, files in parts.items()} if table.grouped else {}
    found = _class_images(str(path), images, labels, table.several, table.classes)
    return {split: replace(part, groups=groups.get(split, ())) for split, part in found.items()}


def _check_class_names(source: str, classes: Iterable[str]) -> None:
    """Raise DataError for a class without a name of one line; warn of names that are nearly the same."""
    names = list(classes)
    for name in names:
        if not name.strip() or any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(f"{source}: the class {name!r} needs a name of one line. Rename it.")
    for same in names_differing_in_case_only(names):
        shown = ", ".join(f"'{name}'" for name in same)
        logger.warning("%s: classes whose names differ only in case or spaces are different classes: %s", source, shown)


def _class_images(
    source: str,
    images: Mapping[str, ImageSet],
    labels: Mapping[str, Sequence[tuple[str, ...]]],
    several: bool,
    classes: tuple[str, ...] = (),
) -> Mapping[str, ClassImages]:
    """Labelled images from the class names of each; ``classes``, where known, else those of the training images."""
    learned = labels["train"] if "train" in labels else [image for found in labels.values() for image in found]
    names = list(classes) or sorted({label for image in learned for label in image}, key=_natural)
    _check_class_names(source, names)
    if (len(names) < 2 and not several) or not names:
        raise DataError(f"{source}: {len(names)} classes in the training rows. Expected at least two.")
    number = {name: index for index, name in enumerate(names)}
    for split, found in labels.items():
        strange = sorted({label for image in found for label in image if label not in number})
        if strange:
            raise DataError(
                f"{source}: the {split} rows have labels that are not in training: {', '.join(strange[:5])}."
            )
    if not several:
        return {
            split: LabeledImages(images[split], tuple(number[image[0]] for image in found), tuple(names))
            for split, found in labels.items()
        }
    return {
        split: MultiLabeledImages(
            images[split], tuple(tuple(sorted(number[label] for label in image)) for image in found), tuple(names)
        )
        for split, found in labels.items()
    }


def _shards_of_splits(data: str) -> dict[str, list[Path]] | None:
    """The tar shards of each split, None where ``data`` has none.

    They are in folders named after splits, or have the split in their names (imagenet-val-000.tar); otherwise all are for
    training.
    """
    shards = find_shards(data)
    if not shards and Path(data).is_dir():
        folders = split_folders(Path(data))
        found = {split: find_shards(str(folder)) for split, folder in folders.items()}
        return {split: paths for split, paths in found.items() if paths} or None
    parts: dict[str, list[Path]] = defaultdict(list)
    for shard in shards:
        words = set(re.findall("[a-z]+", shard.stem.lower()))
        named = [split for split, names in SPLIT_NAMES.items() if words & set(names)]
        parts[named[0] if len(named) == 1 else "train"].append(shard)
    return dict(parts) or None


def _read_shard_splits(
    data: str, shards: Mapping[str, Sequence[Path]], multi_label: bool | None
) -> Mapping[str, ClassImages]:
    images: dict[str, ImageSet] = {}
    labels: dict[str, list[tuple[str, ...]]] = {}
    for split, paths in shards.items():
        images[split], labels[split] = read_shards(paths)
    several = bool(multi_label) or any(len(image) != 1 for found in labels.values() for image in found)
    if several and multi_label is False:
        raise DataError(f"data={data}: images with several labels or none, and multi_label=false.")
    return _class_images(f"data={data}", images, labels, several)


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
            raise DataError(
                f"{label_file}: {labels.shape} labels for {len(images)} images. Expected one label for each image."
            )
        arrays[split] = (images, labels)
    values = sorted({int(value) for _, labels in arrays.values() for value in labels})
    number = {value: index for index, value in enumerate(values)}
    for split, (images, labels) in arrays.items():
        parts[split] = LabeledImages(
            images, tuple(number[int(value)] for value in labels), tuple(str(value) for value in values)
        )
    return parts


def _natural(label: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, then texts by name."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
