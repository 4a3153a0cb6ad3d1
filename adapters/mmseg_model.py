"""mmseg's configs as models: read, built and initialised as its Runner does, with weights read safely."""

from __future__ import annotations

import copy
import importlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from ..core.errors import CheckpointError, MaeliftError
from ..core.models.encoder import Encoder
from ..core.optional_imports import require
from .checkpoints import local_file, read_checkpoint

BACKBONES = ("MAE", "MaeliftViT")

EXPECTED_BACKBONES = "Expected mmseg's MAE, or MaeliftViT (docs/mmseg.md)."


def load_framework() -> None:
    """Import all of mmseg that is used; raises MaeliftError where that can't be."""
    with quiet():
        require("mmseg")
        importlib.import_module("mmseg.datasets")


def read_config(path: Path, opts: Sequence[str] = ()) -> Any:
    """An mmengine config, changed by words "key=value"; raises CheckpointError when it can't be read."""
    import argparse

    from mmengine.config import Config, DictAction
    from mmengine.registry import init_default_scope

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Expected a config of mmsegmentation.")
    with one_line_errors(path, "can't be read"):
        config = Config.fromfile(str(path))
        if opts:
            parser = argparse.ArgumentParser(exit_on_error=False)
            parser.add_argument("--cfg-options", nargs="+", action=DictAction)
            config.merge_from_dict(parser.parse_args(["--cfg-options", *opts]).cfg_options)
    init_default_scope(config.get("default_scope") or "mmseg")
    return config


def build_backbone(settings: Any) -> Any:
    """The backbone of a config, with its own initialisation done."""
    from mmseg.registry import MODELS

    with quiet(), safe_weights({"model": {"backbone": settings}}):
        backbone = MODELS.build(settings)
        backbone.init_weights()
    return backbone


def build_model(config: Any, path: Path) -> Any:
    """The full model of a config as mmengine's Runner starts with it: initialised, then ``load_from``."""
    from mmengine.runner import load_checkpoint
    from mmseg.registry import MODELS

    kind = config.model.get("backbone", {}).get("type")
    if kind in MODELS.module_dict and kind not in BACKBONES:  # before it loads anything
        raise CheckpointError(f"{path}: its backbone is {kind}. {EXPECTED_BACKBONES}")
    with one_line_errors(path, "does not build"), quiet(), safe_weights(config.to_dict()):
        model = MODELS.build(copy.deepcopy(config.model))
        model.init_weights()
        if config.get("load_from"):
            load_checkpoint(model, config.load_from, map_location="cpu")
    return model


@contextmanager
def safe_weights(config: Any) -> Iterator[None]:
    """Replace mmengine's checkpoint loader by our own: mmengine's runs pickles, and downloads URLs."""
    from mmengine.runner.checkpoint import CheckpointLoader

    def load(filename: str, map_location: object = None, logger: object = None) -> Mapping[str, object]:
        key = next(keys_of(config, filename), "checkpoint")
        return dict(read_checkpoint(local_file(str(filename), key=key), key=key))

    with mock.patch.object(CheckpointLoader, "load_checkpoint", load):
        yield


def keys_of(settings: Any, value: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a config that have this value."""
    entries: list[tuple[Any, Any]] = list(settings.items() if isinstance(settings, Mapping) else enumerate(settings))
    for key, entry in entries:
        if isinstance(entry, str) and entry == value:
            yield f"{prefix}{key}"
        elif isinstance(entry, Mapping | list | tuple):
            yield from keys_of(entry, value, f"{prefix}{key}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what mmengine prints of each file that it loads."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def one_line_errors(path: Path, what: str) -> Iterator[None]:
    """Report any error of a user's config in one line."""
    try:
        yield
    except MaeliftError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: {what} ({reason}).") from error


def check_shape(path: Path, backbone: Any, encoder: Encoder) -> None:
    """Raise CheckpointError unless a backbone, MAE or ``MaeliftViT``, has the encoder's shape."""
    spec = encoder.spec
    pairs = {
        "embed_dims": spec.embed_dim,
        "embed_dim": spec.embed_dim,
        "num_layers": spec.depth,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "in_channels": spec.channels,
        "mlp_ratio": spec.mlp_ratio,
    }
    found = {key: getattr(backbone, key) for key in pairs if hasattr(backbone, key)}
    wrong = [f"{key}={value}, expected {pairs[key]}" for key, value in found.items() if value != pairs[key]]
    if wrong:
        raise CheckpointError(f"{path}: its backbone has another shape than the encoder: {'; '.join(wrong)}.")
