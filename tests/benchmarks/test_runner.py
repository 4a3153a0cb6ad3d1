"""A suite as people run it: killed, stopped, moved; the same numbers whatever happens. What schedules: test_scheduling.py."""

from __future__ import annotations

import csv
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import maelift.api
import pytest
import torch
from maelift.benchmarks import progress, run_training
from maelift.benchmarks.compare_suites import read_result
from maelift.benchmarks.data import SuiteImages, read_suite_images
from maelift.benchmarks.execute import execute
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.runs import Run
from maelift.benchmarks.tuning import Setting
from maelift.cli import main
from maelift.core.errors import MaeliftError
from maelift.core.training import loop
from maelift.tests.benchmarks.brightness import (
    RATES,
    alive,
    home,  # noqa: F401  (a fixture)
    resolved,
    results,
    tables,
    workers_of,
)
from maelift.tests.support import environment, eventually, run_maelift, start_maelift
from maelift.transfer import finetune
from PIL import Image

LABELS, SEEDS = 6, (0, 1)
"""What is trained here of the suite."""
FEWER = (f"labels=[{LABELS}]", "seeds=[0,1]", "tuning.max_doublings=0", "tuning.per_seed=false", "tuning.draws=1")


@dataclass(frozen=True)
class Whole:
    """A suite that ran without a stop: the folder with the suite and its images, its report, and what it said."""

    home: Path
    out: Path
    said: str
    shown: str


@pytest.fixture(scope="module")
def whole(home: Path) -> Whole:  # noqa: F811
    done = run_maelift("bench", "suite.yaml", "out=whole", *FEWER, cwd=home)
    assert done.returncode == 0, done.stderr
    return Whole(home, home / "whole", done.stdout, done.stderr)


def test_a_suite_ends_with_verdicts_and_keeps_every_run(whole: Whole) -> None:
    *lines, report = whole.said.splitlines()
    assert report == "report: whole/report.html"
    assert any(f"{LABELS} labels" in line and "MAE on the pool" in line for line in lines)
    with (whole.out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(SEEDS)
    runs = results(whole.out)
    assert {row["run"] for row in rows} <= runs.keys()
    kinds = Counter(result["run"]["kind"] for result in runs.values())
    assert kinds["mae"] == kinds["supervised"] == 1
    assert kinds["test"] == len(rows)  # the test split is read once for each compared run, and for no trial
    trials = Counter(
        (result["run"]["recipe"], tuple(result["run"]["parents"]))
        for result in runs.values()
        if result["run"]["kind"] == "train" and result["run"]["seed"] == 0
    )
    assert len(trials) == 3 and set(trials.values()) == {RATES}
    assert len(list((whole.out / "runs").iterdir())) == len(runs)
    assert "scanning the images" in whole.shown and "runs to do, 2 at a time" in whole.shown


@pytest.mark.slow
def test_the_report_names_no_folders_but_by_their_last_names(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.out, tmp_path / "again")
    monkeypatch.chdir(tmp_path)
    words = [f"{whole.home / 'suite.yaml'}", f"out={tmp_path / 'again'}", f"data.path={whole.home / 'images'}"]
    assert main(["bench", *words, *FEWER]) == 0
    for name in ("report.html", "report.md", "report.tex", "results.csv", "results.json"):
        text = (tmp_path / "again" / name).read_text()
        assert str(whole.home) not in text and str(tmp_path) not in text, name
    result = read_result(tmp_path / "again")
    assert result.reconstructions is not None and result.reconstructions.is_relative_to(tmp_path / "again")
    assert "path: images" in result.config_yaml


def test_an_image_in_pool_and_test_is_dropped_and_told_of(whole: Whole) -> None:
    pools = read_suite_images(resolved(whole.home))
    kept = {name: {image_bytes(part, i) for i in range(len(part))} for name, part in vars_of(pools).items()}
    for one, other in (("pool", "val"), ("pool", "test"), ("source", "pool"), ("source", "val"), ("source", "test")):
        assert not kept[one] & kept[other]
    assert not kept["val"] & kept["test"] and len(pools.pool) < 60 and len(pools.classify.test) == 60
    report = (whole.out / "report.md").read_text()
    assert (
        "Images of the pool that are in validation or test too, by content, and were left out of the pool: " in report
    )
    assert f"pool: {len(pools.pool)} images" in report and all(finding in report for finding in pools.findings)


def vars_of(pools: SuiteImages) -> dict[str, Any]:
    splits = pools.classify
    return {"pool": pools.labelled_pool, "source": splits.train, "val": splits.val, "test": splits.test}


def image_bytes(part: Any, index: int) -> bytes:
    image: Image.Image = part.images.open(index)
    return image.tobytes()


@pytest.mark.slow
def test_a_suite_that_is_killed_again_and_again_ends_with_the_tables_of_one_that_is_not(whole: Whole) -> None:
    """Killed in pretraining and in fine-tuning, alone and with its group; then damaged; then ended by another caller."""
    out = whole.home / "killed"

    def in_pretraining() -> bool:
        return any(not (path.parent / "result.json").exists() for path in out.glob("runs/*/data.json"))

    def after(count: int) -> Callable[[], bool]:
        return lambda: len(list(out.glob("runs/*/result.json"))) >= count

    for reached, kill in ((in_pretraining, os.kill), (after(18), os.killpg)):
        group = kill is os.killpg
        process = start_maelift("bench", "suite.yaml", "out=killed", *FEWER, cwd=whole.home, session=group)
        eventually(lambda: reached() or process.poll() is not None)  # noqa: B023
        workers = workers_of(process.pid if group else os.getpid())
        assert process.poll() is None and len(workers) == 2, process.communicate()[1]
        kill(process.pid, signal.SIGKILL)
        _, shown = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL and "Traceback" not in shown
        eventually(lambda: not any(map(alive, workers)), seconds=5)  # noqa: B023
        assert not (out / "report.html").exists()

    runs, folder = results(out), out / "runs"
    of = {kind: [key for key in sorted(runs) if runs[key]["run"]["kind"] == kind] for kind in ("mae", "train")}
    (folder / of["mae"][0] / "result.json").unlink()  # as if killed right after the encoder was written
    (folder / of["train"][0] / "result.json").unlink()
    (folder / of["train"][1] / "result.json").write_text('{"run": {"kind": "tra')
    (folder / of["train"][2] / "result.json").write_text("{}")
    shutil.rmtree(folder / of["train"][3])
    kept = {path: path.stat().st_mtime_ns for key in of["train"][4:] for path in [folder / key / "result.json"]}
    script = whole.home / "script.py"  # calls bench without asking for __main__, from elsewhere, with one worker
    script.write_text(
        "import sys, maelift\nprint('once')\n"
        "keys = {'out': sys.argv[2], 'data': {'path': sys.argv[3]}, 'labels': [6], 'seeds': [0, 1]}\n"
        "keys['tuning'] = {'max_doublings': 0, 'per_seed': False, 'draws': 1}\n"
        "print(maelift.bench(sys.argv[1], **keys, workers=1).summary())\n"
    )
    done = subprocess.run(
        [sys.executable, script, whole.home / "suite.yaml", out, whole.home / "images"],
        cwd="/",
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.close(0),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-1] == ["once", *whole.said.splitlines()[:-1]]
    assert done.stderr.count("damaged result") == 2
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())  # nothing is done again
    assert results(out).keys() == results(whole.out).keys()
    assert (out / "results.csv").read_bytes() == (whole.out / "results.csv").read_bytes()
    assert tables(out) == tables(whole.out) and len(tables(out)) >= 20


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = re.compile(r"bench: \d+ runs done in .*, \d+ to do, about .* left")

    def strike() -> None:
        eventually(lambda: told.search(caplog.text) and list(tmp_path.glob("runs/*/result.json")))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    logger = logging.getLogger("maelift")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "maelift")
    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    with pytest.raises(MaeliftError, match="The same command goes on") as caught:
        maelift.api.bench(str(whole.home / "suite.yaml"), out=str(tmp_path), data={"path": str(whole.home / "images")})
    striker.join()
    assert caught.value.exit_code == 130 and "\n" not in str(caught.value)
    assert not workers_of(os.getpid()) and results(tmp_path) and told.search(caplog.text)


@pytest.mark.slow
def test_a_seed_is_one_draw_and_one_head_for_all_arms(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole.out, tmp_path / "out")
    config = resolved(whole.home)
    context = Context.of(config, read_suite_images(config))
    seen: list[tuple[str, int, tuple[str, ...], bytes, bytes]] = []
    real_fit, real_train = finetune.fit, loop.train
    names: list[tuple[str, ...]] = []

    def fit(task: Any, **keys: Any) -> Any:
        labeled = task.splits.train
        names.append(tuple(labeled.images.name(index) for index in range(len(labeled))))
        return real_fit(task, **keys)

    def train(state: Any, *more: Any, **keys: Any) -> None:
        head, first = state.model.head.weight, next(state.model.encoder.parameters())
        seen.append((run.arm, run.seed, names[-1], head.detach().numpy().tobytes(), first.detach().numpy().tobytes()))
        real_train(state, *more, **keys)

    monkeypatch.setattr(run_training, "fit", fit)
    monkeypatch.setattr(finetune, "train", train)
    torch.manual_seed(5)
    runs: list[Run] = [
        context.training("classify", arm, 6, seed, Setting(2e-3, 1)) for seed in (0, 1) for arm in config.arms
    ]
    for run in runs:
        execute(run, context, out / "runs")
    for seed in (0, 1):
        of_seed = [entry for entry in seen if entry[1] == seed]
        assert len(of_seed) == 3
        assert len({entry[2] for entry in of_seed}) == 1 and len({entry[3] for entry in of_seed}) == 1
        assert len({entry[4] for entry in of_seed}) == 3  # the encoders are those of the arms
        assert len(set(of_seed[0][2])) == 6 and len({name.split("/")[-2] for name in of_seed[0][2]}) == 3
    assert seen[0][2] != seen[3][2] and seen[0][3] != seen[3][3]


def test_a_training_that_diverges_loses_and_one_that_nothing_else_stands_for_is_told(
    home: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = resolved(home)
    context = Context.of(config, read_suite_images(config))
    first, second = (context.training("classify", "scratch", 6, seed, Setting(1e30, 3)) for seed in (0, 1))
    execute(first, context, tmp_path / "runs")
    assert results(tmp_path)[first.key]["val"] == 0.0
    with pytest.raises(MaeliftError, match=r"diverged at every rate that was tried\. Give lower ones"):
        execute(context.testing(first), context, tmp_path / "runs")
    config.designs["classify"] = replace(config.designs["classify"], short=True)  # one rate, and no search
    with pytest.raises(MaeliftError, match="the weights were left as they were"):
        execute(second, context, tmp_path / "runs")
    assert results(tmp_path).keys() == {first.key}
