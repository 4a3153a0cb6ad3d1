"""The sizes of a detector on a plain ViT, as ViTDet chooses them: image side, attention windows, global blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.models.encoder import Encoder
from ..core.models.encoder_spec import check_divisible


@dataclass(frozen=True)
class DetectorShape:
    """The sizes of a detector on a plain ViT, computed once in an export and passed on.

    ``scales``: what the pyramid multiplies the ViT's resolution by, the finest level first; ``size``: (height, width) in
    pixels that images are resized to; ``window``: patches a side of the attention windows, 0 for none.
    """

    scales: tuple[float, ...]
    size: tuple[int, int]
    window: int


def detector_shape(
    encoder: Encoder, image_size: int | tuple[int, int] | None, window_size: int | None
) -> DetectorShape:
    """The shape for an encoder's patches; None stands for ViTDet's choice. Raises ConfigError for sizes that don't fit."""
    from .simple_feature_pyramid import pyramid_scales

    patch = encoder.spec.patch_size
    chosen = image_size or usual_image_side(encoder)
    size = (chosen, chosen) if isinstance(chosen, int) else chosen
    window = usual_window((size[0] // patch, size[1] // patch)) if window_size is None else window_size
    check_window(window, size, patch)
    return DetectorShape(pyramid_scales(patch), size, window)


def detectron2_shape(encoder: Encoder, image_size: int | None, window_size: int | None) -> DetectorShape:
    """``detector_shape`` for detectron2: square images, no windows where every block is global, strides that it has.

    Raises ConfigError for patches that detectron2 has no levels for, and for sizes that the coarsest level doesn't divide.
    """
    scales = power_of_two_scales(encoder.spec.patch_size)
    side = image_size or usual_image_side(encoder)
    without = window_size is None and not windowed_blocks(encoder.spec.depth)
    shape = detector_shape(encoder, side, 0 if without else window_size)
    coarsest = int(encoder.spec.patch_size / scales[-1])
    if side % coarsest:
        multiple = math.lcm(coarsest, encoder.spec.patch_size * max(1, shape.window))
        below, above = fitting_sizes(side, multiple)
        raise ConfigError(
            "image_size",
            side,
            f"a multiple of {multiple}, since the pyramid's coarsest level has a stride of {coarsest} pixels",
            f"The nearest are {below} and {above}.",
        )
    return shape


def power_of_two_scales(patch_size: int) -> tuple[float, ...]:
    """The pyramid's scales; raises ConfigError for patches that detectron2 has no levels for.

    It numbers levels by the power of two that is their stride, and its ROIPooler takes no other.
    """
    from .simple_feature_pyramid import pyramid_scales

    if patch_size & (patch_size - 1):
        nearest = 2 ** round(math.log2(patch_size))
        raise ConfigError(
            "patch_size",
            patch_size,
            "a power of two, as detectron2's pyramid needs",
            f"Have the patch kernel resampled: patch_size={nearest}.",
        )
    return pyramid_scales(patch_size)


def usual_image_side(encoder: Encoder) -> int:
    """The side of a detector's images for this patch: 64 patches, ViTDet's 1024 pixels for a patch of 16."""
    return 64 * encoder.spec.patch_size


def usual_window(grid: tuple[int, int]) -> int:
    """The window that divides the grid and is nearest to ViTDet's 14 patches; 0, no windows, for grids up to 16.

    ViTDet's own 14 does not divide its grid of 64: there, windows at the border are filled up with zeros.
    """
    sides = math.gcd(*grid)
    fitting = [window for window in range(4, 33) if sides % window == 0]
    if max(grid) <= 16 or not fitting:
        return 0
    return min(fitting, key=lambda window: abs(window - 14))


def check_window(window: int, image_size: tuple[int, int], patch_size: int) -> None:
    """Raise ConfigError unless windows of so many patches a side tile images of ``image_size``, naming those that do."""
    if window < 0:
        raise ConfigError("window_size", window, "a number of patches a side, or 0 for attention everywhere")
    if window == 0:
        check_divisible(image_size, patch_size)
    multiple = patch_size * max(1, window)
    if all(side % multiple == 0 for side in image_size):
        return
    below, above = ([fitting_sizes(side, multiple)[which] for side in image_size] for which in (0, 1))
    raise ConfigError(
        "image_size",
        list(image_size),
        f"multiples of {multiple}, a window of {window} patches of {patch_size} pixels",
        f"The nearest are [{below[0]},{below[1]}] and [{above[0]},{above[1]}]; or choose another window_size.",
    )


def usual_global_blocks(depth: int) -> tuple[int, ...]:
    """The blocks that attend everywhere: the last of each quarter (ViTDet, Sec. 3)."""
    return tuple(sorted({-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}))


def fitting_sizes(side: int, multiple: int) -> tuple[int, int]:
    """The multiples of ``multiple`` just below (at least one) and above ``side``, in pixels."""
    below = max(1, side // multiple) * multiple
    return below, below + multiple


def windowed_blocks(depth: int) -> list[int]:
    """The blocks that attend in windows: all but the last of each quarter."""
    return [block for block in range(depth) if block not in usual_global_blocks(depth)]
