"""A task of another package, as docs/new_task.md has it: one folder and one row."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import maelift
import pytest
from maelift.cli import main
from maelift.core.errors import ConfigError
from maelift.tests.support import ROOT, encoder_file, noise_image, write_images
from maelift.transfer import tasks
from maelift.transfer.tasks import TaskEntry

PAGE = ROOT / "docs" / "new_task.md"


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with images, in which the page's package is installed as pip would install it."""
    site = tmp_path / "site"
    blocks = re.findall(r"^```(?:py|yaml|toml)\n# (\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for name, content in blocks:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    point = re.search(r'^\[project\.entry-points\."(.+)"\]\n(.+)$', (site / "pyproject.toml").read_text(), re.MULTILINE)
    assert point is not None
    shutil.move(site / "counting.yaml", tmp_path)
    (site / "counting-1.0.dist-info").mkdir()
    (site / "counting-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    (site / "counting-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{point[1]}]\n{point[2].replace(chr(34), '')}\n"
    )
    for number in range(4):
        (tmp_path / "counts" / str(number)).mkdir(parents=True)
        for image in range(12):
            shades = noise_image(100 * number + image).point(lambda value, number=number: value * (number + 1) // 4)
            shades.save(tmp_path / "counts" / str(number) / f"{image}.png")
    (tmp_path / "new").mkdir()
    noise_image(7).save(tmp_path / "new" / "IMG_0001.jpg")
    encoder_file(tmp_path / "encoder.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(site)
    tasks._register_entry_points.cache_clear()
    yield tmp_path
    tasks._ENTRIES.pop("count", None)
    tasks._register_entry_points.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "counting"]:
        del sys.modules[name]
    from maelift.commands import COMMANDS

    COMMANDS.pop("transfer count", None)


@pytest.mark.slow
def test_a_task_of_another_package_is_one_folder_and_one_row(
    counting: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = re.search(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert commands is not None
    for line in commands[1].splitlines():
        assert main(line.split()[1:]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "count:\n  train" in said and "test: closeness " in said and "images, 1 seed" in said
    assert json.loads(Path("runs/count/test.json").read_text())["metrics"]["closeness"] > 0.5
    assert "Counting: count" in Path("runs/count/summary.html").read_text()
    with Path("runs/counts.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    (predicted,) = maelift.load_model("runs/count/model.safetensors").predict(["new/IMG_0001.jpg"])
    assert row["path"] == "IMG_0001.jpg" and float(row["count"]) == pytest.approx(predicted, abs=0.006)
    assert Path("runs/counts.pictures/IMG_0001.png").is_file()


def test_the_command_line_and_the_api_know_the_task(counting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and "transfer count" in capsys.readouterr().out
    assert main(["transfer", "count", "-h"]) == 0
    said = capsys.readouterr().out
    assert "smallest area of a training crop" in said and "default 0.75, with init=scratch 1" in said
    assert main(["transfer", "count", "init=scratch", "data=counts", "out=x", "recipe=small"]) == 2
    assert "count_encoder, count_scratch" in capsys.readouterr().err
    keys = {"init": "scratch", "model": "vit_nano", "image_size": 16, "steps": 2, "workers": 0, "device": "cpu"}
    result = maelift.transfer("count", data="counts", out="runs/api", **keys)  # type: ignore[call-overload]
    assert result.metric == "val/closeness" and "layer_decay: 1.0" in Path("runs/api/config.yaml").read_text()


def test_a_suite_compares_encoders_on_the_task(counting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(counting / "photos", 8)
    assert main(["bench", "counting.yaml", "out=runs/suite", "device=cpu"]) == 0, capsys.readouterr().err
    with Path("runs/suite/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (arm, seed) for arm in ("mae", "scratch") for seed in ("0", "1")
    ]
    assert all(0 < float(row["test_closeness_percent"]) < 100 for row in rows)
    page = Path("runs/suite/report.html").read_text()
    assert "Counting" in page and "test closeness" in page


def test_rows_are_checked_when_they_are_registered() -> None:
    row = tasks.entry("detect")
    tasks.register(row)  # the same again is no mistake
    with pytest.raises(ValueError, match="'detect' is registered already"):
        tasks.register(TaskEntry(**{**vars(row), "title": "Another"}))
    with pytest.raises(ConfigError, match="task=pose: expected classify or detect or segment"):
        tasks.entry("pose")
