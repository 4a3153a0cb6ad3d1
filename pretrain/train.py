"""The pretraining run: images in, an encoder file, checkpoints and a report out (MAE, Appendix A.1, Table 8)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..core.data.composite import Display
from ..core.data.images import ImageSet
from ..core.data.readers.concat import ConcatImages
from ..core.data.sampling import MixedSampler, Sampler
from ..core.distributed import Ranks, compile_blocks, recompute_activations
from ..core.files import output_folder
from ..core.models.decoder_file import DECODER_FILE, DecoderFile, save_decoder
from ..core.models.encoder_file import Provenance, encoder_hash, read_encoder, save_encoder
from ..core.models.encoder_spec import preset_spec
from ..core.models.preprocessing import Preprocessing, known_pixels
from ..core.models.stored_contract import ENCODER_FILE
from ..core.optional_imports import require
from ..core.progress import ProgressListener
from ..core.public_names import public_config
from ..core.seeding import seeded_rng, torch_stream
from ..core.training.batch_sheet import enlarged, sample_levels, shown_ends, write_batch_sheet
from ..core.training.checkpoints import Checkpoints
from ..core.training.ema import WeightAverage
from ..core.training.loader import Batch, Batches, Quarantine
from ..core.training.loop import Callbacks, train
from ..core.training.optimizers import parameter_groups
from ..core.training.run_dir import RunFolder
from ..core.training.schedule import Schedule
from ..core.training.state import State
from ..core.training.tracker import Tracker
from ..core.yaml_files import to_dict
from ..version import __version__
from .augmentation import CROP_DRAWS
from .auto_accumulate import auto_accumulate
from .config import PretrainConfig
from .data import Source, check_split, data_preprocessing, find_pool, read_source
from .evaluation import Evaluator, loading_advice
from .init_weights import InitWeights, load_init_weights, read_init_weights
from .mae import MaskedAutoencoder, build_autoencoder
from .online_probe import ProbeImages, read_probe_images
from .result import REPORT_FILE, PretrainResult, finished_result, read_result

logger = logging.getLogger("maelift")


def pretrain(
    config: PretrainConfig,
    *,
    images: ImageSet | None = None,
    preprocessing: Preprocessing | None = None,
    listener: ProgressListener | None = None,
) -> PretrainResult:
    """Pretrain by ``config``, or resume the same run; under torchrun, on all its processes.

    ``images`` replace those in ``config.data``; ``preprocessing`` replaces the statistics that the configuration names.
    ``listener`` gets the progress instead of the terminal. Raises MaeliftError for errors that a user can fix, Interrupted
    when asked to stop.
    """
    with Ranks.join(config.device) as ranks, ExitStack() as stack:
        init = read_init_weights(config)
        images = images if images is not None else find_pool(config, ranks)
        check_split(config, len(images), ranks.world_size)
        if config.wandb is not None:
            require("wandb")
        labeled = read_probe_images(config.probe, config.max_rejected)
        folder = stack.enter_context(RunFolder.open(output_folder(config.out), config, ranks))
        source = read_source(config, images, folder.path, ranks)
        folder.check_data(source.manifest.digest, ranks, None if init is None else init.digest)
        done = folder.path / ENCODER_FILE
        if done.exists():
            Checkpoints(folder.checkpoints, ranks).remove()  # left if the run was killed between the two
            if ranks.is_main and not (folder.path / REPORT_FILE).exists():  # the run was killed between the two
                _write_report(folder.path, source, labeled)
            return finished_result(folder.path, source)
        state, batches, schedule = _prepare(config, source, init, preprocessing, ranks, folder.path)
        checkpoints = Checkpoints(folder.checkpoints, ranks, config.checkpoints)
        if state.load(checkpoints):
            logger.info("pretrain: resuming from step %d of %d", state.step, schedule.steps)
        evaluator = Evaluator(source, folder.path, labeled, schedule.steps)
        with Tracker(
            folder.path,
            "pretrain",
            total=schedule.steps,
            images_per_step=config.batch_size,
            active=ranks.is_main,
            listener=listener,
            loading_advice=loading_advice(config, batches.workers),
            wandb=config.wandb,
            config=to_dict(config),
        ) as tracker:
            if batches.quarantine is not None:
                batches.quarantine.report = lambda step, text: tracker.event(step, "quarantine", text)
            train(
                state,
                batches,
                lambda wrapped, batch: _loss(wrapped, batch, state.model, config),
                schedule,
                seed=config.seed,
                ranks=ranks,
                tracker=tracker,
                callbacks=Callbacks(
                    evaluate=evaluator.evaluate,
                    evaluate_at=evaluator.at_steps,
                    checkpoints=checkpoints,
                    checkpoint_seconds=60 * config.checkpoint_minutes,
                    log_every=config.log_every,
                    recovery=config.recovery,
                    image_names=lambda indices: [source.pool.name(index) for index in indices.tolist()],
                    first_batch=_sheet_writer(config, state.model.preprocessing, folder.path)
                    if ranks.is_main
                    else None,
                ),
                precision=config.precision,
                clip_grad=config.clip_grad,
            )
        model = state.eval_model()
        if ranks.is_main:
            _save(model, config, source, init, schedule, state, ranks, done)
            _write_report(folder.path, source, labeled, state.seconds)
        checkpoints.remove()
        return read_result(folder.path, source, state.seconds)


def _sheet_writer(
    config: PretrainConfig, preprocessing: Preprocessing, folder: Path
) -> Callable[[Sequence[Batch]], None]:
    """Writes what the model sees of the first batch."""
    display, ends = Display(preprocessing.channel_names, config.shown), shown_ends(preprocessing)

    def draw(batch: Batch, place: int) -> Image.Image:
        values = sample_levels(batch.pixels[place], ends)
        return display.with_tiles(enlarged(display.image(values).convert("RGB")), values)

    def write(batches: Sequence[Batch]) -> None:
        logger.info("pretrain: the first batch, as augmented: %s", write_batch_sheet(batches, draw, folder))

    return write


def _loss(wrapped: nn.Module, batch: Batch, model: MaskedAutoencoder, config: PretrainConfig) -> torch.Tensor:
    """The masked loss; the noise of the global batch depends on (seed, step) alone, so that any split has the same masks."""
    generator = torch_stream(config.seed, "masks", batch.step)
    noise = torch.rand(config.batch_size, model.spec.num_patches, generator=generator)[slice(*batch.rows)]
    images = model.preprocessing.normalize(batch.pixels)
    noise = config.masking.arrange(noise, model.spec.grid).to(images.device)
    loss: torch.Tensor = wrapped(images, config.masking.ratio, noise, known_pixels(batch.pixels)).loss
    return loss


def _prepare(
    config: PretrainConfig,
    source: Source,
    init: InitWeights | None,
    preprocessing: Preprocessing | None,
    ranks: Ranks,
    folder: Path,
) -> tuple[State[MaskedAutoencoder], Batches, Schedule]:
    spec = preset_spec(
        config.model, image_size=config.image_size, patch_size=config.patch_size, channels=source.channels
    )
    if preprocessing is None and init is not None and config.statistics == "auto":
        preprocessing = init.preprocessing(source.channels, source.form)
    preprocessing = preprocessing or data_preprocessing(config, source)
    Display(preprocessing.channel_names, config.shown).positions(source.channels)  # an error now, not after hours
    with seeded_rng(config.seed, "weights"):
        model = build_autoencoder(
            spec,
            config.decoder,
            norm_pix_loss=config.norm_pix_loss,
            masks_in_encoder=config.masking.in_encoder,
            preprocessing=preprocessing,
        )
    if init is not None:
        for note in load_init_weights(model, init):
            logger.info("pretrain: %s: %s", config.init, note)
    model.to(ranks.device)
    average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
    unsharded = None
    if config.parallel == "fsdp" and ranks.world_size > 1:
        unsharded = copy.deepcopy(model)
        ranks.shard(model, model.all_blocks())
        if average is not None:
            ranks.shard(average.module, average.module.all_blocks())
    if config.activation_checkpointing:
        recompute_activations(model.all_blocks())
    if config.compile:
        compile_blocks(model.all_blocks())
    steps = config.steps(len(source.pool))
    warmup = 0.05 * config.epochs if config.warmup_epochs is None else config.warmup_epochs
    schedule = Schedule(steps, config.peak_lr, warmup=steps * warmup / config.epochs)
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=config.weight_decay,
        depth=spec.depth,
        layer_decay=config.layer_decay,
        no_decay=(),
    )
    optimizer = torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)
    batches = Batches(
        _sampler(config, source.pool),
        source.crops,
        draws=CROP_DRAWS,
        ranks=ranks,
        accumulate=auto_accumulate(model, config, ranks) if config.accumulate == "auto" else config.accumulate,
        workers=source.pool.default_workers() if config.workers is None else config.workers,
        crops_per_image=config.crops_per_image,
        quarantine=Quarantine(folder / "quarantine.csv", len(source.pool), source.pool.name, config.max_rejected),
    )
    return State(model, optimizer, average, unsharded), batches, schedule


def _sampler(config: PretrainConfig, pool: ImageSet) -> Sampler:
    """The order of the images."""
    images = config.batch_size // config.crops_per_image
    if config.mix is None or not isinstance(pool, ConcatImages):
        return Sampler(len(pool), images, config.seed)
    return MixedSampler(pool.groups(), config.mix, images, config.seed)


def _save(
    model: MaskedAutoencoder,
    config: PretrainConfig,
    source: Source,
    init: InitWeights | None,
    schedule: Schedule,
    state: State[MaskedAutoencoder],
    ranks: Ranks,
    path: Path,
) -> None:
    hours = state.seconds / 3600 * ranks.world_size
    on_gpu = ranks.device.type == "cuda"
    provenance = Provenance(
        method="masked autoencoder",
        config=public_config(_without_folders(config)),
        seed=config.seed,
        steps=schedule.steps,
        images_seen=schedule.steps * config.batch_size,
        cpu_hours=0.0 if on_gpu else round(hours, 6),
        gpu_hours=round(hours, 6) if on_gpu else 0.0,
        data_manifest=source.manifest.digest,
        parent=None if init is None else init.parent,
        licence=None if init is None else init.file.provenance.licence,
        tool_version=__version__,
    )
    encoder = model.encoder().cpu()
    # The encoder file marks a run as complete, so the decoder is written first.
    save_decoder(
        DecoderFile(
            state=model.decoder_state(),
            num_heads=model.decoder_spec.num_heads,
            norm_eps=model.spec.norm_eps,
            norm_pix_loss=model.norm_pix_loss,
            encoder=encoder_hash(encoder),
        ),
        path.with_name(DECODER_FILE),
    )
    save_encoder(encoder, path, provenance)


def _write_report(folder: Path, source: Source, labeled: ProbeImages | None, seconds: float | None = None) -> None:
    """Write the report of a finished run; ``seconds`` of training over all restarts, if known."""
    from .report import write_report  # it draws charts: a slow import that nothing else here needs

    write_report(folder, source, read_encoder(folder / ENCODER_FILE), labeled, seconds)


def _without_folders(config: PretrainConfig) -> dict[str, Any]:
    return {key: value for key, value in to_dict(config).items() if key not in ("data", "out", "launch", "slurm")}
