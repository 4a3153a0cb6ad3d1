"""The images of annotated data in ``maelift data check``: each opened once and compared with the others."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.audit import FLAT_IMAGE, TRANSPARENT, flat_text
from ..data.detection import SizedImages
from ..data.folder_names import SPLIT_NAMES
from ..data.groups import groups_of
from ..data.image_scan import TRANSPARENCY, pixel_hash
from ..data.images import ImageSet, opened
from ..data.issues import DataIssue
from ..data.near_duplicate_depth import Depth, Near, search_depth
from ..data.near_duplicate_rules import NearDuplicate
from ..data.pixel_format import PixelFormat, is_flat
from ..data.readers.folder import FolderImages
from ..data.task_data import AnnotatedSplit, AnnotatedTask
from ..data.thumbnails import Thumbnail, Thumbnails, thumbnail
from ..errors import DataError
from ..progress import progress_logger
from ..threads import CancellingThreadPool
from .check_report import SplitContent

IMAGE_RULES: Mapping[str, str] = {
    "class without examples": "it counts in no average of that split",
    "duplicate images in train": "splits that are drawn keep them together",
    "near-duplicates in train": "splits that are drawn from train may share them",
    "equal pictures with different labels": "trained on with both; splits that are drawn keep them together",
    TRANSPARENT: "its pixels are composited on background=, the same in every command",
    FLAT_IMAGE: "nothing can be learned from it",
    "turned by EXIF": "shown upright; its annotations must be of the upright image",
}
"""Kinds of issues of images and splits with which a data set is still sound, with how they are handled."""


@dataclass(frozen=True)
class CheckedSplit:
    """A split as one task reads it."""

    task: AnnotatedTask
    split: str
    annotated: AnnotatedSplit

    @property
    def images(self) -> ImageSet:
        """The images; those of another size than their annotations say can be opened too."""
        images = self.annotated.data.images
        return FolderImages(images.root, images.paths) if isinstance(images, SizedImages) else images

    @property
    def names(self) -> list[str]:
        """The path of each image, or what else names it."""
        images = self.annotated.data.images
        return [image_name(images, index) for index in range(len(images))]

    @property
    def expected_sizes(self) -> tuple[tuple[int, int], ...] | None:
        """(height, width) of each image that its annotations are for, where they say it."""
        images = self.annotated.data.images
        return images.sizes if isinstance(images, SizedImages) else None

    def content(self, scans: Mapping[str, ImageScan]) -> SplitContent:
        """What the split holds, with the sizes of its images."""
        data, counts = self.annotated.data, self.annotated.counts
        sizes = {scans[name].size for name in self.names} - {(0, 0)}
        ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        ends = (ordered[0], ordered[-1]) if ordered else None
        classes = tuple((name, counts.get(number, 0)) for number, name in enumerate(data.classes))
        return SplitContent(
            self.task.name, self.split, len(data), self.annotated.objects, ends, classes, self.task.unit
        )


@dataclass(frozen=True)
class ImageScan:
    """An opened image: its upright size, a hash of its pixels, its thumbnail; or the reason why it can't be opened."""

    size: tuple[int, int] = (0, 0)
    content: str = ""
    thumbnail: Thumbnail | None = None
    turned: bool = False
    clear: tuple[str, ...] = ()
    """what was made of its transparent pixels"""
    flat: bool = False
    reason: str = ""


def image_name(images: ImageSet, index: int) -> str:
    """The image's path, or what else names it."""
    name = images.name(index)
    return str(images.root / name) if isinstance(images, FolderImages) else name


def scan_splits(splits: Sequence[CheckedSplit], form: PixelFormat) -> dict[str, ImageScan]:
    """Open every image once, though two tasks may share it; what was found, by name."""
    images = {name: (part.images, index) for part in splits for index, name in enumerate(part.names)}
    scans: dict[str, ImageScan] = {}
    report = progress_logger("scanning the images")
    with CancellingThreadPool(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for name, scan in zip(
            images, pool.map(lambda place: _scan(place[0], place[1], form), images.values()), strict=True
        ):
            scans[name] = scan
            report(len(scans), len(images))
    return scans


def _scan(images: ImageSet, index: int, form: PixelFormat) -> ImageScan:
    try:
        image = opened(images, index, form)
        pixels = image.pixels()
    except DataError as error:
        name = images.name(index)
        return ImageScan(reason=str(error).removeprefix(f"{image_name(images, index)}: ").removeprefix(f"{name}: "))
    clear = tuple(note for note in image.decoded_notes if note.startswith(TRANSPARENCY))
    size = pixels.shape[0], pixels.shape[1]
    return ImageScan(size, pixel_hash(pixels), thumbnail(pixels), image.turned, clear, is_flat(pixels))


def image_issues(part: CheckedSplit, scans: Mapping[str, ImageScan]) -> Iterator[DataIssue]:
    """Broken and unusual images, and those of another size than their annotations say."""
    sizes = part.expected_sizes
    for index, name in enumerate(part.names):
        scan = scans[name]
        if scan.reason:
            yield DataIssue("broken image", Path(name), "", scan.reason)
            continue
        if scan.clear:
            yield DataIssue(TRANSPARENT, Path(name), "", "; ".join(scan.clear))
        if scan.flat:
            yield DataIssue(FLAT_IMAGE, Path(name), "", flat_text(scan.clear))
        if sizes is not None and scan.size != sizes[index]:
            found, expected = (f"{width}×{height} px" for height, width in (scan.size, sizes[index]))
            source = part.annotated.source.name if part.annotated.source else "the annotations"
            what = f"the image is {found} (upright), but {source} says {expected}"
            if scan.turned and scan.size == sizes[index][::-1]:
                what += (
                    ". Annotated as it is stored, before EXIF turns it? Annotate it upright, or save it without EXIF"
                )
            yield DataIssue("size of image", Path(name), "", what)
        elif scan.turned and part.task.spatial:
            yield DataIssue(
                "turned by EXIF", Path(name), "", "its pixels are stored in another orientation than it is shown in"
            )


def classes_without_examples(part: CheckedSplit) -> Iterator[DataIssue]:
    """Classes of which a split has no object or image."""
    counts = part.annotated.counts
    for number, name in enumerate(part.annotated.data.classes):
        if not counts.get(number):
            what = f"no {part.task.unit} of {name} ({part.task.name})"
            yield DataIssue("class without examples", Path(part.split), "", what)


def equal_with_other_labels(splits: Sequence[CheckedSplit], scans: Mapping[str, ImageScan]) -> Iterator[DataIssue]:
    """Images of equal pixels with different labels."""
    first: dict[str, tuple[str, str]] = {}
    for part in splits:
        labels = part.annotated.labels
        for name, label in zip(part.names, labels, strict=True) if labels else ():
            if scans[name].reason:
                continue
            other, other_label = first.setdefault(scans[name].content, (name, label))
            if other_label != label:
                what = f"the pixels of {other}, which has the label '{other_label}', not '{label}'"
                yield DataIssue("equal pictures with different labels", Path(name), "", what)


def groups_in_two_splits(splits: Sequence[CheckedSplit], group: str) -> Iterator[DataIssue]:
    """Groups with images in several splits of a task."""
    places: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for part in splits:
        data = part.annotated.data
        for index, own in enumerate(groups_of(data, group)):
            places[part.task.name, own].setdefault(part.split, data.images.name(index))
    for (_, own), found in places.items():
        if len(found) > 1:
            where = ", ".join(f"{split} ({name})" for split, name in found.items())
            yield DataIssue("group in two splits", Path(own), "", f"images of it are in {where}")


def distinct_splits(splits: Sequence[CheckedSplit]) -> list[dict[str, list[str]]]:
    """The names of the images of each split by task; tasks with the same images count once."""
    by_task: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for part in splits:
        by_task[part.task.name][part.split] = part.names
    distinct: dict[frozenset[tuple[str, str]], dict[str, list[str]]] = {}
    for names in by_task.values():
        distinct[frozenset((split, name) for split, found in names.items() for name in found)] = names
    return list(distinct.values())


def shared_images(
    splits: Mapping[str, Sequence[str]], scans: Mapping[str, ImageScan], near: Near
) -> tuple[list[DataIssue], list[Depth]]:
    """Images that two splits share, equal or nearly; and what was searched for in each pair of splits."""
    names = {split: [name for name in found if not scans[name].reason] for split, found in splits.items()}
    issues = list(_equal_images(names, scans))
    if near == "off":
        return issues, ["none"]
    from ..data.near_duplicates import compare, compare_uncropped, compare_within

    thumbnails = {
        split: Thumbnails.stack([small for name in found if (small := scans[name].thumbnail) is not None])
        for split, found in names.items()
    }
    depths = []
    for earlier, later in itertools.combinations(names, 2):
        depths.append(search_depth(near, len(thumbnails[later]), len(thumbnails[earlier])))
        if depths[-1] == "none":
            continue
        search = compare if depths[-1] == "crops" else compare_uncropped
        progress = progress_logger(f"comparing {later} with {earlier}")
        compared = search(thumbnails[later], thumbnails[earlier], progress)
        pairs = [(names[earlier][pair.original], names[later][pair.index], pair) for pair in compared.near_duplicates()]
        issues += _near_duplicates("near-duplicate in two splits", pairs, scans)
    if len(names) < len(SPLIT_NAMES) and "train" in names:  # the missing split will be drawn from train
        train = names["train"]
        depths.append(search_depth(near, len(train), len(train)))
        if depths[-1] == "none":
            return issues, depths
        progress = progress_logger("comparing within train")
        compared = compare_within(thumbnails["train"], progress, crops=depths[-1] == "crops")
        pairs = [(train[pair.original], train[pair.index], pair) for pair in compared.pairs_within()]
        issues += _near_duplicates("near-duplicates in train", pairs, scans)
    return issues, depths


def _near_duplicates(
    kind: str, pairs: Sequence[tuple[str, str, NearDuplicate]], scans: Mapping[str, ImageScan]
) -> Iterator[DataIssue]:
    """The issues of near-duplicates (image, other, pair); those of equal pixels are reported as that."""
    for name, other, pair in pairs:
        if scans[name].content != scans[other].content:
            yield DataIssue(kind, Path(name), "", f"nearly {other} (similarity {pair.similarity:.4f})")


def _equal_images(names: Mapping[str, Sequence[str]], scans: Mapping[str, ImageScan]) -> Iterator[DataIssue]:
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, found in names.items():
        for name in found:
            places[scans[name].content].append((split, name))
    for copies in places.values():
        first_split, first = copies[0]
        for split, name in copies[1:]:
            if split != first_split:
                yield DataIssue(
                    "same image in two splits", Path(first), "", f"the pixels of {name} ({first_split}, {split})"
                )
            elif split == "train":
                yield DataIssue("duplicate images in train", Path(first), "", f"the pixels of {name}")
