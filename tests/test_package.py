"""The package as others install it: every file is in the wheel, and it works outside of the checkout, on each Python."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from maelift.tests.support import ROOT
from maelift.tests.test_layout import MODULES, tracked
from maelift.version import __version__

DATA = (
    "py.typed",
    "key_table.json",
    "*.j2",
    "adapters/templates/*",
    "benchmarks/published.yaml",
    "*/suites/*.yaml",
    "*/recipes/*",
)
"""Files besides modules that the package reads when it runs."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def package_files() -> set[str]:
    """Every file that an installed package needs."""
    return {f"{module}.py" for module in MODULES} | set(tracked(*DATA))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of the tracked files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    build = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, env=outside(), capture_output=True, text=True, check=True)
    return out


def outside() -> dict[str, str]:
    """The environment of somebody who has no checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAELIFT_DEBUG")}


@pytest.mark.slow
def test_wheel_and_sdist_have_every_file_of_the_package(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"maelift-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        inside = {name.removeprefix("maelift/") for name in file.namelist() if name.startswith("maelift/")}
    assert inside == package_files()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() | {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.slow
def test_an_installed_wheel_works_outside_of_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    install.append(str(wheel))
    subprocess.run(install, env=outside(), check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])  # after the wheel's: its maelift is taken
    said = run(tmp_path, python, "-c", "import maelift; print(maelift.__file__, maelift.__version__)")
    assert said.split() == [str(site / "maelift" / "__init__.py"), __version__]
    assert "usage: maelift COMMAND" in run(tmp_path, python.with_name("maelift"), "--help")
    assert "masking.ratio" in run(tmp_path, python.with_name("maelift"), "pretrain", "-h", "all")


def run(folder: Path, *words: str | Path) -> str:
    """What a program prints that ends well."""
    done = subprocess.run(words, cwd=folder, env=outside(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_has_the_syntax_of_the_oldest_python() -> None:
    for module in sorted(MODULES):
        ast.parse((ROOT / f"{module}.py").read_text(), f"{module}.py", feature_version=(3, 10))


COMPILE = (
    "import sys\nfor name in sys.stdin.read().split():\n    compile(open(name, encoding='utf-8').read(), name, 'exec')"
)


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_every_python_that_is_here_compiles_every_file(version: str) -> None:
    candidates = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), shutil.which(f"python{version}")]
    python = next(filter(None, candidates), None)
    if python is None:
        pytest.skip(f"no Python {version} here")
    names = "\n".join(str(ROOT / f"{module}.py") for module in sorted(MODULES))
    done = subprocess.run([str(python), "-W", "error", "-c", COMPILE], input=names, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_metadata_name_every_python_that_is_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'"Programming Language :: Python :: {version}"' in project for version in PYTHONS)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert tuple(workflow["jobs"]["pythons"]["strategy"]["matrix"]["python"]) == PYTHONS


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", ["tests", "docs", "release"])
def test_workflows_run_what_is_there(name: str) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
    for job in jobs.values():
        assert "runs-on" in job and all(("run" in step) != ("uses" in step) for step in job["steps"])
        for command in (step["run"] for step in job["steps"] if "run" in step):
            assert ".ci/run" not in command or os.access(ROOT / ".ci" / "run", os.X_OK)
            assert "constraints.txt" not in command or (ROOT / "constraints.txt").is_file()
