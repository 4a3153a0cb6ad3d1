"""The page of features: maps against scikit-learn, pictures of tokens, and the page in a browser."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.core.models.timm_backbone import TimmBackbone
from maelift.core.models.timm_spec import TimmSpec
from maelift.tests.benchmarks.test_browser import (
    HOSTILE,
    Browser,
    chromium,  # noqa: F401  (a fixture)
    shown_at_each_width,
)
from maelift.tests.support import encoder_file, framework, noise_image, random_encoder, write_images
from maelift.transfer import embed_page
from maelift.transfer.embed import embed
from maelift.transfer.embed_config import EmbedConfig
from maelift.transfer.embed_map import FeatureMap, pca_map, principal_components, tsne_map
from maelift.transfer.token_maps import attention_pictures, token_pictures
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")


def page_of(folder: Path, images: Path, **keys: Any) -> Path:
    encoder = encoder_file(folder / "encoder.safetensors", random_encoder(image_size=32))
    given = {"encoder": str(encoder), "images": str(images), "out": str(folder / "f.npz"), "workers": 0, **keys}
    page = embed(EmbedConfig(**given)).page
    assert page is not None
    return page


@pytest.mark.parametrize("shape", [(50, 8), (6, 30), (3, 2)])
def test_principal_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    framework("sklearn")
    from sklearn.decomposition import PCA

    features = np.random.default_rng(0).normal(size=shape) * np.linspace(3, 1, shape[1]) + 5
    scores, shares = principal_components(features, 2)
    fitted = PCA(2, svd_solver="full").fit(features)
    own = fitted.transform(features)
    assert np.allclose(np.abs(scores), np.abs(own), atol=1e-9) and np.allclose(shares, fitted.explained_variance_ratio_)
    again, _ = principal_components(features.astype(np.float32), 2)
    assert np.allclose(again, scores, atol=1e-4)


def test_maps_lie_within_their_square_and_are_the_same_each_time() -> None:
    framework("sklearn")
    groups = np.random.default_rng(0).normal(size=(2, 1, 12)) * 5
    noise = np.random.default_rng(1).normal(size=(2, 20, 12))
    features = (groups + noise).reshape(40, 12).astype(np.float32)
    for made in (pca_map, lambda values: tsne_map(values, 3)):
        found, again = made(features), made(features)
        assert isinstance(found, FeatureMap) and isinstance(again, FeatureMap)
        assert np.array_equal(found.places, again.places) and found.words
        assert found.places.min() == 0 and found.places.max() == 1 and found.places.shape == (40, 2)
        first, second = found.places[:20], found.places[20:]
        between = np.linalg.norm(first.mean(0) - second.mean(0))
        assert between > 2 * max(part.std(axis=0).max() for part in (first, second))
    assert "10 images or more" in str(tsne_map(features[:5], 0))
    assert "all features are equal" in str(tsne_map(np.ones((20, 3), np.float32), 0))
    assert np.array_equal(pca_map(np.ones((4, 3), np.float32)).places, np.full((4, 2), 0.5))


def test_without_scikit_learn_the_page_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    html = page_of(tmp_path, write_images(tmp_path / "images", 12)).read_text()
    assert "No t-SNE map" in html and "pip install -U scikit-learn" in html and html.count('class="map"') == 1


def test_equal_patches_have_equal_colours_and_others_differ() -> None:
    encoder = random_encoder(image_size=32).eval()
    with torch.no_grad():
        encoder.pos_embed.zero_()
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, :16] = 2.0  # the upper half of both; nothing marks a patch's place
    found = token_pictures(encoder, images)
    assert found is not None and [one.shape for one in found] == [(8, 8, 3)] * 2
    assert np.array_equal(found[0], found[1])
    assert np.ptp(found[0][:4].reshape(-1, 3).astype(int), axis=0).max() <= 1
    assert np.abs(found[0][0, 0].astype(int) - found[0][7, 0]).max() > 100


def test_pictures_of_attention_are_of_a_plain_vit_alone() -> None:
    encoder = random_encoder(image_size=32).eval()
    found = attention_pictures(encoder, torch.randn(3, 3, 32, 32))
    assert found is not None and [one.shape for one in found[0]] == [(8, 8, 3)] * 3
    assert all(0 < share < 1 for share in found[1])
    network = TimmBackbone(TimmSpec("resnet18", (64, 64), 3, {})).eval()
    assert attention_pictures(network, torch.randn(2, 3, 64, 64)) is None
    tokens = token_pictures(network, torch.randn(2, 3, 64, 64))
    assert tokens is not None and tokens[0].shape == (2, 2, 3)


def test_the_page_shows_images_neighbours_and_classes(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework("sklearn")
    monkeypatch.setattr(embed_page, "MAPPED", 50)
    monkeypatch.setattr(embed_page, "DRAWN", 30)
    page = page_of(tmp_path, class_folders, labels=True, neighbours=2)
    html = page.read_text()
    assert html.count('class="map"') == 2 and html.count('class="thumb"') == 60 and html.count('class="dot"') == 40
    assert "50 of 60 images, drawn with seed 0; 30 of them" in html and "encoder.safetensors" in html
    assert html.count('<ul class="near">') == 6 and html.count('<figure>\n<div class="parts">') == 6
    assert re.search(r"Of 60 images \(split train\), \d+ \([\d.]+ %\) have the class of their nearest neighbour", html)
    legend = re.findall(r"</span>(dark|light|middle) \((\d+)\)", html)
    assert {name for name, _ in legend} == {"dark", "light", "middle"} and sum(int(n) for _, n in legend) == 50
    (sheet,) = re.findall(r"--sheet: url\(data:image/jpeg;base64,([\w+/=]+)\)", html)
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as picture:
        assert picture.size == (20 * embed_page.THUMBNAIL, 2 * embed_page.THUMBNAIL)
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    again = page_of(tmp_path, class_folders, labels=True, neighbours=2)
    assert again.read_text() == html


def test_channels_that_are_no_colours_are_shown_by_choice(tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.random.default_rng(0).integers(0, 256, (3, 20, 20, 5), dtype=np.uint8))
    html = page_of(tmp_path, tmp_path / "five.npy", channels=5, shown=(5, 4, 1)).read_text()
    assert "Of 5 channels these are shown as red, green and blue: channel4, channel3, channel0." in html


def test_a_single_image_has_a_page_too(tmp_path: Path) -> None:
    html = page_of(tmp_path, write_images(tmp_path / "images", 1)).read_text()
    assert "A single image has no neighbours" in html and html.count('class="map"') == 1


@pytest.mark.slow
def test_a_page_of_hostile_names_is_shown_whole(
    chromium: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    classes = [name.replace("/", "⁄")[:80] for name in HOSTILE]
    for number, name in enumerate(classes):
        (tmp_path / "images" / name).mkdir(parents=True)
        for image in range(4):
            noise_image(10 * number + image).save(tmp_path / "images" / name / f"{name[:40]}{image}.png")
    page = page_of(tmp_path, tmp_path / "images", labels=True, layout="class_folders", neighbours=1)
    for found in shown_at_each_width(chromium, page):
        assert found["title"] == "Features of images: f" and found["scripts"] == 0 and found["requests"] == []
        assert found["scrolls"] == 0 and found["wide"] == [], found["wide"][:5]
        assert found["images"] == 0 and found["focusable"]
        assert found["columns"] == (2 if found["width"] == 1280 else 1)
        shown = " ".join(found["text"].split())
        assert all(" ".join(name.split()) in shown for name in classes)
