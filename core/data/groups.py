"""Groups of images that must stay in one split, such as a patient's: from a table's column or from the images' paths."""

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


def check_groups(parts: Mapping[str, LabeledDataset], group: str, data: str | Path) -> None:
    shared = shared_groups(parts, group)
    if shared:
        name, places = next(iter(shared.items()))
        where = " and ".join(f"{split} ({image})" for split, image in places.items())
        raise DataError(
            f"data={data}: {len(shared)} groups are in two splits: {name} is in {where}. Expected one split for a group; "
            f"maelift data check {quoted(data)} {quoted(f'group={group}')} lists them."
        )
