"""The command ``maelift export``: writes an encoder for another framework; its table lists all adapters.

To add an adapter: write a module with a configuration derived from ExportConfig, ``export`` and ``certify_folder``
(timm.py is the shortest to read); add its row to ``ADAPTERS``, the framework's row to ``core.optional_imports.FRAMEWORKS``
under the same name, and ``docs/NAME.md``. Keys, ``-h``, the API and certify follow from the table. A test names the texts
that list the frameworks.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from ..core.config import raw_value, resolve
from ..core.config_keys import KeySection, nearest, section
from ..core.dry_run import Plan
from ..core.errors import CheckpointError, ConfigError, MaeliftError, show
from ..core.files import sync_tree
from ..core.models.encoder_file import EncoderFile, read_encoder
from ..core.models.preprocessing import Preprocessing
from ..core.notebook import Fact, facts_table
from ..core.terminal import quoted
from .bundle import Bundle, ExportConfig
from .certificate import CERTIFICATE_FILE

logger = logging.getLogger("maelift")


@dataclass(frozen=True)
class Adapter:
    """A row of the table: the modules of this folder for one framework.

    ``exporter`` has ``export(file, folder, config) -> Bundle`` and ``keys``, the class of its configuration. ``certifier`` has
    ``certify_folder(path, file)`` for what an export wrote, or ``certify_config(config, file, opts, step_seconds=...)`` for
    the framework's own configs; both give a Certificate.
    """

    exporter: str
    keys: str
    certifier: str


ADAPTERS = {
    "timm": Adapter("timm", "TimmExport", "timm"),
    "transformers": Adapter("transformers", "TransformersExport", "transformers"),
    "torchvision": Adapter("torchvision", "TorchvisionExport", "torchvision"),
    "detectron2": Adapter("detectron2_export", "Detectron2Export", "detectron2_certify"),
    "mmseg": Adapter("mmseg", "MmsegExport", "mmseg_certify"),
    "onnx": Adapter("onnx", "OnnxExport", "onnx"),
}
"""The adapters by the name that ``to`` and ``core.optional_imports.FRAMEWORKS`` have for the framework."""


class ExportCommand:
    """The keys of ``maelift export``, which depend on ``to``."""

    @staticmethod
    def resolve(overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> ExportConfig:
        """The configuration for the framework that ``to`` names, of that adapter's own class."""
        name = raw_value("to", overrides, file)
        if name is None:
            raise MaeliftError(f"to: needed. Expected --to with one of {', '.join(ADAPTERS)}.")
        if name not in ADAPTERS:
            close = nearest(str(name), list(ADAPTERS))
            raise ConfigError("to", name, f"one of {', '.join(ADAPTERS)}", f"Did you mean {close}?" if close else "")
        return resolve(config_class(str(name)), overrides, file)

    @staticmethod
    def key_sections() -> list[KeySection]:
        """The keys of all exports, and those of each framework, for the help."""
        own = [section(config_class(name), {}, f"  with --to {name}:", ExportConfig) for name in ADAPTERS]
        return [section(ExportConfig, {}), *own]


@dataclass(frozen=True)
class ExportResult:
    """What ``maelift export`` wrote, and where."""

    folder: Path
    bundle: Bundle

    def summary(self) -> str:
        """Files, the certificate's line, and what to do next."""
        width = max(map(len, self.bundle.files))
        lines = [f"{self.folder}:", *(f"  {name:<{width}}  {text}" for name, text in self.bundle.files.items())]
        lines += [self.bundle.certificate.line()]
        lines += [f"note: {note}" for note in self.bundle.notes]
        return "\n".join([*lines, "", self.bundle.usage])

    def _repr_html_(self) -> str:
        facts: list[Fact] = [("folder", self.folder)]
        for name, text in self.bundle.files.items():
            facts += [("file", self.folder / name), ("", text)]
        facts.append(("certificate", self.bundle.certificate.line()))
        facts += [("note", note) for note in self.bundle.notes]
        return facts_table("Export", [*facts, ("to use it", self.bundle.usage)])


def export(config: ExportConfig) -> ExportResult:
    """Write the encoder for ``config.to``: the complete folder, or nothing.

    Raises MaeliftError: an encoder file without preprocessing, a folder in use, a framework that is missing or too old,
    or a certificate that failed.
    """
    file = read_for_export(config.encoder)

    def write(folder: Path) -> Bundle:
        bundle = exporter(config.to)(file, folder, config)
        return replace(bundle, notes=(*bundle.notes, *value_notes(file.encoder.preprocessing, config.to)))

    return export_to_folder(Path(config.out), write)


def value_notes(preprocessing: Preprocessing, framework: str) -> tuple[str, ...]:
    """What becomes of the values of image files before the framework gets them, as maelift isn't there to do it."""
    found = []
    if preprocessing.file_scale != 1 and framework != "mmseg":  # which reads files by the config that it is given
        found.append("values are from 0 to 255: give those of 16 bits divided by 257")
    if preprocessing.window is not None:
        found.append(
            f"the window {show(list(preprocessing.window))} isn't applied: give images that it has brought to 0 to 255 (maelift "
            "data pack window=... writes such)"
        )
    if preprocessing.nodata is not None and framework != "onnx":
        found.append(
            f"pixels without a value ({preprocessing.nodata:g} in files) aren't known: fill them with the mean of their channel"
        )
    return tuple(found)


def export_to_folder(target: Path, write: Callable[[Path], Bundle]) -> ExportResult:
    """Write an export into a folder beside ``target``, and move it there if the certificate passed.

    Raises MaeliftError for a folder in use, and for a certificate that failed.
    """
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        bundle = write(folder)
        if not bundle.certificate.passed:
            logger.warning(bundle.certificate.text())
        bundle.certificate.check(" Nothing was written.")
        bundle.certificate.write(folder)
        folder.chmod(0o755)
        sync_tree(folder)
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    files = {**bundle.files, CERTIFICATE_FILE: "what was compared, and how well it agrees"}
    placed = Bundle(files, bundle.certificate, bundle.usage.replace("{out}", str(target)), bundle.notes)
    return ExportResult(target, placed)


def plan(config: ExportConfig) -> Plan:
    """What ``maelift export`` would do."""
    file = read_for_export(config.encoder)
    check_free(Path(config.out))
    spec = file.encoder.spec
    return Plan(
        (
            (
                "encoder",
                f"{spec.image_size[0]}×{spec.image_size[1]} pixels, patch {spec.patch_size}, {spec.channels} channels",
            ),
            ("writes", f"a folder for {config.to}, if its certificate passes"),
        ),
        parameters=sum(parameter.numel() for parameter in file.encoder.parameters()),
    )


def read_for_export(path: str) -> EncoderFile:
    """An encoder file with its contract; raises CheckpointError for weights that don't say how images are prepared."""
    file = read_encoder(path)
    if file.foreign:
        raise CheckpointError(
            f"{path}: {file.provenance.method} weights, which don't say how images must be prepared for them. Make an encoder "
            f"file of them first: maelift import {quoted(path)} out=encoder.safetensors mean=[...] std=[...]"
        )
    return file


def check_free(target: Path) -> None:
    """Raise MaeliftError when something stands at ``target`` already."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise MaeliftError(f"out={target}: is there already. Choose a new folder, or remove this one first.")


def config_class(name: str) -> type[ExportConfig]:
    """The configuration class of an adapter."""
    found: type[ExportConfig] = getattr(_module(ADAPTERS[name].exporter), ADAPTERS[name].keys)
    return found


def exporter(name: str) -> Callable[[EncoderFile, Path, ExportConfig], Bundle]:
    """The ``export`` of an adapter."""
    found: Callable[[EncoderFile, Path, ExportConfig], Bundle] = _module(ADAPTERS[name].exporter).export
    return found


def certifier(name: str) -> ModuleType:
    """The module of an adapter that certifies."""
    return _module(ADAPTERS[name].certifier)


def _module(name: str) -> ModuleType:
    """A module of this folder; its framework is not imported by that."""
    return importlib.import_module(f".{name}", __package__)
