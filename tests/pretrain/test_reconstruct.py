"""Reconstruction of hidden parts: only they change, at the image's own size, and what can't be known is not pretended."""

from __future__ import annotations

from pathlib import Path

import maelift
import numpy as np
import pytest
from maelift.tests.support import ROOT, TINY, noise_image, one_line_error, run_maelift, run_page, write_images
from numpy.typing import NDArray
from PIL import Image

SMALL = "decoder.embed_dim=16 decoder.depth=1 decoder.num_heads=2"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    data = write_images(folder / "data", 24)
    done = run_maelift("pretrain", f"data={data}", f"out={folder / 'run'}", *TINY, "epochs=10")
    assert done.returncode == 0, done.stderr
    return folder / "run" / "encoder.safetensors"


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_only_what_a_mask_hides_changes(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    image = noise_image(3, (30, 52))
    image.save(tmp_path / "images" / "sub" / "a.png")
    hidden = np.zeros((30, 52), np.uint8)
    hidden[5:12, 20:33] = 255
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    Image.fromarray(hidden).save(tmp_path / "masks" / "sub" / "a.png")
    words = [
        f"encoder={encoder}",
        f"images={tmp_path / 'images'}",
        f"mask={tmp_path / 'masks'}",
        f"out={tmp_path / 'out'}",
    ]
    done = run_maelift("reconstruct", *words)
    assert done.returncode == 0 and "interpolated from visible patches" in done.stdout, done.stderr
    found, original = pixels(tmp_path / "out" / "sub" / "a.png"), np.asarray(image)
    assert found.shape == (30, 52, 3) and np.array_equal(found[hidden == 0], original[hidden == 0])
    inside = np.abs(found[hidden > 0].astype(int) - original[hidden > 0])
    assert inside.mean() > 1
    changed = original.copy()
    changed[hidden > 0] = 255 - changed[hidden > 0]
    Image.fromarray(changed).save(tmp_path / "images" / "sub" / "a.png")
    run_maelift("reconstruct", *words[:-1], f"out={tmp_path / 'other'}")
    again = pixels(tmp_path / "other" / "sub" / "a.png")
    assert np.array_equal(again[hidden > 0], found[hidden > 0])  # the hidden truth has no part in it
    assert pixels(tmp_path / "out" / "sub" / "a.compare.png").shape == (30, 3 * 52 + 8, 3)


def test_resizing_lets_nothing_through_of_what_a_mask_hides(encoder: Path, tmp_path: Path) -> None:
    hidden = np.zeros((256, 256), np.uint8)
    hidden[64:128, 64:128] = 255  # whole patches: resized, their neighbours would take them in
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    results = []
    for value in (0, 255):
        image = np.asarray(noise_image(5, (256, 256))).copy()
        image[hidden > 0] = value
        Image.fromarray(image).save(tmp_path / f"{value}.png")
        images, mask, out = (str(tmp_path / name) for name in (f"{value}.png", "mask.png", f"out{value}"))
        maelift.reconstruct(encoder=str(encoder), images=images, mask=mask, out=out)
        results.append(pixels(tmp_path / f"out{value}" / f"{value}.png"))
    assert np.array_equal(results[0], results[1])


def test_an_image_without_its_mask_is_named_and_the_others_are_filled_in(encoder: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 3)
    (tmp_path / "masks").mkdir()
    hidden = np.zeros((20, 24), np.uint8)
    hidden[3:9, 4:11] = 255
    Image.fromarray(hidden).save(tmp_path / "masks" / "image000.png")
    Image.fromarray(hidden.T).save(tmp_path / "masks" / "image002.png")
    masks = str(tmp_path / "masks")
    result = maelift.reconstruct(encoder=str(encoder), images=str(data), mask=masks, out=str(tmp_path / "out"))
    assert (result.count, result.rejected) == (1, 2)
    listed = (tmp_path / "out" / "rejected.csv").read_text()
    assert "no mask for image001.png" in listed and "24×20 pixels for an image of 20×24" in listed


def test_an_array_is_reconstructed_as_its_images_are(encoder: Path, tmp_path: Path) -> None:
    pictures = [np.asarray(noise_image(number, (24, 24))) for number in range(3)]
    (tmp_path / "images").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    np.save(tmp_path / "images.npy", np.stack(pictures))
    for images, out in (("images", "folder"), ("images.npy", "array")):
        words = (f"encoder={encoder}", f"images={tmp_path / images}", f"out={tmp_path / out}", "compare=false")
        assert run_maelift("reconstruct", *words).returncode == 0
    for number in range(3):
        expected = pixels(tmp_path / "folder" / f"{number}.png")
        assert np.array_equal(pixels(tmp_path / "array" / f"images.npy-{number}.png"), expected)


def test_results_are_gray_and_deep_where_the_images_are(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    noise_image(1, mode="L").save(tmp_path / "images" / "gray.png")
    deep = np.random.default_rng(0).integers(0, 65535, (20, 24)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "images" / "deep.png")
    maelift.reconstruct(encoder=str(encoder), images=str(tmp_path / "images"), out=str(tmp_path / "out"))
    gray, found = pixels(tmp_path / "out" / "gray.png"), pixels(tmp_path / "out" / "deep.png")
    assert gray.shape == (20, 24) and found.shape == (20, 24) and found.dtype == np.uint16
    assert (found == deep).mean() > 0.1  # what is visible has kept its bits


def test_drawn_masks_differ_by_draw_and_come_again_by_seed(encoder: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 2)
    for out in ("one", "two"):
        result = maelift.reconstruct(
            encoder=str(encoder),
            images=str(data),
            out=str(tmp_path / out),
            draws=2,
            masking={"strategy": "block", "ratio": 0.5},
        )
        assert result.count == 2
    names = {path.name for path in (tmp_path / "one").glob("*.png")}
    assert names == {f"image00{n}.{draw}{end}.png" for n in (0, 1) for draw in (1, 2) for end in ("", ".compare")}
    one = [pixels(tmp_path / "one" / f"image000.{draw}.png") for draw in (1, 2)]
    assert not np.array_equal(one[0], one[1])
    assert np.array_equal(one[0], pixels(tmp_path / "two" / "image000.1.png"))


def test_the_truth_s_brightness_is_nearer_to_the_truth(encoder: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 4)
    errors = {}
    for brightness in ("neighbours", "truth"):
        out = tmp_path / brightness
        maelift.reconstruct(encoder=str(encoder), images=str(data), out=str(out), brightness=brightness)
        errors[brightness] = sum(
            np.abs(pixels(out / path.name).astype(int) - pixels(path)).mean() for path in data.iterdir()
        )
    assert 0 < errors["truth"] < errors["neighbours"]


@pytest.mark.slow
def test_a_second_run_makes_what_is_missing_and_broken_images_are_named(encoder: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 3)
    (data / "broken.png").write_bytes(b"nothing")
    words = ["reconstruct", f"encoder={encoder}", f"images={data}", f"out={tmp_path / 'out'}"]
    done = run_maelift(*words)
    assert done.returncode == 0 and "3 images" in done.stdout and "1 could not be read" in done.stdout
    first = tmp_path / "out" / "image000.png"
    kept, before = first.stat().st_mtime_ns, pixels(tmp_path / "out" / "image001.png")
    (tmp_path / "out" / "image001.png").unlink()
    assert run_maelift(*words).returncode == 0
    assert first.stat().st_mtime_ns == kept and np.array_equal(pixels(tmp_path / "out" / "image001.png"), before)
    one_line_error(run_maelift(*words, "seed=1"), "other settings", "seed: 0 -> 1")


@pytest.mark.slow
def test_wrong_inputs_are_told_in_a_line(encoder: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 1)
    words = ["reconstruct", f"encoder={encoder}", f"images={data}", f"out={tmp_path / 'out'}"]
    for shade, what in ((0, "hides nothing"), (255, "hides everything")):
        Image.new("L", (8, 8), shade).save(tmp_path / "mask.png")
        one_line_error(run_maelift(*words, f"mask={tmp_path / 'mask.png'}"), what)
    one_line_error(run_maelift(*words, f"mask={tmp_path / 'absent.png'}"), "no such file")
    one_line_error(run_maelift(*words, f"mask={tmp_path / 'mask.png'}", "brightness=truth"), "brightness=truth")
    one_line_error(run_maelift(*words, f"mask={tmp_path / 'mask.png'}", "draws=2"), "draws=2")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(encoder.read_bytes())
    one_line_error(run_maelift(*words[:1], f"encoder={alone}", *words[2:]), "decoder.safetensors: no such file")
    dry = run_maelift(*words, "--dry-run")
    assert dry.returncode == 0 and "75% of 16 patches" in dry.stdout


@pytest.mark.slow
def test_the_page_is_right(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 24)
    run_page(ROOT / "docs" / "reconstruction.md", tmp_path, shorter={"maelift pretrain data=": SMALL})
    assert len(list((tmp_path / "blocks").glob("*.compare.png"))) == 48
