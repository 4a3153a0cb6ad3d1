"""Arms in short form are the arms that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from maelift.benchmarks.short_arms import RECIPE, expanded
from maelift.benchmarks.suite_file import read_suite
from maelift.core.errors import ConfigError


def test_words_stand_for_arms() -> None:
    found = expanded(
        ["mae", "scratch", "timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k frozen", "runs/my encoder.pth", "pixels"], {}
    )
    assert list(found) == ["mae", "scratch", "resnet50_a1_in1k", "resnet50_a1_in1k_frozen", "my_encoder", "pixels"]
    assert found["resnet50_a1_in1k"] == {
        **{"start": "weights", "weights": "timm:resnet50.a1_in1k", "label": "resnet50.a1_in1k"},
        "recipe": dict(RECIPE),
    }
    assert found["resnet50_a1_in1k_frozen"]["frozen"] is True and "recipe" not in found["resnet50_a1_in1k_frozen"]
    assert found["my_encoder"]["weights"] == "runs/my encoder.pth" and "recipe" not in found["pixels"]


def test_a_file_of_timm_s_weights_is_named_after_its_architecture() -> None:
    (name,) = expanded(["timm:resnet18@/home/me/weights.safetensors"], {})
    assert name == "resnet18"


def test_an_extended_suite_s_arms_keep_their_settings_and_lend_others_theirs(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"extends": "quickstart", "arms": ["mae", "scratch", "timm:resnet18.a1_in1k"]}))
    arms, base = read_suite(str(file))["arms"], read_suite("quickstart")["arms"]
    assert arms["mae"] == base["mae"] and arms["scratch"] == base["scratch"]
    assert arms["resnet18_a1_in1k"]["recipe"] == {
        key: value for key, value in base["mae"]["recipe"].items() if base["scratch"]["recipe"].get(key) == value
    }
    file.write_text(yaml.safe_dump({"extends": "quickstart", "arms": ["scratch"]}))
    assert list(read_suite(str(file))["arms"]) == ["scratch"]


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (["mea"], r"arms\[0\]=mea: expected one of mae.*Did you mean mae\?"),
        (["mae", "mae"], r"arms\[1\]=mae: expected each arm once"),
        (["mae", {"start": "scratch"}], r"arms\[1\]=.*expected a word in a list of arms"),
    ],
)
def test_words_that_stand_for_nothing_are_refused(arms: list[object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        expanded(arms, {})
