"""Which folders of images are splits and which are classes, with evidence against their being classes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..terminal import quoted
from .folder_names import IMAGE_FOLDERS, UNSORTED_FOLDERS, split_folders, split_of
from .format_evidence import FormatEvidence

_PRETRAIN_ADVICE = (
    "If they are images without labels, maelift pretrain reads them (task=pretrain in maelift data check; unlabelled= in "
    "maelift init)."
)

_GENERIC_NAMES = (
    "test",
    "testing",
    "images",
    "image",
    "img",
    "imgs",
    "unknown",
    "unlabelled",
    "unlabeled",
    "all",
    "data",
)

_NUMBERED = (
    "batch|part|chunk|shard|set|disk|disc|dir|folder|group|subset|camera|cam|video|vid|clip|seq|"
    "sequence|session|flight|mission|run|patient|subject|case|scan|slide|roll|tile|page|frame|frames|"
    "img|image|images|photo|photos|dump|import|export|upload|download|backup|volume|vol|archive|"
    "album|day|week|fold"
)

_MONTHS = "jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?|dec(ember)?"

_NOT_CLASS_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "dates": re.compile(
        r"(19|20)\d\d|(19|20)\d\d[-_. ]?(0[1-9]|1[0-2])([-_. ]?([0-2]\d|3[01]))?([-_. T].*)?"
        r"|\d{1,2}[-_.]\d{1,2}[-_.]((19|20)?\d\d)"
        rf"|({_MONTHS})([-_. ]?(19|20)?\d\d)?",
        re.IGNORECASE,
    ),
    "a camera's numbering": re.compile(r"[1-9]\d\d[A-Z_][A-Z0-9_]{4}|(IMG|DSC|DSCN|DJI|GOPR|PXL|MVI)[-_]?\d+"),
    "numbered parts": re.compile(
        rf"({_NUMBERED})[-_. ]?(\d+|[a-d])|cam(era)?[-_. ]?(left|right|front|rear|back|top)", re.IGNORECASE
    ),
    "hashes": re.compile(r"(?=.*\d)(?=.*[a-f])([0-9a-f]{12,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "places for images of any kind": re.compile(
        "|".join(sorted(IMAGE_FOLDERS | {"camera", "all", "data", "dataset", "download"})), re.IGNORECASE
    ),
}
"""Patterns of folder names that are unlikely to be classes, by what they are."""


@dataclass(frozen=True)
class ClassLayout:
    """The layout of class folders: the folder of each split, "" for the data folder itself.

    ``left_out`` are folders of images that are neither a class nor a split, with the reason; ``doubts`` is evidence against
    these folders being classes.
    """

    splits: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[FormatEvidence, ...] = ()


def class_layout(data: Path, names: Sequence[str]) -> ClassLayout:
    """Which folders are splits, classes or neither; ``names`` are the images' paths below ``data``."""
    tops: dict[str, list[str]] = defaultdict(list)
    for name in names:
        top, slash, rest = name.partition("/")
        if slash:
            tops[top].append(rest)
    split_folders(data)  # raises for two of one split
    splits = {split: top for top in tops if (split := split_of(top)) is not None}
    others = sorted(top for top in tops if split_of(top) is None)
    if not splits:
        return ClassLayout({"train": ""}, doubts=_doubts_of_classes(data, tops))
    flat = {split: top for split, top in splits.items() if not _class_names(tops[top])}
    if not others:
        return _split_layout(data, tops, splits, flat)
    if "train" in splits and "train" not in flat:
        if len(splits) == 1 and len(others) > 1:
            top = splits["train"]
            return _undecided_layout(
                data, f"{top}/ is next to {list_folders(others)}, and all hold images: a split or a class?", top
            )
        left_out = {top: f"{len(tops[top]):,} images, not named as a split" for top in others}
        found = _split_layout(data, tops, splits, flat)
        return ClassLayout(found.splits, {**left_out, **found.left_out}, found.doubts)
    if set(flat) == set(splits) == {"train"}:
        return ClassLayout({"train": ""})  # a class of that name, such as the vehicle
    if "train" in splits:
        there = list_folders(list(splits.values()))
        return _undecided_layout(
            data, f"{there} are next to {list_folders(others)}, and hold no class folders: splits or classes?", ""
        )
    classes = set(others)
    parts = {"train": ""}
    left_out = {}
    for split, top in splits.items():
        if split not in flat and set(_class_names(tops[top])) <= classes:
            parts[split] = top
        elif split in flat or _is_generic(_class_names(tops[top])):
            left_out[top] = f"{len(tops[top]):,} images without labels: neither a class nor a {split} split"
        else:
            where = f"{top}/ is next to {list_folders(others)}, with other folders in it: a split or a class?"
            return _undecided_layout(data, where, top)
    return ClassLayout(parts, left_out, _doubts_of_classes(data, {top: tops[top] for top in others}))


def _split_layout(
    data: Path, tops: Mapping[str, Sequence[str]], splits: Mapping[str, str], flat: Mapping[str, str]
) -> ClassLayout:
    """The layout of folders that are named after splits."""
    if set(flat) == set(splits):
        evidence = (
            f"{list_folders(list(splits.values()))} hold{'s' if len(splits) == 1 else ''} images in no class folder"
        )
        return ClassLayout({}, doubts=(FormatEvidence("unlabelled", evidence),))
    if "train" in flat:
        left = f"{flat['train']}/ holds images in no class folder"
        advice = f"Put them into {flat['train']}/CLASS/, or into a table path,label (data=labels.csv)."
        return ClassLayout({}, doubts=(FormatEvidence("unlabelled", left, False, advice),))
    known = set(_class_names(tops[splits["train"]])) if "train" in splits else set()
    parts, left_out = {}, {}
    for split, top in splits.items():
        classes = _class_names(tops[top])
        if split in flat or (known and not known & set(classes) and _is_generic(classes)):
            left_out[top] = f"{len(tops[top]):,} images without labels: no {split} split"
        else:
            parts[split] = top
    inside = {
        name: [rest for _, _, rest in rows]
        for name, rows in _by_top_folder(tops[splits.get("train", next(iter(parts.values())))])
    }
    return ClassLayout(parts, left_out, _doubts_of_classes(data / splits.get("train", ""), inside))


def _by_top_folder(names: Sequence[str]) -> Iterable[tuple[str, list[tuple[str, str, str]]]]:
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for name in names:
        top, slash, rest = name.partition("/")
        if slash:
            found[top].append((top, slash, rest))
    return found.items()


def _class_names(names: Sequence[str]) -> list[str]:
    """The folders of a split's images, by their paths in the split; none where most images are in no folder."""
    folders = [name.split("/", 1)[0] for name in names if "/" in name]
    return sorted(set(folders)) if 2 * len(folders) > len(names) else []


def _is_generic(classes: Sequence[str]) -> bool:
    return len(classes) == 1 and classes[0].lower() in _GENERIC_NAMES


def _undecided_layout(data: Path, evidence: str, top: str) -> ClassLayout:
    rest = f"If {top}/ is a split, move the others elsewhere." if top else "Move the splits or the others elsewhere."
    found = FormatEvidence(
        "class_folders", evidence, False, f"If each folder is a class, give layout=class_folders. {rest}"
    )
    return ClassLayout({"train": ""}, doubts=(found,))


def _doubts_of_classes(data: Path, tops: Mapping[str, Sequence[str]]) -> tuple[FormatEvidence, ...]:
    """Evidence against folders of images being classes; ``tops`` are the images' paths below each folder."""
    folders = sorted(tops)
    if len(folders) == 1:
        return _doubts_of_single(data, folders[0], tops[folders[0]])
    within = [{split_of(folder) for folder in _class_names(names)} for names in tops.values()]
    if within and all(found and None not in found for found in within):
        inner = sorted({folder for names in tops.values() for folder in _class_names(names)})
        return (
            FormatEvidence(
                "class_folders",
                f"the folders {list_folders(folders)} hold splits ({list_folders(inner)})",
                False,
                f"Expected SPLIT/CLASS, not CLASS/SPLIT. Move {folders[0]}/{inner[0]} to {inner[0]}/{folders[0]} and so on, "
                "or give layout=class_folders to merge all images of a class.",
            ),
        )
    for what, pattern in _NOT_CLASS_PATTERNS.items():
        named = [folder for folder in folders if pattern.fullmatch(folder)]
        if 2 * len(named) > len(folders):
            return (_not_classes(named, f"named after {what}"),)
    if named := [folder for folder in folders if folder.lower() in UNSORTED_FOLDERS]:
        return (_not_classes(named, "named as one of images of any kind"),)
    if shared := _shared_folders(tops):
        return (
            FormatEvidence(
                "class_folders",
                f"the folders {list_folders(folders)} hold the same folders, {list_folders(shared)}: which are the classes?",
                False,
                f"If {list_folders(folders)} are, give layout=class_folders. If {list_folders(shared)} are, move their images "
                "together, or name them in a table path,label (data=labels.csv).",
            ),
        )
    digits = len(folders) >= 16 and all(re.fullmatch("[0-9a-f]{1,2}", folder) for folder in folders)
    if digits and not all(folder.isdecimal() for folder in folders):
        return (_not_classes(folders, "named after the first digits of hashes"),)
    if len(folders) > 1 and all(re.fullmatch(r"\d+000", folder) or not folder.strip("0") for folder in folders):
        return (_not_classes(folders, "numbered by thousands"),)
    return ()


def _shared_folders(tops: Mapping[str, Sequence[str]]) -> list[str]:
    """Subfolders that all folders have, as in DOMAIN/CLASS and DOMAIN/images/CLASS; none where most differ."""
    inside = [set(_class_names(names)) for names in tops.values()]
    if not inside:
        return []
    if all(found == inside[0] and len(found) == 1 for found in inside):
        (only,) = inside[0]
        below = [[name.split("/", 1)[1] for name in names if name.startswith(f"{only}/")] for names in tops.values()]
        inside = [set(_class_names(names)) for names in below]
    if not inside:
        return []
    shared, every = set.intersection(*inside), set.union(*inside)
    return sorted(shared) if len(shared) > 1 and 2 * len(shared) >= len(every) else []


def _not_classes(folders: Sequence[str], how: str) -> FormatEvidence:
    are = "is" if len(folders) == 1 else "are"
    return FormatEvidence(
        "unlabelled",
        f"the folder{'' if len(folders) == 1 else 's'} {list_folders(folders)} {are} {how}: images without labels?",
        False,
        f"If each folder is a class, give layout=class_folders. {_PRETRAIN_ADVICE}",
    )


def _doubts_of_single(data: Path, folder: str, names: Sequence[str]) -> tuple[FormatEvidence, ...]:
    """Evidence against the only folder of images being a class."""
    below = _class_names(names)
    inside = {name: [rest for _, _, rest in rows] for name, rows in _by_top_folder(names)}
    if len(below) > 1 and (doubts := _doubts_of_classes(data / folder, inside)):
        advice = (
            f"If these are the classes, give {quoted(f'data={data / folder}')} layout=class_folders. {_PRETRAIN_ADVICE}"
        )
        return (replace(doubts[0], evidence=f"in {folder}/ {doubts[0].evidence}", advice=advice),)
    if len(below) > 1:
        advice = f"Give {quoted(f'data={data / folder}')} if {list_folders(below)} are the classes."
        return (FormatEvidence("class_folders", f"a single class folder ({folder}) with folders in it", False, advice),)
    if folder.lower() in UNSORTED_FOLDERS:
        return (FormatEvidence("unlabelled", f"all images are in {folder}/"),)
    advice = (
        "Expected at least two for classification. If they are images without labels, maelift pretrain takes them "
        "(task=pretrain in maelift data check)."
    )
    return (FormatEvidence("class_folders", f"a single class folder ({folder})", False, advice),)


def list_folders(names: Sequence[str], most: int = 5) -> str:
    """Names of folders in words, shortened where there are many."""
    shown = ", ".join(f"{name}/" for name in names[:most])
    return shown if len(names) <= most else f"{shown} … ({len(names)})"
