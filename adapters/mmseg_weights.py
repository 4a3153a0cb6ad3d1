"""The encoder's weights under the names of mmseg's MAE backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..core.files import atomic_path
from ..core.models.encoder import Encoder

NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)
"""Parts of timm's names and those of mmseg's MAE backbone."""


def mae_state(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors under the names of mmseg's MAE backbone, without the final norm."""
    return {mae_name(name): tensor for name, tensor in encoder.state_dict().items() if not name.startswith("norm.")}


def mae_name(name: str) -> str:
    """A parameter's name in mmseg's MAE backbone: "blocks.0.norm1.weight" is "layers.0.ln1.weight" there."""
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def write_weights(encoder: Encoder, path: Path) -> None:
    """Write what ``init_cfg=dict(type="Pretrained", checkpoint=...)`` of mmseg's MAE reads; positions for its one size."""
    with atomic_path(path) as temporary:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in mae_state(encoder).items()}, temporary)
