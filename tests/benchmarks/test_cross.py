"""Suites whose rates and steps are chosen by cross-validation within the labelled images of each seed."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.estimates import MeasuredCost
from maelift.benchmarks.execute import execute as real_execute
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.protocol import predict_runs, read_finished
from maelift.benchmarks.results import SuiteResult
from maelift.benchmarks.runner import BenchResult, bench, plan
from maelift.benchmarks.runs import Run
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.tuning import Setting
from maelift.core.data.classification import LabeledImages
from maelift.core.data.labeled_dataset import draw_labeled
from maelift.core.device import choose_device
from maelift.core.errors import MaeliftError
from maelift.tests.benchmarks.brightness import (
    home,  # noqa: F401  (a fixture)
    resolved,
    results,
)
from maelift.tests.benchmarks.canned import execute, use_this_process
from maelift.version import __version__

LABELS = 12
SMALL: dict[str, Any] = {"labels": [LABELS], "seeds": [0, 1]}


def cross(home: Path, out: Path | None = None, **keys: Any) -> BenchConfig:  # noqa: F811
    data = {"path": str(home / "images"), "val": "cross", **keys.pop("data", {})}
    return resolved(home, out, **{**SMALL, "data": data, **keys})


@dataclass(frozen=True)
class Whole:
    """A suite that ran without a stop, by canned results."""

    home: Path
    out: Path
    result: BenchResult
    context: Context


@pytest.fixture(scope="module")
def whole(home: Path) -> Whole:  # noqa: F811
    config = cross(home, home / "whole")
    with pytest.MonkeyPatch.context() as patch:
        use_this_process(patch)
        return Whole(home, home / "whole", bench(config), Context.of(config, read_suite_images(config)))


def names(images: LabeledImages) -> set[str]:
    return {images.images.name(index) for index in range(len(images))}


def runs_of(out: Path) -> list[Run]:
    """The runs that were done."""
    given = [result["run"] for result in results(out).values()]
    return [Run(**{**run, "parents": tuple(run["parents"])}) for run in given]


def test_every_setting_is_tried_on_the_folds_of_a_seed_and_the_chosen_one_trained_on_all(whole: Whole) -> None:
    assert whole.result.error is None and not whole.result.result.missing
    folds: defaultdict[tuple[str, int, int, float], set[int]] = defaultdict(set)
    for run in runs_of(whole.out):
        if run.kind == "train":
            folds[run.arm, run.seed, run.steps, run.lr].add(run.fold)
    (part,) = whole.result.result.parts
    chosen = {(cell.arm, cell.seed, cell.steps, cell.lr) for cell in part.cells}
    assert len(chosen) == 3 * 2 and part.cross_folds == 5 and part.counts["validation"] == 0
    for place, found in folds.items():
        assert found == {0, 1, 2, 3, 4, *([-1] if place in chosen else [])}
    models = {path.parent.name for path in whole.out.glob("runs/*/model.safetensors")}
    assert models == {cell.key for cell in part.cells}  # no fold saves one
    for tuning in part.tunings:
        assert tuning.runs == 5 * len(tuning.trials) + 2


def test_a_setting_s_score_is_the_mean_over_its_folds(whole: Whole) -> None:
    read = read_finished(whole.out / "runs")
    (part,) = whole.result.result.parts
    for tuning in part.tunings:
        for trial in tuning.trials:
            setting = Setting(trial.rate, trial.steps)
            folds = whole.context.folds("classify", LABELS, trial.seed)
            assert folds is not None
            scores = [
                (read(run) or {})["val"]
                for run in whole.context.trials("classify", tuning.arm, LABELS, trial.seed, setting)
            ]
            assert trial.val == pytest.approx(np.average(scores, weights=folds.sizes))
            if trial.chosen:
                (cell,) = [cell for cell in part.cells if (cell.arm, cell.seed) == (tuning.arm, trial.seed)]
                assert cell.val == trial.val and not cell.curve.val and cell.curve.train_loss
    assert {len(check.seeds) for check in part.checks} == {2}


def test_no_other_image_than_the_seed_s_own_is_trained_on_or_chooses(whole: Whole) -> None:
    source = whole.context.classify
    assert len(source.val) == 0
    for run in runs_of(whole.out):
        if run.kind != "train":
            continue
        own = whole.context.splits_of(run)
        drawn = names(draw_labeled(source.train, LABELS, run.seed))
        train, val = names(own.train), names(own.val)
        assert train | val == drawn and len(drawn) == LABELS and not drawn & names(source.test)
        assert (train & val == set()) if run.fold >= 0 else (train == val == drawn)
        assert set(own.train.labels) == {0, 1, 2}


def test_the_report_says_that_the_labels_choose_too(whole: Whole) -> None:
    report = (whole.out / "report.md").read_text()
    assert "Labels used: 12, of which the choice of rate and length is part (5-fold cross-validation); the" in report
    assert "validation images" not in report.replace("validation: 0 images", "")
    assert "cross-validation within the labelled images of each seed" in report
    assert "of as few as 12 the choice is partly luck" in report
    assert "is a near-duplicate of test" in report and "in validation or test" not in report
    again = SuiteResult.from_json((whole.out / "results.json").read_text(), whole.out)
    assert again.parts[0].cross_folds == 5 and again.parts[0].tunings[0].runs > 0


def test_a_second_command_does_nothing(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run: Run, context: Context, store: Path) -> None:
        raise AssertionError(run.title())

    use_this_process(monkeypatch, refused)
    table = (whole.out / "results.csv").read_bytes()
    assert bench(cross(whole.home, whole.out)).error is None
    assert (whole.out / "results.csv").read_bytes() == table
    assert "none; more where rates or steps are extended" in plan(cross(whole.home, whole.out)).text()


def test_a_suite_that_is_stopped_goes_on_to_the_same_results(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def stopping(run: Run, context: Context, store: Path) -> None:
        if len(done) == 40:
            raise KeyboardInterrupt
        done.append(run.key)
        execute(run, context, store)

    use_this_process(monkeypatch, stopping)
    with pytest.raises((MaeliftError, KeyboardInterrupt)):
        bench(cross(whole.home, tmp_path))
    assert len(results(tmp_path)) == 40
    use_this_process(monkeypatch)
    assert bench(cross(whole.home, tmp_path)).error is None
    assert (tmp_path / "results.csv").read_bytes() == (whole.out / "results.csv").read_bytes()
    assert results(tmp_path).keys() == results(whole.out).keys()


@pytest.mark.parametrize("fold", [2, -1])
def test_a_seed_with_a_failing_fold_or_training_is_left_out(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: int
) -> None:
    def failing(run: Run, context: Context, store: Path) -> None:
        if (run.kind, run.arm, run.seed, run.fold) == ("train", "scratch", 1, fold):
            raise MaeliftError("no room.")
        execute(run, context, store)

    use_this_process(monkeypatch, failing)
    done = bench(cross(whole.home, tmp_path))
    assert done.error is not None and "no room" in done.error and "scratch: 12 labels, seed 1" in done.error
    with (tmp_path / "results.csv").open() as file:
        compared = {(row["arm"], row["seed"]) for row in csv.DictReader(file)}
    assert compared == {(arm, seed) for arm in ("mae", "supervised", "scratch") for seed in "01"} - {("scratch", "1")}


def test_a_dry_run_counts_and_measures_the_runs_of_folds(whole: Whole, tmp_path: Path) -> None:
    config = cross(whole.home, tmp_path / "out")
    predicted = predict_runs(whole.context, lambda run: None)
    folds = sum(run.fold >= 0 for run in predicted.values())
    assert folds == 3 * 2 * 5 * (4 + 1)  # arms, seeds, folds, and rates with one doubling
    text = plan(config).text()
    assert f"{folds} cross-validation, 6 train, 6 test" in text
    assert "4 rates tried by each seed, in 5-fold cross-validation of a seed's labels" in text
    cost = MeasuredCost(whole.context, choose_device("cpu"))
    for run in predicted.values():
        assert cost.seconds(run) > 0


def test_keys_of_suites_with_validation_images_are_as_before(whole: Whole) -> None:
    config = resolved(whole.home, **SMALL)
    context = Context.of(config, read_suite_images(config))
    for arm in ("mae", "scratch"):
        run = context.training("classify", arm, LABELS, 0, Setting(1e-3, 4))
        assert run.fold == -1 and context.trials("classify", arm, LABELS, 0, Setting(1e-3, 4)) == [run]
        assert not {"fold", "folds"} & json.loads(run.context).keys()
        before = {
            key: value
            for key, value in asdict(run).items()
            if key in ("kind", "seed", "labels", "steps", "lr", "recipe", "context", "parents", "code")
        }
        text = json.dumps({**before, "maelift": __version__}, sort_keys=True)
        assert run.key == hashlib.sha256(text.encode()).hexdigest()[:24]
    folds = whole.context.trials("classify", "scratch", LABELS, 0, Setting(1e-3, 4))
    refit = whole.context.training("classify", "scratch", LABELS, 0, Setting(1e-3, 4))
    assert len({run.key for run in [*folds, refit]}) == 6
    assert replace(refit, fold=0).key == refit.key  # the context tells them apart


def test_a_validation_split_of_the_data_stays_unused_and_the_report_says_so(
    home: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(home / "images", tmp_path / "images")
    shutil.copytree(home / "images" / "test", tmp_path / "images" / "val")
    config = cross(home, data={"path": str(tmp_path / "images")})
    pools = read_suite_images(config)
    assert len(pools.classify.val) == 0 and len(pools.classify.train) > 0
    assert any("The validation split of the data (60 images) is not used" in finding for finding in pools.findings)
    assert names(pools.classify.test) == names(read_suite_images(cross(home)).classify.test)


def test_groups_of_images_are_in_one_fold(home: Path) -> None:  # noqa: F811
    config = cross(home, data={"group": "/([0-9])[0-9]*.png"}, labels=[40], arms={"supervised": {"steps": {"40": 2}}})
    with pytest.raises(MaeliftError, match="groups are in two splits"):
        read_suite_images(config)  # train and test have splits of their own here
    shutil.rmtree(home / "grouped", ignore_errors=True)
    shutil.copytree(home / "images" / "train", home / "grouped")
    data = {"path": str(home / "grouped"), "group": "/([0-9]+?)[0-9]?.png", "pool": 0.3, "test": 0.2}
    config = cross(home, data=data, labels=[40])
    context = Context.of(config, read_suite_images(config))
    folds = context.folds("classify", 40, 0)
    drawn = draw_labeled(context.classify.train, 40, 0)
    assert folds is not None and folds.scored > 20
    of: defaultdict[str, set[int]] = defaultdict(set)
    for index, number in enumerate(folds.numbers):
        of[Path(drawn.images.name(index)).stem[0]].add(number)
    assert all(len(numbers) == 1 for numbers in of.values())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data": {"path": None, "unlabelled": "any", "val": "cross"}, "labels": []}, "data.val"),
        ({"data": {"val": "crosses"}}, "data.val"),
        (
            {"tasks": {"find": {"task": "detect", "data": "any", "labels": [2], "seeds": [0], "val": "cross"}}},
            "find.val",
        ),
    ],
)
def test_what_can_t_be_cross_validated_is_refused_in_one_line(
    home: Path,  # noqa: F811
    keys: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(MaeliftError, match=said) as caught:
        cross(home, **keys)
    assert "\n" not in str(caught.value)


def test_labels_too_few_for_folds_are_refused(home: Path) -> None:  # noqa: F811
    config = cross(home, labels=[3])
    with pytest.raises(MaeliftError, match="labels=3: the images of seed 0 can't be cross-validated"):
        Context.of(config, read_suite_images(config)).check()


@pytest.mark.slow
def test_a_real_suite_with_probes_is_trained_and_reads_no_test_image_before_its_test(
    home: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: defaultdict[tuple[str, int, int], set[str]] = defaultdict(set)
    at: list[Run] = []

    def watched(run: Run, context: Context, store: Path) -> None:
        at[:] = [run]
        real_execute(run, context, store)

    kind = type(read_suite_images(cross(home)).classify.train.images)
    original = kind.open

    def recorded(self: Any, index: int, *more: Any) -> Any:
        if at:
            opened[at[0].kind, at[0].labels, at[0].seed].add(self.name(index))
        return original(self, index, *more)

    config = cross(home, tmp_path, baseline="auto", simple_arms=True, tuning={"max_doublings": 0})
    assert {"mae_frozen", "pixels", "cnn"} <= config.arms.keys()
    context = Context.of(config, read_suite_images(config))
    use_this_process(monkeypatch, watched)
    monkeypatch.setattr(kind, "open", recorded)
    done = bench(config)
    assert done.error is None and not done.result.missing
    source = context.classify
    for (what, labels, seed), seen in opened.items():
        if what == "train":
            assert seen <= names(draw_labeled(source.train, labels, seed))
        elif what != "test":
            assert not seen & (names(source.test) | names(source.train))
    (part,) = done.result.parts
    assert len(part.cells) == 2 * len(config.arms) and all(0 <= cell.val <= 1 for cell in part.cells)
    probes = [run for run in runs_of(tmp_path) if run.variant]
    assert probes and all(run.fold == -1 for run in probes)
    encoder = next(result for result in results(tmp_path).values() if result["run"]["kind"] == "supervised")
    assert "val" not in encoder
