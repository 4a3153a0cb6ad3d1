"""What plans, starts, stops and repeats the runs of a suite, by canned results: real workers die, hang and fail at will."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import maelift.api
import pytest
from maelift.benchmarks import answer_cache, runner
from maelift.benchmarks.answer_cache import AnswerCache
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.estimates import RunCosts
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.progress import RunProgress
from maelift.benchmarks.protocol import arm_state, read_finished
from maelift.benchmarks.runner import BenchResult, bench, plan
from maelift.benchmarks.runs import Run
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.tuning import Setting
from maelift.cli import main
from maelift.core.errors import MaeliftError
from maelift.core.progress import TrainingProgress
from maelift.tests.benchmarks.brightness import (
    LABELS,
    RATES,
    SEEDS,
    SUITE,
    alive,
    home,  # noqa: F401  (a fixture)
    resolved,
    results,
    workers_of,
    write_classes,
)
from maelift.tests.benchmarks.canned import execute, use_canned_workers, use_this_process
from maelift.tests.support import eventually, one_line_error, run_maelift, start_maelift
from rich.console import Console

FEWER = (6,)
"""The labels of suites that are stopped, killed or broken here: half of the runs, with the keys that the others have too."""


@dataclass(frozen=True)
class Whole:
    """A suite that ran without a stop: the folder with the suite and its images, its report, and what came of it."""

    home: Path
    out: Path
    result: BenchResult


@pytest.fixture(scope="module")
def whole(home: Path) -> Whole:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        use_this_process(patch)
        return Whole(home, home / "whole", bench(resolved(home, home / "whole")))


@pytest.fixture
def maelift_bench(
    whole: Whole, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CompletedProcess[str]]:
    """``maelift bench`` of the suite with more words, in this process."""

    def call(*more: str) -> CompletedProcess[str]:
        monkeypatch.setattr(logging.getLogger("maelift"), "handlers", [])
        words = ["bench", str(whole.home / "suite.yaml"), f"data.path={whole.home / 'images'}", *more]
        code = main(words)
        return CompletedProcess(words, code, *capsys.readouterr())

    return call


def rows_of_fewer(out: Path) -> list[str]:
    """The rows of results.csv for these labels, with its head."""
    rows = (out / "results.csv").read_text().splitlines()
    return [row for row in rows if row == rows[0] or row.split(",")[2] in map(str, FEWER)]


def key_of_mae(whole: Whole) -> str:
    """The run that pretrains."""
    (mae,) = [key for key, result in results(whole.out).items() if result["run"]["kind"] == "mae"]
    return mae


def test_every_seed_of_every_arm_tries_all_rates_then_more_steps_and_reads_the_test_split_once(whole: Whole) -> None:
    for labels in LABELS:
        assert any(f"{labels} labels" in verdict and "MAE on the pool" in verdict for verdict in whole.result.verdicts)
    with (whole.out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(LABELS) * len(SEEDS)
    runs = [result["run"] for result in results(whole.out).values()]
    kinds = Counter(run["kind"] for run in runs)
    assert kinds["mae"] == kinds["supervised"] == 1 and kinds["test"] == len(rows)
    tried: defaultdict[tuple[str, int, int], set[tuple[int, float]]] = defaultdict(set)
    for run in runs:
        if run["kind"] == "train":
            tried[run["arm"], run["labels"], run["seed"]].add((run["steps"], run["lr"]))
    assert len(tried) == len(rows)  # every seed of every arm searches
    for (_, labels, _), found in tried.items():
        counts = Counter(steps for steps, _ in found)
        fewest = {6: 3, 12: 4}[labels]
        assert counts.keys() == {fewest, 2 * fewest} and counts[fewest] == RATES and 1 <= counts[2 * fewest] <= 3
    models = {path.parent.name for path in whole.out.glob("runs/*/model.safetensors")}
    assert models == {row["run"] for row in rows}  # those of the others are removed


def test_a_terminal_shows_the_runs_at_work_as_a_table(home: Path) -> None:  # noqa: F811
    config = resolved(home)
    context = Context.of(config, read_suite_images(config))
    progress = RunProgress(context, lambda run: None, 2, RunCosts(context))
    one, other = (context.training("classify", "scratch", 6, seed, Setting(1e-3, 3)) for seed in (0, 1))
    progress._predict()
    assert "time left unknown yet" in progress._summary([one, other])
    progress.update(one.key, TrainingProgress(step=1, total=3, images_per_second=41.6, loss=1.5))
    assert progress._time_left([one, other]) is None  # its first steps tell nothing yet
    progress.update(one.key, TrainingProgress(step=2, total=3, images_per_second=41.6, loss=1.25))
    ahead = progress._time_left([one, other])
    assert (
        ahead is not None and ahead > 0 and "left unless rates or steps are extended" in progress._summary([one, other])
    )
    written = io.StringIO()
    Console(file=written, width=110).print(progress._table([one, other]))
    summary, head, *rows = written.getvalue().splitlines()
    assert summary.startswith("bench: 0 runs done in") and head.split() == ["run", "step", "loss", "images/s"]
    assert rows[0].split()[-3:] == ["2/3", "1.250", "42"] and rows[1].strip() == other.title()


@pytest.mark.slow
def test_a_worker_that_dies_once_costs_nothing(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    def strike() -> None:
        eventually(lambda: len(list(tmp_path.glob("runs/*/result.json"))) > 5)
        killed.append(workers_of(os.getpid())[0])
        os.kill(killed[0], signal.SIGKILL)

    use_canned_workers(monkeypatch, seconds=0.1)
    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    done = bench(resolved(whole.home, tmp_path, labels=FEWER))
    striker.join()
    assert killed and done.error is None and not workers_of(os.getpid())
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)


@pytest.mark.slow
def test_a_run_that_always_kills_its_process_is_left_out_and_the_others_are_done(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mae, ended, kills = key_of_mae(whole), threading.Event(), 0

    def strike() -> None:
        nonlocal kills
        folder = tmp_path / "runs" / mae
        while not ended.wait(0.01):
            if folder.exists() and not (folder / "result.json").exists():
                for worker in workers_of(os.getpid()):
                    os.kill(worker, signal.SIGKILL)
                kills += 1
                shutil.rmtree(folder)

    use_canned_workers(monkeypatch, encoder_seconds=2.0)
    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    done = bench(resolved(whole.home, tmp_path, labels=FEWER))
    ended.set()
    striker.join()
    assert kills == 2 and done.error is not None
    assert "mae: pretraining, seed 0: its process died (killed, or out of memory?)" in done.error
    assert done.result.missing == ("mae at 6 labels",)
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        row for row in rows_of_fewer(whole.out) if not row.startswith("classify,mae,")
    ]


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_its_run_done_again(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung: list[int] = []

    def strike() -> None:
        eventually(lambda: len(results(tmp_path)) >= 4)
        hung.append(workers_of(os.getpid())[0])
        os.kill(hung[0], signal.SIGSTOP)  # alive, and never heard of again

    use_canned_workers(monkeypatch, seconds=0.1)
    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    done = bench(resolved(whole.home, tmp_path, labels=FEWER, stall_minutes=0.05))
    striker.join()
    assert hung and not alive(hung[0]) and done.error is None
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)


@pytest.mark.slow
def test_a_run_that_fails_is_shown_and_the_others_are_done(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    maelift_bench: Callable[..., CompletedProcess[str]],
) -> None:
    use_canned_workers(monkeypatch)
    mae = key_of_mae(whole)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / mae).write_text("a file where its folder should be")
    done = maelift_bench(f"out={tmp_path}", "labels=[6]")
    one_line_error(done, "mae: pretraining, seed 0:", "the same command tries the failed ones again")
    report = (tmp_path / "report.md").read_text()
    assert "A run failed, and is not among the results: mae: pretraining, seed 0:" in report
    assert "(partial result)" in report and "labels of the pool" in report
    (tmp_path / "runs" / mae).unlink()
    assert maelift_bench(f"out={tmp_path}", "labels=[6]").returncode == 0
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)


@pytest.mark.parametrize("kind", ["mae", "train", "test"])
def test_the_other_seeds_are_compared_where_a_run_of_one_fails(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def failing(run: Run, context: Context, store: Path) -> None:
        if run.kind == kind and run.arm == "mae" and run.seed == 1:
            raise MaeliftError("no room.")
        execute(run, context, store)

    def compared() -> set[tuple[str, int]]:
        with (tmp_path / "results.csv").open() as file:
            return {(row["arm"], int(row["seed"])) for row in csv.DictReader(file)}

    keys = {"labels": FEWER, "pretrain_seeds": [0, 1]}
    use_this_process(monkeypatch, failing)
    done = bench(resolved(whole.home, tmp_path, **keys))
    every = {(arm, seed) for arm in [arm.name for arm in done.result.arms] for seed in SEEDS}
    assert done.error is not None and "no room" in done.error
    assert compared() == every - {("mae", seed) for seed in SEEDS if seed % 2 == 1}
    assert "planned seeds have both runs" in (tmp_path / "report.md").read_text()
    use_this_process(monkeypatch)
    assert bench(resolved(whole.home, tmp_path, **keys)).error is None and compared() == every


@pytest.mark.slow
def test_a_budget_ends_the_suite_and_more_of_it_goes_on(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    maelift_bench: Callable[..., CompletedProcess[str]],
) -> None:
    use_this_process(monkeypatch)
    words = (f"out={tmp_path}", "labels=[6]")
    nothing = maelift_bench(*words, "budget.hours=0")
    assert nothing.returncode == 0 and "Nothing can be said yet" in nothing.stdout, nothing.stderr
    assert "The budget is spent (budget.hours=0; 0 s of computing)" in (tmp_path / "report.md").read_text()
    hours = sum(result["seconds"] for result in results(whole.out).values()) / 10 / 3600
    some = maelift_bench(*words, f"budget.money={2 * hours}", "budget.price=2")
    assert some.returncode == 0 and "The budget is spent (budget.money=" in some.stderr
    there = [result["seconds"] for result in results(tmp_path).values()]
    assert 3600 * hours <= sum(there) < 3600 * hours + max(there)  # none was begun after it was spent
    assert "(partial result)" in (tmp_path / "report.md").read_text()
    assert maelift_bench(*words).returncode == 0
    assert (tmp_path / "results.csv").read_text().splitlines() == rows_of_fewer(whole.out)
    one_line_error(maelift_bench(*words, "budget.money=3"), "price", "a price above 0 where money is limited")


def test_the_status_is_told_without_running_anything(
    whole: Whole, tmp_path: Path, maelift_bench: Callable[..., CompletedProcess[str]]
) -> None:
    done = maelift_bench("--status", f"out={whole.out}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["task", "arm", "labels", "encoder"] and len(lines) == 8
    assert any(
        line.split()[:2] == ["classify", "scratch"] and "none needed" in line and line.endswith("3 of 3")
        for line in lines
    )
    count = len(results(whole.out))
    assert lines[-1].startswith(f"{count} of {count} runs done")
    empty = maelift_bench("--status", f"out={tmp_path / 'new'}")
    assert "0 of 1" in empty.stdout and "open" in empty.stdout and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_suite_at_work_says_at_once_how_far_it_is(
    whole: Whole, tmp_path: Path, maelift_bench: Callable[..., CompletedProcess[str]]
) -> None:
    words = (str(whole.home / "suite.yaml"), f"data.path={whole.home / 'images'}", f"out={tmp_path}")
    note = tmp_path / "running.json"
    process = start_maelift("bench", *words, "-q")
    try:
        eventually(lambda: note.exists() or process.poll() is not None)
        asked = run_maelift("bench", *words, "--status")
        other = maelift_bench(*words[2:], "labels=[6]", "--status")
        working = process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert working and asked.returncode == 0 and asked.stderr in ("", "bench: loading torch\n")
    table, _, now = asked.stdout.partition("\n\n")
    assert table.startswith("task") and "runs done" in table
    assert now.startswith("bench: ") and "to do" in now and now.rstrip().endswith("the suite is running")
    assert "scanning" in other.stderr and "the suite is running" not in other.stdout
    old = time.time() - 61
    os.utime(note, (old, old))
    killed = maelift_bench(*words[2:], "--status")
    assert "scanning" in killed.stderr and "the suite is running" not in killed.stdout
    eventually(lambda: not workers_of(os.getpid()), seconds=5)


def test_a_signal_before_the_runs_ends_in_words(
    home: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "read_suite_images", lambda data: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(MaeliftError, match="The same command goes on") as caught:
        maelift.api.bench(str(home / "suite.yaml"), out=str(tmp_path / "out"))
    assert caught.value.exit_code == 143 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_finished_suite_answers_at_once_until_something_changes(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole.home / "images", tmp_path / "images")
    shutil.copytree(whole.out, tmp_path / "out")
    shutil.copy(whole.home / "suite.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("maelift"), "handlers", [])
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
        # As if it had been so: the next change alone counts.
        inputs = {name: answer_cache._stats_hash(Path(name))[0] for name in saved["inputs"]}
        finished.write_text(json.dumps({**saved, "inputs": inputs}))
    assert answers()
    finished.write_text("{")
    assert said() == (first, True) and said() == (first, False) and (tmp_path / "out" / "report.html").exists()
    shutil.rmtree(run.parent)
    assert not answers()


def test_a_run_may_end_while_its_arm_s_state_is_read(whole: Whole) -> None:
    """Workers write results at any moment: here each is there from the second time on that it is asked for."""
    config = resolved(whole.home, whole.out)
    context = Context.of(config, read_suite_images(config))
    finished, asked = read_finished(whole.out / "runs"), set[str]()

    def results(run: Run) -> Mapping[str, Any] | None:
        if run.key not in asked:
            asked.add(run.key)
            return None
        return finished(run)

    for _ in range(20):
        state = arm_state(context, "classify", "scratch", LABELS[0], results)
        if state.cells:
            break
    assert [cell.seed for cell in state.cells] == list(SEEDS)


def test_a_chosen_training_whose_model_is_gone_is_done_once_more(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of trainings that lose are removed; one may win later, among other rates."""
    use_this_process(monkeypatch)
    out = shutil.copytree(whole.out, tmp_path / "out")
    table = (out / "results.csv").read_bytes()
    runs = {key: result["run"] for key, result in results(out).items()}
    test = next(key for key, run in runs.items() if run["kind"] == "test")
    (trained,) = runs[test]["parents"]
    shutil.rmtree(out / "runs" / test)
    (out / "runs" / trained / "model.safetensors").unlink()
    others = {key: path.stat().st_mtime_ns for key in runs if (path := out / "runs" / key / "result.json").exists()}
    assert bench(resolved(whole.home, out)).error is None
    assert (out / "results.csv").read_bytes() == table
    again = {key for key, then in others.items() if (out / "runs" / key / "result.json").stat().st_mtime_ns != then}
    assert again == {trained} and test in results(out)


@pytest.mark.slow
def test_a_change_runs_only_what_it_touches(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_this_process(monkeypatch)
    out = shutil.copytree(whole.out, tmp_path / "out")
    old, rows = results(out), (out / "results.csv").read_text().splitlines()

    def changed(**keys: object) -> float:
        """The compute that the report names."""
        return bench(resolved(whole.home, out, **keys)).result.seconds_total

    spent = changed(arms={"scratch": {"label": "from nothing"}, "mae": {"label": "masked"}})
    assert results(out).keys() == old.keys() and (out / "results.csv").read_text().splitlines() == rows
    assert "masked" in (out / "report.md").read_text() and "MAE on the pool" not in (out / "report.md").read_text()
    assert spent == pytest.approx(sum(result["seconds"] for result in old.values()))

    recipe = {"scratch": {"recipe": {"weight_decay": 0.1}}}
    spent = changed(seeds={"6": [0, 1, 2, 3], "12": [0, 1, 2]}, arms=recipe, workers=1)
    new = {key: result["run"] for key, result in results(out).items() if key not in old}
    others = [run for run in new.values() if run["arm"] != "scratch"]
    assert {(run["labels"], run["seed"]) for run in others} == {(6, 3)}  # no encoder, and no other seed
    count = Counter((run["arm"], run["kind"]) for run in others)
    for arm in ("mae", "supervised"):
        assert count[arm, "test"] == 1 and count[arm, "train"] > RATES
    tests = Counter(run["labels"] for run in new.values() if (run["arm"], run["kind"]) == ("scratch", "test"))
    assert tests == {6: 4, 12: 3}
    now = (out / "results.csv").read_text().splitlines()
    assert [
        row for row in now if not row.startswith(("classify,scratch", "classify,mae,6,3", "classify,supervised,6,3"))
    ] == [row for row in rows if not row.startswith("classify,scratch")]
    assert 0 < spent < sum(result["seconds"] for result in results(out).values())  # what was left behind isn't counted


def test_the_key_holds_what_determines_a_run_and_no_more(
    home: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    def keys(config: BenchConfig) -> dict[str, str]:
        context = Context.of(config, read_suite_images(config))
        mae, supervised = context.pretraining("mae", 0), context.pretraining("supervised", 0)
        train = context.training("classify", "scratch", 6, 0, Setting(1e-3, 3))
        assert mae is not None and supervised is not None
        tuned = context.training("classify", "mae", 6, 0, Setting(1e-3, 3))
        return {
            "mae": mae.key,
            "supervised": supervised.key,
            "train": train.key,
            "tuned": tuned.key,
            "test": context.testing(train).key,
        }

    def changed(**more: Any) -> set[str]:
        return {kind for kind, key in keys(resolved(home, **more)).items() if key != before[kind]}

    everything = {"mae", "supervised", "train", "tuned", "test"}
    before = keys(resolved(home))
    assert changed(workers=1, title="Other", baseline="mae", out=tmp_path) == set()
    assert changed(evaluations=3) == everything - {"mae"}
    assert changed(threads=2) == changed(patch_size=4) == everything
    assert changed(arms={"mae": {"pretrain": {"log_every": 7, "checkpoint_minutes": 3}}}) == set()
    assert changed(arms={"mae": {"pretrain": {"epochs": 11}}}) == {"mae", "tuned"}
    assert changed(arms={"scratch": {"recipe": {"epochs": 7}}}) == set()  # its steps are given
    assert changed(arms={"scratch": {"recipe": {"flip": False}}}) == {"train", "test"}

    moved = shutil.copytree(home / "images", tmp_path / "moved")
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


def test_a_folder_in_use_is_refused_and_a_dry_run_writes_nothing(whole: Whole, tmp_path: Path) -> None:
    with (whole.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MaeliftError, match="another maelift command is running"):
            maelift.api.bench(str(whole.home / "suite.yaml"), out=str(whole.out), data={"path": "nowhere"})
    before = sorted(tmp_path.rglob("*"))
    text = plan(resolved(whole.home, tmp_path / "out")).text()
    assert "1 mae, 1 supervised" in text and sorted(tmp_path.rglob("*")) == before
    assert "none; more where rates or steps are extended; " in plan(resolved(whole.home, whole.out)).text()
    (tmp_path / "config.yaml").write_text("data: photos\n")
    with pytest.raises(MaeliftError, match="has other files than a suite's runs"):
        maelift.api.bench(str(whole.home / "suite.yaml"), out=str(tmp_path))
    with pytest.raises(MaeliftError, match="nothing can be written there"):
        maelift.api.bench(str(whole.home / "suite.yaml"), out=str(tmp_path / "config.yaml"))
