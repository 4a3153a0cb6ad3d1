"""The result of ``maelift data check``: what a data set holds, its issues by kind, as a summary and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.issues import DataIssue
from ..data.near_duplicate_depth import KINDS, Depth
from ..terminal import printable
from .check_unlabelled import fact_lines

MAX_EXAMPLES = 5
"""Findings of one kind that the summary shows."""
MAX_CLASSES = 20
"""Classes that the summary shows."""
SEARCHED: Mapping[Depth, str] = {
    "crops": f"searched for ({KINDS}, cropped)",
    "uncropped": f"searched for ({KINDS}); not cropped ones: near=full",
    "none": "not searched for; near=full does",
}
"""What the summary says of the search for near-duplicates."""


@dataclass(frozen=True)
class SplitContent:
    """What a split holds for a task: ``classes`` are (name, count) of objects or of images that show it, by ``unit``."""

    task: str
    split: str
    images: int
    objects: int | None
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    """the smallest and the largest (height, width) by area"""
    classes: tuple[tuple[str, int], ...]
    unit: Literal["images", "objects"] = "images"


@dataclass(frozen=True)
class Finding:
    """All issues of one kind, each in a line; ``rule`` says how they are handled, None for those that must be fixed."""

    kind: str
    rule: str | None
    texts: tuple[str, ...]


@dataclass(frozen=True)
class DataCheck:
    """What a data set holds and what is wrong in it. ``near``: which near-duplicates were searched for."""

    data: str
    splits: tuple[SplitContent, ...]
    findings: tuple[Finding, ...]
    near: Depth
    report: Path | None
    facts: tuple[tuple[str, str], ...] = ()
    """what the images to pretrain on are like, in lines of (what, value)"""
    unread: tuple[str, ...] = ()
    """files in the data set that aren't read, in lines"""

    @property
    def error(self) -> str | None:
        """What makes the data set unsound, in a line; None where it is sound."""
        serious = [finding for finding in self.findings if finding.rule is None]
        if not serious:
            return None
        count = sum(len(finding.texts) for finding in serious)
        listed = ", ".join(f"{len(finding.texts):,} × {finding.kind}" for finding in serious)
        where = f"All are in {self.report}." if self.report else "out=FILE.json writes all of them."
        return f"data={self.data}: {count:,} issue{'s' if count > 1 else ''} ({listed}). {where}"

    def summary(self) -> str:
        """What is there, and what was found, in lines."""
        lines = [line for task in dict.fromkeys(split.task for split in self.splits) for line in self._task_lines(task)]
        lines += fact_lines(self.facts) if self.facts else ()
        lines += (f"  {printable(text)}" for text in self.unread)
        for finding in self.findings:
            what = f"by rule: {finding.rule}" if finding.rule else "must be fixed"
            lines += ["", f"{finding.kind}: {len(finding.texts):,} ({what})"]
            lines += [f"  {printable(text)}" for text in finding.texts[:MAX_EXAMPLES]]
            if len(finding.texts) > MAX_EXAMPLES:
                lines.append(f"  ... and {len(finding.texts) - MAX_EXAMPLES:,} more")
        lines.append("")
        lines.append(f"near-duplicates: {SEARCHED[self.near]}")
        lines.append("nothing is wrong" if not self.findings else "sound" if self.error is None else "not sound")
        return "\n".join(lines)

    def _task_lines(self, task: str) -> Iterator[str]:
        """A task's splits, and a table of its classes."""
        splits = [split for split in self.splits if split.task == task]
        yield f"{task}:"
        for split in splits:
            objects = "" if split.objects is None else f", {split.objects:,} objects"
            yield f"  {split.split:<5}  {split.images:,} images{_sizes_text(split.sizes)}{objects}"
        counts = [dict(split.classes) for split in splits]
        if not any(counts):
            return
        names = list(dict.fromkeys(name for found in counts for name in found))
        width = max((len(name) for name in names), default=0)
        yield f"  {splits[0].unit + ' of':<{width}}  " + "  ".join(f"{split.split:>7}" for split in splits)
        for name in names[:MAX_CLASSES]:
            yield f"  {name:<{width}}  " + "  ".join(f"{found.get(name, 0):>7,}" for found in counts)
        if len(names) > MAX_CLASSES:
            yield f"  ... and {len(names) - MAX_CLASSES} more classes"

    def to_json(self) -> dict[str, Any]:
        """All of it, as the report file holds it."""
        return {
            "data": self.data,
            "sound": self.error is None,
            "near": self.near,
            "facts": dict(self.facts),
            "unread": list(self.unread),
            "splits": [
                {
                    "task": split.task,
                    "split": split.split,
                    "images": split.images,
                    "objects": split.objects,
                    "classes": dict(split.classes),
                }
                for split in self.splits
            ],
            "findings": [
                {"kind": finding.kind, "rule": finding.rule, "count": len(finding.texts), "found": list(finding.texts)}
                for finding in self.findings
            ],
        }


def group_by_kind(issues: Sequence[DataIssue], rules: Mapping[str, str]) -> tuple[Finding, ...]:
    """The issues by kind, those first that no rule handles."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for issue in issues:
        texts[issue.kind][issue.text()] = None
    kinds = sorted(texts, key=lambda kind: kind in rules)
    return tuple(Finding(kind, rules.get(kind), tuple(texts[kind])) for kind in kinds)


def _sizes_text(sizes: tuple[tuple[int, int], tuple[int, int]] | None) -> str:
    if sizes is None:
        return ""
    small, large = (f"{width}×{height}" for height, width in sizes)
    return f" of {small} px" if small == large else f" from {small} to {large} px"
