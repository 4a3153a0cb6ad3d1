"""Writes the map in CONTRIBUTING.md: the tree of the package with each file's first line. Run it after a file has moved."""

from __future__ import annotations

from maelift.tests.support import ROOT
from maelift.tests.test_layout import MODULES, first_line

TOP = ("core", "pretrain", "transfer", "adapters", "benchmarks")


def lines() -> list[str]:
    """The tree: files of the root first, then the folders in the order of their imports."""
    files = sorted(module for module in MODULES if "/" not in module and module != "__init__")
    found = [(0, name, first_line(ROOT / f"{name}.py")) for name in files]
    for folder in TOP:
        found += _folder(folder, 0)
    width = max(2 * depth + len(name) for depth, name, _ in found) + 2
    return [f"{'  ' * depth + name:<{width}}{text}" for depth, name, text in found]


def _folder(folder: str, depth: int) -> list[tuple[int, str, str]]:
    name = folder.rpartition("/")[2]
    found = [(depth, f"{name}/", first_line(ROOT / folder / "__init__.py"))]
    inside = sorted(module for module in MODULES if module.rpartition("/")[0] == folder)
    found += [
        (depth + 1, module.rpartition("/")[2], first_line(ROOT / f"{module}.py"))
        for module in inside
        if not module.endswith("/__init__")
    ]
    below = sorted({m.rpartition("/")[0] for m in MODULES if m.rpartition("/")[0].rpartition("/")[0] == folder})
    for other in below:
        found += _folder(other, depth + 1)
    return found


if __name__ == "__main__":
    path = ROOT / "CONTRIBUTING.md"
    text = path.read_text()
    start = text.index("```text\n", text.index("## The map\n")) + len("```text\n")
    path.write_text(text[:start] + "\n".join(lines()) + "\n" + text[text.index("```", start) :])
