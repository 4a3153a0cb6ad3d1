"""Frozen encoders judged by what is learnt on their features, which are computed once: linear, attentive and kNN probes."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core.data.classification import ClassImages
from ...core.data.images import ImageSet
from ...core.data.labeled_dataset import Splits
from ...core.data.sampling import Sample, Uniforms
from ...core.data.transforms import fit_and_crop, random_resized_crop, to_array
from ...core.device import Precision, autocast
from ...core.distributed import Ranks
from ...core.errors import MaeliftError
from ...core.files import check_regular, output_folder
from ...core.models.contract import content_hash
from ...core.models.cost import encoder_flops
from ...core.models.encoder import Encoder
from ...core.models.logistic_regression import L2_GRID, fit_linear_probe
from ...core.models.probes import AttentiveProbe, LinearProbe, NearestNeighbours, Pooling, pool, pooled_dim
from ...core.progress import progress_logger
from ...core.seeding import stream
from ...core.training.loader import Batch
from ...core.training.optimizers import Lars
from ...core.training.worker_loader import load_in_order
from .task import CROP_DRAWS, ClassificationTask, Classifier, ClassifyConfig, validation_figures

logger = logging.getLogger("maelift")

FEATURES_VERSION = 2
"""Raised whenever a change of the code would change the features that are kept."""
EXTRACT_BATCH = 250
HELD_BYTES = 2**30
"""Features of no more than this are held in memory, on the device; larger ones stay on disk and are read as they are needed."""


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """Which features of which images: with the same of all this, a file of features is used again.

    ``tokens``: all patch tokens in float16 instead of one pooled vector in float32. ``crops``: random crops of each image,
    drawn from ``seed``, ``crop_scale`` and ``flip``; 0: the image itself, as it is judged. ``manifest``: the hash of what
    the images contain; without it nothing is used again.
    """

    encoder: Encoder
    images: ImageSet
    tokens: bool
    pooling: Pooling = "mean"
    crops: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    seed: int = 0
    manifest: str = ""
    precision: Precision = "auto"

    @property
    def shape(self) -> tuple[int, ...]:
        """(images × crops, D), or (images × crops, patches, D)."""
        rows, spec = len(self.images) * max(1, self.crops), self.encoder.spec
        return (rows, spec.num_patches, spec.embed_dim) if self.tokens else (rows, pooled_dim(spec, self.pooling))

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float16 for tokens, of which there are many."""
        return np.dtype(np.float16 if self.tokens else np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes that the features take."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def name(self, device: torch.device) -> str:
        """The file's name: a hash of all that the features depend on."""
        names = hashlib.sha256(
            "\n".join(self.images.name(index) for index in range(len(self.images))).encode("utf-8", "surrogateescape")
        )
        drawn = [self.crops, self.crop_scale, self.flip, self.seed] if self.crops else []
        parts = [
            FEATURES_VERSION,
            content_hash(self.encoder.state_dict()),
            asdict(self.encoder.spec),
            asdict(self.encoder.preprocessing),
            self.manifest,
            names.hexdigest(),
            "tokens" if self.tokens else self.pooling,
            drawn,
            [self.precision, device.type],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24] + ".npy"

    def pixels(self, row: int) -> NDArray[np.generic]:
        """The pixels (C, H, W) whose features stand in a row."""
        spec, form = self.encoder.spec, self.encoder.preprocessing.reading
        if not self.crops:
            return to_array(fit_and_crop(self.images.open(row, form), spec.image_size), spec.channels)
        index, crop = divmod(row, self.crops)
        draws = stream(self.seed, "feature crops", index, crop).random(CROP_DRAWS)
        draws = draws if self.flip else np.append(draws[:4], 1.0)
        crop_image = random_resized_crop(self.images.open(index, form), spec.image_size, draws, self.crop_scale)
        return to_array(crop_image, spec.channels)


def features(
    wanted: FeatureFile, folder: Path, ranks: Ranks, *, workers: int = 0, what: str = "images"
) -> NDArray[np.generic]:
    """The features of images, ``wanted.shape``, mapped from a file in ``folder``; computed only when it isn't there.

    The processes of ``ranks`` share the work, and ``folder``. Raises MaeliftError when they don't fit on the disk.
    """
    path = folder / wanted.name(ranks.device)
    if wanted.manifest and path.exists():
        if (kept := _mapped(path, wanted)) is not None:
            logger.info("features of %s: %s is used again", what, path)
            return kept
        logger.warning("features of %s: %s is damaged, and written again", what, path)
    part = path.with_suffix(".part")
    if ranks.is_main:
        output_folder(folder)
        if (free := shutil.disk_usage(folder).free) < wanted.nbytes:
            raise MaeliftError(
                f"features of {what}: they take {wanted.nbytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free. "
                "Give cache=FOLDER on a larger disk, or features of one vector an image (method=linear or knn)."
            )
        np.lib.format.open_memmap(part, mode="w+", dtype=wanted.dtype, shape=wanted.shape).flush()
    ranks.barrier()
    file = cast("np.memmap[tuple[int, ...], np.dtype[np.floating]]", np.lib.format.open_memmap(part, mode="r+"))
    first, last = (wanted.shape[0] * share // ranks.world_size for share in (ranks.rank, ranks.rank + 1))
    _extract(wanted, range(first, last), file, ranks.device, workers, f"features of {what}")
    file.flush()
    ranks.barrier()
    if ranks.is_main:
        part.replace(path)
    ranks.barrier()
    found = _mapped(path, wanted)
    if found is None:
        raise MaeliftError(f"features of {what}: {path} can't be read again. Give cache=FOLDER on another disk.")
    return found


def _mapped(path: Path, wanted: FeatureFile) -> NDArray[np.generic] | None:
    """The features of a file; None where it isn't theirs, by its type, its shape and its length."""
    try:
        check_regular(path)
        found: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, RecursionError, MemoryError):
        return None
    return found if found.shape == wanted.shape and found.dtype == wanted.dtype else None


@torch.inference_mode()
def _extract(
    wanted: FeatureFile,
    rows: range,
    file: NDArray[np.generic],
    device: torch.device,
    workers: int,
    title: str,
) -> None:
    """Compute the features of ``rows`` into ``file``."""
    encoder = wanted.encoder.to(device).eval()
    tell = progress_logger(title)
    chunks = [rows[start : start + EXTRACT_BATCH] for start in range(0, len(rows), EXTRACT_BATCH)]

    def load(number: int) -> Tensor:
        return torch.from_numpy(np.stack([wanted.pixels(row) for row in chunks[number]]))

    for chunk, pixels in zip(chunks, load_in_order(load, len(chunks), workers), strict=True):
        with autocast(device, wanted.precision):
            found = encoder.forward_features(wanted.encoder.preprocessing.normalize(pixels.to(device)))
            result = found.tokens if wanted.tokens else pool(found, wanted.pooling)
        file[chunk.start : chunk.stop] = result.float().cpu().numpy().astype(wanted.dtype)
        tell(chunk.stop - rows.start, len(rows))


class Rows:
    """Features by row number: on the device where they are few, else read from their file as they are asked for."""

    def __init__(self, file: NDArray[np.generic], device: torch.device) -> None:
        self._file, self._device = file, device
        held = file.nbytes <= HELD_BYTES
        self._held = torch.from_numpy(np.array(file)).to(device) if held else None

    def __len__(self) -> int:
        return len(self._file)

    def take(self, rows: Tensor) -> Tensor:
        """The features at ``rows`` (B,) int64, float32, on the device."""
        if self._held is not None:
            return self._held[rows].float()
        return torch.from_numpy(np.asarray(self._file[rows.cpu().numpy()])).to(self._device).float()

    def batches(self, size: int) -> list[Tensor]:
        """The row numbers of all features in order, ``size`` at a time."""
        return list(torch.split(torch.arange(len(self), device=self._device), size))

    def all(self) -> Tensor:
        """All features, float32, on the CPU."""
        return torch.from_numpy(np.array(self._file)).float()


class ProbeTask(ClassificationTask):
    """A head is fitted on cached features of the frozen encoder; the model that is kept takes images, as any other.

    linear: batch norm without affine and a linear layer by LARS (MAE, Appendix A.1, Table 10), or logistic regression by
    L-BFGS; attentive: attention over the patch tokens; knn: the nearest labelled images, with nothing to train.
    """

    draws: ClassVar[int] = 1

    def __init__(self, config: ClassifyConfig, encoder: Encoder, splits: Splits[ClassImages], ranks: Ranks) -> None:
        passes = ranks.world_size * config.accumulate
        fitting = max(passes, len(splits.train) // passes * passes)
        super().__init__(replace(config, batch_size=min(config.batch_size, fitting)), encoder.float(), splits, ranks)
        self.encoder.requires_grad_(False)
        self.method = cast(Literal["linear", "attentive", "knn"], config.method)
        self.probe = config
        self.build_model()  # whatever doesn't fit the encoder is found before anything is written

    def flops(self, model: nn.Module) -> float:
        """Those of the encoder: a head on features that are there costs next to nothing."""
        return encoder_flops(self.encoder.spec)

    def steps(self) -> int:
        """Steps of training; 0 where the head comes out of a formula or a solver."""
        return 0 if self.method == "knn" or self._solved() else super().steps()

    def images_seen(self) -> float:
        return (len(self.splits.train) * max(1, self.probe.crops) + len(self.splits.val)) / 3

    def loaders(self, wanted: int | None) -> int:
        """Processes that load training samples: none, as these are row numbers."""
        return 0

    def build_model(self) -> nn.Module:
        spec, probe, classes = self.encoder.spec, self.probe, len(self.splits.train.classes)
        if self.method == "attentive":
            return AttentiveProbe(spec.embed_dim, classes, probe.probe_heads or spec.num_heads)
        dim = pooled_dim(spec, probe.features)
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

    def begin(self, model: nn.Module) -> None:
        """Compute the features, or find them; fit what isn't trained step by step."""
        self.train_rows = self._rows("train", self.probe.crops)
        self._numbers = np.arange(len(self.train_rows))[:, None]
        self.val_rows = self._rows("val", 0)
        self.val_targets = torch.from_numpy(self.splits.val.targets())
        if isinstance(model, NearestNeighbours):
            targets = torch.from_numpy(self.splits.train.targets())
            classes = len(self.splits.train.classes)
            model.fill(self.train_rows.all(), targets if self.multi_label else F.one_hot(targets, classes))
        elif self._solved():
            self._solve(cast(LinearProbe, model))

    def sample(self, index: int, draws: Uniforms) -> Sample:
        """The number of the row that holds the features of a training image, or of one of its crops."""
        crops = max(1, self.probe.crops)
        return Sample(self._numbers[index * crops + int(draws[0] * crops)])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(self.train_rows.take(batch.pixels[:, 0])).float()
        return self.objective.of_logits(logits, self.objective.labels[batch.indices])

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return validation_figures(self._val_logits(model), self.val_targets)

    @torch.inference_mode()
    def _val_logits(self, model: nn.Module) -> Tensor:
        return torch.cat([model(self.val_rows.take(rows)).float().cpu() for rows in self.val_rows.batches(1024)])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """LARS for the linear probe, AdamW for the attentive one."""
        if self.method != "linear":
            return super().optimizer(model)
        config = self.config
        return Lars(model.parameters(), config.peak_lr, weight_decay=config.weight_decay, momentum=config.betas[0])

    def finished(self, model: nn.Module) -> Classifier:
        """The probe behind its encoder; a linear one with the batch norm folded into its weights."""
        head = model.folded() if isinstance(model, LinearProbe) else model
        pooling = self.probe.features
        classes = self.splits.train.classes
        return Classifier(self.encoder, classes, head, pooling=pooling, multi_label=self.multi_label).to(
            self.ranks.device
        )

    def _solved(self) -> bool:
        return self.method == "linear" and self.probe.solver == "lbfgs"

    def _rows(self, split: str, crops: int) -> Rows:
        config, images = self.probe, self.splits.named(split).images
        wanted = FeatureFile(
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
        return Rows(features(wanted, folder, self.ranks, workers=workers, what=split), self.ranks.device)

    def _solve(self, model: LinearProbe) -> None:
        """Fit a logistic regression on scaled features; of several strengths of the penalty the best on validation."""
        rows, device = self.train_rows.all(), self.ranks.device
        targets = torch.from_numpy(self.splits.train.targets())
        if self.probe.crops:
            targets = targets.repeat_interleave(self.probe.crops, dim=0)
        found: list[tuple[float, float, dict[str, Tensor]]] = []  # figure, log loss below zero, weights
        strengths = L2_GRID if self.probe.l2 is None else (self.probe.l2,)
        for l2 in fit_linear_probe(model, rows, targets, strengths, device=device):
            logits = self._val_logits(model.eval())
            value = validation_figures(logits, self.val_targets)[self.metric()]
            logger.info("linear probe: l2=%g: %s %.2f %%", l2, self.metric(), 100 * value)
            found.append(
                (value, -float(self.objective.of_logits(logits, self.val_targets)), copy.deepcopy(model.state_dict()))
            )
        model.load_state_dict(max(found, key=lambda entry: entry[:2])[2])
