"""The pages on pretraining: every command on them runs, every key is on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from maelift.core.config_keys import describe
from maelift.pretrain.config import PretrainConfig
from maelift.tests.support import ROOT, SMALL_DECODER, framework, run_page, write_images

PAGES = [ROOT / "docs" / name for name in ("pretraining.md", "pretraining_data.md")]


@pytest.mark.slow
def test_the_page_s_commands_run(tmp_path: Path) -> None:
    framework("webdataset")
    write_images(tmp_path / "photos", 60)
    run_page(PAGES[0], tmp_path, shorter={"maelift pretrain data=": SMALL_DECODER})
    assert (tmp_path / "runs" / "photos" / "summary.html").exists()


def test_every_key_is_explained() -> None:
    text = "".join(page.read_text() for page in PAGES)
    keys = [entry.key for entry in describe(PretrainConfig)]
    missing = [key for key in keys if f"`{key}" not in text and f"{key}=" not in text]
    assert not missing
