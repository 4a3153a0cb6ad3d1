"""Exports to timm: the encoder as a Vision Transformer, in a folder that ``timm.create_model`` reads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError, MaeliftError
from ..core.files import atomic_path, atomic_write_text, read_regular_text
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.tensor_files import read_tensors
from ..core.optional_imports import require
from .bundle import Bundle, ExportConfig, at_size, check_8_bit, check_rgb, check_same_shape
from .certificate import Certificate
from .checkpoints import check_described, read_checkpoint, square_of
from .parity import Candidate, Level, Pixels, certificate_sizes, compare_keys, measure_parity
from .vitdet_sizes import usual_global_blocks

if TYPE_CHECKING:
    from timm.models import VisionTransformer

Pool = Literal["avg", "token"]

BY_WIDTH = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}
"""timm's plain ViTs by their width; each takes any other shape as keywords, and has a LayerNorm epsilon of 1e-6."""
WITH_EPS_1E_5 = "vit_base_patch16_clip_224"
"""A plain ViT of timm with an epsilon of 1e-5; its norm before the blocks is switched off by ``pre_norm=False``."""
USAGE = """\
import timm
model = timm.create_model("local-dir:{out}", pretrained=True, num_classes=10)  # or features_only=True, out_indices=[...]
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
# the same without local-dir, which timm has from 1.0.16 on:
model = timm.create_model(
    "%s",
    checkpoint_path="{out}/model.safetensors",
    pretrained_cfg=%s,
    **%s,
)"""


@dataclass(frozen=True)
class TimmExport(ExportConfig):
    """A Vision Transformer of timm."""

    image_size: int | tuple[int, int] | None = None
    """pixels of the images, one side or [height,width], positions resized to it; null: as trained"""
    patch_size: int | None = None
    """pixels a side of a patch, to resample the patch kernel to; null: as trained"""
    global_pool: Pool = "avg"
    """the features of a classifier: avg, the mean of the normed patch tokens, as maelift's own, or token, the class token"""


def export(file: EncoderFile, folder: Path, config: TimmExport) -> Bundle:
    """Write ``config.json`` and ``model.safetensors``; raises ConfigError for sizes, MaeliftError for other encoders."""
    require("timm")
    check_8_bit(file.encoder, "timm")
    check_rgb(file.encoder, "timm")
    if config.global_pool == "token" and not file.encoder.spec.class_token:
        raise ConfigError("global_pool", config.global_pool, "avg, as this encoder has no class token")
    encoder = at_size(file.encoder, config.image_size, config.patch_size)
    settings = save_folder(encoder, folder, config.global_pool, file.provenance.licence)
    size, trained = encoder.spec.image_size, file.encoder.spec.image_size
    return Bundle(
        files={
            "config.json": f"timm's {settings['architecture']} with this encoder's shape, mean and deviation",
            "model.safetensors": "weights, under timm's names",
        },
        certificate=certify_folder(folder, file),
        usage=USAGE % (settings["architecture"], settings["pretrained_cfg"], settings["model_args"]),
        notes=(
            f"for images of {size[0]}×{size[1]} pixels (trained at {trained[0]}×{trained[1]}); export others with image_size, "
            "since timm resizes positions with antialiasing, which MAE's are not made for",
        ),
    )


def save_folder(
    encoder: Encoder, folder: Path, global_pool: Pool = "avg", licence: str | None = None
) -> dict[str, Any]:
    """Write the folder that timm reads, and return the content of its ``config.json``."""
    state = {name: tensor.detach().contiguous() for name, tensor in encoder.state_dict().items()}
    settings = {
        "architecture": architecture(encoder.spec),
        "num_classes": 0,
        "num_features": encoder.spec.embed_dim,
        "global_pool": global_pool,
        "model_args": model_arguments(encoder.spec, global_pool),
        "pretrained_cfg": pretrained_settings(encoder, licence),
    }
    with atomic_path(folder / "model.safetensors") as temporary:
        safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
    atomic_write_text(folder / "config.json", json.dumps(settings, indent=1))
    return settings


def architecture(spec: EncoderSpec) -> str:
    """The plain ViT of timm that is nearest in width and has this epsilon, which no keyword of a JSON file can set."""
    if spec.norm_eps == 1e-5:
        return WITH_EPS_1E_5
    if spec.norm_eps != 1e-6:
        raise MaeliftError(
            f"norm_eps={spec.norm_eps:g}: the ViTs that timm can build from a file have 1e-6 or 1e-5. Nothing was written. Take "
            "maelift.adapters.timm.to_timm(encoder) in Python, or export to transformers, torchvision or onnx."
        )
    return BY_WIDTH[min(BY_WIDTH, key=lambda width: abs(width - spec.embed_dim))]


def model_arguments(spec: EncoderSpec, global_pool: Pool) -> dict[str, Any]:
    """timm's keywords for a shape.

    ``fc_norm=False``: for pooled tokens timm would put a norm of its own after the pooling, in place of the trained one.
    """
    arguments = {
        "img_size": list(spec.image_size),
        "patch_size": spec.patch_size,
        "in_chans": spec.channels,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_ratio,
        "qkv_bias": True,
        "class_token": spec.class_token,
        "global_pool": global_pool,
        "fc_norm": False,
        **({} if spec.act == "gelu" else {"act_layer": spec.act}),
    }
    return arguments | ({"pre_norm": False} if spec.norm_eps == 1e-5 else {})


def pretrained_settings(encoder: Encoder, licence: str | None) -> dict[str, Any]:
    """timm's ``pretrained_cfg``: how images are prepared, and which layers a new head or other channels touch."""
    preprocessing = encoder.preprocessing
    settings = {
        "input_size": [encoder.spec.channels, *encoder.spec.image_size],
        "fixed_input_size": True,
        "interpolation": preprocessing.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return settings | ({"license": licence} if licence else {})


WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What timm takes its weights from in a folder, the first that is there."""
NOT_THE_MODELS = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
)
"""Keywords of ``timm.create_model`` for the source of weights; a folder has its own."""


def load_folder(folder: Path) -> VisionTransformer:
    """timm's model of a folder, with the weights beside its ``config.json`` and no others; nothing is downloaded.

    Raises CheckpointError unless the file has all its tensors and no others, and for a folder that names another model.
    """
    import timm

    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), folder / WEIGHTS[0])
    try:
        settings = json.loads(read_regular_text(folder / "config.json"))
        arguments = settings.get("model_args", {})
        name, named = settings["architecture"], sorted(set(arguments) & set(NOT_THE_MODELS))
        if not isinstance(name, str) or not timm.is_model(name):
            raise CheckpointError(f"{folder}/config.json: architecture={name}: expected the name of a model of timm's.")
        if named:
            raise CheckpointError(
                f"{folder}/config.json: model_args.{named[0]}: the weights are those in the folder. Leave it out."
            )
        content = read_tensors(weights)[0] if weights.name == WEIGHTS[0] else _torch_state(weights)
        check_described(
            folder / "config.json",
            weights,
            depth=arguments.get("depth"),
            width=arguments.get("embed_dim"),
            mlp_ratio=arguments.get("mlp_ratio"),
            patches=square_of(arguments.get("img_size"), arguments.get("patch_size", 16)),
            channels=arguments.get("in_chans"),
        )
        described = {key: value for key, value in settings["pretrained_cfg"].items() if key not in SOURCES}
        model: VisionTransformer = timm.create_model(name, pretrained=False, pretrained_cfg=described, **arguments)
        model.load_state_dict(content)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: timm can't load it ({reason or type(error).__name__}).") from error
    if not isinstance(model, timm.models.VisionTransformer):
        raise CheckpointError(f"{folder}: timm's {name} is no plain Vision Transformer. Expected one.")
    return model.eval()


SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
"""Keys of timm's ``pretrained_cfg`` for the source of weights."""


def _torch_state(path: Path) -> dict[str, Tensor]:
    content = read_checkpoint(path, key="weights")
    state = content.get("state_dict", content)
    assert isinstance(state, dict)
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def certify_folder(folder: Path, file: EncoderFile) -> Certificate:
    """Compare timm's model of a folder, and of exports for other image sizes, with the encoder.

    Raises CheckpointError for a folder that timm can't load, or a model of another shape.
    """
    require("timm")
    check_8_bit(file.encoder, "timm")
    check_rgb(file.encoder, "timm")
    model = load_folder(folder)
    check_same_shape(
        folder,
        file.encoder,
        channels=model.patch_embed.proj.in_channels,
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        class_token=model.num_prefix_tokens == 1,
    )
    own_size = tuple(model.patch_embed.img_size)
    encoder = at_size(file.encoder, None, model.patch_embed.patch_size[0])

    def build(size: tuple[int, int]) -> Candidate:
        reference = at_size(encoder, size)
        if size == own_size:
            return candidate(model, reference)
        with tempfile.TemporaryDirectory() as scratch:
            save_folder(reference, Path(scratch))
            return candidate(load_folder(Path(scratch)), reference)

    sizes = certificate_sizes(at_size(encoder, own_size).spec)
    return measure_parity(build, sizes, framework="timm", encoder=file.content_hash, distributions=["timm"])


def candidate(model: VisionTransformer, encoder: Encoder) -> Candidate:
    """timm's model, fed by timm's own transform, which finds its image size, mean and deviation in the model."""
    from timm.data import create_transform, resolve_model_data_config

    spec = encoder.spec
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    blocks = usual_global_blocks(spec.depth)
    prefix = spec.class_token

    def prepare(stored: Sequence[Pixels]) -> Tensor:
        if spec.channels in (1, 3, 4):
            squeezed = [image[..., 0] if spec.channels == 1 else image for image in stored]
            return torch.stack([transform(Image.fromarray(image)) for image in squeezed])
        # PIL has no such pictures: only the last two steps, to a tensor and normalising, take arrays.
        to_tensor, normalize = transform.transforms[-2:]
        return torch.stack([normalize(to_tensor(image)) for image in stored])

    def features(images: Tensor) -> list[Tensor]:
        net = model.to(images.dtype)
        found = net.forward_intermediates(
            images, indices=list(blocks), return_prefix_tokens=prefix, output_fmt="NLC", intermediates_only=True
        )
        tokens = [torch.cat([first, patches], dim=1) for patches, first in found] if prefix else list(found)
        return [*tokens, net.forward_features(images)]

    levels = [Level(f"blocks[{block}]", block, prefix=prefix) for block in blocks]
    return Candidate(
        reference=encoder,
        levels=(*levels, Level("forward_features", spec.depth - 1, normed=True, prefix=prefix)),
        keys=compare_keys(encoder, encoder.state_dict(), model.state_dict(), unused={}, missing={}),
        prepare=prepare,
        features=features,
    )


def to_timm(encoder: Encoder, global_pool: Pool | None = None) -> VisionTransformer:
    """timm's Vision Transformer with the encoder's weights, without a head; any epsilon.

    ``global_pool``: "avg", the mean of the normed patch tokens (the default), or "token".
    """
    require("timm")
    import timm

    model: VisionTransformer = timm.create_model(
        BY_WIDTH[min(BY_WIDTH, key=lambda width: abs(width - encoder.spec.embed_dim))],
        pretrained_cfg=pretrained_settings(encoder, None),
        norm_layer=partial(nn.LayerNorm, eps=encoder.spec.norm_eps),
        **model_arguments(encoder.spec, global_pool or "avg"),
    )
    model.load_state_dict(encoder.state_dict())
    return model.to(encoder.pos_embed.dtype).eval()
