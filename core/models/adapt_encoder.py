"""An encoder adapted to another image size, number of channels or order of colours, with the same features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConfigError
from .backbone import Backbone
from .encoder import Encoder
from .encoder_spec import PRESETS, EncoderSpec
from .preprocessing import Preprocessing, channel_names


def adapt_encoder(
    encoder: Backbone, spec: EncoderSpec, source: str, key: str, names: Sequence[str] = ()
) -> tuple[Encoder, list[str]]:
    """An encoder of shape ``spec`` with the weights of ``encoder``, and notes on what was adapted.

    It keeps the preprocessing; for other channels, with the mean of the statistics. ``names``: what the channels of ``spec`` are
    called, by which known ones get their own weights (``adapt_named_channels``). Raises ConfigError, which names the user's
    ``key`` and ``source``, for weights of another architecture.
    """
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            key, source, f"a plain ViT; these weights are for {encoder.size_text()}, of another architecture"
        )
    check_architecture(spec, encoder.spec, source, key)
    parent = to_rgb(encoder) if is_bgr(encoder.preprocessing) else encoder
    prepared = preprocessing_for(parent.preprocessing, spec.channels, names)
    state, notes = adapt_state(parent, spec, names)
    adapted = Encoder(spec, preprocessing=prepared)
    adapted.load_state_dict(state)
    return adapted, notes


def preprocessing_for(prepared: Preprocessing, channels: int, names: Sequence[str] = ()) -> Preprocessing:
    """A preprocessing for another number of channels: each has the mean of the statistics; the same for the same number."""
    if len(prepared.mean) == channels:
        return prepared
    mean, std = (sum(values) / len(values) for values in (prepared.mean, prepared.std))
    usual = tuple(names) if len(names) == channels else channel_names(channels)
    return replace(prepared, channel_names=usual, mean=(mean,) * channels, std=(std,) * channels, bands=None)


def adapt_state(encoder: Encoder, spec: EncoderSpec, names: Sequence[str] = ()) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's tensors for another image size and other channels, and notes on what was adapted; ``names`` as above."""
    notes = []
    if encoder.spec.grid != spec.grid:
        was, now = ("×".join(map(str, shape.image_size)) for shape in (encoder.spec, spec))
        notes.append(f"position embeddings were resized from {was} to {now} pixels")
        encoder = encoder.resized(spec.image_size)
    state = dict(encoder.state_dict())
    if encoder.spec.channels != spec.channels:
        kernel = "patch_embed.proj.weight"
        known = encoder.preprocessing.channel_names
        state[kernel] = adapt_kernel(state[kernel], known, names, spec.channels)
        notes.append(f"the patch kernel was {channels_note(known, names, spec.channels)}")
    return state, notes


def adapt_kernel(weight: Tensor, known: Sequence[str], names: Sequence[str], channels: int) -> Tensor:
    """A kernel (D, C, ...) for another number of channels: by name where some of ``names`` are ``known``, else in turn."""
    if _placed(known, names, channels):
        return adapt_named_channels(weight, known, names)
    return adapt_input_channels(weight, channels, dim=1)


def channels_note(known: Sequence[str], names: Sequence[str], channels: int) -> str:
    """What ``adapt_kernel`` does, in words."""
    placed = _placed(known, names, channels)
    by = f": {', '.join(placed)} by name, the others from the mean" if placed else ""
    return f"adapted from {len(known)} to {channels} channels{by}"


def _placed(known: Sequence[str], names: Sequence[str], channels: int) -> list[str]:
    """Which of the new channels' names are known; none where there isn't a name for each."""
    own = {name.casefold() for name in known}
    return [name for name in names if name.casefold() in own] if len(names) == channels else []


def adapt_input_channels(weight: Tensor, channels: int, *, dim: int) -> Tensor:
    """A weight for another number of input channels along ``dim``: summed to one, else repeated in turn.

    Repeated channels are scaled so that their sum stays the same: an image with equal channels gives the same output.
    """
    if channels == 1:
        return weight.sum(dim, keepdim=True)
    return _repeat(weight, channels, dim) * (weight.shape[dim] / channels)


def adapt_named_channels(weight: Tensor, known: Sequence[str], names: Sequence[str]) -> Tensor:
    """A kernel (D, C, p, p) of channels that are ``known`` by name for others (D, len(names), p, p).

    A channel of a known name (upper and lower case alike) gets that one's weights, another their mean. All are scaled as in
    ``adapt_input_channels``: where each known channel is among the others, equal channels give the same output.
    """
    places = {name.casefold(): place for place, name in enumerate(known)}
    mean = weight.mean(dim=1)
    own = [weight[:, places[name.casefold()]] if name.casefold() in places else mean for name in names]
    return torch.stack(own, dim=1) * (weight.shape[1] / len(names))


def adapt_output_channels(weight: Tensor, channels: int, *, dim: int) -> Tensor:
    """A weight for another number of output channels along ``dim``: averaged to one, else repeated; each keeps its scale."""
    return weight.mean(dim, keepdim=True) if channels == 1 else _repeat(weight, channels, dim)


def _repeat(weight: Tensor, channels: int, dim: int) -> Tensor:
    return weight.index_select(dim, torch.arange(channels, device=weight.device) % weight.shape[dim])


def check_architecture(model: EncoderSpec, parent: EncoderSpec, source: str, key: str) -> None:
    """Raise ConfigError, which names the user's ``key``, unless weights have the architecture of ``model``."""
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


def is_bgr(preprocessing: Preprocessing) -> bool:
    """Whether an encoder takes the channels blue, green, red, in this order."""
    return preprocessing.channel_names == ("blue", "green", "red")


def to_rgb(encoder: Encoder) -> Encoder:
    """The same encoder for images whose channels are red, green, blue."""
    old = encoder.preprocessing
    turned = replace(old, channel_names=("red", "green", "blue"), mean=old.mean[::-1], std=old.std[::-1])
    state = encoder.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flip(1)
    result = Encoder(encoder.spec, preprocessing=turned)
    result.load_state_dict(state)
    return result
