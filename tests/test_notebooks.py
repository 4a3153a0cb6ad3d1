"""The notebooks of docs/notebooks, run from the first cell to the last as scripts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from maelift.tests.preloaded import CODE
from maelift.tests.support import ROOT, environment, preloaded

NOTEBOOKS = ROOT / "docs" / "notebooks"


def run_notebook(name: str, folder: Path) -> str:
    """Run a notebook in a folder with Fashion-MNIST in data/; what its cells printed."""
    (folder / "data").symlink_to(ROOT / "data")
    script = (NOTEBOOKS / f"{name}.py").read_text()
    assert re.match(r"# %% \[markdown\]\n# # .+\n", script), "a page begins with its title"
    env = {**environment(), "MPLBACKEND": "agg"}
    done = preloaded().run([CODE, script], folder, env, 600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_pretrain_and_look(tmp_path: Path) -> None:
    said = run_notebook("pretrain", tmp_path)
    assert "held-out masked loss 0." in said and len(list((tmp_path / "filled").glob("*.compare.png"))) == 3


@pytest.mark.slow
def test_transfer_and_export(tmp_path: Path) -> None:
    said = run_notebook("transfer", tmp_path)
    assert "10000 images" in said.replace(",", "") and (tmp_path / "encoder_timm").is_dir()
    difference = re.search(r"largest difference of a feature: (\S+)", said)
    assert difference is not None and float(difference[1]) < 1e-4


@pytest.mark.slow
def test_benchmark_and_read_the_verdict(tmp_path: Path) -> None:
    said = run_notebook("benchmark", tmp_path)
    assert re.search(r"^- .*(helps|hurts|not resolved|not shown)", said, re.MULTILINE)
    assert os.path.getsize(tmp_path / "runs" / "bench" / "report.html") > 100_000
