"""A folder's lock: one command at a time, whatever happens to the file; and only regular files are read."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from maelift.core.errors import MaeliftError
from maelift.core.files import (
    LOCK_FILE,
    NotRegularError,
    TableWriter,
    append_row,
    check_regular,
    exclusive_lock,
    open_regular,
    read_regular,
    read_regular_text,
    safe_cell,
)


def test_a_held_folder_is_refused_and_free_again_after_it(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path, timeout=0):
        assert (tmp_path / LOCK_FILE).exists()
        with (
            pytest.raises(MaeliftError, match="another maelift command is running there"),
            exclusive_lock(tmp_path, timeout=0),
        ):
            pass
        assert (tmp_path / LOCK_FILE).exists()  # a refused one leaves the lock alone
    assert not (tmp_path / LOCK_FILE).exists()
    with exclusive_lock(tmp_path, timeout=0):
        pass


def test_one_that_waits_gets_the_folder_once_the_other_has_ended(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive_lock(tmp_path, timeout=20):
            order.append("second")

    waiting = threading.Thread(target=second)
    with exclusive_lock(tmp_path, timeout=0):
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
        with exclusive_lock(tmp_path, timeout=5):
            assert path.exists()
            with path.open() as other, pytest.raises(BlockingIOError):
                real(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert seen and not path.exists()


def test_only_regular_files_are_opened_and_each_other_kind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("device").symlink_to("/dev/zero")
    Path("loop").symlink_to("loop")
    Path("nothing").symlink_to("gone")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    reasons = {}
    for path in ("pipe", "folder", "device", "loop", "socket", "nothing", "a\0b"):
        with pytest.raises(OSError) as caught:
            open_regular(path)
        reasons[path] = caught.value.strerror
        assert isinstance(caught.value, NotRegularError | FileNotFoundError)
    assert reasons == {
        "pipe": "a named pipe, not a file",
        "folder": "a folder, not a file",
        "device": "a device, not a file",
        "loop": "a link that leads to itself, not a file",
        "socket": "a socket, not a file",
        "nothing": "a link to nothing",
        "a\0b": "no name that a file can have",
    }


def test_a_regular_file_is_read_through_a_link_and_not_beyond_its_limit(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\r\ntwo")
    (tmp_path / "link").symlink_to("text")
    assert check_regular(tmp_path / "link").st_size == 8
    assert read_regular(tmp_path / "link") == b"one\r\ntwo"
    assert read_regular_text(tmp_path / "text") == "one\ntwo"
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(NotRegularError, match="1,099,511,627,776 bytes, more than the 4,294,967,296 that are read"):
        read_regular(tmp_path / "sparse")


def test_cells_are_read_back_as_they_were_and_words_are_no_formulas(tmp_path: Path) -> None:
    paths = ["=1+1.png", "a\rb", "a\nb", 'a"b,c', "\t", "", "b\udcff", "+x", "-"]
    table = io.StringIO()
    TableWriter(table).writerows([name, number] for number, name in enumerate(paths))
    assert [row[0] for row in csv.reader(io.StringIO(table.getvalue(), newline=""))] == paths
    assert "\r\n" not in table.getvalue()
    for name in paths:
        append_row(tmp_path / "table.csv", ("path",), (name, "x"))
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row[0] for row in csv.reader(file)] == ["path", *paths]
    words = {
        "=1+1": "'=1+1",
        "@SUM(A1)": "'@SUM(A1)",
        "+x": "'+x",
        "-cmd": "'-cmd",
        "\tx": "'\tx",
        "-1": "-1",
        "+2e3": "+2e3",
    }
    assert {word: safe_cell(word) for word in (*words, "cat", "")} == {**words, "cat": "cat", "": ""}
