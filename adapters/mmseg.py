"""mmsegmentation: the encoder as its own MAE backbone under UPerNet and FCN heads, and a check of users' own configs."""

from __future__ import annotations

import copy
import importlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..core.errors import CheckpointError, MaeliftError
from ..core.files import atomic_path, atomic_write_text
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from ..core.optional_imports import require
from .bundle import Bundle, at_size
from .certificate import (
    Candidate,
    Certificate,
    Keys,
    Level,
    Pixels,
    certificate_sizes,
    certify,
    compare_keys,
    tiled,
    tokens_of,
)
from .checkpoints import local_file, read_checkpoint
from .mmseg_config import (
    HEADS,
    MmsegExport,
    config_text,
    crop_of,
    inline,
    loading,
    overrides,
    statistics,
    usual_taps,
)
from .mmseg_trial import try_out

if TYPE_CHECKING:
    from .plain_vit import PlainViT

DISTRIBUTIONS = [
    line + name for name in ("mmsegmentation", "mmcv", "mmengine") for line in ("onedl-", "")
]  # the maintained line and the classic one
NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)
"""Parts of timm's names and those of mmseg's MAE backbone."""
BACKBONES = ("MAE", "MaeliftViT")
EXPECTED_BACKBONES = "Expected mmseg's MAE, or MaeliftViT (docs/mmseg.md)."
UNUSED = {r"norm\..*": "mmseg's MAE gives each block's output as it is: final_norm=False"}
MISSING = {
    r"layers\.\d+\.gamma_[12]": "a scale of each channel, 1 by init_values=1.0, so that it changes nothing",
    r"layers\.\d+\.attn\.relative_position_bias_table": "zero at first, which changes nothing; learnt in fine-tuning (MAE, A.3)",
    r"layers\.\d+\.attn\.relative_position_index": "a buffer that numbers pairs of patches",
}
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


def notes(encoder: Encoder, crop: tuple[int, int]) -> tuple[str, ...]:
    """What did not go over, and what mmseg does otherwise."""
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
    return tuple(found)


def certify_folder(folder: Path, encoder: Encoder, crop: tuple[int, int], content_hash: str) -> Certificate:
    """Hold the backbone that ``upernet.py`` builds and initialises against the encoder.

    At the crop as written; then for the trained size and others, which mmseg's MAE must be built anew for.
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
    """The certificate, what is set wrongly before what comes of it."""
    found = certify(build, sizes, framework="mmseg", encoder=content_hash, distributions=DISTRIBUTIONS)
    causes = [f"{name}: {reason}" for name, reason in found.keys.wrong.items()]
    return replace(found, failures=(*causes, *(failure for failure in found.failures if failure not in causes)))


def certify_config(
    config: Path, file: EncoderFile, opts: Sequence[str] = (), *, step_seconds: float = 120
) -> Certificate:
    """Hold the backbone of a user's own mmseg config, with the weights that it loads, against an encoder file.

    The model is built, initialised and given ``load_from`` as mmengine's Runner does it; ``opts`` are words "key=value" as
    after ``--cfg-options``. Then its pipelines are run on a picture, and a training and an inference step where they take at
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

    with one_line(config, "does not run"):
        found = certified(build, dict.fromkeys(sizes), file.content_hash)
        with quietly():
            return found.with_steps(try_out(loaded, model, encoder, step_seconds, certified=found.passed))


def load_framework() -> None:
    """Import all of mmseg that is used; raises MaeliftError where that can't be."""
    with quietly():
        require("mmseg")
        importlib.import_module("mmseg.datasets")


def read_config(path: Path, opts: Sequence[str] = ()) -> Any:
    """An mmengine config, changed by words "key=value"; raises CheckpointError when it can't be read."""
    import argparse

    from mmengine.config import Config, DictAction
    from mmengine.registry import init_default_scope

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Expected a config of mmsegmentation.")
    with one_line(path, "can't be read"):
        config = Config.fromfile(str(path))
        if opts:
            parser = argparse.ArgumentParser(exit_on_error=False)
            parser.add_argument("--cfg-options", nargs="+", action=DictAction)
            config.merge_from_dict(parser.parse_args(["--cfg-options", *opts]).cfg_options)
    init_default_scope(config.get("default_scope") or "mmseg")
    return config


def build_backbone(settings: Any) -> Any:
    """The backbone of a config, with its own initialisation done."""
    from mmseg.registry import MODELS

    with quietly(), safe_weights({"model": {"backbone": settings}}):
        backbone = MODELS.build(settings)
        backbone.init_weights()
    return backbone


def build_model(config: Any, path: Path) -> Any:
    """The whole model of a config as mmengine's Runner begins with it: initialised, then ``load_from``."""
    from mmengine.runner import load_checkpoint
    from mmseg.registry import MODELS

    kind = config.model.get("backbone", {}).get("type")
    if kind in MODELS.module_dict and kind not in BACKBONES:  # before it loads anything
        raise CheckpointError(f"{path}: its backbone is {kind}. {EXPECTED_BACKBONES}")
    with one_line(path, "does not build"), quietly(), safe_weights(config.to_dict()):
        model = MODELS.build(copy.deepcopy(config.model))
        model.init_weights()
        if config.get("load_from"):
            load_checkpoint(model, config.load_from, map_location="cpu")
    return model


@contextmanager
def safe_weights(config: Any) -> Iterator[None]:
    """Have mmengine get all weights from our own reader: its own runs pickles, and downloads what it has a URL for."""
    from mmengine.runner.checkpoint import CheckpointLoader

    def load(filename: str, map_location: object = None, logger: object = None) -> Mapping[str, object]:
        key = next(keys_of(config, filename), "checkpoint")
        return dict(read_checkpoint(local_file(str(filename), key=key), key=key))

    with mock.patch.object(CheckpointLoader, "load_checkpoint", load):
        yield


def keys_of(settings: Any, value: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a config that have this value."""
    entries: list[tuple[Any, Any]] = list(settings.items() if isinstance(settings, Mapping) else enumerate(settings))
    for key, entry in entries:
        if isinstance(entry, str) and entry == value:
            yield f"{prefix}{key}"
        elif isinstance(entry, Mapping | list | tuple):
            yield from keys_of(entry, value, f"{prefix}{key}.")


@contextmanager
def quietly() -> Iterator[None]:
    """Keep to itself what mmengine prints of each file that it loads."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def one_line(path: Path, what: str) -> Iterator[None]:
    """Tell whatever goes wrong with a user's config in one line."""
    try:
        yield
    except MaeliftError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: {what} ({reason}).") from error


def check_shape(path: Path, backbone: Any, encoder: Encoder) -> None:
    """Raise CheckpointError unless a backbone, MAE or ``MaeliftViT``, has the encoder's shape."""
    spec = encoder.spec
    pairs = {
        "embed_dims": spec.embed_dim,
        "embed_dim": spec.embed_dim,
        "num_layers": spec.depth,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "in_channels": spec.channels,
        "mlp_ratio": spec.mlp_ratio,
    }
    found = {key: getattr(backbone, key) for key in pairs if hasattr(backbone, key)}
    wrong = [f"{key}={value}, expected {pairs[key]}" for key, value in found.items() if value != pairs[key]]
    if wrong:
        raise CheckpointError(f"{path}: its backbone has another shape than the encoder: {'; '.join(wrong)}.")


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
        keys=mae_keys(net, encoder, preprocessing_faults(config, encoder)),
        prepare=lambda stored: prepare(config, encoder, stored),
        features=lambda images: [tokens_of(maps) for maps in net.to(images.dtype)(images)],
    )


def mae_keys(net: Any, encoder: Encoder, faults: Mapping[str, str]) -> Keys:
    """The tensors of an MAE backbone against the encoder's, and the values of those that the encoder has nothing for."""
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
            f"model.backbone.out_indices={usual_taps(encoder.spec.depth)}."
        )
    return replace(keys, wrong={**wrong, **faults, **keys.wrong})


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
        keys=replace(keys, wrong={**preprocessing_faults(config, encoder), **keys.wrong}),
        prepare=lambda stored: prepare(config, encoder, stored),
        features=lambda images: [tokens_of(maps) for maps in net.to(images.dtype)(images)],
        class_token=class_token,
        windows=net.windows,
    )


def preprocessing_faults(config: Any, encoder: Encoder) -> dict[str, str]:
    """What a config's reading and ``data_preprocessor`` say otherwise than the encoder's contract, by key."""
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
    if encoder.spec.channels == 3 and (turned := exchanges_colours(module)) == is_bgr(encoder.preprocessing):
        found["model.data_preprocessor.bgr_to_rgb"] = f"{turned}, expected {not turned}: mmcv reads blue first"
    return found


def exchanges_colours(preprocessor: Any) -> bool:
    """Whether the first channel of an image comes out as the third; tried out, as its attributes differ by version."""
    from mmseg.structures import SegDataSample

    images = torch.zeros(2, 3, 2, 2)
    images[1, 0] = 255
    black, marked = preprocessor({"inputs": list(images), "data_samples": [SegDataSample(), SegDataSample()]})["inputs"]
    return bool((marked - black)[2].abs().max() > 0)


def reading_steps(config: Any, loader: str) -> list[Any]:
    """The steps of a dataloader's pipeline that read images and normalise them; those of the other where there is none."""
    dataset = (config.get(loader) or config.get("train_dataloader") or config.test_dataloader).dataset
    while "dataset" in dataset:  # wrapped, as by RepeatDataset
        dataset = dataset.dataset
    named = [(type_name(step), step) for step in dataset.pipeline]
    reading = [step for name, step in named if name.startswith("Load") and "Image" in name][:1]
    return reading + [step for name, step in named if name == "Normalize"]


def build_preprocessor(config: Any) -> Any:
    """The preprocessor of a config's model, padding left out."""
    from mmseg.registry import MODELS

    settings = copy.deepcopy(config.model.get("data_preprocessor") or config.get("data_preprocessor"))
    if not settings:
        raise CheckpointError("the config has no model.data_preprocessor, so that images are never normalised.")
    for key in ("size", "size_divisor", "test_cfg"):
        settings.pop(key, None)
    return MODELS.build(settings)


def prepare(config: Any, encoder: Encoder, stored: Sequence[Pixels]) -> Tensor:
    """Pictures (H, W, C) through files, the config's own reading step, and its preprocessor, to (B, C, H, W)."""
    from mmengine.dataset import Compose

    pipeline = Compose([*reading_steps(config, "test_dataloader"), {"type": "PackSegInputs"}])
    with tempfile.TemporaryDirectory() as folder:
        packed = [
            pipeline({"img_path": write_picture(picture, encoder, Path(folder) / f"{number}")})
            for number, picture in enumerate(stored)
        ]
    channels = packed[0]["inputs"].shape[0]
    if channels != encoder.spec.channels:
        raise CheckpointError(
            f"the config reads images of {channels} channels, the encoder needs {encoder.spec.channels}: let its pipelines "
            f"begin with {inline(loading(encoder))}."
        )
    batch = {key: [item[key] for item in packed] for key in ("inputs", "data_samples")}
    return cast(Tensor, build_preprocessor(config)(batch)["inputs"])


def type_name(step: Mapping[str, Any]) -> str:
    """The name of a step, which newer configs give as a class."""
    kind = step["type"]
    return kind if isinstance(kind, str) else str(kind.__name__)


def write_picture(picture: Pixels, encoder: Encoder, path: Path) -> str:
    """Write a picture (H, W, C) the way a user keeps such images: PNG of 8 or 16 bits, TIFF for more channels."""
    channels = picture.shape[2]
    if channels not in (1, 3):
        return write_tiff(picture, path.with_suffix(".tif"))
    rgb = picture[:, :, ::-1] if is_bgr(encoder.preprocessing) else picture
    low, high = encoder.preprocessing.value_range
    file = path.with_suffix(".png")
    if picture.dtype == np.uint8:
        Image.fromarray(np.ascontiguousarray(rgb if channels == 3 else rgb[:, :, 0])).save(file)
    elif low >= 0 and high <= 65535:
        import cv2

        cv2.imwrite(str(file), np.ascontiguousarray(rgb[:, :, ::-1]).astype(np.uint16))
    else:
        return write_tiff(rgb, path.with_suffix(".tif"))
    return str(file)


def write_tiff(picture: Pixels, path: Path) -> str:
    """Write a TIFF, its channels side by side."""
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise MaeliftError(
            f"tifffile is not installed, and mmcv reads images of {picture.shape[2]} channels with it. Install it: "
            "pip install tifffile"
        ) from error
    tifffile.imwrite(path, picture, photometric="minisblack", planarconfig="contig")
    return str(path)
