"""The help of the command line: of maelift, of a family of commands, of each command with all its keys."""

from __future__ import annotations

from collections.abc import Sequence

from .commands import COMMANDS, Command, command_families
from .core.config_keys import KeySection, nearest
from .key_table import MAIN_KEYS, chosen_sections, keys_of, main_sections, sections

EXAMPLES = """\
  maelift pretrain data=photos out=runs/photos model=vit_small epochs=200
  maelift transfer classify encoder=runs/photos/encoder.safetensors data=labelled out=runs/classes
  maelift bench quickstart out=runs/quickstart
  maelift export runs/photos/encoder.safetensors --to detectron2 out=detector"""


def unknown_option(word: str, command: Command) -> str:
    """The message for an option that doesn't exist, or not for this command."""
    known = command.known_options
    close = nearest(word.partition("=")[0], known)
    if "=" in word and close is None:
        return f"{word}: no such option. Keys have no dashes: {word.lstrip('-')}."
    meant = f" Did you mean {close}?" if close else ""
    return f"{word}: no such option.{meant} Expected key=value or {', '.join(known)}."


def overview() -> str:
    """What ``maelift --help`` prints."""
    return "\n".join(
        [
            "maelift: pretrain a masked autoencoder on your own images, and learn whether it helps.",
            "",
            "usage: maelift COMMAND [--config FILE] [--dry-run] [--quiet] key=value ...",
            "",
            "commands (maelift COMMAND -h: its main keys, -h all: every key, -h KEY: one):",
            *_summary_lines(COMMANDS),
            "",
            "examples:",
            EXAMPLES,
            "",
            "--dry-run prints the plan and writes nothing, --show-config the configuration too; --version prints the version.",
            "maelift completion SHELL prints what completes commands and keys in bash, zsh or fish.",
            "MAELIFT_DEBUG=1 in the environment shows where an error comes from.",
        ]
    )


def family_help(first: str) -> str:
    """What ``maelift FIRST`` prints for commands of two words, such as "data"."""
    lines = _summary_lines(command_families()[first])
    return "\n".join([f"usage: maelift {first} ..., one of these (with -h: its keys)", "", *lines])


def _summary_lines(names: Sequence[str] | dict[str, Command]) -> list[str]:
    width = max(len(name) for name in names)
    return [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]


def command_help(name: str, words: Sequence[str]) -> str:
    """What ``maelift COMMAND --help`` prints: the keys that most people need, or those that ``words`` name, or all.

    Raises MaeliftError for a word that names no key.
    """
    command = COMMANDS[name]
    wanted = [word for word in words if "=" not in word and not word.startswith("-")]
    if command.positional and "all" not in wanted:  # "bench mine.yaml -h"
        known = {entry.key.partition(".")[0] for entry in keys_of(name)}
        known.update(word for one in sections(name) for word in one.title.strip(" :").split())
        wanted = [word for word in wanted if word.partition(".")[0] in known]
    if wanted:
        return "\n\n".join(_texts(name, chosen_sections(name, wanted), single="all" not in wanted))
    shown = main_sections(name)
    return "\n\n".join(
        [f"maelift {name}: {command.summary}\n\n{usage(name, command)}", *_texts(name, shown), *_rest(name, shown)]
    )


def usage(name: str, command: Command) -> str:
    """The line on how a command is called."""
    positional = "".join(f" {key.upper()}" for key in command.positional)
    for option in command.options:
        positional += f" [--{option} {command.optional}]" if command.optional else f" --{option} {option.upper()}"
    switches = [f"--{key}" for key in command.switches]
    json = "".join(f" [{flag}]" for flag in (*(["--json"] if command.json else []), *command.flags, *switches))
    return (
        f"usage: maelift {name}{positional} [--config FILE] [--dry-run | --show-config] [--quiet]{json} key=value ..."
    )


def _texts(name: str, chosen: Sequence[KeySection], *, single: bool = False) -> list[str]:
    """The sections as texts; with an example each where they were asked for by themselves."""
    texts = [one.text() for one in chosen if one.keys]
    if single and sum(len(one.keys) for one in chosen) == 1:
        entry = chosen[0].keys[0]
        texts += [f"  example: maelift {name} ... {entry.key}={entry.example}"] if entry.example else []
    return texts


def _rest(name: str, shown: Sequence[KeySection]) -> list[str]:
    """How to see the keys that aren't shown."""
    every = keys_of(name)
    more = len(every) - sum(len(one.keys) for one in shown)
    if name not in MAIN_KEYS or more <= 0:
        return []
    groups = list(dict.fromkeys(entry.key.partition(".")[0] for entry in every if "." in entry.key))
    if titled := [one.title.strip(" :").split()[-1] for one in sections(name) if one.title]:
        groups = titled
    grouped = f", a group of them with -h {' or -h '.join(groups[:2])}" if groups else ""
    return [f"{more} more keys: maelift {name} -h all. One with -h {every[-1].key}{grouped}."]
