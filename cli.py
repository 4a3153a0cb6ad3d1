"""The front door: ``maelift COMMAND [--config FILE] [--dry-run] key=value ...``."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from signal import SIGINT, Signals
from typing import Any, cast

from .core.config import resolve
from .core.config_keys import describe, format_help, nearest
from .core.data import unread
from .core.errors import MaeliftError
from .core.signals import RESUME_HINT, StopRequested, StopSignals, ignore_stop_signals
from .core.system_errors import advice_for
from .core.terminal import LineFormatter, printable
from .core.yaml_files import to_dict, to_yaml
from .transfer import tasks
from .version import __version__

LONGEST_MESSAGE = 1500
"""Letters up to which an error is shown."""


@dataclass(frozen=True)
class Command:
    """A command: where its schema and functions are, imported only when it is called.

    The words without "=" are the values of ``positional``, in this order; keys in ``options`` may also be given as
    ``--key value``, and may be left out where ``optional`` has a word for the value; those in ``switches`` as ``--key`` for
    true. ``home`` is the module of the functions, where it isn't the schema's; ``external``: ``module`` is one of another
    package. ``defaults`` says of keys without a default in the schema where their values come from. ``json``: the result has a
    ``to_json``. ``flags``: options that call another function of the module, by its name, for a result with a ``text``.
    ``memory``: a module whose ``again`` knows what to answer to words without doing anything, whose ``asking`` is given the
    words of the command at work, and whose ``remember`` notes one that is done.
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
    memory: str | None = None
    external: bool = False

    def config_type(self) -> Any:
        """The schema."""
        module = self.module if self.external else f".{self.module}"
        return getattr(importlib.import_module(module, __package__), self.schema)

    def remembered(self) -> Any:
        """The module that remembers what was done; None for commands that need none."""
        return None if self.memory is None else importlib.import_module(f".{self.memory}", __package__)

    def load(self, name: str) -> Any:
        """The named function."""
        return getattr(importlib.import_module(f".{self.home or self.module}", __package__), name)


def _of_the_suite(command: Command) -> dict[str, str]:
    keys = {entry.key for entry in describe(command.config_type()) if entry.default is None}
    return dict.fromkeys(keys - {"suite", "out"}, "default: the suite's")


def _transfer(task: tasks.TaskEntry) -> Command:
    """The command of a task: its row says where what is particular to it stands, finetune.py holds all the rest."""
    module, _, schema = task.config.partition(":")
    return Command(
        f"transfer{module}" if module.startswith(".") else module,
        schema,
        "run_or_evaluate",
        task.summary,
        options=("evaluate",),
        optional="SPLIT",
        home="transfer.finetune",
        external=not module.startswith("."),
    )


COMMANDS = {
    "pretrain": Command(
        "pretrain.config",
        "PretrainConfig",
        "pretrain_or_submit",
        "images in, encoder file out (MAE)",
        home="pretrain.train",
    ),
    "reconstruct": Command(
        "pretrain.reconstruct",
        "ReconstructConfig",
        "reconstruct",
        "fill in hidden parts of images (encoder and decoder)",
    ),
    **{f"transfer {name}": _transfer(tasks.entry(name)) for name in tasks.BUILT_IN},
    "predict": Command(
        "transfer.predict", "PredictConfig", "predict", "what a trained model says of images, and pictures of it"
    ),
    "bench": Command(
        "benchmarks.runner",
        "BenchConfig",
        "bench",
        "does pretraining help? arms × labels × seeds, a report",
        positional=("suite",),
        defaults=_of_the_suite,
        flags={"--status": "status"},
        memory="benchmarks.answer_cache",
    ),
    "bench compare": Command(
        "benchmarks.compare_suites",
        "CompareConfig",
        "compare_results",
        "two finished suites side by side",
        positional=("one", "two"),
    ),
    "init": Command(
        "benchmarks.init_suite",
        "InitConfig",
        "init",
        "a suite for your own images, made from what lies in a folder",
        positional=("data",),
    ),
    "export": Command(
        "transfer.export",
        "ExportCommand",
        "export",
        "the encoder for timm, transformers, torchvision, detectron2, mmseg, onnx",
        positional=("encoder",),
        options=("to",),
    ),
    "import": Command(
        "adapters.import_weights",
        "ImportConfig",
        "import_encoder",
        "other weights (MAE, timm, transformers, mmseg, detectron2) to an encoder file",
        positional=("weights",),
    ),
    "certify": Command(
        "adapters.certify",
        "CertifyConfig",
        "certify_model",
        "does a config or checkpoint of yours compute what the encoder computes?",
        positional=("model", "encoder"),
        switches=("trust",),
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
    ),
    "data pack": Command(
        "core.tools.pack_shards", "PackConfig", "pack", "images into tar shards, which any storage reads fast"
    ),
    "doctor": Command(
        "core.tools.doctor", "DoctorConfig", "doctor", "versions, devices, frameworks, disk, data", json=True
    ),
}

EXAMPLES = """\
  maelift pretrain data=photos out=runs/photos model=vit_small epochs=200
  maelift transfer classify encoder=runs/photos/encoder.safetensors data=labelled out=runs/classes
  maelift bench quickstart out=runs/quickstart
  maelift export runs/photos/encoder.safetensors --to detectron2 out=detector"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 0, 2 for a user's mistake, 130 or 143 when stopped by a signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0].startswith("-") or (words[0] == "transfer" and " ".join(words[:2]) not in COMMANDS):
        _add_tasks_of_other_packages()
    name = _name_of(words)
    with StopSignals.noted(f"maelift {name}", raising=True) as signals:
        try:
            code = _answer(words, signals)
        except StopRequested as asked:
            code = _stopped(name, asked.number)
    if argv is None:  # what Python does at its end takes time
        ignore_stop_signals()
        if code > 128:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
    return code


def _add_tasks_of_other_packages() -> None:
    for name in tasks.names():
        COMMANDS.setdefault(f"transfer {name}", _transfer(tasks.entry(name)))


def _name_of(words: Sequence[str]) -> str:
    """The command that the words begin with, as far as it is one."""
    return next((name for count in (2, 1) if (name := " ".join(words[:count])) in COMMANDS), " ".join(words[:1]))


def _stopped(name: str, number: int) -> int:
    return _fail(name, f"stopped ({Signals(number).name}). {RESUME_HINT}", 128 + number)


def _answer(words: list[str], signals: StopSignals) -> int:
    """Do what the words ask for; the exit code."""
    name = " ".join(words[:1])
    try:
        if not words or words[0] in ("-h", "--help"):
            _say(_overview())
        elif words[0] in ("-V", "--version"):
            _say(f"maelift {__version__}")
        elif words[0] in _families() and words[1:] in ([], ["-h"], ["--help"]):
            _say(_family_help(words[0]))
        else:
            name, words = _split_command(words)
            _run(name, COMMANDS[name], words)
    except MaeliftError as error:
        return _fail(name, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _stopped(name, getattr(error, "number", SIGINT))
    except Exception as error:
        if signals.received is not None and not isinstance(error, OSError):  # a library's word for being stopped
            return _stopped(name, signals.received)
        if (advice := advice_for(error)) is None and not isinstance(error, OSError):
            raise
        return _fail(name, advice or _os_error(cast(OSError, error)), 2)
    return 0


def _run(name: str, command: Command, words: list[str]) -> None:
    memory, given, began = command.remembered(), tuple(words), time.time_ns()
    if memory is not None and (said := memory.again(given)) is not None:
        _say(said)
        return
    schema = command.config_type()
    if _take(words, "-h", "--help"):
        _say(_command_help(name, command, schema))
        return
    file = _take_config(words)
    dry_run, quiet = _take(words, "-n", "--dry-run"), _take(words, "-q", "--quiet")
    as_json = command.json and _take(words, "--json")
    words += [f"{key}=true" for key in command.switches if _take(words, f"--{key}")]
    asked = [function for flag, function in command.flags.items() if _take(words, flag)]
    config = _resolve(command, schema, _options_as_keys(words, command.options), file)
    unread.forget()
    if dry_run:
        keys = f"{to_yaml(config).rstrip()}\n\n" if to_dict(config) else ""
        _say(keys + "\n".join([command.load("plan")(config).text(), *unread.told()]))
        return
    _log_to_stderr(quiet)
    if asked:
        _say(command.load(asked[0])(config).text())
        return
    try:
        with nullcontext() if memory is None else memory.asking(given):
            result = command.load(command.run)(config)
    except OSError as error:
        error.filename = error.filename or getattr(config, "out", None)  # a failed write names no file
        raise
    if _first_process():
        _say(result.to_json() if as_json else result.summary())
    if (unsound := getattr(result, "error", None)) is not None:
        raise MaeliftError(unsound)
    if memory is not None:
        memory.remember(given, began, config, result)


def _resolve(command: Command, schema: Any, words: Sequence[str], file: Path | None) -> Any:
    """The configuration that the words and the file ask for."""
    named = [bool(command.positional) and os.path.lexists(word) and not _names_key(word, schema) for word in words]
    for word, is_file in zip(words, named, strict=True):
        if word.startswith("-") and not is_file:
            raise MaeliftError(_unknown_option(word, command))
    overrides = list(words)
    bare = [number for number, word in enumerate(words) if "=" not in word or named[number]]
    for number, key in zip(bare, command.positional, strict=False):
        overrides[number] = f"{key}={words[number]}"
    if hasattr(schema, "resolve"):
        return schema.resolve(overrides, file)
    return resolve(schema, overrides, file)


def _names_key(word: str, schema: Any) -> bool:
    """Whether a word is KEY=VALUE for a key that is there, and not a file of this name."""
    key, equals, _ = word.partition("=")
    if not equals or not is_dataclass(schema):
        return bool(equals)
    return any(entry.key.partition(".")[0] == key.partition(".")[0] for entry in describe(cast(type, schema)))


def _options_as_keys(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """``--to timm`` and ``--to=timm`` as ``to=timm``, for the keys that may be given so."""
    given, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if key not in {f"--{option}" for option in options}:
            given.append(word)
            continue
        if not equals and (not rest or rest[0].startswith("-")):
            raise MaeliftError(f"{key}: expected a value after it.")
        given.append(f"{key[2:]}={value if equals else rest.pop(0)}")
    return given


def _unknown_option(word: str, command: Command) -> str:
    """The message for an option that isn't there, or that this command hasn't."""
    known = ["--config", "--dry-run", "--quiet", "--help", *(["--json"] if command.json else []), *command.flags]
    known += [f"--{option}" for option in (*command.options, *command.switches)]
    close = nearest(word.partition("=")[0], known)
    if "=" in word and close is None:
        return f"{word}: no such option. Keys have no dashes: {word.lstrip('-')}."
    meant = f" Did you mean {close}?" if close else ""
    return f"{word}: no such option.{meant} Expected key=value or {', '.join(known)}."


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command that the words begin with, and the rest of them."""
    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS:
            return " ".join(words[:count]), words[count:]
    if words[0] in _families():
        expected = " or ".join(name.split()[1] for name in _families()[words[0]])
        raise MaeliftError(f"{words[1]}: expected {expected} after {words[0]}.")
    close = nearest(words[0], [*COMMANDS, *_families()])
    meant = f" Did you mean {close}?" if close else ""
    raise MaeliftError(f"no such command.{meant} Those there are: {', '.join(COMMANDS)}.")


def _families() -> dict[str, list[str]]:
    """The commands of two words, by their first."""
    families: dict[str, list[str]] = {}
    for name in COMMANDS:
        first, _, second = name.partition(" ")
        if second and first not in COMMANDS:
            families.setdefault(first, []).append(name)
    return families


def _overview() -> str:
    return "\n".join(
        [
            "maelift: pretrain a masked autoencoder on your own images, and learn whether it helps.",
            "",
            "usage: maelift COMMAND [--config FILE] [--dry-run] [--quiet] key=value ...",
            "",
            "commands (maelift COMMAND -h lists every key):",
            *_lines_of(COMMANDS),
            "",
            "examples:",
            EXAMPLES,
            "",
            "--dry-run prints the configuration and the plan, writes nothing; --version prints the version.",
            "MAELIFT_DEBUG=1 in the environment shows where an error comes from.",
        ]
    )


def _family_help(first: str) -> str:
    lines = _lines_of(_families()[first])
    return "\n".join([f"usage: maelift {first} ..., one of these (with -h: every key)", "", *lines])


def _lines_of(names: Sequence[str] | dict[str, Command]) -> list[str]:
    width = max(len(name) for name in names)
    return [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]


def _command_help(name: str, command: Command, schema: type) -> str:
    positional = "".join(f" {key.upper()}" for key in command.positional)
    for option in command.options:
        positional += f" [--{option} {command.optional}]" if command.optional else f" --{option} {option.upper()}"
    switches = [f"--{key}" for key in command.switches]
    json = "".join(f" [{flag}]" for flag in (*(["--json"] if command.json else []), *command.flags, *switches))
    return "\n".join(
        [
            f"maelift {name}: {command.summary}",
            "",
            f"usage: maelift {name}{positional} [--config FILE] [--dry-run] [--quiet]{json} key=value ...",
            "",
            schema.help()
            if hasattr(schema, "help")
            else format_help(schema, command.defaults(command) if command.defaults else None),
        ]
    ).rstrip()


def _take(words: list[str], *flags: str) -> bool:
    """Remove the flags from the words; whether one was there."""
    found = any(word in flags for word in words)
    words[:] = [word for word in words if word not in flags]
    return found


def _take_config(words: list[str]) -> Path | None:
    """Remove ``--config FILE`` or ``--config=FILE`` from the words, and give the file."""
    places = [number for number, word in enumerate(words) if word.partition("=")[0] == "--config"]
    if not places:
        return None
    if len(places) > 1:
        raise MaeliftError("--config: given more than once. Expected one file; key=value words change it.")
    option, equals, value = words.pop(places[0]).partition("=")
    if not equals and places[0] < len(words):
        value = words.pop(places[0])
    if not value:
        raise MaeliftError(f"{option}: expected a file after it.")
    return Path(value)


def _say(text: str) -> None:
    """Print; that nobody reads on, as after ``| head``, is no error."""
    try:
        shown, encoding = printable(text, lines=True), sys.stdout.encoding or "utf-8"
        print(shown.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again at exit
        if not isinstance(error, BrokenPipeError):
            error.filename = "standard output"
            raise


def _fail(name: str, message: str, exit_code: int) -> int:
    if os.environ.get("MAELIFT_DEBUG"):
        traceback.print_exc()
    if _first_process():
        with suppress(OSError):  # the terminal may be gone
            print(f"maelift {printable(name)}: {_shortened(printable(message))}", file=sys.stderr)
    return exit_code


def _shortened(text: str) -> str:
    """A message that repeats a very long name, without the middle."""
    half = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{(error.strerror or str(error)).lower()}."


def _first_process() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _log_to_stderr(quiet: bool) -> None:
    logger = logging.getLogger("maelift")
    logger.setLevel(logging.INFO if _first_process() and not quiet else logging.WARNING)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(LineFormatter())
        logger.addHandler(handler)
        logger.propagate = False
