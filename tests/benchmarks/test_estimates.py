"""How long runs take: by those of their like that are finished, by measured steps, or not told at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from maelift.benchmarks.estimates import RuntimeHistory
from maelift.benchmarks.runs import Run

TRAIN = Run("train", "mae", 0, 100, 10, 1e-3, "", "", task="find", code=1)


def test_a_run_takes_as_long_as_those_of_its_kind_and_task_in_proportion() -> None:
    pace = RuntimeHistory(lambda run: 10 * run.steps)
    assert pace.seconds(TRAIN) is None and not pace.knows(TRAIN)
    pace.add(TRAIN, 10.0)
    pace.add(replace(TRAIN, arm="scratch"), 30.0)
    assert pace.seconds(replace(TRAIN, steps=30)) == pytest.approx(60)
    other = replace(TRAIN, task="segment")
    assert not pace.knows(other) and pace.seconds(other) == pytest.approx(20)
    pace.add(other, 7.0, share=0.25)
    assert pace.knows(other) and pace.seconds(other) == pytest.approx(28)
    assert pace.seconds(TRAIN) == pytest.approx(20)
