"""maelift try: a suite that is sized for the time, run and reported; the same command goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from maelift.benchmarks import try_data as module
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.try_data import SIZES, TryConfig, try_data
from maelift.core.errors import MaeliftError
from maelift.tests.support import one_line_error, run_maelift, write_images


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("cats", "dogs", "owls")):
        write_images(folder / name, 60, first=100 * number, suffix=".jpg")
    return folder


def sized(photos: Path, out: Path, budget: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The suite that is written where the trainings of the smallest comparison take so many seconds."""
    monkeypatch.setattr(module, "_measured", lambda config: (seconds, 2))
    monkeypatch.setattr(module, "bench", lambda config: pytest.fail("not asked for"))
    config = TryConfig(str(photos), out=str(out), budget=budget)
    out.mkdir(parents=True)
    module._write_sized(config)
    content: dict[str, object] = yaml.safe_load(config.suite.read_text())
    return content


def test_more_time_compares_more(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = sized(photos, tmp_path / "a", "1m", 60.0, monkeypatch)
    longer = sized(photos, tmp_path / "b", "30m", 60.0, monkeypatch)
    longest = sized(photos, tmp_path / "c", "20h", 60.0, monkeypatch)
    for key in ("seeds", "pretrain_seeds"):
        counts = [len(suite[key]) for suite in (short, longer, longest)]  # type: ignore[arg-type]
        assert counts == sorted(counts) and counts[0] < counts[-1]
    assert short["budget"] == {"hours": pytest.approx(0.04, abs=0.01)}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["suite.yaml"]
    for name in "abc":
        assert BenchConfig.resolve({"suite": str(tmp_path / name / "suite.yaml"), "out": "x"}).labels


def test_a_time_that_is_too_short_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sized(photos, tmp_path / "a", "1m", 1e4, monkeypatch)
    assert "even so it takes some 1 h" in caplog.text and "give budget=" in caplog.text


def test_more_time_goes_on_with_the_suite_that_was_begun(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(photos, tmp_path / "a", "1m", 1e4, monkeypatch)
    written = (tmp_path / "a" / "suite.yaml").read_text()
    asked: list[BenchConfig] = []
    monkeypatch.setattr(module, "bench", asked.append)
    for budget in ("30s", "1m", "30m"):
        try_data(TryConfig(str(photos), out=str(tmp_path / "a"), budget=budget))
    hours = [config.budget.hours or 0.0 for config in asked]
    assert hours[0] == hours[1] == pytest.approx(0.04, abs=0.01) and hours[2] > 0.5
    assert (tmp_path / "a" / "suite.yaml").read_text() == written


def test_designs_go_from_the_most_on() -> None:
    work = [design.work for design in SIZES]
    assert work == sorted(work, reverse=True) and len(set(work)) == len(work)


def test_mistakes_end_in_one_line(photos: Path, tmp_path: Path) -> None:
    one_line_error(run_maelift("try", "nowhere", cwd=tmp_path), "nowhere")
    one_line_error(run_maelift("try", str(photos), "budget=soon", cwd=tmp_path), "a span of time with its unit")
    write_images(tmp_path / "plain", 5)
    one_line_error(run_maelift("try", "plain", cwd=tmp_path), "images without labels")
    done = run_maelift("try", str(photos), "budget=10m", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "10m" in done.stdout and "report.html" in done.stdout
    assert not (tmp_path / "maelift-try").exists()


@pytest.mark.slow
def test_a_folder_becomes_a_page_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_measured", lambda config: (20.0, 2))
    config = TryConfig(str(photos), out=str(tmp_path / "page"), budget="20s")
    found = try_data(config)
    page = tmp_path / "page" / "report.html"
    assert found.bench.report == page and page.is_file() and found.error is None
    assert found.encoder is not None and found.encoder.is_file() and str(found.suite) in found.summary()
    suite = found.suite.read_text()
    again = try_data(config)
    assert found.suite.read_text() == suite and again.bench.verdicts == found.bench.verdicts
    with pytest.raises(MaeliftError):
        try_data(TryConfig(str(tmp_path / "nothing"), out=str(tmp_path / "other")))
