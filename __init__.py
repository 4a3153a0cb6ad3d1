"""maelift: pretrain a masked autoencoder on your own images, use its encoder, and learn whether it helps.

The functions take the keys of the commands of the same name: ``maelift.pretrain(data="photos", out="run")``,
``maelift.transfer("classify", encoder=..., data=..., out=...)``, ``maelift.bench("quickstart", out="runs/quickstart")``,
``maelift.export("encoder.safetensors", to="detectron2", out="detector")``,
``maelift.embed(encoder="encoder.safetensors", images="photos", out="features.parquet")``.
Nested keys are mappings: ``masking={"ratio": 0.6}``. They return results and print nothing; progress goes to stderr.
What a user can fix is a ``MaeliftError``: ``ConfigError`` for a key, ``DataError`` for images, ``CheckpointError`` for weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .version import __version__

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Encoder",
    "EncoderSpec",
    "MaeliftError",
    "__version__",
    "bench",
    "embed",
    "export",
    "load_encoder",
    "load_model",
    "pretrain",
    "reconstruct",
    "transfer",
]

if TYPE_CHECKING:
    from .api import bench, embed, export, pretrain, reconstruct, transfer
    from .core.errors import CheckpointError, ConfigError, DataError, MaeliftError
    from .core.models.encoder import Encoder
    from .core.models.encoder_file import load_encoder
    from .core.models.encoder_spec import EncoderSpec
    from .transfer.trained_model import load_model

_HOMES = {
    **dict.fromkeys(("MaeliftError", "ConfigError", "DataError", "CheckpointError"), "core.errors"),
    "Encoder": "core.models.encoder",
    "EncoderSpec": "core.models.encoder",
    "load_encoder": "core.models.encoder_file",
    "load_model": "transfer.trained_model",
    "bench": "api",
    "embed": "api",
    "export": "api",
    "reconstruct": "api",
}


def __getattr__(name: str) -> object:
    """Import the public names when they are first used: ``import maelift`` alone stays fast."""
    import importlib

    if name in ("pretrain", "transfer"):
        return importlib.import_module(f".{name}", __name__)  # packages that can be called: see callable_package.py
    if _HOMES.get(name) == "api":
        return importlib.import_module(".api", __name__).function(name)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
