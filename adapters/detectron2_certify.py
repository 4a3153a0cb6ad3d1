"""Certifies detectron2 configs: builds the detector, loads its weights, and compares its ViT with the encoder."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ..core.errors import CheckpointError, MaeliftError
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from .bundle import check_same_shape
from .certificate import Certificate
from .checkpoints import detectron2_checkpoint
from .detectron2 import add_maelift_config
from .detectron2_format import all_close, float32_numbers, image_format, load_framework, named_weights, quiet
from .detectron2_trial import ConfigParts, run_trial
from .parity import Candidate, Level, Pixels, certificate_sizes, compare_keys, measure_parity, tiled, tokens_of
from .yacs_files import read_yacs

DISTRIBUTIONS = ("detectron2", "sal-detectron2", "fvcore", "torchvision")

UNUSED = {
    "cls_token": "detectron2's ViT has no class token (ViTDet, Sec. 3)",
    r"norm\..*": "detectron2's ViT ends with the last block; the pyramid has norms of its own (ViTDet, Sec. 3)",
}

MISSING = {
    r".*\.rel_pos_[hw]": "relative positions, which begin at zero and so change nothing",
    r".*\.residual\..*": "residual blocks, whose last norm begins at zero and so change nothing",
    r"backbone\.(simfp_|top_block).*": "the pyramid is newly initialised",
    r"(proposal_generator|roi_heads|head)\..*": "the detector's heads are newly initialised",
}


def certify_config(
    config: Path, file: EncoderFile, opts: Sequence[str] = (), *, step_seconds: float = 120
) -> Certificate:
    """Compare the backbone of a user's own config, with the checkpoint that it loads, with the encoder.

    ``config`` is a LazyConfig (``.py``) or a yacs ``.yaml``, ``opts`` what one appends to the tool's command line. Then its
    mappers are run on sample images, then a training and an inference step if they take at most ``step_seconds``, as estimated.
    Raises CheckpointError where there is nothing to compare: another backbone, or a checkpoint of which detectron2
    loaded nothing.
    """
    load_framework()
    loaded = load_detector(config, opts)
    net = loaded.vit
    patch, channels = net.patch_embed.proj.kernel_size[0], net.patch_embed.proj.in_channels
    spec = file.encoder.spec
    if channels != spec.channels or loaded.pixel_mean.numel() != spec.channels:
        raise CheckpointError(
            f"{config}: the model takes {channels} channels and has {loaded.pixel_mean.numel()} means; the encoder was "
            f"trained on {spec.channels} channels. Expected the same."
        )
    check_same_shape(
        config, file.encoder, channels=channels, embed_dim=net.patch_embed.proj.out_channels, depth=len(net.blocks)
    )
    encoder = file.encoder.with_patch_size(patch)
    if encoder.spec.grid[0] != encoder.spec.grid[1] and net.pos_embed is not None:
        side = math.isqrt(net.pos_embed.shape[1]) * patch
        encoder = encoder.resized((side, side))
    window = max((block.window_size for block in net.blocks), default=0)
    certificate = certify_detector(loaded, encoder, certificate_sizes(encoder.spec, window), file.content_hash)
    if not any(name.endswith("qkv.weight") for name in certificate.keys.used):  # biases may be equal by being zero
        raise CheckpointError(
            f"{config}: after loading {loaded.checkpoint or 'no checkpoint at all'} the model holds none of the encoder's "
            f"tensors, of which detectron2 only warns. Expected names that begin with {loaded.vit_name}, as in the "
            "weights.pth of maelift export --to detectron2."
        )
    found = replace(certificate, failures=(*diagnosis(loaded, encoder), *certificate.failures))
    with quiet():
        steps = run_trial(loaded.model, loaded.vit, loaded.parts, encoder, step_seconds, certified=found.passed)
    return found.with_steps(steps)


@dataclass(frozen=True)
class LoadedDetector:
    """A detector with its weights, as the training tool holds it before the first step.

    ``vit_name``: where its ViT is; ``formats``: how the config's loaders read images; ``checkpoint``: the file that was
    loaded, "" for none; ``parts``: its mappers and optimizer.
    """

    config: Path
    model: Any
    vit_name: str
    formats: tuple[str | None, ...]
    checkpoint: str
    parts: ConfigParts

    @property
    def vit(self) -> Any:
        return self.model.get_submodule(self.vit_name)

    @property
    def pixel_mean(self) -> Tensor:
        return self.model.pixel_mean  # type: ignore[no-any-return]


def load_detector(config: Path, opts: Sequence[str] = ()) -> LoadedDetector:
    """Build the model of a config and load its checkpoint as detectron2's tools do.

    Raises MaeliftError for what they can't build or load, and CheckpointError for a model without a ViT of theirs.
    """
    yacs = config.suffix.lower() in (".yaml", ".yml")
    try:
        with quiet():
            build = _build_yacs if yacs else _build_lazy
            model, checkpoint, formats, parts = build(config, opts)
    except MaeliftError:
        raise
    except Exception as error:  # a config is a program of its own: it may fail in any way
        reason = next(iter(str(error).splitlines()), "")
        raise MaeliftError(
            f"{config}: detectron2 can't build or load its model ({type(error).__name__}: {reason})."
        ) from error
    from detectron2.modeling.backbone.vit import ViT

    found = [name for name, module in model.named_modules() if isinstance(module, ViT)]
    if len(found) != 1 or not hasattr(model, "pixel_mean"):
        raise CheckpointError(
            f"{config}: its {type(model).__name__} has {len(found)} backbones of detectron2's class ViT. Expected one, in a "
            "model that normalises images itself."
        )
    return LoadedDetector(config, model, found[0], formats, checkpoint, parts)


def _build_lazy(config: Path, opts: Sequence[str]) -> tuple[Any, str, tuple[str | None, ...], ConfigParts]:
    from detectron2.config import LazyConfig, instantiate
    from omegaconf import OmegaConf

    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(config)), list(opts))
    model = instantiate(cfg.model).cpu()
    checkpoint = str(OmegaConf.select(cfg, "train.init_checkpoint", default="") or "")
    _load_checkpoint(model, checkpoint, "train.init_checkpoint")
    keys = [f"dataloader.{part}.mapper.image_format" for part in ("train", "test")]
    formats = [OmegaConf.select(cfg, key, default="") for key in keys]
    known = dict.fromkeys(entry for entry in formats if entry != "")
    mappers = {part: OmegaConf.select(cfg, f"dataloader.{part}.mapper") for part in ("train", "test")}

    def optimizer(model: Any) -> Any:
        cfg.optimizer.params.model = model
        return instantiate(cfg.optimizer)

    parts = ConfigParts(
        {part: None if mapper is None else partial(instantiate, mapper) for part, mapper in mappers.items()},
        "dataloader.{}.mapper",
        optimizer if OmegaConf.select(cfg, "optimizer.params") is not None else None,
    )
    return model, checkpoint, tuple(known) or (model.input_format,), parts


def _build_yacs(config: Path, opts: Sequence[str]) -> tuple[Any, str, tuple[str | None, ...], ConfigParts]:
    from detectron2.config import get_cfg
    from detectron2.data import DatasetMapper
    from detectron2.modeling import build_model
    from detectron2.solver import build_optimizer

    values = read_yacs(config)
    if not {"MODEL", "INPUT", "DATASETS", "SOLVER", "VERSION"} & set(values):
        raise MaeliftError(
            f"{config}: not a yacs config. Expected keys such as MODEL; of a LazyConfig give the .py, since reading its .yaml "
            "can run code."
        )
    cfg = get_cfg()
    add_maelift_config(cfg)
    with tempfile.TemporaryDirectory() as folder:  # what was read, so that detectron2 opens none of the files itself
        plain = Path(folder) / config.name
        plain.write_text(yaml.safe_dump(values))
        cfg.merge_from_file(str(plain), allow_unsafe=False)
    cfg.merge_from_list(list(opts))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    _load_checkpoint(model, cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    mappers = {"train": partial(DatasetMapper, cfg, is_train=True), "test": partial(DatasetMapper, cfg, is_train=False)}
    parts = ConfigParts(mappers, "the {} mapper (INPUT)", partial(build_optimizer, cfg))
    return model, cfg.MODEL.WEIGHTS, (cfg.INPUT.FORMAT,), parts


def _load_checkpoint(model: Any, name: str, key: str) -> None:
    """Load weights as detectron2's checkpointer does, all but reading them, which it does by running what they hold."""
    if not name:
        return
    from detectron2.checkpoint import DetectionCheckpointer

    DetectionCheckpointer(model, save_to_disk=False)._load_model(detectron2_checkpoint(name, key=key))


def certify_detector(
    loaded: LoadedDetector, encoder: Encoder, sizes: Sequence[tuple[int, int]], content_hash: str
) -> Certificate:
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        return measure_parity(
            lambda size: candidate(loaded, encoder, size, Path(scratch)),
            sizes,
            framework="detectron2",
            encoder=content_hash,
            distributions=DISTRIBUTIONS,
        )


def candidate(loaded: LoadedDetector, encoder: Encoder, image_size: tuple[int, int], scratch: Path) -> Candidate:
    """The detector's ViT, fed as its mapper and ``preprocess_image`` do: a file, read and normalised, not padded.

    The sample images are written to PNG files in ``scratch``; images that detectron2 can't read are taken as they
    are. Windows stay on at sizes that they tile.
    """
    net = copy.deepcopy(loaded.vit).eval()
    windows = {number: block.window_size for number, block in enumerate(net.blocks) if block.window_size}
    if not all(tiled(image_size, encoder.spec.patch_size, window) for window in windows.values()):
        windows = {}
        for block in net.blocks:
            block.window_size = 0
    moved = {name: float(value.abs().max()) for name, value in net.state_dict().items() if ".rel_pos_" in name}
    wrong = {f"{loaded.vit_name}.{name}": "relative positions that aren't zero" for name in moved if moved[name]}
    written = named_weights(encoder, f"{loaded.vit_name}.")
    keys = compare_keys(encoder, written, loaded.model.state_dict(), unused=UNUSED, missing=MISSING)

    def prepare(stored: Sequence[Pixels]) -> Tensor:
        images = [torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in read(stored)]
        return torch.stack([(image - loaded.pixel_mean) / loaded.model.pixel_std for image in images])

    def read(stored: Sequence[Pixels]) -> Sequence[Pixels]:
        from detectron2.data.detection_utils import read_image

        if image_format(encoder.preprocessing) is None:
            return stored
        for number, image in enumerate(stored):
            drawn = image[..., ::-1] if is_bgr(encoder.preprocessing) else image  # files are red, green, blue
            Image.fromarray(drawn.squeeze(2) if drawn.shape[2] == 1 else drawn).save(scratch / f"{number}.png")
        return [read_image(str(scratch / f"{number}.png"), loaded.formats[0]) for number in range(len(stored))]

    return Candidate(
        reference=encoder,
        levels=(Level("last_feat", encoder.spec.depth - 1),),
        keys=replace(keys, wrong={**keys.wrong, **wrong}),
        prepare=prepare,
        features=lambda images: [tokens_of(maps) for maps in net.to(images.dtype)(images).values()],
        class_token=False,
        windows=windows,
    )


def diagnosis(loaded: LoadedDetector, encoder: Encoder) -> tuple[str, ...]:
    """What in a config does not match the encoder, by the config's own keys, which a difference of features can't name."""
    found = []
    wanted = image_format(encoder.preprocessing)
    if wanted is not None and any(given != wanted for given in loaded.formats):
        given = " and ".join(map(str, loaded.formats))
        found.append(
            f"images are read as {given}, but the encoder takes {wanted} (image_format of the mappers, INPUT.FORMAT)"
        )
    own = getattr(loaded.model, "input_format", None)
    if wanted is not None and own is not None and any(given not in (own, None) for given in loaded.formats):
        found.append(
            f"model.input_format is {own}, but images are read as {loaded.formats[0]}: set model.input_format={loaded.formats[0]}"
        )
    for name, means in (
        ("pixel_mean", encoder.preprocessing.pixel_mean),
        ("pixel_std", encoder.preprocessing.pixel_std),
    ):
        values = getattr(loaded.model, name).flatten().tolist()
        if not all_close(values, means):
            found.append(f"{name} is {float32_numbers(values)}, but the encoder's is {float32_numbers(means)}")
    norms = [module for module in loaded.vit.modules() if isinstance(module, nn.LayerNorm)]
    for what, values, wanted_number in (
        ("eps in the LayerNorms", {norm.eps for norm in norms}, encoder.spec.norm_eps),
        ("heads of attention", {block.attn.num_heads for block in loaded.vit.blocks}, encoder.spec.num_heads),
    ):
        if values != {wanted_number}:
            found.append(f"{what}: {', '.join(map(str, sorted(values)))}, but the encoder's is {wanted_number}")
    return tuple(found)
