"""Partial fine-tuning: the last blocks (MAE, Sec. 4.4, Fig. 9) or low-rank updates (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any, TypeVar, cast

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import nn

from ...core.data.labeled_dataset import Splits
from ...core.distributed import Ranks
from ...core.errors import ConfigError
from ...core.models.backbone import Backbone
from ...core.models.encoder import Encoder
from ...core.optional_imports import require
from .config import LORA_TARGETS, ClassifyConfig, Lora
from .model import Classifier
from .task import ClassificationTask

BackboneT = TypeVar("BackboneT", bound=Backbone)


def train_last_blocks(encoder: Backbone, blocks: float) -> None:
    """Freeze an encoder but for its last ``blocks`` blocks and the final norm; frozen blocks drop no paths.

    0.5 is the last block's MLP with its norm, as in the paper; with 0 all is frozen, the final norm too. Of an architecture that
    is no plain ViT the blocks are its layers by timm's ``group_matcher``. In place; raises ConfigError for a number of blocks
    that the encoder doesn't have.
    """
    check_blocks(blocks, encoder)
    encoder.requires_grad_(False)
    if not isinstance(encoder, Encoder):
        _train_last_layers(encoder, int(blocks))
        return
    depth = encoder.spec.depth
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


def _train_last_layers(encoder: Backbone, count: int) -> None:
    """Unfreeze the last ``count`` layers; in frozen ones no paths are dropped."""
    first = encoder.num_layers - count
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(count > 0 and encoder.layer_of(name) >= first)
    for name, module in encoder.named_modules():
        if isinstance(module, DropPath) and encoder.layer_of(name) < first:
            module.drop_prob = 0.0


def check_blocks(blocks: float, encoder: Backbone) -> None:
    """Raise ConfigError unless that many last blocks of an encoder can be trained."""
    depth, plain = encoder.num_layers - 1, isinstance(encoder, Encoder)
    halves = "0, 0.5" if plain else "0"
    if not 0 <= blocks <= depth or not (blocks == int(blocks) or (plain and blocks == 0.5)):
        raise ConfigError("blocks", blocks, f"{halves} or a whole number up to the encoder's {depth}")


def add_lora(encoder: Backbone, lora: Lora) -> None:
    """Freeze an encoder and add low-rank updates, which are trained in its place; by peft. In place.

    Their weights are drawn from torch's global generator. Raises MaeliftError when peft isn't installed, ConfigError for an
    architecture without such layers.
    """
    peft = require("peft")
    check_lora(encoder, lora)
    encoder.requires_grad_(False)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_lora_layers(lora),
        bias="none",
    )
    peft.inject_adapter_in_model(config, encoder)


def _lora_layers(lora: Lora) -> str:
    """A pattern of the names of the linear layers that get updates, in any architecture with transformer blocks."""
    layers = "|".join(LORA_TARGETS[name].replace(".", r"\.") for name in lora.targets)
    return rf"(.*\.)?blocks\.\d+\.({layers})"


@torch.no_grad()
def check_lora(encoder: Backbone, lora: Lora) -> None:
    """Raise ConfigError for an architecture whose blocks don't have the linear layers, or don't call them.

    Some of timm's attentions read the weights of their layers instead: an update of such a layer would have no effect.
    """
    pattern = re.compile(_lora_layers(lora))
    layers = {name: module for name, module in encoder.named_modules() if pattern.fullmatch(name)}
    linear = {name: module for name, module in layers.items() if isinstance(module, nn.Linear)}
    called: set[str] = set()
    if linear and not isinstance(encoder, Encoder):
        hooks = [module.register_forward_hook(partial(_note, called, name)) for name, module in linear.items()]
        training = encoder.training
        encoder.eval().forward_features(
            torch.zeros(1, encoder.spec.channels, *encoder.spec.image_size, device=encoder.device)
        )
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    else:
        called = set(linear)
    if not linear or called != set(layers):
        raise ConfigError(
            "method",
            "lora",
            "full, partial, linear, attentive or knn for this architecture: its blocks have no linear layers "
            f"{', '.join(LORA_TARGETS[name] for name in lora.targets)} that an update could be added to",
        )


def _note(called: set[str], name: str, *_: object) -> None:
    called.add(name)


def merge_lora(encoder: BackboneT) -> BackboneT:
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

    def __init__(self, config: ClassifyConfig, encoder: Backbone, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        check_blocks(config.blocks, encoder)

    def build_model(self) -> nn.Module:
        model = cast(Classifier, super().build_model())
        train_last_blocks(model.encoder, cast(ClassifyConfig, self.config).blocks)
        return model

    def final_model(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)


class LoraTask(ClassificationTask):
    """Fine-tuning of low-rank updates and the head; the updates are merged into the saved weights."""

    def __init__(self, config: ClassifyConfig, encoder: Backbone, splits: Splits[Any], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        require("peft")
        check_lora(encoder, config.lora)

    def build_model(self) -> nn.Module:
        model = cast(Classifier, super().build_model())
        add_lora(model.encoder, cast(ClassifyConfig, self.config).lora)
        return model

    def final_model(self, model: nn.Module) -> nn.Module:
        classifier = cast(Classifier, model)
        return Classifier(
            merge_lora(classifier.encoder),
            classifier.classes,
            classifier.head,
            pooling=classifier.pooling,
            multi_label=classifier.multi_label,
        )
