"""Paths as they are published in weights, pages and tables: their last names, without folders and user names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

FULL_PATHS = "MAELIFT_FULL_PATHS"
"""The variable of the environment that asks for full paths; any value but 0 does."""


def public_name(text: str) -> str:
    """The last name of a path; other text, and addresses with "://", as they are.

    A path is what begins as one, or leads to a folder that is there.
    """
    if os.environ.get(FULL_PATHS, "0") != "0" or "://" in text or "\n" in text:
        return text
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return PureWindowsPath(text).name or text[:2]
    if text.startswith(("/", "~", "./", "../")) or ("/" in text and _leads_somewhere(text)):
        return PurePosixPath(text).name or "/"
    return text


def _leads_somewhere(text: str) -> bool:
    try:
        return os.path.exists(text) or os.path.isdir(os.path.dirname(text))
    except ValueError:  # a null byte
        return False


def public_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose paths are their last names."""
    return {key: _public(value) for key, value in content.items()}


def public_text(text: str, folders: Iterable[str | os.PathLike[str]] = ()) -> str:
    """Text without the folders of files: those below ``folders``, the working folder and the home folder begin there."""
    if os.environ.get(FULL_PATHS, "0") != "0":
        return text
    places = {os.path.abspath(folder) for folder in (*folders, os.getcwd(), os.path.expanduser("~"))}
    for place in sorted(places - {"/"}, key=len, reverse=True):
        text = text.replace(f"{place}/", "").replace(place, os.path.basename(place))
    return text


def _public(value: Any) -> Any:
    if isinstance(value, str):
        return public_name(value)
    if isinstance(value, Mapping):
        return public_config(value)
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return value
