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
from ..threads import CancellingThreadPool
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
class ParsedSegmentation:
    """A split's masks and what is wrong in them; ``data`` holds the valid ones."""

    folder: Path
    data: SegmentationImages
    issues: tuple[DataIssue, ...]


@dataclass(frozen=True)
class _MaskScan:
    """What a mask holds: its values, its (height, width) and its image's; or the reason why it can't be read."""

    counts: Mapping[int, int] = field(default_factory=dict)
    """number of pixels of each value"""
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
      ``masks`` (or other names of ``folder_names``), or ``SPLIT`` and ``SPLIT_labels``; a mask has its image's
      path except for the suffix and, if all have it, a word such as ``_mask``. ``classes.txt`` has a line "NAME, VALUE" or "NAME"
      (the value is then the line's number, from 0) for each class, or "NAME, #rrggbb" for masks in colour, ``classes.json`` a
      list of names or {name: value} (see ``class_lists``); without them, each value found is a class. ``ignore`` are the values
      without meaning (default 255).
    - ``ade20k``: ``images/{training,validation}`` and ``annotations/{training,validation}``; 0 is ignored, 1 to 150 are
      the classes.
    - ``cityscapes``: ``leftImg8bit/{train,val}/CITY`` and ``gtFine/{train,val}/CITY``: labelTrainIds, or labelIds, of
      which the 19 evaluated classes are read. The official test split has no labels; test is drawn from train.

    Raises DataError for images without a mask, sizes that differ and values without a class.
    """
    parsed = parse_segmentation(data, layout, ignore)
    raise_on_errors([issue for part in parsed.values() for issue in part.issues], data)
    return {split: part.data for split, part in parsed.items()}


def parse_segmentation(
    data: str | Path, layout: MaskLayout = "folders", ignore: int | Sequence[int] | None = None
) -> dict[str, ParsedSegmentation]:
    """The masks of each split that a data set has, with all their issues; see ``segmentation_parts``.

    Raises DataError where there are no masks.
    """
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"data={data}: {'expected a folder' if root.exists() else 'no such folder'}.")
    if layout != "folders" and ignore is not None:
        raise ConfigError("ignore", ignore, f"nothing with layout={layout}, which defines what is ignored")
    listed = read_class_list(root) if layout == "folders" else None
    pairs = {"folders": folder_pairs, "ade20k": ade20k_pairs, "cityscapes": cityscapes_pairs}[layout](root)
    colours = listed.colours if listed else None
    scans = {split: _scan_masks(split, part, colours) for split, part in pairs.items()}
    found: Counter[int] = Counter()
    for part in scans.values():
        for scan in part:
            found.update(scan.counts)
    if layout == "ade20k":
        classes = ade20k_classes(root)
    elif layout == "cityscapes":
        classes = cityscapes_classes([path.name for part in pairs.values() for path in part.masks])
    else:
        broken = any(part.issues for part in pairs.values()) or any(
            scan.reason for part in scans.values() for scan in part
        )
        classes = folder_classes(root, sorted(found), ignore, listed, broken)
    parsed = {split: _check_masks(part, scans[split], classes, colours) for split, part in pairs.items()}
    first = next(iter(parsed))
    more = class_issues(classes, found)
    return {**parsed, first: replace(parsed[first], issues=(*parsed[first].issues, *more))}


def _scan_masks(split: str, pairs: MaskPairs, colours: ColourTable | None) -> list[_MaskScan]:
    """Read every mask of a split."""
    report, scans = progress_logger(f"scanning the masks of {split}"), []
    with CancellingThreadPool(max_workers=min(8, os.cpu_count() or 1)) as pool:
        paths = [pairs.images.root / name for name in pairs.images.paths]
        for scan in pool.map(lambda mask, image: _scan_mask(mask, image, colours), pairs.masks, paths):
            scans.append(scan)
            report(len(scans), len(paths))
    return scans


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
    pairs: MaskPairs, scans: Sequence[_MaskScan], classes: MaskClasses, colours: ColourTable | None
) -> ParsedSegmentation:
    """The valid masks of a split with their class numbers, and the issues of the others."""
    lookup = np.full(NUM_MASK_VALUES, UNKNOWN_VALUE, dtype=np.int64)
    lookup[list(classes.ignored)] = ignore_index(len(classes.names))
    for number, value in enumerate(classes.names):
        lookup[value] = number
    issues, valid = list(pairs.issues), []
    for index, (mask, scan) in enumerate(zip(pairs.masks, scans, strict=True)):
        unknown = [value for value in scan.values if lookup[value] == UNKNOWN_VALUE]
        if scan.reason:
            issues.append(DataIssue("broken mask", mask, "", scan.reason))
        elif scan.image_size is not None and scan.image_size != scan.size:
            sizes = [f"{width}×{height}" for height, width in (scan.size, scan.image_size)]
            what = f"the mask is {sizes[0]} px, its image {sizes[1]} (upright)"
            if scan.image_size == scan.size[::-1]:
                what += ". Was the mask made for the image as stored, before rotation by EXIF? Rotate the mask too"
            issues.append(DataIssue("size of mask", mask, "", what))
        elif unknown:
            listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            what = f"value{'s' if len(unknown) > 1 else ''} {listed}: not in {classes.source}, nor ignored"
            if classes.file is not None:
                ignorable = ",".join(map(str, sorted({*classes.ignored, *unknown[:8]})))
                what += f". Write 'NAME, {unknown[0]}' if it is a class, or ignore=[{ignorable}]"
            issues.append(DataIssue("unknown label value", mask, "", what))
        else:
            valid.append(index)
    void = ignore_index(len(classes.names))
    data = SegmentationImages(
        images=pairs.images.subset(valid),
        masks=tuple(pairs.masks[index] for index in valid),
        classes=tuple(classes.names.values()),
        lookup=lookup,
        present=tuple(_present(scans[index], lookup, void) for index in valid),
        digests=tuple(_digest(scans[index], lookup) for index in valid),
        colours=colours,
    )
    return ParsedSegmentation(pairs.folder, data, tuple(issues))


def _present(scan: _MaskScan, lookup: NDArray[np.int64], void: int) -> tuple[int, ...]:
    """The classes on a mask."""
    return tuple(sorted({int(lookup[value]) for value in scan.values} - {void}))


def _digest(scan: _MaskScan, lookup: NDArray[np.int64]) -> str:
    """A hash of a mask and of what its values mean."""
    meaning = [(value, int(lookup[value])) for value in scan.values]
    return hashlib.blake2b(f"{scan.digest}{meaning}".encode(), digest_size=16).hexdigest()
