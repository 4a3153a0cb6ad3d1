"""The command ``maelift pull``: an encoder file from the Hugging Face Hub, its hashes checked."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..core.dry_run import Plan
from ..core.errors import MaeliftError
from ..core.files import atomic_path, output_folder
from ..core.models.backbone import Backbone
from ..core.models.encoder_file import EncoderFile, read_backbone
from ..core.models.hub_files import fetch_encoder, hub_host
from ..core.models.hub_names import HubName
from .hub_config import PullConfig
from .model_card import images_text, shape_text


@dataclass(frozen=True)
class PullResult:
    """The encoder file at ``path``; ``written``: it wasn't there before."""

    path: Path
    file: EncoderFile[Backbone]
    written: bool

    def summary(self) -> str:
        """Where it is from, what it is, and how images are prepared for it."""
        preprocessing, provenance = self.file.encoder.preprocessing, self.file.provenance
        rows = [
            ("from", self.file.hub_name),
            ("shape", shape_text(self.file.encoder.spec)),
            ("images", images_text(preprocessing)),
            ("made by", provenance.method),
            ("licence", provenance.licence or "not stated"),
            ("content hash", f"{self.file.content_hash} (checked)"),
        ]
        there = "" if self.written else " is there already, with the same content"
        return "\n".join([f"{self.path}{there}:", *(f"  {label:<12}  {text}" for label, text in rows)])


def pull(config: PullConfig) -> PullResult:
    """Fetch the encoder file, check its hashes, and write it to ``out``, byte by byte as it is on the Hub.

    Raises CheckpointError for what can't be fetched or isn't an encoder file, MaeliftError for another file at ``out``.
    """
    target = Path(config.out)
    there = target.exists() or target.is_symlink()
    source = fetch_encoder(HubName.parse(config.name, "name"))
    file = read_backbone(source)
    if there:
        if not _is_same(target, file):
            raise MaeliftError(f"out={target}: is there already. Choose another name, or remove this file first.")
        return PullResult(target, file, written=False)
    output_folder(target.parent)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return PullResult(target, file, written=True)


def plan(config: PullConfig) -> Plan:
    """What ``maelift pull`` would do; nothing is fetched."""
    name = HubName.parse(config.name, "name")
    return Plan((("fetches", f"{name} from {hub_host()}"), ("checks", "its hashes"), ("writes", config.out)))


def _is_same(target: Path, file: EncoderFile[Backbone]) -> bool:
    """Whether an encoder file is at ``target`` with the same content."""
    try:
        return read_backbone(target, log=False).content_hash == file.content_hash
    except MaeliftError:
        return False
