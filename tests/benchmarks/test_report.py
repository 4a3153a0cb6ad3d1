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
from maelift.benchmarks.results import Example, NearPair, SuiteResult
from maelift.benchmarks.stats import crossed_difference, holm, paired_difference
from maelift.core.errors import MaeliftError
from maelift.core.report.html import MINUS
from maelift.tests.benchmarks.made_up import ACCURACIES, ARMS, Accuracies, Page, answered, check, made_up, tuning
from PIL import Image


def test_the_first_sentence_is_the_verdict_and_its_numbers_are_right(tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    expected = paired_difference(ACCURACIES["mae", 100], ACCURACIES["scratch", 100])
    numbers = [100 * value for value in (expected.mean, expected.low, expected.high)]
    assert _adjusted_p() < 0.001
    mean, low, high = (f"{number:+.2f}" for number in numbers)
    assert report.verdicts[0] == (
        f"At 100 labels, MAE on the pool helps: {mean} points of test accuracy compared with scratch "
        f"(95 % interval {low} to {high}; adjusted p below 0.001; 4 paired seeds, 10,000 test images)."
    )
    page = Page(report.html)
    assert all(verdict in page.text for verdict in report.verdicts)
    assert page.text.index(report.verdicts[0]) < page.text.index("Classification")
    assert report.verdicts[0] in report.markdown.read_text()
    assert len(report.verdicts) == 4


def _adjusted_p() -> float:
    """Of MAE at 100 labels, among the four comparisons with scratch."""
    found = {
        f"{arm} {labels}": paired_difference(ACCURACIES[arm, labels], ACCURACIES["scratch", labels]).p
        for arm, labels in ACCURACIES
        if arm != "scratch"
    }
    return holm(found)["mae 100"]


def test_an_open_question_says_how_many_more_seeds_it_takes(tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    verdict = report.verdicts[2]
    assert f"whether MAE on the pool helps is not resolved: {MINUS}0.25 points" in verdict
    assert re.search(r"About \d+ more seeds would resolve a difference of this size with a chance of 80 ?%", verdict)


@pytest.mark.slow
def test_test_images_are_drawn_too_where_it_is_known_which_were_right(tmp_path: Path) -> None:
    result = answered(ACCURACIES)
    by_arm = {
        arm: [cell for cell in result.parts[0].cells if (cell.arm, cell.labels) == (arm, 100)]
        for arm in ("mae", "scratch")
    }
    mine, theirs = ([cell.item_scores() for cell in by_arm[arm]] for arm in ("mae", "scratch"))
    assert 0.6 < np.mean(mine) < 0.9 and len(mine[0]) == 400
    expected = crossed_difference(mine, theirs)
    low, high = (f"{100 * value:+.2f}".replace("-", MINUS) for value in (expected.low, expected.high))
    report = write_report(result, tmp_path)
    assert f"interval {low} to {high};" in report.verdicts[0]
    page = Page(report.html)
    assert "The intervals cover that variation and that of the test images, as if they were drawn again." in page.text
    assert page.tables[1][1][5] == f"{100 * expected.smallest_resolved:.2f}"
    again = SuiteResult.from_json(result.to_json())
    assert again == result and write_report(again, tmp_path).verdicts == report.verdicts


def test_encoders_count_where_seeds_share_them(tmp_path: Path) -> None:
    report = write_report(answered(ACCURACIES, encoders=2), tmp_path)
    assert "4 paired seeds on 2 encoders, 400 test images" in report.verdicts[0]
    assert Page(report.html).tables[1][1][7] == "2"


def test_several_comparisons_make_a_verdict_harder(tmp_path: Path) -> None:
    alone: Accuracies = {("mae", 100): (0.72, 0.73, 0.74), ("scratch", 100): (0.70, 0.70, 0.70)}
    noise = {(f"{arm}", labels): (0.70, 0.72, 0.69) for arm in ("mae", "supervised") for labels in (100, 1000)}
    many = {**noise, **alone, ("scratch", 1000): (0.70, 0.71, 0.70)}
    assert write_report(made_up(alone), tmp_path).verdicts[0].startswith("At 100 labels, MAE on the pool helps")
    verdict = write_report(made_up(many), tmp_path).verdicts[0]
    assert (
        "not resolved" in verdict and "The interval by itself excludes 0, but several comparisons were made." in verdict
    )


def test_a_worse_arm_is_said_to_hurt(tmp_path: Path) -> None:
    worse = {("mae", 100): (0.60, 0.61, 0.59), ("scratch", 100): (0.70, 0.72, 0.70)}
    report = write_report(made_up(worse), tmp_path)
    assert report.verdicts[0].startswith(f"At 100 labels, MAE on the pool hurts: {MINUS}10.67 points")
    row = [f"MAE on the pool {MINUS} scratch", "100", f"{MINUS}10.67"]
    assert row in [row[:3] for row in Page(report.html).tables[1]]


def test_one_seed_is_no_verdict(tmp_path: Path) -> None:
    report = write_report(made_up({("mae", 100): (0.9,), ("scratch", 100): (0.5,)}), tmp_path)
    assert "whether MAE on the pool helps is not resolved: +40.00 points" in report.verdicts[0]
    assert "One seed gives no interval" in report.verdicts[0]
    assert "inf" not in " ".join(cell for table in Page(report.html).tables for row in table for cell in row)


@pytest.mark.parametrize("lift", [0.0, 0.1])
def test_equal_differences_are_no_verdict(tmp_path: Path, lift: float) -> None:
    equal = {("mae", 100): (0.5 + lift,) * 4, ("scratch", 100): (0.5,) * 4}
    report = write_report(made_up(equal), tmp_path)
    assert "not resolved" in report.verdicts[0]
    assert "Every seed gave the same difference, which says nothing of its spread" in report.verdicts[0]


def test_a_small_bound_is_not_rounded_to_zero(tmp_path: Path) -> None:
    close = {("mae", 100): (0.70301, 0.70100, 0.70202), ("scratch", 100): (0.70, 0.70, 0.70)}
    difference = paired_difference(close["mae", 100], close["scratch", 100])
    lifted = {**close, ("scratch", 100): tuple(0.70 + difference.low - 2e-5 for _ in range(3))}
    report = write_report(made_up(lifted), tmp_path)
    assert "helps" in report.verdicts[0] and "interval +0.002 to" in report.verdicts[0]


def test_without_runs_of_the_baseline_nothing_is_claimed(tmp_path: Path) -> None:
    result = made_up()
    others = tuple(cell for cell in result.parts[0].cells if cell.arm != "scratch")
    report = write_report(made_up(cells=others, missing=("scratch at 100 labels",)), tmp_path)
    (verdict,) = report.verdicts
    assert verdict.startswith("Nothing can be said yet: there are no runs of scratch")
    alone = made_up({("scratch", 100): (0.5, 0.6)})
    assert write_report(alone, tmp_path).verdicts == ("Nothing is compared: scratch is the only arm.",)
    nameless = made_up(baseline="gone", arms=result.arms[:2], cells=others)
    assert "no runs of gone" in write_report(nameless, tmp_path).verdicts[0]


def test_a_partial_result_says_so_and_names_what_is_missing(tmp_path: Path) -> None:
    result = made_up()
    there = tuple(cell for cell in result.parts[0].cells if (cell.arm, cell.labels) != ("mae", 1000))
    report = write_report(made_up(cells=there, missing=("mae at 1000 labels",)), tmp_path)
    page = Page(report.html)
    assert "Does it help? (partial result)" in page.text
    assert "This result is partial. Missing: mae at 1000 labels." in page.text
    assert "At 1,000 labels, runs are missing to compare MAE on the pool with scratch." in report.verdicts
    assert ["MAE on the pool", "1,000", "missing", "", "", "0"] in page.tables[0]
    assert "(partial result)" in report.markdown.read_text()


def test_a_report_before_the_first_run_can_be_written(tmp_path: Path) -> None:
    empty = made_up(cells=(), tunings=(), checks=(), missing=("everything",))
    assert write_report(empty, tmp_path).verdicts[0].startswith("Nothing can be said yet")


def test_a_baseline_that_still_gains_is_a_warning_and_takes_from_the_verdict(tmp_path: Path) -> None:
    checks = (check("scratch", 100, gain=0.03), check("mae", 100, gain=0.0))
    report = write_report(made_up(checks=checks), tmp_path)
    text = Page(report.html).text
    assert "scratch still gains at 100 labels: twice the 400 steps bring +3.00 points on validation" in text
    assert "what the others gain over it is overstated" in text
    assert report.verdicts[0].endswith("Not final: more steps still improve scratch.")
    assert not any("Not final" in verdict for verdict in report.verdicts[2:])
    assert "Beware" not in Page(write_report(made_up(), tmp_path).html).text


def test_a_rate_at_the_edge_and_unequal_trials_are_warned_of(tmp_path: Path) -> None:
    tunings = (tuning("mae", 100, (0.4, 0.5, 0.6)), tuning("scratch", 100, (0.4, 0.6, 0.5, 0.4)))
    page = Page(write_report(made_up(tunings=tunings), tmp_path).html)
    assert "MAE on the pool at 100 labels did best at the highest learning rate tried (0.004)" in page.text
    assert "At 100 labels the arms had different numbers of learning rates to try." in page.text
    tried = "0.001:\xa040.00, 0.002:\xa050.00, 0.004:\xa060.00 (chosen)"
    assert page.tables[3][1][3:] == [tried, "3", "highest"]


def test_what_the_intervals_cover_depends_on_the_pretraining_seeds(tmp_path: Path) -> None:
    said = [Page(write_report(made_up(pretraining_seeds=n), tmp_path).html).text for n in (1, 2, 4)]
    assert "They do not cover the variation of pretraining" in said[0]
    assert "2 pretrained encoders an arm are shared by up to 4 seeds, and count as the independent draws" in said[1]
    assert "They also cover the variation of pretraining: there are as many encoders as seeds" in said[2]
    assert all("Verdicts are corrected for there being several comparisons" in text for text in said)


def test_the_tables_hold_every_arm_and_pair(tmp_path: Path) -> None:
    accuracies, differences, saved, rates, steps, hours = Page(write_report(made_up(), tmp_path).html).tables
    assert ["scratch", "100", "67.40 ± 1.05", "97.00 ± 0.00", "67.40 ± 1.05", "4"] in accuracies
    assert {row[0] for row in differences[1:]} == {
        f"MAE on the pool {MINUS} scratch",
        f"supervised on the pool {MINUS} scratch",
        f"MAE on the pool {MINUS} supervised on the pool",
    }
    assert [row[-1] for row in differences[1:4]] == ["helps", "helps", "lower"]
    assert ["MAE on the pool", "100", "74.85", "277"] in saved and [
        "supervised on the pool",
        "1,000",
        "87.50",
        "more than were tried",
    ] in saved
    assert len(rates) == len(steps) == 7 and steps[1][-1] == "yes"
    assert hours[1][:3] == ["MAE on the pool", "1 min 12 s", "2 min 40 s"]
    assert hours[1][3] == f"+7.45 on classify at 100; {MINUS}0.25 on classify at 1,000" and hours[3][3] == ""


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
    assert tags.count("caption") == tags.count("table") == 6
    charts = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("aria-hidden") is None]
    assert len(charts) == len(drawings) == 4 and all(charts)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "<b>MAE</b> | $\\frac{1}$ & 'more'"
    result = made_up(title="<script>alert(1)</script>")
    report = write_report(replace(result, arms=(replace(ARMS[0], label=name), *ARMS[1:])), tmp_path)
    page = Page(report.html)
    assert not {tag for tag, _ in page.tags} & {"b", "script"}
    assert name in [row[0] for row in page.tables[0]]
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
    (label,) = [text for _, tag in page.tags if (text := tag.get("aria-label") or "").startswith("Chart: Test top-1")]
    assert "over share hidden, $ %" in label and "80.50 at 50; 71.00 at 75; scratch 60.50" in label
    assert "Test top-1 accuracy over the number of labelled images" not in page.text


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
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3
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
        if "test images)" in drawing
        for axis in re.findall(r'id="[^"]*matplotlib\.axis_2".*?</svg>', drawing, flags=re.DOTALL)
        for text in re.findall(rf">([-{MINUS}]?\d+(?:\.\d+)?)</text>", axis)
    ]
    assert ticks and min(ticks) >= 0 and max(ticks) <= 100
