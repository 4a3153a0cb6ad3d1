"""Completion of commands, keys and their values in bash, zsh and fish."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .commands import COMMANDS, command_name
from .key_table import keys_of

Shell = Literal["bash", "zsh", "fish"]

SUITES = Path(__file__).parent / "benchmarks" / "suites"
"""The suites that come with maelift, a file each."""

SCRIPTS: dict[str, str] = {
    "bash": """\
# For this session: source <(maelift completion bash). For all: put this output into
# ~/.local/share/bash-completion/completions/maelift
_maelift() {
    local IFS=$'\\n'
    COMPREPLY=($(maelift --complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *= || ${COMPREPLY[0]} == *. ]] && compopt -o nospace
}
complete -o default -F _maelift maelift
""",
    "zsh": """\
#compdef maelift
# For this session: source <(maelift completion zsh). For all: maelift completion zsh > _maelift, in a folder of $fpath
_maelift() {
    local -a found
    found=("${(@f)$(maelift --complete zsh "${LBUFFER}" 2>/dev/null)}")
    compset -P '*='
    [[ -n ${found[1]} ]] && compadd -Q -S '' -- "${found[@]}" || _files
}
if [[ ${funcstack[1]} == _maelift ]]; then  # a file of $fpath is this function
    _maelift "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _maelift maelift
fi
""",
    "fish": """\
# For this session: maelift completion fish | source. For all: maelift completion fish > ~/.config/fish/completions/maelift.fish
complete -c maelift -a '(maelift --complete fish (commandline -cp) 2>/dev/null)'
""",
}


@dataclass(frozen=True)
class CompletionConfig:
    """Print what makes a shell complete commands, keys and values."""

    shell: Shell
    """bash, zsh or fish"""


@dataclass(frozen=True)
class Script:
    """A shell's script."""

    content: str

    def summary(self) -> str:
        """The script itself, to be sourced."""
        return self.content.rstrip()


def completion(config: CompletionConfig) -> Script:
    """The script for a shell."""
    return Script(SCRIPTS[config.shell])


def candidates(shell: str, line: str) -> list[str]:
    """What may stand at the end of a command line so far, for a shell; nothing where a file may be meant.

    bash and zsh get what comes after "=", fish whole words.
    """
    words = line.split()[1:]
    begun = words.pop() if words and not line[-1:].isspace() else ""
    name = command_name(words)
    if name not in COMMANDS:
        return _beginning(dict.fromkeys(" ".join(split[len(words) :][:1]) for split in _commands_after(words)), begun)
    longer = [split[len(words)] for split in _commands_after(words)]
    if begun.startswith("-"):
        return _beginning(COMMANDS[name].known_options, begun)
    key, equals, value = begun.partition("=")
    if words[-1:] in (["-h"], ["--help"]):
        return _beginning(["all", *(one.key for one in keys_of(name))], begun)
    if not equals:
        first = _values(name, COMMANDS[name].positional[0]) if COMMANDS[name].positional else []
        return _beginning([*longer, *first, *(f"{one.key}=" for one in keys_of(name))], begun)
    found = _beginning(_values(name, key), value)
    return [f"{key}={one}" for one in found] if shell == "fish" else found


def _commands_after(words: Sequence[str]) -> list[list[str]]:
    """The commands that begin with these words, and go on."""
    split = [name.split() for name in [*COMMANDS, "help"]]
    return [one for one in split if len(one) > len(words) and one[: len(words)] == list(words)]


def _values(name: str, key: str) -> list[str]:
    """The words that a key takes, where it takes some of few."""
    if (name, key) == ("bench", "suite"):
        return sorted(file.stem for file in SUITES.glob("*.yaml"))
    kind = next((one.type for one in keys_of(name) if one.key == key), "")
    words = [word for part in re.findall(r"one of ([^|\]]+)", kind) for word in re.split(r",\s*", part.strip())]
    return [
        *words,
        *(["true", "false"] if "true or false" in kind else []),
        *(["null"] if words and "null" in kind else []),
    ]


def _beginning(words: Sequence[str] | dict[str, None], begun: str) -> list[str]:
    return [word for word in words if word.startswith(begun)]
