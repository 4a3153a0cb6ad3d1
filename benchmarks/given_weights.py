"""Arms whose weights were pretrained elsewhere: plain ViTs of the suite's shape, or any architecture of timm."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..adapters.pretrained import read_pretrained
from ..core.distributed import Ranks
from ..core.errors import CheckpointError, ConfigError
from ..core.models.adapt_backbone import adapt_backbone
from ..core.models.backbone import Backbone, BackboneSpec
from ..core.models.encoder_file import EncoderFile, Provenance, save_encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.stored_contract import ENCODER_FILE
from ..core.progress import ProgressListener
from .arm_kind import ArmConfig, ArmContext, ArmKind, ArmSuite, Init
from .public_data import trained_with_labels, weights_name
from .runs import Run, spec_facts


class GivenWeights(ArmKind):
    """Weights that were pretrained elsewhere, used as they are; ``labels``: "with labels" or "without labels"."""

    def __init__(self, init: Init, labels: str) -> None:
        self.init, self.labels = init, labels

    def check_keys(self, arm: ArmConfig) -> None:
        if arm.weights is None:
            raise ConfigError("weights", None, f"weights to begin with, at start={arm.start}")
        super().check_keys(arm)

    def check(self, suite: ArmSuite, name: str) -> None:
        for key, value in suite.arms[name].pretrain.items():
            raise ConfigError(f"arms.{name}.pretrain.{key}", value, "nothing, at weights that are used as they are")

    def plan(self, context: ArmContext, name: str, seed: int) -> Run:
        facts, action = json.dumps(spec_facts(context.config.spec_of(name))), "reading its weights"
        return Run("weights", name, 0, 0, 0, 0.0, context.weights[name], facts, action=action, code=self.code_version)

    def make_encoder(
        self, run: Run, context: ArmContext, folder: Path, ranks: Ranks, listener: ProgressListener | None
    ) -> dict[str, Any]:
        began = time.monotonic()
        source = cast(str, context.config.arms[run.arm].weights)
        encoder, provenance, notes = given_encoder(self, context, run.arm, source, run.recipe)
        save_encoder(encoder, folder / ENCODER_FILE, provenance)
        return {"seconds": time.monotonic() - began, "steps": 0, "notes": notes}

    def describe(self, arm: ArmConfig) -> str:
        return f"begins with {weights_name(arm.weights or '')}, pretrained elsewhere {self.labels}"


class AnyWeights(GivenWeights):
    """Weights of any architecture of timm's, or of a plain ViT of any shape, used as they are.

    The recipe is that of a start with labels where the tag of timm's name says that these were trained with some.
    """

    own_architecture = True

    def __init__(self, init: Init) -> None:
        super().__init__(init, "with labels" if init == "supervised" else "")

    def for_arm(self, arm: ArmConfig) -> ArmKind:
        return AnyWeights("supervised") if trained_with_labels(arm.weights or "") else self

    def check_keys(self, arm: ArmConfig) -> None:
        super().check_keys(arm)
        if arm.model is not None:
            raise ConfigError("model", arm.model, "null, as the architecture is that of the weights")

    def spec(self, suite: ArmSuite, name: str, shape: EncoderSpec, image_size: tuple[int, int]) -> BackboneSpec:
        own = weights_spec(cast(str, suite.arms[name].weights), f"arms.{name}.weights")
        return replace(own, image_size=image_size, channels=shape.channels)

    def plan(self, context: ArmContext, name: str, seed: int) -> Run:
        """Its key holds the libraries too, timm among them, which names and resizes the tensors, and how images are read."""
        run = super().plan(context, name, seed)
        return replace(run, context=context.facts(name, "pool"))

    def fitted(
        self, file: EncoderFile[Backbone], spec: BackboneSpec, source: str, key: str, names: Sequence[str] = ()
    ) -> tuple[Backbone, list[str]]:
        return adapt_backbone(file.encoder, spec.image_size, spec.channels, source, key, names)

    def describe(self, arm: ArmConfig) -> str:
        return super().describe(arm).rstrip()


@lru_cache
def weights_spec(source: str, key: str) -> BackboneSpec:
    """The shape of weights, for which those of timm's names aren't fetched; raises CheckpointError or ConfigError."""
    return read_pretrained(source, key, weights=False).encoder.spec


def given_encoder(
    kind: ArmKind, context: ArmContext, name: str, source: str, planned: str
) -> tuple[Backbone, Provenance, list[str]]:
    """The encoder of the arm's shape with the weights that it names, where they are from, and what was fitted.

    Raises CheckpointError for other weights than those ``planned``, by their content hash: a file or a branch has changed since.
    """
    key = f"arms.{name}.weights"
    file = read_pretrained(source, key)
    if file.content_hash != planned:
        raise CheckpointError(
            f"{key}={source}: other weights than when the suite began. Leave them as they are until it has ended; of hf: names "
            "give a commit, hf:NAME/MODEL@COMMIT. The same command then runs what is missing."
        )
    spec = context.config.spec_of(name)
    encoder, notes = kind.fitted(file, spec, source, key, context.preprocessing.channel_names)
    own, read = encoder.preprocessing, context.preprocessing
    if spec.channels not in (1, 3, file.encoder.spec.channels) or (
        kind.own_architecture and own.value_range != read.value_range
    ):
        encoder.preprocessing = read
    elif kind.own_architecture:
        encoder.preprocessing = replace(own, background=read.background)  # all arms see the same pixels
    return encoder, replace(file.provenance, parent=file.parent), notes
