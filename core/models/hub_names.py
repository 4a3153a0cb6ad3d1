"""Names of encoder files on the Hugging Face Hub, hf:NAME/MODEL[@REVISION]; without torch or the Hub's client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

HF = "hf:"
"""Before the name of a repository with an encoder file of maelift, where a user names weights."""
EXPECTED = "hf:NAME/MODEL or hf:NAME/MODEL@REVISION, of a repository on the Hugging Face Hub"
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_REPO = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]{0,199}", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository ``NAME/MODEL``, and a branch, tag or commit of it; None: its main branch."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, key: str) -> HubName:
        """The name in ``text``, with or without hf: before it; raises ConfigError, which names the user's ``key``."""
        repo, at, revision = text.removeprefix(HF).partition("@")
        if at and not is_revision(revision):
            raise ConfigError(key, text, EXPECTED, "A revision is a branch, a tag or a commit.")
        if not is_repo(repo):
            raise ConfigError(key, text, EXPECTED)
        return cls(repo, revision or None)

    @property
    def is_commit(self) -> bool:
        """Whether it names a commit, which always has the same files."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{HF}{self.repo}{'' if self.revision is None else f'@{self.revision}'}"


def is_hub_name(source: str) -> bool:
    """Whether a user's source of weights is a name with hf: before it."""
    return source.startswith(HF)


def is_moving(source: str) -> bool:
    """Whether a source is a name with hf: whose files may change, as it names no commit."""
    return is_hub_name(source) and not HubName.parse(source, "weights").is_commit


def is_repo(text: str) -> bool:
    """Whether a text is NAME/MODEL, as the Hub has them."""
    return _REPO.fullmatch(text) is not None and "--" not in text and ".." not in text and not text.endswith(".git")


def is_revision(text: str) -> bool:
    """Whether a text can be the name of a branch or a tag, or a commit."""
    return _REVISION.fullmatch(text) is not None and ".." not in text and not text.endswith(("/", ".lock"))


def cached_name(path: Path) -> str:
    """hf:NAME/MODEL@COMMIT of a file in the cache of the Hub's client; empty for other files."""
    parts = path.absolute().parts
    if len(parts) < 4 or parts[-3] != "snapshots" or not _COMMIT.fullmatch(parts[-2]):
        return ""
    kind, *repo = parts[-4].split("--")
    return str(HubName("/".join(repo), parts[-2])) if kind == "models" and len(repo) == 2 else ""
