"""Probes of a frozen encoder on features that are computed once: linear, attentive and kNN."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.data.classification import ClassImages
from ...core.data.labeled_dataset import Splits
from ...core.data.sampling import Sample, Uniforms
from ...core.distributed import Ranks
from ...core.models.backbone import Backbone
from ...core.models.logistic_regression import L2_GRID, fit_linear_probe
from ...core.models.probes import AttentiveProbe, LinearProbe, NearestNeighbours
from ...core.training.loader import Batch
from ...core.training.optimizers import Lars
from .config import ClassifyConfig
from .cross_validation import cross_validated_neighbours, cross_validated_penalty
from .evaluation import validation_figures
from .features import FeatureRequest, FeatureRows, cached_features
from .model import Classifier
from .task import ClassificationTask

logger = logging.getLogger("maelift")


class ProbeTask(ClassificationTask):
    """A head is fitted on cached features of the frozen encoder; the saved model takes images, as any other.

    linear: batch norm without affine and a linear layer by LARS (MAE, Appendix A.1, Table 10), or logistic regression by
    L-BFGS; attentive: attention over the patch tokens; knn: the nearest labelled images, with nothing to train.
    """

    draws: ClassVar[int] = 1
    folds: Sequence[int] = ()
    """(N,) the fold of each training image, -1: of none; a head without steps is then cross-validated in place of validation"""

    def __init__(self, config: ClassifyConfig, encoder: Backbone, splits: Splits[ClassImages], ranks: Ranks) -> None:
        passes = ranks.world_size * config.accumulate
        fitting = max(passes, len(splits.train) // passes * passes)
        super().__init__(replace(config, batch_size=min(config.batch_size, fitting)), encoder.float(), splits, ranks)
        self.encoder.requires_grad_(False)
        self.method = cast(Literal["knn", "linear", "attentive"], config.method)
        self.probe = config
        self.build_model()  # whatever doesn't fit the encoder is found before anything is written

    def flops(self, model: nn.Module) -> float:
        """Those of the encoder: a head on features that are there costs next to nothing."""
        return self.encoder.flops

    def steps(self) -> int:
        """Steps of training; 0 where the head comes out of a formula or a solver."""
        return 0 if self.method == "knn" or self._solved() else super().steps()

    def images_seen(self) -> float:
        return (len(self.splits.train) * max(1, self.probe.crops) + len(self.splits.val)) / 3

    def loader_workers(self, wanted: int | None) -> int:
        """Processes that load training samples: none, as these are row numbers."""
        return 0

    def build_model(self) -> nn.Module:
        encoder, probe, classes = self.encoder, self.probe, len(self.splits.train.classes)
        if self.method == "attentive":
            return AttentiveProbe(encoder.embed_dim, classes, probe.probe_heads or encoder.num_heads)
        dim = encoder.pooled_dim(probe.features)
        if self.method == "linear":
            return LinearProbe(dim, classes)
        return NearestNeighbours(
            dim,
            classes,
            len(self.splits.train),
            k=probe.neighbours,
            temperature=probe.temperature,
            multi_label=self.multi_label,
        )

    def prepare(self, model: nn.Module) -> None:
        """Compute the features, or find them; fit what isn't trained step by step."""
        self.train_rows = self._rows("train", self.probe.crops)
        self._numbers = np.arange(len(self.train_rows))[:, None]
        if not self.folds:
            self.val_rows = self._rows("val", 0)
            self.val_targets = torch.from_numpy(self.splits.val.targets())
        if isinstance(model, NearestNeighbours):
            targets = torch.from_numpy(self.splits.train.targets())
            classes = len(self.splits.train.classes)
            rows = self.train_rows.all()
            model.fill(rows, targets if self.multi_label else F.one_hot(targets, classes))
            if self.folds:
                self._figures = cross_validated_neighbours(model, rows.to(self.ranks.device), targets, self.folds)
        elif self._solved():
            self._solve(cast(LinearProbe, model))

    def sample(self, index: int, draws: Uniforms) -> Sample:
        """The number of the row that holds the features of a training image, or of one of its crops."""
        crops = max(1, self.probe.crops)
        return Sample(self._numbers[index * crops + int(draws[0] * crops)])

    def draw_sample(self, batch: Batch, place: int) -> None:
        """No picture: the samples are numbers of rows of features."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(self.train_rows.take(batch.pixels[:, 0])).float()
        return self.objective.of_logits(logits, self.objective.labels[batch.indices])

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return self._figures if self.folds else validation_figures(self._val_logits(model), self.val_targets)

    @torch.inference_mode()
    def _val_logits(self, model: nn.Module) -> Tensor:
        return torch.cat([model(self.val_rows.take(rows)).float().cpu() for rows in self.val_rows.batches(1024)])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """LARS for the linear probe, AdamW for the attentive one."""
        if self.method != "linear":
            return super().optimizer(model)
        config = self.config
        return Lars(model.parameters(), config.peak_lr, weight_decay=config.weight_decay, momentum=config.betas[0])

    def final_model(self, model: nn.Module) -> Classifier:
        """The probe behind its encoder; a linear one with the batch norm folded into its weights."""
        head = model.folded() if isinstance(model, LinearProbe) else model
        pooling = self.probe.features
        classes = self.splits.train.classes
        return Classifier(self.encoder, classes, head, pooling=pooling, multi_label=self.multi_label).to(
            self.ranks.device
        )

    def _solved(self) -> bool:
        return self.method == "linear" and self.probe.solver == "lbfgs"

    def _rows(self, split: str, crops: int) -> FeatureRows:
        config, images = self.probe, self.splits.named(split).images
        wanted = FeatureRequest(
            self.encoder,
            images,
            tokens=self.method == "attentive",
            pooling=config.features,
            crops=crops,
            crop_scale=config.crop_scale,
            flip=config.flip,
            seed=config.seed,
            manifest=f"{self.manifest}:{split}" if self.manifest else "",
            precision=config.precision,
        )
        folder = Path(config.cache) if config.cache else Path(config.out) / "features"
        workers = images.default_workers() if config.workers is None else config.workers
        return FeatureRows(cached_features(wanted, folder, self.ranks, workers=workers, what=split), self.ranks.device)

    def _solve(self, model: LinearProbe) -> None:
        """Fit a logistic regression on scaled features, with the penalty that is best on validation, or across folds."""
        rows, device = self.train_rows.all(), self.ranks.device
        targets = torch.from_numpy(self.splits.train.targets())
        if self.probe.crops:
            targets = targets.repeat_interleave(self.probe.crops, dim=0)
        strengths = L2_GRID if self.probe.l2 is None else (self.probe.l2,)
        if self.folds:
            classes = len(self.splits.train.classes)
            best, self._figures = cross_validated_penalty(rows, targets, classes, self.folds, strengths, device)
            list(fit_linear_probe(model.eval(), rows, targets, (best,), device=device))
            return
        found: list[tuple[float, float, dict[str, Tensor]]] = []  # figure, log loss below zero, weights
        for l2 in fit_linear_probe(model, rows, targets, strengths, device=device):
            logits = self._val_logits(model.eval())
            value = validation_figures(logits, self.val_targets)[self.metric()]
            logger.info("linear probe: l2=%g: %s %.2f %%", l2, self.metric(), 100 * value)
            found.append(
                (value, -float(self.objective.of_logits(logits, self.val_targets)), copy.deepcopy(model.state_dict()))
            )
        model.load_state_dict(max(found, key=lambda entry: entry[:2])[2])
