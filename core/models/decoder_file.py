"""The decoder file: the decoder of a pretraining, with the content hash of the encoder that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import atomic_path
from .contract import CHECKSUM, CONTENT_HASH, Metadata, sealed, sealed_hash, shown
from .encoder_spec import LARGEST, LARGEST_EPS
from .tensor_files import check_finite, read_tensors

DECODER_FILE = "decoder.safetensors"
"""The name of a decoder file, which is written beside the encoder file."""

DECODER_KEY = "maelift.decoder"

DECODER_VERSION = 2
"""See ``CONTRACT_VERSION`` of encoder files."""


@dataclass(frozen=True)
class DecoderFile:
    """The decoder that an encoder was pretrained with.

    ``state``: its tensors, ``mask_token`` and ``decoder_*``; ``encoder``: the content hash of the encoder file that it
    belongs to; ``norm_pix_loss``: it predicts patches normalised by their own mean and deviation.
    """

    state: Mapping[str, Tensor]
    num_heads: int
    norm_eps: float
    norm_pix_loss: bool
    encoder: str


def save_decoder(decoder: DecoderFile, path: str | Path) -> None:
    """Write a decoder file atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state.items()}
    contract = {
        "version": DECODER_VERSION,
        "num_heads": decoder.num_heads,
        "norm_eps": decoder.norm_eps,
        "norm_pix_loss": decoder.norm_pix_loss,
        "encoder": decoder.encoder,
    }
    text = sealed(contract, sealed_hash(contract, state))
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={DECODER_KEY: text})


def read_decoder(path: str | Path) -> DecoderFile:
    """Read a decoder file; raises CheckpointError for other files, and for tensors or metadata that were changed."""
    state, metadata = read_tensors(path)
    if DECODER_KEY not in metadata:
        raise CheckpointError(
            f"{path}: not a decoder file of maelift. Expected the decoder.safetensors of a pretraining."
        )
    contract = Metadata.parse(path, DECODER_KEY, metadata[DECODER_KEY])
    version = contract.version(DECODER_VERSION)
    fields = ("num_heads", "norm_eps", "norm_pix_loss", "encoder")
    contract.check_keys(("version", *fields, CONTENT_HASH, *((CHECKSUM,) if version > 1 else ())))
    found = DecoderFile(
        state=state,
        num_heads=contract.value("num_heads", int),
        norm_eps=contract.value("norm_eps", float),
        norm_pix_loss=contract.value("norm_pix_loss", bool),
        encoder=contract.hash_under("encoder"),
    )
    if not 1 <= found.num_heads <= LARGEST["num_heads"]:
        raise contract.error(f"num_heads={shown(found.num_heads)}: expected 1 to {LARGEST['num_heads']}")
    if not 0 < found.norm_eps <= LARGEST_EPS:
        raise contract.error(f"norm_eps={shown(found.norm_eps)}: expected a number above 0, at most {LARGEST_EPS:g}")
    contract.check_tensors(state, tensors_only=version == 1)
    check_finite(str(path), state)
    return found
