"""What this machine has: versions, devices, optional frameworks that really import, disk, data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from .datasets import DEBIAN_FOLDER

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "torchmetrics",
    "safetensors",
    "omegaconf",
    "pillow",
    "tensorboard",
)
FRAMEWORKS = {
    "transformers": "transformers",
    "detectron2": "detectron2",
    "mmsegmentation": "mmseg",
    "mmcv": "mmcv",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "submitit": "submitit",
    "ray": "ray",
}
IMPORT_SECONDS = 60


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found; ``frameworks`` maps names to a version, "not installed", or why the import fails."""

    versions: dict[str, str]
    devices: dict[str, str]
    frameworks: dict[str, str]
    free_disk_gib: float
    data: dict[str, str]

    def to_json(self) -> str:
        """The diagnosis as one JSON document."""
        return json.dumps(asdict(self), indent=1)

    def summary(self) -> str:
        """The diagnosis on one screen."""
        sections = {
            "versions": self.versions,
            "devices": self.devices,
            "optional frameworks": self.frameworks,
            "disk": {"free here": f"{self.free_disk_gib:.1f} GiB"},
            "data": self.data,
        }
        lines = []
        for title, entries in sections.items():
            lines.append(title)
            lines.extend(f"  {name:<16} {value}" for name, value in entries.items())
        return "\n".join(lines)


def doctor(config: DoctorConfig) -> Diagnosis:
    """Look at this machine; a framework that crashes on import can't take this down with it."""
    from .. import __version__

    versions = {"maelift": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    return Diagnosis(
        versions=versions,
        devices=_devices(),
        frameworks={name: _framework(name, module) for name, module in FRAMEWORKS.items()},
        free_disk_gib=round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        data=_data(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0.0
    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.1f} GiB memory"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        devices[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, {bf16}"
    if torch.cuda.device_count() == 0:
        devices["cuda"] = "none usable"
    return devices


def _framework(name: str, module: str) -> str:
    """The version of a framework that imports, in a process of its own; else what is wrong."""
    code = (
        "import importlib.util, sys\n"
        f"sys.exit(3) if importlib.util.find_spec({module!r}) is None else None\n"
        f"module = __import__({module!r})\n"
        "print(getattr(module, '__version__', 'version unknown'))"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"installed, but the import took longer than {IMPORT_SECONDS} s"
    if done.returncode == 3:
        return "not installed"
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"installed, but does not import: {reason}"
    return f"{done.stdout.strip().splitlines()[-1]} (imports)"


def _data() -> dict[str, str]:
    places = [Path("data/fashion-mnist"), Path("/") / DEBIAN_FOLDER]
    found = [str(place) for place in places if (place / "train-images-idx3-ubyte.gz").is_file()]
    return {"fashion-mnist": found[0] if found else "not found: maelift data fashion-mnist out=data/fashion-mnist"}
