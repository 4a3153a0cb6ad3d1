"""Validation and test splits drawn from training where the data has none, and the audit of all splits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..progress import progress_logger
from .audit import Manifest, audit, check_rejected
from .groups import check_groups, groups_of
from .image_scan import scan_images
from .labeled_dataset import Images, LabeledDataset, Splits, min_train_text
from .pixel_format import PixelFormat
from .slices import files_of_slices
from .splits import MIN_CLUSTERS, Strata, cluster, rare_classes, stratified_draw, stratified_folds

logger = logging.getLogger("maelift")


@dataclass(frozen=True)
class SplitManifest:
    """What the audit of every image of the splits found."""

    splits: Mapping[str, Manifest]
    labels: Mapping[str, tuple[str, ...]]
    """the label text of each sound image of a split"""

    @property
    def digest(self) -> str:
        """A hash of the names, contents and labels of all images in all splits."""
        lines = []
        for split, manifest in sorted(self.splits.items()):
            lines.append(f"{split}:{manifest.digest}")
            lines += sorted(f"{name}\t{label}" for name, label in zip(manifest.names, self.labels[split], strict=True))
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def gray(self) -> bool:
        """Whether every image is grayscale."""
        return all(all(manifest.gray) for manifest in self.splits.values())

    @property
    def rejected(self) -> tuple[tuple[str, str], ...]:
        """The broken images with the reasons."""
        return tuple(pair for manifest in self.splits.values() for pair in manifest.rejected)

    @property
    def unusual(self) -> tuple[tuple[str, str], ...]:
        """The sound images that may not be as intended, with what was found."""
        return tuple(pair for manifest in self.splits.values() for pair in manifest.unusual)

    @property
    def sound(self) -> int:
        """How many images are not broken."""
        return sum(len(manifest.kept) for manifest in self.splits.values())


def draw_missing_splits(
    parts: Mapping[str, Images],
    data: str | Path,
    val: float | int,
    test: float | int,
    seed: int,
    *,
    contents: Sequence[str | None] | None = None,
    group: str | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> Splits[Images]:
    """Three splits: those that the data has, and missing ones drawn from the training images (``splits``).

    ``val`` and ``test`` are counts or shares of the training images, drawn by ``seed`` and stratified by class. Training
    images with equal ``contents``, those of one ``group`` (``groups_of``) and slices of one volume stay in one split. With
    ``folds`` the test images are fold number ``fold`` of so many. Raises DataError when there are no training images,
    or too few to draw from, and for a group that is in two of the splits that the data has.
    """
    drawn = _draw_indices(parts, data, val, test, seed, contents, group, folds, fold)
    complete = {name: part for name, part in parts.items() if name not in drawn}
    complete |= {name: parts["train"].subset(numbers) for name, numbers in drawn.items()}
    return Splits(complete["train"], complete["val"], complete["test"])


def _draw_indices(
    parts: Mapping[str, Images],
    data: str | Path,
    val: float | int,
    test: float | int,
    seed: int,
    contents: Sequence[str | None] | None,
    group: str | None,
    folds: int | None,
    fold: int,
) -> dict[str, list[int]]:
    """The indices of the training images that each missing split and training get; empty where no split is missing."""
    if "train" not in parts:
        raise DataError(f"data={data}: no training images; found only {', '.join(sorted(parts))}.")
    if folds is not None and "test" in parts:
        raise DataError(f"data={data}: has a test split, and folds={folds}. Expected folds=null, or data without one.")
    if group is not None:
        check_groups(parts, group, data)
    train = parts["train"]
    missing = [name for name in ("test", "val") if name not in parts]
    if not missing:
        return {}
    keys = [] if contents is None else [contents]
    keys += [] if group is None else [groups_of(train, group)]
    slices = files_of_slices([train.images.name(index) for index in range(len(train))])
    keys += [] if slices is None else [slices]
    clusters = cluster(len(train), keys) if keys else np.arange(len(train))
    if clusters.max(initial=-1) < len(missing):
        raise DataError(
            f"data={data}: {clusters.max(initial=-1) + 1} groups of images that belong together, of which "
            f"{' and '.join(missing)} can't be drawn. Expected at least {len(missing) + 1}."
        )
    required = _classes_in_every_split(train, clusters, data)
    strata = train.strata
    left = np.arange(len(train))
    found: dict[str, list[int]] = {}
    for name in missing:
        here, own = [strata[index] for index in left.tolist()], np.unique(clusters[left], return_inverse=True)[1]
        if name == "test" and folds is not None:
            drawn = _fold(here, folds, fold, seed, own, data)
        else:
            count = _count(train.subset(left.tolist()), name, test if name == "test" else val, data)
            later = int(name == "test" and "val" in missing)
            spare = train.min_train == 1
            drawn = stratified_draw(here, count, seed, name, own, required=required, later=later, all_of_a_class=spare)
            if not drawn:
                raise DataError(
                    f"data={data}: no images for {name}, as each group of images that belong together has all images of a class. "
                    "Expected a class in two groups or more, or splits in the data."
                )
            if len(drawn) != count:
                logger.warning(
                    "data=%s: %d images for %s, not %d, as groups and equal images stay in one split",
                    data,
                    len(drawn),
                    name,
                    count,
                )
        found[name] = left[drawn].tolist()
        left = np.delete(left, drawn)
    if not len(left):
        raise DataError(f"data={data}: no image is left for training besides {' and '.join(missing)}.")
    return {**found, "train": left.tolist()}


def _count(train: LabeledDataset, name: str, wanted: int | float, data: str | Path) -> int:
    """How many images are drawn for a split."""
    count = wanted if isinstance(wanted, int) else round(wanted * len(train))
    if not 0 < count <= len(train) - train.min_train:
        raise DataError(
            f"data={data}: {name}={wanted} makes {count} of {len(train)} images, but there must be at least one for "
            f"{name} and {min_train_text(train)} for training. Give another {name}, or more images."
        )
    return count


def _fold(strata: Strata, folds: int, fold: int, seed: int, clusters: NDArray[np.int64], data: str | Path) -> list[int]:
    """The test images of a fold."""
    count = int(clusters.max(initial=-1)) + 1
    if folds > count:
        raise DataError(f"data={data}: folds={folds} of {count} images or groups. Expected at most as many.")
    fold_of = stratified_folds(strata, folds, seed, clusters)
    if never := int((fold_of == -1).sum()):
        logger.warning("data=%s: %d images that are all of their class stay in training in every fold", data, never)
    drawn: list[int] = np.flatnonzero(fold_of == fold).tolist()
    if not drawn:
        raise DataError(f"data={data}: fold {fold} of {folds} is empty. Expected fewer folds.")
    return drawn


def _classes_in_every_split(train: LabeledDataset, clusters: NDArray[np.int64], data: str | Path) -> set[int]:
    """The classes that each drawn split must have; warns of those that are too rare."""
    strata = train.strata
    rare = rare_classes(strata, clusters)
    shown = ", ".join(f"{train.classes[label]} ({rare[label]})" for label in [*rare][:5] if label >= 0)
    if shown:
        unit = "images" if clusters.max() + 1 == len(train) else "images or groups"
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        what = f"data=%s: classes of fewer than {MIN_CLUSTERS} {unit} can't be in every split that is drawn: %s%s"
        logger.warning(what, data, shown, more)
    return {label for labels in strata for label in (labels or (-1,))} - rare.keys()


def audit_splits(
    splits: Splits[Images], max_rejected: float = 0.05, form: PixelFormat | None = None
) -> tuple[Splits[Images], SplitManifest]:
    """Open every image once: the splits without broken images, and what was found. See ``audit.audit``."""
    sound: dict[str, Images] = {}
    manifests: dict[str, Manifest] = {}
    for name, part in splits.items():
        _, manifests[name] = audit(part.images, max_rejected, progress_logger(f"scanning {name}"), form)
        sound[name] = part.subset(manifests[name].kept) if manifests[name].rejected else part
    labels = {name: tuple(part.label_text(index) for index in range(len(part))) for name, part in sound.items()}
    return Splits(sound["train"], sound["val"], sound["test"]), SplitManifest(manifests, labels)


def audited_splits(
    parts: Mapping[str, Images],
    data: str | Path,
    val: float | int,
    test: float | int,
    seed: int,
    max_rejected: float = 0.05,
    *,
    group: str | None = None,
    folds: int | None = None,
    fold: int = 0,
    form: PixelFormat | None = None,
) -> tuple[Splits[Images], SplitManifest]:
    """``draw_missing_splits`` after an audit: without broken images, and with equal images in one split.

    Raises DataError as that does, and where the share of broken images of a part is above ``max_rejected``.
    """
    if "train" not in parts or {"val", "test"} <= parts.keys():
        splits, manifest = audit_splits(
            draw_missing_splits(parts, data, val, test, seed, group=group, folds=folds, fold=fold), max_rejected, form
        )
        _warn_of_duplicates(manifest, data)
        return splits, manifest
    scans = {
        name: scan_images(part.images, form, progress=progress_logger(f"scanning {name}"))
        for name, part in parts.items()
    }
    for name, part in parts.items():
        check_rejected(Manifest.of(scans[name], part.images).rejected, len(part), max_rejected)
    everything = np.arange(len(parts["train"]))
    hashes = scans["train"].contents(everything)
    contents = [None if scans["train"].remarks(number)[0] else hashes[number] for number in everything.tolist()]
    # Broken images are drawn too and then left out: the others' splits are the same with and without them.
    drawn = _draw_indices(parts, data, val, test, seed, contents, group, folds, fold)
    own: dict[str, Images] = {}
    chosen: dict[str, Manifest] = {}
    for name in {**parts, **drawn}:
        origin = "train" if name in drawn else name
        numbers = np.array(drawn[name] if name in drawn else range(len(parts[name])), dtype=np.int64)
        chosen[name] = Manifest.of(scans[origin], parts[origin].images, numbers)
        check_rejected(chosen[name].rejected, len(numbers), 1.0)
        own[name] = parts[origin].subset(chosen[name].kept)
    labels = {name: tuple(part.label_text(index) for index in range(len(part))) for name, part in own.items()}
    manifest = SplitManifest(chosen, labels)
    _warn_of_duplicates(manifest, data)
    return Splits(own["train"], own["val"], own["test"]), manifest


def _warn_of_duplicates(manifest: SplitManifest, data: str | Path) -> None:
    """Log how many images occur more than once with different labels, or in several splits."""
    first: dict[str, tuple[str, str, str]] = {}
    labels: list[str] = []
    places: list[str] = []
    for split, found in manifest.splits.items():
        for name, content, label in zip(found.names, found.hashes, manifest.labels[split], strict=True):
            other_split, other, other_label = first.setdefault(content, (split, name, label))
            if other_label != label:
                labels.append(f"{other} and {name}")
            if other_split != split:
                places.append(f"{other} ({other_split}) and {name} ({split})")
    for pairs, what in ((labels, "with different labels"), (places, "in two splits")):
        if pairs:
            logger.warning(
                "data=%s: %d equal images %s, such as %s. maelift data check lists them",
                data,
                len(pairs),
                what,
                pairs[0],
            )
