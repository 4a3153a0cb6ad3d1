"""The help of the command line: of maelift, of a family of commands, of each command with all its keys."""

from __future__ import annotations

from collections.abc import Sequence

from .commands import COMMANDS, Command, command_families
from .core.config_keys import format_help, nearest

EXAMPLES = """\
  maelift pretrain data=photos out=runs/photos model=vit_small epochs=200
  maelift transfer classify encoder=runs/photos/encoder.safetensors data=labelled out=runs/classes
  maelift bench quickstart out=runs/quickstart
  maelift export runs/photos/encoder.safetensors --to detectron2 out=detector"""


def unknown_option(word: str, command: Command) -> str:
    """The message for an option that doesn't exist, or not for this command."""
    known = ["--config", "--dry-run", "--quiet", "--help", *(["--json"] if command.json else []), *command.flags]
    known += [f"--{option}" for option in (*command.options, *command.switches)]
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
            "commands (maelift COMMAND -h lists every key):",
            *_summary_lines(COMMANDS),
            "",
            "examples:",
            EXAMPLES,
            "",
            "--dry-run prints the configuration and the plan, writes nothing; --version prints the version.",
            "MAELIFT_DEBUG=1 in the environment shows where an error comes from.",
        ]
    )


def family_help(first: str) -> str:
    """What ``maelift FIRST`` prints for commands of two words, such as "data"."""
    lines = _summary_lines(command_families()[first])
    return "\n".join([f"usage: maelift {first} ..., one of these (with -h: every key)", "", *lines])


def _summary_lines(names: Sequence[str] | dict[str, Command]) -> list[str]:
    width = max(len(name) for name in names)
    return [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]


def command_help(name: str, command: Command, schema: type) -> str:
    """What ``maelift COMMAND --help`` prints."""
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
