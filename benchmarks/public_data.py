"""Leakage by pretraining: arms whose weights have seen the public data set that a suite's images are of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..adapters.packaged_weights import PACKAGED
from ..core.models.hub_names import is_hub_name
from ..core.models.timm_spec import TIMM
from ..core.public_names import public_name

PublicSet = Literal["imagenet", "coco", "ade20k", "voc", "cityscapes", "inaturalist", "none"]
"""Public data sets that weights may have seen; none: the images are of no public set, whatever their folder is called."""

TITLES = {
    "imagenet": "ImageNet",
    "coco": "COCO",
    "ade20k": "ADE20K",
    "voc": "Pascal VOC",
    "cityscapes": "Cityscapes",
    "inaturalist": "iNaturalist",
}
FOLDERS = {
    "imagenet": r"imagenet\w*|ilsvrc\w*|in1k|in100|imagenette\d*|imagewoof\d*",
    "coco": r"coco|coco20\d\d|mscoco\w*",
    "ade20k": r"ade20k\w*|adechallengedata\w*",
    "voc": r"voc|voc20\d\d|vocdevkit|pascal",
    "cityscapes": r"cityscapes",
    "inaturalist": r"inat|inat20\d\d|inat\d\d|inaturalist",
}
"""Words of folders' and files' names by which images are taken for those of a public set."""

_IMAGENET = ("in1k", "in12k", "in21k", "in22k", "inw21k", "mae", "dino", "fcmae", "lvd142m", "lvd1689m")
SEEN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_IMAGENET, ("imagenet",)),
    **{"coco": ("coco",), "refcoco": ("coco",), "ade20k": ("ade20k",), "voc": ("voc",)},
    **{"cityscapes": ("cityscapes",), "inat21": ("inaturalist",), "inat2021": ("inaturalist",)},
}
"""The public sets behind a word of timm's tags. ImageNet-12k, -21k and -22k hold the classes of ImageNet-1k; MAE, DINO and
FCMAE without another word are of ImageNet-1k; LVD-142M and LVD-1689M (DINOv2, DINOv3) have ImageNet among their sources."""
PACKAGED_TAG = "in1k"
"""What weights that come as Python packages were trained on: all of them with the labels of ImageNet-1K."""
WEB = re.compile(
    r"laion|datacomp|dfn|metaclip|webli|openai|yfcc|cc12m|merged2b|mclip|ig1b|swag|seer|jft|sat493m|sa1b|ogvl|radio|florence|pali"
)
"""Words of tags for images of the web in such numbers, or not published, that nobody lists which public ones are among them."""


@dataclass(frozen=True)
class SuiteSource:
    """The public data set that images are of, and by what that is known; ``name`` empty: of none that is known."""

    name: str
    reason: str

    @property
    def title(self) -> str:
        """What it is called."""
        return TITLES.get(self.name, "")


def source_of(path: str | None, public: PublicSet | None, key: str) -> SuiteSource:
    """The public set that images are of: as the ``key`` says, else by the last two names of their path."""
    if public is not None:
        return SuiteSource("" if public == "none" else public, f"{key}={public}")
    for name in [] if path is None else [*Path(path).parts[-2:]][::-1]:
        words = re.split(r"[^a-z0-9]+", name.lower())
        for found, pattern in FOLDERS.items():
            if any(re.fullmatch(pattern, word) for word in words):
                return SuiteSource(found, f"by the name {public_name(name)}; {key} says otherwise")
    return SuiteSource("", f"no public data set by its name; {key} says otherwise")


def tag_of(weights: str) -> str | None:
    """The tag of timm's weights by their name, the usual one where none is named; None for weights in files."""
    if weights in PACKAGED:
        return PACKAGED_TAG
    if not weights.startswith(TIMM):
        return None
    name = weights.removeprefix(TIMM).partition("@")[0]
    if "." in name:
        return name.partition(".")[2]
    import timm

    settings = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return "" if settings is None else str(settings.tag or "")


WITH_LABELS = ("in1k", "in12k", "in21k", "in22k", "inw21k", "inat21", "inat2021", "jft", "ig1b")
WITHOUT_LABELS = ("mae", "dino", "fcmae", "ijepa", "lvd142m", "lvd1689m", "bt", "seer", "dinov3")


def trained_with_labels(weights: str) -> bool:
    """Whether timm's tag says that weights were trained with labels; not of self-supervised ones that weren't fine-tuned."""
    words = (tag_of(weights) or "").lower().split("_")
    return any(word in WITH_LABELS for word in words) and ("ft" in words or not any(w in WITHOUT_LABELS for w in words))


def weights_path(weights: str | None) -> str | None:
    """The file that weights are in; None of those that are fetched."""
    if weights is None or weights in PACKAGED or is_hub_name(weights):
        return None
    if not weights.startswith(TIMM):
        return weights
    return weights.partition("@")[2] or None


def weights_name(weights: str) -> str:
    """Weights as they are published in pages: without the folders of a file."""
    name, at, file = weights.partition("@")
    return f"{name}{at}{public_name(file)}" if weights.startswith(TIMM) else public_name(weights)


def seen_by(weights: str) -> tuple[set[str], set[str]] | None:
    """The public sets that weights are known to have seen, and words of web-scale data in their tag; None: nothing is known."""
    tag = tag_of(weights)
    if tag is None:
        return None
    words = set(tag.lower().split("_"))
    return {name for word in words for name in SEEN.get(word, ())}, {word for word in words if WEB.match(word)}


def pretraining_overlaps(label: str, weights: str, sources: list[SuiteSource]) -> Iterator[str]:
    """What is known of an arm's weights having seen the suite's own data sets, each a sentence."""
    seen, shown = seen_by(weights), weights_name(weights)
    for source in sources:
        if not source.name:
            continue
        if seen is None:
            yield (
                f"{label} begins with {shown}: whether these weights have seen {source.title}, which the suite's images are "
                f"taken for ({source.reason}), isn't known."
            )
        elif source.name in seen[0]:
            yield (
                f"{label} begins with {shown}, whose pretraining has seen {source.title}, which the suite's images are taken for "
                f"({source.reason}): its score says less of other images than those of arms that haven't."
            )
        elif seen[1]:
            yield (
                f"{label} begins with {shown}, pretrained on {', '.join(sorted(seen[1]))}: whether images of {source.title}, "
                f"which the suite's are taken for ({source.reason}), are among them isn't known."
            )


def unknown_sources(sources: list[SuiteSource], weights: list[str]) -> Iterator[str]:
    """Where nothing says what the suite's images are, and weights have seen a public set: what to give."""
    known = sorted({TITLES[name] for one in weights if (seen := seen_by(one)) is not None for name in seen[0]})
    for source in sources:
        if known and not source.name:
            yield (
                f"Weights of this suite have seen {', '.join(known)}. The suite's images are taken for none of these "
                f"({source.reason})."
            )
