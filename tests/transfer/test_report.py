"""summary.html: all that a reader needs stands in it, it needs nothing from elsewhere, and shows hostile names as they are."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from maelift.tests.support import noise_image
from maelift.transfer.metrics import Scores
from maelift.transfer.report import write_summary
from maelift.transfer.visualize import ExampleImage

pytestmark = pytest.mark.curves

EVIL = "<script>alert('1')</script> & $\\frac"
CLASSES = ("shirt", EVIL, "日本語", "bag")
SCORES = Scores(
    "test",
    1234,
    {"top1": 0.8731, "top5": 0.99, "macro_f1": None},
    {name: {"accuracy": None if number == 2 else 0.25 * number} for number, name in enumerate(CLASSES)},
    ((300, 4, 0, 10), (20, 200, 0, 3), (0, 0, 0, 0), (1, 2, 3, 400)),
)
CURVES: list[dict[str, float]] = [{"step": step, "train/loss": 2 / step, "lr": 1e-3} for step in range(1, 50)]
CURVES += [{"step": step, "val/top1": 1 - 1 / step} for step in range(10, 50, 10)]
CURVES += [{"step": 50, "train/loss": math.nan, "val/top1": math.inf}]


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page(folder: Path, **changes: Any) -> Page:
    pictures = [
        ExampleImage.of(noise_image(number), f"image \udce9 {number} {EVIL}", right=number < 2) for number in range(3)
    ]
    values: dict[str, Any] = {
        "title": "Classification",
        "config": {"out": "runs/x", "encoder": "e.safetensors", "init": "encoder", "lr": None, "betas": (0.9, 0.95)},
        "scores": SCORES,
        "curves": CURVES,
        "pictures": pictures,
        "notes": [EVIL],
        "seconds": 731.0,
    }
    return Page(write_summary(folder, **{**values, **changes}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page of a classification is."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def classification(folder: Path) -> Page:
    """That page, with all that a page can have."""
    return page(folder)


def test_it_says_what_was_run_and_how_well_it_does(classification: Page, tmp_path: Path) -> None:
    text = classification.text
    for expected in (
        "top1 87.31 % on the 1,234 test images",
        "Trained from a pretrained encoder: e.safetensors.",
        "(1 seed)",
        "12 min 11 s",
        "[0.9,0.95]",
        "maelift 0",
        "torch 2",
        "bag taken for 日本語: 3 of 406",
        "Without examples among these images, so that nothing could be measured: 日本語.",
    ):
        assert expected in text, expected
    assert "Trained from nothing" in page(tmp_path, config={"init": "scratch"}, curves=[]).text


def test_it_needs_nothing_from_elsewhere_and_its_ids_are_unique(classification: Page, folder: Path) -> None:
    found = classification
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "b"}
    sources = [attributes["src"] or "" for tag, attributes in found.tags if tag == "img"]
    assert len(sources) == 3 and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", (folder / "summary.html").read_text())
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_can_be_read_without_seeing_it(classification: Page) -> None:
    found = classification
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in found.tags if tag == "th")
    charts = [attributes["aria-label"] or "" for _, attributes in found.tags if attributes.get("role") == "img"]
    assert len(charts) == 3 and "train/loss from 2 at step 1 to" in charts[0]
    names = [tag for tag, _ in found.tags]
    assert names.count("caption") == names.count("table")


def test_names_are_shown_as_they_are_and_bytes_that_are_no_text_do_no_harm(classification: Page) -> None:
    assert " ".join(EVIL.split()) in classification.text and "image ? 0" in classification.text


def test_wrong_pictures_come_first_and_none_is_said(classification: Page, tmp_path: Path) -> None:
    text = classification.text
    assert text.index("Wrong predictions") < text.index("Right predictions")
    only_right = page(tmp_path, pictures=[ExampleImage.of(noise_image(1), "right", right=True)], curves=[])
    assert "None among the images that were examined." in only_right.text
    assert "Wrong predictions" not in page(tmp_path, pictures=[], curves=[]).text


def test_other_tasks_many_classes_and_nothing_measured(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(60)]
    many = Scores("val", 9, {"AP": 0.5}, {name: {"AP": 0.5, "count": 3} for name in names})
    found = page(tmp_path, title="Detection", scores=many, curves=[])
    assert (
        "Detection: runs/x" in found.text and "Figures of each class" in found.text and "confusions" not in found.text
    )
    confusion = tuple(tuple(int(row == column) for column in range(60)) for row in range(60))
    wide = page(tmp_path, scores=Scores("test", 60, {"top1": 1.0}, {}, confusion), curves=[])
    assert "Confusion matrix" not in wide.text
    empty = page(tmp_path, scores=Scores("test", 0, {"mIoU": None}), curves=[], pictures=[], notes=[], seconds=None)
    assert "There was nothing to measure" in empty.text and "No metrics were recorded." in empty.text
    assert "Beware" not in empty.text
