"""Exports to transformers: the encoder as a ViTModel and, with its decoder, as a ViTMAEForPreTraining."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import CheckpointError, ConfigError, MaeliftError
from ..core.files import atomic_path, atomic_write_text, read_regular_text
from ..core.models.decoder_file import DECODER_FILE, DecoderFile, read_decoder
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from ..core.models.weight_names import from_transformers_names, to_transformers_names
from ..core.optional_imports import require
from .bundle import Bundle, ExportConfig, at_size, check_rgb, check_same_shape
from .certificate import Certificate, Keys
from .checkpoints import check_described, read_checkpoint, square_of
from .parity import Candidate, Level, Pixels, certificate_sizes, compare_keys, measure_parity
from .vitdet_sizes import usual_global_blocks

if TYPE_CHECKING:
    from transformers import ViTImageProcessor, ViTMAEForPreTraining, ViTModel

MAE_FOLDER = "mae"
USAGE = """\
from transformers import ViTForImageClassification, ViTImageProcessor, ViTModel
processor = ViTImageProcessor.from_pretrained("{out}")
model = ViTModel.from_pretrained("{out}", add_pooling_layer=False)
classifier = ViTForImageClassification.from_pretrained("{out}", num_labels=10)"""
MAE_USAGE = """
from transformers import ViTMAEForPreTraining
mae = ViTMAEForPreTraining.from_pretrained("{out}/mae")"""


@dataclass(frozen=True)
class TransformersExport(ExportConfig):
    """A ViTModel of transformers, and a ViTMAEForPreTraining where the decoder is at hand."""

    image_size: int | tuple[int, int] | None = None
    """pixels of the images, one side or [height,width], positions resized to it; null: as trained"""
    patch_size: int | None = None
    """pixels a side of a patch, to resample the patch kernel to; null: as trained"""
    decoder: str | None = None
    """decoder file of the same pretraining; null: decoder.safetensors beside the encoder file, if there"""


def export(file: EncoderFile, folder: Path, config: TransformersExport) -> Bundle:
    """Write the folder that ``from_pretrained`` reads, and ``mae/`` in it with the decoder.

    Raises MaeliftError for an encoder without a class token, ConfigError for sizes, CheckpointError for a decoder that does
    not belong to the encoder.
    """
    require("transformers")
    check_class_token(file.encoder)
    check_rgb(file.encoder, "transformers")
    encoder = at_size(file.encoder, config.image_size, config.patch_size)
    decoder, left_out = find_decoder(file, encoder, config)
    ratio = mask_ratio(file.provenance.config)
    save_folder(encoder, folder)
    files = {
        "config.json": "a ViTModel of this encoder's shape",
        "model.safetensors": "weights, under the names that transformers 4 and 5 read",
        "preprocessor_config.json": "image size, mean and deviation, for ViTImageProcessor",
    }
    if decoder is not None:
        save_mae_folder(encoder, decoder, folder / MAE_FOLDER, ratio)
        files[f"{MAE_FOLDER}/"] = "the same with the decoder, for ViTMAEForPreTraining"
    return Bundle(
        files=files,
        certificate=certify_folder(folder, file, decoder),
        usage=USAGE + (MAE_USAGE if decoder is not None else ""),
        notes=(*notes(encoder), *left_out),
    )


def notes(encoder: Encoder) -> tuple[str, ...]:
    """Limits of the folder: other image sizes, and images that are not RGB."""
    height, width = encoder.spec.image_size
    sizes = (
        "models: interpolate_pos_encoding=True for other image sizes"
        if height == width
        else f"for images of {height}×{width} pixels only, since transformers takes the positions of every encoder for a square; "
        "export other sizes with image_size"
    )
    if encoder.spec.channels == 3:
        return (sizes,)
    return (sizes, 'processor: give it arrays (height, width, channels), and input_data_format="channels_last"')


def check_class_token(encoder: Encoder) -> None:
    """Raise MaeliftError for an encoder without a class token, which a ViTModel always has."""
    if not encoder.spec.class_token:
        raise MaeliftError(
            "the encoder has no class token, and transformers' ViTModel always has one, which takes part in attention. Nothing "
            "was written. Export to timm, torchvision, detectron2 or onnx."
        )


def find_decoder(
    file: EncoderFile, encoder: Encoder, config: TransformersExport
) -> tuple[DecoderFile | None, tuple[str, ...]]:
    """The decoder to be written, and why none is, if there is one that can't be.

    A decoder that ``config`` names must fit, or CheckpointError or ConfigError is raised; one found beside the
    encoder file need not.
    """
    path = Path(config.decoder) if config.decoder else Path(config.encoder).with_name(DECODER_FILE)
    if config.decoder is None and not path.is_file():
        return None, (f"no {DECODER_FILE} beside the encoder file, hence no ViTMAEForPreTraining",)
    decoder = read_decoder(path)
    trained, rows, columns = file.encoder.spec, *encoder.spec.grid
    if decoder.encoder != file.content_hash:
        reason = f"{path}: belongs to another encoder ({decoder.encoder[:12]}) than {config.encoder} ({file.content_hash[:12]})"
        if config.decoder is not None:
            raise CheckpointError(
                f"{reason}. Expected the {DECODER_FILE} of the same pretraining. Nothing was written."
            )
    elif (encoder.spec.image_size, encoder.spec.patch_size) != (trained.image_size, trained.patch_size):
        reason = f"the decoder is for images of {trained.image_size[0]}×{trained.image_size[1]} pixels and the trained patches"
    elif rows != columns:
        reason = "transformers' ViTMAEForPreTraining takes square images only"
    elif trained.act != "gelu":
        reason = f"the decoder's activation is gelu, the encoder's {trained.act}, and transformers has one for both"
    elif decoder.norm_eps != encoder.spec.norm_eps:
        reason = "the decoder's LayerNorm epsilon is not the encoder's, and transformers has one for both"
    else:
        return decoder, ()
    if config.decoder is not None:
        raise ConfigError("decoder", config.decoder, f"no decoder for this export: {reason}")
    return None, (f"no ViTMAEForPreTraining: {reason}",)


def mask_ratio(config: Mapping[str, Any]) -> float:
    """The pretraining's mask ratio; the paper's 0.75 where the provenance has none."""
    masking = config.get("masking")
    return float(masking["ratio"]) if isinstance(masking, Mapping) and "ratio" in masking else 0.75


def save_folder(encoder: Encoder, folder: Path) -> None:
    """Write what ``ViTModel.from_pretrained`` and ``ViTImageProcessor.from_pretrained`` read."""
    weights = to_transformers_names(encoder.state_dict())
    settings = {"architectures": ["ViTModel"], "model_type": "vit", **model_settings(encoder)}
    _write(folder, weights, {**settings, "encoder_stride": encoder.spec.patch_size}, encoder)


def save_mae_folder(encoder: Encoder, decoder: DecoderFile, folder: Path, ratio: float) -> None:
    """Write what ``ViTMAEForPreTraining.from_pretrained`` reads; ``ratio`` is the share of patches to be hidden."""
    weights = {f"vit.{name}": tensor for name, tensor in to_transformers_names(encoder.state_dict()).items()}
    weights |= to_transformers_names(decoder.state)
    width = decoder.state["decoder_embed.weight"].shape[0]
    settings = {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **model_settings(encoder),
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": sum(name.endswith(".norm1.weight") for name in decoder.state),
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": decoder.state["decoder_blocks.0.mlp.fc1.weight"].shape[0],
        "mask_ratio": ratio,
        "norm_pix_loss": decoder.norm_pix_loss,
    }
    folder.mkdir()
    _write(folder, weights, settings, encoder)


def _write(folder: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any], encoder: Encoder) -> None:
    with atomic_path(folder / "model.safetensors") as temporary:
        state = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
    atomic_write_text(folder / "config.json", json.dumps(settings, indent=1))
    atomic_write_text(folder / "preprocessor_config.json", json.dumps(processor_settings(encoder), indent=1))


def model_settings(encoder: Encoder) -> dict[str, Any]:
    """The keys of ViTConfig and ViTMAEConfig for an encoder; their own epsilon, 1e-12, is not MAE's."""
    spec = encoder.spec
    height, width = spec.image_size
    return {
        "image_size": height if height == width else [height, width],
        "patch_size": spec.patch_size,
        "num_channels": spec.channels,
        "hidden_size": spec.embed_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": int(spec.embed_dim * spec.mlp_ratio),
        "hidden_act": "gelu_pytorch_tanh" if spec.act == "gelu_tanh" else spec.act,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": spec.norm_eps,
        "qkv_bias": True,
    }


def processor_settings(encoder: Encoder) -> dict[str, Any]:
    """The keys of ViTImageProcessor for an encoder's contract; values of any range, since it scales by a factor."""
    preprocessing = encoder.preprocessing
    low, high = preprocessing.value_range
    height, width = encoder.spec.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": int(Image.Resampling[preprocessing.interpolation.upper()]),
        "do_rescale": True,
        "rescale_factor": 1 / (high - low),
        "do_normalize": True,
        "image_mean": [mean + low / (high - low) for mean in preprocessing.mean],
        "image_std": list(preprocessing.std),
        "do_convert_rgb": encoder.spec.channels == 3,
    }


def certify_folder(folder: Path, file: EncoderFile, decoder: DecoderFile | None = None) -> Certificate:
    """Compare the models that transformers loads from a folder with the encoder, at the sizes that they accept.

    That is the ViTModel and, where there is ``mae/``, the ViTMAEForPreTraining, its other half against ``decoder`` if one is
    given. Raises CheckpointError for a folder that transformers can't load, or a model of another shape.
    """
    require("transformers")
    from transformers import ViTImageProcessor, ViTMAEForPreTraining, ViTModel

    has_mae = (folder / MAE_FOLDER).is_dir()
    for part in (folder, folder / MAE_FOLDER) if has_mae else (folder,):
        check_folder(part)
    try:
        model = ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
        processor = ViTImageProcessor.from_pretrained(folder, local_files_only=True)
        mae = ViTMAEForPreTraining.from_pretrained(folder / MAE_FOLDER, local_files_only=True) if has_mae else None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: transformers can't load it ({reason}).") from error
    config = model.config
    check_rgb(file.encoder, "transformers")
    check_same_shape(
        folder,
        file.encoder,
        channels=config.num_channels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        class_token=True,
    )
    size = config.image_size
    own_size = (size, size) if isinstance(size, int) else (size[0], size[1])
    encoder = at_size(file.encoder, own_size, config.patch_size)
    return measure_parity(
        lambda image_size: candidate(model, processor, encoder, image_size, mae, decoder),
        certificate_sizes(encoder.spec) if own_size[0] == own_size[1] else [own_size],
        framework="transformers",
        encoder=file.content_hash,
        distributions=["transformers"],
    )


def check_folder(folder: Path) -> None:
    """Raise CheckpointError for a folder that has more than a plain ViT and its tensors, before transformers reads it.

    That is code of its own (``auto_map``), kernels from the hub, weights of another model under an adapter, and pickles.
    """
    try:
        config = json.loads(read_regular_text(folder / "config.json"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: can't be read ({error}).") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json: holds a {type(config).__name__}. Expected keys and values.")
    for key in ("auto_map", "custom_pipelines", "quantization_config"):
        if config.get(key):
            raise CheckpointError(
                f"{folder}/config.json: {key}: a model with code of its own, or with other tensors than a ViT's; none of it "
                f"was run. If it is a plain ViTModel all the same, remove {key}."
            )
    for key in ("attn_implementation", "_attn_implementation"):
        if config.get(key) not in (None, "eager", "sdpa"):
            raise CheckpointError(
                f"{folder}/config.json: {key}={config[key]}: kernels that may be fetched from the hub. Expected sdpa or eager."
            )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}/adapter_config.json: an adapter on another model's weights. Merge it (peft's merge_and_unload), and "
            "save the model into a folder of its own."
        )
    for path in sorted(folder.glob("*.bin")):
        read_checkpoint(path, key="weights")
    weights = [path for path in (folder / "model.safetensors", folder / "pytorch_model.bin") if path.exists()]
    width, hidden = config.get("hidden_size", 768), config.get("intermediate_size")
    ratio = hidden / width if isinstance(hidden, int) and isinstance(width, int) and width > 0 else None
    for path in weights[:1]:
        check_described(
            folder / "config.json",
            path,
            depth=config.get("num_hidden_layers"),
            width=width,
            mlp_ratio=ratio,
            patches=square_of(config.get("image_size"), config.get("patch_size", 16)),
            channels=config.get("num_channels"),
        )


def candidate(
    model: ViTModel,
    processor: ViTImageProcessor,
    encoder: Encoder,
    image_size: tuple[int, int],
    mae: ViTMAEForPreTraining | None = None,
    decoder: DecoderFile | None = None,
) -> Candidate:
    """transformers' ViTModel, fed by its image processor; and ``mae``'s encoder with nothing hidden."""
    spec = encoder.spec
    blocks = usual_global_blocks(spec.depth)
    interpolate = image_size != spec.image_size
    levels = [Level(f"hidden_states[{block + 1}]", block, prefix=True) for block in blocks]
    levels.append(Level("last_hidden_state", spec.depth - 1, normed=True, prefix=True))
    if mae is not None:
        levels.append(Level("mae last_hidden_state", spec.depth - 1, normed=True, prefix=True))

    def prepare(stored: Sequence[Pixels]) -> Tensor:
        size = {"height": image_size[0], "width": image_size[1]}
        if spec.channels == 3 and stored[0].dtype == np.uint8:
            pixels = processor([Image.fromarray(image) for image in stored], size=size, return_tensors="pt")
        else:  # for other images transformers 4 needs the layout as an argument, and can't resize them
            pixels = processor(list(stored), do_resize=False, input_data_format="channels_last", return_tensors="pt")
        return pixels["pixel_values"]  # type: ignore[no-any-return]

    def features(images: Tensor) -> list[Tensor]:
        net = model.to(images.dtype).eval()
        out = net(images, output_hidden_states=True, interpolate_pos_encoding=interpolate)
        found = [*(out.hidden_states[block + 1] for block in blocks), out.last_hidden_state]
        return found if mae is None else [*found, _nothing_hidden(mae, images, interpolate)]

    return Candidate(
        reference=encoder,
        levels=tuple(levels),
        keys=_keys(model, encoder, mae, decoder),
        prepare=prepare,
        features=features,
    )


def _keys(model: ViTModel, encoder: Encoder, mae: ViTMAEForPreTraining | None, decoder: DecoderFile | None) -> Keys:
    """The tensors of the models, turned back into ours by the table that read them from transformers' files."""
    written = dict(encoder.state_dict())
    keys = compare_keys(encoder, written, from_transformers_names(model.state_dict()), unused={}, missing={})
    if mae is None:
        return keys
    missing = {} if decoder else {"mask_token|decoder_.*": "the decoder, which is not part of the encoder file"}
    written |= decoder.state if decoder else {}
    more = compare_keys(encoder, written, from_transformers_names(mae.state_dict()), unused={}, missing=missing)
    return Keys(
        used=(*keys.used, *(f"mae {name}" for name in more.used)),
        missing={f"mae {name}": reason for name, reason in more.missing.items()},
        wrong={**keys.wrong, **{f"mae {name}": reason for name, reason in more.wrong.items()}},
    )


def _nothing_hidden(mae: ViTMAEForPreTraining, images: Tensor, interpolate: bool) -> Tensor:
    """The tokens of ViTMAE's encoder with no patch hidden: ascending noise keeps their order."""
    encoder = copy.deepcopy(mae.vit).to(images.dtype).eval()
    encoder.embeddings.config.mask_ratio = 0.0
    patch = mae.config.patch_size
    count = (images.shape[-2] // patch) * (images.shape[-1] // patch)
    noise = torch.linspace(0, 1, count).expand(images.shape[0], -1)
    tokens: Tensor = encoder(images, noise=noise, interpolate_pos_encoding=interpolate).last_hidden_state
    return tokens


def to_transformers(encoder: Encoder) -> ViTModel:
    """transformers' ViTModel with the encoder's weights, without a pooler; raises MaeliftError without a class token."""
    require("transformers")
    from transformers import ViTModel

    check_class_token(encoder)
    with tempfile.TemporaryDirectory() as scratch:
        save_folder(encoder, Path(scratch))
        model: ViTModel = ViTModel.from_pretrained(scratch, add_pooling_layer=False)
    return model.to(encoder.pos_embed.dtype).eval()
