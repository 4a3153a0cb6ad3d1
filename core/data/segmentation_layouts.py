"""Layouts of images and masks in folders (plain, ADE20K, Cityscapes), and which mask is whose."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError
from .file_index import folders_named, list_files
from .folder_names import ANNOTATION_FOLDERS, IMAGE_FOLDERS, SPLIT_NAMES
from .issues import DataIssue
from .mask_files import LOSSY_SUFFIXES, MASK_SUFFIXES
from .mask_names import mask_names
from .readers.folder import FolderImages, find_images
from .slices import file_of, is_part
from .unread import report
from .voc import image_sets

MaskLayout = Literal["folders", "ade20k", "cityscapes"]

MAX_SUGGESTIONS = 20
"""Images without mask for which the message suggests a similarly named mask."""

IMAGES_FIRST = ("images", "jpegimages", "image", "imgs", "img")

MASKS_FIRST = ("masks", "mask", "segmentationclass", "labels", "annotations")
"""Names of folders, in any case, that are preferred to the others of ``folder_names``."""

SPLIT_ENDINGS = ("_labels", "_masks", "_mask", "_label", "labels", "masks", "annot", "_annot", "_gt")
"""Endings of the folder of a split's masks: train/ and train_labels/."""


@dataclass(frozen=True)
class MaskPairs:
    """The images of a split with their mask files."""

    folder: Path
    images: FolderImages
    masks: tuple[Path, ...]
    issues: tuple[DataIssue, ...] = ()


def find_mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and of masks of each split; empty where there are none. A single pair is the training split."""
    parts: dict[str, tuple[Path, Path]] = {}
    for split, names in SPLIT_NAMES.items():
        for images, masks in _candidate_folders(root, names):
            if images.is_dir() and (masks.is_dir() or split == "train"):
                parts.setdefault(split, (images, masks))
    if not parts and (pairs := [(images, masks) for images in _image_children(root) for masks in _mask_children(root)]):
        parts["train"] = pairs[0]
    return parts


def _candidate_folders(root: Path, names: Sequence[str]) -> list[tuple[Path, Path]]:
    """Candidates for the folders of images and masks of a split of these names, most likely first."""
    found = []
    for images in _image_children(root):
        for folder in _children(images, names):
            matching = [mask for masks in _mask_children(root) for mask in _children(masks, [folder.name.lower()])]
            found += [(folder, mask) for mask in matching]
            if not matching and (root / "masks").is_dir():
                found.append((folder, root / "masks" / folder.name))
    for own in _children(root, names):
        images_of = _image_children(own)
        found += [(images, masks) for images in images_of for masks in _mask_children(own)]
        beside = [root / f"{own.name}{ending}" for ending in SPLIT_ENDINGS]
        found += [(own, masks) for masks in beside if not images_of and _holds_masks(masks)]
        found += [(images, own / "masks") for images in images_of if not _mask_children(own)]
    return found


def _children(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders in a folder that have one of the names, in any case; in the order of ``names``."""
    return sorted(folders_named(folder, names), key=lambda path: names.index(path.name.lower()))


def _image_children(folder: Path) -> list[Path]:
    """The folders of images in a folder."""
    return _children(folder, list(dict.fromkeys([*IMAGES_FIRST, *sorted(IMAGE_FOLDERS)])))


def _mask_children(folder: Path) -> list[Path]:
    """The folders of masks in a folder; those with other names than "masks" must hold files that may be masks."""
    names = list(dict.fromkeys([*MASKS_FIRST, *sorted(ANNOTATION_FOLDERS)]))
    return [child for child in _children(folder, names) if child.name.lower() == "masks" or _holds_masks(child)]


def _holds_masks(folder: Path) -> bool:
    """Whether a folder has a file that may be a mask: labels/ may be YOLO's, annotations/ COCO's or VOC's."""
    for _, folders, names in os.walk(folder):
        folders.sort()
        if any(os.path.splitext(name)[1].lower() in MASK_SUFFIXES | LOSSY_SUFFIXES for name in names):
            return True
    return False


def folder_pairs(root: Path) -> dict[str, MaskPairs]:
    """The images and masks of each split in folders such as images/ and masks/; raises DataError for a missing folder."""
    parts = find_mask_folders(root) or {"train": (root / "images", root / "masks")}
    for folder in (path for pair in parts.values() for path in pair):
        if not folder.is_dir():
            raise DataError(
                f"data={root}: no folder {folder.relative_to(root)}. Expected images/train and masks/train (and val, test), "
                "train/images and train/masks, or images and masks."
            )
    lists = image_sets(root, "segmentation") if parts.keys() == {"train"} else {}
    if lists:  # Pascal VOC's: few of its images have masks
        pairs = {split: _pair_masks(*parts["train"], names) for split, names in lists.items()}
        counts = ", ".join(f"{len(names):,} {split}" for split, names in lists.items())
        report(f"{root}: the images that ImageSets/Segmentation lists are read ({counts}), and no others")
    else:
        pairs = {split: _pair_masks(*folders) for split, folders in parts.items()}
    chosen = {masks for _, masks in parts.values()}
    others = [
        child for child in _mask_children(root) if not any(child == mask or child in mask.parents for mask in chosen)
    ]
    first = next(iter(pairs))
    more = [
        DataIssue("another folder of masks", folder, "", f"masks are read from {parts[first][1]}") for folder in others
    ]
    return {**pairs, first: replace(pairs[first], issues=(*pairs[first].issues, *more))}


def ade20k_pairs(root: Path) -> dict[str, MaskPairs]:
    """The images and masks of ADEChallengeData2016; raises DataError for a missing folder."""
    parts = {"train": "training", "val": "validation"}
    for folder in (root / "images" / "training", root / "annotations" / "training"):
        if not folder.is_dir():
            raise DataError(
                f"data={root}: no folder {folder.relative_to(root)}. layout=ade20k is ADEChallengeData2016's."
            )
    return {
        split: _pair_masks(root / "images" / name, root / "annotations" / name)
        for split, name in parts.items()
        if (root / "images" / name).is_dir()
    }


def cityscapes_pairs(root: Path) -> dict[str, MaskPairs]:
    """The images and fine masks of Cityscapes; raises DataError for a missing folder."""
    parts: dict[str, MaskPairs] = {}
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
        kept, masks, issues = [], [], []
        for name in names:
            stem = name.removesuffix("_leftImg8bit.png")
            candidates = [labels / f"{stem}_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
            there = [path for path in candidates if path.is_file()]
            if there:
                kept.append(name)
                masks.append(there[0])
            else:
                issues.append(
                    DataIssue("image without mask", images / name, "", f"no {candidates[0]}, nor its labelIds")
                )
        parts[split] = MaskPairs(images, FolderImages(images, tuple(kept)), tuple(masks), tuple(issues))
    return parts


def _pair_masks(images: Path, masks: Path, listed: Sequence[str] | None = None) -> MaskPairs:
    """Images and masks of equal relative paths, except for the suffix and a word that all names have.

    ``listed``: paths without suffix of the images that are used, None for all.
    """
    found = find_images(images)
    if not isinstance(found, FolderImages):
        raise DataError(f"data={images}: expected image files.")
    if volumes := [name for name in found.paths if is_part(name)]:
        raise DataError(
            f"data={images}: {file_of(volumes[0])} is a volume. Save slices and their masks as files, such as PNG."
        )
    wanted = None if listed is None else frozenset(listed)
    if wanted is not None:
        chosen = [number for number, name in enumerate(found.paths) if _stem(name) in wanted]
        found = found.subset(np.array(chosen, dtype=np.int64))
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in list_files(masks) if masks.is_dir() else []:
        if Path(name).suffix.lower() in MASK_SUFFIXES | LOSSY_SUFFIXES and (wanted is None or _stem(name) in wanted):
            by_stem[_stem(name)].append(name)
    missing = sorted((wanted or frozenset()) - set(map(_stem, found.paths)))
    issues = [
        DataIssue("listed image missing", images, "", f"no image {name}, which ImageSets/ lists") for name in missing
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
            issues.append(
                DataIssue("two images of one mask", images / name, "", f"{stems[stem]} images are named {stem}")
            )
        elif len(exact) > 1:
            issues.append(DataIssue("two masks of one image", images / name, "", f"{' and '.join(exact)} in {masks}"))
        elif exact:
            kept.append(name)
            files.append(masks / exact[0])
        elif candidates:
            what = "JPEG and WebP change the values of pixels. Save masks as PNG, from the source"
            issues.append(DataIssue("broken mask", masks / candidates[0], "", what))
        else:
            similar = _similar_stem(stem, unused) if len(issues) < MAX_SUGGESTIONS else None
            there = f" (there is {by_stem[similar][0]})" if similar is not None else ""
            issues.append(DataIssue("image without mask", images / name, "", f"no {masks / stem}.png{there}"))
    renamed = [(image, mask) for image, mask in of_image.items() if image != mask]
    if renamed:
        what = f"{len(renamed):,} masks have other names than their images, such as {renamed[0][1]} for {renamed[0][0]}"
        issues.append(DataIssue("masks by another name", masks, "", what))
    images_of = {mask: image for image, mask in of_image.items()}
    for stem in sorted(by_stem.keys() - used):
        begin = next((stem[:end] for end in _prefix_ends(stem) if stem[:end] in images_of), None)
        if begin is None:
            what = f"no image {stem} in {images}"
            issues.append(DataIssue("mask without image", masks / by_stem[stem][0], "", what))
        else:
            what = f"another mask of the image {images_of[begin]}, which already has {begin}. Merge them into one"
            issues.append(DataIssue("two masks of one image", masks / by_stem[stem][0], "", what))
    return MaskPairs(images, FolderImages(images, tuple(kept)), tuple(files), tuple(issues))


def _stem(name: str) -> str:
    """A relative path without its suffix."""
    return name[: len(name) - len(Path(name).suffix)]


def _prefix_ends(stem: str) -> list[int]:
    """Lengths of the prefixes that end before a mark such as "_", longest first."""
    return [place for place in range(len(stem) - 1, 0, -1) if not stem[place].isalnum() and stem[place] != "/"]


def _similar_stem(stem: str, others: Sequence[str]) -> str | None:
    """The name most similar to an image's, which may be its mask's."""
    containing = [other for other in others if stem and stem in other]
    return min(containing, key=len) if containing else next(iter(get_close_matches(stem, others[:1000], 1, 0.8)), None)
