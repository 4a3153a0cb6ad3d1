"""What detectron2 calls images and tensors, and how it is imported without its warnings."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from ..core.models.preprocessing import Preprocessing
from ..core.optional_imports import require
from .bundle import detector_state

BACKBONE = "backbone.net."
"""The prefix of the ViT's parameters in a detector with a pyramid."""
FORMATS = {1: "L", 3: "RGB", 4: "RGBA"}
"""detectron2's names for images of so many channels, in the encoder's order; it reads no others."""


def image_format(preprocessing: Preprocessing) -> str | None:
    """detectron2's name for the encoder's images; None when it can't read them (other channel counts, not 8 bits)."""
    if preprocessing.value_range != (0.0, 255.0):
        return None
    if is_bgr(preprocessing):
        return "BGR"
    return FORMATS.get(len(preprocessing.mean))


def float32_numbers(values: Sequence[float]) -> list[float]:
    """The shortest decimals that are equal in float32, the precision that detectron2 uses."""
    return [float(str(np.float32(value))) for value in values]


def value_range_text(preprocessing: Preprocessing) -> str:
    return f"{preprocessing.value_range[0]:g} to {preprocessing.value_range[1]:g}"


def with_square_grid(encoder: Encoder, image_size: tuple[int, int]) -> Encoder:
    """The encoder with positions on a square grid, which detectron2 assumes: those of other grids are resized once."""
    rows, columns = encoder.spec.grid
    return encoder if rows == columns else encoder.resized(image_size)


def named_weights(encoder: Encoder, prefix: str = "") -> dict[str, Tensor]:
    """The tensors that detectron2's ViT has a place for, with ``prefix`` before their names."""
    return {prefix + name: tensor for name, tensor in detector_state(encoder).items()}


def load_framework() -> None:
    with quiet():
        require("detectron2")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence detectron2's warnings: of loading, as the certificate lists new tensors, and of deprecated calls in it."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "iopath", "torch.fx._symbolic_trace")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def all_close(given: Sequence[float], expected: Sequence[float]) -> bool:
    return len(given) == len(expected) and all(
        math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-3) for one, other in zip(given, expected, strict=True)
    )
