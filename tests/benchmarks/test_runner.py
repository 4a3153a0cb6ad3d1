"""A suite as people run it: stopped in every way, gone on with, changed; the same numbers whatever happens."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maelift.api
import numpy as np
import pytest
import torch
from maelift.api_keys import SuiteDataKeys
from maelift.benchmarks import answer_cache, progress, run_training, runner
from maelift.benchmarks.answer_cache import AnswerCache
from maelift.benchmarks.compare_suites import read_result
from maelift.benchmarks.data import SuiteImages, read_suite_images
from maelift.benchmarks.estimates import RunCosts
from maelift.benchmarks.execute import execute
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.progress import RunProgress
from maelift.benchmarks.runner import plan
from maelift.benchmarks.runs import Run
from maelift.benchmarks.suite import BenchConfig
from maelift.cli import main
from maelift.core.errors import MaeliftError
from maelift.core.progress import TrainingProgress
from maelift.core.training import loop
from maelift.tests.support import environment, one_line_error, run_maelift, start_maelift
from maelift.transfer import finetune
from PIL import Image
from rich.console import Console

LABELS, SEEDS, RATES = (6, 12), (0, 1, 2), 4

SUITE = """
title: Can dark, middle and light be told apart?
data: {path: images, pool: 60, val: 30}
labels: [6, 12]
seeds: [0, 1, 2]
model: vit_nano
image_size: 16
patch_size: 8
workers: 2
evaluations: 2
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2], check_seeds: 1, max_doublings: 1}
arms:
  mae:
    start: mae
    label: MAE on the pool
    pretrain:
      {epochs: 10, batch_size: 8, lr: 1e-3, holdout: 4, evaluations: 1, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
    recipe: &small {batch_size: 4, mixup: 0.0, cutmix: 0.0, random_erasing: 0.0}
    steps: {6: 3, 12: 4}
  supervised:
    start: supervised
    label: labels of the pool
    pretrain: {batch_size: 8, steps: 10, lr: 1e-3, mixup: 0.0, cutmix: 0.0, ema_decay: null}
    recipe: *small
    steps: {6: 3, 12: 4}
  scratch:
    start: scratch
    label: from scratch
    recipe: {batch_size: 4, mixup: 0.0, cutmix: 0.0, ema_decay: null}
    steps: {6: 3, 12: 4}
"""


@dataclass(frozen=True)
class Whole:
    """A suite that ran without a stop: the folder with the suite and its images, its report, and what it said."""

    home: Path
    out: Path
    said: str
    shown: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    home = tmp_path_factory.mktemp("bench")
    (home / "suite.yaml").write_text(SUITE)
    write_classes(home / "images" / "train", range(60))
    write_classes(home / "images" / "test", range(60, 80))
    for number in range(60, 80):  # a dark image in four is in test too
        shutil.copy(home / "images" / "test" / "dark" / f"{number}.png", home / "images" / "train" / "dark")
    done = run_maelift("bench", "suite.yaml", "out=whole", cwd=home)
    assert done.returncode == 0, done.stderr
    return Whole(home, home / "whole", done.stdout, done.stderr)


def write_classes(root: Path, numbers: Sequence[int]) -> None:
    """Three classes of noise that differ in brightness, but not by much."""
    for label, level in (("dark", 90), ("middle", 128), ("light", 165)):
        (root / label).mkdir(parents=True)
        for number in numbers:
            values = np.random.default_rng([level, number]).integers(level - 80, level + 80, (16, 16, 3))
            Image.fromarray(values.astype(np.uint8)).save(root / label / f"{number}.png")


def resolved(whole: Whole, **keys: object) -> BenchConfig:
    """The suite, whatever folder it is called from, with these keys changed."""
    suite = {
        "suite": str(whole.home / "suite.yaml"),
        "out": str(whole.out),
        "data": {"path": str(whole.home / "images")},
    }
    return BenchConfig.resolve({**suite, **keys})


def test_a_terminal_shows_the_runs_at_work_as_a_table(whole: Whole) -> None:
    config = resolved(whole)
    context = Context.of(config, read_suite_images(config))
    progress = RunProgress(context, lambda run: None, 2, RunCosts(context))
    one, other = (context.training("classify", "scratch", 6, seed, 3, 1e-3) for seed in (0, 1))
    progress._predict()
    assert "time left unknown yet" in progress._summary([one, other])
    progress.update(one.key, TrainingProgress(step=1, total=3, images_per_second=41.6, loss=1.5))
    assert progress._time_left([one, other]) is None  # its first steps tell nothing yet
    progress.update(one.key, TrainingProgress(step=2, total=3, images_per_second=41.6, loss=1.25))
    ahead = progress._time_left([one, other])
    assert ahead is not None and ahead > 0 and "left unless steps are doubled" in progress._summary([one, other])
    written = io.StringIO()
    Console(file=written, width=110).print(progress._table([one, other]))
    summary, head, *rows = written.getvalue().splitlines()
    assert summary.startswith("bench: 0 runs done in") and head.split() == ["run", "step", "loss", "images/s"]
    assert rows[0].split()[-3:] == ["2/3", "1.250", "42"] and rows[1].strip() == other.title()


def results(out: Path) -> dict[str, dict[str, Any]]:
    """What the finished runs wrote, by their keys."""
    return {path.parent.name: json.loads(path.read_text()) for path in (out / "runs").glob("*/result.json")}


FEWER = (6,)
"""The labels of suites that are stopped, killed or broken here: half of the runs, with the keys that the others have too."""


def rows_of_fewer(out: Path) -> list[str]:
    """The rows of results.csv for these labels, with its head."""
    rows = (out / "results.csv").read_text().splitlines()
    return [row for row in rows if row == rows[0] or row.split(",")[2] in map(str, FEWER)]


def tables(out: Path) -> list[str]:
    """The tables of the report but those of its section on time."""
    return [line for line in (out / "report.md").read_text().split("## Time")[0].splitlines() if line.startswith("|")]


def processes(parent: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(above) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came"
        time.sleep(0.01)


def workers_of(parent: int) -> list[int]:
    """The processes of a suite that do its runs: forks of one that has their imports done."""
    begun = [one for one in processes(parent) if b"forkserver" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return [worker for one in begun for worker in processes(one)]


def test_a_suite_ends_with_verdicts_and_keeps_every_run(whole: Whole) -> None:
    lines = whole.said.splitlines()
    assert len(lines) == 5 and lines[-1] == "report: whole/report.html"
    for line, (labels, arm) in zip(
        lines, [(count, arm) for count in LABELS for arm in ("MAE on the pool", "labels of the pool")], strict=False
    ):
        assert line.startswith(f"At {labels} labels, ") and arm in line and "3 paired seeds, 60 test images" in line
    with (whole.out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(LABELS) * len(SEEDS)
    runs = results(whole.out)
    assert {row["run"] for row in rows} <= runs.keys()
    kinds = Counter(result["run"]["kind"] for result in runs.values())
    assert kinds["mae"] == kinds["supervised"] == 1
    assert kinds["test"] == len(rows)  # the test split is read once for each compared run, and for no trial
    trials = Counter(
        (result["run"]["recipe"], tuple(result["run"]["parents"]), result["run"]["labels"])
        for result in runs.values()
        if result["run"]["kind"] == "train" and result["run"]["seed"] == 1000
    )
    assert len(trials) == 3 * len(LABELS) and set(trials.values()) == {RATES}
    assert len(list((whole.out / "runs").iterdir())) == len(runs)
    assert "scanning the images" in whole.shown and "runs to do, 2 at a time" in whole.shown


@pytest.mark.slow
def test_the_report_names_no_folders_but_by_their_last_names(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.out, tmp_path / "again")
    words = [whole.home / "suite.yaml", f"out={tmp_path / 'again'}", f"data.path={whole.home / 'images'}"]
    done = run_maelift("bench", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "report.md", "report.tex", "results.csv", "results.json"):
        text = (tmp_path / "again" / name).read_text()
        assert str(whole.home) not in text and str(tmp_path) not in text, name
    result = read_result(tmp_path / "again")
    assert result.reconstructions is not None and result.reconstructions.is_relative_to(tmp_path / "again")
    assert "path: images" in result.config_yaml


def test_an_image_in_pool_and_test_is_dropped_and_told_of(whole: Whole) -> None:
    pools = read_suite_images(resolved(whole))
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

    for reached, kill in ((in_pretraining, os.kill), (after(55), os.killpg)):
        process = start_maelift("bench", "suite.yaml", "out=killed", cwd=whole.home, session=True)
        eventually(lambda: reached() or process.poll() is not None)  # noqa: B023
        workers = workers_of(process.pid)
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
        "print(maelift.bench(sys.argv[1], out=sys.argv[2], data={'path': sys.argv[3]}, workers=1).summary())\n"
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
    assert tables(out) == tables(whole.out) and len(tables(out)) > 20


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
def test_a_worker_that_dies_once_costs_nothing(whole: Whole, tmp_path: Path) -> None:
    def strike() -> None:
        eventually(lambda: len(list(tmp_path.glob("runs/*/result.json"))) > 5)
        os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    done = maelift.api.bench(
        str(whole.home / "suite.yaml"), out=str(tmp_path), data={"path": str(whole.home / "images")}, labels=FEWER
    )
    striker.join()
    assert done.error is None and not workers_of(os.getpid())
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)


@pytest.mark.slow
def test_a_run_that_always_kills_its_process_is_left_out_and_the_others_are_done(whole: Whole, tmp_path: Path) -> None:
    (mae,) = [key for key, result in results(whole.out).items() if result["run"]["kind"] == "mae"]
    ended, kills = threading.Event(), 0

    def strike() -> None:
        nonlocal kills
        folder = tmp_path / "runs" / mae
        while not ended.wait(0.01):
            if (folder / "data.json").exists() and not (folder / "result.json").exists():
                for worker in workers_of(os.getpid()):
                    os.kill(worker, signal.SIGKILL)
                kills += 1
                shutil.rmtree(folder)

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    done = maelift.api.bench(
        str(whole.home / "suite.yaml"), out=str(tmp_path), data={"path": str(whole.home / "images")}, labels=FEWER
    )
    ended.set()
    striker.join()
    assert kills == 2 and done.error is not None
    assert "mae: pretraining, seed 0: its process died (killed, or out of memory?)" in done.error
    assert done.result.missing == ("mae at 6 labels",)
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        row for row in rows_of_fewer(whole.out) if not row.startswith("classify,mae,")
    ]


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_its_run_done_again(whole: Whole, tmp_path: Path) -> None:
    hung: list[int] = []

    def strike() -> None:
        eventually(lambda: len(results(tmp_path)) >= 4, seconds=200)
        hung.append(workers_of(os.getpid())[0])
        os.kill(hung[0], signal.SIGSTOP)  # alive, and never heard of again

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    done = maelift.api.bench(
        str(whole.home / "suite.yaml"),
        out=str(tmp_path),
        data={"path": str(whole.home / "images")},
        labels=FEWER,
        stall_minutes=0.1,
    )
    striker.join()
    assert hung and not alive(hung[0]) and done.error is None
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)


@pytest.mark.slow
def test_a_run_that_fails_is_shown_and_the_others_are_done(whole: Whole, tmp_path: Path) -> None:
    (mae,) = [key for key, result in results(whole.out).items() if result["run"]["kind"] == "mae"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / mae).write_text("a file where its folder should be")
    words = ("bench", whole.home / "suite.yaml", f"out={tmp_path}", f"data.path={whole.home / 'images'}", "labels=[6]")
    done = run_maelift(*words)
    one_line_error(done, "mae: pretraining, seed 0:", "the same command tries the failed ones again")
    report = (tmp_path / "report.md").read_text()
    assert "A run failed, and is not among the results: mae: pretraining, seed 0:" in report
    assert "(partial result)" in report and "labels of the pool" in report
    (tmp_path / "runs" / mae).unlink()
    assert run_maelift(*words).returncode == 0
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)


@pytest.mark.slow
def test_a_budget_ends_the_suite_and_more_of_it_goes_on(whole: Whole, tmp_path: Path) -> None:
    words = ("bench", whole.home / "suite.yaml", f"out={tmp_path}", f"data.path={whole.home / 'images'}", "labels=[6]")
    nothing = run_maelift(*words, "budget.hours=0")
    assert nothing.returncode == 0 and "Nothing can be said yet" in nothing.stdout, nothing.stderr
    assert "The budget is spent (budget.hours=0; 0 s of computing)" in (tmp_path / "report.md").read_text()
    # A tenth: machines that are shared are now slow, now fast.
    tenth = sum(result["seconds"] for result in results(whole.out).values()) / 10 / 3600
    some = run_maelift(*words, f"budget.money={2 * tenth}", "budget.price=2")
    assert some.returncode == 0 and "The budget is spent (budget.money=" in some.stderr
    there = len(results(tmp_path))
    assert 0 < there < len(results(whole.out)) and "(partial result)" in (tmp_path / "report.md").read_text()
    assert run_maelift(*words).returncode == 0
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)
    one_line_error(run_maelift(*words, "budget.money=3"), "price", "a price above 0 where money is limited")


def test_the_status_is_told_without_running_anything(whole: Whole, tmp_path: Path) -> None:
    words = ("bench", whole.home / "suite.yaml", f"data.path={whole.home / 'images'}", "--status")
    done = run_maelift(*words, f"out={whole.out}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["task", "arm", "labels", "encoder"] and len(lines) == 8
    assert any(
        line.split()[:2] == ["classify", "scratch"] and "none needed" in line and line.endswith("3 of 3")
        for line in lines
    )
    count = len(results(whole.out))
    assert lines[-1].startswith(f"{count} of {count} runs done")
    empty = run_maelift(*words, f"out={tmp_path / 'new'}")
    assert "0 of 1" in empty.stdout and "open" in empty.stdout and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_suite_at_work_says_at_once_how_far_it_is(whole: Whole, tmp_path: Path) -> None:
    words = ("bench", str(whole.home / "suite.yaml"), f"data.path={whole.home / 'images'}", f"out={tmp_path}")
    note = tmp_path / "running.json"
    process = start_maelift(*words, "-q", session=True)
    try:
        eventually(lambda: note.exists() or process.poll() is not None)
        asked = run_maelift(*words, "--status")
        other = run_maelift(*words, "labels=[6]", "--status")
        working = process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert working and asked.returncode == 0 and asked.stderr == ""
    table, _, now = asked.stdout.partition("\n\n")
    assert table.startswith("task") and "runs done" in table
    assert now.startswith("bench: ") and "to do" in now and now.rstrip().endswith("the suite is running")
    assert "scanning" in other.stderr and "the suite is running" not in other.stdout
    old = time.time() - 61
    os.utime(note, (old, old))
    killed = run_maelift(*words, "--status")
    assert "scanning" in killed.stderr and "the suite is running" not in killed.stdout
    assert not (whole.out / note.name).exists()  # that one came to its end


def test_a_signal_before_the_runs_ends_in_words(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "read_suite_images", lambda data: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(MaeliftError, match="The same command goes on") as caught:
        maelift.api.bench(str(whole.home / "suite.yaml"), out=str(tmp_path / "out"))
    assert caught.value.exit_code == 143 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_finished_suite_answers_at_once_until_something_changes(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole.home / "images", tmp_path / "images")
    shutil.copytree(whole.out, tmp_path / "out")
    shutil.copy(whole.home / "suite.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answer_cache, "RACY_SECONDS", 0.1)  # the two seconds of the slowest file systems
    words, finished = ("suite.yaml", "out=out"), tmp_path / "out" / "finished.json"

    def said(*more: str) -> tuple[str, bool]:
        """The verdicts, and whether the images were scanned for them."""
        time.sleep(0.2)  # what was just changed isn't believed to stay
        assert main(["bench", *words, *more]) == 0
        captured = capsys.readouterr()
        return captured.out, "scanning" in captured.err

    def answers(*more: str) -> bool:
        return AnswerCache((*words, *more)).answer() is not None

    first, scanned = said()
    assert scanned and finished.is_file()
    assert said() == (first, False)
    elsewhere = run_maelift("bench", *words, cwd=tmp_path)
    assert (elsewhere.returncode, elsewhere.stdout, elsewhere.stderr) == (0, first, "")
    table, scanned = said("--status")
    assert not scanned and "runs done" in table and "3 of 3" in table
    assert said("-q") == (first, False)
    assert not answers("workers=1")  # other words

    run = next((tmp_path / "out" / "runs").glob("*/result.json"))
    for change in (
        lambda: (tmp_path / "suite.yaml").write_text(SUITE + "\n"),
        lambda: os.utime(tmp_path / "images" / "train" / "dark" / "0.png"),
        lambda: (tmp_path / "out" / "report.html").unlink(),
        lambda: run.write_text(run.read_text() + "\n"),
    ):
        saved = json.loads(finished.read_text())
        assert answers()
        change()
        assert not answers()
        inputs = {name: answer_cache._stats_hash(Path(name))[0] for name in saved["inputs"]}
        finished.write_text(
            json.dumps({**saved, "inputs": inputs})
        )  # as if it had been so: the next change alone counts
    assert answers()
    finished.write_text("{")
    assert said() == (first, True) and said() == (first, False) and (tmp_path / "out" / "report.html").exists()
    shutil.rmtree(run.parent)
    assert not answers()


@pytest.mark.slow
def test_a_change_runs_only_what_it_touches(whole: Whole, tmp_path: Path) -> None:
    out = shutil.copytree(whole.out, tmp_path / "out")
    old, rows = results(out), (out / "results.csv").read_text().splitlines()

    def bench(**keys: Any) -> float:
        """The compute that the report names."""
        images: SuiteDataKeys = {"path": str(whole.home / "images")}
        return maelift.api.bench(str(whole.home / "suite.yaml"), out=str(out), data=images, **keys).result.seconds_total

    spent = bench(arms={"scratch": {"label": "from nothing"}, "mae": {"label": "masked"}})
    assert results(out).keys() == old.keys() and (out / "results.csv").read_text().splitlines() == rows
    assert "masked" in (out / "report.md").read_text() and "MAE on the pool" not in (out / "report.md").read_text()
    assert spent == pytest.approx(sum(result["seconds"] for result in old.values()))

    recipe = {"scratch": {"recipe": {"weight_decay": 0.1}}}
    spent = bench(seeds={"6": [0, 1, 2, 3], "12": [0, 1, 2]}, arms=recipe, workers=1)
    new = {key: result["run"] for key, result in results(out).items() if key not in old}
    count = Counter((run["arm"], run["kind"], run["labels"]) for run in new.values() if run["arm"] != "scratch")
    new_seed = {(arm, kind, 6): 1 for arm in ("mae", "supervised") for kind in ("train", "test")}
    assert count == new_seed and all(run["seed"] == 3 for run in new.values() if run["arm"] != "scratch")
    tests = Counter(run["labels"] for run in new.values() if (run["arm"], run["kind"]) == ("scratch", "test"))
    assert tests == {6: 4, 12: 3}
    now = (out / "results.csv").read_text().splitlines()
    assert [
        row for row in now if not row.startswith(("classify,scratch", "classify,mae,6,3", "classify,supervised,6,3"))
    ] == [row for row in rows if not row.startswith("classify,scratch")]
    assert 0 < spent < sum(result["seconds"] for result in results(out).values())  # what was left behind isn't counted


def test_the_key_holds_what_determines_a_run_and_no_more(whole: Whole, tmp_path: Path) -> None:
    def keys(config: BenchConfig) -> dict[str, str]:
        context = Context.of(config, read_suite_images(config))
        mae, supervised = context.pretraining("mae", 0), context.pretraining("supervised", 0)
        train = context.training("classify", "scratch", 6, 0, 3, 1e-3)
        assert mae is not None and supervised is not None
        tuned = context.training("classify", "mae", 6, 0, 3, 1e-3)
        return {
            "mae": mae.key,
            "supervised": supervised.key,
            "train": train.key,
            "tuned": tuned.key,
            "test": context.testing(train).key,
        }

    def changed(**more: object) -> set[str]:
        return {kind for kind, key in keys(resolved(whole, **more)).items() if key != before[kind]}

    everything = {"mae", "supervised", "train", "tuned", "test"}
    before = keys(resolved(whole))
    assert changed(workers=1, title="Other", baseline="mae", out=str(tmp_path)) == set()
    assert changed(evaluations=3) == everything - {"mae"}
    assert changed(threads=2) == changed(patch_size=4) == everything
    assert changed(arms={"mae": {"pretrain": {"log_every": 7, "checkpoint_minutes": 3}}}) == set()
    assert changed(arms={"mae": {"pretrain": {"epochs": 11}}}) == {"mae", "tuned"}
    assert changed(arms={"scratch": {"recipe": {"epochs": 7}}}) == set()  # its steps are given
    assert changed(arms={"scratch": {"recipe": {"flip": False}}}) == {"train", "test"}

    moved = shutil.copytree(whole.home / "images", tmp_path / "moved")
    data = {"path": str(moved)}
    assert changed(data=data) == set()
    assert changed(data={**data, "seed": 1}) == everything
    (moved / "test" / "light" / "60.png").unlink()
    assert changed(data=data) == {"test"}


def test_labels_are_part_of_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_classes(folder, range(20))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))
    digests = []
    for other in (False, True):
        rows = [f"{name},{'light' if other and name == names[0] else name.split('/')[0]}" for name in names]
        (folder / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        suite = {"title": "T", "labels": [3], "seeds": [0, 1], "arms": {"scratch": {"start": "scratch", "label": "S"}}}
        (tmp_path / "suite.yaml").write_text(json.dumps(suite))
        data = {"path": str(folder), "pool": 20}
        config = BenchConfig.resolve({"suite": str(tmp_path / "suite.yaml"), "out": "x", "data": data})
        pools = read_suite_images(config)
        digests.append((pools.pool_digest, pools.tasks["classify"].digests))
    assert digests[0] != digests[1]


@pytest.mark.slow
def test_a_seed_is_one_draw_and_one_head_for_all_arms(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole.out, tmp_path / "out")
    config = resolved(whole)
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
    runs: list[Run] = [context.training("classify", arm, 6, seed, 1, 2e-3) for seed in (0, 1) for arm in config.arms]
    for run in runs:
        execute(run, context, out / "runs")
    for seed in (0, 1):
        of_seed = [entry for entry in seen if entry[1] == seed]
        assert len(of_seed) == 3
        assert len({entry[2] for entry in of_seed}) == 1 and len({entry[3] for entry in of_seed}) == 1
        assert len({entry[4] for entry in of_seed}) == 3  # the encoders are those of the arms
        assert len(set(of_seed[0][2])) == 6 and len({name.split("/")[-2] for name in of_seed[0][2]}) == 3
    assert seen[0][2] != seen[3][2] and seen[0][3] != seen[3][3]


def test_a_folder_in_use_is_refused_and_a_dry_run_writes_nothing(whole: Whole, tmp_path: Path) -> None:
    with (whole.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MaeliftError, match="another maelift command is running"):
            maelift.api.bench(str(whole.home / "suite.yaml"), out=str(whole.out), data={"path": "nowhere"})
    before = sorted(tmp_path.rglob("*"))
    text = plan(resolved(whole, out=str(tmp_path / "out"))).text()
    assert "1 mae, 1 supervised" in text and sorted(tmp_path.rglob("*")) == before
    assert "none; more where steps are doubled; " in plan(resolved(whole)).text()
    (tmp_path / "config.yaml").write_text("data: photos\n")
    with pytest.raises(MaeliftError, match="has other files than a suite's runs"):
        maelift.api.bench(str(whole.home / "suite.yaml"), out=str(tmp_path))
    with pytest.raises(MaeliftError, match="nothing can be written there"):
        maelift.api.bench(str(whole.home / "suite.yaml"), out=str(tmp_path / "config.yaml"))


def test_a_trial_that_diverges_loses_and_a_compared_run_that_diverges_is_told(whole: Whole, tmp_path: Path) -> None:
    config = resolved(whole)
    context = Context.of(config, read_suite_images(config))
    trial = context.training("classify", "scratch", 6, config.tuning.seed, 3, 1e30)
    execute(trial, context, tmp_path / "runs")
    assert results(tmp_path)[trial.key]["val"] == 0.0
    with pytest.raises(MaeliftError, match="the weights were left as they were"):
        execute(context.training("classify", "scratch", 6, 0, 3, 1e30), context, tmp_path / "runs")
    assert results(tmp_path).keys() == {trial.key}
