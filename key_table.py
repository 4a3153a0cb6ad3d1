"""The keys of every command, from a file written from the schemas, so that help needs no imports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .commands import COMMANDS
from .core.config_keys import KeyHelp, KeySection, key_sections, nearest
from .core.errors import MaeliftError

KEY_FILE = Path(__file__).parent / "key_table.json"
"""Written by tests/write_api_keys.py."""

MAIN_KEYS = {
    "pretrain": {
        "images and result": "data out holdout",
        "model": "recipe model image_size patch_size init",
        "training": "epochs batch_size base_lr masking.ratio seed",
        "machine": "device workers",
    },
    "transfer classify": {
        "images and result": "data out labels val test group",
        "start": "encoder init model image_size",
        "training": "recipe method epochs steps seed",
        "machine": "device workers",
    },
    "transfer detect": {
        "images and result": "data out labels val test group",
        "start": "encoder init model image_size",
        "training": "recipe engine head epochs steps batch_size seed",
        "machine": "device workers",
    },
    "transfer segment": {
        "images and result": "data out labels val test group",
        "start": "encoder init model image_size",
        "training": "recipe engine head epochs steps batch_size seed",
        "machine": "device workers",
    },
    "embed": {
        "images and result": "encoder images out labels",
        "features": "features image_size neighbours page",
        "machine": "batch_size device workers",
    },
    "export": {"encoder and result": "encoder to out"},
    "bench": {
        "suite and result": "suite out",
        "images": "data.path data.unlabelled data.pool labels seeds pretrain_seeds",
        "model": "model image_size patch_size",
        "effort": "budget.hours tuning.max_doublings evaluations device workers",
    },
}
"""The keys that most people need, in groups, of the commands that have many."""


def sections(name: str) -> list[KeySection]:
    """The keys of a command, by its words."""
    stored = _stored().get(name)
    if stored is None:  # of a task that another package brings
        return sections_of_schema(name)
    return [KeySection(one["title"], tuple(KeyHelp(**key) for key in one["keys"])) for one in stored]


def sections_of_schema(name: str) -> list[KeySection]:
    """The keys of a command as its schema has them, which is imported."""
    command = COMMANDS[name]
    return key_sections(command.config_type(), command.defaults(command) if command.defaults else None)


def keys_of(name: str) -> list[KeyHelp]:
    """The keys of a command, each once."""
    return list({entry.key: entry for one in sections(name) for entry in one.keys}.values())


def main_sections(name: str) -> list[KeySection]:
    """The keys of a command that most people need, in groups; all of a command that has few."""
    chosen = MAIN_KEYS.get(name)
    if chosen is None:
        return sections(name)
    known = {entry.key: entry for entry in keys_of(name)}
    return [KeySection(title, tuple(known[key] for key in keys.split())) for title, keys in chosen.items()]


def chosen_sections(name: str, words: Sequence[str]) -> list[KeySection]:
    """The keys that are named by themselves, by their group ("masking") or by their section ("mmseg"); "all" for every one.

    Raises MaeliftError for a word that names none.
    """
    if "all" in words:
        return sections(name)
    return [one for word in words for one in _named(name, word)]


def _named(name: str, word: str) -> list[KeySection]:
    every = sections(name)
    if titled := [one for one in every if word in one.title.strip(" :").split()]:
        return titled
    entries = keys_of(name)
    if found := [one for one in entries if one.key == word or one.key.startswith(f"{word}.")]:
        return [KeySection("", tuple(found))]
    close = nearest(word, [one.key for one in entries])
    meant = f" Did you mean {close}?" if close else ""
    raise MaeliftError(f"{word}: no such key.{meant} maelift {name} -h all lists every key.")


@cache
def _stored() -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads(KEY_FILE.read_text(encoding="utf-8"))
    return content
