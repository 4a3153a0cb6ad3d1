"""Pretraining that goes on from weights: one's own or public ones, fitted to other image sizes and channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.bundle import blue_first
from ..adapters.pretrained import read_parent, red_first
from ..adapters.published import TIMM, timm_name
from ..core.errors import CheckpointError, ConfigError, show
from ..core.models.contract import content_hash
from ..core.models.decoder_file import DECODER_FILE, read_decoder
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from ..core.models.encoder_spec import PRESETS, EncoderSpec, preset_spec
from ..core.models.preprocessing import Preprocessing, channel_names
from ..core.models.tensor_files import read_tensors
from ..core.models.weight_files import read_json, weights_file
from ..core.models.weight_names import from_transformers_names
from ..core.public_names import public_name
from .config import PretrainConfig
from .mae import MaskedAutoencoder

DECODER_NAMES = ("mask_token", "decoder_")


@dataclass(frozen=True)
class InitDecoder:
    """A decoder's tensors; its number of heads and whether its target was normalised, None where that isn't said."""

    state: Mapping[str, Tensor]
    num_heads: int | None
    norm_pix_loss: bool | None


@dataclass(frozen=True)
class InitWeights:
    """The weights that a pretraining begins with, read from ``source``, and the decoder that goes with them, if any."""

    source: str
    file: EncoderFile
    decoder: InitDecoder | None

    @property
    def digest(self) -> str:
        """A hash of the tensors that are begun with."""
        if self.decoder is None:
            return self.file.content_hash
        return content_hash({**self.file.encoder.state_dict(), **self.decoder.state})

    @property
    def parent(self) -> str:
        """What the encoder file will say of them."""
        if self.source.startswith(TIMM):
            return self.source
        return f"{public_name(self.source)} ({self.file.provenance.method}, sha256 {self.file.content_hash[:12]})"

    def preprocessing(self, channels: int, value_range: tuple[float, float] | None) -> Preprocessing | None:
        """How their images were prepared; None where these have other channels, or a value range of their own is given.

        Raises ConfigError for images of 8 bits where theirs had others.
        """
        own = self.file.encoder.preprocessing
        if value_range is None and own.value_range != (0.0, 255.0):
            low, high = own.value_range
            expected = f"[{low:g},{high:g}], the values that init={self.source} was trained on"
            raise ConfigError("value_range", None, expected, "Or give statistics=data, to begin with it on others.")
        same = self.file.encoder.spec.channels == channels and value_range in (None, own.value_range)
        return own if same else None


def read_init_weights(config: PretrainConfig) -> InitWeights | None:
    """The weights that the configuration names, if any; raises ConfigError for an encoder of another architecture."""
    if config.init is None:
        return None
    file = read_parent(config.init, "init")
    check_architecture(preset_spec(config.model, patch_size=config.patch_size), file.encoder.spec, config.init, "init")
    decoder = _decoder_of(file, config.init) if config.init_decoder == "auto" else None
    if blue_first(file.encoder.preprocessing):  # image files are red, green, blue
        file, decoder = replace(file, encoder=red_first(file.encoder)), None
    return InitWeights(config.init, file, decoder)


def load_init_weights(model: MaskedAutoencoder, beginning: InitWeights) -> list[str]:
    """Give ``model`` the weights that it begins with; say in words what was fitted."""
    state, notes = fitted_state(beginning.file.encoder, model.spec)
    found, what = _fitting_decoder(model, beginning)
    model.load_state_dict({**model.state_dict(), **state, **found})
    return [*notes, what]


def fitted_encoder(file: EncoderFile, spec: EncoderSpec, source: str, key: str) -> tuple[Encoder, list[str]]:
    """An encoder of this shape with the weights of another, and in words what was fitted.

    Its images are prepared as the other's were; where it has other channels, with the mean of their statistics. Raises
    ConfigError, which names the user's ``key``, for weights of another architecture.
    """
    check_architecture(spec, file.encoder.spec, source, key)
    parent = red_first(file.encoder) if blue_first(file.encoder.preprocessing) else file.encoder
    prepared, channels = parent.preprocessing, spec.channels
    if parent.spec.channels != channels:
        mean, std = (sum(values) / len(values) for values in (prepared.mean, prepared.std))
        prepared = replace(
            prepared, channel_names=channel_names(channels), mean=(mean,) * channels, std=(std,) * channels
        )
    state, notes = fitted_state(parent, spec)
    encoder = Encoder(spec, preprocessing=prepared)
    encoder.load_state_dict(state)
    return encoder, notes


def fitted_state(encoder: Encoder, spec: EncoderSpec) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's tensors for another image size and other channels, and in words what was fitted."""
    notes = []
    if encoder.spec.grid != spec.grid:
        was, now = ("×".join(map(str, shape.image_size)) for shape in (encoder.spec, spec))
        notes.append(f"position embeddings were resized from {was} to {now} pixels")
        encoder = encoder.resized(spec.image_size)
    state = dict(encoder.state_dict())
    if encoder.spec.channels != spec.channels:
        kernel = "patch_embed.proj.weight"
        state[kernel] = to_channels(state[kernel], spec.channels, dim=1, inputs=True)
        notes.append(f"the patch kernel was fitted from {encoder.spec.channels} to {spec.channels} channels")
    return state, notes


def to_channels(weight: Tensor, channels: int, *, dim: int, inputs: bool) -> Tensor:
    """A weight for another number of channels along ``dim``: summed or averaged to one, else repeated in turn.

    Of weights that channels go into, the sum over channels is kept where they are repeated as often, so that an image
    with equal channels gives what it gave; of those that channels come out of, each channel's scale.
    """
    if channels == 1:
        return weight.sum(dim, keepdim=True) if inputs else weight.mean(dim, keepdim=True)
    old = weight.shape[dim]
    repeated = weight.index_select(dim, torch.arange(channels, device=weight.device) % old)
    return repeated * (old / channels) if inputs else repeated


def check_architecture(model: EncoderSpec, parent: EncoderSpec, source: str, key: str) -> None:
    """Raise ConfigError, which names the user's ``key``, for weights that don't fit a model."""
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps", "class_token", "act")
    different = [name for name in names if getattr(model, name) != getattr(parent, name)]
    if not different:
        return
    said = ", ".join(f"{name} {getattr(parent, name)}, not {getattr(model, name)}" for name in different)
    advice = next(
        (
            f" Give model={name} patch_size={parent.patch_size}."
            for name, preset in PRESETS.items()
            if (preset.embed_dim, preset.depth, preset.num_heads) == (parent.embed_dim, parent.depth, parent.num_heads)
        ),
        "",
    )
    raise ConfigError(key, source, f"an encoder of the model's architecture; this one has {said}", advice.strip())


def _fitting_decoder(model: MaskedAutoencoder, beginning: InitWeights) -> tuple[dict[str, Tensor], str]:
    """The tensors of the decoder that the model can take over, and what was done, in words."""
    if beginning.decoder is None:
        return {}, "the decoder begins anew"
    own = model.decoder_state()
    for name, there, here in (
        ("decoder.num_heads", beginning.decoder.num_heads, model.decoder_spec.num_heads),
        ("norm_pix_loss", beginning.decoder.norm_pix_loss, model.norm_pix_loss),
    ):
        if there not in (None, here):
            return {}, f"the decoder begins anew: that of these weights has {name}={show(there)}, not {show(here)}"
    state = {**beginning.decoder.state, "decoder_pos_embed": own["decoder_pos_embed"]}  # fixed sines and cosines
    channels = beginning.file.encoder.spec.channels
    if channels != model.spec.channels:
        for name in ("decoder_pred.weight", "decoder_pred.bias"):
            pixels = state[name].reshape(model.spec.patch_size**2, channels, *state[name].shape[1:])
            state[name] = to_channels(pixels, model.spec.channels, dim=1, inputs=False).flatten(0, 1)
    names = sorted(own.keys() | state.keys())
    different = [n for n in names if n not in own or n not in state or own[n].shape != state[n].shape]
    if different:
        return {}, f"the decoder begins anew: that of these weights has another shape ({different[0]} for one)"
    return state, "the decoder was taken over"


def _decoder_of(file: EncoderFile, source: str) -> InitDecoder | None:
    """The decoder in the checkpoint itself, or in the decoder file that belongs to the encoder file."""
    if timm_name(source) is not None:
        return None
    path = weights_file(Path(source))
    tensors = from_transformers_names(read_tensors(path)[0])
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(DECODER_NAMES)}
    beside = path.with_name(DECODER_FILE)
    if inside:
        # Of transformers; other checkpoints say neither. A norm_pix_loss of false is the default there, and tells nothing.
        facts = read_json(path.with_name("config.json"))
        heads, target = facts.get("decoder_num_attention_heads"), facts.get("norm_pix_loss")
        return InitDecoder(inside, heads if isinstance(heads, int) else None, True if target is True else None)
    if not beside.is_file():
        return None
    decoder = read_decoder(beside)
    if decoder.encoder != file.content_hash:
        raise CheckpointError(
            f"{beside}: the decoder of another encoder than {path}. Remove it, or give init_decoder=new to begin with none."
        )
    return InitDecoder(decoder.state, decoder.num_heads, decoder.norm_pix_loss)
