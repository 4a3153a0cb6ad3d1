"""Load items by number, in order, in worker processes; one that dies or can't be started costs time, never a batch.

Each worker has a socket of its own to this process, and no lock is shared that a killed one could hold. What it has loaded
comes as one block of memory (Linux: a memfd, which needs no room in /dev/shm), or through the socket itself.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from ..errors import MaeliftError
from ..progress import duration
from ..signals import leave_stop_signals_to_parent, stop_signals_blocked
from ..system_errors import is_out_of_memory

logger = logging.getLogger("maelift")

Loaded = TypeVar("Loaded")

AHEAD = 2
"""Numbers that each worker is given at a time."""
SLOW_SECONDS = 60.0
"""After so long without what is waited for, that is said; then after twice as long each time."""
BLOCK_BYTES = 2**16
"""From this size on, what is loaded comes as a block of memory."""
ENDING_SECONDS = 5.0
"""How long a killed worker is waited for; one that hangs in the system's code is left to it."""


def load_in_order(
    load: Callable[[int], Loaded], count: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Loaded]:
    """``load(0)`` to ``load(count - 1)``, by ``workers`` processes ahead of their use; 0: here, when they are asked for.

    ``pin_memory``: the ``pin_memory()`` of each, ahead of its use too. Where a worker is killed, runs out of memory or can't be
    started, half of the workers go on, in the end none. Raises what ``load`` raises, in its place.
    """
    done = 0
    while workers and done < count:
        pool = None
        try:
            pool = _Workers(load, min(workers, count - done), done, count)
            for loaded in _pinned_ahead(pool.results()) if pin_memory else pool.results():
                done += 1
                yield loaded
        except _WorkerLost as lost:
            left = min(workers, count - done) // 2
            logger.warning("loading images: %s; going on with workers=%d, to the same batches", lost, left)
            workers = left
        finally:
            if pool is not None:
                pool.end()
    for number in range(done, count):
        loaded = load(number)
        yield cast(Any, loaded).pin_memory() if pin_memory else loaded


class _WorkerLost(Exception):
    """A worker process has died, can't be started, or has too little memory."""


class _Workers:
    """Processes that load the numbers from ``first`` to before ``count``; each takes every so-many-th."""

    def __init__(self, load: Callable[[int], Any], workers: int, first: int, count: int) -> None:
        self._first, self._count = first, count
        self._sockets: list[socket.socket] = []
        self._processes: list[BaseProcess] = []
        context = multiprocessing.get_context("fork")  # what loads needs no pickling then
        try:
            with stop_signals_blocked():
                for _ in range(workers):
                    ours, theirs = socket.socketpair()
                    self._sockets.append(ours)
                    process = context.Process(target=_work, args=(load, theirs, list(self._sockets)), daemon=True)
                    process.start()
                    self._processes.append(process)
                    theirs.close()
        except OSError as error:
            self.end()
            raise _WorkerLost(
                f"worker processes can't be started ({(error.strerror or str(error)).lower()})"
            ) from error

    def results(self) -> Iterator[Any]:
        """What is loaded, in order."""
        given = self._first
        for number in range(self._first, self._count):
            while given < min(self._count, number + AHEAD * len(self._sockets)):
                self._give(given)
                given += 1
            loaded = self._receive(number)
            if isinstance(loaded, _Failed):
                loaded.raise_here()
            yield loaded

    def _give(self, number: int) -> None:
        with suppress(ConnectionError):  # it is gone, which shows where its result is waited for
            self._sockets[(number - self._first) % len(self._sockets)].sendall(_NUMBER.pack(number))

    def _receive(self, number: int) -> Any:
        place = (number - self._first) % len(self._sockets)
        began, patience = time.monotonic(), SLOW_SECONDS
        while not _readable(self._sockets[place], patience):
            waited = duration(time.monotonic() - began)
            logger.warning(
                "loading images: waiting for %s for the images of a batch; does their storage still answer?", waited
            )
            patience *= 2
        try:
            return _received(self._sockets[place])
        except (ConnectionError, EOFError):
            process = self._processes[place]
            process.join(ENDING_SECONDS)
            raise _WorkerLost(f"a worker process has died ({_ended_by(process.exitcode)})") from None
        except OSError as error:
            raise _WorkerLost(f"nothing more can be received from worker processes ({error})") from error

    def end(self) -> None:
        """End the processes: nothing is lost with them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(ENDING_SECONDS)
        for connection in self._sockets:
            connection.close()


def _ended_by(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed: was the memory used up?"
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _readable(connection: socket.socket, seconds: float) -> bool:
    """Whether there is something to read, or the other end is closed, within so many seconds; open files may be many."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _pinned_ahead(results: Iterator[Any]) -> Iterator[Any]:
    """The same in page-locked memory, one ahead: a thread copies while the training goes on."""
    device = torch.cuda.current_device()

    def following() -> Any:
        torch.cuda.set_device(device)
        found = next(results, None)
        return None if found is None else found.pin_memory()

    thread = ThreadPoolExecutor(1, "pinning")
    try:
        ahead = thread.submit(following)
        while (found := ahead.result()) is not None:
            ahead = thread.submit(following)
            yield found
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


class _Failed:
    """An error in a worker, to be raised where its result is asked for."""

    def __init__(self, error: BaseException) -> None:
        self.text, self.error = traceback.format_exc(), None
        self.memory = is_out_of_memory(error)
        with suppress(Exception):
            self.error = pickle.loads(pickle.dumps(error))

    def raise_here(self) -> NoReturn:
        """Raise it; a MaeliftError as it is, others with what the worker's traceback was."""
        if self.memory:
            raise _WorkerLost("a worker process has too little memory")
        if isinstance(self.error, MaeliftError):
            raise self.error
        cause = RuntimeError(f"in a worker process:\n{self.text}")
        raise cause if self.error is None else self.error from cause


def _work(load: Callable[[int], Any], connection: socket.socket, others: list[socket.socket]) -> None:
    """Be a worker: load the numbers that come until the connection is closed."""
    try:
        leave_stop_signals_to_parent()
        for other in others:  # a connection is closed once no process holds the parent's end of it
            other.close()
        torch.set_num_threads(1)
        while len(asked := connection.recv(_NUMBER.size, socket.MSG_WAITALL)) == _NUMBER.size:
            found: Any
            try:
                found = load(*_NUMBER.unpack(asked))
            except Exception as error:
                found = _Failed(error)
            _send(connection, found)
            del found
    except (ConnectionError, MemoryError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


_NUMBER = struct.Struct("q")
_HEAD = struct.Struct("qqq")
"""Bytes of the pickle, number of its buffers, bytes of the block that holds them (0: they follow through the socket)."""
_ALIGNED = 64


class _Pickler(pickle.Pickler):
    """Tensors go as NumPy arrays: torch would give each a shared file of its own."""

    def reducer_override(self, thing: Any) -> Any:
        return (torch.from_numpy, (thing.numpy(),)) if isinstance(thing, Tensor) else NotImplemented


def _send(connection: socket.socket, thing: Any) -> None:
    """Send something with its arrays' memory beside the pickle, as a block where it is large and the system has one."""
    buffers: list[memoryview] = []

    def apart(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes == 0:
            return True  # stays within the pickle
        buffers.append(view)
        return False

    file = BytesIO()
    _Pickler(file, protocol=5, buffer_callback=apart).dump(thing)
    content: memoryview = file.getbuffer()
    sizes = struct.pack(f"{len(buffers)}q", *(buffer.nbytes for buffer in buffers))
    total = sum(_padded(buffer.nbytes) for buffer in buffers)
    block = _block(buffers, total) if total >= BLOCK_BYTES else None
    head = _HEAD.pack(len(content), len(buffers), 0 if block is None else total)
    if block is None:
        connection.sendall(head + sizes)
        for part in (content, *buffers):
            connection.sendall(part)
        return
    try:
        socket.send_fds(connection, [head], [block])
        connection.sendall(sizes)
        connection.sendall(content)
    finally:
        os.close(block)


def _block(buffers: list[memoryview], total: int) -> int | None:
    """An anonymous file with the buffers in it; None where the system has none, or no room for one."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        block = os.memfd_create("maelift-batch")
    except OSError:
        return None
    try:
        place = 0
        for buffer in buffers:
            written = 0
            while written < buffer.nbytes:
                written += os.pwrite(block, buffer[written:], place + written)
            place += _padded(buffer.nbytes)
        os.ftruncate(block, total)
    except OSError:
        os.close(block)
        return None
    return block


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _received(connection: socket.socket) -> Any:
    """What ``_send`` sent; raises EOFError where the other end was closed before all of it came."""
    head, blocks, _, _ = socket.recv_fds(connection, _HEAD.size, 1)
    try:
        head += _exactly(connection, _HEAD.size - len(head))
        length, count, total = _HEAD.unpack(head)
        if total and not blocks:  # the system has dropped it: this process may open no more files
            raise OSError("too many open files; raise ulimit -n")
        sizes = struct.unpack(f"{count}q", _exactly(connection, 8 * count))
        content = _exactly(connection, length)
        buffers: list[Any]
        if total:
            memory = memoryview(mmap.mmap(blocks[0], total))
            places = [0]
            for size in sizes:
                places.append(places[-1] + _padded(size))
            buffers = [memory[place : place + size] for place, size in zip(places, sizes, strict=False)]
        else:
            buffers = [_exactly(connection, size) for size in sizes]
    finally:
        for block in blocks:
            os.close(block)
    return pickle.loads(content, buffers=buffers)  # from a process of this program, forked here


def _exactly(connection: socket.socket, size: int) -> bytearray:
    """The next so many bytes."""
    content = bytearray(size)
    view, place = memoryview(content), 0
    while place < size:
        got = connection.recv_into(view[place:])
        if got == 0:
            raise EOFError
        place += got
    return content
