"""Online probes: how well a few labels are predicted from the encoder's features during pretraining."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..core.data.audit import audit
from ..core.data.classification import LabeledImages, LabelKeys, keys_below
from ..core.data.classification_reader import single_label_parts
from ..core.data.images import ImageSet
from ..core.data.labeled_dataset import draw_labeled
from ..core.data.missing_splits import draw_missing_splits
from ..core.models.backbone import Features
from ..core.models.encoder import Encoder
from ..core.models.logistic_regression import L2_GRID, fit_linear_probe
from ..core.models.probes import AttentiveProbe, LinearProbe, NearestNeighbours
from ..core.progress import progress_logger
from ..core.seeding import seeded_rng, torch_stream
from ..core.training.optimizers import set_learning_rate
from ..core.training.schedule import warmup_cosine
from .probe_config import ProbeConfig, ProbeKind

logger = logging.getLogger("maelift")

UNDERSTATES = "linear and kNN probes understate what fine-tuning makes of a masked autoencoder (paper, Sec. 4.3)"
SPLIT_SEED = 0
"""The same as in transfer, so that its test images are not used here."""
BATCH = 128
NEIGHBOURS, TEMPERATURE = 20, 0.07
TOLERANCE = 1e-4
"""Tolerance of the linear probe's fit, far below the rounding of its accuracy."""
VALIDATION_STRIDE = 5
"""Every fifth labelled image is used to choose the strength of the linear probe's penalty."""
ATTENTIVE_STEPS, ATTENTIVE_LR = 300, 1e-3


@dataclass(frozen=True)
class ProbeImages:
    """The labelled images of a run's probes: ``train`` to fit, ``val`` to evaluate; they have the same classes."""

    train: LabeledImages
    val: LabeledImages

    def words(self) -> str:
        """A description of the images, for logs and reports."""
        return (
            f"{len(self.train):,} labels of {len(self.train.classes):,} classes, evaluated on {len(self.val):,} validation "
            "images, 1 seed"
        )


def read_probe_images(config: ProbeConfig, max_rejected: float) -> ProbeImages | None:
    """The labelled images of the probe; None without ``config.data``. Raises DataError for data without labels."""
    if config.data is None:
        return None
    with keys_below("probe."):
        parts = single_label_parts(config.data, LabelKeys(None, config.layout, config.label_column))
        splits = draw_missing_splits(parts, config.data, 0.1, 0.1, SPLIT_SEED)
    train = draw_labeled(splits.train, min(config.labels, len(splits.train)), SPLIT_SEED)
    order = splits.val.label_sampling_order(SPLIT_SEED)
    readable, contents = _readable(train, max_rejected)
    val, others = _readable(splits.val.subset(order[: config.val]), max_rejected)
    learned = set(contents)
    apart = [number for number, content in enumerate(others) if content not in learned]
    return ProbeImages(readable, val.subset(apart) if 0 < len(apart) < len(others) else val)


def _readable(labeled: LabeledImages, max_rejected: float) -> tuple[LabeledImages, tuple[str, ...]]:
    """The images that can be read, and the hashes of their pixels."""
    _, manifest = audit(labeled.images, max_rejected, progress_logger("probe: scanning"))
    return labeled.subset(manifest.kept) if manifest.rejected else labeled, manifest.hashes


def evaluate_probes(
    encoder: Encoder,
    images: ProbeImages,
    kinds: tuple[ProbeKind, ...],
    pixels: Callable[[ImageSet, int], NDArray[np.generic]],
    seed: int,
) -> dict[str, float]:
    """The top-1 accuracy of each kind of probe on the validation images, as probe/KIND_top1_val.

    ``pixels`` gives an image (C, H, W) as the encoder takes it. Neither the encoder nor torch's generators are changed.
    """
    tokens = "attentive" in kinds
    with torch.no_grad():
        train = _FeatureBank.of(encoder, images.train.images, pixels, tokens)
        val = _FeatureBank.of(encoder, images.val.images, pixels, tokens)
    labels, truth = torch.from_numpy(images.train.targets()), torch.from_numpy(images.val.targets())
    classes = len(images.train.classes)
    figures = {}
    with torch.enable_grad(), seeded_rng(seed, "probe"):  # a run evaluates its model without gradients
        for kind in kinds:
            logits = _PROBE_KINDS[kind](train, val, labels, classes, encoder)
            figures[f"probe/{kind}_top1_val"] = float((logits.argmax(dim=1).cpu() == truth).double().mean())
    said = ", ".join(f"{name.split('/')[1].split('_')[0]} {100 * value:.1f} %" for name, value in figures.items())
    logger.info("pretrain: probe: top-1 %s (%s; %s)", said, images.words(), UNDERSTATES)
    return figures


@dataclass(frozen=True)
class _FeatureBank:
    """Features of images: ``pooled`` (n, D) float32 on the CPU; ``tokens`` (n, N, D) float16 for attentive probes."""

    pooled: Tensor
    tokens: Tensor | None

    @classmethod
    def of(
        cls, encoder: Encoder, images: ImageSet, pixels: Callable[[ImageSet, int], NDArray[np.generic]], tokens: bool
    ) -> _FeatureBank:
        found = list(_features(encoder, images, pixels))
        pooled = torch.cat([features.pooled().float().cpu() for features in found])
        return cls(pooled, torch.cat([features.tokens.half().cpu() for features in found]) if tokens else None)


def _features(
    encoder: Encoder, images: ImageSet, pixels: Callable[[ImageSet, int], NDArray[np.generic]]
) -> Iterator[Features]:
    for start in range(0, len(images), BATCH):
        stored = np.stack([pixels(images, number) for number in range(start, min(start + BATCH, len(images)))])
        batch = torch.from_numpy(stored).to(encoder.pos_embed.device)
        yield encoder.forward_features(encoder.preprocessing.normalize(batch))


def _knn(train: _FeatureBank, val: _FeatureBank, labels: Tensor, classes: int, encoder: Encoder) -> Tensor:
    model = NearestNeighbours(
        train.pooled.shape[1], classes, len(labels), k=NEIGHBOURS, temperature=TEMPERATURE, multi_label=False
    )
    model.fill(train.pooled, F.one_hot(labels, classes))
    with torch.no_grad():
        return cast(Tensor, model(val.pooled))


def _linear(train: _FeatureBank, val: _FeatureBank, labels: Tensor, classes: int, encoder: Encoder) -> Tensor:
    """Logistic regression; its penalty is chosen on some of the labelled images, never on the validation images."""
    model = LinearProbe(train.pooled.shape[1], classes).eval()
    out = torch.arange(len(labels)) % VALIDATION_STRIDE == VALIDATION_STRIDE - 1
    best = L2_GRID[0]
    if out.any():
        losses = {}
        for l2 in fit_linear_probe(model, train.pooled[~out], labels[~out], tolerance=TOLERANCE):
            with torch.no_grad():
                losses[l2] = float(F.cross_entropy(model(train.pooled[out]), labels[out]))
        best = min(losses, key=lambda l2: losses[l2])
    for _ in fit_linear_probe(model, train.pooled, labels, (best,), tolerance=TOLERANCE):
        pass
    with torch.no_grad():
        return cast(Tensor, model(val.pooled))


def _attentive(train: _FeatureBank, val: _FeatureBank, labels: Tensor, classes: int, encoder: Encoder) -> Tensor:
    assert train.tokens is not None and val.tokens is not None
    device, count = encoder.pos_embed.device, len(labels)
    model = AttentiveProbe(encoder.spec.embed_dim, classes, encoder.spec.num_heads).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for step in range(ATTENTIVE_STEPS):
        set_learning_rate(
            optimizer, warmup_cosine(step, lr=ATTENTIVE_LR, warmup=0.05 * ATTENTIVE_STEPS, total=ATTENTIVE_STEPS)
        )
        chosen = torch.randperm(count, generator=torch_stream(SPLIT_SEED, "attentive probe", step))[: 2 * BATCH]
        optimizer.zero_grad()
        logits = model(train.tokens[chosen].to(device).float())
        F.cross_entropy(logits, labels[chosen].to(device)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part.to(device).float()).cpu() for part in torch.split(val.tokens, BATCH)])


_PROBE_KINDS: dict[ProbeKind, Callable[[_FeatureBank, _FeatureBank, Tensor, int, Encoder], Tensor]] = {
    "knn": _knn,
    "linear": _linear,
    "attentive": _attentive,
}
