"""The folder of a run: its configuration beside its output, and whether a command may resume the run in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..config import config_difference
from ..errors import MaeliftError
from ..files import NotRegularError, atomic_write_text, exclusive_lock, read_regular_text
from ..processes import Processes
from ..yaml_files import to_dict, write_config

FREE_KEYS = (
    *("out", "data", "encoder", "workers", "device", "accumulate", "launch", "slurm"),
    *("parallel", "activation_checkpointing", "compile"),
    *("checkpoint_minutes", "checkpoints", "log_every", "probe", "wandb", "reindex", "background", "shown"),
)
"""Keys that may differ between a run and its continuation: they do not change the result, except for rounding. The contents
of data and encoder are compared instead, images as composed on the background."""


@dataclass(frozen=True)
class RunFolder:
    """``path`` holds config.yaml, data.json (what was trained on), and ``checkpoints`` while the run isn't finished."""

    path: Path
    config: Any

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints that an unfinished run resumes from."""
        return self.path / "checkpoints"

    @classmethod
    @contextmanager
    def open(cls, path: Path, config: Any, ranks: Processes) -> Iterator[RunFolder]:
        """The folder for this configuration, locked for one command; raise MaeliftError when it has a run of another one.

        Nothing but a lock is written before ``check_data``, so that a mistake found until then can be fixed in the same
        folder.
        """
        file = path / "config.yaml"
        with ExitStack() as locks:
            ranks.broadcast(lambda: locks.enter_context(exclusive_lock(path)))
            if file.exists():
                before = {**_default_values(config), **read_run_config(file)}  # for keys that are newer than the run
                differences = config_difference(_determining(before), _determining(to_dict(config)))
                if differences:
                    raise MaeliftError(
                        f"out={path} has a run of another configuration ({'; '.join(differences)}). "
                        "Choose another out, or use that configuration to resume it."
                    )
            ranks.barrier()
            yield cls(path, config)

    def check_data(self, digest: str, ranks: Processes, encoder: str | None = None) -> None:
        """Raise MaeliftError when the run in this folder was trained on other images, or from another encoder.

        Both are compared by hashes of their contents. The first time, these and the configuration are saved.
        """
        file, new = self.path / "data.json", {"manifest": digest, "encoder": encoder}
        if file.exists():
            old = read_run_config(file)
            for key, what in (("manifest", "on other images or labels"), ("encoder", "from another encoder")):
                before, now = (str(content.get(key))[:12] for content in (old, new))
                if old.get(key) != new[key]:
                    raise MaeliftError(
                        f"out={self.path} has a run {what} ({key} {before}, now {now}). "
                        "Choose another out, or restore what it was made from to resume it."
                    )
        elif ranks.is_main:
            write_config(self.config, self.path / "config.yaml")
            atomic_write_text(file, json.dumps(new) + "\n")
        ranks.barrier()


def check_settings(folder: Path, config: Any, what: str) -> None:
    """Write the settings beside results, ``what`` in words; raise MaeliftError where the folder has results of other settings."""
    file = folder / "config.yaml"
    if not file.exists():
        write_config(config, file)
        return
    difference = config_difference({**_default_values(config), **read_run_config(file)}, to_dict(config))
    if difference:
        raise MaeliftError(
            f"out={folder} holds {what} with other settings ({'; '.join(difference)}). Choose another out."
        )


def read_run_config(file: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file of a run; raises MaeliftError for other content."""
    try:
        content = yaml.safe_load(read_regular_text(file))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, NotRegularError):
        content = None
    if not isinstance(content, dict):
        raise MaeliftError(f"{file}: not a file of a maelift run. Choose another out, or remove it.")
    return content


def _default_values(config: Any) -> dict[str, Any]:
    """The keys of a configuration that have their default values."""
    plain, found = to_dict(config), {}
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is not MISSING and getattr(config, field.name) == default:
            found[field.name] = plain[field.name]
    return found


def _determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the result depends on."""
    return {key: value for key, value in config.items() if key not in FREE_KEYS}
