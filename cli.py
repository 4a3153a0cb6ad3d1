"""The command line: ``maelift COMMAND [--config FILE] [--dry-run] key=value ...``."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from signal import SIGINT, Signals
from typing import Any, cast

from .cli_help import command_help, family_help, overview, unknown_option
from .commands import COMMANDS, Command, add_external_tasks, command_families, command_name, split_command
from .core.config_keys import describe
from .core.data import unread
from .core.errors import MaeliftError
from .core.signals import RESUME_HINT, StopRequested, StopSignals, ignore_stop_signals
from .core.system_errors import advice_for
from .core.terminal import LineFormatter, printable
from .core.yaml_files import to_dict, to_yaml
from .version import __version__

logger = logging.getLogger("maelift")

LONGEST_MESSAGE = 1500
"""Letters up to which an error is shown."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 0, 2 for a user's mistake, 130 or 143 when stopped by a signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0].startswith("-") or (words[0] == "transfer" and " ".join(words[:2]) not in COMMANDS):
        add_external_tasks()
    name = command_name(words)
    with StopSignals.caught(f"maelift {name}", raising=True) as signals:
        try:
            code = _dispatch(words, signals)
        except StopRequested as stop:
            code = _stopped(name, stop.number)
    if argv is None:  # Python's own shutdown takes time
        ignore_stop_signals()
        if code > 128:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
    return code


def _stopped(name: str, number: int) -> int:
    return _report_error(name, f"stopped ({Signals(number).name}). {RESUME_HINT}", 128 + number)


def _dispatch(words: list[str], signals: StopSignals) -> int:
    """Run the command that the words name; the exit code."""
    name = " ".join(words[:1])
    try:
        if not words or words[0] in ("-h", "--help"):
            _print(overview())
        elif words[0] == "--complete" and len(words) == 3:
            from .completion import candidates

            _print("\n".join(candidates(words[1], words[2])))
        elif words[0] in ("-V", "--version"):
            _print(f"maelift {__version__}")
        elif words[0] in command_families() and words[1:] in ([], ["-h"], ["--help"]):
            _print(family_help(words[0]))
        else:
            name, words = split_command(words)
            _run(name, COMMANDS[name], words)
    except MaeliftError as error:
        return _report_error(name, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _stopped(name, getattr(error, "number", SIGINT))
    except Exception as error:
        if signals.received is not None and not isinstance(error, OSError):  # a library's error for being stopped
            return _stopped(name, signals.received)
        message = advice_for(error)
        if message is None:
            if not isinstance(error, OSError):
                raise
            message = _os_error(error)
        return _report_error(name, message, 2)
    return 0


def _run(name: str, command: Command, words: list[str]) -> None:
    if _pop_flag(words, "-h", "--help"):
        _print(command_help(name, words))
        return
    cache = command.answer_cache(words)
    if cache is not None and (answer := cache.answer()) is not None:
        _print(answer)
        return
    _log_to_stderr(_pop_flag(words, "-q", "--quiet"))  # what is chosen for the user is said
    if command.home is None:
        _say_loading(name, command)
    schema = command.config_type()
    file = _pop_config(words)
    show_config = _pop_flag(words, "--show-config")
    dry_run = _pop_flag(words, "-n", "--dry-run") or show_config
    as_json = command.json and _pop_flag(words, "--json")
    words += [f"{key}=true" for key in command.switches if _pop_flag(words, f"--{key}")]
    actions = [function for flag, function in command.flags.items() if _pop_flag(words, flag)]
    unread.forget()
    config = _resolve(command, schema, _options_to_keys(words, command.options), file)
    if command.home is not None:  # the schema is a module of its own, which needs no torch
        _say_loading(name, command)
    if dry_run:
        plan = "\n".join([command.load("plan")(config).text(), *unread.reported()])
        _print(f"{plan}\n\n{to_yaml(config).rstrip()}" if show_config and to_dict(config) else plan)
        return
    if actions:
        _print(command.load(actions[0])(config).text())
        return
    try:
        run = command.load(command.run)
        result = run(config) if cache is None else run(config, cache)
    except OSError as error:
        error.filename = error.filename or getattr(config, "out", None)  # a failed write names no file
        raise
    if _is_main_process():
        _print(result.to_json() if as_json else result.summary())
    if (unsound := getattr(result, "error", None)) is not None:
        raise MaeliftError(unsound)


def _say_loading(name: str, command: Command) -> None:
    """The first words of a command that has nothing to say before torch is imported."""
    if command.loads_torch and "torch" not in sys.modules:
        logger.info("%s: loading torch", name)


def _resolve(command: Command, schema: Any, words: Sequence[str], file: Path | None) -> Any:
    """The configuration from the file and the words."""
    named = [bool(command.positional) and os.path.lexists(word) and not _names_key(word, schema) for word in words]
    for word, is_file in zip(words, named, strict=True):
        if word.startswith("-") and not is_file:
            raise MaeliftError(unknown_option(word, command))
    overrides = list(words)
    bare = [number for number, word in enumerate(words) if "=" not in word or named[number]]
    for number, key in zip(bare, command.positional, strict=False):
        overrides[number] = f"{key}={words[number]}"
    return command.resolve(overrides, file)


def _names_key(word: str, schema: Any) -> bool:
    """Whether a word is KEY=VALUE for an existing key, and not a file of this name."""
    key, equals, _ = word.partition("=")
    if not equals or not is_dataclass(schema):
        return bool(equals)
    return any(entry.key.partition(".")[0] == key.partition(".")[0] for entry in describe(cast(type, schema)))


def _options_to_keys(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """``--to timm`` and ``--to=timm`` as ``to=timm``, for the keys in ``options``."""
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


def _pop_flag(words: list[str], *flags: str) -> bool:
    """Remove the flags from the words; whether there was one."""
    found = any(word in flags for word in words)
    words[:] = [word for word in words if word not in flags]
    return found


def _pop_config(words: list[str]) -> Path | None:
    """Remove ``--config FILE`` or ``--config=FILE`` from the words, and return the file."""
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


def _print(text: str) -> None:
    """Print to standard output; a reader that closes it early, as ``| head`` does, is no error."""
    try:
        shown, encoding = printable(text, lines=True), sys.stdout.encoding or "utf-8"
        print(shown.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again at exit
        if not isinstance(error, BrokenPipeError):
            error.filename = "standard output"
            raise


def _report_error(name: str, message: str, exit_code: int) -> int:
    if os.environ.get("MAELIFT_DEBUG"):
        traceback.print_exc()
    if _is_main_process():
        with suppress(OSError):  # the terminal may be gone
            print(f"maelift {printable(name)}: {_shortened(printable(message))}", file=sys.stderr)
    return exit_code


def _shortened(text: str) -> str:
    """A very long message without its middle."""
    half = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{(error.strerror or str(error)).lower()}."


def _is_main_process() -> bool:
    """Whether this is the process that prints, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class _CommandLog(logging.StreamHandler):  # type: ignore[type-arg]  # Python 3.10 takes no parameter here
    """What a command logs, on the standard error stream of its call."""


def _log_to_stderr(quiet: bool) -> None:
    logger.setLevel(logging.INFO if _is_main_process() and not quiet else logging.WARNING)
    for handler in [one for one in logger.handlers if isinstance(one, _CommandLog)]:
        logger.removeHandler(handler)  # of an earlier call in this process, whose stream may be closed
    if not logger.handlers:
        handler = _CommandLog(sys.stderr)
        handler.setFormatter(LineFormatter())
        logger.addHandler(handler)
        logger.propagate = False
