"""The report says which arm to use, how certain that is, what it costs and what a cheaper one gives up."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from maelift.benchmarks.choice import choices
from maelift.benchmarks.cost_report import Point, pareto_front
from maelift.benchmarks.model_cost import ModelCost
from maelift.benchmarks.report import write_report
from maelift.benchmarks.results import Arm, SuiteResult
from maelift.core.report.html import MINUS
from maelift.tests.benchmarks.made_up import ARMS, Accuracies, Page, answered, made_up, part

SCORES: Accuracies = {
    ("mae", 100): (0.744, 0.751, 0.739, 0.760),
    ("supervised", 100): (0.80, 0.81, 0.79, 0.80),
    ("scratch", 100): (0.672, 0.681, 0.660, 0.683),
    ("cnn", 100): (0.741, 0.752, 0.742, 0.757),
}
CNN = Arm("cnn", "small CNN", "from random weights", 0.0, pretrained=False)
CPU = "a CPU, 1 thread"


def cost(arm: str, latency: float | None, flops: float = 1e6, device: str = CPU) -> ModelCost:
    return ModelCost(arm, "classify", "key", device, (1, 28, 28), 500_000, flops, latency, 1000.0, 32)


COSTS = (cost("mae", 4e-3, 8e6), cost("scratch", 4.1e-3, 8e6), cost("cnn", 1e-3, 2e6), cost("supervised", 4e-3))


def suite(scores: Accuracies = SCORES, **changes: object) -> SuiteResult:
    return made_up(scores, **{"arms": (*ARMS, CNN), "baseline": "auto", "costs": COSTS, **changes})


def test_the_arm_that_validates_best_is_named_with_what_may_be_as_good(tmp_path: Path) -> None:
    report = write_report(suite(), tmp_path)
    (said,) = report.choices
    assert re.fullmatch(
        r"With 100 labels, use MAE on the pool: 74\.85 % \(\d\d\.\d\d to \d\d\.\d\d %\) of the test images classified right\. "
        r"It comes first in \d\d % of resamples; small CNN \(\d\d %\) may be as good\.",
        said,
    ), said
    page = Page(report.html)
    assert page.text.index(said) < page.text.index("What is compared") and said in report.markdown.read_text()
    (found,) = choices(suite())
    assert "supervised" not in found.first  # an upper bound
    assert found.first["scratch"] < 0.01 and sum(found.first.values()) == pytest.approx(1.0)
    assert found.score.low < found.uncorrected.low and found.score.high == found.uncorrected.high


def test_what_the_cheaper_arm_gives_up_is_said_with_its_interval(tmp_path: Path) -> None:
    page = Page(write_report(suite(), tmp_path).html)
    assert re.search(
        rf"Cheaper to use: small CNN, 1\.00 ms an image instead of 4\.00, gives up 0\.05 points "
        rf"\({MINUS}\d\.\d\d to \d\.\d\d\)\.",
        page.text,
    )
    alike = suite(costs=tuple(cost(arm, 4e-3) for arm in ("mae", "scratch", "cnn")))
    assert "Cheaper to use" not in Page(write_report(alike, tmp_path).html).text
    elsewhere = (*COSTS[:2], cost("cnn", 1e-3, 2e6, "another CPU"))  # times of two machines aren't compared
    text = Page(write_report(suite(costs=elsewhere), tmp_path).html).text
    assert "small CNN, 2.00 million operations an image instead of 8.00, gives up" in text


def test_where_another_arm_comes_first_more_often_on_test_images_that_is_said(tmp_path: Path) -> None:
    result = suite()
    (only,) = result.parts
    lucky = tuple(replace(cell, val=0.9) if cell.arm == "scratch" else cell for cell in only.cells)
    (said,) = write_report(suite(cells=lucky), tmp_path).choices
    assert said.startswith("With 100 labels, use scratch: 67.40 %") and "It comes first in under 1 %" in said
    assert re.search(r"on the test images (small CNN|MAE on the pool) comes first more often\.", said)


def test_a_clearly_better_arm_is_resolved(tmp_path: Path) -> None:
    scores = {key: values for key, values in SCORES.items() if key[0] != "cnn"}
    (said,) = write_report(suite(scores, arms=ARMS), tmp_path).choices
    assert said.endswith("It comes first in over 99 % of resamples, and is resolved to be better than every other arm.")


def test_one_seed_says_nothing_of_its_certainty(tmp_path: Path) -> None:
    (said,) = write_report(suite({key: values[:1] for key, values in SCORES.items()}), tmp_path).choices
    assert said.endswith("of one seed, so that nothing is known of how certain that is.")


def test_equal_readings_are_no_certainty(tmp_path: Path) -> None:
    equal = {("mae", 100): (0.7, 0.7, 0.7), ("scratch", 100): (0.6, 0.6, 0.6)}
    (said,) = write_report(suite(equal, arms=ARMS), tmp_path).choices
    assert said.endswith(
        "70.00 % of the test images classified right; the same of every seed, so that nothing is known of how "
        "certain that is."
    )


def test_arms_without_runs_are_named(tmp_path: Path) -> None:
    result = suite()
    there = tuple(cell for cell in result.parts[0].cells if cell.arm != "cnn")
    (said,) = write_report(suite(cells=there), tmp_path).choices
    assert said.endswith(" Runs are missing of small CNN.")


def test_single_test_images_and_encoders_count(tmp_path: Path) -> None:
    two = {key: values for key, values in SCORES.items() if key[0] in ("mae", "scratch")}
    (images,) = choices(answered(two))
    (alone,) = choices(made_up(two))
    assert images.score.high - images.score.low > alone.score.high - alone.score.low
    (encoders,) = choices(answered(two, encoders=2))
    assert encoders.score.mean - encoders.score.low > images.score.mean - images.score.low
    assert choices(replace(made_up(two), parts=(replace(made_up(two).parts[0], short=True),))) == []


def test_other_tasks_are_chosen_for_by_themselves(tmp_path: Path) -> None:
    detect = part({("mae", 50): (0.30, 0.32, 0.31), ("scratch", 50): (0.35, 0.33, 0.36)}, "detect")
    result = suite()
    said = write_report(replace(result, parts=(*result.parts, detect)), tmp_path).choices
    assert said[1].startswith("With 50 labels on detect, use scratch: 34.67 % (")


def test_costs_stand_beside_scores(tmp_path: Path) -> None:
    broken = replace(COSTS[1], latency=None, throughput=None, reason="its file is damaged")
    costs = (*(one for one in COSTS if one.arm != "scratch"), broken)
    page = Page(write_report(suite(costs=costs), tmp_path).html)
    (table,) = [table for table in page.tables if table[0][1:] == USE]
    assert ["MAE on the pool", "0.500", "8.00", "4.00", "1,000"] in table
    assert ["scratch", "0.500", "8.00", "unknown", "unknown"] in table
    assert "Not measured: scratch: its file is damaged" in page.text and CPU in page.text
    again = SuiteResult.from_json(suite().to_json())
    assert again == suite()
    content = json.loads(suite().to_json())
    del content["costs"], content["seen"]  # as earlier versions wrote it
    assert SuiteResult.from_json(json.dumps(content)) == suite(costs=())


USE = ["parameters, M", "operations, M", "ms", "images/s"]


def test_the_front_is_of_arms_that_none_beats_at_no_clearly_higher_cost() -> None:
    points = [
        Point("cheap", 1.0, 60.0),
        Point("best", 10.0, 80.0),
        Point("noise", 9.9, 79.0),  # as dear as the best, but for the noise of the measurement
        Point("worse", 5.0, 55.0),
        Point("middle", 4.0, 70.0),
    ]
    assert [point.arm for point in pareto_front(points)] == ["cheap", "middle", "best"]
    assert pareto_front([]) == []


def test_the_chart_of_score_over_cost_marks_the_front_by_more_than_colour(tmp_path: Path) -> None:
    text = write_report(suite(), tmp_path).html.read_text()
    chart = text[text.index("over the cost of use") :]
    assert "on the front: small CNN and MAE on the pool" in chart
    assert f"milliseconds for one image ({CPU})" in " ".join(re.sub(r"<[^>]+>", " ", chart).split())
    without = suite(costs=tuple(replace(one, latency=None) for one in COSTS))
    text = " ".join(re.sub(r"<[^>]+>", " ", write_report(without, tmp_path).html.read_text()).split())
    assert "million floating-point operations for one image" in text
    assert "over the cost of use" not in write_report(suite(costs=()), tmp_path).html.read_text()
