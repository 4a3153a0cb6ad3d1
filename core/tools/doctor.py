"""``maelift doctor``: versions, devices, optional frameworks that really import, disk space, loading, data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from ..dry_run import Plan
from ..optional_imports import FRAMEWORKS as ADAPTERS
from ..optional_imports import Framework, installed_version, outdated_message
from .fashion_mnist import DEBIAN_FOLDER, FASHION_MNIST

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "torchmetrics",
    "safetensors",
    "omegaconf",
    "pillow",
)
OTHER_PACKAGES = {
    "mmcv": "mmcv",
    "mmengine": "mmengine",
    "onnxruntime": "onnxruntime",
    "submitit": "submitit",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "matplotlib": "matplotlib",
}
IMPORT_SECONDS = 120


SHARED_MEMORY = Path("/dev/shm")
BATCH_BYTES = 256 * 3 * 224 * 224
"""A batch of 256 RGB images of 224 × 224 pixels; each worker prefetches two."""
MIN_OPEN_FILES = 4096
"""Limit of open files below which loader workers that pass many tensors run out of them."""


@dataclass(frozen=True)
class DoctorConfig:
    """Report what this machine has (no keys)."""


@dataclass(frozen=True)
class Diagnosis:
    """The report; ``frameworks`` maps names to a version, "not installed", or why the import fails.

    ``adapters`` maps each framework of ``maelift export`` to whether it works here, or how to make it work.
    """

    versions: dict[str, str]
    devices: dict[str, str]
    adapters: dict[str, str]
    frameworks: dict[str, str]
    free_disk_gib: float
    data: dict[str, str]
    loading: dict[str, str]

    def to_json(self) -> str:
        """The diagnosis as one JSON document."""
        return json.dumps(asdict(self), indent=1)

    def summary(self) -> str:
        """The diagnosis on one screen."""
        absent = [name for name, state in self.frameworks.items() if state == "not installed"]
        frameworks = {name: state for name, state in self.frameworks.items() if name not in absent}
        if absent:
            frameworks["not installed"] = ", ".join(absent)
        sections = {
            "versions": self.versions,
            "devices": self.devices,
            "adapters (maelift export --to ...)": self.adapters,
            "optional frameworks": frameworks,
            "disk": {"free here": f"{self.free_disk_gib:.1f} GiB"},
            "loading images": self.loading,
            "data": self.data,
        }
        lines = []
        for title, entries in sections.items():
            lines.append(title)
            lines.extend(f"  {name:<16} {value}" for name, value in entries.items())
        return "\n".join(lines)


def doctor(config: DoctorConfig) -> Diagnosis:
    """Examine this machine; packages are imported in processes of their own, as they may crash or hang."""
    from ...version import __version__

    versions = {"maelift": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    with ThreadPoolExecutor() as pool:
        devices = pool.submit(_devices)
        adapters = dict(zip(ADAPTERS, pool.map(_adapter_state, ADAPTERS.values()), strict=True))
        frameworks = dict(zip(OTHER_PACKAGES, pool.map(_package_state, OTHER_PACKAGES.values()), strict=True))
    return Diagnosis(
        versions=versions,
        devices=devices.result(),
        adapters=adapters,
        frameworks=frameworks,
        free_disk_gib=round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        data=_data(),
        loading=_loading(),
    )


def plan(config: DoctorConfig) -> Plan:
    """What ``doctor`` would do."""
    return Plan(
        (("reads", "versions, devices, disk, data"), ("imports", ", ".join(["torch", *ADAPTERS, *OTHER_PACKAGES])))
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


_DEVICES = """
import json, torch
devices = {"threads": f"{torch.get_num_threads()} a process"}
for number in range(torch.cuda.device_count()):
    properties = torch.cuda.get_device_properties(number)
    bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
    devices[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, {bf16}"
if torch.cuda.device_count() == 0:
    devices["cuda"] = "none usable"
devices["mps"] = "usable" if torch.backends.mps.is_available() else "none usable"
print(json.dumps(devices))
"""


def _devices() -> dict[str, str]:
    cores = _cores()
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    memory = f", {pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB memory" if pages else ""
    devices = {"cpu": f"{cores} cores{memory}"}
    output, problem = _run_in_process(_DEVICES)
    return devices | ({"torch": f"does not work: {problem}"} if problem else json.loads(output))


def _cores() -> int:
    """Cores that this process may use: by its CPU affinity and its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def _loading() -> dict[str, str]:
    """What loader workers need: cores, shared memory for batches, open files."""
    cores = _cores()
    report = {"workers": f"up to {cores} (one a core)"}
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        need = cores * 2 * BATCH_BYTES
        advice = "" if free >= need else f": little for {cores} workers; docker run --shm-size=8g, or fewer workers"
        report["shared memory"] = f"{free / 2**30:.1f} GiB free{advice}"
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        few = limit != resource.RLIM_INFINITY and limit < MIN_OPEN_FILES
        unlimited = limit == resource.RLIM_INFINITY
        report["open files"] = (
            f"{'no limit' if unlimited else limit}{': few for many workers; ulimit -n 65536' if few else ''}"
        )
    return report


def _adapter_state(framework: Framework) -> str:
    """Whether the adapter of a framework would work here; if not, how to make it work."""
    if (problem := outdated_message(framework)) is not None:
        return problem
    for module in (framework.module, *framework.needs):
        state = _package_state(module)
        if state == "not installed":
            return f"{module} is not installed: {framework.install}"
        if not state.endswith("(imports)"):
            return f"{module} is {state}"
    return f"works ({framework.name} {installed_version(framework.distributions) or 'of unknown version'})"


def _package_state(module: str) -> str:
    """The version of a framework that imports, "not installed", or why the import fails."""
    absent = "not installed"
    output, problem = _run_in_process(
        "import importlib.util\n"
        f"if importlib.util.find_spec({module.partition('.')[0]!r}) is None:\n"
        f"    print({absent!r})\n"
        "else:\n"
        f"    module = importlib.import_module({module!r})\n"
        "    print(getattr(module, '__version__', 'version unknown'), '(imports)')"
    )
    return f"installed, but does not import: {problem}" if problem else output


def _run_in_process(code: str) -> tuple[str, str]:
    """Run Python code in a new process: the last line that it printed, and what went wrong, or "".

    The current folder is not on its path, so that a folder with a package's name isn't imported.
    """
    code = f"import sys\nsys.path = [folder for folder in sys.path if folder]\n{code}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "", f"took longer than {IMPORT_SECONDS} s"
    if done.returncode < 0:
        return "", f"killed by {signal.Signals(-done.returncode).name}"
    if done.returncode > 0:
        return "", (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return (done.stdout.strip().splitlines() or [""])[-1], ""


def _data() -> dict[str, str]:
    folders = [Path("data/fashion-mnist"), Path("/") / DEBIAN_FOLDER]
    found = [str(folder) for folder in folders if all((folder / name).is_file() for name in FASHION_MNIST)]
    missing = "not found: maelift data fashion-mnist out=data/fashion-mnist"
    return {"fashion-mnist": found[0] if found else missing}
