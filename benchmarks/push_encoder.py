"""The command ``maelift push``: an encoder file to the Hugging Face Hub, its card with the verdicts of a suite."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..adapters import hub_push
from ..adapters.hub_config import PushConfig
from ..adapters.hub_push import PushResult, ReadVerdicts
from ..adapters.model_card import SuiteVerdicts
from ..core.dry_run import Plan
from ..core.errors import CheckpointError, MaeliftError
from ..core.models.encoder_file import read_contract
from ..core.models.stored_contract import CONTRACT_KEY, ENCODER_FILE
from ..core.models.tensor_files import read_metadata
from .analysis import Comparisons
from .compare_suites import read_result
from .verdicts import verdict_sentences, warnings_of


def push(config: PushConfig) -> PushResult:
    """Upload the encoder file; raises MaeliftError as ``hub_push.push`` does, and for a folder without a suite's results."""
    return hub_push.push(config, _suite(config))


def plan(config: PushConfig) -> Plan:
    """What ``maelift push`` would upload, and where; the Hub is not asked."""
    return hub_push.plan(config, _suite(config))


def _suite(config: PushConfig) -> ReadVerdicts | None:
    """What reads the verdicts of the suite in ``report``; None where none is given."""
    return None if config.report is None else partial(_verdicts, config.report)


def _verdicts(report: str, encoder: str) -> SuiteVerdicts:
    """What the suite in the folder ``report`` says, by its results file; ``encoder``: a content hash."""
    given = Path(report)
    folder = given if given.is_dir() else given.parent  # report.html names its folder too
    result = read_result(folder)
    found = Comparisons(result)
    sentences = tuple(verdict_sentences(found))
    if not sentences:
        raise MaeliftError(
            f"report={report}: the suite has no verdict yet. Let it run to its end first: maelift bench."
        )
    contained = encoder in _encoders_of(folder)
    return SuiteVerdicts(result.title, sentences, tuple(warnings_of(found)), contained)


def _encoders_of(folder: Path) -> set[str]:
    """The content hashes of the encoders that a suite's runs saved, and of those that they were made of."""
    hashes = set()
    for path in sorted(folder.glob(f"runs/*/{ENCODER_FILE}")):
        try:
            contract, _, _, provenance = read_contract(path, read_metadata(path)[CONTRACT_KEY])
        except (CheckpointError, KeyError):
            continue  # of an interrupted run
        hashes |= {str(contract.content["content_hash"]), provenance.parent or ""}
    return hashes
