"""Segmentation data: images with a mask each, an image file whose pixels are class values.

Every mask is read once when the data is read: what is wrong is found before a run begins, not in its third hour.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from .config import ConfigError, DataError
from .decoding import image_file, upright_size
from .faults import Fault, refuse
from .images import FolderImages, find_images
from .labels import SPLIT_NAMES, Splits, draw_missing_splits, rarest_first_order, spread_order
from .listing import list_files
from .tracking import counting

Layout = Literal["folders", "ade20k", "cityscapes"]

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})

IGNORED = (255,)
"""Values that mean nothing unless classes.txt or the ``ignore`` key says otherwise."""

UNKNOWN = -1
VALUES = 2**16
"""A mask has 8 or 16 bits."""

CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The 19 classes that are evaluated, by their label id (cityscapesScripts, helpers/labels.py), in train id order."""

CITYSCAPES_IDS = 34
"""Label ids run from 0 to 33; the licence plate's -1 is 255 in the files."""

ADE20K_CLASSES = 150


@dataclass(frozen=True)
class SegmentationImages:
    """Images with a mask of class numbers each (see ``labels.Annotated``).

    ``masks`` are the files; ``lookup`` (65536,) int64 gives the class number of a file's value, ``ignore_index`` for
    those that mean nothing, -1 for unknown ones. ``present`` are the classes on each image; ``digests`` hashes of masks.
    """

    images: FolderImages
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    lookup: NDArray[np.int64]
    present: tuple[tuple[int, ...], ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def ignore_index(self) -> int:
        """The number of pixels without a class: 255, or 65535 where there are more classes than that."""
        return ignore_index(len(self.classes))

    @property
    def values(self) -> list[int]:
        """The value of each class in the files."""
        return [int(np.flatnonzero(self.lookup == number)[0]) for number in range(len(self.classes))]

    @property
    def least_train(self) -> int:
        """One: an image may show all classes."""
        return 1

    def mask(self, index: int) -> NDArray[np.uint8] | NDArray[np.int64]:
        """(H, W): the class numbers of an image's pixels, from 0, ``ignore_index`` where there is none.

        uint8, or int64 with more than 255 classes. Raises DataError for a mask that can't be read or has become faulty.
        """
        numbers = self.lookup[read_mask(self.masks[index])]
        if numbers.min() == UNKNOWN:
            raise DataError(f"{self.masks[index]}: values that are no class. The file has changed since the run began")
        return numbers.astype(np.uint8) if self.ignore_index < 256 else numbers

    def subset(self, indices: Sequence[int]) -> SegmentationImages:
        """The images with these numbers, in this order."""
        return SegmentationImages(
            self.images.subset(indices),
            tuple(self.masks[index] for index in indices),
            self.classes,
            self.lookup,
            tuple(self.present[index] for index in indices),
            tuple(self.digests[index] for index in indices),
        )

    def label_text(self, index: int) -> str:
        """A hash of the mask's class numbers and of all classes' names."""
        names = hashlib.blake2b(repr(self.classes).encode(), digest_size=8).hexdigest()
        return f"{names}:{self.digests[index]}"

    def draw_order(self, seed: int) -> list[int]:
        """An order in which every beginning has all classes about as often, as far as the images allow."""
        return rarest_first_order(self.present, seed, "labels")

    def split_order(self, seed: int, split: str) -> list[int]:
        """A drawn order at whose end every class is seen."""
        return spread_order(self.present, seed, split)


@dataclass(frozen=True)
class ParsedMasks:
    """A split as it was understood, and what is wrong in it; ``data`` holds what is sound."""

    folder: Path
    data: SegmentationImages
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class _Pairs:
    """The images of a split with their mask files."""

    folder: Path
    images: FolderImages
    masks: tuple[Path, ...]
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class _Look:
    """What is in a mask: its values, its (height, width) and its image's; or the reason why it can't be read."""

    values: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] | None = None
    digest: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Classes:
    """The values of masks: those of classes with their names, in the order of class numbers, and those ignored."""

    names: Mapping[int, str]
    ignored: frozenset[int]
    source: str


def ignore_index(classes: int) -> int:
    """The number that stands for "no class" in masks of this many classes."""
    return 255 if classes <= 255 else VALUES - 1


def read_segmentation(
    data: str | Path,
    layout: Layout = "folders",
    val: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
    ignore: int | Sequence[int] | None = None,
) -> Splits[SegmentationImages]:
    """Images with masks in three splits: those of ``segmentation_parts``, and drawn ones (``draw_missing_splits``)."""
    return draw_missing_splits(segmentation_parts(data, layout, ignore), data, val, test, seed)


def segmentation_parts(
    data: str | Path, layout: Layout = "folders", ignore: int | Sequence[int] | None = None
) -> dict[str, SegmentationImages]:
    """The splits of images with masks that a data set has.

    Layouts:

    - ``folders``: ``images/SPLIT`` and ``masks/SPLIT``, or ``SPLIT/images`` and ``SPLIT/masks``, or just ``images`` and
      ``masks``; a mask has its image's path but for the suffix. ``classes.txt`` has a line "NAME, VALUE" or "NAME" (the
      value is then the line's number, from 0) for each class, ``classes.json`` a list of names or {name: value}; without
      them, each value found is a class. ``ignore`` are the values that mean nothing (255, if not given otherwise).
    - ``ade20k``: ``images/{training,validation}`` and ``annotations/{training,validation}``; 0 is ignored, 1 to 150 are
      the classes.
    - ``cityscapes``: ``leftImg8bit/{train,val}/CITY`` and ``gtFine/{train,val}/CITY``: labelTrainIds, or labelIds, of
      which the 19 evaluated classes are taken. The official test split has no labels; test is drawn from train.

    Raises DataError for images without a mask, sizes that differ and values that are no class.
    """
    parsed = parse_segmentation(data, layout, ignore)
    refuse([fault for part in parsed.values() for fault in part.faults], data)
    return {split: part.data for split, part in parsed.items()}


def parse_segmentation(
    data: str | Path, layout: Layout = "folders", ignore: int | Sequence[int] | None = None
) -> dict[str, ParsedMasks]:
    """The masks of each split that a data set has, with all that is wrong in them; see ``segmentation_parts``.

    Raises DataError where there is nothing to be read.
    """
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"data={data}: {'expected a folder' if root.exists() else 'no such folder'}.")
    if layout != "folders" and ignore is not None:
        raise ConfigError("ignore", ignore, f"nothing with layout={layout}, which says itself what is ignored")
    pairs = {"folders": _folders, "ade20k": _ade20k, "cityscapes": _cityscapes}[layout](root)
    looks = {split: _look_through(split, part) for split, part in pairs.items()}
    found = sorted({value for part in looks.values() for look in part for value in look.values})
    if layout == "ade20k":
        classes = _ade20k_classes(root)
    elif layout == "cityscapes":
        classes = _cityscapes_classes([path.name for part in pairs.values() for path in part.masks])
    else:
        classes = _folder_classes(root, found, ignore)
    return {split: _parsed(part, looks[split], classes) for split, part in pairs.items()}


def read_mask(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values (H, W) of a mask as they are in the file: the index of a palette, the gray of a gray image.

    Raises DataError for colour, for floating point and for what can't be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_file(path) as file:
                mode, bits = file.mode, _gray_bits(path) if file.format == "PNG" else 8
                values = np.asarray(file)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {'an empty file' if path.stat().st_size == 0 else 'not an image'}") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, DataError) as error:
        raise DataError(f"{path}: {error}") from error
    if mode in ("RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr"):
        raise DataError(
            f"{path}: a mask in colour ({mode}). Expected one value a pixel: a gray or palette PNG. Map each colour to a "
            "number first"
        )
    if mode == "1":
        return values.astype(np.uint8)
    if mode in ("L", "P"):
        return values // np.uint8(255 // (2**bits - 1)) if mode == "L" and bits in (2, 4) else values
    if mode.startswith("I") and values.min() >= 0 and values.max() < VALUES:
        return values.astype(np.uint16)
    raise DataError(f"{path}: pixels of mode {mode}. Expected whole numbers of 8 or 16 bits")


def _gray_bits(path: Path) -> int:
    """Bits a pixel of a PNG, from its header: Pillow stretches gray of 2 and 4 bits to 0..255."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _folders(root: Path) -> dict[str, _Pairs]:
    images, masks = root / "images", root / "masks"
    parts: dict[str, tuple[Path, Path]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            for pair in ((images / name, masks / name), (root / name / "images", root / name / "masks")):
                if pair[0].is_dir() and (pair[1].is_dir() or split == "train"):
                    parts.setdefault(split, pair)
    if not parts:
        parts["train"] = images, masks
    for folder in (path for pair in parts.values() for path in pair):
        if not folder.is_dir():
            raise DataError(
                f"data={root}: no folder {folder.relative_to(root)}. Expected images/train and masks/train (and val, test), "
                "train/images and train/masks, or images and masks."
            )
    return {split: _pairs(*folders) for split, folders in parts.items()}


def _ade20k(root: Path) -> dict[str, _Pairs]:
    parts = {"train": "training", "val": "validation"}
    for folder in (root / "images" / "training", root / "annotations" / "training"):
        if not folder.is_dir():
            raise DataError(
                f"data={root}: no folder {folder.relative_to(root)}. layout=ade20k is ADEChallengeData2016's."
            )
    return {
        split: _pairs(root / "images" / name, root / "annotations" / name)
        for split, name in parts.items()
        if (root / "images" / name).is_dir()
    }


def _cityscapes(root: Path) -> dict[str, _Pairs]:
    parts: dict[str, _Pairs] = {}
    for split in ("train", "val"):
        images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
        if split == "train":
            for folder in (images, labels):
                if not folder.is_dir():
                    raise DataError(
                        f"data={root}: no folder {folder.relative_to(root)}. layout=cityscapes is leftImg8bit and gtFine."
                    )
        if not images.is_dir():
            continue
        names = [name for name in list_files(images) if name.endswith("_leftImg8bit.png")]
        if not names:
            raise DataError(f"data={root}: no *_leftImg8bit.png in {images.relative_to(root)}.")
        kept, masks, faults = [], [], []
        for name in names:
            stem = name.removesuffix("_leftImg8bit.png")
            candidates = [labels / f"{stem}_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
            there = [path for path in candidates if path.is_file()]
            if there:
                kept.append(name)
                masks.append(there[0])
            else:
                faults.append(Fault("image without mask", images / name, "", f"no {candidates[0]}, nor its labelIds"))
        parts[split] = _Pairs(images, FolderImages(images, tuple(kept)), tuple(masks), tuple(faults))
    return parts


def _pairs(images: Path, masks: Path) -> _Pairs:
    """Images and masks of equal relative paths, but for the suffix."""
    found = find_images(images)
    if not isinstance(found, FolderImages):
        raise DataError(f"data={images}: expected image files.")
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in list_files(masks) if masks.is_dir() else []:
        if Path(name).suffix.lower() in MASK_SUFFIXES | LOSSY_SUFFIXES:
            by_stem[Path(name).with_suffix("").as_posix()].append(name)
    faults: list[Fault] = []
    kept: list[str] = []
    files: list[Path] = []
    stems = Counter(Path(name).with_suffix("").as_posix() for name in found.paths)
    for name in found.paths:
        stem = Path(name).with_suffix("").as_posix()
        candidates = by_stem.get(stem, [])
        exact = [path for path in candidates if Path(path).suffix.lower() in MASK_SUFFIXES]
        if stems[stem] > 1:
            faults.append(Fault("two images of one mask", images / name, "", f"{stems[stem]} images are called {stem}"))
        elif len(exact) > 1:
            faults.append(Fault("two masks of one image", images / name, "", f"{' and '.join(exact)} in {masks}"))
        elif exact:
            kept.append(name)
            files.append(masks / exact[0])
        elif candidates:
            what = "JPEG and WebP change the values of pixels. Save masks as PNG, from the source"
            faults.append(Fault("broken mask", masks / candidates[0], "", what))
        else:
            faults.append(Fault("image without mask", images / name, "", f"no {masks / stem}.png"))
    for stem in sorted(by_stem.keys() - stems.keys()):
        faults.append(Fault("mask without image", masks / by_stem[stem][0], "", f"no image {stem} in {images}"))
    return _Pairs(images, FolderImages(images, tuple(kept)), tuple(files), tuple(faults))


def _look_through(split: str, pairs: _Pairs) -> list[_Look]:
    tell, looks = counting(f"looking through the masks of {split}"), []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        paths = [pairs.images.root / name for name in pairs.images.paths]
        for look in pool.map(_look, pairs.masks, paths):
            looks.append(look)
            tell(len(looks), len(paths))
    return looks


def _look(mask: Path, image: Path) -> _Look:
    try:
        values = read_mask(mask)
    except DataError as error:
        return _Look(reason=str(error).removeprefix(f"{mask}: "))
    digest = hashlib.blake2b(repr((values.shape, values.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    counts = np.bincount(values.ravel())
    return _Look(
        values=tuple(int(value) for value in np.flatnonzero(counts)),
        size=(values.shape[0], values.shape[1]),
        image_size=image_size(image),
        digest=digest.hexdigest(),
    )


def image_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of an image once it is upright by EXIF, from its header; None where that can't be read."""
    try:
        return upright_size(path)
    except DataError:
        return None


def _parsed(pairs: _Pairs, looks: Sequence[_Look], classes: _Classes) -> ParsedMasks:
    lookup = np.full(VALUES, UNKNOWN, dtype=np.int64)
    lookup[list(classes.ignored)] = ignore_index(len(classes.names))
    for number, value in enumerate(classes.names):
        lookup[value] = number
    faults, sound = list(pairs.faults), []
    for index, (mask, look) in enumerate(zip(pairs.masks, looks, strict=True)):
        unknown = [value for value in look.values if lookup[value] == UNKNOWN]
        if look.reason:
            faults.append(Fault("broken mask", mask, "", look.reason))
        elif look.image_size is not None and look.image_size != look.size:
            sizes = [f"{width}×{height}" for height, width in (look.size, look.image_size)]
            what = f"the mask is {sizes[0]} px, its image {sizes[1]} (upright)"
            faults.append(Fault("size of mask", mask, "", what))
        elif unknown:
            listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            what = f"value{'s' if len(unknown) > 1 else ''} {listed}: not in {classes.source}, nor ignored"
            faults.append(Fault("unknown label value", mask, "", what))
        else:
            sound.append(index)
    void = ignore_index(len(classes.names))
    data = SegmentationImages(
        images=pairs.images.subset(sound),
        masks=tuple(pairs.masks[index] for index in sound),
        classes=tuple(classes.names.values()),
        lookup=lookup,
        present=tuple(_present(looks[index], lookup, void) for index in sound),
        digests=tuple(_digest(looks[index], lookup) for index in sound),
    )
    return ParsedMasks(pairs.folder, data, tuple(faults))


def _present(look: _Look, lookup: NDArray[np.int64], void: int) -> tuple[int, ...]:
    return tuple(sorted({int(lookup[value]) for value in look.values} - {void}))


def _digest(look: _Look, lookup: NDArray[np.int64]) -> str:
    """A hash of a mask and of what its values mean."""
    meaning = [(value, int(lookup[value])) for value in look.values]
    return hashlib.blake2b(f"{look.digest}{meaning}".encode(), digest_size=16).hexdigest()


def _folder_classes(root: Path, found: Sequence[int], ignore: int | Sequence[int] | None) -> _Classes:
    given = (ignore,) if isinstance(ignore, int) else ignore
    for value in given or ():
        if not 0 <= value < VALUES:
            raise ConfigError("ignore", list(given or ()), f"values of pixels, from 0 to {VALUES - 1}")
    listed = _listed_classes(root)
    if listed is not None:
        names, path = listed
        both = sorted(set(names) & set(given or ()))
        if both:
            raise DataError(f"{path}: {names[both[0]]} has the value {both[0]}, which ignore says means nothing.")
        return _Classes(names, frozenset(IGNORED if given is None else given) - set(names), path.name)
    ignored = frozenset(IGNORED if given is None else given)
    values = [value for value in found if value not in ignored]
    if len(values) < 2:
        seen = ", ".join(map(str, found)) or "none"
        raise DataError(
            f"data={root}: the masks' values are {seen}, of which {len(values)} would be a class. Name the classes in "
            f"{root / 'classes.txt'}, a line 'NAME, VALUE' each (for masks of 0 and 255: 'background, 0' and 'NAME, 255')."
        )
    return _Classes({value: f"class_{value}" for value in values}, ignored, "the masks")


def _listed_classes(root: Path) -> tuple[dict[int, str], Path] | None:
    """The classes by value that classes.txt or classes.json lists, in its order."""
    text, structured = root / "classes.txt", root / "classes.json"
    if text.is_file():
        lines = text.read_text(encoding="utf-8-sig").splitlines()
        pairs = [_class_line(line, number) for number, line in enumerate(line for line in lines if line.strip())]
        return _checked(pairs, text), text
    if not structured.is_file():
        return None
    try:
        content = json.loads(structured.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{structured}: not valid JSON ({error}).") from error
    entries = list(enumerate(content)) if isinstance(content, list) else []
    if isinstance(content, dict):
        entries = [(value, name) for name, value in content.items()]
    for value, name in entries:
        if not isinstance(value, int) or isinstance(value, bool) or not isinstance(name, str):
            entries = []
            break
    if not entries:
        raise DataError(f"{structured}: expected a list of class names, or an object of NAME: VALUE.")
    return _checked(entries, structured), structured


def _class_line(line: str, number: int) -> tuple[int, str]:
    name, comma, value = line.rpartition(",")
    if comma and value.strip().isdecimal():
        return int(value), name.strip()
    return number, line.strip()


def _checked(pairs: Iterable[tuple[int, str]], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for value, name in pairs:
        if not 0 <= value < VALUES:
            raise DataError(f"{path}: {name} has the value {value}. Expected 0 to {VALUES - 1}.")
        if value in names:
            raise DataError(f"{path}: {names[value]} and {name} both have the value {value}.")
        if name in names.values() or not name:
            raise DataError(f"{path}: {f'{name} is listed twice' if name else f'the class {value} has no name'}.")
        names[value] = name
    if len(names) < 2:
        raise DataError(f"{path}: {len(names)} classes. Expected at least two, background included.")
    return names


def _ade20k_classes(root: Path) -> _Classes:
    values = range(1, ADE20K_CLASSES + 1)
    names = {value: f"class_{value}" for value in values}
    info = root / "objectInfo150.txt"
    if info.is_file():
        rows = [line.split("\t") for line in info.read_text(encoding="utf-8-sig").splitlines()[1:] if line.strip()]
        listed = {int(row[0]): row[-1].strip() for row in rows if row[0].strip().isdecimal()}
        if sorted(listed) != list(values) or len(set(listed.values())) != len(listed):
            raise DataError(f"{info}: expected {ADE20K_CLASSES} rows of Idx ... Name with different names.")
        names = {value: listed[value] for value in values}
    return _Classes(names, frozenset({0}), "ADE20K's classes 0 to 150")


def _cityscapes_classes(masks: Sequence[str]) -> _Classes:
    """Classes of labelTrainIds or of labelIds, whichever the masks are."""
    train_ids = {name.endswith("labelTrainIds.png") for name in masks}
    if len(train_ids) > 1:
        raise DataError("gtFine: labelTrainIds for some images and labelIds for others. Expected one kind for all.")
    if train_ids == {True}:
        return _Classes(dict(enumerate(CITYSCAPES.values())), frozenset({255}), "the 19 train ids")
    ignored = frozenset({*range(CITYSCAPES_IDS), 255} - CITYSCAPES.keys())
    return _Classes(CITYSCAPES, ignored, "Cityscapes' label ids")
