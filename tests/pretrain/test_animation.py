"""The animation of reconstructions: the pictures of a run in order, what was hidden framed, never too many bytes."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import maelift
import numpy as np
import pytest
from maelift.core.files import atomic_write_bytes
from maelift.pretrain import animation
from maelift.pretrain.animation import LINE, MOST_BYTES, MOST_FRAMES, hidden_patches, reconstruction_animation
from maelift.pretrain.config import PretrainConfig
from maelift.pretrain.evaluation import picture_columns
from maelift.tests.support import write_images
from PIL import Image

HIDDEN = np.array([[[True, False], [True, True]]] * 5)
"""Of each of five images in four patches all but one."""


def saved(folder: Path, steps: int, side: int, *, noisy: bool = False) -> dict[int, Path]:
    """Pictures of five images in three columns; the level of the reconstructions is the number of the picture."""
    found, generator = {}, np.random.default_rng(0)
    for number in range(steps):
        sheet = np.full((5 * (side + 4) - 4, 3 * (side + 4) - 4, 3), 200, np.uint8)
        sheet[:, -side:] = generator.integers(0, 256, (len(sheet), side, 3)) if noisy else number
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "PNG")
        found[10 * number + 10] = folder / f"step-{10 * number + 10:08d}.png"
        atomic_write_bytes(found[10 * number + 10], buffer.getvalue())
    return found


@pytest.fixture
def known_masks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Masks as in ``HIDDEN``, for a run that is not there."""
    monkeypatch.setattr(animation, "hidden_patches", lambda source: HIDDEN)
    return SimpleNamespace()


def frames_of(content: bytes) -> list[np.ndarray[Any, Any]]:
    with Image.open(io.BytesIO(content)) as image:
        found = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")).copy())
    return found


@pytest.mark.parametrize(("steps", "expected"), [(2, range(2)), (7, range(7)), (39, range(0, 39, 2))])
def test_frames_are_the_pictures_in_order(steps: int, expected: range, known_masks: Any, tmp_path: Path) -> None:
    found = reconstruction_animation(saved(tmp_path, steps, 112), known_masks)
    assert found is not None and found.frames == len(expected) <= MOST_FRAMES and len(found.moving) < MOST_BYTES
    frames = frames_of(found.moving)
    assert [int(frame[84, 28, 0]) for frame in frames] == list(expected)
    (still,) = frames_of(found.still)
    assert (still == frames[-1]).all()
    with Image.open(io.BytesIO(found.moving)) as image:
        assert image.format == "PNG" and image.info["loop"] == 0


def test_lines_stand_between_what_was_hidden_and_what_was_seen(known_masks: Any, tmp_path: Path) -> None:
    found = reconstruction_animation(saved(tmp_path, 3, 112), known_masks)
    assert found is not None
    (still,) = frames_of(found.still)
    for top, left in ((0, 0), (0, 116), (116, 0)):  # three of the five images
        tile = still[top : top + 112, left : left + 112]
        lines = (tile == LINE).all(axis=2)
        assert lines[:56, 56].all() and lines[56, 56:].all()  # around the upper right patch
        assert lines.sum() == 56 + 56  # and none elsewhere


def test_one_picture_is_no_animation(known_masks: Any, tmp_path: Path) -> None:
    assert reconstruction_animation(saved(tmp_path, 1, 56), known_masks) is None


def test_large_pictures_are_made_smaller_until_they_fit(known_masks: Any, tmp_path: Path) -> None:
    found = reconstruction_animation(saved(tmp_path, 20, 224, noisy=True), known_masks)
    assert found is not None and found.frames == 20 and len(found.moving) < MOST_BYTES
    assert frames_of(found.still)[0].shape[1] < 640


@pytest.mark.slow
def test_a_run_s_page_has_it_and_a_still_for_those_who_want_no_motion(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 24)
    keys: dict[str, Any] = {
        "data": str(tmp_path / "photos"),
        "out": str(tmp_path / "run"),
        "model": "vit_nano",
        "image_size": 16,
        "patch_size": 4,
        "decoder": {"embed_dim": 16, "depth": 1, "num_heads": 2},
        "batch_size": 8,
        "epochs": 3,
        "holdout": 4,
        "evaluations": 3,
        "workers": 0,
        "lr": 1e-3,
    }
    maelift.pretrain(**keys)
    page = (tmp_path / "run" / "summary.html").read_text()
    assert page.count('<source media="(prefers-reduced-motion: reduce)" srcset="data:image/png;base64,') == 1
    assert "the reconstructions of 3 evaluations" in page
    config = PretrainConfig.resolve(keys)
    source: Any = SimpleNamespace(config=config, held_out=range(4), pool=range(20))
    with Image.open(tmp_path / "run" / "reconstruction.png") as sheet:
        originals, masked, _ = picture_columns(sheet.convert("RGB"), 4)
    for original, shown, hidden in zip(originals, masked, hidden_patches(source), strict=True):
        changed = (np.asarray(original) != np.asarray(shown)).any(axis=2)
        side = original.width // 4
        patches = changed.reshape(4, side, 4, side).any(axis=(1, 3))
        assert (patches == hidden).all()
