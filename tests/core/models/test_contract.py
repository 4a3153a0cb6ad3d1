"""Metadata of encoder and decoder files: what was written is read, by version 1 too; everything else is refused in a line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from maelift.core.distributed import Ranks
from maelift.core.errors import CheckpointError, ConfigError
from maelift.core.models.contract import content_hash, parse_json
from maelift.core.models.decoder_file import DECODER_KEY, read_decoder, save_decoder
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, encoder_hash, read_encoder, save_encoder
from maelift.core.models.encoder_shapes import encoder_shapes
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.stored_contract import CONTRACT_KEY
from maelift.core.training.checkpoints import Checkpoints
from maelift.tests.support import GOLDEN, encoder_file, random_encoder, rewrite_metadata
from safetensors import safe_open
from safetensors.torch import load_file, save_file

VERSION_1 = GOLDEN / "version_1"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    return encoder_file(tmp_path / "encoder.safetensors")


def refused(path: Path, *expected: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        (read_decoder if "decoder" in path.name else read_encoder)(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 900 and str(path) in said, said
    for text in expected:
        assert text in said, (text, said)
    return said


def test_files_of_version_1_are_read() -> None:
    file, decoder = read_encoder(VERSION_1 / "encoder.safetensors"), read_decoder(VERSION_1 / "decoder.safetensors")
    assert file.content_hash == content_hash(load_file(VERSION_1 / "encoder.safetensors")) == decoder.encoder
    assert file.encoder.spec == EncoderSpec((8, 8), 4, 3, 8, 1, 2) and file.provenance.steps == 7
    assert decoder.norm_pix_loss and decoder.num_heads == 2 and "mask_token" in decoder.state
    for name, tensor in load_file(VERSION_1 / "encoder.safetensors").items():
        assert torch.equal(file.encoder.state_dict()[name], tensor)


def test_a_checkpoint_folder_of_before_is_read(tmp_path: Path) -> None:
    shutil.copytree(VERSION_1 / "checkpoints", tmp_path / "checkpoints")
    checkpoints = Checkpoints(tmp_path / "checkpoints", Ranks(0, 1, torch.device("cpu")))
    assert checkpoints.newest() == 7 and checkpoints.extra_state(7) == {"step": 7, "note": "x"}
    into = {"model.a": torch.zeros(2, 3), "optimizer.a": torch.zeros(3, dtype=torch.float64)}
    checkpoints.load(7, into)
    assert into["model.a"].tolist() == [[0, 1, 2], [3, 4, 5]] and into["optimizer.a"].tolist() == [1, 1, 1]


def test_a_file_of_version_1_is_written_again_as_version_2(tmp_path: Path) -> None:
    old = read_encoder(VERSION_1 / "encoder.safetensors")
    digest = save_encoder(old.encoder, tmp_path / "e.safetensors", old.provenance)
    new = read_encoder(tmp_path / "e.safetensors")
    assert new.content_hash == digest == encoder_hash(old.encoder) != old.content_hash
    assert new.provenance == old.provenance and new.encoder.spec == old.encoder.spec
    with safe_open(tmp_path / "e.safetensors", "pt") as file:
        assert json.loads(file.metadata()[CONTRACT_KEY])["version"] == 2


def test_the_hash_is_of_spec_and_preprocessing_and_not_of_the_hours() -> None:
    encoder = random_encoder()
    other = random_encoder()
    other.preprocessing = replace(encoder.preprocessing, interpolation="bilinear")
    heads = Encoder(replace(encoder.spec, num_heads=2), preprocessing=encoder.preprocessing)
    heads.load_state_dict(encoder.state_dict())
    assert len({encoder_hash(encoder), encoder_hash(other), encoder_hash(heads)}) == 3
    assert encoder_hash(encoder) == encoder_hash(random_encoder())


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["spec"].update(num_heads=2),
        lambda c: c["spec"].update(norm_eps=1e-5),
        lambda c: c["preprocessing"].update(mean=c["preprocessing"]["mean"][::-1]),
        lambda c: c["preprocessing"].update(channel_names=["blue", "green", "red"]),
        lambda c: c["preprocessing"].update(bit_depth=16),
        lambda c: c["provenance"].update(licence="MIT"),
        lambda c: c["provenance"].update(steps=1000),
    ],
    ids=["heads", "eps", "mean", "channels", "bits", "licence", "steps"],
)
def test_a_change_that_could_be_is_refused_by_the_hash(path: Path, change: Change) -> None:
    rewrite_metadata(path, change, seal=False)
    refused(path, "not those that the file was written with")


ENCODER_FAULTS: list[tuple[Change, str]] = [
    (lambda c: c["spec"].update(norm_eps=-1.0), "spec.norm_eps=-1: expected a number above 0"),
    (lambda c: c["spec"].update(norm_eps=math.nan), "spec.norm_eps=nan: expected a finite number"),
    (lambda c: c["spec"].update(mlp_ratio="four"), "spec.mlp_ratio=four: expected float"),
    (lambda c: c["spec"].update(mlp_ratio=10**400), "spec"),
    (lambda c: c["spec"].update(depth=10**12), "spec.depth=1000000000000: expected a whole number of at least 1"),
    (lambda c: c["spec"].update(depth=1000), "depth=1000, and has the tensors of 3 blocks"),
    (lambda c: c["spec"].update(depth=True), "spec.depth=true: expected int"),
    (lambda c: c["spec"].update(depth=3.0), "spec.depth=3: expected int"),
    (lambda c: c["spec"].update(image_size=[32]), "spec.image_size=[32]: expected [int, int]"),
    (lambda c: c["spec"].update(image_size=[2**40, 2**40]), "spec.image_size"),
    (lambda c: c["spec"].update(image_size=[4096, 4096]), "pos_embed of shape"),
    (lambda c: c["spec"].update(embed_dim=65536), "is due"),
    (lambda c: c["spec"].update(class_token=1), "spec.class_token=1: expected true or false"),
    (lambda c: c["spec"].update(wings=2), "spec.wings is no key of it"),
    (lambda c: c["spec"].pop("norm_eps"), "spec.norm_eps is missing"),
    (lambda c: c.update(spec=[1, 2]), "spec=[1,2]: expected a mapping"),
    (lambda c: c.update(spec=None), "spec=null: expected a mapping"),
    (lambda c: c["preprocessing"].update(std=[1e-30] * 3), "preprocessing.std"),
    (lambda c: c["preprocessing"].update(std=[0.1, 0.2]), "2 standard deviations"),
    (lambda c: c["preprocessing"].update(mean=[0.1, 0.2, "x"]), "preprocessing.mean[2]=x: expected float"),
    (lambda c: c["preprocessing"].update(interpolation="sinc"), "preprocessing.interpolation=sinc: expected one of"),
    (lambda c: c["preprocessing"].update(value_range=[255, 0]), "preprocessing.value_range"),
    (lambda c: c["preprocessing"].update(bit_depth=-8), "preprocessing.bit_depth=-8"),
    (
        lambda c: c["preprocessing"].update(channel_names=["a"], mean=[0.5], std=[0.5]),
        "1 channels: expected the 3 of spec",
    ),
    (lambda c: c["provenance"].update(steps=-3), "provenance.steps=-3: expected a number of at least 0"),
    (lambda c: c["provenance"].update(cpu_hours="long"), "provenance.cpu_hours=long: expected float"),
    (lambda c: c["provenance"].update(config=[1]), "provenance.config=[1]: expected mapping"),
    (lambda c: c.pop("provenance"), "provenance is missing"),
    (lambda c: c.update(more=1), "more is no key of it"),
    (lambda c: c.update(version=3), "Update maelift"),
    (lambda c: c.update(version="2"), "version=2: expected a whole number"),
    (lambda c: c.update(version=0), "version=0"),
    (lambda c: c["spec"].update({"\n\x1b[31m" + "x" * 9999: 1}), "is no key of it"),
]


@pytest.mark.parametrize(("change", "expected"), ENCODER_FAULTS, ids=[text for _, text in ENCODER_FAULTS])
def test_a_field_of_an_encoder_file_that_cannot_be_is_refused(path: Path, change: Change, expected: str) -> None:
    """Sealed: whoever writes such a field can write the hash to it as well."""
    rewrite_metadata(path, change)
    refused(path, expected)
    shutil.copy(VERSION_1 / "encoder.safetensors", path)
    rewrite_metadata(path, change, seal=False)
    refused(path)


@pytest.mark.parametrize("digest", [None, 1, "", "0" * 63, "G" * 64, "0" * 64])
@pytest.mark.parametrize("key", ["content_hash", "checksum"])
def test_a_hash_that_is_none_is_refused(path: Path, key: str, digest: object) -> None:
    rewrite_metadata(path, lambda contract: contract.update({key: digest}), seal=False)
    refused(path)
    if key == "content_hash":
        shutil.copy(VERSION_1 / "encoder.safetensors", path)
        rewrite_metadata(path, lambda contract: contract.update({key: digest}), seal=False)
        refused(path, "content_hash=" if digest != "0" * 64 else "content hash")


DECODER_FAULTS: list[tuple[Change, str]] = [
    (lambda c: c.update(num_heads=0), "num_heads=0"),
    (lambda c: c.update(num_heads="2"), "num_heads=2: expected int"),
    (lambda c: c.update(norm_eps=0), "norm_eps=0"),
    (lambda c: c.update(norm_pix_loss=None), "norm_pix_loss=null: expected true or false"),
    (lambda c: c.update(encoder=7), "encoder=7: expected a sha256"),
    (lambda c: c.pop("encoder"), "encoder is missing"),
    (lambda c: c.update(version=9), "Update maelift"),
]


@pytest.mark.parametrize(("change", "expected"), DECODER_FAULTS, ids=[text for _, text in DECODER_FAULTS])
def test_a_field_of_a_decoder_file_that_cannot_be_is_refused(tmp_path: Path, change: Change, expected: str) -> None:
    path = tmp_path / "decoder.safetensors"
    save_decoder(read_decoder(VERSION_1 / "decoder.safetensors"), path)
    assert read_decoder(path).num_heads == 2
    rewrite_metadata(path, lambda contract: contract.update(num_heads=1), seal=False)
    refused(path, "not those that the file was written with")
    rewrite_metadata(path, change)
    refused(path, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "a list, where a mapping was expected"),
        ('{"a": 1, "a": 2}', "'a'"),
        ("[" * 200 + "]" * 200, "nested deeper than 64 levels"),
        ("[" * 10**6, "nested too deeply"),
        ("9" * 5000, "can't be read"),
        ("null", "a NoneType"),
    ],
)
def test_metadata_that_are_no_mapping_in_json_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    tensors = load_file(VERSION_1 / "encoder.safetensors")
    for key, name in ((CONTRACT_KEY, "encoder.safetensors"), (DECODER_KEY, "decoder.safetensors")):
        save_file(tensors, tmp_path / name, {key: text})
        refused(tmp_path / name, expected.strip("'"))


def test_tensors_that_are_not_finite_are_refused(path: Path, tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        encoder = random_encoder()
        encoder.state_dict()["blocks.1.mlp.fc1.weight"][3, 4] = value
        save_encoder(encoder, path, Provenance("test"))
        refused(path, "blocks.1.mlp.fc1.weight holds values that are not finite")
    decoder = read_decoder(VERSION_1 / "decoder.safetensors")
    state = {**decoder.state, "mask_token": decoder.state["mask_token"] * math.nan}
    save_decoder(replace(decoder, state=state), tmp_path / "decoder.safetensors")
    refused(tmp_path / "decoder.safetensors", "mask_token")


@pytest.mark.parametrize("class_token", [True, False])
def test_the_shapes_that_are_compared_are_those_of_the_encoder(class_token: bool) -> None:
    spec = EncoderSpec((24, 16), 8, 2, 24, 3, 2, mlp_ratio=2.5, class_token=class_token)
    built = {name: tuple(tensor.shape) for name, tensor in Encoder(spec).state_dict().items()}
    assert encoder_shapes(spec) == built


@pytest.mark.parametrize(
    "change",
    [
        {"std": (1e-30,)},
        {"std": (math.nan,)},
        {"mean": (math.inf,)},
        {"value_range": (0.0, math.inf)},
        {"value_range": (1.0, 1.0)},
        {"bit_depth": 0},
        {"interpolation": "sinc"},
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Preprocessing(**{"channel_names": ("gray",), "mean": (0.5,), "std": (0.5,), **change})
    assert caught.value.key == next(iter(change))


def test_a_key_that_is_given_twice_is_named() -> None:
    with pytest.raises(ValueError, match="the key b is given twice"):
        parse_json('{"a": {"b": 1, "b": 2}}')
