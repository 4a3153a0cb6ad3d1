"""Suites that compare detection and segmentation, with a pool of their own, with classification or without."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import maelift
import pytest
import torch
import yaml
from maelift.benchmarks.analysis import Comparisons, difference_of
from maelift.benchmarks.arm_kind import Speed
from maelift.benchmarks.arm_kinds import mae_config
from maelift.benchmarks.compare_suites import read_result
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.disk_estimate import bytes_saved, checkpoint_peak
from maelift.benchmarks.estimates import MeasuredCost
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.protocol import arm_state, predict_runs, read_finished
from maelift.benchmarks.report import write_report
from maelift.benchmarks.runner import bench, plan
from maelift.benchmarks.stats import paired_difference
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.suite_file import SUITES
from maelift.benchmarks.tuning import Setting
from maelift.core.errors import MaeliftError
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.tests.benchmarks.canned import train_middle_rate, use_this_process
from maelift.tests.benchmarks.made_up import Page, made_up, part
from maelift.tests.support import one_line_error, run_maelift
from PIL import Image

SUITE = """
title: Does it help to find clothes?
data: {unlabelled: scenes/pool}
model: vit_nano
image_size: 32
patch_size: 8
channels: 1
workers: 2
evaluations: 1
baseline: scratch
tuning: {rates: [1e-4, 3e-4, 1e-3, 3e-3], max_doublings: 0, max_extensions: 0}
tasks:
  find:
    task: detect
    data: scenes
    labels: [8]
    seeds: [0, 1]
    short: true
    steps: 2
    recipe: &slim {recipe: small, head: faster, batch_size: 4, pyramid_scales: [1], fc_dim: 32, head_channels: 16,
      pyramid_channels: 16, proposals: 20, box_samples: 8, region_samples: 8, lr: 1e-3}
  segment:
    task: segment
    data: scenes
    image_size: 40
    labels: [8]
    seeds: [0, 1]
    steps: {8: 2}
    recipe: {recipe: small, head: linear, batch_size: 4}
    arms: {mae: {layer_decay: 0.9}}
arms:
  mae:
    start: mae
    label: MAE on the pool
    pretrain: {epochs: 2, batch_size: 8, lr: 1e-3, holdout: 4, evaluations: 1, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
  scratch: {start: scratch, label: from scratch}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Path:
    """A folder with the suite and small scenes; one scene of the pool is in test too."""
    home = tmp_path_factory.mktemp("tasks")
    (home / "suite.yaml").write_text(SUITE)
    small = {"size": 32, "items": (1, 3), "item_sizes": (12, 16)}
    fashion_scenes(
        FashionScenesConfig(str(home / "scenes"), str(fashion_mnist), train=16, val=6, test=10, pool=24, **small)  # type: ignore[arg-type]
    )
    test = min((home / "scenes" / "images" / "test").glob("*.png"))
    Image.open(test).save(home / "scenes" / "pool" / "known.png")
    return home


def resolved(home: Path, **keys: Any) -> BenchConfig:
    """The suite, whatever folder it is called from."""
    tasks: dict[str, dict[str, Any]] = {name: {"data": str(home / "scenes")} for name in ("find", "segment")}
    for name, more in keys.pop("tasks", {}).items():
        tasks[name] |= more
    own = {"data": {"unlabelled": str(home / "scenes" / "pool")}, "tasks": tasks}
    return BenchConfig.resolve({"suite": str(home / "suite.yaml"), "out": str(home / "out"), **own, **keys})


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The report of the suite, whose compared runs are trained."""
    with pytest.MonkeyPatch.context() as patch:
        use_this_process(patch, train_middle_rate)
        assert bench(resolved(home)).error is None
    return home / "out"


@pytest.mark.slow
def test_a_suite_of_detection_and_segmentation_is_compared_and_reported(home: Path, whole: Path) -> None:
    with (whole / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["arm"], row["seed"]) for row in rows] == [
        (task, arm, seed) for task in ("find", "segment") for arm in ("mae", "scratch") for seed in ("0", "1")
    ]
    assert all(0 <= float(row["test_mIoU_percent"]) <= 100 for row in rows if row["task"] == "segment")
    assert all(row["test_AP_percent"] and not row["test_mIoU_percent"] for row in rows if row["task"] == "find")
    page = Page(whole / "report.html")
    assert "Detection (find): a short run, for demonstration only" in page.text and "Segmentation" in page.text
    assert (
        "On find at 8 labels, a short run for demonstration only, nothing tuned and nothing concluded: test AP"
        in page.text
    )
    assert "On segment at 8 labels," in page.text and "2 paired seeds, 10 test images" in page.text
    assert "left out of the pool: 1." in page.text  # the scene that is in test too
    runs = [json.loads(path.read_text()) for path in whole.glob("runs/*/result.json")]
    kinds = [(run["run"]["kind"], run["run"]["task"]) for run in runs]
    assert kinds.count(("mae", "")) == 1 and kinds.count(("train", "find")) == 4  # no trials, no checks
    assert kinds.count(("test", "segment")) == kinds.count(("test", "find")) == 4
    assert kinds.count(("train", "segment")) == 4 * 4  # every seed of every arm tries the rates


@pytest.mark.slow
def test_single_items_add_up_to_the_score_and_carry_the_luck_of_the_test_images(home: Path, whole: Path) -> None:
    result = read_result(whole)
    for part_ in result.parts:
        for cell in part_.cells:
            items = cell.item_scores()
            assert len(items) == 10 and items.mean() == pytest.approx(part_.score(cell), abs=1e-6)
    segment = result.parts[1]
    difference = difference_of(segment, "mae", "scratch", 8)
    assert difference is not None and difference.items == 10
    short = [one for one in Comparisons(result).comparisons if one.part.name == "find"]
    assert all(one.p is None and one.verdict == "not resolved" for one in short)


def test_pairs_share_their_images_heads_and_pretrained_encoder(home: Path) -> None:
    config = resolved(home)
    context = Context.of(config, read_suite_images(config))
    mae = context.pretraining("mae", 0)
    assert mae is not None
    for task in ("find", "segment"):
        tuned, fresh = (context.training(task, arm, 8, 1, Setting(1e-3, 2)) for arm in ("mae", "scratch"))
        assert tuned.parents == (mae.key,) and fresh.parents == ()
        assert tuned.key != fresh.key and tuned.context == fresh.context
    assert config.designs["find"].evaluations == 1
    often = resolved(home, tasks={"find": {"evaluations": 2}})
    assert [often.designs[task].evaluations for task in ("find", "segment")] == [2, 1]
    key = Context.of(often, read_suite_images(often)).training("find", "mae", 8, 1, Setting(1e-3, 2)).key
    assert key != context.training("find", "mae", 8, 1, Setting(1e-3, 2)).key
    other = resolved(home, tasks={"segment": {"recipe": {"scale": [0.9, 1.1]}}})
    changed = Context.of(other, read_suite_images(other))
    assert (
        changed.training("segment", "mae", 8, 1, Setting(1e-3, 2)).key
        != context.training("segment", "mae", 8, 1, Setting(1e-3, 2)).key
    )
    assert (
        changed.training("find", "mae", 8, 1, Setting(1e-3, 2)).key
        == context.training("find", "mae", 8, 1, Setting(1e-3, 2)).key
    )
    assert config.recipe("segment", "mae").layer_decay == 0.9 and config.recipe("segment", "scratch").layer_decay == 1.0
    assert config.spec_at("segment").image_size == (40, 40) and config.spec_at("find").image_size == (32, 32)


@pytest.mark.slow
def test_a_dry_run_and_the_status_name_the_tasks(home: Path, whole: Path) -> None:
    text = plan(resolved(home, out=str(home / "new"))).text()
    assert "2 paired seeds at 8 labels; not tuned (short)" in text and "4 rates tried" in text
    assert "24 images to pretrain on" in text and "labelled source 16, validation 6, test 10" in text
    assert not (home / "new").exists()
    done = run_maelift("bench", "suite.yaml", "out=out", "--status", cwd=home)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][0] == "task" and [row[:2] for row in rows[1:5]] == [
        [task, arm] for task in ("find", "segment") for arm in ("mae", "scratch")
    ]
    assert "2 of 2" in done.stdout and "as given" in done.stdout


@pytest.mark.slow
def test_a_plan_tells_what_the_runs_leave_on_the_disk(home: Path, whole: Path) -> None:
    config = resolved(home)
    context = Context.of(config, read_suite_images(config))
    found = predict_runs(context, read_finished(whole / "runs"))
    kept = {path: path.stat().st_size for path in whole.glob("runs/*/*.safetensors")}
    models = {path.parent.name for path in kept if path.name == "model.safetensors"}
    assert models == {run.parents[0] for run in found.values() if run.kind == "test"}
    leaving = [run for run in found.values() if run.makes_encoder or run.key in models]
    assert sum(kept.values()) == pytest.approx(bytes_saved(context, leaving), rel=0.05)
    trained = [run for run in found.values() if run.kind == "train"]
    losing = bytes_saved(context, trained) - bytes_saved(context, [run for run in trained if run.key in models])
    assert losing > 0 and bytes_saved(context, found.values()) - losing == bytes_saved(context, leaving)  # until chosen
    mae = next(run for run in found.values() if run.kind == "mae")
    weights = bytes_saved(
        context, [mae]
    )  # a checkpoint holds them three times; three are kept, and one is being written
    assert (
        checkpoint_peak(context, found.values(), 2) == 3 * (mae_config(config, "mae", 0, "").checkpoints + 1) * weights
    )
    text = plan(resolved(home, out=str(home / "new"))).text()
    assert re.search(r"disk +0\.\d\d GiB for these runs, and 0\.\d\d GiB of checkpoints while they run", text)
    assert re.search(r"cells +\d+ compared: arms × label counts × seeds", text)


@pytest.mark.slow
def test_a_plan_tells_the_time_by_finished_runs_and_by_steps_that_it_measures(
    home: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(resolved(home)).seconds == 0.0  # all is done
    runs = [json.loads(path.read_text()) for path in whole.glob("runs/*/result.json")]
    find = {
        kind: [run["seconds"] for run in runs if run["run"]["kind"] == kind and run["run"]["task"] == "find"]
        for kind in ("train", "test")
    }
    more = plan(resolved(home, tasks={"find": {"seeds": [0, 1, 2]}})).seconds
    assert more == pytest.approx(
        sum(2 * sum(times) / len(times) for times in find.values()) / 2
    )  # of two arms, two workers
    config = resolved(home, out=str(home / "new"))
    context = Context.of(config, read_suite_images(config))
    measured = MeasuredCost(context, torch.device("cpu"))
    train, other = (
        context.training("find", "mae", 8, 0, Setting(1e-3, 2)),
        context.training("segment", "scratch", 8, 0, Setting(1e-3, 2)),
    )
    pretrain, test = context.pretraining("mae", 0), context.testing(train)
    assert pretrain is not None
    state = torch.get_rng_state()
    for run in (pretrain, train, other, test):
        assert 0 < measured.seconds(run) < 600
    assert torch.equal(torch.get_rng_state(), state) and not list(tmp_path.iterdir())
    monkeypatch.setattr(measured, "_speed", lambda run: Speed(2.0, 0.5))
    seconds = [measured.seconds(run) for run in (pretrain, train, test)]
    assert seconds == [2.0 * 2 * 24, 2.0 * 2 * 4 + 0.5 * 1 * 6, 0.5 * 10]


@pytest.mark.slow
def test_a_suite_goes_on_where_it_was(home: Path, whole: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in whole.glob("runs/*/result.json")}
    table = (whole / "results.csv").read_bytes()
    lost = next(path for path in kept if json.loads(path.read_text())["run"]["task"] == "find")
    (lost.parent / "result.json").unlink()
    done = run_maelift("bench", "suite.yaml", "out=out", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (whole / "results.csv").read_bytes() == table
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept if path != lost)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["tasks.find.evaluations=0"], "tasks.find.evaluations=0: expected 1 or more."),
        (["tasks.find.task=detekt"], "tasks.find.task=detekt: expected one of detect, segment. Did you mean detect?"),
        (["tasks.find.recip={}"], "tasks.find.recip: no such key. Did you mean tasks.find.recipe"),
        (["tasks.find.recipe.proposal=3"], "tasks.find.recipe.proposal: no such key. Did you mean proposals"),
        (["tasks.segment.recipe.lr=1e-3"], "tasks.segment.lr=0.001: expected no rate"),
        (["tasks.segment.recipe.out=x"], "tasks.segment.recipe.out=x: expected no value here"),
        (["tasks.segment.arms.mea={head: linear}"], "tasks.segment.arms.mea"),
        (["tasks.segment.arms.mae.heads=linear"], "tasks.segment.arms.mae.heads: no such key. Did you mean head"),
        (["tasks.segment.image_size=33"], "tasks.segment.image_size=33: expected multiples of the patch size 8"),
        (["tasks.segment.labels=[8,8]"], "tasks.segment.labels=[8,8]: expected one or more whole numbers"),
        (["tasks.segment.labels=[800]"], "labels=800: there are only 16 labelled images"),
        (["tasks.segment.rates=[1e-3]"], "rates=[0.001]: expected at least 4 rates"),
        (["tasks.find.recipe.head=cascade"], "tasks.find.recipe.head=cascade: expected faster or mask"),
        (["tasks.find.recipe.anchor_sizes=[8,8,8,8]"], "tasks.find.recipe.anchor_sizes=[8,8,8,8]: expected 2 sizes"),
        (["tasks.find.data=nowhere"], "nowhere"),
        (["labels=[8]"], "labels=[8]: expected none without data.path"),
        (["published.find=imagenet"], "published.find=imagenet: expected one of imagenet-vit-b"),
        (["published.fnd=coco-vit-b"], "published.fnd=coco-vit-b: expected one of the tasks find, segment"),
        (["data.unlabelled=null"], "data.path=null: expected labelled images"),
        (["arms.scratch.start=supervised"], "arms.scratch: start=supervised needs labels of the pool"),
    ],
)
def test_mistakes_are_told_in_one_line(home: Path, keys: list[str], said: str) -> None:
    words = [f"suite={home / 'suite.yaml'}", f"out={home / 'none'}", f"data.unlabelled={home / 'scenes' / 'pool'}"]
    words += [f"tasks.{name}.data={home / 'scenes'}" for name in ("find", "segment")]
    with pytest.raises(MaeliftError) as caught:
        plan(BenchConfig.resolve([*words, *keys]))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_tells_of_a_task_s_mistake(home: Path) -> None:
    done = run_maelift("bench", "suite.yaml", "out=none", "tasks.find.recipe.fc_dimm=3", cwd=home)
    one_line_error(done, "tasks.find.recipe.fc_dimm: no such key. Did you mean fc_dim")
    assert not (home / "none").exists()


def test_verdicts_of_all_tasks_are_corrected_together(tmp_path: Path) -> None:
    clear = {("mae", 100): (0.52, 0.55, 0.51), ("scratch", 100): (0.40, 0.42, 0.41)}
    result = made_up(clear)
    several = replace(result, parts=(*result.parts, part(clear, "detect"), part(clear, "segment")))
    verdicts = write_report(several, tmp_path).verdicts
    assert [verdict.split(",")[0] for verdict in verdicts[1:]] == [
        "At 100 labels",
        "On detect at 100 labels",
        "On segment at 100 labels",
    ]
    assert "points of test AP of boxes compared with" in verdicts[2] and "points of test mIoU" in verdicts[3]
    alone = paired_difference(clear["mae", 100], clear["scratch", 100], drawn=100 / 9_000).p
    assert [one.p for one in Comparisons(several).comparisons] == [pytest.approx(3 * alone)] * 3
    page = Page(tmp_path / "report.html")
    assert len(page.values("id")) == len(set(page.values("id")))


def test_a_longer_scratch_arm_gets_the_steps_that_pretraining_took(home: Path) -> None:
    longer = {"longer": {"start": "scratch", "label": "longer", "compute_of": "mae"}}
    config = resolved(home, arms=longer)
    context = Context.of(config, read_suite_images(config))
    own, more = (context.steps("segment", arm, 8) for arm in ("scratch", "longer"))
    twice = resolved(home, arms={**longer, "mae": {"pretrain": {"epochs": 4}}})
    assert own == 2 < more
    doubled = Context.of(twice, read_suite_images(twice)).steps("segment", "longer", 8)
    assert doubled - own == pytest.approx(2 * (more - own), abs=1)
    done = {"val": 0.1, "curve": []}
    state = arm_state(context, "segment", "longer", 8, lambda run: done if run.kind == "train" else None)
    trained = {run for run in state.requested if run.kind == "train"}
    assert state.check is None and len(trained) == 4 * 2 and {run.steps for run in trained} == {more}


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_every_shipped_suite_can_be_read(name: str) -> None:
    config = BenchConfig.resolve([f"suite={name}", "out=x"])
    assert config.baseline in ("auto", *config.arms)
    for task, design in config.designs.items():
        assert design.short or len(design.tuning.rates) >= 4
        assert all(config.initial_steps(task, arm, labels) > 0 for arm in config.arms for labels in design.labels)
    content = yaml.safe_load((SUITES / f"{name}.yaml").read_text())
    assert "title" in content and len(content["title"]) < 120


@pytest.mark.slow
def test_gray_tasks_train_on_one_channel(home: Path, whole: Path) -> None:
    (file,) = whole.glob("runs/*/encoder.safetensors")
    encoder = maelift.load_encoder(str(file))
    assert encoder.spec.channels == 1 and 0 < encoder.preprocessing.mean[0] < 0.5
