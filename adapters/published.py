"""Published weights that timm downloads by name, with the metadata that timm has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.config_keys import nearest_names
from ..core.errors import CheckpointError, ConfigError
from ..core.models.backbone import Backbone
from ..core.models.config_hints import hints_of_model, hints_of_timm
from ..core.models.contract import content_hash, sealed_hash
from ..core.models.convert_weights import convert_encoder
from ..core.models.encoder_file import EncoderFile, Provenance
from ..core.models.hub_files import cached_only_without_network
from ..core.models.state_dicts import SelectedState
from ..core.models.timm_backbone import TimmBackbone
from ..core.models.timm_models import create_network, preprocessing_of, settings_of
from ..core.models.timm_spec import SET_HERE, TIMM, TimmSpec

HUB = "hf-hub:"
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")


def timm_name(source: str) -> str | None:
    """The name of timm's weights that a source is: with timm: or hf-hub: before it, or alone where no such file is there.

    NAME@FILE names an architecture of timm and a file of its weights.
    """
    if source.startswith(TIMM):
        return source.removeprefix(TIMM)
    if source.startswith(HUB):
        return source
    if "/" in source or Path(source).exists() or Path(source).suffix in _WEIGHTS:
        return None
    import timm

    return source if timm.is_model(source.split(".")[0]) else None


def check_name(name: str, key: str) -> None:
    """Raise ConfigError, with the nearest names, for an architecture or a tag of weights that timm doesn't have."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = nearest_names(architecture, timm.list_models())
        advice = f"Did you mean {' or '.join(close)}?" if close else "timm.list_models() in Python lists them."
        raise ConfigError(key, f"{TIMM}{name}", f"the name of a model of timm {timm.__version__}", advice)
    if tag and tag not in tags_of(architecture):
        raise ConfigError(key, f"{TIMM}{name}", f"weights that timm has of {architecture}", _tags_text(architecture))


def tags_of(architecture: str) -> tuple[str, ...]:
    """The tags of the published weights of an architecture."""
    import timm

    return tuple(name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*"))


def _tags_text(architecture: str) -> str:
    tags = tags_of(architecture)
    if not tags:
        return f"It has none; init=scratch model={TIMM}{architecture} begins with random weights."
    return f"There are {', '.join(f'{architecture}.{tag}' for tag in tags)}."


def from_timm(name: str, key: str, *, weights: bool = True) -> EncoderFile[Backbone]:
    """Weights that timm fetches from where it publishes them; raises CheckpointError when it can't.

    ``name``: timm's, or hf-hub:NAME. ``weights``: False for random ones, for which nothing is fetched. A plain ViT becomes an
    encoder of ours, any other architecture a ``TimmBackbone``.
    """
    import timm

    if name.startswith(HUB):
        return _from_hub(name, key)
    check_name(name, key)
    spec = spec_of(name.partition(".")[0], settings_of(name))
    if not weights:
        file = backbone_file(create_network(spec), spec, name, settings_of(name))
        return replace(file, content_hash=sealed_hash({"timm": name}, {}))
    try:
        with cached_only_without_network():
            net = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the network, the hub and timm each have errors of their own
        if not settings_of(name).get("url") and not settings_of(name).get("hf_hub_id"):
            advice = _tags_text(spec.architecture)
            raise ConfigError(key, f"{TIMM}{name}", "a name with published weights", advice) from error
        raise _not_fetched(name, key, settings_of(name), error) from error
    return backbone_file(net, spec, name, net.pretrained_cfg)


def named_spec(name: str) -> TimmSpec | None:
    """The spec of the model of timm of this name; None for a plain ViT, which becomes an encoder of ours."""
    check_name(name, "encoder")
    architecture = name.partition(".")[0]
    return _unless_plain(architecture, settings_of(name), {})


def hub_spec(name: str) -> TimmSpec | None:
    """The spec of a model on the Hugging Face hub; None for a plain ViT, and where the hub does not answer."""
    from timm.models import load_model_config_from_hf

    try:
        with cached_only_without_network():
            settings, architecture, arguments = load_model_config_from_hf(name.removeprefix(HUB))
    except Exception:  # it is an error where the weights are read
        return None
    return _unless_plain(architecture, settings, arguments or {})


def _unless_plain(architecture: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> TimmSpec | None:
    """The spec of a model of timm; None for a plain ViT."""
    if hints_of_timm(architecture, arguments, "it").refusal is None:
        return None
    return spec_of(architecture, settings, arguments)


def _from_hub(name: str, key: str) -> EncoderFile[Backbone]:
    """Weights that anyone has published for timm on the Hugging Face hub, by hf-hub:OWNER/NAME."""
    import timm
    from timm.models import load_model_config_from_hf

    try:
        with cached_only_without_network():
            settings, architecture, arguments = load_model_config_from_hf(name.removeprefix(HUB))
            net = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise _not_fetched(name, key, {"hf_hub_id": name.removeprefix(HUB)}, error) from error
    return backbone_file(net, spec_of(architecture, settings, arguments or {}), name, settings)


def _not_fetched(name: str, key: str, settings: Mapping[str, Any], error: Exception) -> CheckpointError:
    """The error for weights that can't be fetched, with where they are, and what to do with them."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, LocalEntryNotFoundError):
        reason = "there is no network, or the hub does not answer, and they are not in its cache"
    hub, url = settings.get("hf_hub_id"), settings.get("url")
    given = name if name.startswith(HUB) else f"{TIMM}{name}"
    if hub:
        where = f"https://huggingface.co/{hub}: hf download {hub} --local-dir FOLDER"
        then = f"{key}=FOLDER" if name.startswith(HUB) else f"{key}={TIMM}{name}@FOLDER/model.safetensors"
    else:
        where, then = f"{url}", f"{key}={TIMM}{name}@FILE"
    return CheckpointError(
        f"{key}={given}: timm could not give these weights ({reason}). Where there is a network, fetch them from {where}; "
        f"then give {then}"
    )


def spec_of(architecture: str, settings: Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> TimmSpec:
    """The spec of timm's model with these ``pretrained_cfg`` and arguments."""
    given = dict(arguments or {})
    channels, *size = settings.get("input_size") or (3, 224, 224)
    if (image_size := given.get("img_size")) is not None:
        size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    return TimmSpec(
        architecture,
        (int(size[0]), int(size[1])),
        int(given.get("in_chans", channels)),
        {name: value for name, value in given.items() if name not in SET_HERE},
    )


def backbone_file(
    net: Any, spec: TimmSpec, name: str, settings: Mapping[str, Any], parent: str | None = None
) -> EncoderFile[Backbone]:
    """A model of timm as an encoder file: a plain ViT as ours, where it represents the model exactly, else as it is.

    ``parent``: what the weights are, where they are not timm's of this ``name``.
    """
    usual, source = preprocessing_of(settings, spec.channels), name if name.startswith(HUB) else f"{TIMM}{name}"
    provenance = Provenance(method=f"timm {name}", parent=parent or source, licence=settings.get("license"))
    hints = replace(hints_of_model(net, "timm"), sources=("timm",))
    if not hints.refusal:
        try:
            plain = convert_encoder(SelectedState(dict(net.state_dict())), source, hints=hints, preprocessing=usual)
            return replace(EncoderFile.of_converted(plain, source), provenance=provenance)
        except CheckpointError:
            pass  # it has what our encoder doesn't represent
    backbone = TimmBackbone(spec, preprocessing=usual, net=net.eval())
    return EncoderFile(backbone, provenance, content_hash(backbone.file_state()), foreign=True)
