"""Training a part of an encoder only: its last blocks (MAE, Sec. 4.4, Fig. 9), or low-rank updates (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

from timm.models.vision_transformer import Block
from torch import nn

from ...core.errors import ConfigError
from ...core.models.encoder import Encoder
from ...core.optional_imports import require

LORA_TARGETS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""The linear layers of a block that may get low-rank updates, by their short names."""


def train_last_blocks(encoder: Encoder, blocks: float) -> None:
    """Freeze an encoder but for its last ``blocks`` blocks and the final norm; frozen blocks drop no paths.

    0.5 is the last block's MLP with its norm, as in the paper; with 0 all is frozen, the final norm too. In place; raises
    ConfigError for a number of blocks that the encoder doesn't have.
    """
    depth = encoder.spec.depth
    check_blocks(blocks, depth)
    encoder.requires_grad_(False)
    if blocks == 0:
        trained: list[nn.Module] = []
    elif blocks == 0.5:
        last = cast(Block, encoder.blocks[-1])
        trained = [last.norm2, last.mlp, encoder.norm]
    else:
        trained = [*encoder.blocks[depth - int(blocks) :], encoder.norm]
    for module in trained:
        module.requires_grad_(True)
    for block in encoder.blocks:
        if not any(parameter.requires_grad for parameter in block.parameters()):
            block.drop_path1 = block.drop_path2 = nn.Identity()


def check_blocks(blocks: float, depth: int) -> None:
    """Raise ConfigError unless that many last blocks of ``depth`` can be trained."""
    if not 0 <= blocks <= depth or blocks not in (0.5, int(blocks)):
        raise ConfigError("blocks", blocks, f"0, 0.5 or a whole number up to the encoder's {depth}")


@dataclass(frozen=True)
class Lora:
    """Low-rank updates: ``W + alpha / rank * B A`` with A (rank, in), B (out, rank), B zero at first."""

    rank: int = 8
    """method=lora: rank of the updates"""
    alpha: float = 16.0
    """method=lora: the updates are scaled by alpha / rank"""
    dropout: float = 0.0
    """method=lora: probability that an input of an update is left out"""
    targets: tuple[str, ...] = ("qkv", "proj")
    """method=lora: layers of each block that are updated: some of qkv, proj, fc1, fc2"""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError("rank", self.rank, "a whole number of at least 1")
        if self.alpha <= 0:
            raise ConfigError("alpha", self.alpha, "a number above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout", self.dropout, "a share from 0 to below 1")
        strange = [name for name in self.targets if name not in LORA_TARGETS]
        if strange or not self.targets:
            raise ConfigError("targets", list(self.targets), f"some of {', '.join(LORA_TARGETS)}")


def add_lora(encoder: Encoder, lora: Lora) -> None:
    """Freeze an encoder and add low-rank updates, which are trained in its place; by peft. In place.

    Their weights are drawn from torch's global generator. Raises MaeliftError when peft isn't installed.
    """
    peft = require("peft")
    encoder.requires_grad_(False)
    layers = "|".join(LORA_TARGETS[name].replace(".", r"\.") for name in lora.targets)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"blocks\.\d+\.({layers})",
        bias="none",
    )
    peft.inject_adapter_in_model(config, encoder)


def merged(encoder: Encoder) -> Encoder:
    """A plain encoder with the low-rank updates added to its weights; a copy, or the same where there are none.

    Its outputs differ from those with the updates apart by rounding only.
    """
    if not any("lora_" in name for name in encoder.state_dict()):
        return encoder
    require("peft")
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(encoder)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module.get_base_layer())
    return plain.requires_grad_(True)
