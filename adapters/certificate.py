"""The certificate: what was compared with the encoder, how well it agrees, and what failed."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError
from ..core.files import atomic_write_text
from ..core.optional_imports import installed_versions
from ..version import __version__

CERTIFICATE_FILE = "certificate.json"
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference of a feature, relative to the largest value at its level."""
INPUT_LIMIT = 1e-5
"""Largest difference of a prepared image, relative to its largest value; both sides normalise in float32."""


@dataclass(frozen=True)
class Keys:
    """How the tensors match: ``missing`` and ``unused`` map names to the reason that makes it right.

    ``used``: tensors that the framework's model holds, bit for bit; ``missing``: parameters of its own that the encoder
    has no counterpart for; ``unused``: the encoder's tensors that are not exported; ``wrong``: all that has no such reason.
    """

    used: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)


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
    """A step of a config's trial run: ``outcome`` is "passed", "failed" or "not run"."""

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
        """The certificate with the steps of a trial run; failed steps come after wrong settings of the config."""
        wrong = {f"{name}: {reason}" for name, reason in self.keys.wrong.items()}
        settings = tuple(failure for failure in self.failures if failure in wrong)
        failed = tuple(f"{step.name}: {step.detail}" for step in steps if step.outcome == "failed")
        others = tuple(failure for failure in self.failures if failure not in wrong)
        return replace(self, failures=(*settings, *failed, *others), steps=(*self.steps, *steps))

    def to_json(self) -> str:
        """The certificate as one JSON document."""
        limits = {dtype_name(dtype): limit for dtype, limit in LIMITS.items()} | {"input": INPUT_LIMIT}
        return json.dumps({"passed": self.passed, "limits": limits, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Certificate:
        """The certificate in a parsed document, its figures checked against the limits again.

        Raises CheckpointError for other documents, and for one that claims to have passed while its figures don't.
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
        missed = [failure for size in sizes for failure in failures_of(size)] + list(found.keys.wrong)
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
        """Raise CheckpointError with the first failure, and its consequence, unless the certificate passed."""
        if not self.passed:
            more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
            raise CheckpointError(
                f"the certificate for {self.framework} failed: {self.failures[0]}{more}.{consequence}"
            )


def failures_of(result: SizeResult) -> list[str]:
    where = f"at {result.image_size[0]}×{result.image_size[1]} pixels"
    failures = []
    if not result.input.relative <= INPUT_LIMIT:  # so that a NaN fails
        failures.append(
            f"{where} the prepared images differ by {result.input.largest:.1e} (channel order, value range, mean or "
            f"deviation; relative {result.input.relative:.1e}, limit {INPUT_LIMIT:.0e})"
        )
    for dtype, limit in LIMITS.items():
        for level in result.levels:
            found = level.differences.get(dtype_name(dtype))
            if found is not None and not found.relative <= limit:
                failures.append(
                    f"{where} {level.name} differs by {found.largest:.1e} in {dtype_name(dtype)} "
                    f"(relative {found.relative:.1e}, limit {limit:.0e})"
                )
    return failures


def _by_reason(entries: Mapping[str, str]) -> list[tuple[str, str]]:
    """(names, reason), the names of one reason together, one or two of them written out."""
    groups: dict[str, list[str]] = {}
    for name, reason in entries.items():
        groups.setdefault(reason, []).append(name)
    return [
        (", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more", reason)
        for reason, names in groups.items()
    ]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tool_versions(*distributions: str) -> dict[str, str]:
    """The versions of maelift, Python and the installed ones of these distributions, for a certificate."""
    found = installed_versions(*dict.fromkeys(distributions))
    return {"maelift": __version__, "python": platform.python_version(), **found}
