"""Two results side by side: the same comparisons, in one table, and what differs between their suites."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from maelift.benchmarks.compare_suites import CompareConfig, compare_results, read_result
from maelift.benchmarks.report import write_report
from maelift.benchmarks.results import SuiteResult
from maelift.benchmarks.stats import independent_difference
from maelift.core.errors import MaeliftError
from maelift.core.report.html import MINUS
from maelift.tests.benchmarks.made_up import ACCURACIES, Page, made_up, part
from maelift.tests.support import one_line_error, run_maelift
from scipy import stats


def written(folder: Path, result: SuiteResult) -> Path:
    folder.mkdir()
    write_report(result, folder)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    better = {**ACCURACIES, ("mae", 100): (0.80, 0.81, 0.79, 0.80)}
    one = made_up(config_yaml="suite: made-up\narms: {mae: {epochs: 8}}\nout: a\n")
    other = made_up(better, config_yaml="suite: made-up\narms: {mae: {epochs: 80}}\nout: b\n")
    return written(tmp_path / "short", one), written(tmp_path / "long", other)


def test_settings_scores_and_verdicts_stand_side_by_side(two: tuple[Path, Path], tmp_path: Path) -> None:
    side = compare_results(CompareConfig(str(two[0]), str(two[1]), str(tmp_path / "out")))
    assert side.page is not None
    settings, scores, verdicts = Page(side.page).tables
    assert settings == [["key", "short", "long"], ["arms.mae.epochs", "8", "80"]]
    welch = stats.ttest_ind(ACCURACIES["mae", 100], (0.80, 0.81, 0.79, 0.80), equal_var=False).confidence_interval(0.95)
    told = f"{-5.15:+.2f} ({100 * welch.low:+.2f} to {100 * welch.high:+.2f})".replace("-", MINUS)
    assert ["classify: mae", "100", "74.85", "80.00", told] in scores
    row = next(row for row in verdicts if row[0] == "classify: mae" and row[1] == "100")
    assert row[2].startswith("helps (+7.45") and row[3].startswith("helps (+12.60")
    assert (tmp_path / "out" / "comparison.md").read_text().strip() == side.text


def test_the_command_prints_the_comparison_and_writes_nothing_unasked(two: tuple[Path, Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = run_maelift("bench", "compare", two[0], two[1])
    assert done.returncode == 0 and "| classify: mae | 100 | 74.85 | 80.00 |" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before
    one_line_error(run_maelift("bench", "compare", two[0], tmp_path), "results.json: can't be read")
    (two[0] / "results.json").write_text("{}")
    one_line_error(run_maelift("bench", "compare", *two), "results.json: not a suite's result")


def test_suites_of_other_tasks_arms_and_partial_ones_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    detect = part({("mae", 50): (0.2, 0.3), ("scratch", 50): (0.1, 0.1)}, "detect")
    one = made_up(missing=("mae at 1000 labels",), guards=("Other images.",))
    two = replace(made_up({("mae", 100): (0.7, 0.8), ("scratch", 100): (0.6, 0.6)}), parts=(detect,))
    folders = written(tmp_path / "a", one), written(tmp_path / "b", two)
    text = compare_results(CompareConfig(*map(str, folders))).text
    assert "The first result is partial." in text and "different images" in text
    assert "| detect: mae | 50 | none | 25.00 |" in text and "| classify: supervised | 100 | 80.00 | none |" in text


def test_a_suite_with_itself_differs_in_nothing(two: tuple[Path, Path]) -> None:
    text = compare_results(CompareConfig(str(two[0]), str(two[0]))).text
    assert "Settings and versions that differ" not in text and "short (A)" in text
    assert read_result(two[0]).parts[0].cells
    with pytest.raises(MaeliftError, match="can't be read"):
        read_result(two[0] / "gone")


def test_the_interval_of_independent_runs_holds_the_truth_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(0), 0
    for _ in range(2000):
        one, two = generator.normal(1.0, 1.0, 4), generator.normal(0.0, 3.0, 3)
        found = independent_difference(one.tolist(), two.tolist())
        held += found.low <= 1.0 <= found.high
    assert 0.93 <= held / 2000 <= 0.98
    assert not independent_difference([0.5], [0.4]).known and not independent_difference([0.5] * 3, [0.4] * 3).known
    with pytest.raises(ValueError, match="expected at least 1 each"):
        independent_difference([], [0.5])
