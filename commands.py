"""The table of commands: the module and function of each, its summary, its positional words and options."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .core.config import resolve
from .core.config_keys import describe, nearest
from .core.errors import MaeliftError
from .transfer import tasks

OPTIONS = ("--config", "--dry-run", "--show-config", "--quiet", "--help")
"""Options of every command."""


@dataclass(frozen=True)
class Command:
    """A command: the modules of its schema and functions, which are imported only when it is called.

    The words without "=" are the values of ``positional``, in this order; keys in ``options`` may also be given as
    ``--key value``, and may be left out where ``optional`` has a word for the value; those in ``switches`` as ``--key`` for
    true. ``home`` is the module of the functions, where it isn't the schema's; ``external``: ``module`` is one of another
    package. ``defaults`` describes where the values of keys without a default come from. ``json``: the result has a
    ``to_json``. ``flags``: options that call another function of the module, by its name, for a result with a ``text``.
    ``answers``: a module with an ``AnswerCache`` of the command's words, which may know the answer without running the command;
    the function gets it too. ``loads_torch``: the functions need torch, whose import takes seconds, before they say anything.
    ``resolver``: the module whose ``resolve_config`` makes the configuration, in place of the schema's ``resolve``.
    """

    module: str
    schema: str
    run: str
    summary: str
    positional: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    optional: str = ""
    switches: tuple[str, ...] = ()
    home: str | None = None
    defaults: Callable[[Command], dict[str, str]] | None = None
    json: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    answers: str | None = None
    external: bool = False
    loads_torch: bool = False
    resolver: str | None = None

    @property
    def known_options(self) -> tuple[str, ...]:
        """Every option that it takes."""
        own = (f"--{word}" for word in (*self.options, *self.switches))
        return (*OPTIONS, *(("--json",) if self.json else ()), *self.flags, *own)

    def config_type(self) -> Any:
        """The dataclass of its keys."""
        module = self.module if self.external else f".{self.module}"
        return getattr(importlib.import_module(module, __package__), self.schema)

    def answer_cache(self, words: Sequence[str]) -> Any:
        """The cached answers to these words; None for commands whose answers aren't cached."""
        if self.answers is None:
            return None
        return importlib.import_module(f".{self.answers}", __package__).AnswerCache(tuple(words))

    def resolve(self, overrides: Sequence[str], file: Path | None) -> Any:
        """The configuration from the words of the command line, and a file."""
        if self.resolver is not None:
            return importlib.import_module(f".{self.resolver}", __package__).resolve_config(overrides, file)
        schema = self.config_type()
        return schema.resolve(overrides, file) if hasattr(schema, "resolve") else resolve(schema, overrides, file)

    def load(self, name: str) -> Any:
        """The named function."""
        return getattr(importlib.import_module(f".{self.home or self.module}", __package__), name)


class TaskCommand(Command):
    """The command of a task, whose keys have their defaults from a recipe."""

    def resolve(self, overrides: Sequence[str], file: Path | None) -> Any:
        """The configuration from the words of the command line, and a file."""
        auto_recipe = importlib.import_module(".transfer.auto_recipe", __package__)
        return auto_recipe.resolve_config(self.config_type(), overrides, file)


def _suite_defaults(command: Command) -> dict[str, str]:
    """What the help shows as default of the keys that only override the suite."""
    keys = {entry.key for entry in describe(command.config_type()) if entry.default is None}
    return dict.fromkeys(keys - {"suite", "out"}, "default: the suite's")


def _task_command(task: tasks.TaskEntry) -> TaskCommand:
    """The command of a task: its row names the module of its keys; all tasks are run by transfer/command.py."""
    module, _, schema = task.config.partition(":")
    return TaskCommand(
        f"transfer{module}" if module.startswith(".") else module,
        schema,
        "run_or_evaluate",
        task.summary,
        options=("evaluate",),
        optional="SPLIT",
        home="transfer.command",
        external=not module.startswith("."),
    )


COMMANDS: dict[str, Command] = {
    "pretrain": Command(
        "pretrain.config",
        "PretrainConfig",
        "pretrain_or_submit",
        "images in, encoder file out (MAE)",
        home="pretrain.command",
        resolver="pretrain.command",
    ),
    "reconstruct": Command(
        "pretrain.reconstruct",
        "ReconstructConfig",
        "reconstruct",
        "fill in hidden parts of images (encoder and decoder)",
        loads_torch=True,
    ),
    **{f"transfer {name}": _task_command(tasks.entry(name)) for name in tasks.BUILT_IN},
    "predict": Command(
        "transfer.predict_config",
        "PredictConfig",
        "predict",
        "a trained model's predictions for images, with pictures",
        home="transfer.predict",
        loads_torch=True,
    ),
    "embed": Command(
        "transfer.embed_config",
        "EmbedConfig",
        "embed",
        "features of images from an encoder, their nearest neighbours, and a page of maps",
        home="transfer.embed",
        loads_torch=True,
    ),
    "bench": Command(
        "benchmarks.runner",
        "BenchConfig",
        "bench",
        "does pretraining help? arms × labels × seeds, a report",
        positional=("suite",),
        defaults=_suite_defaults,
        flags={"--status": "status"},
        answers="benchmarks.answer_cache",
        loads_torch=True,
    ),
    "bench compare": Command(
        "benchmarks.compare_suites",
        "CompareConfig",
        "compare_results",
        "two finished suites side by side",
        positional=("one", "two"),
        loads_torch=True,
    ),
    "init": Command(
        "benchmarks.init_suite",
        "InitConfig",
        "init",
        "a suite for your own images, written from the contents of a folder",
        positional=("data",),
    ),
    "try": Command(
        "benchmarks.try_data",
        "TryConfig",
        "try_data",
        "the whole within a given time: pretrain on a folder, compare, one page",
        positional=("data",),
        loads_torch=True,
    ),
    "export": Command(
        "transfer.export",
        "ExportCommand",
        "export",
        "the encoder for timm, transformers, torchvision, detectron2, mmseg, onnx",
        positional=("encoder",),
        options=("to",),
        loads_torch=True,
    ),
    "import": Command(
        "adapters.import_weights",
        "ImportConfig",
        "import_encoder",
        "other weights (MAE, timm, transformers, mmseg, detectron2) to an encoder file",
        positional=("weights",),
        loads_torch=True,
    ),
    "certify": Command(
        "adapters.certify",
        "CertifyConfig",
        "certify",
        "does a config or checkpoint of yours compute what the encoder computes?",
        positional=("model", "encoder"),
        switches=("trust",),
        loads_torch=True,
    ),
    "push": Command(
        "adapters.hub_config",
        "PushConfig",
        "push",
        "an encoder file to the Hugging Face Hub, with a model card and what timm loads",
        positional=("encoder", "repo"),
        home="benchmarks.push_encoder",
    ),
    "pull": Command(
        "adapters.hub_config",
        "PullConfig",
        "pull",
        "an encoder file from the Hugging Face Hub, its hashes checked",
        positional=("name",),
        home="adapters.hub_pull",
    ),
    "data fashion-mnist": Command(
        "core.tools.fashion_mnist", "FashionMnistConfig", "fashion_mnist", "bring the data of the quickstart"
    ),
    "data fashion-scenes": Command(
        "core.tools.fashion_scenes",
        "FashionScenesConfig",
        "fashion_scenes",
        "scenes of Fashion-MNIST items, with boxes and masks",
    ),
    "data check": Command(
        "core.tools.check_data",
        "DataCheckConfig",
        "data_check",
        "what is wrong with images, with or without annotations?",
        positional=("data",),
        home="transfer.check_data",
    ),
    "data pack": Command(
        "core.tools.pack_shards", "PackConfig", "pack", "images into tar shards, which any storage reads fast"
    ),
    "completion": Command(
        "completion",
        "CompletionConfig",
        "completion",
        "what makes bash, zsh or fish complete commands and keys",
        positional=("shell",),
    ),
    "data stack": Command(
        "core.tools.stack_bands",
        "StackConfig",
        "stack_bands",
        "bands in files of their own, or of different sizes, into files of all bands",
    ),
    "doctor": Command(
        "core.tools.doctor", "DoctorConfig", "doctor", "versions, devices, frameworks, disk, data", json=True
    ),
}


def add_external_tasks() -> None:
    """Add the commands of tasks that other installed packages declare; finding them takes time."""
    for name in tasks.names():
        COMMANDS.setdefault(f"transfer {name}", _task_command(tasks.entry(name)))


def command_name(words: Sequence[str]) -> str:
    """The command that the words begin with, as far as it is one."""
    return next((name for count in (2, 1) if (name := " ".join(words[:count])) in COMMANDS), " ".join(words[:1]))


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command that the words begin with, and the rest of them."""
    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS:
            return " ".join(words[:count]), words[count:]
    if words[0] in command_families():
        expected = " or ".join(name.split()[1] for name in command_families()[words[0]])
        raise MaeliftError(f"{words[1]}: expected {expected} after {words[0]}.")
    close = nearest(words[0], [*COMMANDS, *command_families()])
    meant = f" Did you mean {close}?" if close else ""
    raise MaeliftError(f"no such command.{meant} Those there are: {', '.join(COMMANDS)}.")


def command_families() -> dict[str, list[str]]:
    """The commands of two words, by their first."""
    families: dict[str, list[str]] = {}
    for name in COMMANDS:
        first, _, second = name.partition(" ")
        if second and first not in COMMANDS:
            families.setdefault(first, []).append(name)
    return families
