"""What a data set is, by what lies in it: class folders, a table of labels, COCO, YOLO, VOC, masks, shards, or images alone.

A format is found with its evidence in words. Where the evidence also fits something else, it is not ``sure``, and a command
asks with the key that decides instead of choosing in silence.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from ..errors import DataError
from ..files import open_regular, read_regular
from ..terminal import quoted
from .decode import ARRAY_SUFFIXES, SUFFIXES
from .file_index import list_files, list_images
from .mask_names import mask_names
from .readers.tar_shards import LABEL_SUFFIXES, find_shards

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
"""What folders, files and table cells that hold a split are called, in lower case."""

DatasetFormat = Literal["class_folders", "table", "shards", "idx", "coco", "yolo", "voc", "masks", "unlabelled"]
FormatTask = Literal["classify", "detect", "segment", "pretrain"]

TASKS: Mapping[DatasetFormat, FormatTask] = {
    "class_folders": "classify",
    "table": "classify",
    "shards": "classify",
    "idx": "classify",
    "coco": "detect",
    "yolo": "detect",
    "voc": "detect",
    "masks": "segment",
    "unlabelled": "pretrain",
}
COMMANDS: Mapping[FormatTask, str] = {
    "classify": "maelift transfer classify",
    "detect": "maelift transfer detect",
    "segment": "maelift transfer segment",
    "pretrain": "maelift pretrain",
}


def _words(text: str) -> list[str]:
    return text.split()


IMAGE_FOLDERS = frozenset(
    _words("images image imgs img jpegimages img_dir photos pictures rgb input inputs leftimg8bit frames raw ")
)
"""Names, in lower case, of folders of images that say nothing about a class."""
ANNOTATION_FOLDERS = frozenset(
    _words(
        "masks mask labels label annotations annotation anns ann ann_dir gt gts gtfine groundtruth "
        "ground_truth segmentation segmentations segmentationclass segmentation_masks seg segs targets target "
        "semantic "
    )
)
"""Names, in lower case, of folders of what belongs to the images beside them."""
UNSORTED_FOLDERS = frozenset(
    _words(
        "images image imgs img jpegimages photos pictures dcim screenshots downloads unlabelled unlabeled "
        "unsorted thumbnails thumbs "
    )
)
"""Names, in lower case, of folders that are no class even beside folders that are."""
MASK_ENDINGS = re.compile(
    r"(?i)[-_. ]?(mask|masks|label|labels|labelids|labeltrainids|gt|seg|segmentation|annotation)$"
)
YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml")
VOC_FOLDERS = ("VOC20*", "VOCdevkit", "VOCdevkit/VOC20*")
"""Where the data sets of the challenge lie when they are unpacked."""
SAME_NAMES = 0.5
"""Share of annotation files with the name of an image from which on they belong together."""
PRETRAINS = (
    "If they are images without labels, maelift pretrain takes them (task=pretrain in maelift data check; unlabelled= in "
    "maelift init)."
)
PEEK = 20
"""Files of a kind that are opened to see what they are."""
GENERIC = ("test", "testing", "images", "image", "img", "imgs", "unknown", "unlabelled", "unlabeled", "all", "data")

_NUMBERED = (
    "batch|part|chunk|shard|set|disk|disc|dir|folder|group|subset|camera|cam|video|vid|clip|seq|"
    "sequence|session|flight|mission|run|patient|subject|case|scan|slide|roll|tile|page|frame|frames|"
    "img|image|images|photo|photos|dump|import|export|upload|download|backup|volume|vol|archive|"
    "album|day|week|fold"
)
_MONTHS = "jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?|dec(ember)?"
_NO_CLASS: Mapping[str, re.Pattern[str]] = {
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
"""What folders are named after that are hardly classes."""


@dataclass(frozen=True)
class FormatEvidence:
    """A format that a data set has, and by what; ``sure``: it can hardly be meant for another."""

    format: DatasetFormat
    evidence: str
    """a sentence without its full stop"""
    sure: bool = True
    advice: str = ""
    """what to do where it isn't sure, in sentences"""

    @property
    def task(self) -> FormatTask:
        """What the format is read for."""
        return TASKS[self.format]


@dataclass(frozen=True)
class ClassLayout:
    """How class folders lie in a folder: for each split the folder that they are in, "" for the folder itself.

    ``left_out`` are folders of images that are neither a class nor a split, with the reason; ``doubts`` what speaks against
    these folders being classes.
    """

    splits: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[FormatEvidence, ...] = ()


def split_of(name: str) -> str | None:
    """The split that a name stands for, in any case: "Train", "valid", "dev"."""
    lower = name.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def split_folders(data: Path) -> dict[str, Path]:
    """The folders below ``data`` that are named as splits are; raises DataError for two of one split."""
    found: dict[str, Path] = {}
    for path in _folders(data).values():
        split = split_of(path.name)
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"data={data}: {found[split].name}/ and {path.name}/ are both the {split} split. Expected one folder a "
                "split: join them, or move one elsewhere."
            )
        found[split] = path
    return found


def identify(data: str | Path) -> tuple[FormatEvidence, ...]:
    """The formats that a data set has: one, or several where it is annotated in several ways (boxes and masks).

    Annotations that name their images (COCO, YOLO, VOC, masks, tables) come before what the folders' names may mean. Raises
    DataError where nothing is there, and for a folder that can't be read.
    """
    path = Path(data)
    if not path.exists() and "{" not in str(data):
        raise DataError(f"data={data}: no such folder or file.")
    if not path.is_dir():
        return (_of_file(path),)
    annotated = tuple(found for found in (_coco(path), _yolo(path), _voc(path), _masks(path)) if found is not None)
    if annotated:
        return annotated
    table = _table(path)
    if table is not None and table.sure:
        return (table,)
    for find in (_shards, _idx, _parquet):
        if (found := find(path)) is not None:
            return (found,)
    images = _of_images(path)
    return (images if table is None or (images.sure and images.format == "class_folders") else table,)


def question(data: str | Path, found: FormatEvidence) -> DataError:
    """What a command asks where it isn't sure what the data is."""
    end = "" if found.evidence.endswith("?") else "."
    return DataError(f"data={data}: {found.evidence}{end} {found.advice}")


def hint(data: str | Path, task: FormatTask) -> str:
    """A sentence about what the data seems to be, where it is for another task than ``task``; else nothing."""
    try:
        found = identify(data)
    except DataError:
        return ""
    if not found or any(one.task == task for one in found):
        return ""
    evidence = found[0].evidence if found[0].evidence.endswith("?") else f"{found[0].evidence}."
    return f" It looks as if it were for {COMMANDS[found[0].task]}: {evidence}"


def _of_file(path: Path) -> FormatEvidence:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return FormatEvidence("coco", f"{path.name} is JSON")
    if suffix in (".yaml", ".yml"):
        return FormatEvidence("yolo", f"{path.name} is YOLO's list of folders and names")
    if suffix in (".csv", ".tsv"):
        return FormatEvidence("table", f"{path.name} is a table")
    if suffix == ".tar":
        shards = find_shards(str(path))
        return _kind_of_shards(shards)
    return FormatEvidence("unlabelled", f"{path.name} lists or holds images")


def _coco(data: Path) -> FormatEvidence | None:
    """A JSON that may be COCO's where the reader looks for it."""
    files = [*data.glob("*.json"), *data.glob("annotations/*.json")]
    for folder in _folders(data).values():
        if split_of(folder.name) is not None:
            files += folder.glob("*.json")
    for path in sorted(files):
        if b'"annotations"' in _content(path).replace(b"\0", b""):  # UTF-16 too
            return FormatEvidence("coco", f"{path.relative_to(data)} has annotations as COCO JSON has")
    return None


def _yolo(data: Path) -> FormatEvidence | None:
    """Text files of five numbers or more a line, named as the images are, in labels/ or beside them; or their data.yaml."""
    for name in YOLO_FILES:
        head = _head(data / name) if (data / name).is_file() else b""
        if re.search(rb"(?m)^names\s*:", head) and re.search(rb"(?m)^(train|path)\s*:", head):
            return FormatEvidence("yolo", f"{name} names folders and classes as YOLO's does")
    for images, labels in _annotated_folders(data):
        texts = _with_names_of(images, labels, ".txt")
        rows = [_are_boxes(path) for path in texts]
        if rows and any(rows) and None not in rows:
            return FormatEvidence(
                "yolo", f"{texts[0].name} and others{_place(data, labels)} hold boxes as YOLO has them"
            )
    return None


def _voc(data: Path) -> FormatEvidence | None:
    """XML files with objects, named as the images are, in Annotations/ or beside them; in VOC2012/ and the like too."""
    for root in (data, *(path for pattern in VOC_FOLDERS for path in sorted(data.glob(pattern)) if path.is_dir())):
        for images, labels in _annotated_folders(root):
            texts = _with_names_of(images, labels, ".xml")
            if any(b"<annotation" in _head(path) for path in texts):
                return FormatEvidence(
                    "voc", f"{texts[0].name} and others{_place(data, labels)} hold Pascal VOC's annotations"
                )
    return None


def _place(data: Path, folder: Path) -> str:
    where = folder.relative_to(data).as_posix()
    return "" if where == "." else f" in {where}/"


def _annotated_folders(data: Path) -> Iterable[tuple[Path, Path]]:
    """Folders of images, each with the one that their text annotations may lie in."""
    folders = _folders(data)
    bases = [data, *(path for path in folders.values() if split_of(path.name) is not None)]
    bases += [folders[name] for name in ("obj_train_data",) if name in folders]
    for base in bases:
        inside = folders if base == data else _folders(base)
        yield base, base
        for image_name in sorted(IMAGE_FOLDERS & inside.keys()):
            for label_name in sorted(ANNOTATION_FOLDERS & inside.keys()):
                images, labels = inside[image_name], inside[label_name]
                yield images, labels
                below = _folders(labels)
                yield from ((split, below[name]) for name, split in _folders(images).items() if name in below)


def _with_names_of(images: Path, labels: Path, suffix: str) -> list[Path]:
    """The first files in ``labels`` with this suffix that are named as a file in ``images``."""
    texts = _files(labels, (suffix,))
    if not texts:
        return []
    stems = {path.stem for path in _files(images, SUFFIXES)}
    return [path for path in texts if path.stem in stems][:PEEK]


def _masks(data: Path) -> FormatEvidence | None:
    """A folder of images and one of images of the same names, whose name tells that it is of masks."""
    folders = _folders(data)
    if "leftimg8bit" in folders and "gtfine" in folders:
        return FormatEvidence("masks", "leftImg8bit/ and gtFine/ are Cityscapes' folders")
    for base in (data, *(path for path in folders.values() if split_of(path.name) is not None)):
        inside = _folders(base)
        named = [
            (inside[one], inside[other], True)
            for one in sorted(IMAGE_FOLDERS & inside.keys())
            for other in sorted(ANNOTATION_FOLDERS & inside.keys())
        ]
        named += [
            (path, inside[other], False)
            for name, path in inside.items()
            for other in inside
            if other != name and other.startswith(name) and MASK_ENDINGS.fullmatch(other[len(name) :])
        ]
        for images, masks, read in named:
            if (found := _pair(data, images, masks, read)) is not None:
                return found
    return None


def _pair(data: Path, images: Path, masks: Path, read: bool) -> FormatEvidence | None:
    """What two folders are of which the second is named as one of masks; None where it holds no images."""
    stems = {_stem(name).lower() for name in list_images(images)}
    others = [_stem(name).lower() for name in list_images(masks)]
    if not stems or not others:
        return None
    share = sum(name in stems or MASK_ENDINGS.sub("", name) in stems for name in others) / len(others)
    share = max(share, len(mask_names(sorted(stems), others)) / len(others))
    one, other = images.relative_to(data).as_posix(), masks.relative_to(data).as_posix()
    if share >= SAME_NAMES and read:
        return FormatEvidence("masks", f"{one}/ and {other}/ hold images of the same names")
    if share >= SAME_NAMES:
        advice = "If these are masks, rename the folders to images/ and masks/. If each folder is a class, give "
        return FormatEvidence(
            "masks",
            f"{one}/ and {other}/ hold images of the same names: masks?",
            False,
            f"{advice}layout=class_folders.",
        )
    return FormatEvidence(
        "masks",
        f"{one}/ and {other}/ are named as images and masks are, but {share:.0%} of the {len(others)} files in {other}/ are "
        "named after an image",
        False,
        "If these are masks, give each the name of its image and use maelift transfer segment (task=segment in maelift data "
        "check). If each folder is a class, give layout=class_folders.",
    )


def _table(data: Path) -> FormatEvidence | None:
    """labels.csv, which the readers look for; other tables with a column of labels must be named."""
    if (data / "labels.csv").is_file():
        return FormatEvidence("table", "labels.csv is there")
    tables = _files(data, (".csv", ".tsv"))
    # what Kaggle wants handed in looks like a table of labels too
    for path in sorted(tables, key=lambda path: bool(re.search("sample|submission|test", path.stem.lower()))):
        columns = set(re.findall(r"[a-z0-9_]+", _head(path).split(b"\n")[0].decode("utf-8", "replace").lower()))
        if columns & {"label", "labels", "class", "target", "category"}:
            advice = f"If it holds the labels, give {quoted(f'data={path}')}."
            if sum(_has_images(folder) for folder in _folders(data).values()) > 1:
                advice += " If each folder is a class, give layout=class_folders."
            return FormatEvidence("table", f"{path.name} lies there, a table with a column of labels", False, advice)
    return None


def _shards(data: Path) -> FormatEvidence | None:
    shards = find_shards(str(data))
    for folder in _folders(data).values():
        if not shards and split_of(folder.name) is not None:
            shards = find_shards(str(folder))
    return _kind_of_shards(shards) if shards else None


def _kind_of_shards(shards: Sequence[Path]) -> FormatEvidence:
    """Tar shards, by the first members of the first."""
    labels = False
    try:
        with tarfile.open(shards[0], "r:") as archive:
            for _ in range(PEEK):
                member = archive.next()
                if member is None:
                    break
                labels = labels or member.name.rpartition(".")[2].lower() in LABEL_SUFFIXES
    except (tarfile.TarError, OSError, EOFError, IndexError):
        labels = True  # the reader says what is wrong
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


def _of_images(data: Path) -> FormatEvidence:
    """Class folders, or images without labels."""
    names = list(list_images(data))
    loose = sum("/" not in name for name in names)
    if names and 2 * loose >= len(names):
        return _flat(data, names)
    layout = class_layout(data, names)
    if layout.doubts:
        return layout.doubts[0]
    folders = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    if loose:
        return FormatEvidence(
            "class_folders",
            f"{loose} of {len(names)} images lie beside the folders {_listed(folders)}",
            False,
            "Move them into a class folder for classification, or give task=pretrain to check all as images without labels.",
        )
    return FormatEvidence("class_folders", f"images lie in the folders {_listed(folders)}")


def _flat(data: Path, names: Sequence[str]) -> FormatEvidence:
    """Images that lie in the folder itself."""
    stems = {_stem(name).lower() for name in names}
    masks = [stem for stem in stems if (base := MASK_ENDINGS.sub("", stem)) != stem and base in stems]
    if len(masks) >= 0.4 * len(stems):
        return FormatEvidence(
            "unlabelled",
            f"{len(masks)} of {len(stems)} images are named as another one with an ending, such as {min(masks)}: masks?",
            False,
            "If these are masks, put them into masks/ and the others into images/. If all are images, give task=pretrain.",
        )
    return FormatEvidence("unlabelled", "images lie in no folder of a class")


def class_layout(data: Path, names: Sequence[str]) -> ClassLayout:
    """Which folders are splits, which are classes, and which neither; ``names`` are the images' paths below ``data``."""
    tops: dict[str, list[str]] = defaultdict(list)
    for name in names:
        top, slash, rest = name.partition("/")
        if slash:
            tops[top].append(rest)
    split_folders(data)  # refuses two of one split
    splits = {split: top for top in tops if (split := split_of(top)) is not None}
    others = sorted(top for top in tops if split_of(top) is None)
    if not splits:
        return ClassLayout({"train": ""}, doubts=_doubts(data, tops))
    flat = {split: top for split, top in splits.items() if not _classes(tops[top])}
    if not others:
        return _only_splits(data, tops, splits, flat)
    if "train" in splits and "train" not in flat:
        if len(splits) == 1 and len(others) > 1:
            top = splits["train"]
            return _undecided(
                data, f"{top}/ lies beside {_listed(others)}, and all hold images: a split or a class?", top
            )
        left_out = {top: f"{len(tops[top]):,} images, no split by its name" for top in others}
        found = _only_splits(data, tops, splits, flat)
        return ClassLayout(found.splits, {**left_out, **found.left_out}, found.doubts)
    if set(flat) == set(splits) == {"train"}:
        return ClassLayout({"train": ""})  # a class of that name, such as a vehicle's
    if "train" in splits:
        there = _listed(list(splits.values()))
        return _undecided(
            data, f"{there} lie beside {_listed(others)}, and hold no class folders: splits or classes?", ""
        )
    classes = set(others)
    parts = {"train": ""}
    left_out = {}
    for split, top in splits.items():
        if split not in flat and set(_classes(tops[top])) <= classes:
            parts[split] = top
        elif split in flat or _is_generic(_classes(tops[top])):
            left_out[top] = f"{len(tops[top]):,} images without labels: neither a class nor a {split} split"
        else:
            where = f"{top}/ lies beside {_listed(others)}, with other folders in it: a split or a class?"
            return _undecided(data, where, top)
    return ClassLayout(parts, left_out, _doubts(data, {top: tops[top] for top in others}))


def _only_splits(
    data: Path, tops: Mapping[str, Sequence[str]], splits: Mapping[str, str], flat: Mapping[str, str]
) -> ClassLayout:
    """The layout of folders that are named as splits."""
    if set(flat) == set(splits):
        evidence = (
            f"{_listed(list(splits.values()))} hold{'s' if len(splits) == 1 else ''} images in no folder of a class"
        )
        return ClassLayout({}, doubts=(FormatEvidence("unlabelled", evidence),))
    if "train" in flat:
        left = f"{flat['train']}/ holds images in no folder of a class"
        advice = f"Put them into {flat['train']}/CLASS/, or into a table path,label (data=labels.csv)."
        return ClassLayout({}, doubts=(FormatEvidence("unlabelled", left, False, advice),))
    known = set(_classes(tops[splits["train"]])) if "train" in splits else set()
    parts, left_out = {}, {}
    for split, top in splits.items():
        classes = _classes(tops[top])
        if split in flat or (known and not known & set(classes) and _is_generic(classes)):
            left_out[top] = f"{len(tops[top]):,} images without labels: no {split} split"
        else:
            parts[split] = top
    inside = {
        name: [rest for _, _, rest in rows]
        for name, rows in _below(tops[splits.get("train", next(iter(parts.values())))])
    }
    return ClassLayout(parts, left_out, _doubts(data / splits.get("train", ""), inside))


def _below(names: Sequence[str]) -> Iterable[tuple[str, list[tuple[str, str, str]]]]:
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for name in names:
        top, slash, rest = name.partition("/")
        if slash:
            found[top].append((top, slash, rest))
    return found.items()


def _classes(names: Sequence[str]) -> list[str]:
    """The folders that images lie in, by their paths within a split; none where most lie in no folder."""
    folders = [name.split("/", 1)[0] for name in names if "/" in name]
    return sorted(set(folders)) if 2 * len(folders) > len(names) else []


def _is_generic(classes: Sequence[str]) -> bool:
    return len(classes) == 1 and classes[0].lower() in GENERIC


def _undecided(data: Path, evidence: str, top: str) -> ClassLayout:
    rest = f"If {top}/ is a split, move the others elsewhere." if top else "Move the splits or the others elsewhere."
    found = FormatEvidence(
        "class_folders", evidence, False, f"If each folder is a class, give layout=class_folders. {rest}"
    )
    return ClassLayout({"train": ""}, doubts=(found,))


def _doubts(data: Path, tops: Mapping[str, Sequence[str]]) -> tuple[FormatEvidence, ...]:
    """What speaks against folders of images, each with the images' paths below it, being classes."""
    folders = sorted(tops)
    if len(folders) == 1:
        return _single(data, folders[0], tops[folders[0]])
    within = [{split_of(folder) for folder in _classes(names)} for names in tops.values()]
    if within and all(found and None not in found for found in within):
        inner = sorted({folder for names in tops.values() for folder in _classes(names)})
        return (
            FormatEvidence(
                "class_folders",
                f"the folders {_listed(folders)} hold splits ({_listed(inner)})",
                False,
                f"Expected SPLIT/CLASS, not CLASS/SPLIT. Move {folders[0]}/{inner[0]} to {inner[0]}/{folders[0]} and so on, "
                "or give layout=class_folders to take all images of a class together.",
            ),
        )
    for what, pattern in _NO_CLASS.items():
        named = [folder for folder in folders if pattern.fullmatch(folder)]
        if 2 * len(named) > len(folders):
            return (_no_classes(named, f"named after {what}"),)
    if named := [folder for folder in folders if folder.lower() in UNSORTED_FOLDERS]:
        return (_no_classes(named, "named as one of images of any kind"),)
    if shared := _shared_folders(tops):
        return (
            FormatEvidence(
                "class_folders",
                f"the folders {_listed(folders)} hold the same folders, {_listed(shared)}: which are the classes?",
                False,
                f"If {_listed(folders)} are, give layout=class_folders. If {_listed(shared)} are, move their images together, or "
                "name them in a table path,label (data=labels.csv).",
            ),
        )
    digits = len(folders) >= 16 and all(re.fullmatch("[0-9a-f]{1,2}", folder) for folder in folders)
    if digits and not all(folder.isdecimal() for folder in folders):
        return (_no_classes(folders, "named after the first digits of hashes"),)
    if len(folders) > 1 and all(re.fullmatch(r"\d+000", folder) or not folder.strip("0") for folder in folders):
        return (_no_classes(folders, "numbered by thousands"),)
    return ()


def _shared_folders(tops: Mapping[str, Sequence[str]]) -> list[str]:
    """Folders that all folders have in them, as DOMAIN/CLASS and DOMAIN/images/CLASS have; none where most differ."""
    inside = [set(_classes(names)) for names in tops.values()]
    if not inside:
        return []
    if all(found == inside[0] and len(found) == 1 for found in inside):
        (only,) = inside[0]
        below = [[name.split("/", 1)[1] for name in names if name.startswith(f"{only}/")] for names in tops.values()]
        inside = [set(_classes(names)) for names in below]
    if not inside:
        return []
    shared, every = set.intersection(*inside), set.union(*inside)
    return sorted(shared) if len(shared) > 1 and 2 * len(shared) >= len(every) else []


def _no_classes(folders: Sequence[str], how: str) -> FormatEvidence:
    are = "is" if len(folders) == 1 else "are"
    return FormatEvidence(
        "unlabelled",
        f"the folder{'' if len(folders) == 1 else 's'} {_listed(folders)} {are} {how}: images without labels?",
        False,
        f"If each folder is a class, give layout=class_folders. {PRETRAINS}",
    )


def _single(data: Path, folder: str, names: Sequence[str]) -> tuple[FormatEvidence, ...]:
    """A folder of images that is alone."""
    below = _classes(names)
    inside = {name: [rest for _, _, rest in rows] for name, rows in _below(names)}
    if len(below) > 1 and (doubts := _doubts(data / folder, inside)):
        advice = f"If these are the classes, give {quoted(f'data={data / folder}')} layout=class_folders. {PRETRAINS}"
        return (replace(doubts[0], evidence=f"in {folder}/ {doubts[0].evidence}", advice=advice),)
    if len(below) > 1:
        advice = f"Give {quoted(f'data={data / folder}')} if {_listed(below)} are the classes."
        return (FormatEvidence("class_folders", f"a single class folder ({folder}) with folders in it", False, advice),)
    if folder.lower() in UNSORTED_FOLDERS:
        return (FormatEvidence("unlabelled", f"images lie in {folder}/ alone"),)
    advice = (
        "Expected at least two for classification. If they are images without labels, maelift pretrain takes them "
        "(task=pretrain in maelift data check)."
    )
    return (FormatEvidence("class_folders", f"a single class folder ({folder})", False, advice),)


def _folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that aren't hidden, by their names in lower case."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({(error.strerror or '').lower()}).") from error
    # of two that differ in case only, both must stay: the second under its own name
    found: dict[str, Path] = {}
    for name in names:
        found[name if name.lower() in found else name.lower()] = folder / name
    return found


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The regular files in a folder with these suffixes, in any case, that aren't hidden; sorted."""
    ends = tuple(suffixes)
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name.lower().endswith(ends) and entry.is_file()]
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({(error.strerror or '').lower()}).") from error
    return [folder / name for name in sorted(found) if not name.startswith(".")]


def _has_images(folder: Path) -> bool:
    return any(PurePosixPath(name).suffix.lower() in SUFFIXES | ARRAY_SUFFIXES for name in list_files(folder))


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _content(path: Path) -> bytes:
    """The bytes of a regular file; none of one that can't be read."""
    try:
        return read_regular(path)
    except OSError:
        return b""


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; none of one that can't be read."""
    try:
        with open_regular(path) as file:
            return file.read(65536)
    except OSError:
        return b""


def _are_boxes(path: Path) -> bool | None:
    """Whether each line of a text is a class number and four numbers or more; False for an empty one, None for another."""
    lines = [line.split() for line in _head(path).decode("utf-8", "replace").splitlines()[:PEEK] if line.strip()]
    for words in lines:
        if len(words) < 5 or not words[0].isdecimal():
            return None
        try:
            [float(word) for word in words[1:]]
        except ValueError:
            return None
    return bool(lines)


def _listed(names: Sequence[str], most: int = 5) -> str:
    """Names of folders, the first of them where there are many."""
    shown = ", ".join(f"{name}/" for name in names[:most])
    return shown if len(names) <= most else f"{shown} … ({len(names)})"
