"""A pool of threads that doesn't delay a stop: after an error, tasks that haven't started are cancelled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType


class CancellingThreadPool(ThreadPoolExecutor):
    """A ThreadPoolExecutor whose ``with`` block waits, after an error or a stop, only for running tasks."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=True, cancel_futures=kind is not None)
