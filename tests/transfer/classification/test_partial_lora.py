"""Partial fine-tuning and LoRA: what is trained, what is left as it was, and what is kept at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import maelift
import pytest
import torch
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.encoder_file import read_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.tests.support import encoder_file, framework, random_encoder
from maelift.transfer.classification.config import Lora
from maelift.transfer.classification.partial_lora import add_lora, merge_lora, train_last_blocks

SPEC = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=3, num_heads=2)
KEYS: dict[str, Any] = {
    "val": 12,
    "test": 12,
    "batch_size": 16,
    "steps": 12,
    "lr": 1e-2,
    "evaluations": 1,
    "workers": 0,
}


def trained(encoder: torch.nn.Module) -> set[str]:
    """The parts of an encoder that are trained, by the beginnings of their names."""
    names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    return {name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (0, set()),
        (0.5, {"norm", "blocks.2.norm2", "blocks.2.mlp.fc1", "blocks.2.mlp.fc2"}),
        (
            1,
            {
                "norm",
                *(f"blocks.2.{part}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
            },
        ),
    ],
)
def test_the_last_blocks_are_trained_and_no_others(blocks: float, expected: set[str]) -> None:
    encoder = random_encoder(SPEC).resized(SPEC.image_size, drop_path=0.5)
    train_last_blocks(encoder, blocks)
    assert trained(encoder) == expected
    frozen, last = encoder.blocks[1].train(), encoder.blocks[2].train()
    tokens = torch.randn(64, 4, 32)
    assert torch.equal(frozen(tokens), frozen(tokens))  # a frozen block drops no paths
    assert torch.equal(last(tokens), last(tokens)) == (blocks == 0)


def test_more_blocks_than_there_are_or_a_third_of_one_are_refused() -> None:
    for blocks in (4, 0.3, 1.5, -1):
        with pytest.raises(ConfigError, match=r"0, 0.5 or a whole number up to the encoder's 3"):
            train_last_blocks(random_encoder(SPEC), blocks)


@pytest.mark.parametrize("targets", [("qkv", "proj"), ("qkv", "proj", "fc1", "fc2")])
def test_merged_updates_give_the_same_function_in_plain_weights(targets: tuple[str, ...]) -> None:
    framework("peft")
    plain = random_encoder(SPEC)
    encoder = random_encoder(SPEC)
    add_lora(encoder, Lora(rank=4, targets=targets))
    updates = [p for p in encoder.parameters() if p.requires_grad]
    assert sum(p.numel() for p in updates) == 3 * 4 * (128 + 64 + (2 * 160 if len(targets) == 4 else 0))
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(encoder.eval()(images), plain.eval()(images))  # B is zero at first
    for parameter in updates:
        parameter.data += 0.1 * torch.randn_like(parameter)
    result = merge_lora(encoder).eval()
    assert result.state_dict().keys() == plain.state_dict().keys()
    assert not torch.allclose(result(images), plain(images), atol=1e-2)
    assert torch.allclose(result(images), encoder(images), atol=1e-5)
    assert merge_lora(plain) is plain


@pytest.mark.parametrize(
    ("method", "keys", "changed"),
    [
        ("partial", {"blocks": 0}, ()),
        ("partial", {"blocks": 1, "drop_path": 0}, ("blocks.1.", "norm.")),
        ("lora", {"lora.rank": 2, "lora.targets": ["fc1"]}, ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight")),
    ],
)
def test_a_run_changes_what_it_trains_and_leaves_an_ordinary_model(
    class_folders: Path, tmp_path: Path, method: str, keys: dict[str, Any], changed: tuple[str, ...]
) -> None:
    if method == "lora":
        framework("peft")
    spec = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=2, num_heads=2)
    start = encoder_file(tmp_path / "encoder.safetensors", random_encoder(spec))
    nested: dict[str, Any] = (
        {"lora": {name.removeprefix("lora."): value for name, value in keys.items()}} if method == "lora" else keys
    )
    out = tmp_path / "out"
    nested = {**KEYS, **nested, "method": method}
    result = maelift.transfer("classify", data=class_folders, out=out, encoder=start, **nested)
    before = read_encoder(start).encoder.state_dict()
    after = read_encoder(out / "encoder.safetensors").encoder.state_dict()
    assert before.keys() == after.keys()
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(changed) for name in different) and bool(different) == bool(changed)
    model = maelift.load_model(result.model)
    assert same_weights(model.encoder.state_dict(), after)
    found = model.predict([class_folders / "dark" / "0.png", class_folders / "light" / "0.png"])
    assert [len(entry.probabilities) for entry in found] == [3, 3]


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in right)


def test_without_peft_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MaeliftError, match="pip install -U peft"):
        add_lora(random_encoder(SPEC), Lora())


@pytest.mark.parametrize(
    "keys", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ("head",)}, {"targets": ()}]
)
def test_lora_of_another_kind_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Lora(**keys)
