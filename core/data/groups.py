"""Groups of images that must stay in one split, such as a patient's, from a table's column or the paths."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from ..terminal import quoted
from .folder_names import SPLIT_NAMES
from .labeled_dataset import LabeledDataset


def groups_of(images: LabeledDataset, group: str) -> list[str]:
    """The group of each image: from the table's column, else by ``group`` as a regular expression on its path.

    The pattern's first capturing group is the name, or the full match where it has none. Raises DataError for a path
    without a match.
    """
    own: tuple[str, ...] = getattr(images, "groups", ())
    if own or not len(images):
        return list(own)
    return groups_by_path([images.images.name(index) for index in range(len(images))], group)


def match_group(name: str, group: str) -> str | None:
    """The group of an image by its path; None where ``group`` doesn't match."""
    try:
        found = re.search(group, name)
    except re.error:
        return None
    return None if found is None else (found[1] or found[0]) if found.re.groups else found[0]


def groups_by_path(names: Sequence[str], group: str) -> list[str]:
    """The groups of images by their paths; raises DataError for a path without a match."""
    expected = "Expected a column of the table of labels, or a regular expression, such as (patient[0-9]+)"
    try:
        re.compile(group)
    except re.error as error:
        raise DataError(f"group={group}: not a regular expression ({error}). {expected}.") from error
    found = [match_group(name, group) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None]
    if without:
        raise DataError(
            f"group={group}: matches {len(names) - len(without)} of {len(names)} paths; not {without[0]}. {expected}, that "
            "matches every path."
        )
    return [match for match in found if match is not None]


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
