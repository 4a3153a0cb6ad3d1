"""recipe=auto: what it chooses by time, images and given keys, and that a run keeps its choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import maelift
import numpy as np
import pytest
import yaml
from maelift.core.config import is_given
from maelift.core.durations import seconds_of
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.cost import encoder_flops
from maelift.core.models.encoder_spec import preset_spec
from maelift.pretrain import auto_recipe
from maelift.pretrain.auto_recipe import CANDIDATES, Candidate
from maelift.pretrain.command import resolve_config
from maelift.pretrain.config import PretrainConfig
from maelift.tests.support import one_line_error, run_maelift
from PIL import Image


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Operations a second of the machine that is pretended to be here."""
    values = {"flops": 2e10}

    def seconds(config: PretrainConfig, spec: object, device: object) -> float:
        shape = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size)
        return 3 * encoder_flops(shape, max(1, shape.num_patches // 4)) / values["flops"]

    monkeypatch.setattr(auto_recipe, "training_seconds_an_image", seconds)
    monkeypatch.setattr(auto_recipe, "loading_seconds", lambda *_: 1e-4)
    return values


def chosen(folder: Path, *words: str) -> PretrainConfig:
    return resolve_config([f"data={folder}", "out=run", "recipe=auto", *words])


def write_photo(path: Path, seed: int) -> None:
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(small).resize((300, 240), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        write_photo(folder / f"{number}.jpg", number)
    return folder


def test_more_time_and_a_faster_machine_give_a_larger_model_on_larger_images(
    photos: Path, speed: dict[str, float]
) -> None:
    order = [one.model for one in CANDIDATES]
    found = [chosen(photos, f"budget={budget}") for budget in ("1m", "1h", "12h", "20d")]
    sizes = [order.index(one.model) for one in found]
    assert sizes == sorted(sizes) and sizes[0] == 0 and sizes[-1] > sizes[1]
    for one in found:
        assert isinstance(one.image_size, int) and one.patch_size and one.image_size % one.patch_size == 0
        assert one.image_size // one.patch_size >= 7 and one.image_size <= 240 and one.epochs <= 1600
    speed["flops"] *= 1000
    assert order.index(chosen(photos, "budget=1h").model) > sizes[1]


def test_given_keys_stay_and_the_others_fit_them(photos: Path, speed: dict[str, float]) -> None:
    found = chosen(photos, "model=vit_tiny", "image_size=64", "epochs=3", "decoder.depth=1", "batch_size=8")
    assert (found.model, found.image_size, found.patch_size) == ("vit_tiny", 64, 16)
    assert (found.epochs, found.batch_size, found.decoder.depth, found.decoder.embed_dim) == (3, 8, 1, 512)
    with pytest.raises(ConfigError, match="model=vit_huge: expected one of vit_nano"):
        chosen(photos, "model=vit_huge")
    with pytest.raises(ConfigError, match="image_size"):
        chosen(photos, "image_size=30", "patch_size=16")


@pytest.mark.parametrize("side", [8, 15, 28, 33, 64, 100, 224, 1600])
@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda one: str(one.model))
def test_every_size_of_images_has_a_grid(candidate: Candidate, side: int) -> None:
    size, patch = candidate.sizes(side)
    spec = preset_spec(candidate.model, image_size=size, patch_size=patch)
    assert size <= max(side, 2 * patch) + patch and min(spec.grid) >= (7 if side >= 28 else 2)


def test_the_time_is_nearly_used_and_epochs_are_those_that_fit(photos: Path, speed: dict[str, float]) -> None:
    found = chosen(photos, "budget=60s")
    spec = preset_spec(found.model, image_size=found.image_size, patch_size=found.patch_size)
    seconds = 3 * encoder_flops(spec, spec.num_patches // 4) / speed["flops"]
    assert found.epochs == 1600 or found.epochs * 40 * seconds == pytest.approx(54, rel=0.2)


def test_a_run_keeps_its_choice_on_a_machine_of_another_speed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"data": str(photos), "out": str(tmp_path / "run"), "recipe": "auto", "budget": "6s", "workers": 0}
    keys |= {"evaluations": 1, "device": "cpu", "image_size": 32}
    monkeypatch.setattr(auto_recipe, "training_seconds_an_image", lambda *_: 0.02)
    with caplog.at_level("INFO", "maelift"):
        result = maelift.pretrain(**keys)  # type: ignore[arg-type]
    assert "recipe=auto: model=vit_nano" in caplog.text and "6 s on cpu" in caplog.text
    made = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert made["recipe"] == "auto" and made["budget"] == "6s" and result.steps > 0
    monkeypatch.setattr(auto_recipe, "training_seconds_an_image", lambda *_: 1e-6)
    assert maelift.pretrain(**keys).steps == result.steps  # type: ignore[arg-type]
    with pytest.raises(MaeliftError, match="another configuration"):
        maelift.pretrain(**{**keys, "budget": "1h"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("30 min", 1800), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800)]
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert seconds_of("budget", text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "2 hours", "0m", "1h30"])
def test_a_span_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a span of time with its unit"):
        seconds_of("budget", text)


def test_a_budget_needs_the_recipe_and_a_plan_of_days_names_it(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget=2h: expected null, but with recipe=auto"):
        PretrainConfig.resolve([f"data={photos}", "out=run", "budget=2h"])
    one_line_error(
        run_maelift("pretrain", f"data={photos}", "out=x", "recipe=vit_giant", cwd=tmp_path), "one of vit_base"
    )


def test_processes_of_torchrun_do_not_choose_each_for_itself(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"recipe=auto: expected a recipe by name.*--show-config in one process"):
        chosen(photos)


def test_which_keys_are_given(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("decoder: {depth: 2}\n")
    words: Sequence[str] = ["masking.ratio=0.5", "epochs=3"]
    assert is_given("masking", words) and is_given("epochs", words) and not is_given("decoder", words)
    assert is_given("decoder", words, tmp_path / "c.yaml") and is_given("masking", {"masking": {"ratio": 0.5}})
