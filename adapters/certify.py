"""The command ``maelift certify``: compares a config, a folder or a checkpoint of yours with an encoder file."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.dry_run import Plan
from ..core.errors import CheckpointError, ConfigError, MaeliftError
from ..core.files import open_regular, output_folder, read_regular_text
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile, read_encoder
from ..core.models.hub_names import is_hub_name
from ..core.models.weight_files import weights_file
from .certificate import CERTIFICATE_FILE, Certificate
from .config_process import Request, certify_in_process
from .export import certifier, read_for_export
from .parity import (
    Candidate,
    Level,
    Pixels,
    certificate_sizes,
    compare_keys,
    measure_parity,
    reason_for,
    reference_features,
)

logger = logging.getLogger("maelift")

LARGEST_CONFIG = 2**20
"""Bytes of a config; those of the zoos have a few thousand."""
CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class CertifyConfig:
    """Compare a model of yours with the encoder that it should have been loaded with.

    A config in Python (.py) is a program: certifying it runs it. It is run only with --trust, in a process of its own.
    """

    model: str
    """detectron2 LazyConfig (.py) or yacs (.yaml), mmseg config (.py), folder of timm, transformers or torchvision, .onnx,
    or a checkpoint"""
    encoder: str
    """encoder file of maelift, or hf:NAME/MODEL to fetch one"""
    out: str | None = None
    """folder for certificate.json; null: it is only shown"""
    overrides: tuple[str, ...] = ()
    """changes of the config, as for the framework's own tool: [model.backbone.net.window_size=0]"""
    trust: bool = False
    """run a config in Python (.py, and what it imports); --trust is the same. Read it first: it can do what you can do"""
    time_limit: float = 1800.0
    """seconds after which the process of a config is stopped"""
    step_seconds: float = 120.0
    """a training and an inference step are run if they take no longer, as estimated; else their sizes are only computed"""

    def __post_init__(self) -> None:
        if not 0 < self.time_limit < float("inf"):
            raise ConfigError("time_limit", self.time_limit, "a number of seconds above 0")
        if not 0 <= self.step_seconds < float("inf"):
            raise ConfigError("step_seconds", self.step_seconds, "a number of seconds, 0 for no step")


@dataclass(frozen=True)
class CertifyResult:
    """A certificate that passed."""

    certificate: Certificate

    def summary(self) -> str:
        """The certificate on one screen."""
        return self.certificate.text()

    def to_json(self) -> str:
        """The certificate as one JSON document."""
        return self.certificate.to_json()


def certify(config: CertifyConfig) -> CertifyResult:
    """Compare, write ``certificate.json`` where ``out`` says, and give the certificate.

    Raises MaeliftError for files that can't be read, and CheckpointError for a model that differs, after showing where.
    """
    encoder = weights_file(Path(config.encoder)) if is_hub_name(config.encoder) else config.encoder
    config = replace(config, encoder=str(encoder))  # as processes of configs have no network
    certificate = certifier_for(config)(read_for_export(config.encoder))
    if config.out is not None:
        certificate.write(output_folder(config.out))
    if not certificate.passed:
        logger.warning(certificate.text())
    certificate.check()
    return CertifyResult(certificate)


def plan(config: CertifyConfig) -> Plan:
    """What ``maelift certify`` would do."""
    certifier_for(config)
    written = f"{config.out}/{CERTIFICATE_FILE}" if config.out else "nothing"
    runs = (("runs", f"{config.model}, a program in Python"),) if is_program(Path(config.model)) else ()
    return Plan((("compares", f"{config.model} with {config.encoder}"), *runs, ("writes", written)))


def is_program(path: Path) -> bool:
    """Whether certifying it runs it."""
    return path.suffix.lower() == ".py"


def certifier_for(config: CertifyConfig) -> Callable[[EncoderFile], Certificate]:
    """The function that certifies ``config.model``: an adapter's for configs and folders, ``certify_checkpoint`` for weights.

    Raises MaeliftError for what is none of them, and for a program that isn't trusted.
    """
    path = Path(config.model)
    name = framework_of(path)
    if name in ("detectron2", "mmseg"):
        if is_program(path) and not config.trust:
            raise MaeliftError(
                f"{path}: a config in Python, which certifying runs as a program; nothing was run. Read it and what it "
                "imports; if you trust it, add --trust."
            )
        return lambda file: certify_config(name, config, file)
    if config.overrides:
        raise MaeliftError(
            f"overrides: {path} is no config of detectron2 or mmseg: there is nothing that they could change."
        )
    if name == "checkpoint":
        return lambda file: certify_checkpoint(path, file)
    return lambda file: certifier(name).certify_folder(path, file)


def certify_config(framework: str, config: CertifyConfig, file: EncoderFile) -> Certificate:
    """The certificate of a config, which is run or read in a process of its own, for the encoder in ``file``."""
    path = Path(config.model)
    if is_program(path):
        logger.info("running %s, a program in Python, in a process of its own", path)
    certificate = certify_in_process(
        Request(
            framework, config.model, config.encoder, tuple(config.overrides), config.step_seconds, config.time_limit
        )
    )
    if certificate.encoder != file.content_hash or certificate.framework != framework:
        raise CheckpointError(f"{path}: no certificate: its process sent one of something else.")
    return certificate


def framework_of(path: Path) -> str:
    """The framework of a config or folder, "checkpoint" for bare weights; raises MaeliftError for other files."""
    expected = "Expected a config of detectron2 or mmseg, an exported folder, an .onnx file, or a checkpoint"
    if path.is_dir():
        for name, marks in FOLDERS.items():
            if any((path / mark).is_file() for mark in marks):
                return _of_config_json(path / "config.json") if name == "config.json" else name
        raise MaeliftError(f"{path}: a folder without config.json, backbone.json or encoder.onnx. {expected}.")
    if not path.is_file():
        raise MaeliftError(f"{path}: no such file. {expected}.")
    suffix = path.suffix.lower()
    if suffix == ".py":
        # An mmengine config is made of dicts with a type; a LazyConfig of calls.
        text = read_regular_text(path, errors="replace", limit=LARGEST_CONFIG)
        mmengine = re.search(r"^\s*_base_\s*=|dict\(\s*type=|['\"]type['\"]\s*:|read_base\(", text, re.M)
        return "mmseg" if mmengine else "detectron2"
    if suffix in (".yaml", ".yml"):
        return "detectron2"
    if suffix == ".onnx":
        return "onnx"
    if suffix in CHECKPOINTS or _holds_tensors(path):
        return "checkpoint"
    raise MaeliftError(f"{path}: unknown kind of file. {expected} ({', '.join(CHECKPOINTS)}).")


def _holds_tensors(path: Path) -> bool:
    """Whether a file begins like weights, under any name; also for a pickle, which is then refused."""
    with open_regular(path) as file:
        head = file.read(16)
    return head[:2] == b"PK" or head[:1] == b"\x80" or head[8:9] == b"{"


FOLDERS = {"torchvision": ("backbone.json",), "onnx": ("encoder.onnx",), "config.json": ("config.json",)}
"""Files that identify the framework of a folder; timm and transformers both write ``config.json``."""


def _of_config_json(path: Path) -> str:
    try:
        content = json.loads(read_regular_text(path))
    except (ValueError, RecursionError) as error:
        raise MaeliftError(f"{path}: not JSON ({error}).") from error
    for key, name in (("model_type", "transformers"), ("architecture", "timm")):
        if isinstance(content, dict) and key in content:
            return name
    raise MaeliftError(f"{path}: neither timm's nor transformers': it has no key architecture or model_type.")


def certify_checkpoint(path: Path, file: EncoderFile) -> Certificate:
    """Compare the tensors of a checkpoint, under any known names, with the encoder.

    Heads, epsilon and activation leave no trace in tensors: those of the encoder are taken. A class token or a final norm
    that the checkpoint hasn't takes no part.
    """
    spec = file.encoder.spec
    found = read_encoder(
        path, num_heads=spec.num_heads, norm_eps=spec.norm_eps, image_size=spec.image_size, act=spec.act
    )
    return measure_parity(
        lambda size: _checkpoint_candidate(found.encoder, file.encoder, found.final_norm),
        certificate_sizes(spec),
        framework=f"checkpoint ({found.provenance.method})",
        encoder=file.content_hash,
    )


def _checkpoint_candidate(found: Encoder, encoder: Encoder, has_norm: bool) -> Candidate:
    class_token = found.spec.class_token and encoder.spec.class_token
    last = encoder.spec.depth - 1
    levels = tuple(Level(f"block {number}", number) for number in sorted({last // 2, last}))
    if has_norm:
        levels += (Level("after the norm", last, normed=True, prefix=class_token),)
    unused = {} if class_token else {"cls_token": "the checkpoint has no class token"}
    if not has_norm:
        unused[r"norm\..*"] = "the checkpoint has no final norm"
    written = {name: tensor for name, tensor in encoder.state_dict().items() if not reason_for(name, unused)}
    loaded = {name: tensor for name, tensor in found.state_dict().items() if not reason_for(name, unused)}
    if not class_token:
        written["pos_embed"] = written["pos_embed"][:, encoder.spec.num_prefix_tokens :]
        loaded["pos_embed"] = loaded["pos_embed"][:, found.spec.num_prefix_tokens :]

    def prepare(stored: Sequence[Pixels]) -> Tensor:
        return encoder.preprocessing.normalize(torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2))

    return Candidate(
        reference=encoder,
        levels=levels,
        keys=compare_keys(encoder, written, loaded, unused=unused, missing={}),
        prepare=prepare,
        features=lambda images: reference_features(found.to(images.dtype), images, levels, class_token=class_token),
        class_token=class_token,
    )
