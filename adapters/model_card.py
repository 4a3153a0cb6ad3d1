"""The model card of an encoder on the Hugging Face Hub: what it is, how it was made, what a suite says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import show
from ..core.models.backbone import Backbone, BackboneSpec
from ..core.models.encoder_file import EncoderFile
from ..core.models.preprocessing import Preprocessing
from ..core.models.timm_spec import TimmSpec
from ..core.text_templates import text_template
from ..core.yaml_files import to_dict
from ..version import __version__

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
TASK = "image-feature-extraction"
"""The Hub's name of what an encoder does."""
LICENCES = (
    "apache-2.0 mit openrail bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 afl-3.0 artistic-2.0 bsl-1.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gpl gpl-2.0 "
    "gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc mpl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 postgresql unlicense wtfpl zlib odc-by "
    "pddl"
)
"""Licences that the Hub has a name for; others are stated as "other", with their own name beside."""


@dataclass(frozen=True)
class SuiteVerdicts:
    """What a finished suite says: its verdicts and warnings, each a sentence with its figures.

    ``contained``: whether the encoder is one of those that the suite saved in its folder.
    """

    title: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    contained: bool


@dataclass(frozen=True)
class CardContent:
    """What stands in a card besides the encoder file's own contract.

    ``size``: bytes of the encoder file; ``certificate``: the line of timm's; None where nothing for timm is uploaded; ``notes``:
    what to know of the values of images; ``verdicts``: a suite's; None where no report was given.
    """

    repo: str
    size: int
    certificate: str | None
    notes: tuple[str, ...] = ()
    verdicts: SuiteVerdicts | None = field(default=None)


def card_text(file: EncoderFile[Backbone], content: CardContent) -> str:
    """The card: YAML for the Hub, then Markdown for a reader. Texts of the file and the suite are escaped for both."""
    settings = yaml_text(to_dict(file.provenance.config)) if file.provenance.config else ""
    return text_template(TEMPLATE, md=markdown).render(
        header=yaml_text(header(file, content)),
        content=content,
        provenance=file.provenance,
        hash=file.content_hash,
        shape=shape_text(file.encoder.spec),
        parameters=sum(parameter.numel() for parameter in file.encoder.parameters()),
        images=_image_rows(file.encoder.preprocessing),
        settings=settings,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0)),
        plain=not isinstance(file.encoder.spec, TimmSpec),
        version=__version__,
    )


def header(file: EncoderFile[Backbone], content: CardContent) -> dict[str, Any]:
    """The card's metadata, as the Hub reads them: licence, library, task, tags."""
    licence = file.provenance.licence
    stated: dict[str, Any] = {}
    if licence is not None:
        known = licence.strip().lower()
        slug = re.sub(r"[^a-z0-9.]+", "-", known).strip("-.")[:100] or "unnamed"  # as the Hub writes names of licences
        stated = {"license": known} if known in LICENCES.split() else {"license": "other", "license_name": slug}
    return {
        **stated,
        "library_name": "maelift" if content.certificate is None else "timm",
        "pipeline_tag": TASK,
        "tags": ["masked-autoencoder", "maelift", TASK, *(() if content.certificate is None else ("timm",))],
    }


def yaml_text(content: dict[str, Any]) -> str:
    """A mapping as YAML, whatever its texts hold."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


def markdown(text: object) -> str:
    """A text as it reads in Markdown on one line, in a table too: what Markdown or HTML would act on is escaped."""
    line = re.sub(r"([\\`*_\[\]<>|~&#$])", r"\\\1", " ".join(str(text).split()))
    line = re.sub(r"^(\d+)(?=[.)](\s|$))", r"\1\\", line)  # else a list's number
    return re.sub(r"^(?=[-+=])", r"\\", line)


def shape_text(spec: BackboneSpec) -> str:
    """The shape of an encoder in a line."""
    size = (
        f"{spec.image_size[0]}×{spec.image_size[1]} pixels, {spec.channels} channel{'' if spec.channels == 1 else 's'}"
    )
    if isinstance(spec, TimmSpec):
        return f"timm's {spec.architecture}, {size}"
    token = "a" if spec.class_token else "no"
    return (
        f"plain ViT, {size}, patch {spec.patch_size}, width {spec.embed_dim}, {spec.depth} blocks, {spec.num_heads} heads, "
        f"{token} class token"
    )


def images_text(preprocessing: Preprocessing) -> str:
    """How images are prepared, in a line."""
    return "; ".join(f"{label} {text}" for label, text in _image_rows(preprocessing))


def _image_rows(preprocessing: Preprocessing) -> list[tuple[str, str]]:
    low, high = preprocessing.value_range
    rows = [
        ("channels", ", ".join(preprocessing.channel_names)),
        ("stored values", f"{low:g} to {high:g}, scaled to 0 to 1"),
        ("mean", ", ".join(f"{value:.6g}" for value in preprocessing.mean)),
        ("standard deviation", ", ".join(f"{value:.6g}" for value in preprocessing.std)),
        ("resized by", preprocessing.interpolation),
    ]
    usual = Preprocessing.default(len(preprocessing.mean))
    more = ("background", "bands", "nodata", "unscale", "window", "frame", "slice_axis", "slice_step", "slice_content")
    rows += [(key, show(value)) for key in more if (value := getattr(preprocessing, key)) != getattr(usual, key)]
    return rows
