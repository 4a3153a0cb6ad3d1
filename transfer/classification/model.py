"""The classifier: an encoder under a linear, attentive or nearest-neighbour head, and its model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ...core.compute_types import Precision
from ...core.data.images import as_image
from ...core.data.transforms import fit_and_crop, to_array
from ...core.device import autocast
from ...core.errors import ConfigError
from ...core.models.backbone import Backbone
from ...core.models.build_backbone import build_backbone
from ...core.models.encoder_file import Provenance
from ...core.models.pooling import Pooling
from ...core.models.probes import AttentiveProbe, NearestNeighbours, pool
from ..model_file import ModelFile, TrainedModel, write_model
from ..predictions import Classification


class Classifier(TrainedModel):
    """An encoder with a head on its features: by default a linear layer on the mean of the patch tokens.

    ``head`` takes features that are pooled as ``pooling`` says, an ``AttentiveProbe`` all patch tokens. With ``multi_label``
    the probability of each class is the sigmoid of its logit.
    """

    def __init__(
        self,
        encoder: Backbone,
        classes: Sequence[str],
        head: nn.Module | None = None,
        *,
        pooling: Pooling = "mean",
        multi_label: bool = False,
    ) -> None:
        super().__init__(encoder, classes)
        self.encoder = encoder
        self.pooling, self.multi_label = pooling, multi_label
        self.head = head or linear_head(encoder.pooled_dim(pooling), len(self.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, classes)."""
        features = self.encoder.forward_features(images)
        all_tokens = isinstance(self.head, AttentiveProbe)
        return cast(Tensor, self.head(features.tokens if all_tokens else pool(features, self.pooling)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, classes) to the probability of each class: of one among all, or of each by itself."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    @torch.inference_mode()
    def predict(
        self, images: Sequence[str | Path | Image.Image | NDArray[np.generic]], *, precision: Precision = "auto"
    ) -> list[Classification]:
        """The classes of images: files, PIL images or arrays (H, W) or (H, W, C); all go through the network at once."""
        if not len(images):
            return []
        form, size = self.preprocessing.reading, self.spec.image_size
        arrays = [to_array(fit_and_crop(as_image(image, form), size), self.spec.channels) for image in images]
        device = self.encoder.device
        with autocast(device, precision):
            logits = self(self.preprocessing.normalize(torch.from_numpy(np.stack(arrays)).to(device)))
        return [self.classification(row) for row in self.probabilities(logits.float()).cpu()]

    def classification(self, probabilities: Tensor) -> Classification:
        """Probabilities (classes,) by class name."""
        by_class = dict(zip(self.classes, probabilities.tolist(), strict=True))
        likely = tuple(name for name, probability in by_class.items() if probability >= 0.5)
        return Classification(self.classes[int(probabilities.argmax())], by_class, likely if self.multi_label else None)


def linear_head(dim: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=2e-5)
    nn.init.zeros_(head.bias)
    return head


def save_classifier(model: Classifier, path: Path, provenance: Provenance) -> None:
    """Write a classifier, with all that is needed to use it."""
    write_model(
        path,
        model,
        task="classify",
        head={"pooling": model.pooling, "multi_label": model.multi_label, **_describe_head(model.head)},
        provenance=provenance,
    )


def _describe_head(head: nn.Module) -> dict[str, object]:
    """What ``_build_head`` needs to build a head like this."""
    if isinstance(head, AttentiveProbe):
        return {"kind": "attentive", "num_heads": head.num_heads}
    if isinstance(head, NearestNeighbours):
        return {"kind": "knn", "k": head.k, "temperature": head.temperature, "count": len(head.bank)}
    return {"kind": "linear"}


@dataclass(frozen=True)
class StoredHead:
    """A classifier's head as a model file describes it; files of version 1 have the defaults."""

    kind: Literal["knn", "linear", "attentive"] = "linear"
    pooling: Pooling = "mean"
    multi_label: bool = False
    num_heads: int | None = None
    k: int | None = None
    temperature: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        needed = {"attentive": ("num_heads",), "knn": ("k", "count")}.get(self.kind, ())
        for key in ("num_heads", "k", "count", "temperature"):
            value = getattr(self, key)
            if (value is None and key in needed) or (value is not None and value <= 0):
                raise ConfigError(key, value, f"a number above 0, for a head of the kind {self.kind}")


def load(file: ModelFile) -> Classifier:
    """The classifier of a model file."""
    head = file.head_as(StoredHead)
    encoder = build_backbone(file.spec, preprocessing=file.preprocessing)
    built = _build_head(head, encoder.pooled_dim(head.pooling), len(file.classes))
    return file.load_into(Classifier(encoder, file.classes, built, pooling=head.pooling, multi_label=head.multi_label))


def _build_head(head: StoredHead, dim: int, num_classes: int) -> nn.Module:
    if head.kind == "attentive" and head.num_heads is not None:
        if dim % head.num_heads:
            raise ConfigError("num_heads", head.num_heads, f"a divisor of {dim}")
        return AttentiveProbe(dim, num_classes, head.num_heads)
    if head.kind == "knn" and head.count is not None and head.k is not None:
        return NearestNeighbours(
            dim, num_classes, head.count, k=head.k, temperature=head.temperature, multi_label=head.multi_label
        )
    return linear_head(dim, num_classes)
