"""Identifies a data set's format from its files: class folders, table, COCO, YOLO, VOC, masks, shards, images only.

A format is found with its evidence in words. Where other formats are plausible too, it is not ``sure``, and commands raise an
error that names the key that decides instead of choosing silently.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ..errors import DataError
from ..files import open_regular, read_regular
from ..terminal import quoted
from .class_folders import class_layout, list_folders
from .file_index import list_files, list_images
from .folder_names import ANNOTATION_FOLDERS, IMAGE_FOLDERS, VOC_FOLDERS, YOLO_FILES, split_of, subfolders
from .format_evidence import FORMATS, FormatEvidence
from .image_formats import ARRAY_SUFFIXES, SUFFIXES
from .mask_names import mask_names
from .readers.tar_shards import LABEL_SUFFIXES, find_shards
from .unread import kind_of

_MASK_SUFFIX = re.compile(
    r"(?i)[-_. ]?(mask|masks|label|labels|labelids|labeltrainids|gt|seg|segmentation|annotation)$"
)
MIN_SAME_NAMES = 0.5
"""Share of annotation files with the name of an image from which they belong to the images."""
MAX_PEEKED_FILES = 20
"""Files of a kind that are opened to identify them."""


def identify(data: str | Path) -> tuple[FormatEvidence, ...]:
    """The formats that a data set has: one, or several where it is annotated in several ways (boxes and masks).

    Annotations that name their images (COCO, YOLO, VOC, masks, tables) take precedence over the names of folders. Raises
    DataError where there is no data, and for a folder that can't be read.
    """
    path = Path(data)
    if not path.exists() and "{" not in str(data):
        raise DataError(f"data={data}: no such folder or file.")
    if not path.is_dir():
        return (_identify_file(path),)
    annotated = tuple(found for found in (_coco(path), _yolo(path), _voc(path), _masks(path)) if found is not None)
    if annotated:
        return annotated
    table = _table(path)
    if table is not None and table.sure:
        return (table,)
    for find in (_shards, _idx, _parquet):
        if (found := find(path)) is not None:
            return (found,)
    images = _identify_images(path)
    return (images if table is None or (images.sure and images.format == "class_folders") else table,)


def hint(data: str | Path, task: str) -> str:
    """A sentence with the format of data that is for another task than ``task``, for error messages; else empty."""
    try:
        found = identify(data)
    except DataError:
        return ""
    if not found or any(one.task == task for one in found):
        return ""
    evidence = found[0].evidence if found[0].evidence.endswith("?") else f"{found[0].evidence}."
    return f" It looks as if it were for {FORMATS[found[0].format].command}: {evidence}"


def _identify_file(path: Path) -> FormatEvidence:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return FormatEvidence("coco", f"{path.name} is JSON")
    if suffix in (".yaml", ".yml"):
        return FormatEvidence("yolo", f"{path.name} is YOLO's list of folders and names")
    if suffix in (".csv", ".tsv"):
        return FormatEvidence("table", f"{path.name} is a table")
    if suffix == ".tar":
        shards = find_shards(str(path))
        return _identify_shards(shards)
    return FormatEvidence("unlabelled", f"{path.name} lists or holds images")


def _coco(data: Path) -> FormatEvidence | None:
    """A JSON with annotations in one of the places where the COCO reader searches."""
    files = [*data.glob("*.json"), *data.glob("annotations/*.json")]
    for folder in subfolders(data).values():
        if split_of(folder.name) is not None:
            files += folder.glob("*.json")
    for path in sorted(files):
        if b'"annotations"' in _read_or_empty(path).replace(b"\0", b""):  # UTF-16 too
            return FormatEvidence("coco", f"{path.relative_to(data)} has annotations as COCO JSON has")
    return None


def _yolo(data: Path) -> FormatEvidence | None:
    """A data.yaml, or text files of five numbers or more per line, named like the images, in labels/ or in their folder."""
    for name in YOLO_FILES:
        head = _read_head(data / name) if (data / name).is_file() else b""
        if re.search(rb"(?m)^names\s*:", head) and re.search(rb"(?m)^(train|path)\s*:", head):
            return FormatEvidence("yolo", f"{name} names folders and classes as YOLO's does")
    for images, labels in _annotated_folders(data):
        texts = _with_names_of(images, labels, ".txt")
        rows = [_is_yolo_text(path) for path in texts]
        if rows and any(rows) and None not in rows:
            return FormatEvidence(
                "yolo", f"{texts[0].name} and others{_in_folder(data, labels)} hold boxes as YOLO has them"
            )
    return None


def _voc(data: Path) -> FormatEvidence | None:
    """XML files with objects, named like the images, in Annotations/ or in their folder; also below VOC2012/ and the like."""
    for root in (data, *(path for pattern in VOC_FOLDERS for path in sorted(data.glob(pattern)) if path.is_dir())):
        for images, labels in _annotated_folders(root):
            texts = _with_names_of(images, labels, ".xml")
            if any(b"<annotation" in _read_head(path) for path in texts):
                return FormatEvidence(
                    "voc", f"{texts[0].name} and others{_in_folder(data, labels)} hold Pascal VOC's annotations"
                )
    return None


def _in_folder(data: Path, folder: Path) -> str:
    where = folder.relative_to(data).as_posix()
    return "" if where == "." else f" in {where}/"


def _annotated_folders(data: Path) -> Iterable[tuple[Path, Path]]:
    """Folders of images, each with a folder that may hold their text annotations."""
    folders = subfolders(data)
    bases = [data, *(path for path in folders.values() if split_of(path.name) is not None)]
    bases += [folders[name] for name in ("obj_train_data",) if name in folders]
    for base in bases:
        inside = folders if base == data else subfolders(base)
        yield base, base
        for image_name in sorted(IMAGE_FOLDERS & inside.keys()):
            for label_name in sorted(ANNOTATION_FOLDERS & inside.keys()):
                images, labels = inside[image_name], inside[label_name]
                yield images, labels
                below = subfolders(labels)
                yield from ((split, below[name]) for name, split in subfolders(images).items() if name in below)


def _with_names_of(images: Path, labels: Path, suffix: str) -> list[Path]:
    """The first files in ``labels`` with this suffix and the name of a file in ``images``."""
    texts = _files(labels, (suffix,))
    if not texts:
        return []
    stems = {path.stem for path in _files(images, SUFFIXES)}
    return [path for path in texts if path.stem in stems][:MAX_PEEKED_FILES]


def _masks(data: Path) -> FormatEvidence | None:
    """Two folders with images of the same names, the second of which is named like a folder of masks."""
    folders = subfolders(data)
    if "leftimg8bit" in folders and "gtfine" in folders:
        return FormatEvidence("masks", "leftImg8bit/ and gtFine/ are Cityscapes' folders")
    for base in (data, *(path for path in folders.values() if split_of(path.name) is not None)):
        inside = subfolders(base)
        named = [
            (inside[one], inside[other], True)
            for one in sorted(IMAGE_FOLDERS & inside.keys())
            for other in sorted(ANNOTATION_FOLDERS & inside.keys())
        ]
        named += [
            (path, inside[other], False)
            for name, path in inside.items()
            for other in inside
            if other != name and other.startswith(name) and _MASK_SUFFIX.fullmatch(other[len(name) :])
        ]
        for images, masks, read in named:
            if (found := _identify_pair(data, images, masks, read)) is not None:
                return found
    return None


def _identify_pair(data: Path, images: Path, masks: Path, read: bool) -> FormatEvidence | None:
    """The evidence of two folders of which the second is named like a folder of masks; None where it holds no images."""
    stems = {_stem(name).lower() for name in list_images(images)}
    others = [_stem(name).lower() for name in list_images(masks)]
    if not stems or not others:
        return None
    share = sum(name in stems or _MASK_SUFFIX.sub("", name) in stems for name in others) / len(others)
    share = max(share, len(mask_names(sorted(stems), others)) / len(others))
    one, other = images.relative_to(data).as_posix(), masks.relative_to(data).as_posix()
    if share >= MIN_SAME_NAMES and read:
        return FormatEvidence("masks", f"{one}/ and {other}/ hold images of the same names")
    if share >= MIN_SAME_NAMES:
        advice = "If these are masks, rename the folders to images/ and masks/. If each folder is a class, give "
        return FormatEvidence(
            "masks",
            f"{one}/ and {other}/ hold images of the same names: masks?",
            False,
            f"{advice}layout=class_folders.",
        )
    return FormatEvidence(
        "masks",
        f"{one}/ and {other}/ are named like folders of images and masks, but {share:.0%} of the {len(others)} files in "
        f"{other}/ are named after an image",
        False,
        "If these are masks, give each the name of its image and use maelift transfer segment (task=segment in maelift data "
        "check). If each folder is a class, give layout=class_folders.",
    )


def _table(data: Path) -> FormatEvidence | None:
    """labels.csv, which is read; other tables with a column of labels must be given as ``data``."""
    if (data / "labels.csv").is_file():
        return FormatEvidence("table", "labels.csv is there")
    tables = _files(data, (".csv", ".tsv"))
    # Kaggle's sample submissions look like tables of labels too
    for path in sorted(tables, key=lambda path: bool(re.search("sample|submission|test", path.stem.lower()))):
        columns = set(re.findall(r"[a-z0-9_]+", _read_head(path).split(b"\n")[0].decode("utf-8", "replace").lower()))
        if columns & {"label", "labels", "class", "target", "category"}:
            advice = f"If it holds the labels, give {quoted(f'data={path}')}."
            if sum(_has_images(folder) for folder in subfolders(data).values()) > 1:
                advice += " If each folder is a class, give layout=class_folders."
            return FormatEvidence("table", f"{path.name} is there, a table with a column of labels", False, advice)
    return None


def _shards(data: Path) -> FormatEvidence | None:
    shards = find_shards(str(data))
    for folder in subfolders(data).values():
        if not shards and split_of(folder.name) is not None:
            shards = find_shards(str(folder))
    return _identify_shards(shards) if shards else None


def _identify_shards(shards: Sequence[Path]) -> FormatEvidence:
    """The format of tar shards, by the first members of the first shard."""
    labels = False
    try:
        with tarfile.open(shards[0], "r:") as archive:
            for _ in range(MAX_PEEKED_FILES):
                member = archive.next()
                if member is None:
                    break
                labels = labels or member.name.rpartition(".")[2].lower() in LABEL_SUFFIXES
    except (tarfile.TarError, OSError, EOFError, IndexError):
        labels = True  # the reader reports what is wrong
    name = shards[0].name if shards else "shards"
    if labels:
        return FormatEvidence("shards", f"{name} is a tar shard with labels")
    return FormatEvidence("unlabelled", f"{name} is a tar shard of images without labels")


def _idx(data: Path) -> FormatEvidence | None:
    names = [path.name for path in _files(data, ("ubyte", "ubyte.gz", "idx", ".gz")) if "idx" in path.name]
    if any(name.startswith("train") and "labels" in name for name in names):
        return FormatEvidence("idx", "idx files of images and labels are there")
    if any("images" in name for name in names):
        return FormatEvidence("unlabelled", "idx files of images without labels are there")
    return None


def _parquet(data: Path) -> FormatEvidence | None:
    return FormatEvidence("unlabelled", "Parquet files are there") if _files(data, (".parquet",)) else None


def _identify_images(data: Path) -> FormatEvidence:
    """The format of a folder of images: class folders, or images without labels."""
    names = list(list_images(data))
    loose = sum("/" not in name for name in names)
    if names and 2 * loose >= len(names):
        return _identify_flat(data, names)
    layout = class_layout(data, names)
    if layout.doubts:
        return layout.doubts[0]
    folders = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    if loose:
        return FormatEvidence(
            "class_folders",
            f"{loose} of {len(names)} images are next to the folders {list_folders(folders)}",
            False,
            "Move them into a class folder for classification, or give task=pretrain to check all as images without labels.",
        )
    return FormatEvidence("class_folders", f"images are in the folders {list_folders(folders)}")


def _identify_flat(data: Path, names: Sequence[str]) -> FormatEvidence:
    """The format of images that are in the folder itself."""
    stems = {_stem(name).lower() for name in names}
    masks = [stem for stem in stems if (base := _MASK_SUFFIX.sub("", stem)) != stem and base in stems]
    if len(masks) >= 0.4 * len(stems):
        return FormatEvidence(
            "unlabelled",
            f"{len(masks)} of {len(stems)} images have the name of another one with an ending, such as {min(masks)}: masks?",
            False,
            "If these are masks, put them into masks/ and the others into images/. If all are images, give task=pretrain.",
        )
    return FormatEvidence("unlabelled", "images are in no class folder")


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The regular files in a folder with these suffixes, in any case, without hidden ones; sorted."""
    ends = tuple(suffixes)
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name.lower().endswith(ends) and entry.is_file()]
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({(error.strerror or '').lower()}).") from error
    return [folder / name for name in sorted(found) if not name.startswith(".")]


def _has_images(folder: Path) -> bool:
    return any(kind_of(name) in SUFFIXES | ARRAY_SUFFIXES for name in list_files(folder))


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _read_or_empty(path: Path) -> bytes:
    """The bytes of a regular file; empty where it can't be read."""
    try:
        return read_regular(path)
    except OSError:
        return b""


def _read_head(path: Path) -> bytes:
    """The first bytes of a regular file; empty where it can't be read."""
    try:
        with open_regular(path) as file:
            return file.read(65536)
    except OSError:
        return b""


def _is_yolo_text(path: Path) -> bool | None:
    """Whether each line of a text file is a class and four numbers or more; False for an empty file, None for other text."""
    lines = [
        line.split()
        for line in _read_head(path).decode("utf-8", "replace").splitlines()[:MAX_PEEKED_FILES]
        if line.strip()
    ]
    for words in lines:
        if len(words) < 5 or not words[0].isdecimal():
            return None
        try:
            [float(word) for word in words[1:]]
        except ValueError:
            return None
    return bool(lines)
