"""Safe file access: only regular files are read, files are written atomically, folders can be locked."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TextIO

from .errors import MaeliftError
from .system_errors import disk_errno

LOCK_FILE = ".lock"
"""The file in an output folder by which a running command locks it."""

OUTPUT_MARKER = ".maelift"
"""A file in a folder of pictures that maelift wrote, which marks it as output, not as data."""

MAX_READ_BYTES = 4 * 2**30
"""Bytes up to which a file is read into memory at once; a sparse file may claim any size."""

UMASK = os.umask(0o077)
"""The process's umask; read once, as reading it changes it for a moment, for all threads."""
os.umask(UMASK)


class NotRegularError(OSError):
    """A path that isn't a file whose bytes can be read: ``strerror`` is the reason in words, "a named pipe, not a file"."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def check_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file, links followed, without opening it: opening a pipe blocks, a device may act.

    Raises NotRegularError for a folder, named pipe, socket or device, and for a link that leads to itself; FileNotFoundError
    and other OSErrors as ``os.stat`` does, for a link to nothing with that reason.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise FileNotFoundError(errno.ENOENT, "a link to nothing", os.fspath(path)) from error
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotRegularError(errno.ELOOP, "a link that leads to itself, not a file", os.fspath(path)) from error
        raise
    except ValueError as error:  # a name with a null byte
        raise NotRegularError(errno.EINVAL, "no name that a file can have", os.fspath(path)) from error
    _check_mode(status.st_mode, path)
    return status


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, in bytes; raises as ``check_regular``, and never waits for a writer."""
    check_regular(path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_mode(os.fstat(handle).st_mode, path)  # it may have been replaced in between
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | Path, limit: int = MAX_READ_BYTES) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; raises as ``check_regular``, NotRegularError for a larger one."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= limit:
            content = file.read(size + 1)
            if len(content) > size:  # it grows while it is read: the content so far, up to the limit
                content += file.read(limit + 1 - len(content))
            if len(content) <= limit:
                return content
            size = len(content)
    raise NotRegularError(
        errno.EINVAL, f"{size:,} bytes, more than the {limit:,} that are read of a file", os.fspath(path)
    )


def read_regular_text(
    path: str | Path, encoding: str = "utf-8", errors: str = "strict", limit: int = MAX_READ_BYTES
) -> str:
    """The text of a regular file with \\n at the ends of its lines; raises as ``read_regular``, and UnicodeDecodeError."""
    return io.TextIOWrapper(io.BytesIO(read_regular(path, limit)), encoding, errors).read()


def _check_mode(mode: int, path: str | Path) -> None:
    """Raise NotRegularError unless a status' mode is that of a regular file."""
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode), "something else")
    raise NotRegularError(errno.EINVAL, f"{kind}, not a file", os.fspath(path))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, else remove it."""
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if (cause := _disk_error(error, temporary, target)) is not None:
                raise cause from error
            raise
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, completely or not at all; file names that aren't UTF-8 are written as the system has them."""
    atomic_write_bytes(path, text.encode("utf-8", "surrogateescape"))


def safe_cell(text: str) -> str:
    """A text cell with an apostrophe before what a spreadsheet would run as a formula; numbers stay as they are.

    Paths are written without it, so that readers of the table get them exactly.
    """
    if text[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


class TableWriter:
    """Writes rows of a CSV that end with \\n, so that ``csv`` reads each cell unchanged, carriage returns included."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._line = file, io.StringIO(newline="")
        self._writer = csv.writer(self._line, lineterminator="\r\n")  # quotes cells that contain either character

    def writerow(self, row: Iterable[object]) -> None:
        """Write a row."""
        self._line.seek(0)
        self._line.truncate()
        self._writer.writerow(row)
        self._file.write(self._line.getvalue().removesuffix("\r\n") + "\n")

    def writerows(self, rows: Iterable[Iterable[object]]) -> None:
        """Write rows."""
        for row in rows:
            self.writerow(row)


def append_row(path: str | Path, header: Sequence[str], row: Sequence[str]) -> None:
    """Append a row to a CSV file, with the header where it is new, by a single write: other processes may append too."""
    table = io.StringIO()
    TableWriter(table).writerows([header, row] if not Path(path).exists() else [row])
    append_bytes(path, table.getvalue().encode("utf-8", "surrogateescape"))


def append_bytes(path: str | Path, content: bytes) -> None:
    """Append ``content`` to a file, which may be new, by a single write; nothing is appended where the disk is full."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        try:
            written = os.write(handle, content)
            while written < len(content):  # the second try raises what is wrong
                written += os.write(handle, content[written:])
        except OSError as error:
            os.ftruncate(handle, size)
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def output_folder(path: str | Path) -> Path:
    """Create the folder ``path`` where needed; raise MaeliftError when nothing can be written there."""
    folder = Path(path)
    if not str(folder).isascii() and str(folder) != os.fsencode(folder).decode("utf-8", "replace"):
        raise MaeliftError(
            f"out={folder}: a name that isn't UTF-8, which safetensors can't open. Choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".writable.", dir=folder)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MaeliftError(f"out={folder}: nothing can be written there ({reason}). Choose another folder.") from error
    return folder


def mark_output(folder: Path) -> None:
    """Mark a folder of pictures as written by maelift, so that they aren't read as data if it is in a data folder."""
    (folder / OUTPUT_MARKER).touch()


@contextmanager
def exclusive_lock(folder: Path, timeout: float = 10.0) -> Iterator[None]:
    """Lock a folder for the block; raise MaeliftError where another process has it locked.

    ``timeout``: seconds to wait for it; the processes of a killed command may take some to end. The system releases the lock
    of a killed process, and the lock file is removed at the end. Not filelock, which leaves its file in the user's folder,
    notices a removed one by its link count only, which NFS doesn't lower, and fails where a file system has no locks.
    """
    try:
        with lock_file(folder / LOCK_FILE, timeout):
            yield
    except LockedError as error:
        raise MaeliftError(
            f"out={folder}: another maelift command is running there. Wait for it, or stop it."
        ) from error


class LockedError(MaeliftError):
    """Another process has a lock for longer than was to be waited."""


@contextmanager
def lock_file(path: Path, timeout: float) -> Iterator[None]:
    """Lock a file, which is created for it, for the block; raise LockedError where it stays another's for ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        with path.open("a") as file:
            if _try_lock(file):
                if not _still_at(file, path):
                    continue  # the command before has just ended and removed the file
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        if time.monotonic() > deadline:
            raise LockedError(f"{path}: another process has locked it. Wait for it, or stop it.")
        time.sleep(0.1)


def _try_lock(file: IO[str]) -> bool:
    """Try to lock an open file; whether that succeeded. On a file system without locks it always does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _still_at(file: IO[str], path: Path) -> bool:
    """Whether ``path`` is still this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sync_tree(folder: Path) -> None:
    """Flush everything below a folder to disk, before it is renamed to its final name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(0o666 & ~UMASK)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    for path in (*filter(Path.is_dir, folder.rglob("*")), folder):
        sync_folder(path)


def _disk_error(error: Exception, temporary: Path, target: Path) -> OSError | None:
    """The disk error behind an error of a library that writes weights or pictures; None where the disk is fine."""
    if (number := disk_errno(error)) is not None:
        return OSError(number, os.strerror(number), str(target))
    try:
        with temporary.open("ab") as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return OSError(error.errno, error.strerror, str(target))
    return None


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
