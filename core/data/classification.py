"""Where labels come from: class folders, CSV, idx files, tar shards; splits, and draws of a few labelled images.

What annotated images of every task have in common (``LabeledDataset``) stands here too, and how they are split.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from ..config import nearest
from ..errors import DataError
from ..progress import progress_logger
from ..seeding import stream
from ..terminal import quoted
from .audit import Manifest, audit, check_rejected, scan_images
from .dataset_format import SPLIT_NAMES, ClassLayout, class_layout, identify, question, split_folders
from .decode import PixelFormat
from .images import ArrayImages, FolderImages, ImageSet, find_images, idx_file, idx_images, read_idx, tell_unused
from .label_table import TABLE_SUFFIXES, LabeledFile, alike, read_label_table
from .readers.tar_shards import find_shards, read_shards
from .splits import ENOUGH, Strata, cluster, rare_classes, stratified_draw, stratified_folds, stratified_order

logger = logging.getLogger("maelift")

ClassFolderLayout = Literal["auto", "class_folders"]


@dataclass(frozen=True)
class LabelKeys:
    """What a user says about labels where the data leaves it open.

    ``multi_label``: images have any number of classes each, or one; ``layout``: class_folders where every folder is a class,
    whatever its name and what lies beside it, auto refuses folders that may mean something else (``dataset_format``);
    ``label_column``: a table's column of labels, or its columns of 0 and 1; ``group``: what stays in one split.
    """

    multi_label: bool | None = None
    layout: ClassFolderLayout = "auto"
    label_column: str | tuple[str, ...] | None = None
    group: str | None = None


class LabeledDataset(Protocol):
    """Images that someone has annotated, for any task."""

    @property
    def images(self) -> ImageSet: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def least_train(self) -> int:
        """Images that must be left to train on when other splits are drawn from them."""
        ...

    def __len__(self) -> int: ...

    def subset(self, indices: Sequence[int]) -> Self:
        """The images with these numbers, in this order."""
        ...

    def label_text(self, index: int) -> str:
        """All that the image's target depends on; two data sets with equal texts and images are one."""
        ...

    def draw_order(self, seed: int) -> list[int]:
        """All images in an order of which every beginning is a fair draw of labelled images, the smaller in the larger."""
        ...

    @property
    def strata(self) -> Strata:
        """The classes of each image, of which missing splits get their shares."""
        ...


Images = TypeVar("Images", bound=LabeledDataset)


@dataclass(frozen=True)
class LabeledImages:
    """Images with a class each: ``labels`` are numbers into ``classes``. See ``LabeledDataset``."""

    images: ImageSet
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    """what each image belongs to, a patient, say; empty where the data doesn't say it"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def least_train(self) -> int:
        """One of each class that has images."""
        return len(set(self.labels))

    def subset(self, indices: Sequence[int]) -> LabeledImages:
        """The labelled images with these numbers, in this order."""
        labels = tuple(self.labels[index] for index in indices)
        groups = tuple(self.groups[index] for index in indices) if self.groups else ()
        return LabeledImages(self.images.subset(indices), labels, self.classes, groups)

    def label_text(self, index: int) -> str:
        """The image's class."""
        return self.classes[self.labels[index]]

    def draw_order(self, seed: int) -> list[int]:
        """An order in which every beginning is as even over the classes as the data allows."""
        return stratified_order(self.labels, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The class of each image."""
        return [(label,) for label in self.labels]

    def targets(self) -> NDArray[np.int64]:
        """The class of each image, (N,)."""
        return np.array(self.labels, dtype=np.int64)


@dataclass(frozen=True)
class MultiLabeledImages:
    """Images with any number of classes each: ``labels`` are sorted numbers into ``classes``. See ``LabeledDataset``."""

    images: ImageSet
    labels: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    """what each image belongs to, a patient, say; empty where the data doesn't say it"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def least_train(self) -> int:
        """One of each class that has images."""
        return len({label for labels in self.labels for label in labels})

    def subset(self, indices: Sequence[int]) -> MultiLabeledImages:
        """The labelled images with these numbers, in this order."""
        labels = tuple(self.labels[index] for index in indices)
        groups = tuple(self.groups[index] for index in indices) if self.groups else ()
        return MultiLabeledImages(self.images.subset(indices), labels, self.classes, groups)

    def label_text(self, index: int) -> str:
        """The image's classes."""
        return "|".join(self.classes[label] for label in self.labels[index])

    def draw_order(self, seed: int) -> list[int]:
        """An order in which every beginning is as even over the classes as images with several of them allow."""
        return rarest_first_order(self.labels, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The classes of each image."""
        return self.labels

    def targets(self) -> NDArray[np.float32]:
        """1 where an image is of a class, else 0: (N, classes)."""
        targets = np.zeros((len(self), len(self.classes)), dtype=np.float32)
        for index, labels in enumerate(self.labels):
            targets[index, list(labels)] = 1
        return targets


ClassImages: TypeAlias = LabeledImages | MultiLabeledImages


@dataclass(frozen=True)
class Splits(Generic[Images]):
    """Training, validation and test images, which share their classes."""

    train: Images
    val: Images
    test: Images

    def items(self) -> tuple[tuple[str, Images], ...]:
        """The splits with their names."""
        return ("train", self.train), ("val", self.val), ("test", self.test)

    def named(self, split: str) -> Images:
        """The split of this name; raises DataError for another."""
        splits = dict(self.items())
        if split not in splits:
            raise DataError(f"split '{split}': expected train, val or test.")
        return splits[split]


@dataclass(frozen=True)
class SplitManifest:
    """What a look at every image of the splits found."""

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
        """The sound images that may not be what was meant, with what was found."""
        return tuple(pair for manifest in self.splits.values() for pair in manifest.unusual)

    @property
    def sound(self) -> int:
        """How many images are not broken."""
        return sum(len(manifest.kept) for manifest in self.splits.values())


def read_splits(
    data: str | Path,
    val: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
    layout: ClassFolderLayout = "auto",
) -> Splits[LabeledImages]:
    """Images with a class each in three splits; see ``draw_missing_splits``.

    Raises DataError for data without labels, and for classes that differ between the splits.
    """
    return draw_missing_splits(single_label_parts(data, LabelKeys(layout=layout)), data, val, test, seed)


def single_label_parts(data: str | Path, keys: LabelKeys = LabelKeys()) -> dict[str, LabeledImages]:
    """The splits that a data set has of images with one class each; raises DataError for several an image."""
    return {name: _only_class_each(part, data) for name, part in read_parts(data, keys).items()}


def read_class_splits(
    data: str | Path, val: float | int = 0.1, test: float | int = 0.1, seed: int = 0, multi_label: bool | None = None
) -> Splits[LabeledImages] | Splits[MultiLabeledImages]:
    """Images with one class each or with any number of them, in three splits; see ``class_parts``."""
    parts = class_parts(data, LabelKeys(multi_label))
    return cast("Splits[LabeledImages]", draw_missing_splits(parts, data, val, test, seed))  # or of the other kind


def class_parts(
    data: str | Path, keys: LabelKeys = LabelKeys()
) -> dict[str, LabeledImages] | dict[str, MultiLabeledImages]:
    """The splits of labelled images that a data set has.

    Images have any number of classes where a CSV has a 0/1 column a class or a cell with ``|`` or ``;``, or a shard a list
    of labels; ``keys.multi_label`` says it where the data doesn't, True or False. Raises DataError as ``read_splits`` does.
    """
    found = read_parts(data, keys)
    many = {name: part for name, part in found.items() if isinstance(part, MultiLabeledImages)}
    single = {name: part for name, part in found.items() if isinstance(part, LabeledImages)}
    if not many and not keys.multi_label:
        return single
    for name, part in single.items():
        labels = tuple((label,) for label in part.labels)
        many[name] = MultiLabeledImages(part.images, labels, part.classes, part.groups)
    return many


def _only_class_each(part: ClassImages, data: str | Path) -> LabeledImages:
    if isinstance(part, MultiLabeledImages):
        raise DataError(f"data={data}: images with several classes each. Expected one class an image here.")
    return part


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
    """Three splits: those that the data has; missing ones are drawn from the training images (``splits``).

    ``val`` and ``test`` are counts or shares of the training images, drawn by ``seed``, of each class its share. Training
    images with equal ``contents`` and those of one ``group`` (``groups_of``) stay together. With ``folds`` the test images
    are those of number ``fold`` of so many parts. Raises DataError when there are no training images, or too few to draw
    from, and for a group that is in two of the splits that the data has.
    """
    drawn = _drawn(parts, data, val, test, seed, contents, group, folds, fold)
    whole = {name: part for name, part in parts.items() if name not in drawn}
    whole |= {name: parts["train"].subset(numbers) for name, numbers in drawn.items()}
    return Splits(whole["train"], whole["val"], whole["test"])


def _drawn(
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
    """The numbers of the training images that each missing split gets, and training itself; nothing where none is missing."""
    if "train" not in parts:
        raise DataError(f"data={data}: no training images; found only {', '.join(sorted(parts))}.")
    if folds is not None and "test" in parts:
        raise DataError(f"data={data}: has a test split, and folds={folds}. Expected folds=null, or data without one.")
    if group is not None:
        _check_groups(parts, group, data)
    train = parts["train"]
    missing = [name for name in ("test", "val") if name not in parts]
    if not missing:
        return {}
    keys = [] if contents is None else [contents]
    keys += [] if group is None else [groups_of(train, group)]
    clusters = cluster(len(train), keys) if keys else np.arange(len(train))
    if clusters.max(initial=-1) < len(missing):
        raise DataError(
            f"data={data}: {clusters.max(initial=-1) + 1} groups of images that belong together, of which "
            f"{' and '.join(missing)} can't be drawn. Expected at least {len(missing) + 1}."
        )
    everywhere = _everywhere(train, clusters, data)
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
            spare = train.least_train == 1
            drawn = stratified_draw(
                here, count, seed, name, own, everywhere=everywhere, later=later, all_of_a_class=spare
            )
            if not drawn:
                raise DataError(
                    f"data={data}: no images for {name}, as each group of images that belong together holds all of a class. "
                    "Expected a class in two groups or more, or splits in the data."
                )
            if len(drawn) != count:
                logger.warning(
                    "data=%s: %d images for %s, not %d, as groups and equal pictures stay together",
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
    """How many images of a split are drawn."""
    count = wanted if isinstance(wanted, int) else round(wanted * len(train))
    if not 0 < count <= len(train) - train.least_train:
        raise DataError(
            f"data={data}: {name}={wanted} makes {count} of {len(train)} images, but there must be at least one for "
            f"{name} and {_at_least(train)} for training. Give another {name}, or more images."
        )
    return count


def _fold(strata: Strata, folds: int, fold: int, seed: int, clusters: NDArray[np.int64], data: str | Path) -> list[int]:
    """The test images of a fold."""
    count = int(clusters.max(initial=-1)) + 1
    if folds > count:
        raise DataError(f"data={data}: folds={folds} of {count} images or groups. Expected at most as many.")
    fold_of = stratified_folds(strata, folds, seed, clusters)
    if never := int((fold_of == -1).sum()):
        logger.warning("data=%s: %d images that hold all of a class stay in training in every fold", data, never)
    drawn: list[int] = np.flatnonzero(fold_of == fold).tolist()
    if not drawn:
        raise DataError(f"data={data}: fold {fold} of {folds} is empty. Expected fewer folds.")
    return drawn


def _everywhere(train: LabeledDataset, clusters: NDArray[np.int64], data: str | Path) -> set[int]:
    """The classes that each split is to have; says which are too rare for that."""
    strata = train.strata
    rare = rare_classes(strata, clusters)
    shown = ", ".join(f"{train.classes[label]} ({rare[label]})" for label in [*rare][:5] if label >= 0)
    if shown:
        unit = "images" if clusters.max() + 1 == len(train) else "images or groups"
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        what = f"data=%s: classes of fewer than {ENOUGH} {unit} can't be in every split that is drawn: %s%s"
        logger.warning(what, data, shown, more)
    return {label for labels in strata for label in (labels or (-1,))} - rare.keys()


def groups_of(images: LabeledDataset, group: str) -> list[str]:
    """What each image belongs to: by the column of the table that was read for it, else by ``group`` as a pattern of paths.

    A regular expression is searched for in each image's path; its first group says which, or all that matches. Raises
    DataError for a path without a match.
    """
    own: tuple[str, ...] = getattr(images, "groups", ())
    if own:
        return list(own)
    return groups_by_path([images.images.name(index) for index in range(len(images))], group)


def match_group(name: str, group: str) -> str | None:
    """What an image belongs to by its path; None where ``group`` isn't in it."""
    try:
        found = re.search(group, name)
    except re.error:
        return None
    return None if found is None else (found[1] or found[0]) if found.re.groups else found[0]


def groups_by_path(names: Sequence[str], group: str) -> list[str]:
    """What images belong to by their paths; raises DataError for one that doesn't say it."""
    expected = "Expected a column of the table of labels, or a regular expression, such as (patient[0-9]+)"
    try:
        re.compile(group)
    except re.error as error:
        raise DataError(f"group={group}: no regular expression ({error}). {expected}.") from error
    found = [match_group(name, group) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None]
    if without:
        raise DataError(
            f"group={group}: matches {len(names) - len(without)} of {len(names)} paths; not {without[0]}. {expected}, that "
            "matches every path."
        )
    return [match for match in found if match is not None]


def shared_groups(parts: Mapping[str, LabeledDataset], group: str) -> dict[str, dict[str, str]]:
    """The groups that are in several splits: the first image of each in each."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for split in (name for name in SPLIT_NAMES if name in parts):
        part = parts[split]
        for index, name in enumerate(groups_of(part, group)):
            places[name].setdefault(split, part.images.name(index))
    return {name: splits for name, splits in places.items() if len(splits) > 1}


def _check_groups(parts: Mapping[str, LabeledDataset], group: str, data: str | Path) -> None:
    shared = shared_groups(parts, group)
    if shared:
        name, places = next(iter(shared.items()))
        where = " and ".join(f"{split} ({image})" for split, image in places.items())
        raise DataError(
            f"data={data}: {len(shared)} groups are in two splits: {name} is in {where}. Expected one split for a group; "
            f"maelift data check {quoted(data)} {quoted(f'group={group}')} lists them."
        )


_KEYS = re.compile(r"(?<![\w./])(layout|label_column|group|folds)=")


@contextmanager
def keys_below(prefix: str) -> Iterator[None]:
    """Let errors about data name keys as they are called in a configuration that has them below ``prefix``, such as "data."."""
    try:
        yield
    except DataError as error:
        raise DataError(_KEYS.sub(rf"{prefix}\1=", str(error))) from error


def audit_splits(
    splits: Splits[Images], max_rejected: float = 0.05, form: PixelFormat | None = None
) -> tuple[Splits[Images], SplitManifest]:
    """Open every image once, and say how far it is; the splits without the broken ones, and what was found.

    See ``audit.audit``.
    """
    sound: dict[str, Images] = {}
    manifests: dict[str, Manifest] = {}
    for name, part in splits.items():
        _, manifests[name] = audit(part.images, max_rejected, progress_logger(f"looking through {name}"), form)
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
    """``draw_missing_splits`` of images that are opened first: without the broken ones, equal pictures in the same split.

    Raises DataError as that does, and where the share of broken images of a part is above ``max_rejected``.
    """
    if "train" not in parts or {"val", "test"} <= parts.keys():
        splits, manifest = audit_splits(
            draw_missing_splits(parts, data, val, test, seed, group=group, folds=folds, fold=fold), max_rejected, form
        )
        _tell_equal(manifest, data)
        return splits, manifest
    looks = {
        name: scan_images(part.images, form, progress=progress_logger(f"looking through {name}"))
        for name, part in parts.items()
    }
    for name, part in parts.items():
        check_rejected(Manifest.of(looks[name], part.images).rejected, len(part), max_rejected)
    everything = np.arange(len(parts["train"]))
    hashes = looks["train"].contents(everything)
    contents = [None if looks["train"].told(number)[0] else hashes[number] for number in everything.tolist()]
    # broken images are drawn too, and left out then: the others' splits are the same with and without them
    drawn = _drawn(parts, data, val, test, seed, contents, group, folds, fold)
    own: dict[str, Images] = {}
    chosen: dict[str, Manifest] = {}
    for name in {**parts, **drawn}:
        origin = "train" if name in drawn else name
        numbers = np.array(drawn[name] if name in drawn else range(len(parts[name])), dtype=np.int64)
        chosen[name] = Manifest.of(looks[origin], parts[origin].images, numbers)
        check_rejected(chosen[name].rejected, len(numbers), 1.0)
        own[name] = parts[origin].subset(chosen[name].kept)
    labels = {name: tuple(part.label_text(index) for index in range(len(part))) for name, part in own.items()}
    manifest = SplitManifest(chosen, labels)
    _tell_equal(manifest, data)
    return Splits(own["train"], own["val"], own["test"]), manifest


def _tell_equal(manifest: SplitManifest, data: str | Path) -> None:
    """Say how many pictures are there several times with different labels, or in several splits."""
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
                "data=%s: %d equal pictures %s, such as %s. maelift data check lists them",
                data,
                len(pairs),
                what,
                pairs[0],
            )


def draw_labeled(labeled: Images, count: float | int, seed: int) -> Images:
    """``count`` images (or that share) of ``labeled``'s ``draw_order``.

    Nested: of two draws with one seed the smaller lies in the larger. Raises DataError when there are too few images, or
    fewer are asked for than must be (one a class).
    """
    number = count if isinstance(count, int) else round(count * len(labeled))
    if number > len(labeled):
        raise DataError(f"labels={count}: only {len(labeled)} labelled images are there. Ask for fewer.")
    if number < labeled.least_train:
        raise DataError(f"labels={count} makes {number} images: expected {_at_least(labeled)}.")
    return labeled.subset(labeled.draw_order(seed)[:number])


def _at_least(images: LabeledDataset) -> str:
    least = images.least_train
    return f"at least {least}" + (", at least one a class" if least > 1 else "")


def rarest_first_order(labels: Sequence[Sequence[int]], seed: int, name: str) -> list[int]:
    """All images, each with any number of classes, in an order whose every beginning has all classes about as often.

    Each time an image is drawn of the class that has come least so far and has images left (iterative stratification,
    Sechidis et al. 2011, with even shares); images without a class are taken for a class of their own.
    """
    generator = stream(seed, name)
    none = max((label for image in labels for label in image), default=-1) + 1
    members: list[list[int]] = [[] for _ in range(none + 1)]
    for index in generator.permutation(len(labels)):
        for label in labels[index] or (none,):
            members[label].append(int(index))
    # a share of one draw breaks ties between classes, so that none is always first
    came = generator.random(none + 1) / 2
    drawn = np.zeros(len(labels), dtype=bool)
    order: list[int] = []
    while len(order) < len(labels):
        label = int(came.argmin())
        while members[label] and drawn[members[label][-1]]:
            members[label].pop()
        if not members[label]:
            came[label] = np.inf
            continue
        index = members[label].pop()
        drawn[index] = True
        order.append(index)
        came[list(labels[index]) or [none]] += 1
    return order


def read_parts(data: str | Path, keys: LabelKeys = LabelKeys()) -> Mapping[str, ClassImages]:
    """The splits that the data has, as it has them; raises DataError as ``read_splits`` does."""
    folder = Path(data)
    if folder.is_file() and folder.suffix.lower() in TABLE_SUFFIXES:
        return _read_table(folder, keys)
    if (shards := _shards_of_splits(str(data))) is not None:
        return _read_shard_splits(str(data), shards, keys.multi_label)
    if not folder.is_dir():
        raise DataError(
            f"data={data}: expected a folder of class folders, a CSV path,label, a folder of idx files or tar shards."
            if folder.exists()
            else f"data={data}: no such folder, CSV or shards."
        )
    if (folder / "labels.csv").is_file():
        parts = _read_table(folder / "labels.csv", keys)
        tell_unused(folder, [part.images for part in parts.values()], "row of labels.csv")
        return parts
    if idx_file(folder, "train", "labels") is not None:
        return _read_idx_splits(folder)
    return _read_folder_splits(folder, keys.layout)


def _read_folder_splits(data: Path, layout: ClassFolderLayout) -> dict[str, LabeledImages]:
    found = find_images(data)
    if not isinstance(found, FolderImages):
        raise DataError(
            f"data={data}: idx images without their labels file. Expected train-labels-idx1-ubyte beside it."
        )
    names = list(found.paths)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"data={data}: {len(loose)} images lie outside class folders, such as {loose[0]}. Expected "
            "CLASS/IMAGE folders, or a labels.csv with the columns path,label."
        )
    classes = ClassLayout({"train": ""}) if layout == "class_folders" else _class_layout(data, names)
    for folder, why in classes.left_out.items():
        logger.warning("data=%s: %s/ is left out: %s", data, folder, why)
    splits = {split: data / folder for split, folder in classes.splits.items()}
    inside = {split: _names_within(names, folder, classes) for split, folder in classes.splits.items()}
    parts = {split: _read_class_folders(folder, inside[split]) for split, folder in splits.items()}
    known = parts.get("train", next(iter(parts.values()))).classes
    for split, labeled in parts.items():
        strange = sorted(set(labeled.classes) - set(known))
        if strange:
            close = nearest(strange[0], known)
            raise DataError(
                f"{splits[split]}: classes that the training images have not: {', '.join(strange[:5])}."
                + (f" Did you mean {close}?" if close else "")
            )
        numbers = [known.index(name) for name in labeled.classes]
        parts[split] = LabeledImages(labeled.images, tuple(numbers[label] for label in labeled.labels), known)
    if len(known) < 2:
        where = splits.get("train", data)
        raise DataError(f"data={where}: a single class folder ({known[0]}). Expected at least two.")
    return parts


def _class_layout(data: Path, names: Sequence[str]) -> ClassLayout:
    """How class folders lie; raises DataError where the folders may mean something else."""
    for found in identify(data):
        if found.format != "class_folders" or not found.sure:
            advice = found.advice or f"{READERS[found.task]} If each folder is a class, give layout=class_folders."
            raise question(data, replace(found, advice=advice))
    return class_layout(data, names)


READERS = {
    "classify": "",
    "detect": "maelift transfer detect reads boxes.",
    "segment": "maelift transfer segment reads masks.",
    "pretrain": "maelift pretrain takes images without labels.",
}


def _names_within(names: Sequence[str], folder: str, layout: ClassLayout) -> tuple[str, ...]:
    """The paths of the images of a split below its folder; without those of other splits, and what is left out."""
    if folder:
        return tuple(name[len(folder) + 1 :] for name in names if name.startswith(f"{folder}/"))
    others = {other for other in layout.splits.values() if other} | layout.left_out.keys()
    return tuple(name for name in names if name.split("/", 1)[0] not in others)


def _read_class_folders(root: Path, paths: Sequence[str]) -> LabeledImages:
    loose = [name for name in paths if "/" not in name]
    if loose:
        raise DataError(
            f"data={root}: {len(loose)} images lie outside class folders, such as {loose[0]}. Expected "
            "CLASS/IMAGE folders, or a labels.csv with the columns path,label."
        )
    names = [name.split("/", 1)[0] for name in paths]
    classes = tuple(sorted(set(names)))
    _check_class_names(f"data={root}", classes)
    number = {name: index for index, name in enumerate(classes)}
    return LabeledImages(FolderImages(root, tuple(paths)), tuple(number[name] for name in names), classes)


def _read_table(path: Path, keys: LabelKeys) -> Mapping[str, ClassImages]:
    table = read_label_table(path, keys.multi_label, keys.label_column, keys.group)
    parts: dict[str, list[LabeledFile]] = defaultdict(list)
    for file in table.files:
        parts[file.split].append(file)
    images = {split: FolderImages(path.parent, tuple(file.path for file in files)) for split, files in parts.items()}
    labels = {split: [file.labels for file in files] for split, files in parts.items()}
    groups = {split: tuple(file.group for file in files) for split, files in parts.items()} if table.grouped else {}
    found = _class_images(str(path), images, labels, table.several, table.classes)
    return {split: replace(part, groups=groups.get(split, ())) for split, part in found.items()}


def _check_class_names(source: str, classes: Iterable[str]) -> None:
    """Raise DataError for a class whose name has a line break in it; say which names are nearly the same."""
    names = list(classes)
    for name in names:
        if not name.strip() or any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(f"{source}: the class {name!r} has no name of one line. Rename it.")
    for same in alike(names):
        shown = ", ".join(f"'{name}'" for name in same)
        logger.warning("%s: classes whose names differ in case or spaces only are different classes: %s", source, shown)


def _class_images(
    source: str,
    images: Mapping[str, ImageSet],
    labels: Mapping[str, Sequence[tuple[str, ...]]],
    several: bool,
    classes: tuple[str, ...] = (),
) -> Mapping[str, ClassImages]:
    """Labelled images out of the names of each one's classes; ``classes``, where known, else those of the training images."""
    learned = labels["train"] if "train" in labels else [image for found in labels.values() for image in found]
    names = list(classes) or sorted({label for image in learned for label in image}, key=_natural)
    _check_class_names(source, names)
    if (len(names) < 2 and not several) or not names:
        raise DataError(f"{source}: {len(names)} classes in the training rows. Expected at least two.")
    number = {name: index for index, name in enumerate(names)}
    for split, found in labels.items():
        strange = sorted({label for image in found for label in image if label not in number})
        if strange:
            raise DataError(
                f"{source}: the {split} rows have labels that no training row has: {', '.join(strange[:5])}."
            )
    if not several:
        return {
            split: LabeledImages(images[split], tuple(number[image[0]] for image in found), tuple(names))
            for split, found in labels.items()
        }
    return {
        split: MultiLabeledImages(
            images[split], tuple(tuple(sorted(number[label] for label in image)) for image in found), tuple(names)
        )
        for split, found in labels.items()
    }


def _shards_of_splits(data: str) -> dict[str, list[Path]] | None:
    """The tar shards of each split, None where ``data`` has none.

    A folder has them in folders named as splits, or with the split in their names (imagenet-val-000.tar), or all to train
    on.
    """
    shards = find_shards(data)
    if not shards and Path(data).is_dir():
        folders = split_folders(Path(data))
        found = {split: find_shards(str(folder)) for split, folder in folders.items()}
        return {split: paths for split, paths in found.items() if paths} or None
    parts: dict[str, list[Path]] = defaultdict(list)
    for shard in shards:
        words = set(re.findall("[a-z]+", shard.stem.lower()))
        named = [split for split, names in SPLIT_NAMES.items() if words & set(names)]
        parts[named[0] if len(named) == 1 else "train"].append(shard)
    return dict(parts) or None


def _read_shard_splits(
    data: str, shards: Mapping[str, Sequence[Path]], multi_label: bool | None
) -> Mapping[str, ClassImages]:
    images: dict[str, ImageSet] = {}
    labels: dict[str, list[tuple[str, ...]]] = {}
    for split, paths in shards.items():
        images[split], labels[split] = read_shards(paths)
    several = bool(multi_label) or any(len(image) != 1 for found in labels.values() for image in found)
    if several and multi_label is False:
        raise DataError(f"data={data}: images with several labels or none, and multi_label=false.")
    return _class_images(f"data={data}", images, labels, several)


def _read_idx_splits(folder: Path) -> dict[str, LabeledImages]:
    parts: dict[str, LabeledImages] = {}
    arrays: dict[str, tuple[ArrayImages, NDArray[np.uint8]]] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        image_file, label_file = idx_file(folder, prefix, "images"), idx_file(folder, prefix, "labels")
        if image_file is None or label_file is None:
            if split == "train":
                raise DataError(f"data={folder}: labels without images: no {prefix}-images-idx3-ubyte.")
            continue
        images, labels = idx_images(image_file), read_idx(label_file)
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(f"{label_file}: {labels.shape} labels for {len(images)} images. Expected one each.")
        arrays[split] = (images, labels)
    values = sorted({int(value) for _, labels in arrays.values() for value in labels})
    number = {value: index for index, value in enumerate(values)}
    for split, (images, labels) in arrays.items():
        parts[split] = LabeledImages(
            images, tuple(number[int(value)] for value in labels), tuple(str(value) for value in values)
        )
    return parts


def _natural(label: str) -> tuple[int, int, str]:
    """Numbers by value before texts by name."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
