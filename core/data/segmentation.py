"""Segmentation data: images with a mask each, an image file whose pixels are class values.

Every mask is read once when the data is read: what is wrong is found before a run begins, not in its third hour.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ConfigError, DataError
from ..files import NotRegularError, open_regular
from ..progress import progress_logger
from ..threads import Threads
from .class_lists import UNKNOWN_COLOUR, VALUES, ClassList, ColourTable, read_class_list
from .classification import Splits, draw_missing_splits, rarest_first_order
from .dataset_format import ANNOTATION_FOLDERS, IMAGE_FOLDERS, SPLIT_NAMES
from .decode import image_file, upright_size
from .file_index import list_files
from .images import FolderImages, find_images
from .issues import DataIssue, raise_on_errors
from .mask_names import mask_names
from .splits import Strata
from .unread import tell
from .voc import image_sets

Layout = Literal["folders", "ade20k", "cityscapes"]

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif", ".npy"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})

IGNORED = (255,)
"""Values that mean nothing unless classes.txt or the ``ignore`` key says otherwise."""

UNKNOWN = -1
NEAREST = 20
"""Images without mask of which the message names a mask that may be theirs."""
NAMED_COLOURS = 6
"""Colours of a mask that a message names."""

IMAGES_FIRST = ("images", "jpegimages", "image", "imgs", "img")
MASKS_FIRST = ("masks", "mask", "segmentationclass", "labels", "annotations")
"""Names of folders, in any capitals, that are looked for before the others of ``dataset_format``."""
SPLIT_ENDINGS = ("_labels", "_masks", "_mask", "_label", "labels", "masks", "annot", "_annot", "_gt")
"""What the folder of a split's masks has behind the name of the split: train/ and train_labels/."""

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
    colours: ColourTable | None = None
    """of masks in colour: the value that each stands for"""

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
        numbers = self.lookup[read_mask(self.masks[index], self.colours)]
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
            self.colours,
        )

    def label_text(self, index: int) -> str:
        """A hash of the mask's class numbers and of all classes' names."""
        names = hashlib.blake2b(repr(self.classes).encode(), digest_size=8).hexdigest()
        return f"{names}:{self.digests[index]}"

    def draw_order(self, seed: int) -> list[int]:
        """An order in which every beginning has all classes about as often, as far as the images allow."""
        return rarest_first_order(self.present, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The classes on each image."""
        return self.present


@dataclass(frozen=True)
class ParsedMasks:
    """A split as it was understood, and what is wrong in it; ``data`` holds what is sound."""

    folder: Path
    data: SegmentationImages
    faults: tuple[DataIssue, ...]


@dataclass(frozen=True)
class _Pairs:
    """The images of a split with their mask files."""

    folder: Path
    images: FolderImages
    masks: tuple[Path, ...]
    faults: tuple[DataIssue, ...] = ()


@dataclass(frozen=True)
class _Look:
    """What is in a mask: its values, its (height, width) and its image's; or the reason why it can't be read."""

    counts: Mapping[int, int] = field(default_factory=dict)
    """pixels of each value"""
    size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] | None = None
    digest: str = ""
    reason: str = ""

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(self.counts)


@dataclass(frozen=True)
class _Classes:
    """The values of masks: those of classes with their names, in the order of class numbers, and those ignored."""

    names: Mapping[int, str]
    ignored: frozenset[int]
    source: str
    file: Path | None = None
    """that lists them"""
    given: bool = True
    """whether someone said what is ignored"""


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
      ``masks`` (or other names that ``dataset_format`` has), or ``SPLIT`` and ``SPLIT_labels``; a mask has its image's
      path but for the suffix and, if all have it, a word such as ``_mask``. ``classes.txt`` has a line "NAME, VALUE" or "NAME"
      (the value is then the line's number, from 0) for each class, or "NAME, #rrggbb" for masks in colour, ``classes.json`` a
      list of names or {name: value} (see ``class_lists``); without them, each value found is a class. ``ignore`` are the values
      that mean nothing (255, if not given otherwise).
    - ``ade20k``: ``images/{training,validation}`` and ``annotations/{training,validation}``; 0 is ignored, 1 to 150 are
      the classes.
    - ``cityscapes``: ``leftImg8bit/{train,val}/CITY`` and ``gtFine/{train,val}/CITY``: labelTrainIds, or labelIds, of
      which the 19 evaluated classes are taken. The official test split has no labels; test is drawn from train.

    Raises DataError for images without a mask, sizes that differ and values that are no class.
    """
    parsed = parse_segmentation(data, layout, ignore)
    raise_on_errors([fault for part in parsed.values() for fault in part.faults], data)
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
    listed = read_class_list(root) if layout == "folders" else None
    pairs = {"folders": _folders, "ade20k": _ade20k, "cityscapes": _cityscapes}[layout](root)
    colours = listed.colours if listed else None
    looks = {split: _look_through(split, part, colours) for split, part in pairs.items()}
    found: Counter[int] = Counter()
    for part in looks.values():
        for look in part:
            found.update(look.counts)
    if layout == "ade20k":
        classes = _ade20k_classes(root)
    elif layout == "cityscapes":
        classes = _cityscapes_classes([path.name for part in pairs.values() for path in part.masks])
    else:
        broken = any(part.faults for part in pairs.values()) or any(
            look.reason for part in looks.values() for look in part
        )
        classes = _folder_classes(root, sorted(found), ignore, listed, broken)
    parsed = {split: _parsed(part, looks[split], classes, colours) for split, part in pairs.items()}
    first = next(iter(parsed))
    more = _faults_of_classes(classes, found)
    return {**parsed, first: replace(parsed[first], faults=(*parsed[first].faults, *more))}


def read_mask(path: Path, colours: ColourTable | None = None) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values (H, W) of a mask as they are in the file: the index of a palette, the gray of a gray image; upright by EXIF.

    Colour is read by the table, where there is one (``UNKNOWN_COLOUR`` where it hasn't the colour), and as gray where red, green
    and blue are equal. Raises DataError for other colour, for floating point and for what can't be decoded.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_file(path) as file:
                frames = getattr(file, "n_frames", 1)
                bits = _gray_bits(path) if file.format == "PNG" else 8
                file.load()
                image = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {'an empty file' if path.stat().st_size == 0 else 'not an image'}") from error
    except NotRegularError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, DataError) as error:
        raise DataError(f"{path}: {error}") from error
    if frames > 1:
        raise DataError(f"{path}: {frames} pictures in one file. Expected one mask. Save each as a PNG")
    return _mask_values(path, image, bits, colours)


def _mask_values(
    path: Path, image: Image.Image, bits: int, colours: ColourTable | None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values of an opened mask; ``bits`` of its gray in the file."""
    mode = image.mode
    if mode in ("RGBA", "LA", "PA"):
        opacity = np.asarray(image.getchannel("A"))
        if opacity.min() < 255:
            raise DataError(
                f"{path}: a mask with transparent pixels ({mode}). Expected one value a pixel: a gray or palette PNG, or "
                "colours without transparency"
            )
        image = image.convert("RGB") if mode != "LA" else image.getchannel("L")
        mode = image.mode
    if mode == "RGB":
        return _of_colour(path, np.asarray(image), colours)
    if mode == "P" and colours is not None:
        wide = colours.values(_packed(np.asarray(image.convert("RGB"))))
        if not (wide == UNKNOWN_COLOUR).all():  # else the colours are only there to be looked at
            border = (wide == UNKNOWN_COLOUR) & (np.asarray(image) == IGNORED[0])
            return np.where(border, np.uint16(IGNORED[0]), wide)
    values = np.asarray(image)
    if colours is not None and colours.all_gray and mode in ("1", "L"):
        return colours.values(np.asarray(image.convert("L")).astype(np.int64) * 0x010101)
    if mode == "1":
        return values.astype(np.uint8)
    if mode in ("L", "P"):
        return values // np.uint8(255 // (2**bits - 1)) if mode == "L" and bits in (2, 4) else values
    if mode.startswith("I") and values.min() >= 0 and values.max() < VALUES:
        return values.astype(np.uint16)
    if mode.startswith("I"):
        raise DataError(f"{path}: values from {values.min()} to {values.max()}. Expected whole numbers from 0 to 65535")
    if mode == "F":
        raise DataError(f"{path}: a mask of floating point numbers. Expected whole numbers of 8 or 16 bits")
    raise DataError(f"{path}: a mask in colour ({mode}). Expected one value a pixel: a gray or palette PNG")


def _packed(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(H, W) from (H, W, 3): red · 65536 + green · 256 + blue."""
    wide = rgb.astype(np.int64)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], dtype=np.int64)


def _of_colour(
    path: Path, rgb: NDArray[np.uint8], colours: ColourTable | None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values of a mask (H, W, 3): by the table, or the gray where all channels are equal."""
    if colours is not None:
        return colours.values(_packed(rgb))
    if np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 1], rgb[..., 2]):
        gray: NDArray[np.uint8] = rgb[..., 0].copy()
        return gray
    found, counts = np.unique(_packed(rgb), return_counts=True)
    often = [f"#{found[place]:06x}" for place in np.argsort(-counts)[:NAMED_COLOURS]]
    listed = ", ".join(often) + (f" and {len(found) - len(often):,} more" if len(found) > len(often) else "")
    raise DataError(
        f"{path}: a mask in colour (RGB): {listed}. Expected one value a pixel, a gray or palette PNG, or each class' colour in "
        f"classes.txt, a line 'NAME, {often[0]}'"
    )


def _read_array(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A mask (H, W) or (H, W, 1) of whole numbers in a .npy file."""
    try:
        with open_regular(path):  # never waits for a named pipe
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: no array that can be read ({str(error).partition(chr(10))[0]})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: several arrays. Expected one, (height, width) of whole numbers")
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim != 2 or array.dtype.kind not in "iub" or 0 in array.shape:
        raise DataError(
            f"{path}: an array of shape {array.shape} and type {array.dtype}. Expected (height, width) of whole numbers"
        )
    if array.min() < 0 or array.max() >= VALUES:
        raise DataError(f"{path}: values from {array.min()} to {array.max()}. Expected whole numbers from 0 to 65535")
    return np.array(array, dtype=np.uint8 if array.max() < 256 else np.uint16)


def _gray_bits(path: Path) -> int:
    """Bits a pixel of a PNG, from its header: Pillow stretches gray of 2 and 4 bits to 0..255."""
    with path.open("rb") as file:
        return file.read(25)[24]


def find_mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and of masks of each split; empty where there are none. A single pair is the training split."""
    parts: dict[str, tuple[Path, Path]] = {}
    for split, names in SPLIT_NAMES.items():
        for images, masks in _places(root, names):
            if images.is_dir() and (masks.is_dir() or split == "train"):
                parts.setdefault(split, (images, masks))
    if not parts and (pairs := [(images, masks) for images in _image_children(root) for masks in _mask_children(root)]):
        parts["train"] = pairs[0]
    return parts


def _places(root: Path, names: Sequence[str]) -> list[tuple[Path, Path]]:
    """Where the images and the masks of a split of these names may lie, the likeliest first."""
    found = []
    for images in _image_children(root):
        for folder in _children(images, names):
            of_it = [mask for masks in _mask_children(root) for mask in _children(masks, [folder.name.lower()])]
            found += [(folder, mask) for mask in of_it]
            if not of_it and (root / "masks").is_dir():
                found.append((folder, root / "masks" / folder.name))
    for own in _children(root, names):
        images_of = _image_children(own)
        found += [(images, masks) for images in images_of for masks in _mask_children(own)]
        beside = [root / f"{own.name}{ending}" for ending in SPLIT_ENDINGS]
        found += [(own, masks) for masks in beside if not images_of and _holds_masks(masks)]
        found += [(images, own / "masks") for images in images_of if not _mask_children(own)]
    return found


def _children(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders in a folder that have one of the names, in any capitals; in the order of names."""
    try:
        there = [entry for entry in sorted(os.listdir(folder)) if (folder / entry).is_dir()]
    except OSError:
        return []
    return [folder / entry for name in names for entry in there if entry.lower() == name]


def _image_children(folder: Path) -> list[Path]:
    """The folders of images in a folder."""
    return _children(folder, list(dict.fromkeys([*IMAGES_FIRST, *sorted(IMAGE_FOLDERS)])))


def _mask_children(folder: Path) -> list[Path]:
    """The folders of masks in a folder; other names than "masks" count where there are files that may be some."""
    names = list(dict.fromkeys([*MASKS_FIRST, *sorted(ANNOTATION_FOLDERS)]))
    return [child for child in _children(folder, names) if child.name.lower() == "masks" or _holds_masks(child)]


def _holds_masks(folder: Path) -> bool:
    """Whether a folder has a file that may be a mask: labels/ may be YOLO's, annotations/ COCO's or VOC's."""
    for _, folders, names in os.walk(folder):
        folders.sort()
        if any(os.path.splitext(name)[1].lower() in MASK_SUFFIXES | LOSSY_SUFFIXES for name in names):
            return True
    return False


def _folders(root: Path) -> dict[str, _Pairs]:
    parts = find_mask_folders(root) or {"train": (root / "images", root / "masks")}
    for folder in (path for pair in parts.values() for path in pair):
        if not folder.is_dir():
            raise DataError(
                f"data={root}: no folder {folder.relative_to(root)}. Expected images/train and masks/train (and val, test), "
                "train/images and train/masks, or images and masks."
            )
    lists = image_sets(root, "segmentation") if parts.keys() == {"train"} else {}
    if lists:  # Pascal VOC's: few of its images have masks
        pairs = {split: _pairs(*parts["train"], names) for split, names in lists.items()}
        counts = ", ".join(f"{len(names):,} {split}" for split, names in lists.items())
        tell(f"{root}: the images that ImageSets/Segmentation lists are read ({counts}), and no others")
    else:
        pairs = {split: _pairs(*folders) for split, folders in parts.items()}
    chosen = {masks for _, masks in parts.values()}
    others = [
        child for child in _mask_children(root) if not any(child == mask or child in mask.parents for mask in chosen)
    ]
    first = next(iter(pairs))
    more = [
        DataIssue("another folder of masks", folder, "", f"masks are read from {parts[first][1]}") for folder in others
    ]
    return {**pairs, first: replace(pairs[first], faults=(*pairs[first].faults, *more))}


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
                faults.append(
                    DataIssue("image without mask", images / name, "", f"no {candidates[0]}, nor its labelIds")
                )
        parts[split] = _Pairs(images, FolderImages(images, tuple(kept)), tuple(masks), tuple(faults))
    return parts


def _pairs(images: Path, masks: Path, listed: Sequence[str] | None = None) -> _Pairs:
    """Images and masks of equal relative paths, but for the suffix and for a word that all names have.

    ``listed``: the images without their suffix, where not all are meant.
    """
    found = find_images(images)
    if not isinstance(found, FolderImages):
        raise DataError(f"data={images}: expected image files.")
    meant = None if listed is None else frozenset(listed)
    if meant is not None:
        chosen = [number for number, name in enumerate(found.paths) if _stem(name) in meant]
        found = found.subset(np.array(chosen, dtype=np.int64))
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in list_files(masks) if masks.is_dir() else []:
        if Path(name).suffix.lower() in MASK_SUFFIXES | LOSSY_SUFFIXES and (meant is None or _stem(name) in meant):
            by_stem[_stem(name)].append(name)
    gone = sorted((meant or frozenset()) - set(map(_stem, found.paths)))
    faults = [
        DataIssue("listed image missing", images, "", f"no image {name}, which ImageSets/ lists") for name in gone
    ]
    kept: list[str] = []
    files: list[Path] = []
    stems = Counter(map(_stem, found.paths))
    of_image = mask_names(list(stems), list(by_stem))
    used = set(of_image.values())
    unused = [stem for stem in by_stem if stem not in used]
    for name in found.paths:
        stem = _stem(name)
        candidates = by_stem.get(of_image.get(stem, stem), [])
        exact = [path for path in candidates if Path(path).suffix.lower() in MASK_SUFFIXES]
        if stems[stem] > 1:
            faults.append(
                DataIssue("two images of one mask", images / name, "", f"{stems[stem]} images are called {stem}")
            )
        elif len(exact) > 1:
            faults.append(DataIssue("two masks of one image", images / name, "", f"{' and '.join(exact)} in {masks}"))
        elif exact:
            kept.append(name)
            files.append(masks / exact[0])
        elif candidates:
            what = "JPEG and WebP change the values of pixels. Save masks as PNG, from the source"
            faults.append(DataIssue("broken mask", masks / candidates[0], "", what))
        else:
            near = _nearest(stem, unused) if len(faults) < NEAREST else None
            there = f" (there is {by_stem[near][0]})" if near is not None else ""
            faults.append(DataIssue("image without mask", images / name, "", f"no {masks / stem}.png{there}"))
    renamed = [(image, mask) for image, mask in of_image.items() if image != mask]
    if renamed:
        what = f"{len(renamed):,} masks are named otherwise than their images, as {renamed[0][1]} of {renamed[0][0]}"
        faults.append(DataIssue("masks by another name", masks, "", what))
    images_of = {mask: image for image, mask in of_image.items()}
    for stem in sorted(by_stem.keys() - used):
        begin = next((stem[:end] for end in _marks(stem) if stem[:end] in images_of), None)
        if begin is None:
            what = f"no image {stem} in {images}"
            faults.append(DataIssue("mask without image", masks / by_stem[stem][0], "", what))
        else:
            what = f"a further mask of the image {images_of[begin]}, which has {begin} already. Merge them into one"
            faults.append(DataIssue("two masks of one image", masks / by_stem[stem][0], "", what))
    return _Pairs(images, FolderImages(images, tuple(kept)), tuple(files), tuple(faults))


def _stem(name: str) -> str:
    """A relative path without its suffix."""
    return name[: len(name) - len(Path(name).suffix)]


def _marks(stem: str) -> list[int]:
    """Where a name may have ended before something was added: before each mark in it, the last one first."""
    return [place for place in range(len(stem) - 1, 0, -1) if not stem[place].isalnum() and stem[place] != "/"]


def _nearest(stem: str, others: Sequence[str]) -> str | None:
    """The name that an image's mask may have been given."""
    within = [other for other in others if stem and stem in other]
    return min(within, key=len) if within else next(iter(get_close_matches(stem, others[:1000], 1, 0.8)), None)


def _look_through(split: str, pairs: _Pairs, colours: ColourTable | None) -> list[_Look]:
    tell, looks = progress_logger(f"looking through the masks of {split}"), []
    with Threads(max_workers=min(8, os.cpu_count() or 1)) as pool:
        paths = [pairs.images.root / name for name in pairs.images.paths]
        for look in pool.map(lambda mask, image: _look(mask, image, colours), pairs.masks, paths):
            looks.append(look)
            tell(len(looks), len(paths))
    return looks


def _look(mask: Path, image: Path, colours: ColourTable | None) -> _Look:
    try:
        values = read_mask(mask, colours)
    except DataError as error:
        return _Look(reason=str(error).removeprefix(f"{mask}: "))
    digest = hashlib.blake2b(repr((values.shape, values.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    counts = np.bincount(values.ravel())
    found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    reason = ""
    if colours is not None and UNKNOWN_COLOUR in found and mask.suffix.lower() != ".npy":
        reason = _unlisted(mask, colours, _percent(found[UNKNOWN_COLOUR] / values.size))
    return _Look(found, (values.shape[0], values.shape[1]), image_size(image), digest.hexdigest(), reason)


def _unlisted(mask: Path, colours: ColourTable, share: str) -> str:
    """What colours of a mask, the most frequent first, the table hasn't; ``share`` of its pixels have them."""
    try:
        with warnings.catch_warnings(), Image.open(mask) as image:
            warnings.simplefilter("ignore")
            packed = _packed(np.asarray(image.convert("RGB")))
    except (OSError, ValueError):  # 16 bits, whose highest value is that of unlisted colours
        return f"value {UNKNOWN_COLOUR}: not in the list of classes"
    found, counts = np.unique(packed[colours.values(packed) == UNKNOWN_COLOUR], return_counts=True)
    often = [f"#{found[place]:06x}" for place in np.argsort(-counts)[:NAMED_COLOURS]]
    more = f" and {len(found) - len(often):,} more" if len(found) > len(often) else ""
    names = f"colour{'s' if len(found) > 1 else ''} {', '.join(often)}{more}"
    return f"{names}, {share} of its pixels: not in the list of classes. Add 'NAME, {often[0]}' if that is one"


def image_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of an image once it is upright by EXIF, from its header; None where that can't be read."""
    try:
        return upright_size(path)
    except DataError:
        return None


def _parsed(pairs: _Pairs, looks: Sequence[_Look], classes: _Classes, colours: ColourTable | None) -> ParsedMasks:
    lookup = np.full(VALUES, UNKNOWN, dtype=np.int64)
    lookup[list(classes.ignored)] = ignore_index(len(classes.names))
    for number, value in enumerate(classes.names):
        lookup[value] = number
    faults, sound = list(pairs.faults), []
    for index, (mask, look) in enumerate(zip(pairs.masks, looks, strict=True)):
        unknown = [value for value in look.values if lookup[value] == UNKNOWN]
        if look.reason:
            faults.append(DataIssue("broken mask", mask, "", look.reason))
        elif look.image_size is not None and look.image_size != look.size:
            sizes = [f"{width}×{height}" for height, width in (look.size, look.image_size)]
            what = f"the mask is {sizes[0]} px, its image {sizes[1]} (upright)"
            if look.image_size == look.size[::-1]:
                what += ". Is the mask of the image as it is stored, before EXIF turns it? Turn the mask too"
            faults.append(DataIssue("size of mask", mask, "", what))
        elif unknown:
            listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            what = f"value{'s' if len(unknown) > 1 else ''} {listed}: not in {classes.source}, nor ignored"
            if classes.file is not None:
                meaningless = ",".join(map(str, sorted({*classes.ignored, *unknown[:8]})))
                what += f". Write 'NAME, {unknown[0]}' if it is a class, or ignore=[{meaningless}]"
            faults.append(DataIssue("unknown label value", mask, "", what))
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
        colours=colours,
    )
    return ParsedMasks(pairs.folder, data, tuple(faults))


def _present(look: _Look, lookup: NDArray[np.int64], void: int) -> tuple[int, ...]:
    return tuple(sorted({int(lookup[value]) for value in look.values} - {void}))


def _digest(look: _Look, lookup: NDArray[np.int64]) -> str:
    """A hash of a mask and of what its values mean."""
    meaning = [(value, int(lookup[value])) for value in look.values]
    return hashlib.blake2b(f"{look.digest}{meaning}".encode(), digest_size=16).hexdigest()


def _folder_classes(
    root: Path, found: Sequence[int], ignore: int | Sequence[int] | None, listed: ClassList | None, broken: bool
) -> _Classes:
    """Classes that are listed, or each value that is found; ``broken``: some masks can't be used, for a reason of their own."""
    given = (ignore,) if isinstance(ignore, int) else ignore
    for value in given or ():
        if not 0 <= value < VALUES:
            raise ConfigError("ignore", list(given or ()), f"values of pixels, from 0 to {VALUES - 1}")
    ignored = frozenset(IGNORED if given is None else given)
    if listed is not None:
        names, path = listed.names, listed.path
        if (
            listed.colours is not None
        ):  # whose values are the lines' numbers: an ignored one is a colour that means nothing
            names = {value: name for value, name in names.items() if value not in (given or ())}
        both = sorted(set(names) & set(given or ()))
        if both:
            raise DataError(f"{path}: {names[both[0]]} has the value {both[0]}, which ignore says means nothing.")
        return _Classes(names, ignored - set(names), path.name, path, given is not None)
    values = [value for value in found if value not in ignored]
    if len(values) < 2 and not broken:
        seen = ", ".join(map(str, found)) or "none"
        raise DataError(
            f"data={root}: the masks' values are {seen}, of which {len(values)} would be a class. Name the classes in "
            f"{root / 'classes.txt'}, a line 'NAME, VALUE' each (for masks of 0 and 255: 'background, 0' and 'NAME, 255')."
        )
    return _Classes({value: f"class_{value}" for value in values}, ignored, "the masks")


def _faults_of_classes(classes: _Classes, found: Mapping[int, int]) -> list[DataIssue]:
    """Listed classes that no mask shows, where pixels are ignored that may be theirs: for masks of 0 and 255, say."""
    if classes.file is None or not found or found.keys() - classes.names.keys() - classes.ignored:
        return []  # values that are no class are faults of their own
    absent = [value for value in classes.names if value not in found]
    void = max(classes.ignored, key=lambda value: found.get(value, 0), default=None)
    share = found.get(void, 0) / sum(found.values()) if void is not None else 0.0
    present = [name for value, name in classes.names.items() if value in found]
    if absent and not share and len(present) == 1:
        return [DataIssue("one class in all masks", classes.file, "", f"all of their pixels are {present[0]}")]
    if not absent or not share:
        return []
    listed = [f"{classes.names[value]} (value {value})" for value in absent[:4]]
    names = ", ".join(listed) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
    verb = "is" if len(absent) == 1 else "are"
    what = f"{names} {verb} in no mask, and {_percent(share)} of all pixels have {void}, which is ignored"
    if len(absent) < len(classes.names) - 1 or classes.given:
        return [DataIssue("listed class in no mask", classes.file, "", what)]
    one = classes.names[absent[0]] if len(absent) == 1 else "NAME"
    what += f". Masks of 0 and {void}? write '{one}, {void}'"
    return [DataIssue("no class but one in any mask", classes.file, "", what)]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "less than 1 %"


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
