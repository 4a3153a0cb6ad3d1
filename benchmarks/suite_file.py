"""A suite's YAML file: its keys over those of the suites that it extends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..core.config import raw_value
from ..core.config_keys import nearest
from ..core.errors import ConfigError, MaeliftError
from ..core.signals import Interrupted
from ..core.yaml_files import merged, read_yaml
from .short_arms import expanded

SUITES = Path(__file__).parent / "suites"


def read_suite(suite: str) -> dict[str, Any]:
    """The keys of a shipped suite or of a YAML file; with ``extends``, over those of another.

    A list of arms says which there are; those of the extended suite that it doesn't name are left out.
    """
    keys: dict[str, Any] = {}
    for _, own in _layers(suite):
        keys = over(keys, own)
    return keys


def over(keys: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a suite with others on top, arms in short form among them."""
    arms = own.get("arms")
    if not isinstance(arms, list | tuple):
        return merged(dict(keys), dict(own))
    return {**merged(dict(keys), dict(own)), "arms": expanded(arms, keys.get("arms") or {})}


def listed_arms(overrides: Sequence[str] | Mapping[str, object]) -> list[object] | None:
    """The arms of overrides where these are a list; None where they aren't, or none are given."""
    given = raw_value("arms", overrides)
    if isinstance(given, str) and given.strip().startswith("["):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError:  # said where all keys are read
            return None
    return list(given) if isinstance(given, list | tuple) else None


def without_arms(overrides: Sequence[str] | Mapping[str, object]) -> list[str] | dict[str, object]:
    """Overrides without a list of arms, which ``over`` has laid on top of the suite."""
    if isinstance(overrides, Mapping):
        return {key: value for key, value in overrides.items() if key != "arms"}
    return [word for word in overrides if not word.startswith("arms=")]


def suite_files(suite: str) -> list[Path]:
    """The files that a suite is read from: its own last, before it those that it extends."""
    return [path for path, _ in _layers(suite)]


def _layers(suite: str, above: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The files of a suite with their keys; ``above``: those that extend this one."""
    path = SUITES / f"{suite}.yaml"
    if not path.is_file():
        path = Path(suite)
    if not path.is_file():
        names = sorted(file.stem for file in SUITES.glob("*.yaml"))
        close = nearest(suite, names)
        raise ConfigError(
            "suite", suite, f"a YAML file or one of {', '.join(names)}", f"Did you mean {close}?" if close else ""
        )
    keys = _read_keys(path)
    base = keys.pop("extends", None)
    if base is not None and path in above:
        raise MaeliftError(f"{path}: extends leads back to it ({base}). Expected another suite.")
    return [*([] if base is None else _layers(str(base), (*above, path))), (path, keys)]


def _read_keys(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, its numbers as in all of maelift's: 1e-3 is one."""
    content, _ = read_yaml(path)
    if not content or list(content.values()) == [None]:
        raise MaeliftError(f"{path}: expected keys and values, such as title, data, labels, seeds and arms.")
    return {str(key): value for key, value in content.items()}


def named_suite(overrides: Sequence[str] | Mapping[str, object], file: Path | None) -> str:
    """The suite that the overrides or the file name; raises MaeliftError where neither does."""
    named = raw_value("suite", overrides)
    if named is None and file is not None:
        named = _read_keys(file).get("suite")
    if named is None:
        raise MaeliftError("suite: needed (name of a shipped suite, or a YAML file). Give maelift bench SUITE out=DIR.")
    return str(named)


@contextmanager
def key_prefix(prefix: str) -> Iterator[None]:
    """Let errors within name their key in full."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(prefix + error.key, error.value, error.expected, error.advice) from error
    except Interrupted:  # a signal that came within is no mistake of the key's
        raise
    except MaeliftError as error:
        raise MaeliftError(f"{prefix}{error}") from error
