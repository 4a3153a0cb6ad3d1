"""The front door: ``maelift COMMAND [--config FILE] [--dry-run] key=value ...``."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__


@dataclass(frozen=True)
class Command:
    """A command: where its schema and functions are, imported only when it is called."""

    module: str
    schema: str
    run: str
    summary: str
    positional: str | None = None

    def load(self, name: str) -> Any:
        """The named member of the command's module."""
        return getattr(importlib.import_module(f".{self.module}", __package__), name)


COMMANDS = {
    "pretrain": Command("pretrain.stage", "PretrainConfig", "pretrain", "images in, encoder file out (MAE)"),
    "transfer classify": Command(
        "transfer.classify", "ClassifyConfig", "classify", "labelled images and an encoder in, classifier out"
    ),
    "predict": Command("transfer.predict", "PredictConfig", "predict", "classes and probabilities of images, as CSV"),
    "bench": Command(
        "benchmarks.runner", "BenchConfig", "bench", "does pretraining help? arms × labels × seeds, a report", "suite"
    ),
    "data fashion-mnist": Command(
        "core.datasets", "FashionMnistConfig", "fashion_mnist", "bring the data of the quickstart"
    ),
    "doctor": Command("core.doctor", "DoctorConfig", "doctor", "versions, devices, frameworks, disk, data"),
}

EXAMPLES = """\
  maelift pretrain data=photos out=runs/photos model=vit_small epochs=200
  maelift transfer classify encoder=runs/photos/encoder.safetensors data=labelled out=runs/classes
  maelift bench quickstart out=runs/quickstart"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a user's mistake, 130 or 143 when stopped by a signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"maelift {__version__}")
        return 0
    from .core.config import MaeliftError

    name = words[0]
    try:
        name, words = _split_command(words)
        return _run(name, COMMANDS[name], words)
    except MaeliftError as error:
        return _fail(name, str(error), getattr(error, "exit_code", 2))
    except BrokenPipeError:
        sys.stdout = None  # nobody reads on: nothing is left to flush
        return 0
    except OSError as error:
        if os.environ.get("MAELIFT_DEBUG"):
            raise
        return _fail(name, _os_error(error), 2)
    except KeyboardInterrupt:
        return _fail(name, "interrupted.", 130)


def _run(name: str, command: Command, words: list[str]) -> int:
    from .core.config import MaeliftError, resolve, to_yaml

    help_wanted, dry_run, quiet, as_json = (_take(words, *flags) for flags in _FLAGS)
    schema = command.load(command.schema)
    if help_wanted:
        print(_command_help(name, command, schema))
        return 0
    file = _take_value(words, "--config")
    overrides = [
        f"{command.positional}={word}" if command.positional and number == 0 and "=" not in word else word
        for number, word in enumerate(words)
    ]
    unknown = next((word for word in overrides if word.startswith("-")), None)
    if unknown is not None:
        raise MaeliftError(f"{unknown}: no such option. Expected key=value, --config FILE, --dry-run, --quiet or -h.")
    _log_to_stderr(quiet)
    build: Callable[..., Any] = getattr(schema, "resolve", None) or (lambda *given: resolve(schema, *given))
    config = build(overrides, file)
    if dry_run:
        print(to_yaml(config).rstrip())
        print()
        print(command.load("plan")(config).text())
        return 0
    result = command.load(command.run)(config)
    if os.environ.get("RANK", "0") == "0":
        print(result.to_json() if as_json and hasattr(result, "to_json") else result.summary())
    return 0


_FLAGS = (("-h", "--help"), ("--dry-run", "-n"), ("--quiet", "-q"), ("--json",))


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    from .core.config import MaeliftError, nearest

    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS:
            return " ".join(words[:count]), words[count:]
    family = [name for name in COMMANDS if name.split()[0] == words[0]]
    if family and len(words) > 1 and words[1] in ("-h", "--help"):
        raise MaeliftError(f"expected one of: {', '.join(family)}. Add -h to one of them for its keys.")
    if family:
        given = words[1] if len(words) > 1 else "nothing"
        raise MaeliftError(f"{given}: expected {' or '.join(name.split()[1] for name in family)} after {words[0]}.")
    close = nearest(words[0], COMMANDS)
    meant = f" Did you mean {close}?" if close else ""
    raise MaeliftError(f"no such command.{meant} Those there are: {', '.join(COMMANDS)}.")


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "maelift: pretrain a masked autoencoder on your own images, and learn whether it helps.",
            "",
            "usage: maelift COMMAND [--config FILE.yaml] [--dry-run] [--quiet] key=value ...",
            "",
            "commands (maelift COMMAND -h lists every key):",
            *lines,
            "",
            "examples:",
            EXAMPLES,
            "",
            "--dry-run prints the configuration and the plan and writes nothing; --version prints the version.",
        ]
    )


def _command_help(name: str, command: Command, schema: type) -> str:
    from .core.config import describe

    positional = f" {command.positional.upper()}" if command.positional else ""
    lines = [
        f"maelift {name}: {command.summary}",
        "",
        f"usage: maelift {name}{positional} [--config FILE.yaml] [--dry-run] [--quiet] key=value ...",
        "",
    ]
    group = ""
    for entry in describe(schema):
        own, _, _ = entry.key.rpartition(".")
        if own != group:
            group = own
            lines.append("")
        default = "needed" if entry.default is None else f"default {entry.default}"
        if entry.default is None and entry.key in getattr(schema, "RECIPE_KEYS", ()):
            default = "default: the recipe's"
        lines.append(f"  {entry.key}  ({entry.type}; {default})")
        lines.extend(textwrap.wrap(entry.help, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def _take(words: list[str], *flags: str) -> bool:
    """Remove the flags from the words; whether one was there."""
    found = any(word in flags for word in words)
    words[:] = [word for word in words if word not in flags]
    return found


def _take_value(words: list[str], option: str) -> Path | None:
    """Remove an option and its value, ``--config FILE`` or ``--config=FILE``, from the words."""
    from .core.config import MaeliftError

    for number, word in enumerate(words):
        if word.startswith(f"{option}="):
            del words[number]
            return Path(word.partition("=")[2])
        if word == option:
            if number + 1 == len(words):
                raise MaeliftError(f"{option}: expected a file after it.")
            value = words[number + 1]
            del words[number : number + 2]
            return Path(value)
    return None


def _fail(name: str, message: str, exit_code: int) -> int:
    if os.environ.get("MAELIFT_DEBUG"):
        import traceback

        traceback.print_exc()
    if os.environ.get("RANK", "0") == "0":
        print(f"maelift {name}: {message}", file=sys.stderr)
    return exit_code


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}no space left on the device. Free some, or choose another out; finished work is kept."
    if error.errno == errno.EFBIG:
        return (
            f"{where}the file would be larger than this system's limit allows. Raise the limit, or choose another out."
        )
    return f"{where}{(error.strerror or str(error)).lower()}."


def _log_to_stderr(quiet: bool) -> None:
    logger = logging.getLogger("maelift")
    logger.setLevel(logging.WARNING if quiet or os.environ.get("RANK", "0") != "0" else logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
