"""The page on benchmarks, done as it stands, in a folder as a reader might have it; its suite made small before it runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.suite_file import SUITES, read_suite
from maelift.tests.support import ROOT, one_line_error, run_maelift, write_images

PAGE = ROOT / "docs" / "benchmark.md"

pytestmark = pytest.mark.slow


def made_small(suite: Path) -> None:
    """What the reader would leave to run overnight, in seconds."""
    content = yaml.safe_load(suite.read_text())
    content |= {"seeds": [0], "pretrain_seeds": [0], "labels": content["labels"][:1], "evaluations": 1}
    content["tuning"] |= {"max_doublings": 0, "max_extensions": 0}
    content["simple_arms"] = False  # in test_simple_arms.py
    for arm in content["arms"].values():
        arm["steps"] = dict.fromkeys(map(str, content["labels"]), 2)
        if arm["start"] != "scratch":
            arm["pretrain"]["epochs"] = 1
    suite.write_text(yaml.safe_dump(content))


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    for number, label in enumerate(("cats", "dogs")):
        write_images(tmp_path / "photos" / label, 80, first=1000 * number)
    commands = re.findall(r"^maelift [^#\n]*", PAGE.read_text(), flags=re.MULTILINE)
    assert len(commands) == 5
    said = ""
    for command in commands:
        done = run_maelift(*command.split()[1:], cwd=tmp_path, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
        if " init " in command:
            made_small(tmp_path / "mine.yaml")
        if (tmp_path / "runs" / "mine").exists() and not (tmp_path / "runs" / "other").exists():
            shutil.copytree(tmp_path / "runs" / "mine", tmp_path / "runs" / "other")
    assert "report: runs/mine/report.html" in said and "compared seeds" in said
    assert (tmp_path / "runs" / "compared" / "comparison.html").is_file()


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    for name in re.findall(r"`(\w+)`", text.split("## Shipped suites")[1]):
        assert (SUITES / f"{name}.yaml").is_file(), name
    assert {path.stem for path in SUITES.glob("*.yaml")} == set(
        re.findall(r"`(\w+)`", text.split("## Shipped suites")[1])
    )
    for start in re.findall(r"^\| `(\w+)` ", text, flags=re.MULTILINE):
        assert start in ("mae", "encoder", "supervised", "weights", "scratch", "cnn", "pixels", "start")


def test_a_suite_may_extend_another(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: quickstart_full\ntitle: Mine\nlabels: [100]\ntasks: {detect: {steps: 7}}\n")
    config = BenchConfig.resolve({"suite": str(file), "out": "x"})
    assert config.title == "Mine" and config.labels == (100,) and config.tasks["detect"].steps == 7
    assert config.tasks["segment"].steps == read_suite("quickstart_full")["tasks"]["segment"]["steps"]
    file.write_text(f"extends: {file}\ntitle: Mine\n")
    done = run_maelift("bench", file, "out=x", cwd=tmp_path)
    assert "extends leads back to it" in one_line_error(done)
