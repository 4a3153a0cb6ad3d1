"""A folder's lock: one command at a time, whatever happens to the file."""

from __future__ import annotations

import fcntl
import threading
import time
from pathlib import Path

import pytest
from maelift.core.config import MaeliftError
from maelift.core.files import LOCK_FILE, exclusive


def test_a_held_folder_is_refused_and_free_again_after_it(tmp_path: Path) -> None:
    with exclusive(tmp_path, waits=0):
        assert (tmp_path / LOCK_FILE).exists()
        with (
            pytest.raises(MaeliftError, match="another maelift command is at work there"),
            exclusive(tmp_path, waits=0),
        ):
            pass
        assert (tmp_path / LOCK_FILE).exists()  # a refused one leaves the lock alone
    assert not (tmp_path / LOCK_FILE).exists()
    with exclusive(tmp_path, waits=0):
        pass


def test_one_that_waits_gets_the_folder_once_the_other_has_ended(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive(tmp_path, waits=20):
            order.append("second")

    waiting = threading.Thread(target=second)
    with exclusive(tmp_path, waits=0):
        waiting.start()
        time.sleep(0.4)
        order.append("first")
    waiting.join(timeout=20)
    assert order == ["first", "second"] and not (tmp_path / LOCK_FILE).exists()


def test_a_lock_whose_file_was_removed_and_made_anew_is_not_taken_for_held(tmp_path: Path) -> None:
    """Between opening and locking a file, the one before may remove it: its lock then says nothing of the new file."""
    path = tmp_path / LOCK_FILE
    real, seen = fcntl.flock, list[int]()

    def flock(file: int, how: int) -> None:
        if not seen:
            seen.append(path.stat().st_ino)
            path.unlink()
        real(file, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with exclusive(tmp_path, waits=5):
            assert path.exists()
            with path.open() as other, pytest.raises(BlockingIOError):
                real(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert seen and not path.exists()
