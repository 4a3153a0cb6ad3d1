"""The commands as functions, for scripts and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .core.errors import ConfigError

if TYPE_CHECKING:
    from .adapters.export import ExportResult
    from .benchmarks.runner import BenchResult
    from .pretrain.config import PretrainConfig
    from .pretrain.reconstruct import ReconstructConfig, ReconstructResult
    from .pretrain.train import PretrainResult
    from .transfer.finetune import TransferConfig, TransferResult


def pretrain(config: PretrainConfig | None = None, **keys: Any) -> PretrainResult:
    """Pretrain a masked autoencoder: give a PretrainConfig, or the keys of ``maelift pretrain``.

    Raises MaeliftError for what a user can mend, with the message that the command would print.
    """
    from .pretrain.config import PretrainConfig
    from .pretrain.train import pretrain as run

    return run(config if config is not None else PretrainConfig.resolve(keys))


def reconstruct(config: ReconstructConfig | None = None, **keys: Any) -> ReconstructResult:
    """Fill in hidden parts of images: give a ReconstructConfig, or the keys of ``maelift reconstruct``."""
    from .core.config import resolve
    from .pretrain.reconstruct import ReconstructConfig
    from .pretrain.reconstruct import reconstruct as run

    return run(config if config is not None else resolve(ReconstructConfig, keys))


def transfer(
    task: Literal["classify", "detect", "segment"], config: TransferConfig | None = None, **keys: Any
) -> TransferResult:
    """Train a model for a task: give the task's configuration, or the keys of ``maelift transfer TASK``.

    Raises MaeliftError for what a user can mend, with the message that the command would print.
    """
    from .cli import COMMANDS
    from .transfer.finetune import run

    tasks = [name.removeprefix("transfer ") for name in COMMANDS if name.startswith("transfer ")]
    if task not in tasks:
        raise ConfigError("task", task, " or ".join(tasks))
    return run(config if config is not None else COMMANDS[f"transfer {task}"].config_type().resolve(keys))


def bench(suite: str, **keys: Any) -> BenchResult:
    """Run a suite, by name or YAML file, with the keys of ``maelift bench``; finished runs are not run again.

    Raises MaeliftError for what a user can mend, with the message that the command would print.
    """
    from .benchmarks.runner import bench as run
    from .benchmarks.suite import BenchConfig

    return run(BenchConfig.resolve({"suite": suite, **keys}))


def export(encoder: str, to: str, out: str, **keys: Any) -> ExportResult:
    """Write an encoder file for another framework, with the keys of ``maelift export``; the whole folder or nothing.

    Raises MaeliftError for what a user can mend, with the message that the command would print.
    """
    from .transfer.export import ExportCommand
    from .transfer.export import export as run

    return run(ExportCommand.resolve({"encoder": encoder, "to": to, "out": out, **keys}))
