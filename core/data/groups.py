"""Groups of images that must stay in one split, such as a patient's: from a table's column, the paths, or the map."""

from __future__ import annotations

import functools
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError
from ..files import check_regular
from ..terminal import quoted
from .folder_names import SPLIT_NAMES
from .geotiff import Georeference, georeference
from .images import ImageSet
from .labeled_dataset import LabeledDataset

TILE = "tile:"
"""Begins a ``group`` that is a square of the map: tile:5000 stands for squares of 5,000 map units."""

_EXPECTED = (
    "Expected a column of the table of labels, a regular expression, such as (patient[0-9]+), or tile:SIZE for squares of SIZE "
    "map units"
)


def groups_of(images: LabeledDataset, group: str) -> list[str]:
    """The group of each image: from the table's column, else as ``possible_groups``.

    Raises DataError for an image without a group.
    """
    own: tuple[str, ...] = getattr(images, "groups", ())
    if own or not len(images):
        return list(own)
    _check_group(group)
    found = possible_groups(images.images, range(len(images)), group)
    without = [number for number, name in enumerate(found) if name is None]
    if without:
        first, sound = images.images.name(without[0]), len(found) - len(without)
        if _tile_size(group) is not None:
            raise DataError(
                f"group={group}: {len(without)} of {len(found)} images have no georeference, such as {first}. Expected GeoTIFF "
                "files that state where they lie (tags of scale and tie point)."
            )
        raise DataError(
            f"group={group}: matches {sound} of {len(found)} paths; not {first}. {_EXPECTED}, that matches every path."
        )
    return [name for name in found if name is not None]


def possible_groups(images: ImageSet, numbers: Iterable[int], group: str) -> list[str | None]:
    """The group of each of these images: the square of the map that its centre lies in, with ``group`` as tile:SIZE; else by
    ``group`` as a regular expression on its path, of which the first capturing group is the name, or the full match where it
    has none. None for an image without a georeference or a match.
    """
    size = _tile_size(group)
    if size is not None:
        return [_tile_of(images, number, size) for number in numbers]
    try:
        pattern = re.compile(group)
    except re.error:  # the name of a column that other images don't have
        return [None for _ in numbers]
    matches = [pattern.search(images.name(number)) for number in numbers]
    whole = not pattern.groups
    return [None if found is None else found[0] if whole else found[1] or found[0] for found in matches]


def _check_group(group: str) -> None:
    try:
        re.compile(group)
    except re.error as error:
        raise DataError(f"group={group}: not a regular expression ({error}). {_EXPECTED}.") from error


def _tile_size(group: str) -> float | None:
    """The side of the squares, in map units; None for groups of another kind. Raises DataError for what is no size."""
    if not group.startswith(TILE):
        return None
    try:
        size = float(group.removeprefix(TILE))
    except ValueError:
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise DataError(f"group={group}: no size above 0. {_EXPECTED}, such as tile:5000.")
    return size


def _tile_of(images: ImageSet, number: int, size: float) -> str | None:
    """The square that an image's centre lies in, by coordinate system and numbers; None without a georeference."""
    root = getattr(images, "root", None)
    if root is not None:
        found = _of_file(str(Path(root) / images.name(number)))
    else:
        content = images.content(number)
        found = None if content is None else georeference(io.BytesIO(content))
    if found is None:
        return None
    place, (height, width) = found
    x, y = place.at(width / 2, height / 2)
    return f"{place.crs} {math.floor(x / size)} {math.floor(y / size)}".strip()


@functools.lru_cache(maxsize=1_000_000)
def _of_file(path: str) -> tuple[Georeference, tuple[int, int]] | None:
    try:
        check_regular(path)  # a pipe would wait for its writer
        return georeference(path)
    except OSError:
        return None


def shared_groups(parts: Mapping[str, LabeledDataset], group: str) -> dict[str, dict[str, str]]:
    """The groups that are in several splits, with their first image in each of these."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for split in (name for name in SPLIT_NAMES if name in parts):
        part = parts[split]
        for index, name in enumerate(groups_of(part, group)):
            places[name].setdefault(split, part.images.name(index))
    return {name: splits for name, splits in places.items() if len(splits) > 1}


def check_groups(parts: Mapping[str, LabeledDataset], group: str, data: str | Path) -> None:
    """Raise DataError where a group is in two splits."""
    shared = shared_groups(parts, group)
    if shared:
        name, places = next(iter(shared.items()))
        where = " and ".join(f"{split} ({image})" for split, image in places.items())
        raise DataError(
            f"data={data}: {len(shared)} groups are in two splits: {name} is in {where}. Expected one split for each group; "
            f"maelift data check {quoted(data)} {quoted(f'group={group}')} lists them."
        )
