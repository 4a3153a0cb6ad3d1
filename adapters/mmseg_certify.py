"""Certifies mmseg configs: compares the backbone of a bundle, or of a user's own config, with the encoder."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..core.errors import CheckpointError
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from .bundle import at_size
from .certificate import Certificate, Keys
from .mmseg_config import statistics, upernet_blocks
from .mmseg_images import build_preprocessor, prepare, reading_steps, swaps_channels, type_name
from .mmseg_model import (
    BACKBONES,
    EXPECTED_BACKBONES,
    build_backbone,
    build_model,
    check_shape,
    load_framework,
    one_line_errors,
    quiet,
    read_config,
)
from .mmseg_trial import run_trial
from .mmseg_weights import mae_state, write_weights
from .parity import Candidate, Level, certificate_sizes, compare_keys, measure_parity, tiled, tokens_of

if TYPE_CHECKING:
    from .windowed_vit import PlainViT

DISTRIBUTIONS = [
    line + name for name in ("mmsegmentation", "mmcv", "mmengine") for line in ("onedl-", "")
]  # the maintained line and the classic one

UNUSED = {r"norm\..*": "mmseg's MAE gives each block's output as it is: final_norm=False"}

MISSING = {
    r"layers\.\d+\.gamma_[12]": "a scale of each channel, 1 by init_values=1.0, so that it changes nothing",
    r"layers\.\d+\.attn\.relative_position_bias_table": "zero at first, which changes nothing; learnt in fine-tuning (MAE, A.3)",
    r"layers\.\d+\.attn\.relative_position_index": "a buffer that numbers pairs of patches",
}


def certify_folder(folder: Path, encoder: Encoder, crop: tuple[int, int], content_hash: str) -> Certificate:
    """Compare the backbone that ``upernet.py`` builds and initialises with the encoder.

    At the crop as written; then for the trained size and others, for which mmseg's MAE is built again.
    """
    config = read_config(folder / "upernet.py")
    with tempfile.TemporaryDirectory() as scratch:

        def build(size: tuple[int, int]) -> Candidate:
            settings, resized = copy.deepcopy(config.model.backbone), encoder.resized(size)
            if size != crop:
                settings.img_size, settings.init_cfg.checkpoint = size, f"{scratch}/{size[0]}x{size[1]}.pth"
                write_weights(resized, Path(settings.init_cfg.checkpoint))
            return mae_candidate(config, build_backbone(settings), resized)

        sizes = [crop, *certificate_sizes(encoder.spec)]
        return certified(build, dict.fromkeys(sizes), content_hash)


def certified(
    build: Callable[[tuple[int, int]], Candidate], sizes: Mapping[tuple[int, int], None], content_hash: str
) -> Certificate:
    """The certificate, with wrong settings before the differences that they cause."""
    found = measure_parity(build, sizes, framework="mmseg", encoder=content_hash, distributions=DISTRIBUTIONS)
    causes = [f"{name}: {reason}" for name, reason in found.keys.wrong.items()]
    return replace(found, failures=(*causes, *(failure for failure in found.failures if failure not in causes)))


def certify_config(
    config: Path, file: EncoderFile, opts: Sequence[str] = (), *, step_seconds: float = 120
) -> Certificate:
    """Compare the backbone of a user's own mmseg config, with the weights that it loads, with an encoder file.

    The model is built, initialised and given ``load_from`` as mmengine's Runner does it; ``opts`` are words "key=value" as
    after ``--cfg-options``. Then its pipelines are run on sample images, and a training and an inference step if they take at
    most ``step_seconds``, as estimated. Raises CheckpointError: a config that does not build, or a backbone of another kind
    or shape.
    """
    load_framework()
    loaded = read_config(config, opts)
    model = build_model(loaded, config)
    backbone = model.backbone
    kind = type(backbone).__name__
    if kind not in BACKBONES:
        raise CheckpointError(f"{config}: its backbone is {kind}. {EXPECTED_BACKBONES}")
    encoder = at_size(file.encoder, None, backbone.patch_size)
    check_shape(config, backbone, encoder)
    if kind == "MaeliftViT":
        sizes = certificate_sizes(encoder.spec, backbone.window_size)
    else:
        rows, columns = backbone.patch_shape  # its only size
        sizes = [(rows * backbone.patch_size, columns * backbone.patch_size)]

    def build(size: tuple[int, int]) -> Candidate:
        if kind == "MaeliftViT":
            return vit_candidate(loaded, backbone, encoder, size)
        return mae_candidate(loaded, backbone, encoder.resized(size))

    with one_line_errors(config, "does not run"):
        found = certified(build, dict.fromkeys(sizes), file.content_hash)
        with quiet():
            return found.with_steps(run_trial(loaded, model, encoder, step_seconds, certified=found.passed))


def mae_candidate(config: Any, backbone: Any, encoder: Encoder) -> Candidate:
    """An initialised MAE backbone, fed by its config's own reading and preprocessing; the encoder is for its size.

    That is, positions are resized in float32, as the file has them.
    """
    net = copy.deepcopy(backbone)
    net.eval()  # mmseg's returns nothing
    depth = encoder.spec.depth
    blocks = [block for block in range(depth) if block in net.out_indices]  # the order in which it gives them
    return Candidate(
        reference=encoder,
        levels=tuple(Level(f"block {block}", block, normed=net.final_norm and block == depth - 1) for block in blocks),
        keys=mae_keys(net, encoder, preprocessing_issues(config, encoder)),
        prepare=lambda stored: prepare(config, encoder, stored),
        features=lambda images: [tokens_of(maps) for maps in net.to(images.dtype)(images)],
    )


def mae_keys(net: Any, encoder: Encoder, issues: Mapping[str, str]) -> Keys:
    """The tensors of an MAE backbone against the encoder's, and the values of those without a counterpart in the encoder."""
    expected = mae_state(encoder)
    if net.final_norm:
        expected |= {f"ln1.{name}": tensor for name, tensor in encoder.norm.state_dict().items()}
    state = net.state_dict()
    keys = compare_keys(encoder, expected, state, unused={} if net.final_norm else UNUSED, missing=MISSING)
    wrong: dict[str, str] = {}
    for name, tensor in state.items():
        if ".gamma_" in name and not torch.all(tensor == 1):
            kind, found = "layers.*.gamma_1, gamma_2", f"{tensor.flatten()[0]:g}, expected 1: set init_values=1.0"
        elif name.endswith("relative_position_bias_table") and torch.any(tensor != 0):
            kind, found = "layers.*.attn.relative_position_bias_table", "not zero, so these weights were fine-tuned"
        else:
            continue
        wrong.setdefault(kind, found)
    epsilons = sorted({module.eps for module in net.modules() if isinstance(module, nn.LayerNorm)})
    eps = encoder.spec.norm_eps
    if epsilons != [eps]:
        shown = ", ".join(f"{found:g}" for found in epsilons)
        wrong["norm_cfg"] = f"eps {shown}, expected {eps:g}: set norm_cfg=dict(type='LN', eps={eps:g})"
    if not any(block in net.out_indices for block in range(encoder.spec.depth)):
        raise CheckpointError(
            f"out_indices={list(net.out_indices)}: no block of 0 to {encoder.spec.depth - 1}. Set "
            f"model.backbone.out_indices={upernet_blocks(encoder.spec.depth)}."
        )
    return replace(keys, wrong={**wrong, **issues, **keys.wrong})


def vit_candidate(config: Any, backbone: PlainViT, encoder: Encoder, image_size: tuple[int, int]) -> Candidate:
    """A ``MaeliftViT``, fed by its config's own reading and preprocessing."""
    net = copy.deepcopy(backbone).eval()
    if not tiled(image_size, net.patch_size, net.window_size):
        net.attend_everywhere()
    class_token = net.cls_token is not None
    unused = {} if class_token else {"cls_token": "windows, or class_token=False, leave no place for it"}
    if net.norm is None:
        unused[r"norm\..*"] = "each block's output is given as it is: final_norm=False"
    own = net.state_dict()
    expected = {
        name: tensor for name, tensor in encoder.state_dict().items() if name in own or name.startswith("blocks.")
    }
    keys = compare_keys(encoder, expected, own, unused=unused, missing={})
    last = encoder.spec.depth - 1
    return Candidate(
        reference=encoder,
        levels=tuple(
            Level(f"block {block}", block, normed=net.norm is not None and block == last) for block in net.out_indices
        ),
        keys=replace(keys, wrong={**preprocessing_issues(config, encoder), **keys.wrong}),
        prepare=lambda stored: prepare(config, encoder, stored),
        features=lambda images: [tokens_of(maps) for maps in net.to(images.dtype)(images)],
        class_token=class_token,
        windows=net.windows,
    )


def preprocessing_issues(config: Any, encoder: Encoder) -> dict[str, str]:
    """Where a config's reading and ``data_preprocessor`` differ from the encoder's contract, by key."""
    found: dict[str, str] = {}
    if reading_steps(config, "train_dataloader") != (steps := reading_steps(config, "test_dataloader")):
        found["train_dataloader"] = "reads or normalises images otherwise than test_dataloader"
    if any(type_name(step) == "Normalize" for step in steps):
        return found
    module = build_preprocessor(config)
    for key, due in statistics(encoder).items():
        has = getattr(module, key).flatten().tolist() if hasattr(module, key) else None
        if has is None or len(has) != len(due) or not np.allclose(has, due, rtol=1e-5, atol=1e-4):
            shown = "not given" if has is None else [round(value, 3) for value in has]
            found[f"model.data_preprocessor.{key}"] = f"{shown}, expected {[round(value, 3) for value in due]}"
    if encoder.spec.channels == 3 and (turned := swaps_channels(module)) == is_bgr(encoder.preprocessing):
        found["model.data_preprocessor.bgr_to_rgb"] = f"{turned}, expected {not turned}: mmcv reads blue first"
    return found
