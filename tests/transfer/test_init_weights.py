"""Starts: which weights training begins with, and what is adapted, said or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from maelift.core.data.readers.folder import FolderImages
from maelift.core.errors import CheckpointError, ConfigError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.tests.support import encoder_file, random_encoder, write_images
from maelift.transfer.init_keys import EncoderInit
from maelift.transfer.init_weights import init_encoder, read_init_weights

SPEC = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=2, num_heads=2)


@pytest.fixture
def images(tmp_path: Path) -> FolderImages:
    folder = write_images(tmp_path / "images", 3)
    return FolderImages(folder, tuple(sorted(path.name for path in folder.iterdir())))


def started(images: FolderImages, *, gray: bool = False, **keys: Any) -> tuple[Encoder, list[str]]:
    start = EncoderInit(**keys)
    encoder, notes = init_encoder(start, read_init_weights(start), images, gray)
    assert isinstance(encoder, Encoder)
    return encoder, notes


def test_the_weights_are_those_of_the_file(tmp_path: Path, images: FolderImages) -> None:
    source = random_encoder(SPEC)
    encoder, notes = started(images, encoder=str(encoder_file(tmp_path / "e.safetensors", source)))
    assert notes == []
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in source.state_dict().items())


def test_scratch_takes_the_shape_and_preprocessing_but_no_weights(tmp_path: Path, images: FolderImages) -> None:
    path = str(encoder_file(tmp_path / "e.safetensors", random_encoder(SPEC)))
    first, _ = started(images, encoder=path, init="scratch", seed=1)
    again, _ = started(images, encoder=path, init="scratch", seed=1)
    other, _ = started(images, encoder=path, init="scratch", seed=2)
    key = "blocks.0.attn.qkv.weight"
    assert first.spec == SPEC and torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], read_encoder(path).encoder.state_dict()[key])


def test_what_is_adapted_is_said(tmp_path: Path, images: FolderImages) -> None:
    colour = str(encoder_file(tmp_path / "colour.safetensors", random_encoder(SPEC)))
    gray = str(encoder_file(tmp_path / "gray.safetensors", random_encoder(replace(SPEC, channels=1))))
    assert "repeated three times" in started(images, encoder=colour, gray=True)[1][0]
    assert "read as gray" in started(images, encoder=gray)[1][0]
    encoder, notes = started(images, encoder=colour, image_size=(24, 32))
    assert encoder.spec.image_size == (24, 32) and "16×16 to 24×32 pixels" in notes[0]


def test_an_encoder_of_blue_green_red_gives_the_same_features_of_red_green_blue(
    tmp_path: Path, images: FolderImages
) -> None:
    blue_first = Preprocessing(("blue", "green", "red"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    source = Encoder(SPEC, preprocessing=blue_first)
    save_encoder(source, tmp_path / "bgr.safetensors", Provenance("test"))
    encoder, notes = started(images, encoder=str(tmp_path / "bgr.safetensors"))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    wanted = source.eval()(source.preprocessing.normalize(pixels.flip(1)))
    found = encoder.eval()(encoder.preprocessing.normalize(pixels))
    assert encoder.preprocessing.channel_names == ("red", "green", "blue") and "was reordered" in notes[0]
    assert torch.allclose(found, wanted, atol=1e-6)


def test_weights_trained_with_labels_are_told_of_their_recipe(tmp_path: Path, images: FolderImages) -> None:
    save_encoder(random_encoder(SPEC), tmp_path / "e.safetensors", Provenance("supervised classification of 9 images"))
    assert "init=supervised" in started(images, encoder=str(tmp_path / "e.safetensors"))[1][0]
    assert started(images, encoder=str(tmp_path / "e.safetensors"), init="supervised")[1] == []


def test_weights_must_be_named_unless_the_start_is_scratch() -> None:
    with pytest.raises(ConfigError, match="init=scratch"):
        EncoderInit(init="supervised")
    with pytest.raises(ConfigError, match="multiples of the patch size"):
        started(FolderImages(Path("."), ()), init="scratch", model="vit_nano", image_size=30, gray=False)


def test_weights_of_timm_come_with_their_mean_heads_epsilon_and_licence(
    monkeypatch: pytest.MonkeyPatch, images: FolderImages
) -> None:
    real = timm.create_model

    def without_network(name: str, *, pretrained: bool, num_classes: int) -> Any:
        assert pretrained
        return real(name, pretrained=False, num_classes=num_classes, img_size=32, embed_dim=48, num_heads=4, depth=2)

    monkeypatch.setattr(timm, "create_model", without_network)
    file = read_init_weights(EncoderInit(encoder="timm:vit_tiny_patch16_224.augreg_in21k", init="supervised"))
    assert file is not None
    encoder = file.plain("timm").encoder
    spec, prepared = encoder.spec, encoder.preprocessing
    assert (spec.image_size, spec.embed_dim, spec.num_heads, spec.depth) == ((32, 32), 48, 4, 2)
    assert prepared.mean == (0.5, 0.5, 0.5) and file.provenance.licence == "apache-2.0"
    assert file.provenance.parent == "timm:vit_tiny_patch16_224.augreg_in21k"


def test_weights_that_timm_cannot_give_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **_: object) -> Any:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(CheckpointError, match=r"timm:vit.*no route to host\)"):
        read_init_weights(EncoderInit(encoder="timm:vit_base_patch16_224.mae"))
