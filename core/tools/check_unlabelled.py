"""``maelift data check`` of images without labels: what pretraining would leave out, duplicates, and statistics."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.audit import FLAT_IMAGE, TRANSPARENT, flat_text
from ..data.channel_statistics import channel_statistics
from ..data.image_scan import FLAT_NOTE, TRANSPARENCY, ImageInfo, cache_scan, image_info
from ..data.images import ImageSet, opened
from ..data.issues import DataIssue
from ..data.near_duplicate_depth import Depth, Near, search_depth
from ..data.pixel_format import DEEP, LazyImage, Picture, PixelFormat
from ..data.readers.folder import FolderImages
from ..data.thumbnails import Thumbnail, Thumbnails, thumbnail
from ..data.transforms import check_channels
from ..errors import DataError
from ..progress import progress_logger
from ..threads import CancellingThreadPool

LEFT_OUT = "left out of pretraining, which tolerates a share of max_rejected"
POOL_RULES: Mapping[str, str] = {
    "broken image": LEFT_OUT,
    "other channels": LEFT_OUT,
    "tiny image": "left out of the list; pretraining itself takes it",
    "duplicate image": "left out of the list; pretraining itself takes it",
    "near-duplicate image": "kept; keep_near=false leaves it out of the list",
    TRANSPARENT: "its pixels are composited on background=, the same in every command",
    FLAT_IMAGE: "kept; nothing can be learned from it",
    "unusual image": "read all the same, as it says",
}
"""What may be found in a pool of images, by kind, and what is done about it."""


@dataclass(frozen=True)
class PoolContent:
    """What a pool of images contains: ``facts`` are lines of (what, value); ``kept`` the numbers of the images for the list."""

    images: ImageSet
    issues: tuple[DataIssue, ...]
    facts: tuple[tuple[str, str], ...]
    kept: tuple[int, ...]
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    near: Depth


def check_pool(images: ImageSet, form: PixelFormat, *, least_side: int, near: Near, keep_near: bool) -> PoolContent:
    """Open every image once, and report what is wrong or unusual, which are the same or nearly, and statistics of their pixels.

    ``near`` as in ``DataCheckConfig``. Raises DataError when no image is sound.
    """
    depth = search_depth(near, len(images), len(images))
    infos, thumbnails, values = _scan(images, form, depth != "none")
    channels = form.channels or _usual_channels(infos)
    issues: list[DataIssue] = []
    sound: list[int] = []
    for number, seen in enumerate(infos):
        name = _name(images, number)
        if seen.reason:
            issues.append(DataIssue("broken image", name, "", seen.reason))
            continue
        try:
            check_channels(seen.channels, channels)
        except DataError as error:
            issues.append(DataIssue("other channels", name, "", str(error)))
            continue
        clear = [note for note in seen.notes if note.startswith(TRANSPARENCY)]
        if other := [note for note in seen.notes if note != FLAT_NOTE and note not in clear]:
            issues.append(DataIssue("unusual image", name, "", "; ".join(other)))
        if clear:
            issues.append(DataIssue(TRANSPARENT, name, "", "; ".join(clear)))
        if FLAT_NOTE in seen.notes:
            issues.append(DataIssue(FLAT_IMAGE, name, "", flat_text(clear)))
        if min(seen.size) < least_side:
            issues.append(DataIssue("tiny image", name, "", f"{seen.size[1]}×{seen.size[0]} px"))
        else:
            sound.append(number)
    if not sound:
        why = [issue for issue in issues if issue.kind in ("broken image", "other channels", "tiny image")]
        raise DataError(f"none of {len(infos)} images is sound ({why[0].text() if why else 'there are none'}).")
    single = []
    first: dict[str, int] = {}
    for number in sound:
        if (earlier := first.setdefault(infos[number].content, number)) == number:
            single.append(number)
        else:
            issues.append(
                DataIssue("duplicate image", _name(images, number), "", f"the pixels of {_name(images, earlier)}")
            )
    found = {} if depth == "none" else _near(images, single, thumbnails, crops=depth == "crops")
    issues += [DataIssue("near-duplicate image", _name(images, number), "", text) for number, text in found.items()]
    kept = tuple(number for number in single if keep_near or number not in found)
    facts = _facts(images, infos, sound, channels, form, values)
    sizes = sorted({infos[number].size for number in sound}, key=lambda size: (size[0] * size[1], size))
    return PoolContent(images, tuple(issues), facts, kept, (sizes[0], sizes[-1]), depth)


def paths_of(images: ImageSet, numbers: Sequence[int]) -> list[str]:
    """The absolute paths of images that are files of their own; raises DataError for others."""
    if not isinstance(images, FolderImages):
        raise DataError("keep: these images aren't files of their own. 'maelift data pack' packs the sound ones.")
    root = images.root.absolute()
    return [str(root / images.name(number)) for number in numbers]


@dataclass(frozen=True)
class _Values:
    """What the values of an image are: the lowest and highest as stored, and the names of its channels, where it has some."""

    lowest: float
    highest: float
    names: tuple[str, ...]

    @classmethod
    def of(cls, picture: Picture, found: LazyImage, form: PixelFormat) -> _Values:
        """Those of a decoded image; NaN where no pixel has a value."""
        known = picture if picture.dtype.kind != "f" else picture[~np.isnan(picture)]
        ends = (float(known.min()), float(known.max())) if known.size else (float("nan"), float("nan"))
        deep = found.bits == 16 and picture.dtype == np.float32 and form.value_range is None and form.window is None
        scale = found.scale or (float(DEEP) if deep else 1.0)
        low, high = (end if scale == 1 else round(end / scale, 2) for end in ends)
        return cls(low, high, found.channel_names)


def _scan(
    images: ImageSet, form: PixelFormat, compared: bool
) -> tuple[list[ImageInfo], dict[int, Thumbnail], dict[int, _Values]]:
    """What is found of each image, cached for a pretraining on them, and thumbnails and values of the sound ones."""
    progress = progress_logger("scanning the images")
    began = time.time_ns()
    infos: list[ImageInfo] = []
    thumbnails: dict[int, Thumbnail] = {}
    values: dict[int, _Values] = {}
    with CancellingThreadPool(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(images), 1024):  # in parts: a pool's queue of millions would fill the memory
            numbers = range(start, min(start + 1024, len(images)))
            for seen, small, own in pool.map(lambda number: _read(images, number, form, compared), numbers):
                if small is not None:
                    thumbnails[len(infos)] = small
                if own is not None:
                    values[len(infos)] = own
                infos.append(seen)
                progress(len(infos), len(images))
    cache_scan(images, form, infos, began)
    return infos, thumbnails, values


def _read(
    images: ImageSet, number: int, form: PixelFormat, compared: bool
) -> tuple[ImageInfo, Thumbnail | None, _Values | None]:
    try:
        image = opened(images, number, form)
        picture = image.pixels()
    except DataError as error:
        name = images.name(number)
        reason = str(error).removeprefix(f"{_name(images, number)}: ").removeprefix(f"{name}: ")
        return ImageInfo(name, reason=reason), None, None
    seen = image_info(images.name(number), picture, image)
    return seen, thumbnail(picture) if compared else None, _Values.of(picture, image, form)


def _usual_channels(infos: Sequence[ImageInfo]) -> int:
    """The channels that most images have; colour, where some are gray and some are colour."""
    counts = Counter(info.channels for info in infos if not info.reason)
    if not counts:
        return 3
    usual = counts.most_common(1)[0][0]
    return 3 if usual == 1 and counts[3] else usual


def _near(
    images: ImageSet, numbers: Sequence[int], thumbnails: Mapping[int, Thumbnail], *, crops: bool
) -> dict[int, str]:
    """Images that are nearly an earlier one, with what is reported of them."""
    from ..data.near_duplicates import compare_within

    stack = Thumbnails.stack([thumbnails[number] for number in numbers])
    compared = compare_within(stack, progress_logger("comparing"), crops=crops)
    return {
        numbers[pair.index]: f"nearly {_name(images, numbers[pair.original])} (similarity {pair.similarity:.4f})"
        for pair in compared.pairs_within()
    }


def _facts(
    images: ImageSet,
    infos: Sequence[ImageInfo],
    sound: Sequence[int],
    channels: int,
    form: PixelFormat,
    values: Mapping[int, _Values],
) -> tuple[tuple[str, str], ...]:
    sides = np.array([min(infos[number].size) for number in sound])
    low, middle, high = np.percentile(sides, (0, 50, 100))
    wide = np.array([infos[number].size[1] / infos[number].size[0] for number in sound])
    counts: dict[int, int] = defaultdict(int)
    for number in sound:
        counts[infos[number].channels] += 1
    mean, std = channel_statistics(images.subset(sound), channels, form=replace(form, channels=channels))
    drawn = f" (of {min(len(sound), 2000):,} images)"

    def listed(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.4f}" for value in values)

    return (
        ("shorter side", f"{low:.0f} px at least, {middle:.0f} at the median, {high:.0f} at most"),
        ("width / height", f"{wide.min():.2f} at least, {np.median(wide):.2f} at the median, {wide.max():.2f} at most"),
        ("channels", ", ".join(f"{count:,} × {number}" for number, count in sorted(counts.items()))),
        *_value_facts([infos[number] for number in sound], [values[number] for number in sound], form),
        ("mean", listed(mean) + drawn),
        ("deviation", listed(std) + drawn),
    )


def _value_facts(infos: Sequence[ImageInfo], values: Sequence[_Values], form: PixelFormat) -> Iterator[tuple[str, str]]:
    """Bits, lowest and highest values, and the names of channels, of sound images."""
    bits = Counter(info.bits for info in infos)
    yield "bits", ", ".join(f"{count:,} × {number}" for number, count in sorted(bits.items()))
    low, high = np.nanmin([own.lowest for own in values]), np.nanmax([own.highest for own in values])
    how = (
        "in the window"
        if form.window is not None
        else "as stored, scale and offset applied"
        if form.unscale
        else "as stored"
    )
    yield "values", f"{low:g} to {high:g}, {how}"
    names = Counter(own.names for own in values if own.names)
    if names:
        listed = "; ".join(f"{count:,} × {', '.join(own)}" for own, count in names.most_common(3))
        yield "channel names", listed + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def _name(images: ImageSet, number: int) -> Path:
    name = images.name(number)
    return images.root / name if isinstance(images, FolderImages) else Path(name)


def fact_lines(facts: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The facts, aligned."""
    width = max(len(what) for what, _ in facts)
    for what, value in facts:
        yield f"  {what:<{width}}  {value}"
