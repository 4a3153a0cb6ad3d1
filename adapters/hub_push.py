"""Uploads an encoder file to the Hugging Face Hub with what timm loads and a model card: in one commit, or nothing."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.dry_run import Plan
from ..core.errors import CheckpointError, MaeliftError
from ..core.models.backbone import Backbone
from ..core.models.contract import CONTENT_HASH, Metadata
from ..core.models.encoder_file import EncoderFile, read_backbone
from ..core.models.hub_files import LOG_IN, check_token, hub_error, hub_host, is_reachable
from ..core.models.stored_contract import CONTRACT_KEY, ENCODER_FILE
from ..core.models.weight_files import weights_file
from ..core.terminal import quoted
from ..version import __version__
from .certificate import CERTIFICATE_FILE
from .export import exporter, value_notes
from .hub_config import PushConfig
from .model_card import CardContent, SuiteVerdicts, card_text
from .timm import TimmExport

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger("maelift")

ReadVerdicts = Callable[[str], SuiteVerdicts]
"""What a suite says, for an encoder of this content hash."""
CARD_FILE = "README.md"
TIMM_FILES = ("config.json", "model.safetensors", CERTIFICATE_FILE)
REPEATABLE = "Run the command again where there is one: it uploads in one commit, or finds that it has."
ANSWER_WAIT = 60.0
"""Seconds without a byte after which a request is given up; the Hub's client waits for ever by itself."""


@dataclass(frozen=True)
class PushResult:
    """What was uploaded where; ``files``: bytes by name, none where the same encoder was there already."""

    repo: str
    commit: str
    address: str
    content_hash: str
    files: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """The files, the commit, and how to load the encoder."""
        if not self.files:
            lines = [
                f"{self.address}: the same encoder is there already (content hash {self.content_hash[:12]}); nothing was uploaded"
            ]
        else:
            lines = [f"{self.address}:", *_file_lines(self.files)]
        lines += [f"commit {self.commit}", *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, "", f"maelift pull hf:{self.repo}@{self.commit} out=encoder.safetensors"])


@dataclass(frozen=True)
class Repository:
    """What is on the Hub before an upload: the last commit, the files, and the content hash of the encoder, if it is ours.

    ``commit`` is empty for a repository that isn't there; ``branch``: whether the branch to upload to is there.
    """

    commit: str = ""
    files: frozenset[str] = field(default=frozenset())
    content_hash: str | None = None
    private: bool = True
    branch: bool = True


def push(config: PushConfig, suite: ReadVerdicts | None) -> PushResult:
    """Upload the encoder that ``config`` names; nothing where the same is there, unless the verdicts of a suite change its card.

    Raises MaeliftError, before anything is sent: no encoder file of maelift, a failed certificate, no token, no network, or a
    repository with other weights; and for what the Hub refuses.
    """
    path, file, verdicts = _read(config, suite)
    api = _client(config)
    there = _repository(api, config)
    same = there.content_hash == file.content_hash
    if same and verdicts is None:
        return PushResult(config.repo, there.commit, _address(config), file.content_hash, {}, _notes(config, there))
    with tempfile.TemporaryDirectory(prefix="maelift-push-") as scratch:
        files = prepared(config, path, file, verdicts, Path(scratch))
        if same:
            files = {CARD_FILE: files[CARD_FILE]}
        commit = _upload(api, config, there, file.content_hash, files)
        sizes = {name: source.stat().st_size for name, source in files.items()}
    return PushResult(config.repo, commit, _address(config), file.content_hash, sizes, _notes(config, there))


def plan(config: PushConfig, suite: ReadVerdicts | None) -> Plan:
    """What ``push`` would upload, and where; the Hub is not asked."""
    path, file, verdicts = _read(config, suite)
    with tempfile.TemporaryDirectory(prefix="maelift-push-") as scratch:
        files = prepared(config, path, file, verdicts, Path(scratch))
        rows = tuple((name, f"{source.stat().st_size:,} bytes") for name, source in files.items())
    kind = "private" if config.private else "public"
    licence = (
        file.provenance.licence
        or "not stated in the encoder file: none in the card either (maelift import licence=...)"
    )
    return Plan(
        (
            ("uploads to", f"{_address(config)} ({kind}, if it is made), branch {config.revision or 'main'}"),
            *rows,
            ("licence", licence),
        ),
        parameters=sum(parameter.numel() for parameter in file.encoder.parameters()),
    )


def _read(config: PushConfig, suite: ReadVerdicts | None) -> tuple[Path, EncoderFile[Backbone], SuiteVerdicts | None]:
    """The encoder file's path and content, and what the suite says; raises CheckpointError for weights that aren't maelift's."""
    encoder = config.encoder
    path = weights_file(Path(encoder))
    file = read_backbone(path, log=False)
    if file.foreign:
        raise CheckpointError(
            f"{encoder}: {file.provenance.method} weights, not an encoder file of maelift. Make one of them first: "
            f"maelift import {quoted(encoder)} out={ENCODER_FILE}"
        )
    return path, file, None if suite is None else suite(file.content_hash)


def prepared(
    config: PushConfig, path: Path, file: EncoderFile[Backbone], verdicts: SuiteVerdicts | None, scratch: Path
) -> dict[str, Path]:
    """The files to upload, by their names on the Hub; those that are made lie in ``scratch``.

    Raises MaeliftError for an encoder that timm can't hold, and CheckpointError for a certificate that failed.
    """
    files = {ENCODER_FILE: path}
    certificate: str | None = None
    notes: tuple[str, ...] = ()
    if config.timm:
        certificate, notes = _export_to_timm(config, file, scratch)
        files |= {name: scratch / name for name in TIMM_FILES}
    content = CardContent(config.repo, path.stat().st_size, certificate, notes, verdicts)
    card = scratch / CARD_FILE
    card.write_text(card_text(file, content), encoding="utf-8")
    return {**files, CARD_FILE: card}


def _export_to_timm(config: PushConfig, file: EncoderFile[Backbone], folder: Path) -> tuple[str, tuple[str, ...]]:
    """Write what timm loads; the line of its certificate, and what becomes of images' values in timm."""
    try:
        plain = file.plain(config.encoder)
        bundle = exporter("timm")(plain, folder, TimmExport(config.encoder, "timm", str(folder)))
    except MaeliftError as error:
        raise CheckpointError(
            f"{error} Or give timm=false: only the encoder file and its card are uploaded then."
        ) from error
    bundle.certificate.check(" Nothing was uploaded.")
    bundle.certificate.write(folder)
    return bundle.certificate.line(), value_notes(plain.encoder.preprocessing, "timm")


def _client(config: PushConfig) -> HfApi:
    """The Hub's client; raises MaeliftError where there is no token, or no network."""
    from huggingface_hub import HfApi, constants

    if not check_token():
        raise MaeliftError(f"no token of the Hugging Face Hub. {LOG_IN} to one that may write to {config.repo}.")
    if constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT):
        raise MaeliftError(
            f"{config.target}: there is no network, or {hub_host()} does not answer (or HF_HUB_OFFLINE is set). Nothing was "
            "uploaded. Run the command again where there is one."
        )
    _limit_waits()
    return HfApi()


def _limit_waits() -> None:
    """Have the client of httpx give up after ``ANSWER_WAIT`` seconds; older clients, of requests, have limits of their own."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # it is public, by its documentation

    session: Any = get_session()
    if hasattr(session, "timeout"):
        session.timeout = ANSWER_WAIT


def _repository(api: HfApi, config: PushConfig) -> Repository:
    """What is on the Hub before the upload; raises MaeliftError for a repository with weights that aren't maelift's."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    branch = True
    try:
        try:
            info = api.model_info(config.repo, revision=config.revision, timeout=ANSWER_WAIT)
        except RevisionNotFoundError:
            branch, info = False, api.model_info(config.repo, timeout=ANSWER_WAIT)
    except RepositoryNotFoundError as error:
        if getattr(error.response, "status_code", None) == 401 and "credentials" in str(error):
            raise hub_error(error, config.target, REPEATABLE) from None
        return Repository(branch=config.revision is None)
    except Exception as error:
        raise hub_error(error, config.target, REPEATABLE) from None
    files = frozenset(entry.rfilename for entry in info.siblings or ())
    commit = str(info.sha or "")
    found = _content_hash(api, config, commit) if ENCODER_FILE in files else None
    if found is None and (others := sorted(files & {ENCODER_FILE, *TIMM_FILES})):
        raise MaeliftError(
            f"{config.target}: the repository has {', '.join(others)}, which maelift push didn't write. Nothing was uploaded. "
            "Choose another name."
        )
    return Repository(commit, files, found, bool(info.private), branch)


def _content_hash(api: HfApi, config: PushConfig, commit: str) -> str | None:
    """The content hash that the repository's encoder file states in its header; None where it isn't a file of ours."""
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        stored = api.parse_safetensors_file_metadata(config.repo, ENCODER_FILE, revision=commit).metadata
        text = stored.get(CONTRACT_KEY)
        return None if text is None else str(Metadata.parse(ENCODER_FILE, CONTRACT_KEY, text).content.get(CONTENT_HASH))
    except (SafetensorsParsingError, CheckpointError):
        return None
    except Exception as error:
        raise hub_error(error, config.target, REPEATABLE) from None


def _upload(api: HfApi, config: PushConfig, there: Repository, content_hash: str, files: Mapping[str, Path]) -> str:
    """Make the repository and the branch where they aren't there, and upload all files in one commit; its hash.

    Files for timm that were of another encoder are removed in the same commit.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    complete = ENCODER_FILE in files
    stale = sorted(there.files & set(TIMM_FILES) - set(files)) if complete else []
    operations: list[Any] = [CommitOperationAdd(name, source) for name, source in files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    what = f"encoder {content_hash[:12]}" if complete else f"model card of encoder {content_hash[:12]}"
    try:
        if not there.commit:
            api.create_repo(config.repo, private=config.private, exist_ok=True)
        if not there.branch and config.revision is not None:
            api.create_branch(config.repo, branch=config.revision, exist_ok=True)
        done = api.create_commit(
            config.repo,
            operations,
            commit_message=config.message or f"{what}, by maelift {__version__}",
            revision=config.revision,
            parent_commit=there.commit or None,
        )
    except Exception as error:  # the client, its transport and its storage have errors of their own
        raise hub_error(error, config.target, REPEATABLE) from None
    return str(done.oid)


def _notes(config: PushConfig, there: Repository) -> tuple[str, ...]:
    """What is other than the keys may make believe."""
    if there.commit and there.private != config.private:
        kind = "private" if there.private else "public"
        return (f"the repository was there already, and stays {kind}; change that in its settings on the Hub",)
    return ()


def _address(config: PushConfig) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT.partition('://')[0]}://{hub_host()}/{config.repo}"


def _file_lines(files: Mapping[str, int]) -> list[str]:
    width = max(map(len, files))
    return [f"  {name:<{width}}  {size:,} bytes" for name, size in files.items()]
