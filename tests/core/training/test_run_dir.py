"""Whether a run may go on in a folder: not with other keys, but with keys that the run's version didn't have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.training.run_dir import RunFolder


@dataclass(frozen=True)
class Config:
    steps: int = 5
    scale: tuple[float, float] = (0.5, 1.0)
    group: str | None = None


def test_a_key_that_is_newer_than_the_run_counts_by_its_default(tmp_path: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    (tmp_path / "config.yaml").write_text("steps: 5\n")
    with RunFolder.open(tmp_path, Config(), ranks) as folder:
        assert folder.path == tmp_path
    for other in (Config(group="patient"), Config(scale=(0.1, 1.0)), Config(steps=6)):
        with (
            pytest.raises(MaeliftError, match="has a run of another configuration"),
            RunFolder.open(tmp_path, other, ranks),
        ):
            pass
