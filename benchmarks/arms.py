"""The runs that a suite is made of: pretrain an encoder, fine-tune it, read the test split once.

Each is a ``Run``: a value whose ``key`` hashes all that determines its outcome, its parents' keys among it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__
from ..core.config import DataError, MaeliftError, to_dict
from ..core.distributed import Ranks
from ..core.encoder import Encoder, Preprocessing, channel_names
from ..core.files import atomic_write_text
from ..core.images import ImageSet, Manifest, channel_statistics
from ..core.labels import LabeledImages, Splits, audit_splits, draw_labeled, read_splits
from ..core.randomness import stream
from ..core.tracking import Listener, Tracker
from ..core.weights import Provenance, load_encoder, save_encoder
from ..pretrain.stage import ENCODER_FILE, pretrain
from ..transfer.classify import (
    MODEL_FILE,
    Recipe,
    fit_classifier,
    fresh_encoder,
    load_classifier,
    save_classifier,
    score,
)
from .suite import BenchConfig, SuiteData

CODE_VERSION = 1
"""Raised whenever a change of the code would change what a run ends with."""

RESULT_FILE = "result.json"
STATISTICS_SEED = 0

Kind = Literal["mae", "supervised", "train", "test"]


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    ``recipe`` is all of its configuration that matters; ``parents`` are the keys of the runs whose files it reads;
    ``images`` counts the images that go through training, a measure of its cost.
    """

    kind: Kind
    arm: str
    seed: int
    labels: int
    steps: int
    lr: float
    recipe: str
    context: str
    parents: tuple[str, ...] = ()
    images: int = 0

    @property
    def key(self) -> str:
        """The hash of everything that determines the outcome; the arm's name is not among it."""
        content = {**asdict(self), "code": CODE_VERSION, "maelift": __version__}
        for irrelevant in ("arm", "images"):
            del content[irrelevant]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def title(self) -> str:
        """The run in words."""
        if self.kind in ("mae", "supervised"):
            return f"{self.arm}: pretraining, seed {self.seed}"
        what = "test" if self.kind == "test" else f"{self.steps} steps at rate {self.lr:g}"
        return f"{self.arm}: {self.labels} labels, seed {self.seed}, {what}"


@dataclass(frozen=True)
class Pools:
    """The images of a suite, parted by use; no image is in two parts, by content.

    ``pool`` is for pretraining (its labels for the supervised arm only), ``source`` what labelled examples are drawn
    from. ``findings`` says in words what the overlap check found and did; ``digest`` hashes all contents.
    """

    pool: LabeledImages
    source: LabeledImages
    val: LabeledImages
    test: LabeledImages
    findings: tuple[str, ...]
    digest: str


@lru_cache(maxsize=1)
def read_pools(data: SuiteData) -> Pools:
    """Read, look through and part the images; an image that is in validation or test too is dropped elsewhere."""
    splits, manifest = audit_splits(read_splits(data.path, data.val, data.test, data.seed), max_rejected=0.05)
    hashes = {name: manifest.split_hashes[name] for name in ("train", "val", "test")}
    findings: list[str] = []
    if manifest.rejected:
        findings.append(f"{len(manifest.rejected)} broken images were left out.")
    held_back = set(hashes["test"])
    keep_val = [index for index, digest in enumerate(hashes["val"]) if digest not in held_back]
    findings.append(_finding("validation", len(hashes["val"]) - len(keep_val), "test"))
    held_back |= set(hashes["val"])
    order = stream(data.seed, "pool").permutation(len(hashes["train"]))
    count = data.pool if isinstance(data.pool, int) else int(data.pool * len(order))
    if not 0 < count < len(order):
        raise DataError(
            f"data.pool={data.pool}: {data.path} has {len(order)} training images besides validation and test; expected "
            "a count below that, so that some are left to draw labelled examples from."
        )
    pool = [int(index) for index in order[:count] if hashes["train"][index] not in held_back]
    findings.append(_finding("pool", count - len(pool), "validation or test"))
    held_back |= {hashes["train"][index] for index in pool}
    source = [int(index) for index in order[count:] if hashes["train"][index] not in held_back]
    findings.append(_finding("labelled source", len(order) - count - len(source), "pool, validation or test"))
    return Pools(
        pool=splits.train.subset(sorted(pool)),
        source=splits.train.subset(sorted(source)),
        val=splits.val.subset(keep_val),
        test=splits.test,
        findings=tuple(findings),
        digest=hashlib.sha256(f"{manifest.digest}:{asdict(data)}".encode()).hexdigest(),
    )
