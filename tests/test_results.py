"""Results in notebooks: escaped tables with the numbers of the summary, figures, and data frames equal to the files."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import maelift
import pytest
from maelift.adapters.bundle import Bundle
from maelift.adapters.certificate import Certificate, Keys
from maelift.adapters.export import ExportResult
from maelift.benchmarks.report import write_report
from maelift.benchmarks.runner import BenchResult
from maelift.benchmarks.status import Status
from maelift.core.dry_run import Plan
from maelift.core.errors import DataError, MaeliftError
from maelift.core.models.build_backbone import build_backbone
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.timm_spec import TimmSpec
from maelift.core.notebook import facts_table
from maelift.pretrain.reconstruct import ReconstructResult
from maelift.pretrain.result import PretrainResult
from maelift.tests.benchmarks.made_up import made_up
from maelift.tests.support import write_images
from maelift.transfer.evaluate import EvaluationResult
from maelift.transfer.metrics import Scores
from maelift.transfer.result import TransferResult

HOSTILE = "<script>alert('1')</script> & \"$x_1$\""
PNG = b"\x89PNG\r\n"
SCORES = Scores("test", 1234, {"top1": 0.8125, "nll": 0.375})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """A pretraining of a second, in a folder whose name a careless page would stumble over."""
    folder = tmp_path_factory.mktemp("results")
    write_images(folder / "photos", 24)
    result: PretrainResult = maelift.pretrain(
        data=str(folder / "photos"),
        out=str(folder / "run <b>&"),
        model="vit_nano",
        image_size=16,
        patch_size=4,
        decoder={"embed_dim": 16, "depth": 1, "num_heads": 2},
        batch_size=8,
        epochs=4,
        holdout=4,
        evaluations=2,
        workers=0,
        lr=1e-3,
    )
    return result


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    """A suite's result with names of arms that aren't plain."""
    folder, plain = tmp_path_factory.mktemp("suite"), made_up()
    arms = tuple(replace(arm, label=f"{arm.label} {HOSTILE}") for arm in plain.arms)
    report = write_report(replace(plain, arms=arms), folder)
    return BenchResult(report.html, report.verdicts, replace(plain, arms=arms), Status((), 0, 0, 0.0), report.choices)


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.,]*\d|\d", text))


def plain_results() -> Iterator[Any]:
    out = Path("runs") / HOSTILE
    yield PretrainResult(out / "encoder.safetensors", 321, 4567, 0.54321, 89, 125.0)
    yield PretrainResult(out / "encoder.safetensors", 321, 4567, None, 0, None)
    yield TransferResult(HOSTILE, out / "model.safetensors", SCORES, "val/top1", 0.7654, 432, 0)
    yield EvaluationResult(replace(SCORES, split=HOSTILE), out / "evaluation_val.json")
    yield ReconstructResult(out, 17, 3, HOSTILE)
    certificate = Certificate("timm", "hash", Keys(("a",) * 67), (), (f"first {HOSTILE}", "second"), {})
    yield ExportResult(
        out, Bundle({"weights <b>": "the 67 tensors"}, certificate, f"open {HOSTILE}", (f"8 {HOSTILE}",))
    )


@pytest.mark.parametrize("result", plain_results(), ids=lambda result: type(result).__name__)
def test_the_table_of_a_result_has_the_numbers_of_its_summary_and_no_tags_of_its_names(result: Any) -> None:
    page = _Page(result._repr_html_())
    words = " ".join(page.words)
    assert page.tags == {"table", "caption", "tbody", "tr", "th", "td", "a"} - ({"a"} if not page.links else set())
    assert numbers(result.summary()) <= numbers(words)
    assert HOSTILE in words


def test_a_link_leads_to_the_file_and_never_runs_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    below, outside = Path("runs") / "a b#?.html", tmp_path.parent / 'quote".html'
    page = _Page(facts_table("links", [("", below), ("", tmp_path / below), ("", outside), ("", Path("javascript:1"))]))
    assert page.links[:2] == ["runs/a%20b%23%3F.html"] * 2
    assert page.links[2:] == [outside.as_uri(), "javascript%3A1"]


def test_a_plan_is_shown_as_it_is_printed() -> None:
    plan = Plan((("images", f"12 in {HOSTILE}"),), parameters=1234567, steps=89, seconds=3725.0, memory_bytes=2**31)
    words = _Page(plan._repr_html_()).words
    for label, text in plan.rows():
        assert label in words and text in words and text in plan.text()


def test_a_suite_is_shown_with_every_verdict(suite: BenchResult) -> None:
    page = _Page(suite._repr_html_())
    assert "script" not in page.tags and page.links == [suite.report.as_uri()]
    assert {*suite.verdicts, *suite.choices} <= set(page.words)


def test_an_encoder_shows_its_images_and_where_it_is_from(pretrained: PretrainResult) -> None:
    encoder = maelift.load_encoder(pretrained.encoder)
    words = " ".join(_Page(encoder._repr_html_()).words)
    assert f"{sum(parameter.numel() for parameter in encoder.parameters()):,}" in words
    assert "3: red, green, blue" in words and "16×16 px, patch 4 px" in words and "0 to 255" in words
    assert all(f"{value:.4g}" in words for value in (*encoder.preprocessing.mean, *encoder.preprocessing.std))
    assert f"{pretrained.steps:,} steps" in words
    assert "weights" not in _Page(encoder.resized((32, 32))._repr_html_()).words


def test_a_model_of_timm_shows_its_architecture() -> None:
    backbone = build_backbone(TimmSpec("resnet18", (64, 64), 5), preprocessing=Preprocessing.default(5))
    words = " ".join(_Page(backbone._repr_html_()).words)
    assert "resnet18" in words and "5: channel0, channel1" in words and "64×64 px, strides 2, 4, 8, 16, 32 px" in words


def test_curves_of_a_pretraining_are_those_of_its_metrics(pretrained: PretrainResult) -> None:
    records = [json.loads(line) for line in (pretrained.encoder.parent / "metrics.jsonl").read_text().splitlines()]
    figure: Any = pretrained.plot()
    drawn = {line.get_label(): list(line.get_xydata()) for axes in figure.axes for line in axes.lines}
    for name in ("train/loss", "held_out/loss"):
        assert [tuple(point) for point in drawn[name]] == [(one["step"], one[name]) for one in records if name in one]
    assert figure._repr_png_().startswith(PNG)


def test_metrics_are_a_frame_of_the_file(pretrained: PretrainResult) -> None:
    pandas = pytest.importorskip("pandas")
    records = [json.loads(line) for line in (pretrained.encoder.parent / "metrics.jsonl").read_text().splitlines()]
    frame = pretrained.metrics()
    assert {str(kind) for name, kind in frame.dtypes.items() if name != "step"} == {"float64"}
    assert str(frame["step"].dtype) == "int64" and len(frame) == len(records)
    for row, record in zip(frame.to_dict("records"), records, strict=True):
        assert {name: value for name, value in row.items() if not pandas.isna(value)} == record


def test_scores_are_a_frame_of_the_table(suite: BenchResult) -> None:
    pandas = pytest.importorskip("pandas")
    with suite.report.with_name("results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frame = suite.scores()
    assert list(frame.columns) == list(rows[0]) and len(frame) == len(rows) > 0
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert kinds["test_top1_percent"] == kinds["val_top1_percent"] == kinds["learning_rate"] == "float64"
    assert kinds["labels"] == kinds["seed"] == kinds["steps"] == "int64" and kinds["encoder"] == "Int64"
    for row, found in zip(rows, frame.to_dict("records"), strict=True):
        for name, text in row.items():
            if kinds[name] in ("float64", "int64", "Int64"):
                assert (pandas.isna(found[name]) and text == "") or found[name] == float(text)
            else:
                assert found[name] == text


def test_text_in_a_table_stays_text(suite: BenchResult, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "results.csv").write_text("task,arm,labels,encoder,run\nNA,007,5,,1e5\n")
    frame = replace(suite, report=tmp_path / "report.html").scores()
    assert frame.to_dict("records")[0]["arm"] == "007" and frame["task"][0] == "NA" and frame["run"][0] == "1e5"


def test_what_is_missing_is_said_in_a_line(
    pretrained: PretrainResult, suite: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(pretrained, encoder=tmp_path / "encoder.safetensors")
    for ask in (gone.plot, gone.metrics, replace(suite, report=tmp_path / "report.html").scores):
        if ask != gone.plot:
            pytest.importorskip("pandas")
        with pytest.raises(DataError, match="no such file") as error:
            ask()
        assert "\n" not in str(error.value)
    gone.encoder.with_name("config.yaml").write_text("norm_pix_loss: true\n")
    gone.encoder.with_name("metrics.jsonl").write_text('{"step": 1, "lr": 0.1}\n')
    with pytest.raises(DataError, match="no loss"):
        gone.plot()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MaeliftError, match="pip install -U pandas"):
        pretrained.metrics()


def test_the_figure_of_a_suite_has_the_rows_of_its_forest_plot(suite: BenchResult) -> None:
    from maelift.benchmarks.analysis import Comparisons
    from maelift.benchmarks.forest import forest_plot

    plot = forest_plot(Comparisons(suite.result))
    assert plot is not None
    figure: Any = suite.plot()
    intervals = [line.get_xdata() for line in figure.axes[0].lines[1:] if len(line.get_xdata()) == 2]
    assert [tuple(ends) for ends in intervals] == [(row.low, row.high) for row in plot.rows]
    assert figure._repr_png_().startswith(PNG)


def test_a_suite_without_differences_shows_its_scores(suite: BenchResult) -> None:
    plain = made_up({("mae", 100): (0.7, 0.75)})
    figure: Any = replace(suite, result=replace(plain, baseline="mae")).plot()
    assert any(line.get_label().startswith("MAE") for line in figure.axes[0].lines)
    assert figure._repr_png_().startswith(PNG)


def test_a_transfer_shows_its_loss_and_its_validation(tmp_path: Path) -> None:
    records = [
        {"step": 1, "train/loss": 1.5, "lr": 1e-3},
        {"step": 2, "train/loss": 1.25, "lr": 1e-3, "val/top1": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = TransferResult("classify", tmp_path / "model.safetensors", SCORES, "val/top1", 0.5, 4, 0)
    figure: Any = result.plot()
    drawn = {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.lines}
    assert drawn == {"train/loss": [1.5, 1.25], "val/top1": [50.0]}
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(DataError, match="no loss"):
        result.plot()
