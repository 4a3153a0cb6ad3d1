"""Partial fine-tuning: the last blocks (MAE, Sec. 4.4, Fig. 9) or low-rank updates (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import copy
from typing import Any, cast

from timm.models.vision_transformer import Block
from torch import nn

from ...core.data.labeled_dataset import Splits
from ...core.distributed import Ranks
from ...core.errors import ConfigError
from ...core.models.encoder import Encoder
from ...core.optional_imports import require
from .config import LORA_TARGETS, ClassifyConfig, Lora
from .model import Classifier
from .task import ClassificationTask


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


def merge_lora(encoder: Encoder) -> Encoder:
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


class PartialTask(ClassificationTask):
    """Fine-tuning of the last blocks, the final norm and the head (MAE, Sec. 4.4, Fig. 9)."""

    def __init__(self, config: ClassifyConfig, encoder: Encoder, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        check_blocks(config.blocks, encoder.spec.depth)

    def build_model(self) -> nn.Module:
        model = cast(Classifier, super().build_model())
        train_last_blocks(model.encoder, cast(ClassifyConfig, self.config).blocks)
        return model

    def final_model(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)


class LoraTask(ClassificationTask):
    """Fine-tuning of low-rank updates and the head; the updates are merged into the saved weights."""

    def __init__(self, config: ClassifyConfig, encoder: Encoder, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        require("peft")

    def build_model(self) -> nn.Module:
        model = cast(Classifier, super().build_model())
        add_lora(model.encoder, cast(ClassifyConfig, self.config).lora)
        return model

    def final_model(self, model: nn.Module) -> nn.Module:
        classifier = cast(Classifier, model)
        return Classifier(
            merge_lora(classifier.encoder), classifier.classes, classifier.head, multi_label=classifier.multi_label
        )
