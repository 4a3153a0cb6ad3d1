"""300 mutated weights, model and metadata files: refused in one line, or read as what they say; no traceback, bounded memory."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from maelift.cli import main
from maelift.core.errors import MaeliftError
from maelift.core.models.contract import sealed, sealed_hash
from maelift.core.models.decoder_file import DecoderFile, read_decoder, save_decoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.tests.support import GOLDEN, bounded_memory, random_encoder, rewrite_metadata, write_images
from maelift.transfer.classification.model import Classifier, save_classifier
from maelift.transfer.detection.architecture import Architecture as DetectorArchitecture
from maelift.transfer.detection.model import Detector
from maelift.transfer.model_file import read_model
from maelift.transfer.segmentation.architecture import Architecture as SegmentorArchitecture
from maelift.transfer.segmentation.model import Segmentor
from maelift.transfer.trained_model import build_model
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

VERSION_1 = GOLDEN / "version_1"
SMALL = read_encoder(VERSION_1 / "encoder.safetensors").encoder.spec
SMALL_DETECTOR = DetectorArchitecture(
    head="faster",
    pyramid_channels=4,
    head_channels=4,
    fc_dim=4,
    box_convs=1,
    mask_convs=0,
    pyramid_scales=(1.0,),
    relative_positions=False,
)
NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    10**6,
    10**12,
    2**63,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    1e-30,
    1e300,
]
NASTY += [math.nan, math.inf, "", "four", "4", "\n", "\x1b[2J", "é" * 5000, "\ud800", "sinc", "0" * 64, [], {}, [[]]]
NASTY += [[1], [1, 2], [1, 2, 3], ["a"] * 1000, [None], {"a": 1}, {"": {"": {}}}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind, a few kB each."""
    folder = tmp_path_factory.mktemp("whole")
    encoder, provenance = random_encoder(SMALL), Provenance("test", {"epochs": 1}, seed=3, steps=7)
    digest = save_encoder(encoder, folder / "encoder.safetensors", provenance)
    decoder = read_decoder(VERSION_1 / "decoder.safetensors")
    save_decoder(replace(decoder, encoder=digest), folder / "decoder.safetensors")
    save_classifier(Classifier(encoder, ("a", "größer", "<b>")), folder / "classify.safetensors", provenance)
    Detector(encoder, ("a", "b"), SMALL_DETECTOR).save(folder / "detect.safetensors", provenance, [1, 7])
    Segmentor(encoder, ("a", "b"), SegmentorArchitecture(head="conv", head_channels=8)).save(
        folder / "segment.safetensors", provenance, [0, 255]
    )
    wide = random_encoder(replace(SMALL, embed_dim=64)).state_dict()
    torch.save({"model": wide, "epoch": 3}, folder / "weights.pth")
    torch.save(wide, folder / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("encoder", "decoder", "classify", "detect", "segment"):
        shutil.copy(VERSION_1 / f"{name}.safetensors", folder / f"{name}_before.safetensors")
    return {path.name: path for path in folder.iterdir()}


def changed_bytes(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "flip", "cut", "longer", "zeros", "length"])
    if kind == "flip":
        header = int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(min(len(content), header if draw.random() < 0.6 else len(content)))] ^= (
                1 << draw.randrange(8)
            )
    elif kind == "cut":
        del content[draw.randrange(len(content)) :]
    elif kind == "longer":
        content += draw.randbytes(draw.randint(1, 100))
    elif kind == "zeros":
        start = draw.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    else:
        content[:8] = struct.pack("<Q", draw.choice([0, 1, 8, 2**20, 2**40, 2**63, 2**64 - 1]))
    path.write_bytes(content)


def changed_field(content: Any, draw: random.Random) -> None:
    """One value of nested JSON becomes another, is removed or gets a neighbour; in place."""
    places = [content]
    for place in places:
        inner = place.values() if isinstance(place, dict) else place
        places += [value for value in inner if isinstance(value, dict | list)]
    place = draw.choice([place for place in places if place])
    key = draw.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
    kind = draw.choice(["value", "value", "value", "gone", "more"])
    if kind == "gone":
        del place[key]
    elif kind == "value" or isinstance(place, list):
        place[key] = draw.choice(NASTY)
    else:
        place[draw.choice(["more", "\n", "norm_eps", "version"])] = draw.choice(NASTY)


def changed_metadata(path: Path, draw: random.Random) -> None:
    if path.suffix != ".safetensors":
        config = {"architecture": "vit_tiny", "num_attention_heads": 2, "model_args": {"num_heads": 2, "img_size": 8}}
        changed_field(config, draw)
        path.with_name("config.json").write_text(draw.choice(["{", "[1]", *[json.dumps(config)] * 8]))
        return
    ((key, text),), state = _opened(path)
    content = json.loads(text)
    changed_field(content, draw)
    if draw.random() < 0.6:
        content = json.loads(sealed(content, sealed_hash(content, state)))
    path.write_bytes(save(state, {key: json.dumps(content)}))


def changed_tensor(path: Path, draw: random.Random) -> None:
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        pairs, state = _opened(path)
        metadata = dict(pairs)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(content.get("model", content))
    name = draw.choice(list(state))
    tensor = state[name]
    changes: dict[str, Callable[[], Tensor]] = {
        "half": lambda: tensor.half(),
        "int": lambda: tensor.to(torch.int32),
        "bool": lambda: tensor > 0,
        "flat": lambda: tensor.reshape(-1),
        "deeper": lambda: tensor[None],
        "longer": lambda: torch.cat([tensor.reshape(-1), torch.ones(1, dtype=tensor.dtype)]),
        "scalar": lambda: tensor.reshape(-1)[0].clone(),
        "none": lambda: tensor.reshape(-1)[:0].clone(),
        "nan": lambda: tensor * math.nan,
        "other": lambda: tensor + 1,
        "turned": lambda: tensor.flip(0),
    }
    kind = draw.choice([*changes, "gone", "more", "named", "number"])
    if kind in changes:
        state[name] = changes[kind]().contiguous()
    elif kind == "more":
        state[draw.choice(["more", "blocks.1.norm1.weight", "blocks.99999999999.x", "head.weight", "\n\x1b[2J"])] = (
            tensor.clone()
        )
    else:
        del state[name]
        if kind != "gone":
            state[name.replace("blocks.0", "blocks.7") if kind == "number" else f"module.{name}"] = tensor
    if path.suffix != ".safetensors":
        torch.save(state, path, _use_new_zipfile_serialization=path.name != "old.pth")
        return
    ((key, text),) = metadata.items()
    content = json.loads(text)
    if draw.random() < 0.6:
        content = json.loads(sealed(content, sealed_hash(content, state)))
    path.write_bytes(save(state, {key: json.dumps(content)}))


def _opened(path: Path) -> tuple[Any, dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata().items(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def check_encoder(path: Path) -> None:
    file = read_encoder(path)
    if path.suffix == ".safetensors":
        ((_, text),), state = _opened(path)
        content = json.loads(text)
        for key, found in (("spec", file.encoder.spec), ("preprocessing", file.encoder.preprocessing)):
            stated = json.loads(json.dumps(asdict(found)))
            assert {**stated, **content[key]} == stated  # files of before lack what has a default
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)
        state = found.get("model", found)
    own = file.encoder.state_dict()
    for name, tensor in own.items():
        stated = state.get(name, state.get(f"module.{name}"))
        if name == "pos_embed" and stated is not None and stated.ndim == 3:
            stated = stated[:, -tensor.shape[1] :]  # without a class token, there is no position for one
        assert stated is None or torch.equal(stated.to(tensor.dtype), tensor) or not stated.isfinite().all()
    with torch.inference_mode():
        tokens = file.encoder.eval()(torch.zeros(1, file.encoder.spec.channels, *file.encoder.spec.image_size))
    assert tokens.shape[-1] == file.encoder.spec.embed_dim


def check_decoder(path: Path) -> None:
    file = read_decoder(path)
    ((_, text),), state = _opened(path)
    content = json.loads(text)
    assert isinstance(file, DecoderFile) and all(torch.equal(file.state[name], state[name]) for name in state)
    assert (content["num_heads"], content["norm_eps"]) == (file.num_heads, file.norm_eps)


def check_model(path: Path) -> None:
    file = read_model(path)
    model = build_model(file)
    ((_, text),), state = _opened(path)
    assert list(file.classes) == json.loads(text)["classes"]
    own = model.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[name], state[name].to(own[name].dtype)) for name in own)


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with bounded_memory():
        yield


@pytest.mark.parametrize("kind", ["bytes", "metadata", "tensor"])
def test_mutated_files_are_refused_in_a_line_or_read_as_what_they_say(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    draw = random.Random(f"{kind} 1")
    mutate = {"bytes": changed_bytes, "metadata": changed_metadata, "tensor": changed_tensor}[kind]
    refused = 0
    for number in range(100):
        name = sorted(files)[number % len(files)]
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        shutil.copy(files[name], path)
        mutate(path, draw)
        check = check_decoder if "decoder" in name else check_encoder if name[0] in "ewo" else check_model
        try:
            check(path)
        except MaeliftError as error:
            refused += 1
            said = str(error)
            assert len(said.splitlines()) == 1 and said.isprintable() and len(said) < 2000, said
            assert str(path.parent) in said, said
    assert refused > 50, refused


def test_the_files_that_are_mutated_are_read(files: dict[str, Path]) -> None:
    for name, path in files.items():
        (check_decoder if "decoder" in name else check_encoder if name[0] in "ewo" else check_model)(path)


COMMANDS = {
    "predict": ["predict", "model={file}", "images={images}", "out={out}/p.csv"],
    "export": ["export", "{file}", "--to", "torchvision", "out={out}/o"],
    "export a graph": ["export", "{file}", "--to", "onnx", "out={out}/o"],
    "certify": ["certify", "{folder}/weights.pth", "{file}"],
    "embed": ["embed", "encoder={file}", "images={images}", "out={out}/f.npz"],
    "reconstruct": ["reconstruct", "encoder={file}", "images={images}", "out={out}/r"],
    "import": ["import", "{file}", "out={out}/i.safetensors", "num_heads=1"],
    "transfer": ["transfer", "classify", "encoder={file}", "data={images}", "out={out}/t", "steps=1"],
    "pretrain": ["pretrain", "data={images}", "out={out}/m", "init={file}", "epochs=1", "batch_size=1"],
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_refuses_hostile_files_in_one_line(
    command: str, files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images" / "a", 2)
    shutil.copytree(files["encoder.safetensors"].parent, tmp_path / "whole")
    shutil.copy(files["encoder.safetensors"], tmp_path / "encoder.safetensors")
    hostile = {
        name: tmp_path / f"{name}.safetensors" for name in ("nan", "cut", "spec", "deep", "pipe", "swapped", "number")
    }
    for name in ("spec", "swapped", "number", "nan"):
        shutil.copy(files["classify.safetensors" if command == "predict" else "encoder.safetensors"], hostile[name])
    hostile["cut"].write_bytes(files["classify.safetensors"].read_bytes()[:-9])
    hostile["deep"].write_bytes(struct.pack("<Q", 10**6) + b"{" + b'"a":[' * 200_000)
    os.mkfifo(hostile["pipe"])
    rewrite_metadata(hostile["spec"], lambda content: content["spec"].update(depth=10**12))
    rewrite_metadata(hostile["number"], lambda content: content["preprocessing"].update(std=["\n"] * 3))
    rewrite_metadata(hostile["swapped"], lambda content: content["preprocessing"]["mean"].reverse(), seal=False)
    ((key, text),), state = _opened(hostile["nan"])
    state = {name: tensor * math.nan for name, tensor in state.items()}
    content = json.loads(text)
    hostile["nan"].write_bytes(save(state, {key: sealed(content, sealed_hash(content, state))}))
    hostile["pickle"] = tmp_path / "w.pkl"
    hostile["pickle"].write_bytes(pickle.dumps({"a": 1}))
    for name, file in hostile.items():
        out = tmp_path / f"out_{name}"
        out.mkdir()
        places = {"file": file, "images": tmp_path / "images", "out": out, "folder": tmp_path / "whole"}
        assert main([word.format(**places) for word in COMMANDS[command]]) == 2, name
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("maelift ")]
        assert len(said) == 1 and str(file) in said[0], (name, said)
        assert not [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"], name
