"""Weights of others: what is chosen of a file and by whose word, what is refused and why, and that the advice works."""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from maelift.cli import main
from maelift.core.errors import CheckpointError, ConfigError, MaeliftError
from maelift.core.models.config_hints import hints_of_architecture
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import EncoderFile, load_encoder, read_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.tensor_files import read_tensors
from maelift.core.models.weight_names import to_transformers_names
from maelift.tests.support import framework, random_encoder
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    return dict(random_encoder().state_dict())  # vit_nano: 32×32 pixels, 8×8 patches of 4, dim 64, three blocks


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def under(prefix: str, state: State, change: float = 0.0) -> State:
    return {prefix + name: value + change for name, value in state.items()}


def read(content: object, **keys: Any) -> EncoderFile:
    torch.save(content, "weights.pth")
    return read_encoder("weights.pth", **keys)


def same(found: EncoderFile, state: State) -> bool:
    ours = found.encoder.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[name], value) for name, value in state.items())


def as_mmseg(state: State) -> State:
    """The state under the names of mmsegmentation's ViTs."""
    names = {"patch_embed.proj": "patch_embed.projection", "blocks.": "layers.", "mlp.fc1": "ffn.layers.0.0"}
    names |= {"mlp.fc2": "ffn.layers.1", "norm1": "ln1", "norm2": "ln2"}
    renamed = {}
    for name, value in state.items():
        theirs = "ln1" + name.removeprefix("norm") if name.startswith("norm.") else name
        for ours, mm in names.items() if theirs == name else ():
            theirs = theirs.replace(ours, mm)
        renamed[theirs] = value
    return renamed


def wider(dim: int = 384, heads: int = 6, **settings: Any) -> State:
    return dict(random_encoder(EncoderSpec((32, 32), 8, 3, dim, 1, heads, **settings)).state_dict())


# ---- which tensors


WRAPPED = ("module.", "_orig_mod.", "module._orig_mod.", "model.vit.", "net.", "encoder.", "student.", "foo.bar.", "")


@pytest.mark.parametrize("prefix", WRAPPED)
def test_any_one_prefix_of_wrappers_is_taken_off(state: State, prefix: str) -> None:
    assert same(read({"state_dict": under(prefix, state), "epoch": 3}), state)


@pytest.mark.parametrize("key", ["model", "state_dict", "module", "model_state_dict", "teacher", "anything"])
def test_the_state_is_found_among_what_training_scripts_save(state: State, key: str) -> None:
    training = {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "epoch": 3, "lr": 1e-3}
    assert same(read({key: under("module.", state), **training}), state)


@pytest.mark.parametrize(
    ("content", "taken", "said", "key", "other"),
    [
        (lambda a, b: {"model": a, "model_ema": b}, 0, "'model' is taken; beside it lie model_ema", "model_ema", 1),
        (lambda a, b: {"state_dict_ema": b, "state_dict": a}, 0, "'state_dict' is taken", "state_dict_ema", 1),
        (
            lambda a, b: {"student": under("module.backbone.", a), "teacher": under("backbone.", b)},
            1,
            "'teacher'",
            "student",
            0,
        ),
        (
            lambda a, b: {"state_dict": {**under("module.base_encoder.", a), **under("module.momentum_encoder.", b)}},
            0,
            "module.base_encoder is taken, module.momentum_encoder left out (",
            "momentum_encoder",
            1,
        ),
        (
            lambda a, b: {
                **under("student.backbone.", a),
                **under("teacher.backbone.", b),
                "student.head.x": torch.ones(1),
            },
            1,
            "teacher.backbone is taken, student left out",
            "student",
            0,
        ),
        (
            lambda a, b: {"encoder": a, "target_encoder": b, "predictor": a},
            1,
            "'target_encoder' is taken",
            "encoder",
            0,
        ),
    ],
)
def test_of_several_one_is_taken_which_is_said_and_a_key_takes_the_other(
    state: State, content: Callable[[State, State], Any], taken: int, said: str, key: str, other: int
) -> None:
    both = state, {name: value + 1 for name, value in state.items()}
    found = read(content(*both), num_heads=4)
    assert same(found, both[taken]) and any(said in note for note in found.notes), found.notes
    assert same(read_encoder("weights.pth", weights_key=key, num_heads=4), both[other])
    assert same(
        read_encoder("weights.pth", weights_key=found.notes[0].split("weights_key=")[1].split()[0]), both[other]
    )


def test_weights_in_several_files_are_read_by_their_index_and_their_folder(state: State) -> None:
    for kind in ("safetensors", "bin"):
        folder = Path(kind)
        folder.mkdir()
        stem = "model" if kind == "safetensors" else "pytorch_model"
        names = sorted(state)
        files = {name: f"{stem}-0000{1 + (number > 20)}-of-00002.{kind}" for number, name in enumerate(names)}
        for file in set(files.values()):
            part = {name: state[name].contiguous() for name in names if files[name] == file}
            save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
        index = folder / f"{stem}.{kind}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
        assert same(read_encoder(folder), state) and same(read_encoder(index), state)
        with pytest.raises(
            CheckpointError, match=f"one of several files: give their folder, with its index, as {kind}"
        ):
            read_encoder(folder / files[names[0]])
    (folder / files[names[0]]).unlink()
    with pytest.raises(CheckpointError, match="1 of the 2 files that it names are not there"):
        load_encoder(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../weights.bin"}}))
    with pytest.raises(CheckpointError, match="Expected files of weights in the same folder"):
        load_encoder(index)


def test_a_folder_is_read_by_load_encoder_as_by_import(state: State) -> None:
    Path("folder").mkdir()
    with pytest.raises(CheckpointError, match="a folder without weights"):
        load_encoder("folder")
    torch.save(state, "folder/checkpoint.pth")
    with pytest.raises(
        CheckpointError, match=r"It has checkpoint.pth: name the file itself, as folder/checkpoint.pth"
    ) as caught:
        load_encoder("folder")
    advised = str(caught.value).split(" as ")[1].rstrip(".")
    assert load_encoder(advised).spec.depth == 3
    torch.save(state, "folder/pytorch_model.bin")
    assert load_encoder("folder").spec.depth == 3


def test_names_outside_the_module_are_heads_or_refused(state: State) -> None:
    with pytest.raises(CheckpointError, match=r"Unexpected \(1\): norm.weight\. .*weights_key=encoder"):
        read({**under("encoder.", state), "norm.weight": torch.ones(64)})  # another norm than the encoder's own
    found = read({**under("encoder.", state), "head.fc.weight": torch.ones(2), "criterion.x": torch.ones(2)})
    assert same(found, state) and "left out: head (1 tensor)" in found.notes


# ---- what is said of them


def folder_of(name: str, state: State, config: dict[str, Any]) -> Path:
    Path(name).mkdir()
    torch.save(state, Path(name) / "pytorch_model.bin")
    (Path(name) / "config.json").write_text(json.dumps(config))
    return Path(name)


def test_timm_s_own_facts_are_taken_of_the_architecture_that_is_named(caplog: pytest.LogCaptureFixture) -> None:
    state = wider(192, 3)
    arguments = {"embed_dim": 192, "depth": 1, "img_size": 32, "patch_size": 8, "class_token": True}
    given = {**arguments, "num_heads": 6, "act_layer": "quick_gelu"}
    config = {"architecture": "vit_base_patch16_gap_224", "model_args": given}
    with caplog.at_level(logging.INFO, "maelift"):
        found = read_encoder(folder_of("given", state, config)).encoder.spec
    assert (found.num_heads, found.act, found.norm_eps) == (6, "quick_gelu", 1e-6)
    assert "num_heads 6, norm_eps 1e-06, act quick_gelu: from timm's vit_base_patch16_gap_224" in caplog.text
    own = {**config, "model_args": arguments}
    assert load_encoder(folder_of("own", state, own)).spec.num_heads == 16  # the architecture's, not the usual 3
    assert load_encoder("own", num_heads=3, act="gelu").spec.num_heads == 3  # what the user says goes first
    assert hints_of_architecture("vit_so400m_patch14_siglip_gap_224").num_heads == 16
    assert hints_of_architecture("vit_base_patch32_siglip_256").act == "gelu_tanh"


def test_settings_beside_weights_load_no_other_file_and_build_nothing_large(state: State) -> None:
    settings = {
        "checkpoint_path": "evil.pth",
        "depth": 10**12,
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 64,
        "num_heads": 2,
    }
    config = {"architecture": "vit_tiny_patch16_224", "model_args": settings}
    assert load_encoder(folder_of("folder", state, config)).spec.num_heads == 2


def test_a_config_of_another_model_or_a_broken_one_is_not_used_in_silence(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"architecture": "vit_base_patch16_gap_224"}
    assert load_encoder(folder_of("other", state, config)).spec.num_heads == 4
    assert "says a width of 768, and the weights have 64: it is ignored" in caplog.text
    (Path("other") / "config.json").write_text('{"architecture": "vit')
    assert load_encoder("other").spec.num_heads == 4
    assert "config.json: can't be read as JSON" in caplog.text


@pytest.mark.parametrize(
    ("records", "width", "expected"),
    [
        ({"args": argparse.Namespace(model="mae_vit_small_patch16", input_size=32)}, 384, (6, (32, 32))),
        ({"args": argparse.Namespace(arch="vit_small", patch_size=8)}, 384, (6, (32, 32))),
        (
            {"arch": "vit_small_patch16_224", "args": argparse.Namespace(img_size=32, model_kwargs={"patch_size": 8})},
            384,
            (6, (32, 32)),
        ),
    ],
)
def test_the_checkpoint_s_own_arguments_say_its_heads(
    records: dict[str, Any], width: int, expected: tuple[int, tuple[int, int]]
) -> None:
    found = read({"model": wider(width), **records})
    assert (found.encoder.spec.num_heads, found.encoder.spec.image_size) == expected
    assert not any("heads" in line for line in found.assumed)


def test_moco_s_small_vit_has_twelve_heads() -> None:
    state = under("module.base_encoder.", wider())
    assert read({"arch": "vit_small", "state_dict": state}).encoder.spec.num_heads == 12
    with pytest.raises(CheckpointError, match="num_heads=12 \\(or 6"):
        read({"state_dict": state})


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (
            "type='VisionTransformer', embed_dims=384, num_heads=4, norm_cfg=dict(type='LN', eps=1e-6)",
            (4, 1e-6, "gelu"),
        ),
        ("type='VisionTransformer', embed_dims=384", (12, 1e-5, "gelu")),
        ("type='mmpretrain.VisionTransformer', arch='deit-small', act_cfg=dict(type='ReLU')", (6, 1e-6, "relu")),
        ("type='MAEViT', arch={'embed_dims': 384, 'num_heads': 24}", (24, 1e-6, "gelu")),
    ],
)
def test_the_config_in_a_checkpoint_of_mmengine_is_used_and_not_run(
    backbone: str, expected: tuple[int, float, str]
) -> None:
    text = f"import os\nopen('ran.txt', 'w')\nmodel = dict(type='X', backbone=dict({backbone}), n=os.getpid())\n"
    state = under("backbone.", as_mmseg(wider()))
    found = read({"meta": {"cfg": text}, "state_dict": state}).encoder.spec
    assert (found.num_heads, found.norm_eps, found.act) == expected and not Path("ran.txt").exists()


def test_what_nothing_says_is_assumed_in_a_line_or_asked_for(state: State, caplog: pytest.LogCaptureFixture) -> None:
    found = read(state)
    assert "assumed: a square grid of 8×8 patches, 32×32 pixels; else give image_size=[height,width]" in found.assumed
    assert any("4 attention heads and an epsilon of 1e-06 and the exact GELU" in line for line in found.assumed)
    assert all(line in caplog.text for line in found.assumed)  # a warning, which Python shows without any setting up
    assert read(state, num_heads=4, norm_eps=1e-5, act="relu", image_size=32).assumed == ()
    with pytest.raises(ConfigError, match=r"architecture=vit_tyny.*Did you mean vit_tiny"):
        read(state, architecture="vit_tyny_patch16_224")
    with pytest.raises(CheckpointError, match="has a width of 192, and the weights have 64"):
        read(state, architecture="vit_tiny_patch16_224")


# ---- positions


@pytest.mark.parametrize("grid", [(4, 6), (6, 8), (3, 5), (12, 14)])
def test_positions_of_a_square_number_with_a_class_token_are_asked_for(grid: tuple[int, int]) -> None:
    size = (8 * grid[0], 8 * grid[1])
    encoder = random_encoder(EncoderSpec(size, 8, 3, 64, 1, 4))
    side = grid[0] + 1
    with pytest.raises(
        CheckpointError, match=f"{side}×{side} patches and none for the token, or {side * side - 1} patches"
    ):
        read(dict(encoder.state_dict()))
    found = read_encoder("weights.pth", image_size=size)
    assert torch.equal(found.encoder.pos_embed, encoder.pos_embed) and found.encoder.spec.image_size == size
    square = read_encoder("weights.pth", image_size=8 * side).encoder
    assert torch.equal(square.pos_embed[:, 1:], encoder.pos_embed) and not square.pos_embed[:, 0].any()


def test_positions_that_are_no_square_say_sizes_that_fit() -> None:
    encoder = random_encoder(EncoderSpec((24, 56), 8, 3, 64, 1, 4))  # 3×7 patches
    with pytest.raises(CheckpointError, match=r"21 patches and a class token are no square grid.*image_size=\[24,56\]"):
        read(dict(encoder.state_dict()))
    plain = {name: value for name, value in encoder.state_dict().items() if name != "cls_token"}
    with pytest.raises(CheckpointError, match=r"image_size=\[16,88\]"):  # 22 positions, all of patches
        read(plain)


# ---- tensors


def test_layer_scale_and_missing_biases_leave_the_features_as_they_are() -> None:
    settings = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 192, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", init_values=0.3, proj_bias=False, **settings).eval()
    for block in model.blocks:
        block.ls1.gamma.data.normal_()
        block.ls2.gamma.data.normal_()
    found = read(dict(model.state_dict()))
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        theirs, ours = model.forward_features(images), found.encoder.eval()(images)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert any("layer scale is multiplied" in note for note in found.notes)
    assert any("attn.proj has no biases" in note for note in found.notes)


@pytest.mark.parametrize(
    "lost", ["blocks.1.ls2.gamma", "blocks.0.attn.qkv.bias", "blocks.1.gamma_1", "blocks.1.attn.v_bias"]
)
def test_a_tensor_that_one_block_lacks_is_lost_and_not_left_out_by_the_model(state: State, lost: str) -> None:
    kind = lost.split(".", 2)[2]
    scales = {
        f"blocks.{block}.{part}": torch.full((64,), 0.5)
        for block in range(3)
        for part in (kind, kind.replace("2", "1"))
    }
    whole = {**state, **(scales if "gamma" in kind else {})}
    if kind == "attn.v_bias":
        for block in range(3):
            whole[f"blocks.{block}.attn.q_bias"], _, whole[f"blocks.{block}.attn.v_bias"] = whole.pop(
                f"blocks.{block}.attn.qkv.bias"
            ).chunk(3)
    del whole[lost]
    with pytest.raises(CheckpointError, match=r"Missing \([13]\)|Unexpected \([125]\)"):
        read({"head.weight": torch.ones(1), **as_mmseg(whole)} if kind in ("gamma_1", "attn.v_bias") else whole)


def test_a_class_token_that_the_weights_lack_is_said(state: State) -> None:
    del state["cls_token"]
    found = read(state, image_size=32)
    assert not found.encoder.spec.class_token
    assert (
        "the first position is assumed to be that of a class token, which the weights lack, and left out"
        in found.assumed
    )


def test_a_kernel_of_one_frame_is_taken_and_others_are_refused(state: State) -> None:
    name = "patch_embed.proj.weight"
    assert same(read({**state, name: state[name].unsqueeze(2)}), state)
    for kernel, reason in (
        (state[name].unsqueeze(2).repeat(1, 1, 2, 1, 1), "patches of 2×4×4 \\(video, volumes\\)"),
        (state[name].flatten(1), "a linear layer on flattened patches \\(64×48\\)"),
        (state[name].permute(2, 3, 1, 0).contiguous(), "the order of TensorFlow and Flax"),
        (state[name][..., :2], "patches of 4×2 pixels"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            read({**state, name: kernel})


def test_halves_and_doubles_become_float32_and_that_is_said(state: State) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        found = read({name: value.to(kind) for name, value in state.items()})
        assert found.encoder.pos_embed.dtype == torch.float32 and any(
            "weights are converted to float32" in x for x in found.notes
        )
        assert same(found, {name: value.to(kind).float() for name, value in state.items()})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("blocks.0.mlp.fc1.weight", torch.full((256, 64), float("nan")), "blocks.0.mlp.fc1.weight.*not finite"),
        ("blocks.2.norm1.bias", torch.full((64,), float("inf")), "blocks.2.norm1.bias.*not finite"),
        (
            "blocks.0.attn.qkv.weight",
            torch.ones(192, 64, dtype=torch.int8),
            "blocks.0.attn.qkv.weight is int8: quantised",
        ),
        ("dist_token", torch.ones(1, 1, 64), "a distilled DeiT: its distillation token"),
        ("reg_token", torch.ones(1, 4, 64), "register tokens"),
        ("register_tokens", torch.ones(1, 4, 64), "register tokens"),
        ("norm_pre.weight", torch.ones(64), "a norm before the blocks"),
        ("blocks.0.attn.q_norm.weight", torch.ones(16), "qk-norm"),
        ("blocks.0.mlp.w12.weight", torch.ones(9, 64), "SwiGLU"),
        ("blocks.0.attn.norm.weight", torch.ones(64), "norms within attention or MLP"),
        ("blocks.0.attn.qkv.lora_A.weight", torch.ones(4, 64), "LoRA"),
        ("rope.freqs", torch.ones(4), "rotary positions"),
        ("patch_embed.backbone.stem.weight", torch.ones(4), "a stem of convolutions"),
        ("rel_pos.mlp.fc1.weight", torch.ones(4, 2), "relative positions"),
        ("pos_embed", torch.tensor(1.0), "shape \\[\\]"),
    ],
)
def test_what_no_encoder_has_a_place_for_is_refused_by_its_name(
    state: State, name: str, value: Tensor, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read({**state, name: value})
    assert "square grid" not in str(caught.value) and str(caught.value).startswith("weights.pth: ")
    with pytest.raises(CheckpointError, match=reason):
        read_encoder("weights.pth", image_size=32)  # no advice leads into another refusal


def scripted(path: str) -> None:
    encoder = Encoder(EncoderSpec((8, 8), 4, 3, 64, 1, 4)).eval()
    torch.jit.trace(encoder, torch.zeros(1, 3, 8, 8)).save(path)  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html><body>404", "a web page"),
        (b"  \n<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 343\n", "a pointer of Git LFS"),
        (b"\x89PNG\r\n\x1a\n0000", "a picture"),
        (b"\x89HDF\r\n\x1a\n0000", "an HDF5 file"),
        (b"", "empty"),
        (bytes(600), "zeros from its beginning"),
        (b'{"a": 1, "b": [2, 3]}', "JSON, not weights"),
        (b"\x1f\x8b\x08\x00", "a gzip file"),
        (scripted, "a TorchScript archive"),
    ],
)
def test_files_of_other_kinds_are_named_as_what_they_are(content: Any, reason: str) -> None:
    Path("weights.pth").write_bytes(content) if isinstance(content, bytes) else content("weights.pth")
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_encoder("weights.pth")
    assert len(str(caught.value).splitlines()) == 1 and "weights_only" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_s_tensors_are_read_as_the_error_advises() -> None:
    scripted("script.pt")
    with pytest.raises(CheckpointError, match=r"torch\.save\(torch\.jit\.load"):
        load_encoder("script.pt")
    scripted_model = torch.jit.load("script.pt", map_location="cpu")  # type: ignore[no-untyped-call]
    torch.save(scripted_model.state_dict(), "weights.pth")
    assert load_encoder("weights.pth", image_size=8).spec.depth == 1


# ---- advice


def eva() -> State:
    state = wider(1024, 16)
    query, _, value = state.pop("blocks.0.attn.qkv.bias").chunk(3)
    return {**state, "blocks.0.attn.q_bias": query, "blocks.0.attn.v_bias": value}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            lambda state: dict(random_encoder(EncoderSpec((32, 48), 8, 3, 64, 1, 4)).state_dict()),
            "none for the token, or",
        ),
        (lambda state: dict(random_encoder(EncoderSpec((24, 56), 8, 3, 64, 1, 4)).state_dict()), "no square grid"),
        (lambda state: wider(96, 3), "its number of attention heads is unknown"),
        (lambda state: wider(100, 5), "its number of attention heads is unknown"),
        (lambda state: wider(640, 10), "its number of attention heads is unknown"),
        (lambda state: {"first": state, "second": state}, "holds several states"),
        (lambda state: {**under("vit.", state), "other.weight": torch.ones(1)}, "Unexpected (1): other.weight"),
        (lambda state: eva(), "its names are those of EVA and BEiT"),
        (
            lambda state: {**wider(768, 12, class_token=False), "attn_pool.latent": torch.ones(1)},
            "it is like SigLIP's ViTs",
        ),
        (
            lambda state: {
                **state,
                "blocks.0.attn.rel_pos_h": torch.ones(15, 16),
                "blocks.0.attn.rel_pos_w": torch.ones(15, 16),
            },
            "its attention has relative positions",
        ),
    ],
)
def test_the_command_that_an_error_advises_reads_the_weights(
    state: State, capsys: pytest.CaptureFixture[str], content: Callable[[State], Any], reason: str
) -> None:
    name = "my weights.pth"  # quoted in the advice
    torch.save(content(state), name)
    assert main(["import", name, "out=other.safetensors", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert reason in said and len(said.splitlines()) == 1, said
    advised = re.search(r"maelift (import '.*?' out=\S+ [^\s;()]+)", said)
    assert advised is not None, said
    assert main([*shlex.split(advised[1]), "--quiet"]) == 0, capsys.readouterr().err
    assert load_encoder("encoder.safetensors").spec.depth >= 1


def test_a_name_of_timm_s_that_cannot_be_fetched_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def create(name: str, **keys: Any) -> Any:
        made.append(name)
        if keys.get("pretrained") and name != "vit_base_patch16_gap_224":
            raise OSError("no network")
        model = real(name, pretrained=False, depth=1, num_classes=0)
        return model

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    assert main(["import", "vit_tiny_patch16_224", "out=a.safetensors", "--quiet"]) == 2
    assert "timm could not give these weights (no network)" in capsys.readouterr().err
    assert main(["import", "vit_base_patch16_gap_224", "out=a.safetensors", "num_heads=12"]) == 2
    assert main(["import", "vit_base_patch16_gap_224", "out=a.safetensors"]) == 0
    assert "num_heads 16" in capsys.readouterr().out and load_encoder("a.safetensors").spec.num_heads == 16
    with pytest.raises(MaeliftError, match="no such file"):
        read_tensors("vit_nowhere")


def test_a_wrong_activation_given_by_an_adapter_s_folder_is_read_back(tmp_path: Path) -> None:
    framework("transformers")
    from dataclasses import replace

    from maelift.core.models.encoder_file import Provenance, save_encoder

    encoder = random_encoder(replace(random_encoder().spec, act="quick_gelu"))
    save_encoder(encoder, "encoder.safetensors", Provenance("test"))
    for name in ("timm", "transformers"):
        assert main(["export", "encoder.safetensors", "--to", name, f"out={name}", "--quiet"]) == 0
        assert load_encoder(name).spec == encoder.spec


JUNK: tuple[Any, ...] = (None, 0, -1, 10**12, "x", [], {}, float("nan"), True, [1, 2], [[1]], {"a": 1})


def mutated(state: State, draw: random.Random) -> State:
    """The state with one tensor lost, of another shape or kind, under another name, or with one more beside it."""
    changed, name = dict(state), draw.choice(sorted(state))
    value, prefix = changed.pop(name), draw.choice(["module.", "backbone.", "teacher.", "x."])
    more = draw.choice(
        ["reg_token", "cls_token", "blocks.0.gamma_1", "blocks.0.attn.q_bias", "conv_proj.weight", "norm.weight"]
    )
    shape = [draw.randrange(4) for _ in range(draw.randrange(6))]
    kinds = (torch.int8, torch.bool, torch.float64, torch.bfloat16, torch.complex64)
    changes: list[Callable[[], State]] = [
        lambda: {},
        lambda: {name: value.flatten()},
        lambda: {name: value.unsqueeze(draw.randrange(value.ndim + 1))},
        lambda: {name: torch.zeros(shape)},
        lambda: {prefix + name: value},
        lambda: {name.replace("0", draw.choice(["7", "1000000000", "9" * 20])): value},
        lambda: {name: value, more: torch.ones(shape)},
        lambda: {name: value.to(draw.choice(kinds))},
        lambda: {name: value[: len(value) - 1]},
    ]
    return {**changed, **draw.choice(changes)()}


@pytest.mark.slow
def test_mutated_weights_and_settings_are_read_or_refused_in_a_line_of_reasons(state: State) -> None:
    draw, there = random.Random(0), Counter[str]()
    theirs = to_transformers_names(state)
    keys = (
        "model_args",
        "num_attention_heads",
        "hidden_act",
        "image_size",
        "layer_norm_eps",
        "vision_config",
        "hidden_size",
    )
    for _ in range(200):
        weights = mutated(draw.choice([state, theirs]), draw)
        arguments = argparse.Namespace(model=draw.choice(["vit_tiny_patch16_224", 3]), img_size=draw.choice(JUNK))
        arguments.model_kwargs = draw.choice(JUNK)
        config = {
            draw.choice(["architecture", "model_type"]): draw.choice(
                ["vit_tiny_patch16_224", "vit", "siglip", 3, "resnet18"]
            )
        }
        config |= {key: draw.choice(JUNK) for key in keys if draw.random() < 0.4}
        Path("config.json").write_text(json.dumps(config))
        try:
            read(draw.choice([weights, {"model": weights, "args": arguments}, {"a": weights, "b": weights}]), log=False)
            there["read"] += 1
        except MaeliftError as error:
            assert len(str(error).splitlines()) == 1 and "its tensors are not those of an encoder" not in str(error), (
                error
            )
            there["refused"] += 1
    assert there["read"] >= 10 and there["refused"] >= 50, there
