"""Errors of the operating system as one line with advice: memory, disk space, open files, processes."""

from __future__ import annotations

import errno
import re

MEMORY_ADVICE = (
    "not enough memory. Free some, or in training use fewer workers (workers=0 needs the least) or a larger accumulate, which "
    "continue the same run, or a smaller batch_size in another out; finished work is saved."
)
GPU_MEMORY_ADVICE = (
    "the GPU's memory is too small. In training use a larger accumulate, which continues the same run, or a smaller "
    "batch_size in another out; finished work is saved."
)
THREADS_ADVICE = (
    "the system starts no more processes or threads (ulimit -u, or a container's limit of pids). Raise the limit, or use "
    "workers=0; finished work is saved."
)
OPEN_FILES_ADVICE = (
    "too many open files. Raise the limit (ulimit -n 4096), or use fewer workers; finished work is saved."
)
DISK_ADVICE = {
    errno.ENOSPC: "no space left on the device. Free some, or choose another out; finished work is saved.",
    errno.EDQUOT: "the disk quota is used up. Free some space, or choose another out; finished work is saved.",
    errno.EFBIG: "larger than this system's limit for files. Raise the limit, or choose another out.",
    errno.EROFS: "read-only file system. Choose another out.",
}
"""What to do about disk errors, by errno."""


def advice_for(error: BaseException) -> str | None:
    """What the machine lacks and what to do; None for errors of other kinds."""
    text = str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in DISK_ADVICE:
            return where + DISK_ADVICE[error.errno]
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return OPEN_FILES_ADVICE
        if error.errno == errno.ENOMEM:
            return MEMORY_ADVICE
        return THREADS_ADVICE if isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN else None
    if type(error).__name__ == "OutOfMemoryError":  # torch's class, without importing torch
        return GPU_MEMORY_ADVICE
    if is_out_of_memory(error):
        return MEMORY_ADVICE
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return THREADS_ADVICE
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine's memory, not a GPU's, is used up."""
    signs = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "failed to map segment")
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError, ImportError)) and any(sign in str(error) for sign in signs)
    )


def disk_errno(error: BaseException) -> int | None:
    """The number of the system's error that a library names in its text, as safetensors does; None without one."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else int(found[1])
