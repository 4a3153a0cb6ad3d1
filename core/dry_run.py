"""The plan that ``--dry-run`` prints: what a command would do, its time and its memory."""

from __future__ import annotations

from dataclasses import dataclass

from .notebook import facts_table


@dataclass(frozen=True)
class Plan:
    """The plan of a command: ``lines`` are (label, text); seconds and bytes of memory are rough estimates."""

    lines: tuple[tuple[str, str], ...]
    parameters: int | None = None
    steps: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None

    def rows(self) -> list[tuple[str, str]]:
        """The lines with the estimates, as (label, text)."""
        rows = list(self.lines)
        if self.parameters is not None:
            rows.append(("parameters", f"{self.parameters:,}"))
        if self.steps is not None:
            rows.append(("steps", f"{self.steps:,}"))
        if self.seconds is not None:
            hours, rest = divmod(round(self.seconds), 3600)
            minutes, seconds = divmod(rest, 60)
            rows.append(("time, estimated", f"{hours} h {minutes:02d} min {seconds:02d} s on this machine"))
        if self.memory_bytes is not None:
            rows.append(("memory, estimated", f"{self.memory_bytes / 2**30:.2f} GiB on the device"))
        return rows

    def text(self) -> str:
        """The plan as aligned lines."""
        rows = self.rows()
        width = max((len(label) for label, _ in rows), default=0)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    def _repr_html_(self) -> str:
        return facts_table("Plan", self.rows())
