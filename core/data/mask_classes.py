"""Which values of masks are classes, with their names, and which are ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DataError
from .class_lists import NUM_MASK_VALUES, ClassList
from .issues import DataIssue
from .mask_files import DEFAULT_IGNORED

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
class MaskClasses:
    """The names of classes by value, in the order of class numbers, and the ignored values."""

    names: Mapping[int, str]
    ignored: frozenset[int]
    source: str
    file: Path | None = None
    """file that lists the classes"""
    given: bool = True
    """whether ignored values were given by the user or the layout"""


def folder_classes(
    root: Path, found: Sequence[int], ignore: int | Sequence[int] | None, listed: ClassList | None, broken: bool
) -> MaskClasses:
    """The listed classes, or each value that was found; ``broken``: some masks have issues, which are reported instead."""
    given = (ignore,) if isinstance(ignore, int) else ignore
    for value in given or ():
        if not 0 <= value < NUM_MASK_VALUES:
            raise ConfigError("ignore", list(given or ()), f"values of pixels, from 0 to {NUM_MASK_VALUES - 1}")
    ignored = frozenset(DEFAULT_IGNORED if given is None else given)
    if listed is not None:
        names, path = listed.names, listed.path
        if listed.colours is not None:  # values are numbers of lines: an ignored one is a colour without meaning
            names = {value: name for value, name in names.items() if value not in (given or ())}
        both = sorted(set(names) & set(given or ()))
        if both:
            raise DataError(f"{path}: {names[both[0]]} has the value {both[0]}, which ignore lists.")
        return MaskClasses(names, ignored - set(names), path.name, path, given is not None)
    values = [value for value in found if value not in ignored]
    if len(values) < 2 and not broken:
        seen = ", ".join(map(str, found)) or "none"
        raise DataError(
            f"data={root}: the masks' values are {seen}, of which {len(values)} would be a class. Name the classes in "
            f"{root / 'classes.txt'}, a line 'NAME, VALUE' for each (for masks of 0 and 255: 'background, 0' and 'NAME, 255')."
        )
    return MaskClasses({value: f"class_{value}" for value in values}, ignored, "the masks")


def class_issues(classes: MaskClasses, found: Mapping[int, int]) -> list[DataIssue]:
    """Listed classes that are in no mask where ignored pixels may be theirs, as in masks of 0 and 255."""
    if classes.file is None or not found or found.keys() - classes.names.keys() - classes.ignored:
        return []  # values without a class are issues of their own
    absent = [value for value in classes.names if value not in found]
    void = max(classes.ignored, key=lambda value: found.get(value, 0), default=None)
    share = found.get(void, 0) / sum(found.values()) if void is not None else 0.0
    present = [name for value, name in classes.names.items() if value in found]
    if absent and not share and len(present) == 1:
        return [DataIssue("one class in all masks", classes.file, "", f"all their pixels are {present[0]}")]
    if not absent or not share:
        return []
    listed = [f"{classes.names[value]} (value {value})" for value in absent[:4]]
    names = ", ".join(listed) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
    verb = "is" if len(absent) == 1 else "are"
    what = f"{names} {verb} in no mask, and {percent(share)} of all pixels have {void}, which is ignored"
    if len(absent) < len(classes.names) - 1 or classes.given:
        return [DataIssue("listed class in no mask", classes.file, "", what)]
    one = classes.names[absent[0]] if len(absent) == 1 else "NAME"
    what += f". Masks of 0 and {void}? Write '{one}, {void}'"
    return [DataIssue("no class but one in any mask", classes.file, "", what)]


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.0f} %" if share >= 0.005 else "less than 1 %"


def ade20k_classes(root: Path) -> MaskClasses:
    """ADE20K's 150 classes, with their names where objectInfo150.txt is there; raises DataError for one of other content."""
    values = range(1, ADE20K_CLASSES + 1)
    names = {value: f"class_{value}" for value in values}
    info = root / "objectInfo150.txt"
    if info.is_file():
        rows = [line.split("\t") for line in info.read_text(encoding="utf-8-sig").splitlines()[1:] if line.strip()]
        listed = {int(row[0]): row[-1].strip() for row in rows if row[0].strip().isdecimal()}
        if sorted(listed) != list(values) or len(set(listed.values())) != len(listed):
            raise DataError(f"{info}: expected {ADE20K_CLASSES} rows of Idx ... Name with different names.")
        names = {value: listed[value] for value in values}
    return MaskClasses(names, frozenset({0}), "ADE20K's classes 0 to 150")


def cityscapes_classes(masks: Sequence[str]) -> MaskClasses:
    """Cityscapes' 19 classes, by labelTrainIds or labelIds as the masks are named; raises DataError for both."""
    train_ids = {name.endswith("labelTrainIds.png") for name in masks}
    if len(train_ids) > 1:
        raise DataError(
            "gtFine: labelTrainIds for some images and labelIds for others. Expected one kind for all images."
        )
    if train_ids == {True}:
        return MaskClasses(dict(enumerate(CITYSCAPES.values())), frozenset({255}), "the 19 train ids")
    ignored = frozenset({*range(CITYSCAPES_IDS), 255} - CITYSCAPES.keys())
    return MaskClasses(CITYSCAPES, ignored, "Cityscapes' label ids")
