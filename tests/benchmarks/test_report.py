"""The report says what the numbers say, in odd cases too, and needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from maelift.benchmarks.report import write_report
from maelift.benchmarks.results import Arm, Example, NearPair, SuiteResult
from maelift.benchmarks.stats import crossed_difference, paired_difference
from maelift.core.errors import MaeliftError
from maelift.core.report.html import MINUS
from maelift.tests.benchmarks.made_up import ACCURACIES, ARMS, Accuracies, Page, answered, check, made_up, tuning
from PIL import Image


def test_the_first_sentence_can_be_understood_without_statistics(tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    first = report.verdicts[0]
    assert first.startswith(
        "This encoder (MAE on the pool) helps with 100 labels, compared with scratch, the only method without pretraining; with "
        "1,000 labels it is not shown to help: with 100 labels, 74."
    )
    assert re.search(r"; with 1,000 labels, 84\.0 % instead of 84\.[23] %, a difference that may be luck\.$", first)
    assert not re.search(r"interval|p =|seeds|adjusted|\barm\b", first) and first.count(".") < 8
    page = Page(report.html)
    assert page.text.index(first) < page.text.index("Every comparison")
    assert first in report.markdown.read_text()
    assert "100 or 1,000 to train with, and 1,000 labelled validation images" in page.text


CNN = Arm("cnn", "small CNN", "from random weights", 0.0, pretrained=False)


@pytest.mark.parametrize(
    ("cnn", "said"),
    [
        (
            0.60,
            "This encoder (MAE on the pool) helps, compared with the best method without pretraining (scratch): with 100",
        ),
        (
            0.74,
            "This encoder (MAE on the pool) is not shown to beat the best method without pretraining (small CNN): with 100",
        ),
        (
            0.82,
            "This encoder (MAE on the pool) does worse than the best method without pretraining (small CNN): with 100",
        ),
    ],
)
def test_the_first_sentence_is_of_the_best_arm_without_pretraining(tmp_path: Path, cnn: float, said: str) -> None:
    noise = (0.0, 0.012, -0.009, 0.004)
    scores = {key: values for key, values in ACCURACIES.items() if key[1] == 100}
    result = made_up({**scores, ("cnn", 100): tuple(cnn + one for one in noise)}, arms=(*ARMS, CNN), baseline="auto")
    assert write_report(result, tmp_path).verdicts[0].startswith(said)
    named = replace(result, baseline="scratch")
    first = write_report(named, tmp_path).verdicts[0]
    assert ("scratch, which is not the best method without pretraining" in first) == (cnn > 0.7)
    assert ("Better on validation, without pretraining too: small CNN" in Page(tmp_path / "report.html").text) == (
        cnn > 0.7
    )


def test_from_three_encoders_on_the_sentence_is_of_the_method(tmp_path: Path) -> None:
    three = {key: values for key, values in ACCURACIES.items() if key[1] == 100}
    for encoders, said in ((1, "This encoder (MAE on the pool) helps"), (4, "MAE on the pool helps")):
        assert write_report(answered(three, encoders=encoders), tmp_path).verdicts[0].startswith(said)


def test_verdicts_have_the_right_numbers(tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    expected = paired_difference(ACCURACIES["mae", 100], ACCURACIES["scratch", 100], drawn=100 / 9_000)
    mean, low, high = (f"{100 * number:+.2f}" for number in (expected.mean, expected.low, expected.high))
    assert report.verdicts[1] == (
        f"At 100 labels, this encoder (MAE on the pool) helps: {mean} points of test accuracy compared with scratch "
        f"(95 % interval {low} to {high}; adjusted p below 0.001; 4 paired seeds, 10,000 test images)."
    )
    assert len(report.verdicts) == 3  # of the arm that saw the pool's labels there is none
    page = Page(report.html)
    assert all(verdict in page.text for verdict in report.verdicts)


def test_an_open_question_says_what_it_excludes_and_would_have_found(tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    verdict = report.verdicts[2]
    assert f"whether this encoder (MAE on the pool) helps is not resolved: {MINUS}0.25 points" in verdict
    difference = paired_difference(ACCURACIES["mae", 1000], ACCURACIES["scratch", 1000], drawn=1000 / 9_000)
    limit, found = 100 * difference.equivalence_limit(), 100 * difference.resolvable(2)
    assert f"Any true difference is at most {limit:.2f} points, either way." in verdict
    assert f"One of {found:.2f} points would have been resolved with a chance of 80 %." in verdict


def test_plans_are_for_differences_that_the_reader_chooses(tmp_path: Path) -> None:
    tables = Page(write_report(made_up(), tmp_path).html).tables
    (plan,) = [table for table in tables if table[0][3:] == ["1 point", "2 points", "5 points"]]
    assert [row[:3] for row in plan[1:]] == [
        ["MAE on the pool", "100", "4 seeds"],
        ["MAE on the pool", "1,000", "4 seeds"],
    ]
    for arm, labels, _, _, two, five in plan[1:]:
        counts = [int(cell.split()[0].replace(",", "")) for cell in (two, five)]
        assert counts[0] >= counts[1] > 1 and all(re.search(r"seeds \(\d+ to ", cell) for cell in (two, five)), (
            arm,
            labels,
        )


@pytest.mark.slow
def test_test_images_are_drawn_too_where_it_is_known_which_were_right(tmp_path: Path) -> None:
    result = answered(ACCURACIES)
    by_arm = {
        arm: [cell for cell in result.parts[0].cells if (cell.arm, cell.labels) == (arm, 100)]
        for arm in ("mae", "scratch")
    }
    mine, theirs = ([cell.item_scores() for cell in by_arm[arm]] for arm in ("mae", "scratch"))
    assert 0.6 < np.mean(mine) < 0.9 and len(mine[0]) == 400
    expected = crossed_difference(mine, theirs, drawn=100 / 9_000)
    low, high = (f"{100 * value:+.2f}".replace("-", MINUS) for value in (expected.low, expected.high))
    report = write_report(result, tmp_path)
    assert f"interval {low} to {high};" in report.verdicts[1]
    page = Page(report.html)
    assert coverage(page)["which images are tested with"] == ["yes", "as if others like them were drawn"]
    row = next(row for row in compared(page) if row[0] == f"MAE on the pool {MINUS} scratch" and row[1] == "100")
    assert row[7] == f"{100 * expected.resolvable(2):.2f}"
    again = SuiteResult.from_json(result.to_json())
    assert again == result and write_report(again, tmp_path).verdicts == report.verdicts


def compared(page: Page) -> list[list[str]]:
    """The rows of the table of differences."""
    (table,) = [table for table in page.tables if table[0][0] == "difference" and table[0][-1] == "verdict"]
    return table[1:]


def coverage(page: Page) -> dict[str, list[str]]:
    """What varies, with whether and how the intervals cover it."""
    (table,) = [table for table in page.tables if table[0] == ["what varies", "covered", "how"]]
    return {row[0]: row[1:] for row in table[1:]}


def test_encoders_count_where_seeds_share_them(tmp_path: Path) -> None:
    report = write_report(answered(ACCURACIES, encoders=2), tmp_path)
    assert "4 paired seeds on 2 encoders, 400 test images" in report.verdicts[1]
    assert report.verdicts[0].startswith("This pair of encoders (MAE on the pool)")
    page = Page(report.html)
    assert compared(page)[0][9] == "2 encoders" and coverage(page)["pretraining of the encoder"][0] == "yes"


def test_several_comparisons_make_a_verdict_harder(tmp_path: Path) -> None:
    alone: Accuracies = {("mae", 100): (0.72, 0.73, 0.74), ("scratch", 100): (0.70, 0.70, 0.70)}
    noise = {("mae", 1000): (0.70, 0.72, 0.69), ("scratch", 1000): (0.70, 0.71, 0.70)}
    assert (
        write_report(made_up(alone), tmp_path)
        .verdicts[1]
        .startswith("At 100 labels, this encoder (MAE on the pool) helps")
    )
    verdict = write_report(made_up({**alone, **noise}), tmp_path).verdicts[1]
    assert "not resolved" in verdict
    assert "The interval by itself excludes 0, but several comparisons were made." in verdict


def test_planned_comparisons_count_though_they_have_no_runs(tmp_path: Path) -> None:
    alone: Accuracies = {("mae", 100): (0.72, 0.73, 0.74), ("scratch", 100): (0.70, 0.70, 0.70)}
    result = made_up(alone)
    (only,) = result.parts
    planned = replace(only, label_counts=(100, 1000), seeds={100: (0, 1, 2), 1000: (0, 1, 2)})
    report = write_report(replace(result, parts=(planned,)), tmp_path)
    assert "not resolved" in report.verdicts[1]
    assert report.verdicts[2] == "At 1,000 labels, runs are missing to compare MAE on the pool with scratch."
    assert "1 of 2 planned comparisons have runs; the correction counts all 2." in Page(report.html).text


def test_the_pairs_that_are_there_are_compared_where_a_seed_failed(tmp_path: Path) -> None:
    result = made_up()
    there = tuple(cell for cell in result.parts[0].cells if (cell.arm, cell.seed) != ("mae", 2))
    report = write_report(made_up(cells=there), tmp_path)
    assert "3 of 4 planned seeds, 10,000 test images" in report.verdicts[1]
    said = "MAE on the pool, 100 labels: 3 of 4 planned seeds have both runs, and are compared; not seed 2."
    assert said in Page(report.html).text


def test_a_worse_arm_is_said_to_hurt(tmp_path: Path) -> None:
    worse = {("mae", 100): (0.60, 0.61, 0.59), ("scratch", 100): (0.70, 0.72, 0.70)}
    report = write_report(made_up(worse), tmp_path)
    assert report.verdicts[0].startswith("This encoder (MAE on the pool) does worse than scratch")
    assert report.verdicts[1].startswith(f"At 100 labels, this encoder (MAE on the pool) hurts: {MINUS}10.67 points")
    row = [f"MAE on the pool {MINUS} scratch", "100", f"{MINUS}10.67"]
    assert row in [row[:3] for row in compared(Page(report.html))]


def test_one_seed_is_no_verdict(tmp_path: Path) -> None:
    report = write_report(made_up({("mae", 100): (0.9,), ("scratch", 100): (0.5,)}), tmp_path)
    assert "is not shown to beat scratch" in report.verdicts[0]
    assert "(MAE on the pool) helps is not resolved: +40.00 points" in report.verdicts[1]
    assert "One seed gives no interval" in report.verdicts[1]
    assert "inf" not in " ".join(cell for table in Page(report.html).tables for row in table for cell in row)


@pytest.mark.parametrize("lift", [0.0, 0.1])
def test_equal_differences_are_no_verdict(tmp_path: Path, lift: float) -> None:
    equal = {("mae", 100): (0.5 + lift,) * 4, ("scratch", 100): (0.5,) * 4}
    report = write_report(made_up(equal), tmp_path)
    assert "not resolved" in report.verdicts[1]
    assert "Every seed gave the same difference, which says nothing of its spread" in report.verdicts[1]


def test_a_small_bound_is_not_rounded_to_zero(tmp_path: Path) -> None:
    close = {("mae", 100): (0.70301, 0.70100, 0.70202), ("scratch", 100): (0.70, 0.70, 0.70)}
    difference = paired_difference(close["mae", 100], close["scratch", 100], drawn=100 / 9_000)
    lifted = {**close, ("scratch", 100): tuple(0.70 + difference.low - 2e-5 for _ in range(3))}
    report = write_report(made_up(lifted, checks=()), tmp_path)
    assert "helps" in report.verdicts[1] and "interval +0.002 to" in report.verdicts[1]


def test_without_runs_to_compare_with_nothing_is_claimed(tmp_path: Path) -> None:
    result = made_up()
    others = tuple(cell for cell in result.parts[0].cells if cell.arm != "scratch")
    report = write_report(made_up(cells=others, missing=("scratch at 100 labels",)), tmp_path)
    assert report.verdicts[0] == "Nothing can be said yet: runs are missing to compare MAE on the pool with scratch."
    alone = made_up({("scratch", 100): (0.5, 0.6)})
    assert write_report(alone, tmp_path).verdicts == ("Nothing is compared: scratch is the only arm.",)
    nameless = made_up(baseline="gone", arms=result.arms[:2], cells=others)
    assert "compare MAE on the pool with gone" in write_report(nameless, tmp_path).verdicts[0]
    unpretrained = made_up(baseline="auto", arms=(ARMS[2], replace(ARMS[2], name="mae", label="another")))
    assert write_report(unpretrained, tmp_path).verdicts[0].startswith("Nothing is compared: no pretrained arm")


def score_table(page: Page) -> list[list[str]]:
    """The table of scores."""
    return next(
        table for table in page.tables if table[0][0] == "arm" and table[0][-1] == "seeds" and "top-1" in table[0]
    )


def test_a_partial_result_says_so_and_names_what_is_missing(tmp_path: Path) -> None:
    result = made_up()
    there = tuple(cell for cell in result.parts[0].cells if (cell.arm, cell.labels) != ("mae", 1000))
    report = write_report(made_up(cells=there, missing=("mae at 1000 labels",)), tmp_path)
    page = Page(report.html)
    assert "Does it help? (partial result)" in page.text
    assert "This result is partial. Missing: mae at 1000 labels." in page.text
    assert "At 1,000 labels, runs are missing to compare MAE on the pool with scratch." in report.verdicts
    assert ["MAE on the pool", "1,000", "missing", "", "", "0"] in score_table(page)
    assert "(partial result)" in report.markdown.read_text()


def test_a_report_before_the_first_run_can_be_written(tmp_path: Path) -> None:
    empty = made_up(cells=(), tunings=(), checks=(), missing=("everything",))
    assert write_report(empty, tmp_path).verdicts[0].startswith("Nothing can be said yet")


def test_what_longer_training_may_bring_is_a_warning_and_takes_from_the_verdict(tmp_path: Path) -> None:
    checks = (check("scratch", 100, gain=0.09), check("mae", 100, gain=0.0))
    report = write_report(made_up(checks=checks), tmp_path)
    text = Page(report.html).text
    assert "scratch may still gain at 100 labels: 1,600 steps in place of 400 bring +9.00 points on validation" in text
    assert "what they gain over it may be overstated" in text
    assert "not resolved" in report.verdicts[1]
    assert "The difference is no luck, but longer training may still improve scratch, by up to 9." in report.verdicts[1]
    assert "a difference that longer training could make up for" in report.verdicts[0]
    assert "Beware" not in Page(write_report(made_up(), tmp_path).html).text


def test_a_rate_at_the_edge_is_warned_of_and_trials_are_shown(tmp_path: Path) -> None:
    tunings = (tuning("mae", 100, (0.4, 0.5, 0.6)), tuning("scratch", 100, (0.4, 0.6, 0.5, 0.4)))
    page = Page(write_report(made_up(tunings=tunings), tmp_path).html)
    assert "MAE on the pool at 100 labels did best at the highest learning rate tried" in page.text
    (trials,) = [table for table in page.tables if table[0][-1] == "chose it"]
    assert ["MAE on the pool", "100", "200", "0.004", "60.00", "4", "4"] in trials
    (effort,) = [table for table in page.tables if table[0][3:4] == ["settings a seed"]]
    assert ["scratch", "classify", "100", "4", "16", "0.0005 to 0.004", "200", "none"] in effort


def test_what_the_intervals_cover_is_a_table(tmp_path: Path) -> None:
    found = coverage(Page(write_report(made_up(), tmp_path).html))
    assert {what for what, (covered, _) in found.items() if covered == "yes"} == {
        "which images are labelled",
        "the first weights of the new head",
        "order and augmentation of the images",
        "the choice of learning rate and steps",
    }
    assert found["pretraining of the encoder"] == ["no", "each arm's encoder was pretrained once"]
    once = tuple(replace(one, per_seed=False) for one in made_up().parts[0].tunings)
    page = Page(write_report(made_up(tunings=once), tmp_path).html)
    assert coverage(page)["the choice of learning rate and steps"] == ["no", "chosen once for all seeds"]
    assert "were chosen once for all seeds: the intervals don't cover the luck of that choice" in page.text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (9_000, ""),
        (2_000, "At 1,000 labels each seed draws 50 % of the 2,000 labelled images there are"),
        (1_000, "At 1,000 labels every seed has all the labelled images there are"),
    ],
)
def test_draws_that_share_many_images_are_warned_of(tmp_path: Path, source: int, said: str) -> None:
    counts = {"labelled source": source, "validation": 1_000, "test": 10_000}
    text = Page(write_report(made_up(counts=counts), tmp_path).html).text
    assert said in text and ("labelled images there are" in text) == bool(said)


def test_unequal_classes_bring_the_mean_over_classes(tmp_path: Path) -> None:
    result = made_up()
    (only,) = result.parts
    cells = tuple(replace(cell, test={**cell.test, "balanced": (cell.test["top1"] or 0) - 0.2}) for cell in only.cells)
    for counts, unequal in (((240, 30), True), ((120, 110), False)):
        part_ = replace(only, cells=cells, class_counts=counts)
        page = Page(write_report(replace(result, parts=(part_,)), tmp_path).html)
        assert ("Classes are unequal: 240 test images of the most frequent, 30 of the rarest." in page.text) == unequal
        assert ("balanced" in score_table(page)[0]) == unequal
        tables = [
            table for table in page.tables if table[0] == ["difference", "labels", "mean", "95 % interval", "seeds"]
        ]
        assert len(tables) == unequal
        if unequal:
            expected = paired_difference(ACCURACIES["mae", 100], ACCURACIES["scratch", 100])
            ends = [f"{100 * end:+.2f}" for end in (expected.low, expected.high)]
            assert [f"MAE on the pool {MINUS} scratch", "100", "+7.45", " to ".join(ends), "4"] in tables[0]


def test_every_setting_that_differs_is_found(tmp_path: Path) -> None:
    settings = {"decoder": {"depth": 2}, "epochs": 8}
    arms = (replace(ARMS[0], pretraining=settings), replace(ARMS[1], pretraining={**settings, "epochs": 2}), ARMS[2])
    result = made_up(arms=arms)
    (only,) = result.parts
    recipes = {
        "mae": {"weight_decay": 0.05, "augment": {"mixup": 0.0, "crop": (0.5, 1.0)}, "ema_decay": 0.99},
        "supervised": {"weight_decay": 0.05, "augment": {"mixup": 0.0, "crop": (0.5, 1.0)}, "ema_decay": 0.99},
        "scratch": {"weight_decay": 0.3, "augment": {"mixup": 0.0, "crop": (0.2, 1.0)}},
    }
    tables = Page(write_report(replace(result, parts=(replace(only, recipes=recipes),)), tmp_path).html).tables
    header = ["setting", "MAE on the pool", "supervised on the pool"]
    fine, before = (next(table for table in tables if table[0] == one) for one in ([*header, "scratch"], header))
    assert fine[1:] == [
        ["weight_decay", "0.05", "0.05", "0.3"],
        ["augment.crop", "[0.5,1]", "[0.5,1]", "[0.2,1]"],
        ["ema_decay", "0.99", "0.99", "none"],
    ]
    assert before[1:] == [["epochs", "8", "2"]]


def test_the_first_screen_has_the_plot_the_seeds_and_the_cost(tmp_path: Path) -> None:
    page = Page(write_report(made_up(), tmp_path).html)
    labels = [tag.get("aria-label") or "" for _, tag in page.tags if tag.get("role") == "img"]
    assert labels[0].startswith("Chart: How much better than scratch, in points of top-1 accuracy on the test images.")
    assert (
        "MAE on the pool, 100 labels: +7.45 (+" in labels[0] and ", helps; MAE on the pool, 1,000 labels" in labels[0]
    )
    assert "supervised on the pool, 100 labels: +12.60" in labels[0] and "saw more labels" in labels[0]
    assert "a dot is one seed" in labels[1]
    cost = page.tables[0]
    assert cost[0] == ["arm", "pretraining", "tuning and training", "100 labels", "1,000 labels"]
    assert ["MAE on the pool", "1 min 12 s", "2 min 40 s", "+7.45", f"{MINUS}0.25"] in cost
    assert ["scratch", "none", "2 min 40 s", "compared with", "compared with"] in cost
    folded = [tag for tag, _ in page.tags].index("details")
    assert [tag for tag, _ in page.tags[:folded]].count("table") == 1


def test_the_tables_hold_every_arm_and_pair(tmp_path: Path) -> None:
    page = Page(write_report(made_up(), tmp_path).html)
    assert ["scratch", "100", "67.40 ± 1.05", "97.00 ± 0.00", "67.40 ± 1.05", "4"] in score_table(page)
    rows = compared(page)
    assert {row[0] for row in rows} == {
        f"MAE on the pool {MINUS} scratch",
        f"supervised on the pool {MINUS} scratch",
        f"MAE on the pool {MINUS} supervised on the pool",
    }
    assert [row[-1] for row in rows[:3]] == ["helps", "upper bound", ""]  # what wasn't planned has no verdict
    (saved,) = [table for table in page.tables if table[0][3:] == ["labels needed", "interval"]]
    assert ["MAE on the pool", "100", "74.85", "277"] in [row[:4] for row in saved]
    assert ["supervised on the pool", "1,000", "87.50", "more than were tried"] in [row[:4] for row in saved]
    (steps,) = [table for table in page.tables if table[0][-1] == "settled"]
    assert len(steps) == 7 and steps[1][-1] == "yes"


def test_the_csv_holds_every_run_and_no_timing(tmp_path: Path) -> None:
    result = made_up()
    with write_report(result, tmp_path).csv.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [cell.key for cell in result.parts[0].cells]
    assert (rows[0]["arm"], rows[0]["labels"], rows[0]["seed"]) == ("mae", "100", "0")
    assert [float(row["test_top1_percent"]) for row in rows] == [
        pytest.approx(100 * (cell.test["top1"] or 0)) for cell in result.parts[0].cells
    ]
    assert not any("second" in name for name in rows[0])


def test_only_the_section_on_time_depends_on_timings(tmp_path: Path) -> None:
    result = made_up()
    slower = tuple(replace(cell, seconds=99.0) for cell in result.parts[0].cells)
    reports = []
    for number, again in enumerate((result, result, made_up(cells=slower, seconds_total=9.0))):
        (tmp_path / str(number)).mkdir()
        reports.append(write_report(again, tmp_path / str(number)))
    first, same, other = reports
    assert first.html.read_bytes() == same.html.read_bytes()
    assert first.csv.read_bytes() == other.csv.read_bytes()
    before, after = (report.markdown.read_text().split("## Time") for report in (first, other))
    assert before[0] == after[0] and before[1] != after[1]


def test_the_page_needs_nothing_from_elsewhere_and_its_ids_are_unique(tmp_path: Path) -> None:
    picture = tmp_path / "reconstruction.png"
    Image.new("RGB", (30, 10), "red").save(picture)
    page = Page(write_report(made_up(reconstructions=picture), tmp_path).html)
    content = base64.b64encode(picture.read_bytes()).decode()
    assert page.values("src") == [f"data:image/png;base64,{content}"]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.values("href", "xlink:href")} <= set(ids)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert not re.search(r"@import|url\((?!#)", " ".join([*page.texts, *page.values("style")]))


def test_the_page_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    picture = tmp_path / "reconstruction.png"
    Image.new("L", (30, 10)).save(picture)
    page = Page(write_report(made_up(reconstructions=picture), tmp_path).html)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") >= 8
    charts = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("aria-hidden") is None]
    assert len(charts) == 4 and len(drawings) >= 4 and all(charts)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "<b>MAE</b> | $\\frac{1}$ & 'more'"
    result = made_up(title="<script>alert(1)</script>")
    report = write_report(replace(result, arms=(replace(ARMS[0], label=name), *ARMS[1:])), tmp_path)
    page = Page(report.html)
    assert not {tag for tag, _ in page.tags} & {"b", "script"}
    assert name in [row[0] for row in score_table(page)]
    assert "<script>alert(1)</script>" in page.text
    markdown = report.markdown.read_text()
    assert "<b>" not in markdown and "<script>" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| &lt;b>")]
    assert rows and all("</b> \\| $" in line.replace("&lt;", "<") for line in rows)


def test_a_result_read_back_gives_the_same_report(tmp_path: Path) -> None:
    result = made_up(reconstructions=tmp_path / "gone.png")
    again = SuiteResult.from_json(result.to_json())
    assert again == result
    assert again.parts[0].seeds == {100: (0, 1, 2, 3), 1000: (0, 1, 2, 3)}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', "not json"])
def test_another_file_is_not_taken_for_a_result(text: str) -> None:
    with pytest.raises(MaeliftError, match="not a suite's result"):
        SuiteResult.from_json(text)


def test_arms_on_an_axis_are_charted_over_it(tmp_path: Path) -> None:
    """As the paper's Figure 5 has mask ratios; an arm without a place is a line across."""
    scores = {("mae", 100): (0.7, 0.72), ("supervised", 100): (0.8, 0.81), ("scratch", 100): (0.6, 0.61)}
    arms = (replace(ARMS[0], x=75.0), replace(ARMS[1], x=50.0), ARMS[2])
    page = Page(write_report(made_up(scores, arms=arms, axis="share hidden, $ %"), tmp_path).html)
    (label,) = [text for _, tag in page.tags if (text := tag.get("aria-label") or "").startswith("Chart: Top-1")]
    assert "over share hidden, $ %" in label and "80.50 at 50; 71.00 at 75; scratch 60.50" in label
    assert "by number of labelled images" not in page.text


def test_published_figures_stand_beside_ours_where_the_protocol_is_theirs(tmp_path: Path) -> None:
    scores = {("mae", 100): (0.8365, 0.8357, 0.8371), ("scratch", 100): (0.80, 0.801, 0.80)}
    result = made_up(scores, published={"classify": "imagenet-vit-b"})
    tables = Page(write_report(result, tmp_path).html).tables
    (rows,) = [table for table in tables if table[0][0] == "start"]
    assert ["mae", "83.6", "83.64", "3", "yes"] in rows and ["scratch", "82.3", "80.03", "3", "no"] in rows
    assert ["beit", "83.2", "missing", "0", ""] in rows
    assert not any(table[0][0] == "start" for table in Page(write_report(made_up(scores), tmp_path).html).tables)


def test_latex_and_parquet_hold_what_the_csv_holds(tmp_path: Path) -> None:
    report = write_report(made_up(arms=(replace(ARMS[0], label="MAE & 50 % of_it"), *ARMS[1:])), tmp_path)
    latex = report.latex.read_text()
    assert r"MAE \& 50 \% of\_it & 100 & 74.85 $\pm$ 0.91" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 5
    pq = pytest.importorskip("pyarrow.parquet")
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    with report.csv.open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == [row["run"] for row in rows]
    assert rows[0]["test_top1_percent"] == pytest.approx(74.4) and rows[0]["seconds"] == 20.0


def test_images_won_and_lost_and_near_pairs_are_shown(tmp_path: Path) -> None:
    picture = "data:image/png;base64,AAAA"
    won = Example("classify", "mae", 100, True, "7.png", "Bag", "right in 4 against 0 of 4 seeds", picture)
    examples = (won, replace(won, task="segment", won=False, name="8.png", truth="Coat", outcome="brings −0.2"))
    near = (NearPair("pool", "copy.jpg", "test.jpg", 0.9912, (picture, picture)),)
    page = Page(write_report(made_up(examples=examples, near=near), tmp_path).html)
    assert "MAE on the pool does better than scratch at 100 labels (test images)" in page.text
    assert "On segment, MAE on the pool does worse than scratch at 100 labels (test images)" in page.text
    assert "7.png: Bag; right in 4 against 0 of 4 seeds" in page.text and "8.png: Coat; brings −0.2" in page.text
    assert "pool: copy.jpg, nearly test.jpg (similarity 0.991)" in page.text
    assert page.values("src") == [picture] * 4
    again = SuiteResult.from_json(made_up(examples=examples, near=near).to_json())
    assert again.examples == examples and again.near == near


def test_the_axis_of_a_score_ends_at_0_and_100_percent(tmp_path: Path) -> None:
    wide = {key: (0.02, 0.9, 0.4, 0.99) if key[1] == 100 else (0.97, 1.0, 0.99, 0.3) for key in ACCURACIES}
    report = write_report(made_up(wide), tmp_path)
    ticks = [
        float(text.replace(MINUS, "-"))
        for drawing in re.findall(r"<svg.*?</svg>", report.html.read_text(), flags=re.DOTALL)
        if "labels-classify" in drawing
        for axis in re.findall(r'id="[^"]*matplotlib\.axis_2".*?</svg>', drawing, flags=re.DOTALL)
        for text in re.findall(rf">([-{MINUS}]?\d+(?:\.\d+)?)</text>", axis)
    ]
    assert ticks and min(ticks) >= 0 and max(ticks) <= 100
