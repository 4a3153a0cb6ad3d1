"""Which mask belongs to which image, by equal names or a common word (IMG_1.jpg, IMG_1_mask.png)."""

from __future__ import annotations

from collections.abc import Sequence

WORDS = ("mask", "masks", "seg", "segmentation", "label", "labels", "gt", "annotation", "matte", "L", "labelIds")
MASK_ENDINGS = tuple(f"{mark}{word}" for word in WORDS for mark in "_-. ")
MASK_BEGINNINGS = tuple(f"{word}{mark}" for word in WORDS for mark in "_-. ")
IMAGE_ENDINGS = ("", *(f"{mark}{word}" for word in ("image", "img", "rgb", "sat", "photo") for mark in "_-. "), ".ome")
"""What the name of a mask may have in addition to the image's, or the image's in addition to the mask's."""


def mask_names(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """The name of the mask of each image that has one, both without suffix.

    Equal names match first. The remaining images are matched by the rule that finds most masks: names that differ by one of
    ``MASK_ENDINGS``, ``MASK_BEGINNINGS`` and ``IMAGE_ENDINGS``, or by an ending or beginning that all masks have. Where two
    rules find equally many, neither is used.
    """
    there = set(masks)
    pairs = {stem: stem for stem in images if stem in there}
    left = [stem for stem in images if stem not in pairs]
    free = there - pairs.keys()
    if not left or not free:
        return pairs
    found = [rule for rule in (_by_rule(rule, left, free) for rule in _rules(left, free)) if rule]
    found.sort(key=len, reverse=True)
    distinct = [rule for number, rule in enumerate(found) if rule not in found[:number]]
    if distinct and not (len(distinct) > 1 and len(distinct[0]) == len(distinct[1])):
        pairs |= distinct[0]
    return pairs


def _rules(images: Sequence[str], masks: set[str]) -> list[tuple[str, str, str]]:
    """Candidate rules: the image's ending, and the mask's beginning and ending in its place."""
    some_masks, some_images = sorted(masks)[:2000], images[:2000]
    endings = [end for end in MASK_ENDINGS if any(mask.endswith(end) for mask in some_masks)]
    owns = [own for own in IMAGE_ENDINGS if any(image.endswith(own) for image in some_images)]
    names = {mask.rpartition("/")[2] for mask in some_masks}
    beginnings = [begin for begin in MASK_BEGINNINGS if any(name.startswith(begin) for name in names)]
    rules = [(own, "", ending) for own in owns for ending in ("", *endings)]
    rules += [(own, beginning, "") for own in owns for beginning in beginnings]
    for image in (
        images[:3] if len(masks) > 1 else ()
    ):  # endings and beginnings of these masks, which a rule needs all to have
        folder, slash, name = image.rpartition("/")
        for mask in masks:
            if mask.startswith(image) and not mask[len(image)].isalnum():
                rules.append(("", "", mask[len(image) :]))
            if mask.startswith(f"{folder}{slash}") and mask.endswith(name):
                beginning = mask[len(folder + slash) : len(mask) - len(name)]
                if beginning and not beginning[-1].isalnum() and "/" not in beginning:
                    rules.append(("", beginning, ""))
    return list(dict.fromkeys(rules))


def _by_rule(rule: tuple[str, str, str], images: Sequence[str], masks: set[str]) -> dict[str, str]:
    """The masks found by a rule, by image."""
    """The masks found by a rule, by image."""
    own, beginning, ending = rule
    pairs = {}
    for image in images:
        if image.endswith(own):
            folder, slash, name = image.removesuffix(own).rpartition("/")
            mask = f"{folder}{slash}{beginning}{name}{ending}"
            if mask in masks:
                pairs[image] = mask
    return pairs
