"""The published figures that suites are compared with, by protocol (published.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PUBLISHED = Path(__file__).with_name("published.yaml")


def read_published() -> dict[str, dict[str, Any]]:
    """Published figures by protocol, each with its source, noise and rows."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return content
