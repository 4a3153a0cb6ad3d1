"""What this machine has: versions, devices, optional frameworks that really import, disk, data."""

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
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

from ..dry_run import Plan
from ..optional_imports import FRAMEWORKS as ADAPTERS
from ..optional_imports import Framework, installed_version, too_old
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
FRAMEWORKS = {
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
"""A batch of 256 colour images of 224 pixels; each worker has two ready."""
FEW_FILES = 4096
"""Open files below which processes that hand over many tensors run out of them."""


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found; ``frameworks`` maps names to a version, "not installed", or why the import fails.

    ``adapters`` says for each framework that ``maelift export`` knows whether it would work here, or how to make it work.
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
    """Look at this machine; a package that crashes or hangs on import can't take this down with it."""
    from ...version import __version__

    versions = {"maelift": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    with ThreadPoolExecutor() as pool:
        devices = pool.submit(_devices)
        adapters = dict(zip(ADAPTERS, pool.map(_adapter, ADAPTERS.values()), strict=True))
        frameworks = dict(zip(FRAMEWORKS, pool.map(_framework, FRAMEWORKS.values()), strict=True))
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
    return Plan((("reads", "versions, devices, disk, data"), ("imports", ", ".join(["torch", *ADAPTERS, *FRAMEWORKS]))))


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
    said, wrong = _in_a_process(_DEVICES)
    return devices | ({"torch": f"does not work: {wrong}"} if wrong else json.loads(said))


def _cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its control group allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def _loading() -> dict[str, str]:
    """What loader processes need: cores, shared memory to hand batches over, open files."""
    cores = _cores()
    said = {"workers": f"up to {cores} (one a core)"}
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        need = cores * 2 * BATCH_BYTES
        advice = "" if free >= need else f": little for {cores} workers; docker run --shm-size=8g, or fewer workers"
        said["shared memory"] = f"{free / 2**30:.1f} GiB free{advice}"
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        few = limit != resource.RLIM_INFINITY and limit < FEW_FILES
        unlimited = limit == resource.RLIM_INFINITY
        said["open files"] = (
            f"{'no limit' if unlimited else limit}{': few for many workers; ulimit -n 65536' if few else ''}"
        )
    return said


def _adapter(framework: Framework) -> str:
    """Whether the adapter of a framework would work here; if not, how to make it work."""
    if (fault := too_old(framework)) is not None:
        return fault
    for module in (framework.module, *framework.needs):
        state = _framework(module)
        if state == "not installed":
            return f"{module} is not installed: {framework.install}"
        if not state.endswith("(imports)"):
            return f"{module} is {state}"
    return f"works ({framework.name} {installed_version(framework.distributions) or 'of unknown version'})"


def _framework(module: str) -> str:
    """The version of a framework that imports, "not installed", or what is wrong with it."""
    absent = "not installed"
    said, wrong = _in_a_process(
        "import importlib.util\n"
        f"if importlib.util.find_spec({module.partition('.')[0]!r}) is None:\n"
        f"    print({absent!r})\n"
        "else:\n"
        f"    module = importlib.import_module({module!r})\n"
        "    print(getattr(module, '__version__', 'version unknown'), '(imports)')"
    )
    return f"installed, but does not import: {wrong}" if wrong else said


def _in_a_process(code: str) -> tuple[str, str]:
    """Run Python code by itself: the last line that it printed, and what went wrong, if anything did.

    The current folder is kept off its path, so that a folder named as a package isn't taken for it.
    """
    code = f"import sys\nsys.path = [place for place in sys.path if place]\n{code}"
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
    places = [Path("data/fashion-mnist"), Path("/") / DEBIAN_FOLDER]
    found = [str(place) for place in places if all((place / name).is_file() for name in FASHION_MNIST)]
    bring = "not found: maelift data fashion-mnist out=data/fashion-mnist"
    return {"fashion-mnist": found[0] if found else bring}
