"""The commands as functions, for scripts and notebooks: typed keys, signatures and help that name every key."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .adapters.export import ExportResult
    from .api_keys import (
        BenchKeys,
        ClassifyKeys,
        DetectKeys,
        EmbedKeys,
        ExportKeys,
        PretrainKeys,
        ReconstructKeys,
        SegmentKeys,
    )
    from .benchmarks.runner import BenchResult
    from .pretrain.config import PretrainConfig
    from .pretrain.reconstruct import ReconstructConfig, ReconstructResult
    from .pretrain.result import PretrainResult
    from .transfer.classification.config import ClassifyConfig
    from .transfer.config import TransferConfig
    from .transfer.detection.config import DetectConfig
    from .transfer.embed import EmbedResult
    from .transfer.embed_config import EmbedConfig
    from .transfer.result import TransferResult
    from .transfer.segmentation.config import SegmentConfig


def pretrain(config: PretrainConfig | None = None, **keys: Unpack[PretrainKeys]) -> PretrainResult:
    """Pretrain a masked autoencoder: give a PretrainConfig, or the keys of ``maelift pretrain``.

    Raises MaeliftError for what a user can fix, with the message that the command would print.
    """
    from .pretrain.command import resolve_config
    from .pretrain.train import pretrain as run

    return run(config if config is not None else resolve_config(keys))


def reconstruct(config: ReconstructConfig | None = None, **keys: Unpack[ReconstructKeys]) -> ReconstructResult:
    """Fill in hidden parts of images: give a ReconstructConfig, or the keys of ``maelift reconstruct``.

    Raises MaeliftError for what a user can fix, with the message that the command would print.
    """
    from .core.config import resolve
    from .pretrain.reconstruct import ReconstructConfig
    from .pretrain.reconstruct import reconstruct as run

    return run(config if config is not None else resolve(ReconstructConfig, keys))


@overload
def transfer(
    task: Literal["classify"], config: ClassifyConfig | None = None, **keys: Unpack[ClassifyKeys]
) -> TransferResult: ...
@overload
def transfer(
    task: Literal["detect"], config: DetectConfig | None = None, **keys: Unpack[DetectKeys]
) -> TransferResult: ...
@overload
def transfer(
    task: Literal["segment"], config: SegmentConfig | None = None, **keys: Unpack[SegmentKeys]
) -> TransferResult: ...
def transfer(task: str, config: TransferConfig | None = None, **keys: object) -> TransferResult:
    """Train a model for a task: give the task's configuration, or the keys of ``maelift transfer TASK``.

    Raises MaeliftError for what a user can fix, with the message that the command would print.
    """
    from .transfer import tasks
    from .transfer.auto_recipe import resolve_config
    from .transfer.finetune import run

    return run(config if config is not None else resolve_config(tasks.entry(task).config_type(), keys))


def embed(config: EmbedConfig | None = None, **keys: Unpack[EmbedKeys]) -> EmbedResult:
    """Features of images from an encoder: give an EmbedConfig, or the keys of ``maelift embed``.

    Raises MaeliftError for what a user can fix, with the message that the command would print.
    """
    from .core.config import resolve
    from .transfer.embed import embed as run
    from .transfer.embed_config import EmbedConfig

    return run(config if config is not None else resolve(EmbedConfig, keys))


def bench(suite: str, **keys: Unpack[BenchKeys]) -> BenchResult:
    """Run a suite, by name or YAML file, with the keys of ``maelift bench``; finished runs are not run again.

    Raises MaeliftError for what a user can fix, with the message that the command would print.
    """
    from .benchmarks.runner import bench as run
    from .benchmarks.suite import BenchConfig

    return run(BenchConfig.resolve({"suite": suite, **keys}))


def export(encoder: str | PathLike[str], to: str, out: str | PathLike[str], **keys: Unpack[ExportKeys]) -> ExportResult:
    """Write an encoder file for another framework, with the keys of ``maelift export``; the complete folder or nothing.

    Raises MaeliftError for what a user can fix, with the message that the command would print.
    """
    from .transfer.export import ExportCommand
    from .transfer.export import export as run

    return run(ExportCommand.resolve({"encoder": str(encoder), "to": to, "out": str(out), **keys}))


def function(name: str) -> Callable[..., Any]:
    """The function ``name`` of this module, with a signature and a docstring that name every key.

    ``inspect.signature``, ``help`` and the completion of keys in notebooks read them; they import the schemas, which the
    function needs anyway.
    """
    found: Callable[..., Any] = globals()[name]
    if not hasattr(found, "__signature__"):
        schemas = _schemas(name)
        found.__signature__ = _signature(found, schemas)  # type: ignore[attr-defined]
        found.__doc__ = "\n\n".join([inspect.getdoc(found) or "", *_keys(schemas)])
    return found


def _schemas(name: str) -> dict[str, type]:
    """The schemas whose keys a function takes, by the words of the command; several where a first word chooses."""
    from .commands import COMMANDS

    if name == "export":
        from .adapters.export import ADAPTERS, config_class

        return {f"export --to {to}": config_class(to) for to in ADAPTERS}
    commands = [command for command in COMMANDS if command == name or command.startswith(f"{name} ")]
    return {command: COMMANDS[command].config_type() for command in commands if name != "bench" or command == name}


def _signature(found: Callable[..., Any], schemas: dict[str, type]) -> inspect.Signature:
    """The function's own parameters, then every key as one that is given by its name."""
    own = inspect.signature(found)
    parameters = {name: value for name, value in own.parameters.items() if value.kind is not value.VAR_KEYWORD}
    for schema in schemas.values():
        for field in dataclasses.fields(schema):
            if field.name not in parameters:
                default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                needed = default is dataclasses.MISSING
                parameters[field.name] = inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if needed else default,
                    annotation=field.type,
                )
    return own.replace(parameters=list(parameters.values()))


def _keys(schemas: dict[str, type]) -> list[str]:
    """What every key means, as the command's help says it."""
    from .core.config_keys import section

    return [f"Keys of maelift {command}:\n\n{section(schema, {}).text()}" for command, schema in schemas.items()]
