"""Exports to mmsegmentation: weights for its MAE backbone, and complete configs with UPerNet and FCN heads."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ..core.errors import MaeliftError
from ..core.files import atomic_write_text
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from .bundle import Bundle, at_size
from .mmseg_certify import certify_folder
from .mmseg_config import (
    HEADS,
    MmsegExport,
    config_text,
    crop_of,
    overrides,
)
from .mmseg_model import (
    load_framework,
)
from .mmseg_weights import write_weights

if TYPE_CHECKING:
    pass

USAGE = """\
python tools/train.py {out}/upernet.py      # mmsegmentation's own tool; on a GPU with --amp; or fcn.py
python tools/test.py {out}/upernet.py work_dirs/upernet/iter_N.pth
maelift certify {out}/upernet.py ENCODER --trust    # proves a config, also your own; it runs it
Weights only, for your own config with the MAE backbone and heads for $embed_dim channels:
python tools/train.py YOURS.py --cfg-options $overrides"""


def export(file: EncoderFile, folder: Path, config: MmsegExport) -> Bundle:
    """Write ``weights.pth``, ``upernet.py`` and ``fcn.py``; raises ConfigError for keys that do not fit each other."""
    load_framework()
    encoder = at_size(file.encoder, None, config.patch_size)
    check_encoder(encoder)
    crop = crop_of(encoder, config)
    write_weights(encoder.resized(crop), folder / "weights.pth")
    for head in HEADS:
        atomic_write_text(folder / f"{head}.py", config_text(head, encoder, crop, config))
    return Bundle(
        files={
            "weights.pth": f"weights under the names of mmseg's MAE, positions for crops of {crop[0]}×{crop[1]} pixels",
            **{f"{head}.py": f"complete config: {text}" for head, text in HEADS.items()},
        },
        certificate=certify_folder(folder, encoder, crop, file.content_hash),
        usage=Template(USAGE).substitute(embed_dim=encoder.spec.embed_dim, overrides=overrides(encoder, crop)),
        notes=notes(encoder, crop),
    )


def check_encoder(encoder: Encoder) -> None:
    """Raise MaeliftError for encoders that mmseg's MAE backbone can't be."""
    spec = encoder.spec
    advice = "Nothing was written. The registered backbone MaeliftViT takes it (docs/mmseg.md)."
    if not spec.class_token:
        raise MaeliftError(f"the encoder has no class token, and mmseg's MAE backbone always has one. {advice}")
    if spec.act != "gelu":
        raise MaeliftError(
            f"the encoder's activation is {spec.act}, and the configs written for mmseg's MAE backbone have the exact GELU. "
            f"{advice}"
        )
    if spec.mlp_ratio != int(spec.mlp_ratio):
        raise MaeliftError(
            f"the encoder's mlp_ratio is {spec.mlp_ratio:g}, and mmseg's MAE backbone takes whole numbers only. {advice}"
        )


def notes(encoder: Encoder, crop: tuple[int, int]) -> tuple[str, ...]:
    """What was not exported, and what mmseg does differently."""
    found = [
        f"mmseg's MAE takes one size only: crops of {crop[0]}×{crop[1]} pixels; larger images are tested by sliding"
    ]
    if encoder.spec.channels not in (1, 3):
        found.append(
            f"images of {encoder.spec.channels} channels are read from TIFF files (height, width, channel) by tifffile; "
            "other files are not: mmcv exchanges their first and third channel"
        )
    if encoder.preprocessing.value_range != (0.0, 255.0):
        low, high = encoder.preprocessing.value_range
        found.append(f"images must be stored with values from {low:g} to {high:g}, such as PNG or TIFF of 16 bits")
    elif encoder.preprocessing.file_scale != 1:
        found.append("images must be of 16 bits, as those that were trained on, such as PNG or TIFF")
    return tuple(found)
