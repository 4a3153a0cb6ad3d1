"""Fixtures: folders of small real images, and the embedded data."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from maelift.tests.preloaded import PLAIN, leave_curves_out_where_asked
from maelift.tests.support import FASHION_MNIST, ROOT, write_images
from PIL import Image

# What is kept between runs must not come from, or go to, the user's own.
os.environ["MAELIFT_CACHE"] = tempfile.mkdtemp(prefix="maelift-cache-")
atexit.register(shutil.rmtree, os.environ["MAELIFT_CACHE"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests share few cores
os.environ[PLAIN] = "1"
leave_curves_out_where_asked()


LONGEST = (
    "benchmarks/test_runner.py",
    "adapters/test_detectron2.py",
    "test_notebooks.py",
    "pretrain/test_distributed.py",
    "adapters/test_mmseg.py",
    "test_docs_transfer.py",
    "transfer/test_timm_backbones.py",
    "transfer/detection/test_task.py",
    "pretrain/test_slurm.py",
    "benchmarks/test_executors.py",
    "transfer/segmentation/test_task.py",
    "test_stops.py",
    "benchmarks/test_scheduling.py",
    "adapters/test_hub.py",
    "benchmarks/test_tasks.py",
    "benchmarks/test_weights.py",
    "pretrain/test_train.py",
    "adapters/test_certify_trials.py",
    "adapters/test_certify_safety.py",
    "adapters/test_transformers.py",
    "adapters/test_timm.py",
    "adapters/test_torchvision.py",
    "adapters/test_onnx.py",
    "transfer/classification/test_task.py",
    "core/data/test_sources.py",
    "core/data/test_audit.py",
    "transfer/test_photo_sizes.py",
    "transfer/test_timm_starts.py",
    "pretrain/test_evaluation.py",
    "transfer/classification/test_probe.py",
    "test_docs_benchmark.py",
    "test_docs_pretrain.py",
    "test_site.py",
    "test_package.py",
)
"""Files that take more than ten seconds, the longest first: no process is left with one of them while the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]
    assert not missing, f"tests/conftest.py: no such files, of LONGEST: {missing}"
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def _curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the tests that are about them draw the curves of pages."""
    if request.node.get_closest_marker("curves") is not None:
        monkeypatch.delenv(PLAIN)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch, as the processes have it that a run here is compared with."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 small colour images."""
    return write_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20 images that differ in brightness, so that they can be told apart."""
    root = tmp_path_factory.mktemp("classes")
    for label, level in (("dark", 40), ("middle", 128), ("light", 215)):
        (root / label).mkdir()
        for number in range(20):
            values = np.random.default_rng([level, number]).integers(level - 30, level + 30, (16, 16, 3))
            Image.fromarray(values.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The embedded data, which ``make test`` brings; in CI it must be there."""
    if not (FASHION_MNIST / "train-images-idx3-ubyte.gz").is_file():
        message = f"Fashion-MNIST is not in {FASHION_MNIST}: maelift data fashion-mnist out={FASHION_MNIST}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return FASHION_MNIST
