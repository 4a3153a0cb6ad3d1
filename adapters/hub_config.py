"""The keys of ``maelift push`` and ``maelift pull``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigError
from ..core.models.hub_names import HF, HubName, is_repo, is_revision


@dataclass(frozen=True)
class PushConfig:
    """Upload an encoder file to the Hugging Face Hub, with what timm loads and a model card, in one commit."""

    encoder: str
    """encoder file of maelift"""
    repo: str
    """NAME/MODEL: the user or organisation, and the repository, which is made where it isn't there"""
    private: bool = True
    """a repository that is made is private; false: anybody can read it. That of an existing one stays as it is"""
    message: str | None = None
    """of the commit; null: the encoder's content hash and maelift's version"""
    revision: str | None = None
    """branch to upload to, which is made where it isn't there; null: main"""
    report: str | None = None
    """folder of a finished suite, whose verdicts stand in the model card; null: none"""
    timm: bool = True
    """also upload what timm.create_model("hf-hub:NAME/MODEL") loads; false: for encoders that timm can't hold"""

    def __post_init__(self) -> None:
        if not is_repo(self.repo):
            advice = (
                f"Without {HF} before it." if self.repo.startswith(HF) else "Letters, digits, and - _ . between them."
            )
            raise ConfigError("repo", self.repo, "NAME/MODEL, a user or organisation and a repository of it", advice)
        if self.revision is not None and not is_revision(self.revision):
            raise ConfigError("revision", self.revision, "the name of a branch")
        if self.message is not None and not self.message.strip():
            raise ConfigError("message", self.message, "a text, or null")

    @property
    def target(self) -> HubName:
        """The repository and its branch, as messages name them."""
        return HubName(self.repo, self.revision)


@dataclass(frozen=True)
class PullConfig:
    """Fetch an encoder file from the Hugging Face Hub, and check its hashes. Only safetensors is fetched."""

    name: str
    """hf:NAME/MODEL of a repository that maelift push made, or hf:NAME/MODEL@REVISION: a branch, tag or commit"""
    out: str
    """encoder file to be written (.safetensors); it must not be there yet, unless it is the same"""

    def __post_init__(self) -> None:
        HubName.parse(self.name, "name")
        if Path(self.out).suffix != ".safetensors":
            raise ConfigError("out", self.out, "a file name that ends in .safetensors")
