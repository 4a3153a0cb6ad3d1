"""Compares a framework's backbone, or a graph, with the encoder: tensor by tensor, feature by feature."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.models.encoder import Encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.seeding import stream
from .certificate import Certificate, Difference, Keys, LevelResult, SizeResult, dtype_name, failures_of, tool_versions

IMAGES = 2

Pixels = NDArray[np.generic]


@dataclass(frozen=True)
class Level:
    """One output of a framework's backbone: its name there, and what it is in the encoder.

    The tokens after ``block`` (from 0), ``normed`` by the final norm or not; ``prefix``: with the class token first;
    ``pooled``: the mean over the patch tokens in their place, as one token.
    """

    name: str
    block: int
    normed: bool = False
    prefix: bool = False
    pooled: bool = False


@dataclass(frozen=True)
class Candidate:
    """A framework's backbone, with the weights as the framework itself loaded them, for images of one size.

    ``reference``: the encoder that it must equal. ``prepare``: images (H, W, C) of stored values, channels in the
    order of the encoder's contract, to the float32 input (B, C, H, W) that the framework's own reading and normalising
    gives. ``features``: such input, float32 or float64, to one tensor (B, N, D) a level, computed in the input's
    precision. ``class_token``: whether it takes part in attention. ``windows``: side of the attention windows, in
    patches, of the blocks that have them; the others attend to everything. ``from_stored``: for a model that normalises
    by itself, its features for the stored images; they take the place of ``features`` in float32.
    """

    reference: Encoder
    levels: tuple[Level, ...]
    keys: Keys
    prepare: Callable[[Sequence[Pixels]], Tensor]
    features: Callable[[Tensor], Sequence[Tensor]]
    class_token: bool = True
    windows: Mapping[int, int] = field(default_factory=dict)
    precisions: tuple[torch.dtype, ...] = (torch.float64, torch.float32)
    from_stored: Callable[[Sequence[Pixels]], Sequence[Tensor]] | None = None


def measure_parity(
    build: Callable[[tuple[int, int]], Candidate],
    sizes: Iterable[tuple[int, int]],
    *,
    framework: str,
    encoder: str,
    distributions: Sequence[str] = (),
) -> Certificate:
    """Compare the candidates that ``build`` gives with their encoders, on sample images of each size (height, width).

    ``encoder`` is the content hash of the encoder file; the versions of ``distributions`` are written down. In float32
    each side starts from the stored image; in float64 both networks get the framework's prepared images,
    so that what is left is the difference of weights and arithmetic alone.
    """
    results, failures, keys = [], [], Keys(())
    for size in sizes:
        candidate = build(size)
        keys = candidate.keys
        result = _compare(candidate, size)
        results.append(result)
        failures += failures_of(result)
        failures += [f"{name}: {reason}" for name, reason in keys.wrong.items() if f"{name}: {reason}" not in failures]
    return Certificate(
        framework=framework,
        encoder=encoder,
        keys=keys,
        sizes=tuple(results),
        failures=tuple(failures),
        versions=tool_versions(*distributions, "torch", "timm"),
    )


def certificate_sizes(spec: EncoderSpec, window: int = 0) -> list[tuple[int, int]]:
    """The trained size, a smaller one and one that isn't square, in pixels; and one that windows of this side tile.

    A smaller one, since antialiasing shows only when positions are resized to fewer than there were.
    """
    rows, columns = spec.grid
    grids = [
        (rows, columns),
        (max(1, round(rows * 0.7)), max(1, round(columns * 0.7))),
        (max(1, round(rows * 0.6)), round(columns * 1.3) + 1),
    ]
    if window:
        grids.append((window, 2 * window))
    return [(high * spec.patch_size, wide * spec.patch_size) for high, wide in dict.fromkeys(grids)]


def tiled(image_size: tuple[int, int], patch_size: int, window: int) -> bool:
    """Whether windows of so many patches a side fill images of this size; elsewhere they are compared switched off."""
    return window > 0 and all(side % (patch_size * window) == 0 for side in image_size)


def compare_keys(
    encoder: Encoder,
    written: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    *,
    unused: Mapping[str, str],
    missing: Mapping[str, str],
) -> Keys:
    """Compare a framework's model, after it loaded the file, with the tensors that were ``written`` for it.

    ``written`` are in the framework's names, ``loaded`` is its model's state dict. ``unused`` (the encoder's names) and
    ``missing`` (the framework's) map regular expressions to the reason why a tensor is not exported or is newly initialised.
    """
    wrong: dict[str, str] = {}
    used = []
    for name, tensor in written.items():
        if name not in loaded:
            wrong[name] = "was written, but the framework's model has no such parameter"
        elif loaded[name].shape != tensor.shape:
            wrong[name] = f"shape {tuple(loaded[name].shape)}, expected {tuple(tensor.shape)}"
        elif not torch.equal(loaded[name].cpu().to(tensor.dtype), tensor.cpu()):
            wrong[name] = "the framework's model holds other values than the file"
        else:
            used.append(name)
    new = {name: reason_for(name, missing) for name in loaded if name not in written}
    wrong |= {name: "in the framework's model, but not in the file" for name, reason in new.items() if not reason}
    left = {name: reason for name in encoder.state_dict() if (reason := reason_for(name, unused))}
    return Keys(tuple(used), {name: reason for name, reason in new.items() if reason}, left, wrong)


def sample_images(
    size: tuple[int, int], channels: int, value_range: tuple[float, float] = (0.0, 255.0)
) -> list[Pixels]:
    """Images (H, W, C) with structure and noise, channels differing; uint8 where ``value_range`` allows, else float32."""
    drawn: list[Pixels] = []
    for number in range(IMAGES):
        generator = stream(0, "certificate", *size, channels, number)
        coarse = torch.from_numpy(generator.uniform(0, 1, (1, channels, 5, 5)))
        smooth = nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
        values = np.clip(smooth.numpy() + generator.normal(0, 0.05, smooth.shape), 0, 1)
        low, high = value_range
        stored = np.round(low + values * (high - low))
        drawn.append(stored.astype(np.uint8 if low >= 0 and high <= 255 else np.float32))
    return drawn


def reference_features(
    encoder: Encoder,
    images: Tensor,
    levels: Sequence[Level],
    *,
    class_token: bool = True,
    windows: Mapping[int, int] | None = None,
) -> list[Tensor]:
    """Our encoder's tokens for prepared images (B, C, H, W), one tensor (B, N, D) a level.

    Without ``class_token`` it takes no part, as in plain backbones of detectors (ViTDet, Sec. 3); blocks in ``windows``
    attend within squares of so many patches a side, which must divide the grid.
    """
    grid = encoder.check_input(images)
    tokens = encoder.embed(images)
    if class_token:
        tokens = encoder.prepend_class_token(tokens)
    after: list[Tensor] = []
    for number, block in enumerate(encoder.blocks):
        window = (windows or {}).get(number, 0)
        tokens = _in_windows(block, tokens, grid, window) if window else block(tokens)
        after.append(tokens)
    prefix = tokens.shape[1] - grid[0] * grid[1]
    features = []
    for level in levels:
        found = encoder.norm(after[level.block]) if level.normed else after[level.block]
        found = found if level.prefix else found[:, prefix:]
        features.append(found.mean(dim=1, keepdim=True) if level.pooled else found)
    return features


def _in_windows(block: nn.Module, tokens: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """A block on each window by itself: all but attention works on single tokens, so this is window attention."""
    rows, columns = grid[0] // window, grid[1] // window
    cut = tokens.reshape(-1, rows, window, columns, window, tokens.shape[-1]).transpose(2, 3)
    done = block(cut.reshape(-1, window**2, tokens.shape[-1]))
    return done.reshape(cut.shape).transpose(2, 3).reshape(tokens.shape)  # type: ignore[no-any-return]


def _compare(candidate: Candidate, size: tuple[int, int]) -> SizeResult:
    reference = candidate.reference.eval()
    preprocessing = reference.preprocessing
    stored = sample_images(size, reference.spec.channels, preprocessing.value_range)
    batch = torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        ours = preprocessing.normalize(batch)
        theirs = candidate.prepare(stored).float()
        found: dict[torch.dtype, list[Difference]] = {}
        for dtype in candidate.precisions:
            inputs = ours if dtype == torch.float32 else theirs.to(dtype)
            same = reference.pos_embed.dtype == dtype
            expected = reference_features(
                reference if same else copy.deepcopy(reference).to(dtype),
                inputs,
                candidate.levels,
                class_token=candidate.class_token,
                windows=candidate.windows,
            )
            from_stored = candidate.from_stored if dtype == torch.float32 else None
            features = from_stored(stored) if from_stored else candidate.features(theirs.to(dtype))
            found[dtype] = [_difference(*pair) for pair in zip(features, expected, strict=True)]
        levels = tuple(
            LevelResult(level.name, level.block, {dtype_name(dtype): row[number] for dtype, row in found.items()})
            for number, level in enumerate(candidate.levels)
        )
        return SizeResult(size, max(candidate.windows.values(), default=0), _difference(theirs, ours), levels)


def _difference(theirs: Tensor, ours: Tensor) -> Difference:
    if theirs.shape != ours.shape:
        raise CheckpointError(
            f"the framework gives features of shape {tuple(theirs.shape)}, the encoder {tuple(ours.shape)}: they are not of "
            "one shape of encoder, or not for one size of image."
        )
    largest = (theirs.double() - ours.double()).abs().max().item()
    return Difference(largest, largest / max(ours.double().abs().max().item(), 1e-30))


def reason_for(name: str, reasons: Mapping[str, str]) -> str:
    """The reason of the first pattern that matches a full name, "" if none does."""
    return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, name)), "")


def tokens_of(features: Tensor) -> Tensor:
    """A map of features (B, D, H, W) as tokens (B, H * W, D)."""
    return features.flatten(2).transpose(1, 2)
