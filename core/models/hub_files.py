"""Encoder files on the Hugging Face Hub: fetched into the cache of its client, and its errors in one line."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import CheckpointError, MaeliftError
from .hub_names import HubName
from .stored_contract import ENCODER_FILE, has_contract

NETWORK_WAIT = 5.0
"""Seconds within which a host must answer."""
NOT_CACHED = "Run the command again where there is one: it isn't in the cache of downloads."
LOG_IN = "Log in (hf auth login), or set HF_TOKEN"


def fetch_encoder(name: HubName) -> Path:
    """The encoder file of a repository, in the cache of the Hub's client; what is there already is not fetched again.

    Without a network, or with HF_HUB_OFFLINE=1, that of the cache. Only safetensors is fetched. Raises CheckpointError: no such
    repository or revision, no network, or a repository without an encoder file of maelift. The file's hashes are checked by
    who reads it (``read_backbone``).
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    check_token()
    try:
        with cached_only_without_network():
            path = Path(hf_hub_download(name.repo, ENCODER_FILE, revision=name.revision))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise hub_error(error, name, NOT_CACHED) from None
        raise not_an_encoder(name, f"has no {ENCODER_FILE}") from None
    except Exception as error:  # the client, its transport and its storage have errors of their own
        raise hub_error(error, name, NOT_CACHED) from None
    if not has_contract(path):
        raise not_an_encoder(name, f"has an {ENCODER_FILE} that isn't one of maelift")
    return path


def not_an_encoder(name: HubName, reason: str) -> CheckpointError:
    """The error for a repository with other weights, with the ways to these."""
    return CheckpointError(
        f"{name}: the repository {reason}. Weights for timm are named hf-hub:{name.repo}; others are fetched by hf download "
        f"{name.repo} --local-dir FOLDER, and made an encoder file by maelift import FOLDER out={ENCODER_FILE}"
    )


def check_token() -> bool:
    """Whether there is a token; raises MaeliftError for one that can't be sent, without showing it."""
    from huggingface_hub import get_token

    token = get_token()
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise MaeliftError(
            f"the token of the Hugging Face Hub has characters that no token has. {LOG_IN} to a valid token."
        )
    return token is not None


@contextmanager
def cached_only_without_network() -> Iterator[None]:
    """Within it the Hugging Face Hub is asked only where it can be reached: without a network, what is cached is read at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_reachable(address: str) -> bool:
    """Whether a host accepts connections within some seconds; True behind a proxy, which isn't asked."""
    place = urlsplit(address)
    if urllib.request.getproxies().get(place.scheme):
        return True
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), NETWORK_WAIT).close()
    except OSError:
        return False
    return True


def hub_host() -> str:
    """The host of the Hub, as messages name it."""
    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    return f"{place.hostname}:{place.port}" if place.port else str(place.hostname)


def hub_error(error: Exception, name: HubName, without_network: str) -> MaeliftError:
    """An error of the Hub's client as one line with advice; it never has the token in it.

    ``without_network``: what follows where the Hub can't be reached.
    """
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(f"{name}: its owner grants access on request only. Ask for it on the repository's page.")
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{name}: the repository has no such revision. Expected a branch, a tag or a commit of it."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{name}: there is no such repository on {hub_host()}, or it is private and the token may not read it. Check the "
            f"name. {LOG_IN}, for a private one."
        )
    if status == 401:
        return CheckpointError(f"{name}: the Hub does not accept the token (401). {LOG_IN} to a valid token.")
    if status == 403:
        return CheckpointError(
            f"{name}: the token may not do this (403). Make one that may write to {name.repo.partition('/')[0]} "
            "(huggingface.co/settings/tokens), and log in with it (hf auth login)."
        )
    if status in (409, 412):
        return CheckpointError(f"{name}: the repository was changed by somebody else meanwhile. Run the command again.")
    if status == 429 or (status is not None and status >= 500):
        return CheckpointError(f"{name}: the Hub can't answer now ({status}). Run the command again later.")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) or _is_of_transport(error):
        return CheckpointError(
            f"{name}: there is no network, or {hub_host()} does not answer (or HF_HUB_OFFLINE is set). {without_network}"
        )
    return CheckpointError(f"{name}: the Hub's client failed ({without_token(error)}).")


def _is_of_transport(error: Exception) -> bool:
    """Whether an error is one of the connection: of httpx, which newer clients use, or requests, which older ones do."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(packages & {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}) or isinstance(
        error, ConnectionError | TimeoutError
    )


def without_token(error: Exception) -> str:
    """The first line of an error's text, without what may be a token."""
    from huggingface_hub import get_token

    text = " ".join((str(error) or type(error).__name__).split())
    token = get_token()
    if token:
        text = text.replace(token, "...")
    return re.sub(r"hf_\w{4,}|Bearer \S+", "...", text)[:300]
