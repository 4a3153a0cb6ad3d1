"""The command ``maelift import``: converts weights of other libraries into an encoder file with its contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.data.transforms import Interpolation
from ..core.dry_run import Plan
from ..core.errors import ConfigError, MaeliftError, show
from ..core.files import output_folder
from ..core.models.backbone import Backbone, BackboneSpec
from ..core.models.encoder_file import EncoderFile, Provenance, read_backbone, save_encoder
from ..core.models.encoder_spec import Activation
from ..core.models.preprocessing import Preprocessing
from ..core.models.timm_spec import TimmSpec
from ..core.models.weight_files import read_json, weights_file
from ..version import __version__
from .packaged_weights import PACKAGED, from_package
from .published import from_timm, timm_name
from .timm_weights import from_timm_file


@dataclass(frozen=True)
class ImportConfig:
    """Make an encoder file of other weights, or change the preprocessing and licence that an encoder file states."""

    weights: str
    """weights of MAE, timm, transformers, torchvision, mmseg, mmpretrain or detectron2 (.pth, .safetensors), their folder,
    timm:NAME to fetch them, or an encoder file"""
    out: str
    """encoder file to be written (.safetensors); it must not be there yet"""
    num_heads: int | None = None
    """attention heads, which can't be read off tensors; null: from a file beside the weights, else the usual for the width"""
    norm_eps: float | None = None
    """epsilon of the LayerNorms, which can't be read off tensors; null: from a file beside the weights, else 1e-6"""
    image_size: int | tuple[int, int] | None = None
    """pixels that the positions were trained for, one side or [height,width]; null: from a file beside them, else square"""
    act: Activation | None = None
    """activation of the MLPs, which can't be read off tensors; null: from a file beside the weights, else the exact GELU"""
    architecture: str | None = None
    """timm's name of the model that the weights are of, whose heads, epsilon and activation are then taken; null: unknown"""
    weights_key: str | None = None
    """which of several states or modules of a checkpoint, as model_ema or teacher; null: the usual one, which is reported"""
    channel_names: tuple[str, ...] | None = None
    """names of the channels, in the order that the weights expect; null: red, green, blue for three"""
    mean: tuple[float, ...] | None = None
    """mean of each channel, values scaled to 0..1; null: from a file beside the weights, else ImageNet's for three channels"""
    std: tuple[float, ...] | None = None
    """deviation of each channel, values scaled to 0..1; null: as for mean"""
    value_range: tuple[float, float] | None = None
    """stored values that become 0 and 1; null: [0,255]"""
    interpolation: Interpolation | None = None
    """how images are resized; null: from a file beside the weights, else bicubic"""
    parent: str | None = None
    """what the weights are, to be recorded: a name or an address; null: the name of their file"""
    licence: str | None = None
    """licence of the weights, to be recorded; null: from a file beside them, else unknown"""
    drop_relative_positions: bool = False
    """leave out relative positions of attention, which the encoder can't have; its features are then not the model's"""

    def __post_init__(self) -> None:
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ConfigError("value_range", list(self.value_range), "[lowest,highest], the lowest first")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise ConfigError("std", list(self.std), "positive numbers, one a channel")
        if self.norm_eps is not None and self.norm_eps <= 0:
            raise ConfigError("norm_eps", self.norm_eps, "a positive number")
        if Path(self.out).suffix != ".safetensors":
            raise ConfigError("out", self.out, "a file name that ends in .safetensors")


@dataclass(frozen=True)
class ImportResult:
    """What was made of which weights.

    ``images``: where the preprocessing comes from; ``notes``: what was left out, assumed or not known.
    """

    path: Path
    source: str
    spec: BackboneSpec
    preprocessing: Preprocessing
    images: str
    provenance: Provenance
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Shape, preprocessing, licence, and what to know of them."""
        rows = _rows(self.source, self.spec, self.preprocessing, self.images, self.provenance)
        width = max(len(label) for label, _ in rows)
        lines = [f"{self.path}:", *(f"  {label:<{width}}  {text}" for label, text in rows)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def import_encoder(config: ImportConfig) -> ImportResult:
    """Read the weights and write them as an encoder file, all of them or nothing.

    Raises MaeliftError: no weights, names that are not understood, keys that don't fit them, or a file in the way.
    """
    result, file = _prepare(config)
    output_folder(result.path.parent)
    save_encoder(file.encoder, result.path, result.provenance)
    return result


def plan(config: ImportConfig) -> Plan:
    """What ``maelift import`` would do."""
    result, file = _prepare(config)
    rows = _rows(result.source, result.spec, result.preprocessing, result.images, result.provenance)
    notes = [("note", note) for note in result.notes]
    return Plan(
        (*rows, *notes, ("writes", config.out)),
        parameters=sum(parameter.numel() for parameter in file.encoder.parameters()),
    )


def _prepare(config: ImportConfig) -> tuple[ImportResult, EncoderFile[Backbone]]:
    """What would be written, and the encoder, with its preprocessing; nothing is written yet."""
    target = Path(config.out)
    if target.exists() or target.is_symlink():
        raise MaeliftError(f"out={target}: is there already. Choose another name, or remove this file first.")
    name = config.weights if config.weights in PACKAGED else timm_name(config.weights)
    if name is not None:
        return _published(config, name, target)
    path = weights_file(Path(config.weights))
    file = read_backbone(
        path,
        num_heads=config.num_heads,
        norm_eps=config.norm_eps,
        image_size=config.image_size,
        act=config.act,
        architecture=config.architecture,
        weights_key=config.weights_key,
        drop_relative_positions=config.drop_relative_positions,
        preprocessing=_given_entirely(config),
        log=False,
    )
    if not file.foreign:
        _refuse_shape_keys(config, "an encoder file, which says it itself")
    encoder = file.encoder
    encoder.preprocessing, images = preprocessing_of(config, file, path)
    provenance = _provenance(config, file, path)
    source = f"{file.provenance.method} weights" if file.foreign else "an encoder file of maelift"
    notes = (*file.notes, *file.assumed)
    return ImportResult(target, source, encoder.spec, encoder.preprocessing, images, provenance, notes), file


def _published(config: ImportConfig, name: str, target: Path) -> tuple[ImportResult, EncoderFile[Backbone]]:
    """Weights of timm by a name, fetched or in a file, with timm's own facts."""
    _refuse_shape_keys(config, f"a name of weights that say it themselves; give a file to say it: {name}")
    architecture, _, path = name.partition("@")
    if name in PACKAGED:
        file = from_package(name, "weights")
    else:
        file = from_timm_file(architecture, path, "weights") if path else from_timm(name, "weights")
    encoder = file.encoder
    encoder.preprocessing, images = _changed(config, encoder.preprocessing, "as timm says", encoder.spec.channels)
    provenance = replace(
        file.provenance,
        config={"notes": list(file.notes)} if file.notes else {},
        parent=config.parent or file.provenance.parent,
        licence=config.licence or file.provenance.licence,
        tool_version=__version__,
    )
    source = f"the package {PACKAGED[name].distribution}" if name in PACKAGED else f"timm's {name}"
    notes = (*file.notes, *file.assumed)
    return ImportResult(target, source, encoder.spec, encoder.preprocessing, images, provenance, notes), file


def preprocessing_of(config: ImportConfig, file: EncoderFile[Backbone], path: Path) -> tuple[Preprocessing, str]:
    """How images are prepared, and the source: the keys given, else the encoder file, else a file beside the weights."""
    channels = file.encoder.spec.channels
    if file.foreign:
        base, source = preprocessing_beside(path, channels)
    else:
        base, source = file.encoder.preprocessing, "as the file had it"
    return _changed(config, base, source, channels)


def _changed(config: ImportConfig, base: Preprocessing, source: str, channels: int) -> tuple[Preprocessing, str]:
    """A preprocessing with the given keys replaced, and the source of each part."""
    changes: dict[str, Any] = {
        key: getattr(config, key)
        for key in ("channel_names", "mean", "std", "value_range", "interpolation")
        if getattr(config, key) is not None
    }
    for key in ("channel_names", "mean", "std"):
        if key in changes and len(changes[key]) != channels:
            raise ConfigError(key, list(changes[key]), f"one a channel; the weights have {channels}")
    if not changes:
        return base, source
    given = f"{', '.join(changes)} as given"
    if "value_range" in changes:
        low, high = changes["value_range"]
        changes["bit_depth"] = max(8, int(high - low).bit_length())
    complete = {"mean", "std"} <= set(changes)
    return replace(base, **changes), given if complete else f"{given}; the rest: {source}"


def preprocessing_beside(path: Path, channels: int) -> tuple[Preprocessing, str]:
    """What transformers, timm or an export wrote beside weights, where it is for as many channels; else the usual."""
    usual = Preprocessing.default(channels)
    for name, read in _BESIDE.items():
        found = read(read_json(path.with_name(name)))
        mean, std = found.get("mean"), found.get("std")
        if mean is None or std is None or not len(mean) == len(std) == channels:
            continue
        return replace(usual, **found), f"from {name} beside the weights"
    statistics = "ImageNet's mean and deviation" if channels == 3 else "a mean and deviation of 0.5"
    return (
        usual,
        f"assumed: {statistics}, since nothing beside the weights says them; give mean and std if they are others",
    )


def _of_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"mean": _numbers(content.get("image_mean")), "std": _numbers(content.get("image_std"))}
    if content.get("do_normalize") is False:
        found |= {"mean": (0.0,) * len(found["mean"] or ()), "std": (1.0,) * len(found["std"] or ())}
    factor = content.get("rescale_factor")
    if content.get("do_rescale") is False:
        found["value_range"] = (0.0, 1.0)
    elif isinstance(factor, int | float) and factor > 0:
        found["value_range"] = (0.0, float(round(1 / factor, 6)))
    if (resample := {0: "nearest", 2: "bilinear"}.get(content.get("resample", 3))) is not None:
        found["interpolation"] = resample
    return found


def _of_timm(content: Mapping[str, Any]) -> dict[str, Any]:
    settings = content.get("pretrained_cfg") or (content if "architecture" in content else {})
    found: dict[str, Any] = {"mean": _numbers(settings.get("mean")), "std": _numbers(settings.get("std"))}
    if settings.get("interpolation") in ("bilinear", "nearest"):
        found["interpolation"] = settings["interpolation"]
    return found


def _of_torchvision(content: Mapping[str, Any]) -> dict[str, Any]:
    settings = content.get("transform") or {}
    return {"mean": _numbers(settings.get("image_mean")), "std": _numbers(settings.get("image_std"))}


_BESIDE: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "preprocessor_config.json": _of_transformers,
    "config.json": _of_timm,
    "backbone.json": _of_torchvision,
}
"""Files beside weights that define how images are prepared, and their readers."""


def _numbers(value: object) -> tuple[float, ...] | None:
    if isinstance(value, list) and value and all(isinstance(number, int | float) for number in value):
        return tuple(float(number) for number in value)
    return None


def _given_entirely(config: ImportConfig) -> Preprocessing | None:
    """The preprocessing that the keys give, for an encoder file that has none."""
    if config.mean is None or config.std is None:
        return None
    if len(config.mean) != len(config.std):
        raise ConfigError("std", list(config.std), f"as many numbers as mean has, {len(config.mean)}")
    return replace(Preprocessing.default(len(config.mean)), mean=config.mean, std=config.std)


def licence_beside(path: Path) -> str | None:
    """The licence that timm's ``config.json`` beside weights states."""
    settings = read_json(path.with_name("config.json")).get("pretrained_cfg")
    stated = settings.get("license") if isinstance(settings, Mapping) else None
    return stated if isinstance(stated, str) else None


def _refuse_shape_keys(config: ImportConfig, what: str) -> None:
    """Raise ConfigError for shape keys where the weights define their own shape: encoder files, named weights."""
    for key in ("num_heads", "norm_eps", "image_size", "act", "architecture", "weights_key"):
        if getattr(config, key) is not None:
            raise ConfigError(key, getattr(config, key), f"nothing: {config.weights} is {what}")


def _provenance(config: ImportConfig, file: EncoderFile[Backbone], path: Path) -> Provenance:
    if not file.foreign:
        changes = {key: getattr(config, key) for key in ("parent", "licence") if getattr(config, key) is not None}
        return replace(file.provenance, **changes)
    inside = Path(config.weights).resolve().name if Path(config.weights).is_dir() else ""
    return Provenance(
        method=file.provenance.method,
        config={"notes": list(file.notes)} if file.notes else {},
        parent=config.parent or (f"{inside}/{path.name}" if inside else path.name),
        licence=config.licence or licence_beside(path),
        tool_version=__version__,
    )


def _rows(
    source: str, spec: BackboneSpec, preprocessing: Preprocessing, images: str, provenance: Provenance
) -> list[tuple[str, str]]:
    low, high = preprocessing.value_range
    mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (preprocessing.mean, preprocessing.std))
    return [
        ("from", f"{source} ({provenance.parent})" if provenance.parent else source),
        ("shape", _shape_text(spec)),
        ("channels", f"{', '.join(preprocessing.channel_names)}; {low:g} to {high:g}; {preprocessing.interpolation}"),
        ("normalised", f"mean {mean}; deviation {std}"),
        ("", f"({images})"),
        ("licence", provenance.licence or "unknown; give licence=... if you know it"),
    ]


def _shape_text(spec: BackboneSpec) -> str:
    size = f"{spec.image_size[0]}×{spec.image_size[1]} pixels"
    if isinstance(spec, TimmSpec):
        arguments = "".join(f", {name}={show(value)}" for name, value in spec.arguments.items())
        return f"{size}, timm's {spec.architecture}{arguments}"
    shape = f"dim {spec.embed_dim}, depth {spec.depth}, {spec.num_heads} heads, epsilon {spec.norm_eps:g}"
    shape += "" if spec.act == "gelu" else f", {spec.act}"
    return f"{size}, patch {spec.patch_size}, {shape}, {'a' if spec.class_token else 'no'} class token"
