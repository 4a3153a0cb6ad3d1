"""The certificate: a framework's backbone is shown to compute what our encoder computes, or is refused."""

from __future__ import annotations

import copy
import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.files import atomic_write_text
from ..core.models.encoder import Encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.optional_imports import versions
from ..core.seeding import stream
from ..version import __version__

CERTIFICATE_FILE = "certificate.json"
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference of a feature, relative to the largest value at its level."""
INPUT_LIMIT = 1e-5
"""Largest difference of a prepared image, relative to its largest value; both sides normalise in float32."""
PICTURES = 2

Pixels = NDArray[np.generic]


@dataclass(frozen=True)
class Level:
    """One output of a framework's backbone, in its own words, and what it is in ours.

    The tokens after ``block`` (from 0), ``normed`` by the final norm or not; ``prefix``: with the class token first;
    ``pooled``: the mean over the patch tokens in their place, as one token.
    """

    name: str
    block: int
    normed: bool = False
    prefix: bool = False
    pooled: bool = False


@dataclass(frozen=True)
class Keys:
    """What became of the tensors: ``missing`` and ``unused`` map names to the reason that makes it right.

    ``used``: tensors that the framework's model holds, bit for bit; ``missing``: parameters of its own that the encoder
    has nothing for; ``unused``: the encoder's tensors that stay behind; ``wrong``: all that has no such reason.
    """

    used: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A framework's backbone, with the weights as the framework itself loaded them, for images of one size.

    ``reference``: the encoder that it must equal. ``prepare``: pictures (H, W, C) of stored values, channels in the
    order of the encoder's contract, to the float32 input (B, C, H, W) that the framework's own reading and normalising
    gives. ``features``: such input, float32 or float64, to one tensor (B, N, D) a level, computed in the input's
    precision. ``class_token``: whether it takes part in attention. ``windows``: side of the attention windows, in
    patches, of the blocks that have them; the others attend to everything. ``from_stored``: for a model that normalises
    by itself, its features for the stored pictures; they take the place of ``features`` in float32.
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


@dataclass(frozen=True)
class Difference:
    """``largest`` absolute difference, and the same ``relative`` to the largest absolute value of ours."""

    largest: float
    relative: float


@dataclass(frozen=True)
class LevelResult:
    """The differences at one level, by precision ("float64", "float32")."""

    name: str
    block: int
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class SizeResult:
    """The differences for images of one size (height, width) in pixels; ``input``: of the prepared images.

    ``window``: patches a side of the attention windows that were on, 0 when every block attended everywhere.
    """

    image_size: tuple[int, int]
    window: int
    input: Difference
    levels: tuple[LevelResult, ...]


@dataclass(frozen=True)
class Step:
    """What was tried with a config, and what came of it: ``outcome`` is "passed", "failed" or "not run"."""

    name: str
    outcome: str
    detail: str


@dataclass(frozen=True)
class Certificate:
    """What was compared, what came out, and what is wrong; ``failures`` is empty when it passed.

    ``steps``: what else was tried with a user's config; none for exports and checkpoints.
    """

    framework: str
    encoder: str
    keys: Keys
    sizes: tuple[SizeResult, ...]
    failures: tuple[str, ...]
    versions: Mapping[str, str]
    steps: tuple[Step, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures

    def with_steps(self, steps: Sequence[Step]) -> Certificate:
        """The certificate with what was tried of its config; steps that failed come behind what the config says wrongly."""
        wrong = {f"{name}: {reason}" for name, reason in self.keys.wrong.items()}
        said = tuple(failure for failure in self.failures if failure in wrong)
        failed = tuple(f"{step.name}: {step.detail}" for step in steps if step.outcome == "failed")
        others = tuple(failure for failure in self.failures if failure not in wrong)
        return replace(self, failures=(*said, *failed, *others), steps=(*self.steps, *steps))

    def to_json(self) -> str:
        """The certificate as one JSON document."""
        limits = {_name(dtype): limit for dtype, limit in LIMITS.items()} | {"input": INPUT_LIMIT}
        return json.dumps({"passed": self.passed, "limits": limits, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Certificate:
        """The certificate in a parsed document, its figures held against the limits once more.

        Raises CheckpointError for a document that is none, or says that it passed where its figures don't.
        """
        try:
            sizes = tuple(
                SizeResult(
                    image_size=(int(size["image_size"][0]), int(size["image_size"][1])),
                    window=int(size["window"]),
                    input=Difference(**size["input"]),
                    levels=tuple(
                        LevelResult(
                            str(level["name"]),
                            int(level["block"]),
                            {str(name): Difference(**found) for name, found in level["differences"].items()},
                        )
                        for level in size["levels"]
                    ),
                )
                for size in content["sizes"]
            )
            keys = {name: content["keys"][name] for name in ("used", "missing", "unused", "wrong")}
            found = cls(
                framework=str(content["framework"]),
                encoder=str(content["encoder"]),
                keys=Keys(tuple(keys["used"]), dict(keys["missing"]), dict(keys["unused"]), dict(keys["wrong"])),
                sizes=sizes,
                failures=tuple(map(str, content["failures"])),
                versions=dict(content["versions"]),
                steps=tuple(Step(**{name: str(value) for name, value in step.items()}) for step in content["steps"]),
            )
            complete = bool(sizes) and all(
                size.levels and all(level.differences for level in size.levels) for size in sizes
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(f"no certificate: {type(error).__name__} in what should be one ({error}).") from error
        missed = [failure for size in sizes for failure in _failures(size)] + list(found.keys.wrong)
        missed += [step.name for step in found.steps if step.outcome == "failed"]
        if found.passed and (missed or not complete or not found.keys.used):
            raise CheckpointError(
                f"no certificate: it says that it passed, but {missed[0] if missed else 'compares nothing'}."
            )
        return found

    def line(self) -> str:
        """The certificate in one line."""
        if not self.passed:
            return f"certificate failed: {self.failures[0]}"
        worst = {
            name: max(level.differences[name].relative for size in self.sizes for level in size.levels)
            for name in self.sizes[0].levels[0].differences
        }
        parity = ", ".join(f"{value:.0e} in {name}" for name, value in worst.items())
        return (
            f"certificate passed: {len(self.keys.used)} tensors, {len(self.sizes)} image size"
            f"{'s' if len(self.sizes) > 1 else ''}, largest relative difference of features {parity}"
        )

    def text(self) -> str:
        """The certificate on one screen."""
        lines = [
            self.line(),
            f"  versions  {', '.join(f'{name} {version}' for name, version in self.versions.items())}",
        ]
        lines.append(f"  keys      {len(self.keys.used)} used")
        for label, entries in (
            ("left out", self.keys.unused),
            ("its own", self.keys.missing),
            ("WRONG", self.keys.wrong),
        ):
            lines.extend(f"  {label:<9} {names}: {reason}" for names, reason in _by_reason(entries))
        for size in self.sizes:
            windows = f", windows of {size.window} patches" if size.window else ""
            shape = f"{size.image_size[0]}×{size.image_size[1]}"
            lines.append(f"  {shape} pixels{windows}, prepared images {size.input.largest:.1e}")
            for level in size.levels:
                parts = [
                    f"{name} {found.largest:.1e} (relative {found.relative:.1e})"
                    for name, found in level.differences.items()
                ]
                lines.append(f"    {level.name:<24} {', '.join(parts)}")
        width = max((len(step.name) for step in self.steps), default=0)
        lines.extend(f"  {step.name:<{width}}  {step.outcome}: {step.detail}" for step in self.steps)
        lines.extend(f"  FAILED    {failure}" for failure in self.failures)
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write ``certificate.json`` into a folder."""
        atomic_write_text(folder / CERTIFICATE_FILE, self.to_json())

    def check(self, consequence: str = "") -> None:
        """Raise CheckpointError with what failed first, and what comes of it, unless the certificate passed."""
        if not self.passed:
            more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
            raise CheckpointError(
                f"the certificate for {self.framework} failed: {self.failures[0]}{more}.{consequence}"
            )


def certify(
    build: Callable[[tuple[int, int]], Candidate],
    sizes: Iterable[tuple[int, int]],
    *,
    framework: str,
    encoder: str,
    distributions: Sequence[str] = (),
) -> Certificate:
    """Compare the candidates that ``build`` gives with their encoders, on pictures of each size (height, width).

    ``encoder`` is the content hash of the encoder file; the versions of ``distributions`` are written down. In float32
    each side goes its whole way from the stored picture; in float64 both networks get the framework's prepared images,
    so that what is left is the difference of weights and arithmetic alone.
    """
    results, failures, keys = [], [], Keys(())
    for size in sizes:
        candidate = build(size)
        keys = candidate.keys
        result = _compare(candidate, size)
        results.append(result)
        failures += _failures(result)
        failures += [f"{name}: {reason}" for name, reason in keys.wrong.items() if f"{name}: {reason}" not in failures]
    return Certificate(
        framework=framework,
        encoder=encoder,
        keys=keys,
        sizes=tuple(results),
        failures=tuple(failures),
        versions={
            "maelift": __version__,
            "python": platform.python_version(),
            **versions(*dict.fromkeys((*distributions, "torch", "timm"))),
        },
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
    """Hold a framework's model, after it loaded the file, against the tensors that were ``written`` for it.

    ``written`` are in the framework's names, ``loaded`` is its model's state dict. ``unused`` (the encoder's names) and
    ``missing`` (the framework's) map regular expressions to the reason why a tensor stays behind or starts anew.
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


def pictures(size: tuple[int, int], channels: int, value_range: tuple[float, float] = (0.0, 255.0)) -> list[Pixels]:
    """Pictures (H, W, C) with structure and noise, each channel another; uint8 where ``value_range`` allows, else float32."""
    drawn: list[Pixels] = []
    for number in range(PICTURES):
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
    stored = pictures(size, reference.spec.channels, preprocessing.value_range)
    batch = torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        ours = preprocessing.normalize(batch)
        theirs = candidate.prepare(stored).float()
        found: dict[torch.dtype, list[Difference]] = {}
        for dtype in candidate.precisions:
            inputs = ours if dtype == torch.float32 else theirs.to(dtype)
            expected = reference_features(
                copy.deepcopy(reference).to(dtype),
                inputs,
                candidate.levels,
                class_token=candidate.class_token,
                windows=candidate.windows,
            )
            whole = candidate.from_stored if dtype == torch.float32 else None
            features = whole(stored) if whole else candidate.features(theirs.to(dtype))
            found[dtype] = [_difference(*pair) for pair in zip(features, expected, strict=True)]
        levels = tuple(
            LevelResult(level.name, level.block, {_name(dtype): row[number] for dtype, row in found.items()})
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


def _failures(result: SizeResult) -> list[str]:
    where = f"at {result.image_size[0]}×{result.image_size[1]} pixels"
    failures = []
    if not result.input.relative <= INPUT_LIMIT:  # so that a NaN fails
        failures.append(
            f"{where} the prepared images differ by {result.input.largest:.1e} (channel order, value range, mean or "
            f"deviation; relative {result.input.relative:.1e}, limit {INPUT_LIMIT:.0e})"
        )
    for dtype, limit in LIMITS.items():
        for level in result.levels:
            found = level.differences.get(_name(dtype))
            if found is not None and not found.relative <= limit:
                failures.append(
                    f"{where} {level.name} differs by {found.largest:.1e} in {_name(dtype)} "
                    f"(relative {found.relative:.1e}, limit {limit:.0e})"
                )
    return failures


def reason_for(name: str, reasons: Mapping[str, str]) -> str:
    """The reason of the first pattern that fits a whole name, "" if none does."""
    return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, name)), "")


def _by_reason(entries: Mapping[str, str]) -> list[tuple[str, str]]:
    """(names, reason), the names of one reason together, one or two of them written out."""
    groups: dict[str, list[str]] = {}
    for name, reason in entries.items():
        groups.setdefault(reason, []).append(name)
    return [
        (", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more", reason)
        for reason, names in groups.items()
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tokens_of(features: Any) -> Tensor:
    """A map of features (B, D, H, W) as tokens (B, H * W, D)."""
    return features.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
