"""Initial weights of a pretraining: an encoder, one's own or a public one, and its decoder if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..adapters.pretrained import read_pretrained
from ..adapters.published import timm_name
from ..core.data.pixel_format import PixelFormat
from ..core.errors import CheckpointError, ConfigError, show
from ..core.models.adapt_encoder import adapt_output_channels, adapt_state, check_architecture, is_bgr, to_rgb
from ..core.models.backbone import Backbone
from ..core.models.contract import content_hash
from ..core.models.decoder_file import DECODER_FILE, read_decoder
from ..core.models.encoder_file import EncoderFile
from ..core.models.encoder_spec import preset_spec
from ..core.models.plain_vit_checks import why_not_plain
from ..core.models.preprocessing import Preprocessing, reading_fields
from ..core.models.tensor_files import read_tensors
from ..core.models.timm_backbone import TimmBackbone
from ..core.models.timm_spec import TIMM
from ..core.models.weight_files import read_json, weights_file
from ..core.models.weight_names import from_transformers_names
from ..core.public_names import public_name
from .config import PretrainConfig
from .mae import MaskedAutoencoder

DECODER_NAMES = ("mask_token", "decoder_")


@dataclass(frozen=True)
class InitDecoder:
    """A decoder's tensors; its number of heads and whether its target was normalised, None if unknown."""

    state: Mapping[str, Tensor]
    num_heads: int | None
    norm_pix_loss: bool | None


@dataclass(frozen=True)
class InitWeights:
    """The initial weights of a pretraining, read from ``source``, and the decoder that belongs to them, if any."""

    source: str
    file: EncoderFile
    decoder: InitDecoder | None

    @property
    def digest(self) -> str:
        """A hash of the initial tensors."""
        if self.decoder is None:
            return self.file.content_hash
        return content_hash({**self.file.encoder.state_dict(), **self.decoder.state})

    @property
    def parent(self) -> str:
        """Their description in the provenance of the encoder file."""
        if self.source.startswith(TIMM):
            return self.source
        name = self.file.hub_name or public_name(self.source)
        return f"{name} ({self.file.provenance.method}, sha256 {self.file.content_hash[:12]})"

    def preprocessing(self, channels: int, form: PixelFormat) -> Preprocessing | None:
        """Their preprocessing, of images read in a form; None if these have other channels, or another range or window is given.

        Raises ConfigError for images of 8 bits where the weights were trained on others.
        """
        value_range, window = form.value_range, form.window
        own = self.file.encoder.preprocessing
        if value_range is None and window is None and own.value_range != (0.0, 255.0):
            low, high = own.value_range
            expected = f"[{low:g},{high:g}], the values that init={self.source} was trained on"
            raise ConfigError("value_range", None, expected, "Or give statistics=data, to use it for others.")
        same = (self.file.encoder.spec.channels, own.window) == (channels, window)
        return replace(own, **reading_fields(form)) if same and value_range in (None, own.value_range) else None


def read_init_weights(config: PretrainConfig) -> InitWeights | None:
    """The initial weights that the configuration names, if any; raises ConfigError for another architecture."""
    if config.init is None:
        return None
    file = _plain(read_pretrained(config.init, "init"), config.init)
    check_architecture(preset_spec(config.model, patch_size=config.patch_size), file.encoder.spec, config.init, "init")
    decoder = _decoder_of(file, config.init) if config.init_decoder == "auto" else None
    if is_bgr(file.encoder.preprocessing):  # image files are red, green, blue
        file, decoder = replace(file, encoder=to_rgb(file.encoder)), None
    return InitWeights(config.init, file, decoder)


def _plain(file: EncoderFile[Backbone], source: str) -> EncoderFile:
    """The weights where they are those of a plain ViT; raises CheckpointError with the reason where they aren't."""
    if isinstance(file.encoder, TimmBackbone):
        reason = why_not_plain(file.encoder.net) or "it has parts that an encoder hasn't"
        raise CheckpointError(
            f"init={source}: timm's {file.encoder.spec.architecture}: {reason}; a masked autoencoder can't go on from it. It can "
            f"be compared with as it is: maelift transfer classify encoder={source} (or detect, segment)."
        )
    return file.plain(source)


def load_init_weights(model: MaskedAutoencoder, init: InitWeights) -> list[str]:
    """Load the initial weights into ``model``; returns notes on what was adapted."""
    state, notes = adapt_state(init.file.encoder, model.spec)
    decoder, note = _adapted_decoder(model, init)
    model.load_state_dict({**model.state_dict(), **state, **decoder})
    return [*notes, note]


def _adapted_decoder(model: MaskedAutoencoder, init: InitWeights) -> tuple[dict[str, Tensor], str]:
    """The decoder's tensors that the model can load, and a note on what was done."""
    if init.decoder is None:
        return {}, "the decoder is initialized randomly"
    own = model.decoder_state()
    for name, there, here in (
        ("decoder.num_heads", init.decoder.num_heads, model.decoder_spec.num_heads),
        ("norm_pix_loss", init.decoder.norm_pix_loss, model.norm_pix_loss),
    ):
        if there not in (None, here):
            return (
                {},
                f"the decoder is initialized randomly: that of the weights has {name}={show(there)}, not {show(here)}",
            )
    state = {**init.decoder.state, "decoder_pos_embed": own["decoder_pos_embed"]}  # fixed sines and cosines
    channels = init.file.encoder.spec.channels
    if channels != model.spec.channels:
        for name in ("decoder_pred.weight", "decoder_pred.bias"):
            pixels = state[name].reshape(model.spec.patch_size**2, channels, *state[name].shape[1:])
            state[name] = adapt_output_channels(pixels, model.spec.channels, dim=1).flatten(0, 1)
    names = sorted(own.keys() | state.keys())
    different = [n for n in names if n not in own or n not in state or own[n].shape != state[n].shape]
    if different:
        return (
            {},
            f"the decoder is initialized randomly: that of the weights has another shape ({different[0]} for one)",
        )
    return state, "the decoder was loaded"


def _decoder_of(file: EncoderFile, source: str) -> InitDecoder | None:
    """The decoder in the checkpoint itself, or in the decoder file that belongs to the encoder file."""
    if timm_name(source) is not None:
        return None
    path = weights_file(Path(source))
    tensors = from_transformers_names(read_tensors(path)[0])
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(DECODER_NAMES)}
    beside = path.with_name(DECODER_FILE)
    if inside:
        # transformers writes these keys; there norm_pix_loss is false by default, whatever the weights were trained with.
        config_json = read_json(path.with_name("config.json"))
        heads, target = config_json.get("decoder_num_attention_heads"), config_json.get("norm_pix_loss")
        return InitDecoder(inside, heads if isinstance(heads, int) else None, True if target is True else None)
    if not beside.is_file():
        return None
    decoder = read_decoder(beside)
    if decoder.encoder != file.content_hash:
        raise CheckpointError(
            f"{beside}: the decoder of another encoder than {path}. Remove it, or give init_decoder=new to ignore it."
        )
    return InitDecoder(decoder.state, decoder.num_heads, decoder.norm_pix_loss)
