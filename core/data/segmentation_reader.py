"""Reading images with masks: finds the pairs, scans every mask and assigns class numbers to its values.

Every mask is read once when the data is read, so that an issue is found before a run begins, not in its third hour.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..progress import progress_logger
from ..threads import Threads
from .class_lists import NUM_MASK_VALUES, UNKNOWN_COLOUR, ColourTable, read_class_list
from .decode import upright_size
from .issues import DataIssue, raise_on_errors
from .labeled_dataset import Splits
from .mask_classes import MaskClasses, ade20k_classes, cityscapes_classes, class_issues, folder_classes, percent
from .mask_files import read_mask, unlisted_colours_text
from .missing_splits import draw_missing_splits
from .segmentation import UNKNOWN_VALUE, SegmentationImages, ignore_index
from .segmentation_layouts import MaskLayout, MaskPairs, ade20k_pairs, cityscapes_pairs, folder_pairs


@dataclass(frozen=True)
class ParsedMasks:
    """A split as it was understood, and what is wrong in it; ``data`` holds what is sound."""

    folder: Path
    data: SegmentationImages
    issues: tuple[DataIssue, ...]


@dataclass(frozen=True)
class _MaskScan:
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


def read_segmentation(
    data: str | Path,
    layout: MaskLayout = "folders",
    val: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
    ignore: int | Sequence[int] | None = None,
) -> Splits[SegmentationImages]:
    """Images with masks in three splits: those of ``segmentation_parts``, and drawn ones (``draw_missing_splits``)."""
    return draw_missing_splits(segmentation_parts(data, layout, ignore), data, val, test, seed)


def segmentation_parts(
    data: str | Path, layout: MaskLayout = "folders", ignore: int | Sequence[int] | None = None
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
    raise_on_errors([issue for part in parsed.values() for issue in part.issues], data)
    return {split: part.data for split, part in parsed.items()}


def parse_segmentation(
    data: str | Path, layout: MaskLayout = "folders", ignore: int | Sequence[int] | None = None
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
    pairs = {"folders": folder_pairs, "ade20k": ade20k_pairs, "cityscapes": cityscapes_pairs}[layout](root)
    colours = listed.colours if listed else None
    looks = {split: _scan_masks(split, part, colours) for split, part in pairs.items()}
    found: Counter[int] = Counter()
    for part in looks.values():
        for look in part:
            found.update(look.counts)
    if layout == "ade20k":
        classes = ade20k_classes(root)
    elif layout == "cityscapes":
        classes = cityscapes_classes([path.name for part in pairs.values() for path in part.masks])
    else:
        broken = any(part.issues for part in pairs.values()) or any(
            look.reason for part in looks.values() for look in part
        )
        classes = folder_classes(root, sorted(found), ignore, listed, broken)
    parsed = {split: _check_masks(part, looks[split], classes, colours) for split, part in pairs.items()}
    first = next(iter(parsed))
    more = class_issues(classes, found)
    return {**parsed, first: replace(parsed[first], issues=(*parsed[first].issues, *more))}


def _scan_masks(split: str, pairs: MaskPairs, colours: ColourTable | None) -> list[_MaskScan]:
    tell, looks = progress_logger(f"looking through the masks of {split}"), []
    with Threads(max_workers=min(8, os.cpu_count() or 1)) as pool:
        paths = [pairs.images.root / name for name in pairs.images.paths]
        for look in pool.map(lambda mask, image: _scan_mask(mask, image, colours), pairs.masks, paths):
            looks.append(look)
            tell(len(looks), len(paths))
    return looks


def _scan_mask(mask: Path, image: Path, colours: ColourTable | None) -> _MaskScan:
    try:
        values = read_mask(mask, colours)
    except DataError as error:
        return _MaskScan(reason=str(error).removeprefix(f"{mask}: "))
    digest = hashlib.blake2b(repr((values.shape, values.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    counts = np.bincount(values.ravel())
    found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    reason = ""
    if colours is not None and UNKNOWN_COLOUR in found and mask.suffix.lower() != ".npy":
        reason = unlisted_colours_text(mask, colours, percent(found[UNKNOWN_COLOUR] / values.size))
    return _MaskScan(found, (values.shape[0], values.shape[1]), image_size(image), digest.hexdigest(), reason)


def image_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of an image once it is upright by EXIF, from its header; None where that can't be read."""
    try:
        return upright_size(path)
    except DataError:
        return None


def _check_masks(
    pairs: MaskPairs, looks: Sequence[_MaskScan], classes: MaskClasses, colours: ColourTable | None
) -> ParsedMasks:
    lookup = np.full(NUM_MASK_VALUES, UNKNOWN_VALUE, dtype=np.int64)
    lookup[list(classes.ignored)] = ignore_index(len(classes.names))
    for number, value in enumerate(classes.names):
        lookup[value] = number
    issues, sound = list(pairs.issues), []
    for index, (mask, look) in enumerate(zip(pairs.masks, looks, strict=True)):
        unknown = [value for value in look.values if lookup[value] == UNKNOWN_VALUE]
        if look.reason:
            issues.append(DataIssue("broken mask", mask, "", look.reason))
        elif look.image_size is not None and look.image_size != look.size:
            sizes = [f"{width}×{height}" for height, width in (look.size, look.image_size)]
            what = f"the mask is {sizes[0]} px, its image {sizes[1]} (upright)"
            if look.image_size == look.size[::-1]:
                what += ". Is the mask of the image as it is stored, before EXIF turns it? Turn the mask too"
            issues.append(DataIssue("size of mask", mask, "", what))
        elif unknown:
            listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            what = f"value{'s' if len(unknown) > 1 else ''} {listed}: not in {classes.source}, nor ignored"
            if classes.file is not None:
                meaningless = ",".join(map(str, sorted({*classes.ignored, *unknown[:8]})))
                what += f". Write 'NAME, {unknown[0]}' if it is a class, or ignore=[{meaningless}]"
            issues.append(DataIssue("unknown label value", mask, "", what))
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
    return ParsedMasks(pairs.folder, data, tuple(issues))


def _present(look: _MaskScan, lookup: NDArray[np.int64], void: int) -> tuple[int, ...]:
    return tuple(sorted({int(lookup[value]) for value in look.values} - {void}))


def _digest(look: _MaskScan, lookup: NDArray[np.int64]) -> str:
    """A hash of a mask and of what its values mean."""
    meaning = [(value, int(lookup[value])) for value in look.values]
    return hashlib.blake2b(f"{look.digest}{meaning}".encode(), digest_size=16).hexdigest()
