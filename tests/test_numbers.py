"""The figures of record come out again: to the bit on the machine that they are of, nearly so on others.

A change that is meant to move some records them again: ``python tests/figures.py tests/golden/numbers.json GROUP``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from maelift.tests.figures import GROUPS, Inputs, compute, differences, machine
from maelift.tests.support import GOLDEN, framework

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded() -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads((GOLDEN / "numbers.json").read_text())
    return content


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("figures"))


@pytest.mark.parametrize("name", GROUPS)
def test_figures_stay(name: str, recorded: Mapping[str, Any], inputs: Inputs) -> None:
    for needed in GROUPS[name].needs:
        framework(needed)
    origin = recorded.get("later", {}).get(name, recorded)
    tolerance = None if machine() == origin["machine"] else GROUPS[name].tolerance
    moved = list(differences(recorded["figures"][name], compute(name, inputs), tolerance))
    assert not moved, "\n".join([f"{name}: {len(moved)} figures moved since {origin['commit']}", *moved[:20]])
