"""detectron2: the encoder as the plain ViT of its detectors: a bundle, weights alone, or a backbone in Python."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError, MaeliftError
from ..core.files import atomic_path, atomic_write_text
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import ACTIVATIONS, Encoder
from ..core.models.encoder_file import EncoderFile, load_encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.optional_imports import require
from .bundle import (
    Bundle,
    at_size,
    check_window,
    detector_state,
    fitting_sizes,
    need_gelu,
    need_same_shape,
    usual_global_blocks,
    usual_image_side,
    usual_window,
)
from .certificate import (
    Candidate,
    Certificate,
    Level,
    Pixels,
    certificate_sizes,
    certify,
    compare_keys,
    tiled,
    tokens_of,
)
from .checkpoints import detectron2_checkpoint
from .detectron2_config import (
    Detectron2Export,
    config_texts,
    float32_numbers,
    image_format,
    recipe,
    some_of,
    value_range_text,
    windowed_blocks,
    zoo_overrides,
)
from .detectron2_trial import Parts, try_out
from .yacs_files import read_yacs

DISTRIBUTIONS = ("detectron2", "sal-detectron2", "fvcore", "torchvision")
BACKBONE = "backbone.net."
"""Where a detector with a pyramid holds its ViT."""
UNUSED = {
    "cls_token": "detectron2's ViT has no class token (ViTDet, Sec. 3)",
    r"norm\..*": "detectron2's ViT ends with the last block; the pyramid has norms of its own (ViTDet, Sec. 3)",
}
MISSING = {
    r".*\.rel_pos_[hw]": "relative positions, which begin at zero and so change nothing",
    r".*\.residual\..*": "residual blocks, whose last norm begins at zero and so change nothing",
    r"backbone\.(simfp_|top_block).*": "the pyramid begins anew",
    r"(proposal_generator|roi_heads|head)\..*": "the detector's heads begin anew",
}


def export(file: EncoderFile, folder: Path, config: Detectron2Export) -> Bundle:
    """Write ``weights.pth``, ``mask_rcnn.py`` and ``cascade_mask_rcnn.py``; raises MaeliftError for sizes and data."""
    _require()
    advice = (
        "Export to timm, transformers, torchvision or onnx; or take vit_backbone, which has it (docs/detectron2.md)."
    )
    need_gelu(file.encoder, "a config of detectron2's", advice)
    trained = at_size(file.encoder, None, config.patch_size)
    scales = pyramid_scales(trained.spec.patch_size)
    size = config.image_size or usual_image_side(trained)
    window = check_sizes(trained.spec, size, config.window_size)
    encoder = square(trained, size)
    texts = config_texts(encoder, scales, config, image_size=size, window_size=window)
    with atomic_path(folder / "weights.pth") as temporary:
        torch.save({"model": named_weights(encoder, BACKBONE)}, temporary)
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    loaded = load_config(folder / "mask_rcnn.py")
    return Bundle(
        files={
            "weights.pth": "weights, under detectron2's names",
            "mask_rcnn.py": "LazyConfig of Mask R-CNN (ViTDet), with model, data, schedule",
            "cascade_mask_rcnn.py": "the same with Cascade R-CNN's heads",
        },
        certificate=_certificate(loaded, encoder, certificate_sizes(trained.spec, window), file.content_hash),
        usage=usage(encoder, config),
        notes=notes(encoder, config, window),
    )


def certify_config(
    config: Path, file: EncoderFile, opts: Sequence[str] = (), *, step_seconds: float = 120
) -> Certificate:
    """Hold the backbone of a user's own config, loaded with its own checkpoint, against the encoder.

    ``config`` is a LazyConfig (``.py``) or a yacs ``.yaml``, ``opts`` what one appends to the tool's command line. Then its
    mappers are run on pictures, and a training and an inference step where they take at most ``step_seconds``, as estimated.
    Raises CheckpointError where there is nothing to compare: another backbone, or a checkpoint of which detectron2
    loaded nothing.
    """
    _require()
    loaded = load_config(config, opts)
    net = loaded.vit
    patch, channels = net.patch_embed.proj.kernel_size[0], net.patch_embed.proj.in_channels
    spec = file.encoder.spec
    if channels != spec.channels or loaded.pixel_mean.numel() != spec.channels:
        raise CheckpointError(
            f"{config}: the model takes {channels} channels and has {loaded.pixel_mean.numel()} means; the encoder was "
            f"trained on {spec.channels} channels. Expected the same."
        )
    need_same_shape(
        config, file.encoder, channels=channels, embed_dim=net.patch_embed.proj.out_channels, depth=len(net.blocks)
    )
    encoder = file.encoder.with_patch_size(patch)
    if encoder.spec.grid[0] != encoder.spec.grid[1] and net.pos_embed is not None:
        side = math.isqrt(net.pos_embed.shape[1]) * patch
        encoder = encoder.resized((side, side))
    window = max((block.window_size for block in net.blocks), default=0)
    certificate = _certificate(loaded, encoder, certificate_sizes(encoder.spec, window), file.content_hash)
    if not any(name.endswith("qkv.weight") for name in certificate.keys.used):  # biases may be equal by being zero
        raise CheckpointError(
            f"{config}: after loading {loaded.checkpoint or 'no checkpoint at all'} the model holds none of the encoder's "
            f"tensors, of which detectron2 only warns. Expected names that begin with {loaded.vit_name}, as in the "
            "weights.pth of maelift export --to detectron2."
        )
    found = replace(certificate, failures=(*diagnosis(loaded, encoder), *certificate.failures))
    with quiet():
        steps = try_out(loaded.model, loaded.vit, loaded.parts, encoder, step_seconds, certified=found.passed)
    return found.with_steps(steps)


def pyramid_scales(patch_size: int) -> tuple[float, ...]:
    """What the pyramid multiplies the ViT's resolution by; raises ConfigError for patches that detectron2 has no levels for.

    It numbers levels by the power of two that is their stride, and its ROIPooler takes no other.
    """
    from .plain_vit import usual_scales

    if patch_size & (patch_size - 1):
        nearest = 2 ** round(math.log2(patch_size))
        raise ConfigError(
            "patch_size",
            patch_size,
            "a power of two, as detectron2's pyramid needs",
            f"Have the patch kernel resampled: patch_size={nearest}.",
        )
    return usual_scales(patch_size)


def check_sizes(spec: EncoderSpec, image_size: int, window_size: int | None) -> int:
    """The window for square images of this side; raises ConfigError, naming sizes that fit, when one doesn't."""
    patch_size, side = spec.patch_size, image_size // spec.patch_size
    usual = usual_window((side, side)) if windowed_blocks(spec.depth) else 0
    window = usual if window_size is None else window_size
    check_window(window, (image_size, image_size), patch_size)
    coarsest = 2 * patch_size
    if image_size % coarsest:
        multiple = math.lcm(coarsest, patch_size * max(1, window))
        below, above = fitting_sizes(image_size, multiple)
        raise ConfigError(
            "image_size",
            image_size,
            f"a multiple of {multiple}, since the pyramid's coarsest level has a stride of {coarsest} pixels",
            f"The nearest are {below} and {above}.",
        )
    return window


def square(encoder: Encoder, image_size: int) -> Encoder:
    """The encoder with positions on a square grid, which detectron2 assumes: those of other grids are resized once."""
    rows, columns = encoder.spec.grid
    return encoder if rows == columns else encoder.resized((image_size, image_size))


def named_weights(encoder: Encoder, prefix: str = "") -> dict[str, Tensor]:
    """The tensors that detectron2's ViT has a place for, with ``prefix`` before their names."""
    return {prefix + name: tensor for name, tensor in detector_state(encoder).items()}


def usage(encoder: Encoder, config: Detectron2Export) -> str:
    """The commands to go on with: the bundle's, the words for a config of one's own, and the backbone in Python."""
    lines = [
        "with detectron2's own tools/lazyconfig_train_net.py (--resume goes on; cascade_mask_rcnn.py likewise):",
        "  python lazyconfig_train_net.py --config-file {out}/mask_rcnn.py",
    ]
    if encoder.spec.patch_size == 16:
        words, python = zoo_overrides(encoder, config.num_classes)
        lines += ["with a ViTDet config of detectron2's zoo (mask_rcnn_vitdet_b_100ep.py), these words after it:"]
        lines += [f"  {word}" for word in words]
        if python:
            lines += ["and these lines in it:", *(f"  {line}" for line in python)]
    lines += [
        "in Python:",
        "  from maelift.adapters.detectron2 import vit_backbone  # model.backbone = L(vit_backbone)(encoder=...)",
    ]
    return "\n".join(lines)


def notes(encoder: Encoder, config: Detectron2Export, window: int) -> tuple[str, ...]:
    """What did not go over, and what detectron2 does otherwise."""
    found = []
    preprocessing, spec = encoder.preprocessing, encoder.spec
    if image_format(preprocessing) is None:
        found.append(
            f"detectron2 reads no images of {spec.channels} channels with values {value_range_text(preprocessing)}: give the "
            "config's dataloaders mappers of your own, which put a (channels, height, width) array of those values under 'image'"
        )
    elif spec.channels == 4:
        found.append(
            "detectron2 resizes RGBA with the fourth channel as opacity, and loses colours where it is 0; if it is a channel "
            "like the others, give the dataloaders mappers of your own"
        )
    if config.train_json and not config.val_json:
        found.append("no val_json: the config trains without evaluation")
    if window and windowed_blocks(spec.depth):
        found.append(
            f"attention in windows of {window} patches but in blocks {some_of(usual_global_blocks(spec.depth))}"
        )
    return tuple(found)


@dataclass(frozen=True)
class Loaded:
    """A detector with its weights, as the training tool holds it before the first step.

    ``vit_name``: where its ViT is; ``formats``: how the config's loaders read images; ``checkpoint``: the file that was
    loaded, "" for none; ``parts``: its mappers and optimizer.
    """

    config: Path
    model: Any
    vit_name: str
    formats: tuple[str | None, ...]
    checkpoint: str
    parts: Parts

    @property
    def vit(self) -> Any:
        return self.model.get_submodule(self.vit_name)

    @property
    def pixel_mean(self) -> Tensor:
        return self.model.pixel_mean  # type: ignore[no-any-return]


def load_config(config: Path, opts: Sequence[str] = ()) -> Loaded:
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
    return Loaded(config, model, found[0], formats, checkpoint, parts)


def _build_lazy(config: Path, opts: Sequence[str]) -> tuple[Any, str, tuple[str | None, ...], Parts]:
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

    parts = Parts(
        {part: None if mapper is None else partial(instantiate, mapper) for part, mapper in mappers.items()},
        "dataloader.{}.mapper",
        optimizer if OmegaConf.select(cfg, "optimizer.params") is not None else None,
    )
    return model, checkpoint, tuple(known) or (model.input_format,), parts


def _build_yacs(config: Path, opts: Sequence[str]) -> tuple[Any, str, tuple[str | None, ...], Parts]:
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
    parts = Parts(mappers, "the {} mapper (INPUT)", partial(build_optimizer, cfg))
    return model, cfg.MODEL.WEIGHTS, (cfg.INPUT.FORMAT,), parts


def _load_checkpoint(model: Any, name: str, key: str) -> None:
    """Load weights as detectron2's checkpointer does, all but reading them, which it does by running what they hold."""
    if not name:
        return
    from detectron2.checkpoint import DetectionCheckpointer

    DetectionCheckpointer(model, save_to_disk=False)._load_model(detectron2_checkpoint(name, key=key))


def _require() -> None:
    with quiet():
        require("detectron2")


@contextmanager
def quiet() -> Iterator[None]:
    """Without detectron2's warnings: of loading, where the certificate says which tensors are new, and of old ways in it."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "iopath", "torch.fx._symbolic_trace")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _certificate(loaded: Loaded, encoder: Encoder, sizes: Sequence[tuple[int, int]], content_hash: str) -> Certificate:
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        return certify(
            lambda size: candidate(loaded, encoder, size, Path(scratch)),
            sizes,
            framework="detectron2",
            encoder=content_hash,
            distributions=DISTRIBUTIONS,
        )


def candidate(loaded: Loaded, encoder: Encoder, image_size: tuple[int, int], scratch: Path) -> Candidate:
    """The detector's ViT, fed as its mapper and ``preprocess_image`` do: a file, read and normalised, not padded.

    The pictures are written to PNG files in ``scratch``; where detectron2 can't read such images, they are taken as they
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
        images = [torch.as_tensor(np.ascontiguousarray(picture.transpose(2, 0, 1))) for picture in read(stored)]
        return torch.stack([(image - loaded.pixel_mean) / loaded.model.pixel_std for image in images])

    def read(stored: Sequence[Pixels]) -> Sequence[Pixels]:
        from detectron2.data.detection_utils import read_image

        if image_format(encoder.preprocessing) is None:
            return stored
        for number, picture in enumerate(stored):
            drawn = picture[..., ::-1] if is_bgr(encoder.preprocessing) else picture  # files are red, green, blue
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


def diagnosis(loaded: Loaded, encoder: Encoder) -> tuple[str, ...]:
    """What in a config does not fit the encoder, in the config's own words, where a difference of features says less."""
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
        held = getattr(loaded.model, name).flatten().tolist()
        if not _close(held, means):
            found.append(f"{name} is {float32_numbers(held)}, but the encoder's is {float32_numbers(means)}")
    norms = [module for module in loaded.vit.modules() if isinstance(module, nn.LayerNorm)]
    for what, held, wanted_number in (
        ("eps in the LayerNorms", {norm.eps for norm in norms}, encoder.spec.norm_eps),
        ("heads of attention", {block.attn.num_heads for block in loaded.vit.blocks}, encoder.spec.num_heads),
    ):
        if held != {wanted_number}:
            found.append(f"{what}: {', '.join(map(str, sorted(held)))}, but the encoder's is {wanted_number}")
    return tuple(found)


def _close(held: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(held) == len(wanted) and all(
        math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-3) for one, other in zip(held, wanted, strict=True)
    )


def vit_backbone(
    encoder: str | Path,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    window_size: int | None = None,
    out_channels: int = 256,
    drop_path: float | None = None,
    use_rel_pos: bool = True,
) -> Any:
    """detectron2's ViT and SimpleFeaturePyramid with the weights of an encoder file; for code, or as L(vit_backbone)(...).

    Images (B, C, H, W), normalised as ``pixel_settings`` says, to {"p2": (B, out_channels, H/4, W/4), ...}, the levels
    named by the power of two that is their stride. Unlike detectron2's own pyramid it has images of any size padded at
    the right and bottom, so that windows tile them and nothing is cut off. ``image_size`` (pixels) sizes the relative
    positions, null as at the export; ``window_size`` and ``drop_path`` likewise.
    """
    found = at_size(load_encoder(encoder), None, patch_size)
    size = image_size or usual_image_side(found)
    return build_backbone(
        found,
        image_size=size,
        window_size=check_sizes(found.spec, size, window_size),
        out_channels=out_channels,
        drop_path=recipe(found.spec).drop_path if drop_path is None else drop_path,
        use_rel_pos=use_rel_pos,
    )


def build_backbone(
    encoder: Encoder,
    *,
    image_size: int,
    window_size: int,
    out_channels: int,
    drop_path: float,
    use_rel_pos: bool,
    scales: Sequence[float] | None = None,
) -> Any:
    """As ``vit_backbone``, with an encoder's weights; ``image_size`` is the side of a square, ``scales`` the pyramid's."""
    _require()
    usual = pyramid_scales(encoder.spec.patch_size)
    scales, window = tuple(usual if scales is None else scales), window_size
    found = square(encoder, image_size)
    net = _vit(found.spec, image_size, window, drop_path, use_rel_pos)
    loaded = net.load_state_dict(named_weights(found), strict=False)
    wrong = [*loaded.unexpected_keys, *(name for name in loaded.missing_keys if ".rel_pos_" not in name)]
    if wrong:
        raise CheckpointError(
            f"the encoder's tensors are not those of detectron2's ViT: {', '.join(wrong[:5])} differ."
        )
    coarsest = int(found.spec.patch_size / scales[-1])
    return _padded_pyramid()(
        net,
        in_feature="last_feat",
        out_channels=out_channels,
        scale_factors=scales,
        top_block=_pool_after(f"p{coarsest.bit_length() - 1}"),
        norm="LN",
        multiple=math.lcm(found.spec.patch_size * max(1, window), coarsest),
    )


def pixel_settings(encoder: str | Path) -> dict[str, Any]:
    """``pixel_mean``, ``pixel_std`` and ``input_format`` of detectron2's models, from an encoder file's contract."""
    preprocessing = load_encoder(encoder).preprocessing
    return {
        "pixel_mean": float32_numbers(preprocessing.pixel_mean),
        "pixel_std": float32_numbers(preprocessing.pixel_std),
        "input_format": image_format(preprocessing),
    }


def add_maelift_config(cfg: Any) -> None:
    """Add the node MODEL.MAELIFT to a yacs config, and make ``build_maelift_vit_fpn_backbone`` known to detectron2.

    ENCODER is the encoder file; IMAGE_SIZE, PATCH_SIZE, OUT_CHANNELS and USE_REL_POS are as in ``vit_backbone``, 0 standing
    for the default; so are WINDOW_SIZE and DROP_PATH, of which -1 is the default.
    """
    from detectron2.config import CfgNode

    register()
    cfg.MODEL.MAELIFT = CfgNode(
        {
            "ENCODER": "",
            "IMAGE_SIZE": 0,
            "PATCH_SIZE": 0,
            "WINDOW_SIZE": -1,
            "OUT_CHANNELS": 256,
            "DROP_PATH": -1.0,
            "USE_REL_POS": True,
        }
    )


def use_encoder(cfg: Any, encoder: str | Path) -> None:
    """Set what a yacs config of a two-stage detector needs for an encoder file, after ``add_maelift_config``.

    The backbone and its file, no other weights, how images are read and normalised, and the pyramid's levels with their
    anchors; keys of MODEL.MAELIFT are kept, of which PATCH_SIZE must be set before.
    """
    found = at_size(load_encoder(encoder), None, cfg.MODEL.MAELIFT.PATCH_SIZE or None)
    settings = pixel_settings(encoder)
    cfg.MODEL.MAELIFT.ENCODER, cfg.MODEL.WEIGHTS = str(encoder), ""
    cfg.MODEL.BACKBONE.NAME = build_maelift_vit_fpn_backbone.__name__
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = settings["pixel_mean"], settings["pixel_std"]
    cfg.INPUT.FORMAT = settings["input_format"] or cfg.INPUT.FORMAT
    strides = [int(found.spec.patch_size / scale) for scale in pyramid_scales(found.spec.patch_size)]
    levels = [f"p{stride.bit_length() - 1}" for stride in [*strides, 2 * strides[-1]]]
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = levels, levels[:-1]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * stride] for stride in [*strides, 2 * strides[-1]]]


def register() -> None:
    """Put ``build_maelift_vit_fpn_backbone`` into detectron2's registry of backbones; a second call does nothing."""
    _require()
    from detectron2.modeling import BACKBONE_REGISTRY

    if build_maelift_vit_fpn_backbone.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(build_maelift_vit_fpn_backbone)


def build_maelift_vit_fpn_backbone(cfg: Any, input_shape: Any) -> Any:
    """``vit_backbone`` of a yacs config's MODEL.MAELIFT; raises ConfigError where the rest of the config doesn't fit it."""
    node = cfg.MODEL.MAELIFT
    if not node.ENCODER:
        raise ConfigError("MODEL.MAELIFT.ENCODER", node.ENCODER, "the path of an encoder file")
    check_yacs_pixels(cfg, load_encoder(node.ENCODER).preprocessing)
    backbone = vit_backbone(
        node.ENCODER,
        image_size=node.IMAGE_SIZE or None,
        patch_size=node.PATCH_SIZE or None,
        window_size=None if node.WINDOW_SIZE < 0 else node.WINDOW_SIZE,
        out_channels=node.OUT_CHANNELS,
        drop_path=None if node.DROP_PATH < 0 else node.DROP_PATH,
        use_rel_pos=node.USE_REL_POS,
    )
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        check_yacs_levels(cfg, {name: shape.stride for name, shape in backbone.output_shape().items()})
    return backbone


def check_yacs_pixels(cfg: Any, preprocessing: Preprocessing) -> None:
    """Raise ConfigError unless a yacs config reads and normalises images as the encoder's contract says."""
    for key, given, wanted in (
        ("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, preprocessing.pixel_mean),
        ("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, preprocessing.pixel_std),
    ):
        if not _close(given, wanted):
            raise ConfigError(key, list(given), f"{float32_numbers(wanted)}, which the encoder was trained with")
    readable = image_format(preprocessing)
    if readable is not None and readable != cfg.INPUT.FORMAT:
        raise ConfigError("INPUT.FORMAT", cfg.INPUT.FORMAT, f'"{readable}", in which order the encoder takes channels')


def check_yacs_levels(cfg: Any, strides: Mapping[str, int]) -> None:
    """Raise ConfigError unless the heads of a yacs config take levels that the backbone has (names to strides)."""
    sizes = [[8 * stride] for stride in strides.values()]
    for key, names, wanted in (
        ("MODEL.RPN.IN_FEATURES", cfg.MODEL.RPN.IN_FEATURES, list(strides)),
        ("MODEL.ROI_HEADS.IN_FEATURES", cfg.MODEL.ROI_HEADS.IN_FEATURES, list(strides)[:-1]),
    ):
        if not set(names) <= set(strides):
            advice = f"Usual is {wanted}, with MODEL.ANCHOR_GENERATOR.SIZES {sizes}."
            raise ConfigError(key, list(names), f"levels of the encoder's pyramid, {', '.join(strides)}", advice)


def _vit(spec: EncoderSpec, image_size: int, window: int, drop_path: float, use_rel_pos: bool) -> Any:
    from detectron2.modeling import ViT

    with quiet():
        return ViT(
            img_size=image_size,
            patch_size=spec.patch_size,
            in_chans=spec.channels,
            embed_dim=spec.embed_dim,
            depth=spec.depth,
            num_heads=spec.num_heads,
            mlp_ratio=spec.mlp_ratio,
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=spec.norm_eps),
            act_layer=ACTIVATIONS[spec.act],
            window_size=window,
            window_block_indexes=windowed_blocks(spec.depth) if window else [],
            use_rel_pos=use_rel_pos,
            pretrain_img_size=spec.image_size[0],
            pretrain_use_cls_token=spec.class_token,
            out_feature="last_feat",
        )


def _pool_after(level: str) -> Any:
    """detectron2's extra level after another than the "p5" that it is written for."""
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    block = LastLevelMaxPool()
    block.in_feature = level
    return block


@cache
def _padded_pyramid() -> Callable[..., Any]:
    """The class of ``vit_backbone``, made where detectron2 is imported."""
    from detectron2.modeling import SimpleFeaturePyramid

    class PaddedFeaturePyramid(SimpleFeaturePyramid):  # type: ignore[misc]
        """SimpleFeaturePyramid for images of any size, padded to multiples of ``multiple`` pixels.

        detectron2's own says so under a misspelt key, which nobody reads, and loses borders; with a square to pad to, it
        cuts larger images.
        """

        def __init__(self, net: Any, *, multiple: int, **settings: Any) -> None:
            super().__init__(net, **settings)
            self._size_divisibility = multiple

        @property
        def size_divisibility(self) -> int:
            return self._size_divisibility

    return PaddedFeaturePyramid
