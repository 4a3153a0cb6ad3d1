"""The folder of a run: its configuration beside its output, and whether another run may go on in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import MaeliftError, config_difference, to_dict, write_config
from .distributed import Ranks
from .files import atomic_write_text

FREE_KEYS = ("out", "data", "workers", "device", "checkpoint_minutes", "log_every")
"""Keys that may differ between a run and its continuation: they do not change the result. The data's content is compared
itself."""


@dataclass(frozen=True)
class RunFolder:
    """``path`` holds config.yaml, data.json (what was trained on), and ``checkpoint`` while the run isn't finished."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The file that an unfinished run goes on from."""
        return self.path / "checkpoint.pt"

    @classmethod
    def open(cls, path: Path, config: Any, ranks: Ranks) -> RunFolder:
        """Take the folder for this configuration; raise MaeliftError when it holds a run of another one."""
        from omegaconf import OmegaConf

        folder, file = cls(path), path / "config.yaml"
        if file.exists():
            old = OmegaConf.to_container(OmegaConf.load(file))
            differences = config_difference(_fixed(old), _fixed(to_dict(config)))
            if differences:
                raise MaeliftError(
                    f"out={path} holds a run of another configuration ({'; '.join(differences)}). "
                    "Choose another out, or give that configuration to go on with it."
                )
        elif ranks.is_main:
            write_config(config, file)
        ranks.barrier()
        return folder

    def check_data(self, digest: str, ranks: Ranks) -> None:
        """Raise MaeliftError when the run in this folder was made on other images."""
        file = self.path / "data.json"
        if file.exists():
            old = json.loads(file.read_text())["manifest"]
            if old != digest:
                raise MaeliftError(
                    f"out={self.path} holds a run on other images (manifest {old[:12]}, now {digest[:12]}). "
                    "Choose another out, or bring the images back to go on."
                )
        elif ranks.is_main:
            atomic_write_text(file, json.dumps({"manifest": digest}) + "\n")
        ranks.barrier()


def _fixed(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in FREE_KEYS}
