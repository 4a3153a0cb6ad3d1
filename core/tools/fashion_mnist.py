"""Fashion-MNIST, the embedded data: fetched from where it can be had, and checked against its hashes."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..dry_run import Plan
from ..errors import DataError
from ..files import atomic_write_bytes, output_folder

logger = logging.getLogger("maelift")

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
FASHION_MNIST = {
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
}
"""The sha256 of each file; images and labels are gzipped idx files."""


@dataclass(frozen=True)
class FashionMnistConfig:
    """Bring Fashion-MNIST: 70,000 real grayscale images of 28×28 pixels in 10 classes (MIT licence)."""

    out: str
    """folder for its four files (30 MB)"""


@dataclass(frozen=True)
class FashionMnistResult:
    """Where the files are, and where they came from."""

    folder: Path
    source: str

    def summary(self) -> str:
        """The result in a line."""
        return f"Fashion-MNIST: 60,000 training and 10,000 test images in {self.folder} ({self.source}; hashes checked)"


def fashion_mnist(config: FashionMnistConfig) -> FashionMnistResult:
    """Put the four files into ``config.out``; raises DataError that says what was tried when none can be had."""
    out = Path(config.out)
    if out.is_dir() and not _wrong_files(out):
        return FashionMnistResult(out, "already there")
    output_folder(out)
    failures = []
    for name, source in _SOURCES.items():
        logger.info("data fashion-mnist: trying %s", name)
        try:
            with source() as folder:
                wrong = _wrong_files(folder)
                if wrong:
                    raise DataError(f"{', '.join(wrong)} missing or with another hash")
                for file in FASHION_MNIST:
                    atomic_write_bytes(out / file, (folder / file).read_bytes())
            return FashionMnistResult(out, name)
        except (DataError, subprocess.SubprocessError, RuntimeError, OSError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            failures.append(f"{name}: {' '.join(reason.split())[-200:]}")
    raise DataError(
        f"Fashion-MNIST can't be had here. Tried {'; '.join(failures)}. Connect to the network, or (on Debian) run "
        f"'apt-get update' first, or install the package {DEBIAN_PACKAGE}, or put {', '.join(FASHION_MNIST)} into {out}."
    )


def plan(config: FashionMnistConfig) -> Plan:
    """What ``fashion_mnist`` would do; writes nothing."""
    out = Path(config.out)
    there = out.is_dir() and not _wrong_files(out)
    return Plan((("files", ", ".join(FASHION_MNIST)), ("into", str(out)), ("there already", "yes" if there else "no")))


def _wrong_files(folder: Path) -> list[str]:
    """The files that are missing in a folder or have another content."""
    return [
        name
        for name, digest in FASHION_MNIST.items()
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]


@contextmanager
def _installed_package() -> Iterator[Path]:
    yield Path("/") / DEBIAN_FOLDER


@contextmanager
def _debian_package() -> Iterator[Path]:
    """Fetch and unpack the package in a temporary folder, which needs no root."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise DataError("no apt-get and dpkg here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        command = ["apt-get", "download", DEBIAN_PACKAGE]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
        package = next(folder.glob("*.deb"))
        command = ["dpkg", "-x", str(package), str(folder)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        yield folder / DEBIAN_FOLDER


@contextmanager
def _torchvision() -> Iterator[Path]:
    from torchvision.datasets import FashionMNIST

    with tempfile.TemporaryDirectory() as name:
        FashionMNIST(name, download=True)
        yield Path(name) / "FashionMNIST" / "raw"


_SOURCES: dict[str, Callable[[], AbstractContextManager[Path]]] = {
    "installed Debian package": _installed_package,
    "Debian package": _debian_package,
    "torchvision's download": _torchvision,
}
