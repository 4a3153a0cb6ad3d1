"""Checkpoints of a training run: written by all processes in the background, atomically, with hashes.

Each is a folder ``step-NNNNNNNN`` of torch.distributed.checkpoint with a ``state.json`` beside the tensors, which holds what
isn't a tensor and a hash of every file. It gets its name once it is complete, and damage is detected by the hashes. All
processes must see the same folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..distributed import Ranks
from ..errors import CheckpointError
from ..files import atomic_write_text, open_regular, read_regular_text, sync_folder, sync_tree
from ..models.contract import parse_json, shown
from ..models.tensor_files import ALLOWANCE, EXPANSION

logger = logging.getLogger("maelift")
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process needs none

STATE_FILE = "state.json"
FORMAT = 1
ExtraState = Mapping[str, Any]
"""What isn't a tensor: numbers, texts, lists and mappings of them, as JSON stores them."""


class Checkpoints:
    """The last ``max_saved`` checkpoints of a run in ``folder``; made and used by all processes together.

    Nothing is written before the first ``save``.
    """

    def __init__(self, folder: Path, ranks: Ranks, max_saved: int = 3) -> None:
        self.folder, self.max_saved = folder, max_saved
        self._ranks = ranks
        # A process group of its own: its collectives run beside those of the training.
        self._group: Any = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether any process is still writing a checkpoint."""
        return self._ranks.any(self._pending is not None and not self._pending.done())

    def save(self, step: int, tensors: Mapping[str, Tensor], extra: ExtraState, *, wait: bool = False) -> None:
        """Write the state after ``step`` steps; it appears under its name once it is complete.

        The tensors are copied to the CPU at once and written by a thread, for which ``wait`` waits. Raises the error of
        writing the one before, or with ``wait`` of this one.
        """
        self.finish()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._pending = self._writer.submit(self._write, step, copies, dict(extra))
        if wait:
            self.finish()
            # A launcher ends all processes when the first has ended: that must not be before the checkpoint has its name.
            self._ranks.barrier()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written; raises the error of writing it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def newest(self) -> int | None:
        """The step of the newest undamaged checkpoint; None where none was ever written.

        Damaged ones are logged; raises CheckpointError when all are.
        """
        return self._ranks.broadcast(self._newest_undamaged)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what is the same on all."""
        return self._ranks.is_main

    def _newest_undamaged(self) -> int | None:
        for step in self._steps(r"\.step-(\d+)\.part"):  # killed between writing and renaming
            part = self._part(step)
            if self._damage(part) is None:
                shutil.rmtree(self._path(step), ignore_errors=True)
                os.replace(part, self._path(step))
        found = self._steps()
        for step in reversed(found):
            damage = self._damage(self._path(step))
            if damage is None:
                return step
            logger.warning("%s: damaged (%s); trying the one before", self._path(step), damage)
        if found:
            raise CheckpointError(
                f"{self.folder}: every checkpoint in it is damaged ({self._damage(self._path(found[-1]))}). "
                "Remove it to start again."
            )
        return None

    def extra_state(self, step: int) -> ExtraState:
        """What isn't a tensor of the state after ``step`` steps."""
        return _read_state_file(self._path(step)).extra

    def shapes(self, step: int) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of every tensor of the state after ``step`` steps, by name."""
        described, path = {}, self._path(step)
        for name, entry in self._reader(step).read_metadata().state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata) or not isinstance(entry.properties, TensorProperties):
                raise CheckpointError(f"{path}: {shown(name)} is no tensor. Remove it to start again.")
            described[name] = (torch.Size(entry.size), entry.properties.dtype)
        claimed = sum(size.numel() * dtype.itemsize for size, dtype in described.values())
        stored = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        if claimed > EXPANSION * stored + ALLOWANCE:  # they are allocated before they are read
            raise CheckpointError(
                f"{path}: its tensors claim {claimed:,} bytes in files of {stored:,}. Remove it to start again."
            )
        return described

    def load(self, step: int, into: Mapping[str, Tensor]) -> None:
        """Fill the tensors with those of the state after ``step`` steps, in place, whichever way they are sharded."""
        tensors = {name: tensor.detach() for name, tensor in into.items()}
        try:
            load(tensors, storage_reader=self._reader(step), process_group=self._group)
        except CheckpointException as error:
            if (inner := _wrapped(error, (KeyboardInterrupt, MemoryError))) is not None:
                raise inner from error  # a signal, or too little memory: the checkpoint is undamaged
            path = self._path(step)
            raise CheckpointError(
                f"{path}: can't be loaded ({_first_failure(error)}). Remove it to start again."
            ) from error

    def remove(self) -> None:
        """Remove all checkpoints: the run is done."""
        self.finish()
        self._ranks.barrier()
        if self._ranks.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._ranks.barrier()

    def _write(self, step: int, tensors: dict[str, Tensor], extra: ExtraState) -> None:
        path, part = self._path(step), self._part(step)
        if self._ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".*.part"):
                shutil.rmtree(leftover, ignore_errors=True)
            part.mkdir()
        if self._group is not None:
            dist.barrier(self._group)
        try:
            self._fill(part, tensors, extra)
        except BaseException:
            if self._ranks.is_main:
                shutil.rmtree(part, ignore_errors=True)  # on a full disk it would take room for good
            raise
        if not self._ranks.is_main:
            return
        shutil.rmtree(path, ignore_errors=True)  # exists when a step is saved again after a rewind
        os.replace(part, path)
        sync_folder(self.folder)
        steps = self._steps()
        # Later ones are damaged, or of steps before a rewind: the run continues from before them.
        done = steps.index(step) + 1
        for old in (*steps[: max(0, done - self.max_saved)], *steps[done:]):
            shutil.rmtree(self._path(old), ignore_errors=True)

    def _fill(self, part: Path, tensors: dict[str, Tensor], extra: ExtraState) -> None:
        """Write a checkpoint into the folder ``part``, and flush it to disk."""
        try:
            save(tensors, storage_writer=FileSystemWriter(part), process_group=self._group)
        except CheckpointException as error:
            raise _cause(error) from error
        if not self._ranks.is_main:
            return
        files = {file.name: _digest(file) for file in sorted(part.iterdir())}
        atomic_write_text(part / STATE_FILE, json.dumps({"format": FORMAT, "facts": extra, "files": files}) + "\n")
        sync_tree(part)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _part(self, step: int) -> Path:
        """Where a checkpoint is written before it gets its name."""
        return self.folder / f".{self._path(step).name}.part"

    def _steps(self, name: str = r"step-(\d+)") -> list[int]:
        """The steps that there is a checkpoint of, in order."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(name, path.name) for path in self.folder.iterdir())
        return sorted(int(found[1]) for found in names if found)

    @staticmethod
    def _damage(checkpoint: Path) -> str | None:
        """What is damaged in a checkpoint's folder; None where nothing is."""
        try:
            files = _read_state_file(checkpoint).files
            wrong = [name for name, digest in files.items() if _digest(checkpoint / name) != digest]
        except (OSError, ValueError) as error:
            return shown(f"{type(error).__name__}: {error}")
        return f"{', '.join(wrong)} not as written" if wrong else None

    def _reader(self, step: int) -> FileSystemReader:
        return _Reader(self._path(step))


class _Reader(FileSystemReader):
    """torch's reader, without running code from the pickle that describes the tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open_regular(Path(self.path) / ".metadata") as file:
                metadata = _DescriptionOnly(file).load()
            if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict):
                raise TypeError(f"a {type(metadata).__name__} without tensors")
            if getattr(metadata, "storage_meta", None) is None:
                metadata.storage_meta = StorageMeta()
            if not isinstance(metadata.storage_meta, StorageMeta):
                raise TypeError("no record of where its tensors are stored")
        except Exception as error:  # a changed byte of a pickle may raise anything; nothing of it is run
            raise CheckpointError(
                f"{self.path}: not a checkpoint ({shown(str(error) or type(error).__name__)}). Remove it to start again."
            ) from error
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _DescriptionOnly(pickle.Unpickler):
    """Reads torch.distributed.checkpoint's description of tensors, and nothing else that a pickle may contain."""

    ALLOWED = frozenset(
        {
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("pathlib", "PosixPath"),
            ("pathlib", "WindowsPath"),
            ("pathlib._local", "PosixPath"),  # Python 3.13
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "ChunkStorageMetadata",
                    "Metadata",
                    "MetadataIndex",
                    "StorageMeta",
                    "TensorProperties",
                    "TensorStorageMetadata",
                    "_MEM_FORMAT_ENCODING",
                )
            ),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        allowed = (module, name) in self.ALLOWED
        if not allowed and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            allowed = True
        if not allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def _cause(error: CheckpointException) -> BaseException:
    """The signal, lack of memory or disk error that torch has wrapped, if there is one."""
    found = _wrapped(error, (KeyboardInterrupt, MemoryError, OSError))
    return found or CheckpointError(f"the state can't be saved: {_first_failure(error)}.")


def _wrapped(error: CheckpointException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first error of these kinds among those that torch has wrapped, and those that led to them."""
    for failure in error.failures.values():
        inner: BaseException | None = failure[0]
        while inner is not None:
            if isinstance(inner, kinds):
                return inner
            inner = inner.__cause__ or inner.__context__
    return None


def _first_failure(error: CheckpointException) -> str:
    """The message of the first of torch's failures, in one line."""
    first = next(iter(error.failures.values()))[0]
    return shown(str(first).partition("\n")[0] or repr(first)).rstrip(".")


@dataclass(frozen=True)
class _StateFile:
    """The content of a checkpoint's state.json: what isn't a tensor, and the hash of each file."""

    extra: dict[str, Any]
    files: dict[str, str]


def _read_state_file(folder: Path) -> _StateFile:
    """The state.json of a checkpoint; raises ValueError where it isn't one."""
    content = parse_json(read_regular_text(folder / STATE_FILE))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{STATE_FILE} of another format")
    extra, files = content.get("facts"), content.get("files")
    if not isinstance(extra, dict) or not isinstance(files, dict) or ".metadata" not in files:
        raise ValueError(f"{STATE_FILE} without facts or files")
    if any(not isinstance(digest, str) or Path(name).name != name for name, digest in files.items()):
        raise ValueError(f"{STATE_FILE} with files that aren't in the folder")
    return _StateFile(extra, files)


def _digest(file: Path) -> str:
    """A hash of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(file) as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
