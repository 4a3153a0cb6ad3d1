"""``maelift pretrain`` before torch is imported: its keys, its images, and a run that is complete already."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import raw_value, resolve
from ..core.data.images import ImageSet
from ..core.data.sources import find_sources
from ..core.files import output_folder
from ..core.models.stored_contract import ENCODER_FILE
from ..core.processes import OneProcess
from ..core.slurm import SubmittedJob, submit
from ..core.training.run_dir import RunFolder
from ..core.yaml_files import to_dict
from .config import AUTO, PretrainConfig
from .data import check_split, read_source
from .result import REPORT_FILE, PretrainResult, finished_result

if TYPE_CHECKING:
    from ..core.dry_run import Plan

logger = logging.getLogger("maelift")


def resolve_config(
    overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None, images: ImageSet | None = None
) -> PretrainConfig:
    """The configuration of a user's overrides and file; with recipe=auto what is given, and for the rest what fits.

    ``images`` replace those in ``data``. Raises ConfigError and, for images that can't be read, DataError.
    """
    if raw_value("recipe", overrides, file) != AUTO:
        return PretrainConfig.resolve(overrides, file)
    from .auto_recipe import resolve_auto

    return resolve_auto(overrides, file, images)


def plan(config: PretrainConfig) -> Plan:
    """What ``pretrain`` would do and roughly cost; writes nothing and opens only a few images."""
    images = _found_images(config)
    from . import dry_run

    return dry_run.plan(config, images)


def pretrain_or_submit(config: PretrainConfig) -> PretrainResult | SubmittedJob:
    """The command: pretraining here, or with launch=slurm a SLURM job; a complete run's result without importing torch."""
    if config.launch == "here":
        return _pretrain(config)
    _found_images(config)  # a mistake in them is said before the job waits
    keys = {
        **to_dict(config),
        "launch": "here",
        "data": _resolved(config.data),
        "out": str(Path(config.out).resolve()),
    }
    return submit(_pretrain_keys, keys, config.slurm, config.out, "maelift-pretrain")


def _found_images(config: PretrainConfig, reindex: bool = False) -> ImageSet:
    """The images of ``data``; raises DataError where they don't suffice for the processes that would train."""
    images = find_sources(config.data, reindex, config.slices)
    check_split(config, len(images), config.slurm.processes if config.launch == "slurm" else 1)
    logger.info(
        "pretrain: %s images found in %s", f"{len(images):,}", config.sources
    )  # the first words, while torch loads
    return images


def _pretrain(config: PretrainConfig) -> PretrainResult:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the processes look for images together
        from .train import pretrain

        return pretrain(config)
    images = _found_images(config, config.reindex)
    found = _complete_before(config, images)
    if found is not None:
        return found
    from .train import pretrain

    return pretrain(config, images=images)


def _complete_before(config: PretrainConfig, images: ImageSet) -> PretrainResult | None:
    """The result of a run that is complete and needs nothing more; None where training, or torch, has something to do.

    Raises MaeliftError where the run in ``out`` is one of another configuration or of other images.
    """
    path = Path(config.out)
    whole = (path / ENCODER_FILE).is_file() and (path / REPORT_FILE).is_file() and not (path / "checkpoints").exists()
    if not whole or config.init is not None:  # initial weights are compared by their content
        return None
    ranks = OneProcess()
    with RunFolder.open(output_folder(config.out), config, ranks) as folder:
        source = read_source(config, images, folder.path, ranks)
        folder.check_data(source.manifest.digest, ranks)
        return finished_result(folder.path, source)


def _resolved(data: str | tuple[str, ...]) -> str | list[str]:
    """Sources by absolute paths: a job may start in another folder."""
    return str(Path(data).absolute()) if isinstance(data, str) else [str(Path(part).absolute()) for part in data]


def _pretrain_keys(keys: Mapping[str, Any]) -> PretrainResult:
    """What each process of a SLURM job does."""
    return _pretrain(resolve(PretrainConfig, keys))
