"""Import: weights of other libraries become an encoder file with their features, or are refused in one line."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from maelift.adapters.parity import Level, reference_features
from maelift.cli import main
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import EncoderFile, read_encoder
from maelift.core.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from maelift.tests.support import (
    GOLDEN,
    ROOT,
    encoder_file,
    framework,
    one_line_error,
    random_encoder,
    rewrite_metadata,
    run_maelift,
    run_page,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

LAST = Level("last", 2)


def bring(weights: Path, *keys: str) -> EncoderFile:
    """Import weights by the command, and read the encoder file that it writes."""
    out = weights.parent / "imported.safetensors"
    assert main(["import", str(weights), f"out={out}", "--quiet", *keys]) == 0
    return read_encoder(out)


def same_tensors(found: Encoder, expected: Encoder, *, but: tuple[str, ...] = ()) -> None:
    theirs, ours = found.state_dict(), expected.state_dict()
    assert {name for name in ours if not name.startswith(but)} <= set(theirs)
    for name in ours:
        assert name.startswith(but) or torch.equal(theirs[name], ours[name]), name


def weight(file: EncoderFile, name: str) -> Tensor:
    found: Tensor = file.encoder.state_dict()[name]
    return found


def shaken(model: Any) -> Any:
    """The model with every parameter random, so that none is zero or one by chance; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.eval()  # some of mmseg's give nothing back
    return model


def images(size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))


def patch_tokens(encoder: Encoder, size: tuple[int, int] = (32, 32), *, class_token: bool = True) -> Tensor:
    """Our patch tokens before the final norm."""
    with torch.inference_mode():
        return reference_features(encoder.eval(), images(size), [LAST], class_token=class_token)[0]


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_an_export_comes_back_bit_for_bit_with_its_preprocessing(tmp_path: Path, name: str) -> None:
    framework(name)
    encoder = random_encoder()
    encoder.preprocessing = Preprocessing(("red", "green", "blue"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    assert main(["export", str(path), "--to", name, f"out={tmp_path / name}", "--quiet"]) == 0
    found = bring(tmp_path / name)
    same_tensors(found.encoder, encoder)
    assert found.encoder.spec == encoder.spec and not found.foreign
    assert found.encoder.preprocessing.mean == (0.1, 0.2, 0.3) and found.encoder.preprocessing.std == (0.4, 0.5, 0.6)
    assert found.provenance.parent == f"{name}/model.safetensors"


def test_a_torchvision_backbone_comes_back_without_class_token_and_norm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = random_encoder(image_size=(16, 40))  # not square: its size stands in backbone.json
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    assert main(["export", str(path), "--to", "torchvision", f"out={tmp_path / 'backbone'}", "--quiet"]) == 0
    found = bring(tmp_path / "backbone").encoder
    same_tensors(found, encoder, but=("cls_token", "norm", "pos_embed"))
    assert torch.equal(found.pos_embed, encoder.pos_embed[:, 1:]) and found.spec.image_size == (16, 40)
    assert torch.equal(patch_tokens(found, class_token=False), patch_tokens(encoder, class_token=False))
    said = capsys.readouterr().out
    assert "no final norm" in said and "from backbone.json" in said


@pytest.mark.parametrize("class_row", [True, False])
def test_a_detectron2_checkpoint_gives_its_backbone_s_features(
    tmp_path: Path, class_row: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    framework("detectron2")
    from detectron2.modeling import ViT

    settings = {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 4, "img_size": 32, "pretrain_img_size": 32}
    norm = argparse.Namespace(layer=lambda dim: nn.LayerNorm(dim, eps=1e-6)).layer
    theirs = shaken(ViT(**settings, norm_layer=norm, pretrain_use_cls_token=class_row, use_rel_pos=False))
    state = {f"backbone.net.{name}": tensor for name, tensor in theirs.state_dict().items()}
    heads = {
        name: torch.ones(2) for name in ("backbone.simfp_2.0.weight", "proposal_generator.rpn.bias", "roi_heads.x.y")
    }
    trainer = {"iteration": 3, "optimizer": {"state": {}, "param_groups": []}, "scheduler": {"last_epoch": 1}}
    torch.save({"model": {**heads, **state}, **trainer}, tmp_path / "model_final.pth")
    found = bring(tmp_path / "model_final.pth")
    with torch.inference_mode():
        expected = theirs(images())["last_feat"].flatten(2).transpose(1, 2)
    assert (patch_tokens(found.encoder) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not found.encoder.spec.class_token and found.provenance.method == "detectron2 ViT"
    assert torch.equal(weight(found, "blocks.2.mlp.fc2.weight"), theirs.blocks[2].mlp.fc2.weight)
    assert any("no final norm" in note for note in found.provenance.config["notes"])
    assert "left out: roi_heads (1 tensor)" in capsys.readouterr().out


def test_detectron2_s_relative_positions_are_refused_or_knowingly_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    framework("detectron2")
    from detectron2.modeling import ViT

    settings = {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 4, "img_size": 32, "pretrain_img_size": 32}
    theirs = ViT(**settings, use_rel_pos=True)
    path = tmp_path / "vitdet.pth"
    torch.save({"model": {f"backbone.net.{name}": tensor for name, tensor in theirs.state_dict().items()}}, path)
    assert any("all of them zero" in note for note in bring(path).provenance.config["notes"])
    (tmp_path / "imported.safetensors").unlink()

    theirs.blocks[1].attn.rel_pos_h.data[3, 2] = 0.5
    torch.save({"model": {f"backbone.net.{name}": tensor for name, tensor in theirs.state_dict().items()}}, path)
    assert main(["import", str(path), f"out={tmp_path / 'imported.safetensors'}"]) == 2
    assert "blocks.1.attn.rel_pos_h), which a plain ViT doesn't have" in capsys.readouterr().err
    assert not (tmp_path / "imported.safetensors").exists()
    found = bring(path, "drop_relative_positions=true")
    assert any("relative positions are left out (1 tensors)" in note for note in found.provenance.config["notes"])


def mmseg_mae(**settings: Any) -> Any:
    """mmseg's own MAE backbone, by its registry, every parameter random but the relative positions."""
    framework("mmseg")
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    shape = {"img_size": (32, 32), "patch_size": 4, "embed_dims": 64, "num_layers": 3, "num_heads": 4}
    mae = shaken(MODELS.build({"type": "MAE", **shape, "norm_cfg": {"type": "LN", "eps": 1e-6}, **settings}))
    for layer in mae.layers:
        layer.attn.relative_position_bias_table.data.zero_()
    return mae


def mmengine_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """What mmengine's CheckpointHook writes: meta, losses and the optimizer beside the state dict."""
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("test_importing")
    hub.update_scalar("train/loss", np.float64(0.5))
    hub.update_info("iter", 3)
    meta = {"cfg": "model = dict()", "seed": np.int64(7), "dataset_meta": {"classes": ("a", "b")}, "iter": 3}
    return {"meta": meta, "state_dict": state, "message_hub": hub.state_dict(), "optimizer": {}, "param_schedulers": []}


@pytest.mark.parametrize("final_norm", [True, False])
def test_a_whole_mmseg_checkpoint_gives_its_backbone_s_features(
    tmp_path: Path, final_norm: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = mmseg_mae(final_norm=final_norm)
    state = {f"backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}
    state |= {"decode_head.conv_seg.weight": torch.ones(3), "auxiliary_head.0.bias": torch.ones(1)}
    torch.save(mmengine_checkpoint(state), tmp_path / "iter_3.pth")
    found = bring(tmp_path / "iter_3.pth")
    with torch.inference_mode():
        expected = theirs(images())[0].flatten(2).transpose(1, 2)
        features = found.encoder.eval().forward_features(images(), layers=[-1])
    ours = features.tokens if final_norm else features.layers[0]
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()  # layer scale included, folded
    assert found.provenance.method == "mmseg MAE" and found.encoder.spec.class_token
    said = capsys.readouterr().out
    assert "left out: decode_head (1 tensor)" in said and "layer scale is multiplied" in said
    assert ("no final norm" in said) is not final_norm


def test_mmseg_weights_with_layer_scale_of_one_are_kept_bit_for_bit(tmp_path: Path) -> None:
    theirs = mmseg_mae()
    for layer in theirs.layers:
        layer.gamma_1.data.fill_(1)
        layer.gamma_2.data.fill_(1)
    torch.save(theirs.state_dict(), tmp_path / "mae.pth")
    found = bring(tmp_path / "mae.pth")
    assert torch.equal(weight(found, "blocks.1.mlp.fc2.weight"), theirs.layers[1].ffn.layers[1].weight)
    assert torch.equal(weight(found, "blocks.0.attn.proj.bias"), theirs.layers[0].attn.proj.bias)
    assert torch.equal(weight(found, "blocks.2.norm1.weight"), theirs.layers[2].ln1.weight)


def test_mmseg_s_relative_positions_are_refused_or_knowingly_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = mmseg_mae()
    theirs.layers[0].attn.relative_position_bias_table.data[5, 1] = 0.1
    torch.save(theirs.state_dict(), tmp_path / "mae.pth")
    assert main(["import", str(tmp_path / "mae.pth"), f"out={tmp_path / 'imported.safetensors'}"]) == 2
    assert "relative_position_bias_table" in capsys.readouterr().err
    assert not (tmp_path / "imported.safetensors").exists()
    assert bring(tmp_path / "mae.pth", "drop_relative_positions=true").encoder.spec.depth == 3


def test_mmseg_s_vision_transformer_gives_its_features(tmp_path: Path) -> None:
    framework("mmseg")
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    shape = {"img_size": (32, 32), "patch_size": 4, "embed_dims": 64, "num_layers": 3, "num_heads": 4}
    norm = {"norm_cfg": {"type": "LN", "eps": 1e-6}, "final_norm": True}
    theirs = shaken(MODELS.build({"type": "VisionTransformer", **shape, **norm, "interpolate_mode": "bicubic"}))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "vit.pth")
    found = bring(tmp_path / "vit.pth").encoder.eval()
    with torch.inference_mode():
        expected = theirs(images())[0].flatten(2).transpose(1, 2)
        assert (found.forward_features(images()).tokens - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("norm", ["ln", "norm"])
def test_mmpretrain_s_mae_is_read_without_its_neck_and_head(tmp_path: Path, norm: str) -> None:
    encoder = random_encoder()
    names = [("patch_embed.proj", "patch_embed.projection"), ("blocks.", "layers."), ("mlp.fc1", "ffn.layers.0.0")]
    names += [("mlp.fc2", "ffn.layers.1"), ("norm1", f"{norm}1"), ("norm2", f"{norm}2")]
    state: dict[str, Tensor] = {}
    for name, tensor in encoder.state_dict().items():
        theirs = name if not name.startswith("norm.") else name.replace("norm.", f"{norm}1.")
        for ours, mm in names if theirs == name else []:
            theirs = theirs.replace(ours, mm)
        state[f"backbone.{theirs}"] = tensor
    state |= {
        "neck.mask_token": torch.ones(1),
        "neck.decoder_blocks.0.ln1.bias": torch.ones(1),
        "head.x": torch.ones(1),
    }
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "mae.pth")
    found = bring(tmp_path / "mae.pth")
    same_tensors(found.encoder, encoder)
    assert found.provenance.method == "mmpretrain MAE"


def test_a_folder_of_transformers_vitmae_is_read_with_its_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = framework("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    sizes = {"image_size": 32, "patch_size": 8, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 32}
    config = transformers.ViTMAEConfig(**shape, **sizes, decoder_intermediate_size=32, decoder_num_attention_heads=2)
    theirs = shaken(transformers.ViTMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path / "vitmae")
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "resample": 2, "rescale_factor": 1 / 255}
    (tmp_path / "vitmae" / "preprocessor_config.json").write_text(json.dumps(processor))
    found = bring(tmp_path / "vitmae", "licence=cc-by-nc-4.0", "parent=facebook/vit-mae-base")
    assert found.encoder.spec.num_heads == 4 and found.encoder.spec.norm_eps == 1e-6
    assert found.provenance.licence == "cc-by-nc-4.0" and found.provenance.parent == "facebook/vit-mae-base"
    preprocessing = found.encoder.preprocessing
    assert preprocessing.mean == (0.5, 0.4, 0.3) and preprocessing.std == (0.2, 0.2, 0.1)
    assert preprocessing.interpolation == "bilinear" and preprocessing.value_range == (0, 255)
    weights = load_file(tmp_path / "vitmae" / "model.safetensors")
    query = next(
        value for name, value in weights.items() if re.fullmatch(r"vit\..*\.1\..*\.(query|q_proj)\.weight", name)
    )
    assert torch.equal(weight(found, "blocks.1.attn.qkv.weight")[:48], query)
    assert "left out: decoder" in capsys.readouterr().out


def test_timm_weights_are_read_with_what_is_assumed_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=2))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    found = bring(tmp_path / "vit.pth")
    with torch.inference_mode():
        expected = theirs.forward_features(images((64, 64)))
        assert (found.encoder.eval()(images((64, 64))) - expected).abs().max() < 1e-5 * expected.abs().max()
    said = capsys.readouterr().out
    for text in ("ImageNet's mean and deviation", "3 attention heads and an epsilon of 1e-06", "licence     unknown"):
        assert text in said
    assert "left out: head (2 tensors)" in said
    assert (found.encoder.preprocessing.mean, found.encoder.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert found.provenance.parent == "vit.pth"  # a name, not where it lay on this machine


def test_a_fine_tuned_timm_model_with_pooled_tokens_has_no_norm_of_its_own(tmp_path: Path) -> None:
    theirs = shaken(
        timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=3, global_pool="avg", fc_norm=True)
    )
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    found = bring(tmp_path / "vit.pth")
    with torch.inference_mode():
        expected = theirs.forward_features(images((64, 64)))[:, 1:]
    assert (patch_tokens(found.encoder, (64, 64)) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert any("no final norm" in note for note in found.provenance.config["notes"])


def test_a_reference_checkpoint_gives_the_reference_s_features(tmp_path: Path) -> None:
    golden = load_file(GOLDEN / "mae_tiny.safetensors")
    with safe_open(GOLDEN / "mae_tiny.safetensors", "pt") as file:
        metadata = dict(file.metadata())
    shape = json.loads(next(iter(metadata.values()))) if len(metadata) == 1 else metadata
    state = {name.removeprefix("state."): tensor for name, tensor in golden.items() if name.startswith("state.")}
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 1}, tmp_path / "mae.pth")
    heads = int(shape.get("num_heads", shape.get("heads", 0)))
    found = bring(tmp_path / "mae.pth", f"num_heads={heads}")
    with torch.inference_mode():
        tokens = found.encoder.eval()(golden["imgs"])
    assert torch.allclose(tokens, golden["features.norm"], rtol=1e-5, atol=1e-5)
    assert found.provenance.method == "reference MAE"


def test_an_encoder_file_s_images_and_licence_can_be_changed(tmp_path: Path) -> None:
    encoder = random_encoder(channels=4)
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    names = "channel_names=[red,green,blue,infrared]"
    found = bring(path, names, "mean=[.1,.2,.3,.4]", "value_range=[0,4095]", "licence=MIT")
    same_tensors(found.encoder, encoder)
    preprocessing = found.encoder.preprocessing
    assert preprocessing.channel_names == ("red", "green", "blue", "infrared") and preprocessing.bit_depth == 12
    assert preprocessing.mean == (0.1, 0.2, 0.3, 0.4) and preprocessing.std == (0.5, 0.5, 0.5, 0.5)
    assert found.provenance.licence == "MIT" and found.provenance.method == "test"


def test_an_encoder_file_without_preprocessing_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(GOLDEN / "version_1" / "encoder.safetensors", tmp_path / "bare.safetensors")
    rewrite_metadata(tmp_path / "bare.safetensors", lambda contract: contract.update(preprocessing=None), seal=False)
    assert main(["import", str(tmp_path / "bare.safetensors"), f"out={tmp_path / 'x.safetensors'}"]) == 2
    assert "without preprocessing" in capsys.readouterr().err
    found = bring(tmp_path / "bare.safetensors", "mean=[.5,.4,.3]", "std=[.3,.2,.1]")
    assert found.encoder.preprocessing.mean == (0.5, 0.4, 0.3)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open('ran.txt', 'w').write('code ran')",))


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("nowhere.pth", [], "no such file"),
        ("text.pth", [], "not a weights file"),
        ("code.pth", [], "could run code when read; nothing was run"),
        ("numpy.pkl", [], "a bare pickle, as detectron2's .pkl are"),
        ("unknown.pth", [], "Unexpected (2): blocks.0.adapter.weight, neck2.weight"),
        ("segmentor.pth", [], "Unexpected (1): other_part.weight"),
        ("partial.pth", [], "Missing (1): blocks.2.mlp.fc1.bias"),
        (
            "good.pth",
            ["image_size=64"],
            "image_size=[64, 64] makes 256 patches of 4 pixels, and its positions are for 64",
        ),
        ("good.pth", ["image_size=30"], "multiples of the patch size 4"),
        ("good.pth", ["num_heads=5"], "num_heads=5: expected a divisor of embed_dim=64"),
        ("good.pth", ["mean=[.5]"], "mean=[0.5]: expected one a channel; the weights have 3"),
        ("good.pth", ["value_range=[255,0]"], "value_range=[255,0]"),
        ("good.pth", ["out=there.safetensors"], "is there already"),
        ("good.pth", ["out=encoder.pth"], "ends in .safetensors"),
        ("encoder.safetensors", ["num_heads=4"], "is an encoder file, which says it itself"),
        ("empty", [], "a folder without weights"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    keys: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder_file(Path("encoder.safetensors"))
    state = random_encoder().state_dict()
    extra = {"blocks.0.adapter.weight": torch.ones(2), "neck2.weight": torch.ones(2)}
    torch.save(state, "good.pth")
    torch.save({**state, **extra}, "unknown.pth")
    torch.save({name: value for name, value in state.items() if name != "blocks.2.mlp.fc1.bias"}, "partial.pth")
    inside = {f"backbone.{name}": value for name, value in state.items()}
    torch.save({**inside, "decode_head.x": torch.ones(1), "other_part.weight": torch.ones(1)}, "segmentor.pth")
    torch.save({"model": state, "extra": Exploit()}, "code.pth")
    Path("numpy.pkl").write_bytes(pickle.dumps({"model": {"pos_embed": np.ones(3)}}))
    Path("text.pth").write_text("these are not weights")
    Path("there.safetensors").write_text("kept")
    Path("empty").mkdir()
    before = sorted(Path().iterdir())
    words = keys if any(key.startswith("out=") for key in keys) else ["out=new/imported.safetensors", *keys]
    assert main(["import", name, *words]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and expected in said.err, said.err
    assert sorted(Path().iterdir()) == before and Path("there.safetensors").read_text() == "kept"


def test_a_dry_run_shows_what_would_be_written_and_the_command_fails_with_exit_code_2(tmp_path: Path) -> None:
    torch.save(random_encoder().state_dict(), tmp_path / "vit.pth")
    done = run_maelift("import", "vit.pth", "out=encoder.safetensors", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "timm ViT weights (vit.pth)" in done.stdout and "0.16" not in done.stderr
    assert not (tmp_path / "encoder.safetensors").exists()
    one_line_error(run_maelift("import", "none.pth", "out=encoder.safetensors", cwd=tmp_path), "none.pth: no such file")


@pytest.mark.slow
def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    encoder_file(tmp_path / "encoder.safetensors")
    assert "licence     Apache-2.0" in run_page(ROOT / "docs" / "import.md", tmp_path)
