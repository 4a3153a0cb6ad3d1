"""The house: imports run one way, CONTRIBUTING's map is true, files are short, and words are the field's."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from maelift.tests.support import ROOT

ORDER = (
    ("version", "core/errors"),
    ("core",),
    ("core/report",),
    ("core/data",),
    ("core/models",),
    ("core/training",),
    ("core/tools",),
    ("adapters",),
    ("pretrain",),
    ("transfer",),
    ("benchmarks",),
    ("callable_package", "api_keys", "commands", "key_table", "cli_help", "completion"),
    ("cli",),
    ("api",),
    ("__init__", "__main__"),
)
"""The folders from the lowest up, and files that stand apart from theirs: a file imports from its own place or from below."""

FROM_THE_ROOT = {"pretrain/__init__": {"callable_package"}, "transfer/__init__": {"callable_package"}}
"""What stands below and takes from the root: the two packages that can be called import the class that does it, and it alone."""

LONGEST = 400
"""Lines of a file at most."""


def tracked(*patterns: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def package_files() -> list[str]:
    """The package's modules as paths without .py; tests, the scripts of benchmarks/perf and those of docs are no part of it."""
    return [name[:-3] for name in tracked("*.py") if not name.startswith(("tests/", "benchmarks/perf/", "docs/"))]


MODULES = frozenset(package_files())


def imported(module: str) -> Iterator[str]:
    """The package's modules that a module imports, anywhere in it: in functions and for type checkers too."""
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                above = module.split("/")[: -node.level]
            elif (node.module or "").partition(".")[0] == "maelift":
                pytest.fail(f"{module}: an import of maelift by its name, line {node.lineno}; expected a relative one")
            else:
                continue
            named = node.module.split(".") if node.module else []
            for name in node.names:
                for path in ([*above, *named, name.name], [*above, *named], [*above, *named, "__init__"]):
                    if "/".join(path) in MODULES:
                        yield "/".join(path)
                        break
                else:
                    pytest.fail(f"{module}, line {node.lineno}: {name.name} is imported from no module of the package")
        elif isinstance(node, ast.Import):
            assert not [name for name in node.names if name.name.partition(".")[0] == "maelift"], module


IMPORTS = {module: set(imported(module)) for module in sorted(MODULES)}


def place(module: str) -> int:
    """Where a module stands in ``ORDER``; that of the longest path there that it is or lies in."""
    fitting = [
        (len(name), number)
        for number, names in enumerate(ORDER)
        for name in names
        if module == name or module.startswith(f"{name}/")
    ]
    assert fitting, f"{module} stands nowhere in ORDER"
    return max(fitting)[1]


def test_imports_run_downwards() -> None:
    upwards = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in sorted(others - FROM_THE_ROOT.get(module, set()))
        if place(other) > place(module)
    ]
    assert not upwards, "\n".join(upwards)


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_core_imports_nothing_of_the_folders_above_it() -> None:
    own = ("core/", "core", "version")
    outside = {
        (m, o) for m, others in IMPORTS.items() if m.startswith("core/") for o in others if not o.startswith(own)
    }
    assert not outside


def test_every_folder_is_a_package_of_the_wheel() -> None:
    folders = {str(Path(module).parent) for module in MODULES}
    assert all(folder == "." or f"{folder}/__init__" in MODULES for folder in folders)
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert listed is not None
    packages = set(re.findall(r'"(.*?)"', listed[1]))
    assert packages == {"maelift" if folder == "." else f"maelift.{folder.replace('/', '.')}" for folder in folders}


def test_files_are_short() -> None:
    long = {
        m: n
        for m in sorted(MODULES - {"api_keys"})
        if (n := len((ROOT / f"{m}.py").read_text().splitlines())) > LONGEST
    }
    assert not long


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def the_map() -> dict[str, str]:
    """CONTRIBUTING's tree: what it says of each file, by its path."""
    tree = re.search(r"^## The map\n.*?```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert tree is not None, "CONTRIBUTING.md has no tree under 'The map'"
    said: dict[str, str] = {}
    folders: list[str] = []
    for line in tree[1].splitlines():
        found = re.fullmatch(r"( *)(\S+?)(/?)(?: {2,}(.*))?", line)
        assert found is not None and len(found[1]) % 2 == 0, line
        folders = [*folders[: len(found[1]) // 2], found[2]]
        said["/".join(folders) + ("/__init__" if found[3] else "")] = found[4] or ""
    return said


def test_the_map_has_a_line_for_every_file_that_is_its_first_line() -> None:
    true = {module: first_line(ROOT / f"{module}.py") for module in MODULES - {"__init__"}}
    assert the_map() == true, "python tests/write_map.py writes it"


def test_files_say_in_a_line_what_they_are() -> None:
    lines = {module: first_line(ROOT / f"{module}.py") for module in MODULES}
    assert not {m: line for m, line in lines.items() if not (20 <= len(line) <= 115 and line.endswith("."))}


def test_equal_choices_are_listed_in_one_order() -> None:
    """Python takes Literals for equal whose values are, in any order: which one the help shows would depend on the imports."""
    orders: dict[frozenset[str], set[tuple[str, ...]]] = {}
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                choices = tuple(ast.unparse(value) for value in values)
                orders.setdefault(frozenset(choices), set()).add(choices)
    assert len(orders) > 20
    assert not [found for found in orders.values() if len(found) > 1]
