"""Pretraining: a folder of images in, an encoder file out (MAE, Appendix A.1, Table 8)."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..core.batches import Batch, Batches, Order, Sample, Uniforms
from ..core.config import ConfigError, DataError, to_dict
from ..core.cost import block_flops, encoder_flops, training_memory, training_seconds
from ..core.distributed import Precision, Ranks, choose_device
from ..core.encoder import ModelName, Preprocessing, channel_names, preset_spec
from ..core.files import atomic_path, output_folder
from ..core.images import (
    ImageSet,
    Manifest,
    audit,
    channel_statistics,
    find_images,
    fit_and_crop,
    random_resized_crop,
    to_array,
    write_rejected,
)
from ..core.loop import Schedule, State, Upkeep, evenly, train
from ..core.optim import parameter_groups
from ..core.plan import Plan
from ..core.randomness import isolated, stream, torch_stream
from ..core.run_folder import RunFolder
from ..core.tracking import Listener, Tracker, counting, duration, read_metrics
from ..core.weights import DECODER_FILE, DecoderFile, Provenance, content_hash, read_encoder, save_decoder, save_encoder
from .mae import Decoder, MaskedAutoencoder
from .masking import Masking, num_visible
from .monitor import held_out_loss, reconstruction_picture

logger = logging.getLogger("maelift")

ENCODER_FILE = "encoder.safetensors"
PICTURE_FILE = "reconstruction.png"


@dataclass(frozen=True)
class Crop:
    """The only augmentation that MAE needs: a random resized crop and a flip (paper Table 1e)."""

    scale: tuple[float, float] = (0.2, 1.0)
    """smallest and largest area of a crop, as shares of the image"""
    flip: bool = True
    """mirror every second image left to right, at random"""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError("scale", list(self.scale), "two shares with 0 < smallest <= largest <= 1")


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a masked autoencoder on unlabelled images."""

    data: str
    """folder of images (nested or flat), or idx file"""
    out: str
    """folder for the encoder file, checkpoints, metrics and pictures"""
    model: ModelName = "vit_base"
    """the encoder's shape"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the model's usual one"""
    patch_size: int | None = None
    """pixels a side of a patch; null: the model's usual one"""
    channels: int | None = None
    """1 (gray) or 3 (colour); null: 1 if every image is gray, else 3"""
    statistics: Literal["auto", "imagenet", "data"] = "auto"
    """mean and deviation for normalising; auto: ImageNet's for colour, the data's own for gray"""
    masking: Masking = field(default_factory=Masking)
    decoder: Decoder = field(default_factory=Decoder)
    crop: Crop = field(default_factory=Crop)
    norm_pix_loss: bool = True
    """predict each patch normalised by its own mean and deviation (paper Table 1d)"""
    epochs: float = 800.0
    """times that every image is seen; the paper's 800 to 1600 are for a million images"""
    batch_size: int = 256
    """images in a step, over all processes and accumulations (the paper's: 4096)"""
    accumulate: int = 1
    """passes that a step is split into, to save memory"""
    base_lr: float = 1.5e-4
    """learning rate for a batch of 256; that used is base_lr * batch_size / 256"""
    lr: float | None = None
    """learning rate itself; null: from base_lr"""
    warmup_epochs: float | None = None
    """epochs of linear warm-up; null: 5 % of the epochs, as the paper's 40 of 800"""
    weight_decay: float = 0.05
    """AdamW's weight decay; none for vectors and biases"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's momenta"""
    clip_grad: float | None = None
    """largest norm of the gradient; null: not clipped"""
    precision: Precision = "auto"
    """of the forward pass; auto: bfloat16 on a GPU that has it, else float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    workers: int | None = None
    """processes that load images; null: one a core, none for idx files"""
    holdout: int | float = 0.02
    """images kept out of training for the masked loss, a share or a count (at most 1000 by share)"""
    evaluations: int = 20
    """times that the held-out loss and the pictures are made during the run"""
    log_every: int = 50
    """steps between two records of the training loss"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""
    max_rejected: float = 0.05
    """largest share of broken images that is put up with"""
    seed: int = 0
    """seeds every random draw"""

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "accumulate", "base_lr", "checkpoint_minutes", "evaluations", "log_every")
        for key in (*positive, "lr", "clip_grad"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        for key in ("weight_decay", "holdout", "workers", "seed", "warmup_epochs"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ConfigError(key, value, "0 or more")
        if isinstance(self.holdout, float) and self.holdout >= 1:
            raise ConfigError("holdout", self.holdout, "a share below 1, or a whole number of images")
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ConfigError("warmup_epochs", self.warmup_epochs, f"fewer than epochs={self.epochs:g}")
        if not 0 <= self.max_rejected <= 1:
            raise ConfigError("max_rejected", self.max_rejected, "a share from 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", list(self.betas), "two numbers from 0 to below 1")
        if self.channels not in (None, 1, 3):
            raise ConfigError("channels", self.channels, "1 or 3")
        if self.statistics == "imagenet" and self.channels == 1:
            raise ConfigError("statistics", self.statistics, "data or auto, as channels=1 has no ImageNet statistics")
        spec = preset_spec(self.model, image_size=self.image_size, patch_size=self.patch_size)
        num_visible(spec.num_patches, self.masking.ratio)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / 256


@dataclass(frozen=True)
class PretrainResult:
    """What pretraining leaves: ``encoder`` is the file, losses are means over the images named."""

    encoder: Path
    steps: int
    images: int
    held_out_loss: float | None
    held_out_images: int
    seconds: float

    def summary(self) -> str:
        """The result in a few lines."""
        loss = (
            "no images were held out"
            if self.held_out_loss is None
            else f"held-out masked loss {self.held_out_loss:.4f} ({self.held_out_images} images, fixed masks, 1 seed)"
        )
        return (
            f"encoder: {self.encoder}\n{self.steps} steps on {self.images} images in {duration(self.seconds)}; {loss}\n"
            f"next: maelift transfer classify encoder={self.encoder} data=LABELLED_FOLDER out=FOLDER"
        )


@dataclass(frozen=True)
class Source:
    """The images of a run: the pool to train on, those held out, and the crops that are made of them."""

    pool: ImageSet
    held_out: ImageSet
    manifest: Manifest
    config: PretrainConfig
    size: tuple[int, int]
    channels: int

    def crop(self, index: int, draws: Uniforms) -> Sample:
        """A random crop of an image of the pool."""
        crop = self.config.crop
        flips = draws if crop.flip else np.append(draws[:4], 1.0)
        image = random_resized_crop(self.pool.open(index), self.size, flips, crop.scale)
        return Sample(to_array(image, self.channels))

    def whole(self, index: int, draws: Uniforms) -> Sample:
        """A held-out image, its centre fitted to the size."""
        return self._fitted(self.held_out, index)

    def shown(self, index: int, draws: Uniforms) -> Sample:
        """An image for the pictures of reconstructions: a held-out one or, where none is held out, one of the pool."""
        return self._fitted(self.held_out if len(self.held_out) else self.pool, index)

    def _fitted(self, images: ImageSet, index: int) -> Sample:
        return Sample(to_array(fit_and_crop(images.open(index), self.size), self.channels))


CROP_DRAWS = 5


def pretrain(
    config: PretrainConfig,
    *,
    images: ImageSet | None = None,
    preprocessing: Preprocessing | None = None,
    listener: Listener | None = None,
) -> PretrainResult:
    """Pretrain as ``config`` says, or go on where the same run was stopped; under torchrun, on all its processes.

    ``images`` take the place of those found in ``config.data``, ``preprocessing`` that of the statistics which the
    configuration names. ``listener`` hears of progress in place of the terminal. Raises MaeliftError for what a user
    can mend, Interrupted when asked to stop.
    """
    with Ranks.here(config.device) as ranks:
        images = images if images is not None else find_images(config.data)
        _check_split(config, len(images), ranks.world_size)
        folder = RunFolder.open(output_folder(config.out), config, ranks)
        source = _source(config, images, folder.path, ranks)
        folder.check_data(source.manifest.digest, ranks)
        done = folder.path / ENCODER_FILE
        if done.exists():
            logger.info("pretrain: %s is there already; nothing was done again", done)
            return _result(folder.path, source, config)
        model, batches, schedule, optimizer = _prepare(config, source, preprocessing, ranks)
        state = State(model, optimizer)
        if folder.checkpoint.exists():
            state.load(folder.checkpoint)
            logger.info("pretrain: going on from step %d of %d", state.step, schedule.steps)
        with Tracker(
            folder.path,
            "pretrain",
            total=schedule.steps,
            images_per_step=config.batch_size,
            active=ranks.is_main,
            listener=listener,
        ) as tracker:
            train(
                state,
                batches,
                lambda wrapped, batch: _objective(wrapped, batch, model, config),
                schedule,
                seed=config.seed,
                ranks=ranks,
                tracker=tracker,
                upkeep=Upkeep(
                    evaluate=lambda judged, step: _look(model, source, folder.path, step),
                    evaluate_at=evenly(schedule.steps, config.evaluations),
                    checkpoint=folder.checkpoint,
                    checkpoint_seconds=60 * config.checkpoint_minutes,
                    log_every=config.log_every,
                ),
                precision=config.precision,
                clip_grad=config.clip_grad,
            )
        if ranks.is_main:
            _save(model, config, source, schedule, state, ranks, done)
            folder.checkpoint.unlink(missing_ok=True)
        ranks.barrier()
        return _result(folder.path, source, config)


def plan(config: PretrainConfig) -> Plan:
    """What ``pretrain`` would do and roughly cost; writes nothing and opens only a few images."""
    images = find_images(config.data)
    _check_split(config, len(images), 1)
    channels = config.channels or 3
    spec = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size, channels=channels)
    with torch.device("meta"):
        model = MaskedAutoencoder(spec, config.decoder)
    visible = num_visible(spec.num_patches, config.masking.ratio)
    width, depth = config.decoder.embed_dim, config.decoder.depth
    flops = encoder_flops(spec, visible) + depth * block_flops(spec.num_patches + 1, width)
    held_out = _held_out_count(config, len(images))
    pool = len(images) - held_out
    steps = _steps(config, pool)
    encoder_parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(("dec", "mask")))
    activations = (visible + 1) * spec.embed_dim * spec.depth + (spec.num_patches + 1) * width * depth
    device = choose_device(config.device)
    return Plan(
        lines=(
            (
                "images",
                f"{len(images)} found in {config.data}: {pool} to train on, {held_out} held out (unchecked yet)",
            ),
            ("encoder", f"{config.model}, {spec.image_size[0]}×{spec.image_size[1]} px, patch {spec.patch_size} px"),
            ("patches", f"{visible} of {spec.num_patches} visible to the encoder"),
            ("encoder alone", f"{encoder_parameters:,} parameters"),
            ("learning rate", f"{config.peak_lr:.3g} after warm-up"),
            ("device", str(device)),
            ("result", str(Path(config.out) / ENCODER_FILE)),
        ),
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        seconds=training_seconds(flops, steps * config.batch_size, device),
        memory_bytes=training_memory(
            sum(p.numel() for p in model.parameters()), activations, config.batch_size // config.accumulate
        ),
    )


def _objective(wrapped: nn.Module, batch: Batch, model: MaskedAutoencoder, config: PretrainConfig) -> torch.Tensor:
    """The masked loss; the noise of the global batch belongs to (seed, step), so any split of it sees the same masks."""
    generator = torch_stream(config.seed, "masks", batch.step)
    noise = torch.rand(config.batch_size, model.spec.num_patches, generator=generator)
    images = model.preprocessing.normalize(batch.pixels)
    loss: torch.Tensor = wrapped(images, config.masking.ratio, noise[slice(*batch.rows)].to(images.device)).loss
    return loss


def _look(model: MaskedAutoencoder, source: Source, folder: Path, step: int) -> dict[str, float]:
    """A picture of reconstructions, and the held-out loss where images are held out."""
    config, count = source.config, len(source.held_out)
    shown = min(8, count or len(source.pool))
    picture = reconstruction_picture(model, source.shown, shown, config.masking.ratio, config.seed)
    pictures = folder / "reconstructions"
    pictures.mkdir(exist_ok=True)
    for path in (pictures / f"step-{step:08d}.png", folder / PICTURE_FILE):
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
    if count == 0:
        return {}
    return {"held_out/loss": held_out_loss(model, source.whole, count, config.masking.ratio, config.seed)}


def _source(config: PretrainConfig, images: ImageSet, folder: Path, ranks: Ranks) -> Source:
    """Look through the images once, and set some apart."""
    begin = time.monotonic()
    sound, manifest = audit(images, config.max_rejected, counting("pretrain: looking through"))
    if ranks.is_main:
        if manifest.rejected:
            write_rejected(folder / "rejected.csv", manifest.rejected)
            logger.warning(
                "pretrain: %d of %d images are broken and left out; see %s",
                len(manifest.rejected),
                len(images),
                folder / "rejected.csv",
            )
        logger.info("pretrain: %d images looked through in %s", len(images), duration(time.monotonic() - begin))
    _check_split(config, len(sound), ranks.world_size)
    held_out = _held_out_count(config, len(sound))
    order = stream(config.seed, "held out").permutation(len(sound))
    channels = config.channels or (1 if all(manifest.gray) else 3)
    spec = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size)
    return Source(
        pool=sound.subset(sorted(order[held_out:].tolist())),
        held_out=sound.subset(sorted(order[:held_out].tolist())),
        manifest=manifest,
        config=config,
        size=spec.image_size,
        channels=channels,
    )


def _prepare(
    config: PretrainConfig, source: Source, preprocessing: Preprocessing | None, ranks: Ranks
) -> tuple[MaskedAutoencoder, Batches, Schedule, torch.optim.Optimizer]:
    spec = preset_spec(
        config.model, image_size=config.image_size, patch_size=config.patch_size, channels=source.channels
    )
    preprocessing = preprocessing or _preprocessing(config, source)
    with isolated(config.seed, "weights"):
        model = MaskedAutoencoder(
            spec, config.decoder, norm_pix_loss=config.norm_pix_loss, preprocessing=preprocessing
        ).to(ranks.device)
    steps = _steps(config, len(source.pool))
    warmup = 0.05 * config.epochs if config.warmup_epochs is None else config.warmup_epochs
    schedule = Schedule(steps, config.peak_lr, warmup=steps * warmup / config.epochs)
    groups = parameter_groups(model.named_parameters(), weight_decay=config.weight_decay, no_decay=())
    optimizer = torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)
    batches = Batches(
        Order(len(source.pool), config.batch_size, config.seed),
        source.crop,
        draws=CROP_DRAWS,
        ranks=ranks,
        accumulate=config.accumulate,
        workers=source.pool.default_workers() if config.workers is None else config.workers,
    )
    return model, batches, schedule, optimizer


def _preprocessing(config: PretrainConfig, source: Source) -> Preprocessing:
    if config.statistics == "imagenet" or (config.statistics == "auto" and source.channels == 3):
        return Preprocessing.default(source.channels)
    mean, std = channel_statistics(source.pool, source.channels, seed=config.seed)
    return Preprocessing(channel_names(source.channels), mean, std)


def _steps(config: PretrainConfig, pool: int) -> int:
    return max(1, math.ceil(config.epochs * pool / config.batch_size))


def _held_out_count(config: PretrainConfig, count: int) -> int:
    if isinstance(config.holdout, int):
        return config.holdout
    return min(1000, int(config.holdout * count))


def _check_split(config: PretrainConfig, images: int, world_size: int) -> None:
    """Raise unless the images suffice for a batch and the batch can be split."""
    parts = world_size * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            "batch_size",
            config.batch_size,
            f"a multiple of {parts} ({world_size} processes × accumulate={config.accumulate})",
        )
    pool = images - _held_out_count(config, images)
    if pool < config.batch_size:
        raise DataError(
            f"batch_size={config.batch_size}, but only {max(pool, 0)} images to train on "
            f"({images} in {config.data}, {_held_out_count(config, images)} held out). "
            "Use a smaller batch_size or more images."
        )


def _save(
    model: MaskedAutoencoder,
    config: PretrainConfig,
    source: Source,
    schedule: Schedule,
    state: State,
    ranks: Ranks,
    path: Path,
) -> None:
    hours = state.seconds / 3600 * ranks.world_size
    on_gpu = ranks.device.type == "cuda"
    provenance = Provenance(
        method="masked autoencoder",
        config={key: value for key, value in _without_folders(config).items()},
        seed=config.seed,
        steps=schedule.steps,
        images_seen=schedule.steps * config.batch_size,
        cpu_hours=0.0 if on_gpu else round(hours, 6),
        gpu_hours=round(hours, 6) if on_gpu else 0.0,
        data_manifest=source.manifest.digest,
        tool_version=__version__,
    )
    encoder = model.encoder().cpu()
    # The encoder file says that a run is done, so the decoder goes first.
    save_decoder(
        DecoderFile(
            state=model.decoder_state(),
            num_heads=model.decoder_spec.num_heads,
            norm_eps=model.spec.norm_eps,
            norm_pix_loss=model.norm_pix_loss,
            encoder=content_hash(encoder.state_dict()),
        ),
        path.with_name(DECODER_FILE),
    )
    save_encoder(encoder, path, provenance)


def _without_folders(config: PretrainConfig) -> dict[str, Any]:
    return {key: value for key, value in to_dict(config).items() if key not in ("data", "out")}


def _result(folder: Path, source: Source, config: PretrainConfig) -> PretrainResult:
    provenance = read_encoder(folder / ENCODER_FILE).provenance
    losses = [record["held_out/loss"] for record in read_metrics(folder / "metrics.jsonl") if "held_out/loss" in record]
    return PretrainResult(
        encoder=folder / ENCODER_FILE,
        steps=provenance.steps,
        images=len(source.pool),
        held_out_loss=losses[-1] if losses else None,
        held_out_images=len(source.held_out),
        seconds=3600 * (provenance.cpu_hours + provenance.gpu_hours),
    )
