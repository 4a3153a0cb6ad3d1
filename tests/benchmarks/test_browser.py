"""The pages in a real browser, at a desk's and a phone's width: no script, no request, nothing cut off, hostile names as text."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.benchmarks.compare_suites import CompareConfig, compare_results
from maelift.benchmarks.report import write_report
from maelift.benchmarks.results import Example, SuiteResult
from maelift.core.report.html import data_url
from maelift.tests.benchmarks.made_up import answered, made_up, part
from maelift.tests.support import ROOT, TINY, run_maelift, write_images
from maelift.transfer.label_counts import LabelCounts
from maelift.transfer.metrics import MEAN, Scores
from maelift.transfer.report import write_summary

HOSTILE = (
    "<script>document.title='broken'</script>",
    "\"' onerror=alert(1) <img src=x onerror=\"document.title='broken'\">",
    "日本語の腕 — עברית — ελληνικά",
    "a-very-long-name-" * 20,
)
WIDTHS = (1280, 375)
"""Of a desk and of a phone."""
FRAMES = """<!doctype html><meta charset="utf-8"><title>{title}</title>
{frames}
<pre id="found">nothing</pre>
<script>
addEventListener("error", event => {{ document.getElementById("found").textContent = "error " + event.message; }});
addEventListener("load", () => {{
  document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
    const inner = frame.contentWindow, page = inner.document, root = page.documentElement;
    const wide = [...page.querySelectorAll("body *")].filter(part => {{
      if (part.closest("details:not([open]), .scroll, pre, svg")) return false;
      return part.getBoundingClientRect().right > root.clientWidth + 1;
    }});
    return {{
      title: page.title,
      width: root.clientWidth,
      scrolls: root.scrollWidth - root.clientWidth,
      wide: wide.map(part => part.tagName + " " + part.textContent.slice(0, 60)),
      images: [...page.images].filter(image => !image.complete || !image.naturalWidth).length,
      requests: inner.performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
      scripts: page.scripts.length,
      cut: [...page.querySelectorAll("svg text")].filter(text => {{
        const own = text.getBoundingClientRect(), around = text.closest("svg").getBoundingClientRect();
        return own.width && (own.left < around.left - 2 || own.right > around.right + 2 || own.bottom > around.bottom + 2);
      }}).map(text => text.textContent),
      used: Math.max(...[...page.querySelectorAll("main > .grid > *")].map(part => part.getBoundingClientRect().right))
        / root.clientWidth,
      columns: new Set([...page.querySelectorAll("main > .grid > *")].map(part => part.getBoundingClientRect().left)).size,
      hidden: [...page.querySelectorAll("details > :not(summary)")].filter(part => !part.checkVisibility()).length,
      focusable: [...page.querySelectorAll(".scroll, pre")].every(part => part.tabIndex === 0),
      text: page.body.innerText,
    }};
  }}));
}});
</script>
"""


@dataclass(frozen=True)
class Browser:
    """A browser's program, and its profile: made at its first start, which takes the longest, and used again."""

    program: str
    profile: Path


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """Debian's Chromium; in CI it is installed, elsewhere the tests are skipped without."""
    if shutil.which("chromium") is None:
        if not os.environ.get("CI"):
            pytest.skip("no chromium here")
        log = tmp_path_factory.mktemp("debian") / "apt.log"
        subprocess.run([str(ROOT / "tests" / "debian.sh"), str(log), "chromium=chromium"], check=True)
    program = shutil.which("chromium") or pytest.fail("chromium was not installed")
    return Browser(program, tmp_path_factory.mktemp("profile"))


def chromed(chromium: Browser, *words: str) -> subprocess.CompletedProcess[str]:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--allow-file-access-from-files", f"--user-data-dir={chromium.profile}", "--virtual-time-budget=5000"]
    return subprocess.run([chromium.program, *flags, *words], capture_output=True, text=True, timeout=120, check=True)


def shown_at_each_width(chromium: Browser, page: Path) -> list[dict[str, Any]]:
    """What a browser finds in a page of each width; a window can't be as narrow as a phone, a frame can."""
    file = page.with_name("frames.html")
    frames = (
        f'<iframe src="{page.name}" style="width: {width}px; height: 3000px; border: 0"></iframe>' for width in WIDTHS
    )
    file.write_text(FRAMES.format(title="frames", frames="\n".join(frames)))
    done = chromed(chromium, "--window-size=1400,3100", "--dump-dom", file.as_uri())
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    content: list[dict[str, Any]] = json.loads(html.unescape(found))
    assert [one["width"] for one in content] == list(WIDTHS)
    return content


def hostile(result: SuiteResult) -> SuiteResult:
    """A result whose every name is one that a careless page would stumble over."""
    arms = tuple(replace(arm, label=name, note=name) for arm, name in zip(result.arms, HOSTILE, strict=False))
    picture = data_url(bytes.fromhex(PNG), "png")
    examples = tuple(
        Example("classify", arm.name, 100, won, name, name, name, picture)
        for arm, name in zip(arms, HOSTILE, strict=False)
        for won in (True, False)
    )
    several = (*result.parts, part({("mae", 100): (0.3, 0.4, 0.35), ("scratch", 100): (0.2, 0.2, 0.3)}, "detect"))
    more = {
        "guards": HOSTILE,
        "missing": HOSTILE,
        "failed": HOSTILE,
        "title": HOSTILE[0],
        "config_yaml": "\n".join(HOSTILE),
    }
    return replace(result, arms=arms, parts=several, examples=examples, **more)  # type: ignore[arg-type]


PNG = (
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8ffff3f0005fe02fea7356a2e0000000049454e44ae426082"
)


@pytest.mark.slow
def test_a_report_of_hostile_names_is_shown_whole(chromium: Browser, tmp_path: Path) -> None:
    report = write_report(hostile(answered(ACCURACIES)), tmp_path)
    for found in shown_at_each_width(chromium, report.html):
        assert found["title"].startswith(HOSTILE[0]) and found["scripts"] == 0 and found["requests"] == []
        assert found["scrolls"] == 0 and found["wide"] == [], found["wide"][:5]
        assert found["images"] == 0 and found["focusable"] and found["hidden"] > 0 and found["cut"] == []
        assert found["used"] > 0.9 and found["columns"] == (2 if found["width"] == 1280 else 1)
        shown = " ".join(found["text"].split())
        for name in HOSTILE[:3]:
            assert " ".join(name.split()) in shown


ACCURACIES = {
    ("mae", 100): (0.744, 0.751, 0.739, 0.760),
    ("supervised", 100): (0.80, 0.81, 0.79, 0.80),
    ("scratch", 100): (0.672, 0.681, 0.660, 0.683),
}


@pytest.mark.slow
def test_a_comparison_is_shown_whole(chromium: Browser, tmp_path: Path) -> None:
    for name, result in (("one", hostile(made_up())), ("two", made_up())):
        (tmp_path / name).mkdir()
        write_report(result, tmp_path / name)
    side = compare_results(CompareConfig(str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "out")))
    assert side.page is not None
    for found in shown_at_each_width(chromium, side.page):
        assert found["scripts"] == 0 and found["requests"] == [] and found["scrolls"] == 0 and found["wide"] == []


@pytest.mark.slow
@pytest.mark.curves
def test_a_detector_s_page_is_shown_whole(chromium: Browser, tmp_path: Path) -> None:
    names = (*HOSTILE, "cat")
    curve = tuple(1 - number / 100 for number in range(101))
    scores = Scores(
        "test",
        12,
        {"AP": 0.5, "mask_AP": 0.25},
        {name: {"AP": 0.5} for name in names},
        tuple(tuple(range(1000, 1000 + len(names) + 1)) for _ in range(len(names) + 1)),
        "objects",
        {measure: dict.fromkeys((MEAN, *names), curve) for measure in ("AP", "AP50", "mask_AP75")},
    )
    rows = tuple((name, 0.5, ("1,234,567",) * 6) for name in names)
    columns = tuple(f"{split} {what}" for split in ("train", "val", "test") for what in ("objects", "images"))
    page = write_summary(
        tmp_path,
        title="Detection",
        config={},
        scores=scores,
        labels=LabelCounts("Labels of each class", ("class", *columns), rows),
        batch=(bytes.fromhex(PNG), "png"),
    )
    for found in shown_at_each_width(chromium, page):
        assert found["scripts"] == 0 and found["requests"] == [] and found["scrolls"] == 0 and found["images"] == 0
        assert found["wide"] == [] and found["cut"] == [] and found["focusable"]
        for heading in ("Precision and recall", "Labels", "What the model sees"):
            assert heading in found["text"]


@pytest.mark.slow
def test_a_pretraining_s_page_is_shown_whole(chromium: Browser, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 24)
    done = run_maelift("pretrain", f"data={tmp_path / 'photos'}", f"out={tmp_path / 'run'}", *TINY, "epochs=2")
    assert done.returncode == 0, done.stderr
    for found in shown_at_each_width(chromium, tmp_path / "run" / "summary.html"):
        assert found["scripts"] == 0 and found["requests"] == [] and found["scrolls"] == 0 and found["images"] == 0
        assert found["wide"] == [] and "What the model sees" in found["text"] and "Animated" in found["text"]


@pytest.mark.slow
def test_text_of_charts_is_inside_of_them_in_a_wide_font_too(chromium: Browser, tmp_path: Path) -> None:
    report = write_report(hostile(answered(ACCURACIES)), tmp_path)
    report.html.write_text(report.html.read_text().replace("system-ui, sans-serif", "DejaVu Sans Mono, monospace"))
    assert [found["cut"] for found in shown_at_each_width(chromium, report.html)] == [[], []]


@pytest.mark.slow
def test_what_is_folded_is_open_in_print(chromium: Browser, tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    report.html.write_text(report.html.read_text().replace("@media print", "@media all"))
    assert [found["hidden"] for found in shown_at_each_width(chromium, report.html)] == [0, 0]


@pytest.mark.slow
def test_a_report_can_be_printed(chromium: Browser, tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    chromed(chromium, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}", report.html.as_uri())
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF") and 1 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 20


@pytest.mark.slow
def test_the_charts_have_colours_in_the_dark_and_in_the_light(chromium: Browser, tmp_path: Path) -> None:
    report = write_report(made_up(), tmp_path)
    pixels = [_screenshot(chromium, tmp_path, report.html, mode) for mode in ("0", "1")]
    light, dark = (np.asarray(picture).mean() for picture in pixels)
    assert light > 200 and dark < 80


def _screenshot(chromium: Browser, home: Path, page: Path, dark: str) -> Any:
    from PIL import Image

    file = home / f"shot{dark}.png"
    words: Sequence[str] = [f"--blink-settings=preferredColorScheme={0 if dark == '1' else 1}"]
    chromed(chromium, *words, "--window-size=900,1200", f"--screenshot={file}", page.as_uri())
    with Image.open(file) as picture:
        return picture.convert("L").copy()
