"""The doctor: what is there, what isn't, and what is there but broken, none of which takes it down."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from maelift.core.optional_imports import Framework
from maelift.core.tools import doctor as doctor_module
from maelift.core.tools.doctor import DoctorConfig, doctor, plan
from maelift.core.tools.fashion_mnist import FASHION_MNIST

BROKEN = "installed, but does not import: "


@pytest.fixture
def frameworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that the doctor looks for, and nothing else."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(doctor_module, "_DEVICES", "print('{}')")
    monkeypatch.setattr(doctor_module, "ADAPTERS", {})
    monkeypatch.chdir(tmp_path)
    return folder


def state_of(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the doctor says of a framework."""
    monkeypatch.setattr(doctor_module, "OTHER_PACKAGES", {name: name})
    return doctor(DoctorConfig()).frameworks[name]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("__version__ = '1.2'", "1.2 (imports)"),
        ("print('welcome')", "version unknown (imports)"),
        ("import a_module_that_is_not_there", f"{BROKEN}ModuleNotFoundError: No module named"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", f"{BROKEN}killed by SIGSEGV"),
        ("import os; os._exit(7)", f"{BROKEN}exit code 7"),
    ],
)
def test_usable_means_really_imported(
    source: str, expected: str, frameworks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (frameworks / "framework_here.py").write_text(source)
    assert state_of("framework_here", monkeypatch).startswith(expected)


def test_an_import_that_hangs_is_given_up(frameworks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "IMPORT_SECONDS", 1)
    (frameworks / "framework_here.py").write_text("import time; time.sleep(60)")
    assert state_of("framework_here", monkeypatch) == f"{BROKEN}took longer than 1 s"


def test_a_folder_named_like_a_framework_is_none(frameworks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (frameworks.parent / "framework_here").mkdir()
    (frameworks.parent / "framework_here" / "__init__.py").touch()
    assert state_of("framework_here", monkeypatch) == "not installed"


ADAPTED = Framework(
    "thing", "framework_here", ("maelift",), "0.0.1", "pip install thing", needs=("framework_here.part",)
)


@pytest.mark.parametrize(
    ("part", "framework", "expected"),
    [
        ("", ADAPTED, "works (thing "),
        (
            "import a_module_that_is_not_there",
            ADAPTED,
            "framework_here.part is installed, but does not import: ModuleNotF",
        ),
        ("", replace(ADAPTED, minimum="99"), "expected 99 or newer. Update it: pip install thing"),
        ("", replace(ADAPTED, module="absent_here"), "absent_here is not installed: pip install thing"),
    ],
)
def test_which_adapters_would_work_is_told(
    part: str, framework: Framework, expected: str, frameworks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (frameworks / "framework_here").mkdir()
    (frameworks / "framework_here" / "__init__.py").touch()
    (frameworks / "framework_here" / "part.py").write_text(part)
    monkeypatch.setattr(doctor_module, "OTHER_PACKAGES", {})
    monkeypatch.setattr(doctor_module, "ADAPTERS", {"thing": framework})
    found = doctor(DoctorConfig())
    assert expected in found.adapters["thing"] and expected in found.summary()


def test_a_torch_that_does_not_work_is_told(frameworks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_DEVICES", "import torch")
    (frameworks / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    monkeypatch.setattr(doctor_module, "OTHER_PACKAGES", {})
    devices = doctor(DoctorConfig()).devices
    assert devices["torch"] == "does not work: OSError: libcudart.so: cannot open shared object file"
    assert "cores" in devices["cpu"]


@pytest.mark.slow
def test_this_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_module, "ADAPTERS", {})
    monkeypatch.setattr(doctor_module, "OTHER_PACKAGES", {"absent": "a_module_that_is_not_there"})
    found = doctor(DoctorConfig())
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"cpu", "threads", "mps"} <= found.devices.keys()
    assert found.free_disk_gib > 0
    assert json.loads(found.to_json())["frameworks"] == {"absent": "not installed"}
    assert "not installed    absent" in found.summary()
    assert "imports" in plan(DoctorConfig()).text()


def test_the_embedded_data_counts_as_found_when_whole(
    tmp_path: Path, frameworks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "OTHER_PACKAGES", {})
    monkeypatch.setattr(doctor_module, "DEBIAN_FOLDER", Path("nowhere"))
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for name in list(FASHION_MNIST)[1:]:
        (folder / name).touch()
    assert doctor(DoctorConfig()).data["fashion-mnist"].startswith("not found: maelift data fashion-mnist")
    (folder / next(iter(FASHION_MNIST))).touch()
    assert doctor(DoctorConfig()).data == {"fashion-mnist": "data/fashion-mnist"}


def test_what_loaders_need_is_told(frameworks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "OTHER_PACKAGES", {})
    said = doctor(DoctorConfig()).loading
    assert said["workers"].startswith("up to ") and "GiB free" in said["shared memory"]
    monkeypatch.setattr(doctor_module, "BATCH_BYTES", 2**50)
    monkeypatch.setattr(doctor_module, "MIN_OPEN_FILES", 2**40)
    said = doctor(DoctorConfig()).loading
    assert "--shm-size" in said["shared memory"] and (
        "ulimit" in said["open files"] or "no limit" in said["open files"]
    )
