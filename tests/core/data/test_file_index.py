"""Lists of images and what was found of them are kept between runs, and are never believed longer than they hold."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from maelift.core import cache
from maelift.core.data import file_index, image_scan
from maelift.core.data.audit import audit
from maelift.core.data.file_index import list_folder, list_images
from maelift.core.data.image_formats import SUFFIXES
from maelift.core.data.image_scan import scan_images
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.readers import path_list, tar_shards
from maelift.core.data.readers.folder import FolderImages, find_images
from maelift.core.data.sources import find_source, find_sources
from maelift.core.data.string_table import StringTable
from maelift.core.errors import DataError
from maelift.core.files import mark_output
from maelift.tests.support import framework, noise_image, write_images

TICK = 0.02
"""Seconds in which a file system's clock surely goes on."""


@pytest.fixture(autouse=True)
def kept_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep short lists too, and what was changed a moment ago."""
    monkeypatch.setenv("MAELIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
    for module in (file_index, tar_shards, path_list):
        monkeypatch.setattr(module, "CACHED_FROM", 1)
    for module in (file_index, image_scan):
        monkeypatch.setattr(module, "RACY_SECONDS", 0.0)
    monkeypatch.setattr(image_scan, "CACHED_SECONDS", 0.0)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed."""
    seen: list[str] = []
    scandir = os.scandir

    def noting(path: Path) -> Iterator[os.DirEntry[str]]:
        seen.append(os.path.basename(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noting)
    return seen


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are opened."""
    seen: list[str] = []
    look = image_scan.read_image_info

    def noting(images: FolderImages, number: int, form: PixelFormat | None = None) -> image_scan.ImageInfo:
        seen.append(images.name(number))
        return look(images, number, form)

    monkeypatch.setattr(image_scan, "read_image_info", noting)
    return seen


def noted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str) -> list[str]:
    """The names of the files that a function is called with from now on."""
    seen: list[str] = []
    called = getattr(module, function)

    def noting(path: Path) -> Any:
        seen.append(path.name)
        return called(path)

    monkeypatch.setattr(module, function, noting)
    return seen


def walked(root: Path) -> list[str]:
    """What there is, found in the plainest way."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES]
    names = [path.relative_to(root).as_posix() for path in files]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def cache_files(kind: str) -> list[Path]:
    return sorted((cache.cache_folder() / kind).glob("*"))


def test_names_are_a_sequence_of_strings_of_any_bytes() -> None:
    strings = ["a", "", "ünï/😀.png", "b\udcff.jpg", "a"]
    names = StringTable.of(strings)
    assert list(names) == strings == names and [names[n] for n in (-1, 2)] == ["a", strings[2]]
    assert names[1:4] == strings[1:4] and names.subset([3, 0, 3]) == [strings[3], "a", strings[3]]
    assert names.subset([4, 2]).compact().text.nbytes == len("a" + strings[2].encode().decode("latin1"))
    assert StringTable.joined([names[2:], names.subset([1]), StringTable.of([]), names[:1]]) == [*strings[2:], "", "a"]
    assert (
        names.subset([2, 3]).digest
        == StringTable.of(strings[2:4]).digest
        != StringTable.of([strings[3], strings[2]]).digest
    )
    assert StringTable.of(["ab", "c"]).digest != StringTable.of(["a", "bc"]).digest and names != [*strings, "x"]
    assert not StringTable.of([]) and list(StringTable.of([])) == [] and StringTable.of([]).compact() == []


def test_ten_thousand_names_are_as_they_were() -> None:
    strings = [f"{number:05d}" * (number % 7) for number in range(10_000)]
    order = np.random.default_rng(0).permutation(10_000)
    assert list(StringTable.of(strings).subset(order)) == [strings[number] for number in order]


def test_an_unchanged_tree_is_not_listed_again(tmp_path: Path, scanned: list[str]) -> None:
    for folder in ("b", "a/c"):
        write_images(tmp_path / folder, 3)
    time.sleep(TICK)
    first = list(list_images(tmp_path))
    assert sorted(scanned) == sorted([tmp_path.name, "a", "b", "c"]) and first == walked(tmp_path)
    scanned.clear()
    assert list_images(tmp_path) == first and scanned == []
    write_images(tmp_path / "b", 4)
    now = list(list_images(tmp_path))
    assert scanned == ["b"] and now == walked(tmp_path) != first


@pytest.mark.slow
def test_a_tree_that_changes_in_every_way_is_listed_as_it_is(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    write_images(tmp_path / "folder0", 2)
    picture = next((tmp_path / "folder0").iterdir()).read_bytes()

    def some(paths: list[Path]) -> Path:
        return paths[generator.integers(len(paths))]

    for step in range(120):
        folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        match generator.integers(7):
            case 0 | 1:
                (some(folders) / f"new{step}.PNG").write_bytes(picture)
            case 2:
                (some(folders) / f"folder{step}").mkdir()
            case 3 if len(files) > 3:
                some(files).unlink()
            case 4 if len(folders) > 3:
                shutil.rmtree(some(folders[1:]))
            case 5 if len(folders) > 1:
                some(folders[1:]).rename(tmp_path / f"moved{step}")
            case _:
                some(files or folders).touch()
        (tmp_path / f"always{step}.png").write_bytes(picture)
        time.sleep(TICK)
        assert list_images(tmp_path) == walked(tmp_path), step


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", 2)
    write_images(tmp_path / "data" / "a", 1)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "across").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    expected = ["a/image000.png", "linked/image000.png", "linked/image001.png", "nowhere.png"]
    assert [name for name in list_images(tmp_path / "data")] == expected


def test_arrays_no_longer_count_once_there_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(3):
        np.save(tmp_path / "a" / f"{number}.npy", np.zeros((4, 4, 2), np.uint8))
    assert len(list_images(tmp_path)) == 3
    time.sleep(TICK)
    (tmp_path / "b").mkdir()
    noise_image(0).save(tmp_path / "b" / "x.png")
    assert list_images(tmp_path) == ["b/x.png"]


@pytest.mark.parametrize("damage", [b"", b"\x10", b"not a list of anything", None])
def test_a_damaged_list_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    write_images(tmp_path, 3)
    expected = list(list_images(tmp_path))
    (file,) = cache_files("trees")
    file.write_bytes(file.read_bytes()[:-5] if damage is None else damage)
    assert list_images(tmp_path) == expected
    assert cache.load(file) is not None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAELIFT_CACHE", str(tmp_path / "file" / "below"))
    write_images(tmp_path / "data", 3)
    for _ in range(2):
        sound, _ = audit(find_images(tmp_path / "data"))
        assert len(sound) == 3


def test_a_list_is_read_again_only_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "data", 3)
    file = tmp_path / "list.txt"
    file.write_text("data/image000.png\ndata/image001.png\n")
    names = [find_source(str(file)).name(number) for number in range(2)]
    read = noted(monkeypatch, path_list, "_read_list")
    again = find_source(str(file))
    assert [again.name(number) for number in range(2)] == names and read == []
    time.sleep(TICK)
    file.write_text("data/image002.png\n")
    assert find_source(str(file)).name(0) == "data/image002.png" and read == [file.name]
    find_sources(str(file), reindex=True)
    assert len(read) == 2


def test_only_a_shard_that_changed_is_looked_through_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    framework("webdataset")
    write_images(tmp_path / "data", 6)

    def shard(name: str, numbers: range) -> None:
        with tarfile.open(tmp_path / name, "w") as archive:
            for number in numbers:
                archive.add(tmp_path / "data" / f"image{number:03d}.png", f"{number}.png")

    shard("0.tar", range(2))
    shard("1.tar", range(2, 4))
    tabled = noted(monkeypatch, tar_shards, "_table")
    everything = str(tmp_path / "{0..1}.tar")
    contents = [find_source(everything).content(number) for number in range(4)]
    assert tabled == ["0.tar", "1.tar"]
    again = find_source(everything)
    assert [again.content(number) for number in range(4)] == contents and tabled == ["0.tar", "1.tar"]
    time.sleep(TICK)
    shard("1.tar", range(3, 6))
    now = find_source(everything)
    assert tabled[2:] == ["1.tar"] and [now.name(n) for n in range(5)] == [
        "0.tar/0.png",
        "0.tar/1.png",
        *(f"1.tar/{number}.png" for number in range(3, 6)),
    ]
    assert now.content(2) == contents[3]


def test_what_a_look_found_is_known_the_next_time(tmp_path: Path, looked_at: list[str]) -> None:
    write_images(tmp_path, 5)
    (tmp_path / "empty.jpg").touch()
    form = PixelFormat(None, None)
    time.sleep(TICK)
    _, before = audit(find_images(tmp_path), 0.5, form=form)
    assert len(looked_at) == 6 and [name for name, _ in before.rejected] == ["empty.jpg"]
    _, again = audit(find_images(tmp_path), 0.5, form=form)
    assert len(looked_at) == 6 and again == before
    audit(find_images(tmp_path), 0.5)  # read in another form
    assert len(looked_at) == 12
    audit(find_images(tmp_path), 0.5, form=form, forget=True)
    assert len(looked_at) == 18


def test_a_file_that_changed_in_place_is_looked_at_again(tmp_path: Path, looked_at: list[str]) -> None:
    write_images(tmp_path, 3)
    before = audit(find_images(tmp_path))[1]
    path, looked_at[:] = tmp_path / "image001.png", []
    times, content = path.stat(), path.read_bytes()
    time.sleep(TICK)
    path.write_bytes(content[:-20] + bytes(20))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as some tools that copy files do
    with pytest.raises(DataError, match="1 of 3 images are broken"):
        audit(find_images(tmp_path))
    assert looked_at == ["image001.png"]
    path.write_bytes(content)
    assert audit(find_images(tmp_path))[1] == before


def test_what_changed_while_it_was_looked_at_is_not_kept(
    tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_scan, "RACY_SECONDS", 2.0)
    write_images(tmp_path, 2)
    for _ in range(2):
        audit(find_images(tmp_path))
    assert len(looked_at) == 4


def test_parts_of_a_folder_are_kept_side_by_side(tmp_path: Path, looked_at: list[str]) -> None:
    write_images(tmp_path, 6)
    images = find_images(tmp_path)
    audit(images.subset([0, 2, 4]))
    audit(images.subset([1, 3]))
    assert len(looked_at) == 5
    _, manifest = audit(images)
    assert looked_at[5:] == ["image005.png"]
    assert manifest == audit(images, forget=True)[1]


def test_a_light_look_after_a_full_one_loses_nothing(tmp_path: Path, looked_at: list[str]) -> None:
    write_images(tmp_path, 8)
    (tmp_path / "image005.png").write_bytes(b"")
    images = find_images(tmp_path)
    before = scan_images(images)
    time.sleep(TICK)
    noise_image(50).save(tmp_path / "image001.png")
    looked_at.clear()
    few = scan_images(images, numbers=np.array([1, 5]))
    assert looked_at == ["image001.png"] and list(few.done) == [number in (1, 5) for number in range(8)]
    after = scan_images(images)
    assert looked_at == ["image001.png"] and after.remarks(5) == before.remarks(5) == ("an empty file", ())
    same = np.array([0, 2, 3, 4, 6, 7])
    assert after.contents(same) == before.contents(same) and after.contents(same[:0] + 1) == []


def test_images_of_an_idx_file_are_looked_at_until_it_changes(tmp_path: Path, looked_at: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
    file = tmp_path / "train-images-idx3-ubyte"
    for number, stored in enumerate((pixels, pixels[::-1])):
        time.sleep(TICK)
        file.write_bytes(b"\0\0\x08\x03" + np.array(pixels.shape, dtype=">u4").tobytes() + stored.tobytes())
        images = find_images(tmp_path)
        _, part = audit(images.subset([5, 1]))
        _, manifest = audit(images)
        assert len(looked_at) == 6 * (number + 1) and part.names == (f"{file.name}[5]", f"{file.name}[1]")
        assert manifest == audit(images, forget=True)[1] and part.hashes == tuple(
            manifest.hashes[one] for one in (5, 1)
        )
        del looked_at[6 * (number + 1) :]


def test_one_who_is_interrupted_does_not_begin_anew(
    tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, 9)
    monkeypatch.setattr(image_scan, "CHUNK", 1)

    def stop(done: int, total: int) -> None:
        assert total == 9
        if done == 4:
            raise KeyboardInterrupt

    time.sleep(TICK)
    with pytest.raises(KeyboardInterrupt):
        scan_images(find_images(tmp_path), progress=stop)
    already = set(looked_at)
    looked_at.clear()
    _, manifest = audit(find_images(tmp_path))
    assert len(manifest.names) == 9 and 0 < len(looked_at) <= 5 and len(already | set(looked_at)) == 9


@pytest.mark.parametrize("lost", ["contents", "stats", "remarks", "names.text", "names.stops"])
@pytest.mark.parametrize("other", [False, True])
def test_a_damaged_cache_is_ignored(tmp_path: Path, looked_at: list[str], lost: str, other: bool) -> None:
    write_images(tmp_path, 3)
    audit(find_images(tmp_path))
    (file,) = cache_files("scans")
    arrays, about = cache.load(file) or ({}, {})
    cut = {lost: arrays[lost][:1]} if lost in ("contents", "stats") else {}
    cache.save(file, {**{name: array for name, array in arrays.items() if name != lost}, **cut}, about)
    looked_at.clear()
    time.sleep(TICK)
    if other:
        noise_image(7).save(tmp_path / "more.png")
    for _ in range(2):
        assert len(audit(find_images(tmp_path))[1].names) == 3 + other
    assert len(looked_at) == 3 + other


def test_what_is_not_read_is_counted_and_the_counts_are_kept(tmp_path: Path, scanned: list[str]) -> None:
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 2)
    for name in ("a/x.xyz", "a/y.XYZ", "b/z.cr2", "b/readme", "b/array.npy"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("a/._x.png", "a/.DS_Store", "b/Thumbs.db", "b/.hidden.jpg", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    time.sleep(TICK)
    expected = {".xyz": 2, ".cr2": 1, "no suffix": 1, ".npy": 1, "hidden": 1}
    first = list_folder(tmp_path)
    assert first.unread == expected and list(first.names) == walked(tmp_path) and not first.outputs
    scanned.clear()
    assert list_folder(tmp_path) == first and scanned == []
    (tmp_path / "a/y.XYZ").unlink()
    (tmp_path / "b/more.xyz").write_bytes(b"x")
    (tmp_path / "b/readme").unlink()
    time.sleep(TICK)
    assert list_folder(tmp_path).unread == {".xyz": 2, ".cr2": 1, ".npy": 1, "hidden": 1}
    assert sorted(scanned) == ["a", "b"]
    (tmp_path / "b").rename(tmp_path.parent / "elsewhere")
    assert list_folder(tmp_path).unread == {".xyz": 1}


def test_what_maelift_wrote_within_the_data_is_left_out_also_when_it_comes_later(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 3)
    write_images(tmp_path / "out/pictures", 2)
    assert len(list_folder(tmp_path).names) == 5
    time.sleep(TICK)
    for name in ("config.yaml", "data.json"):
        (tmp_path / "out" / name).write_text("{}")
    write_images(tmp_path / "out/more", 2)
    write_images(tmp_path / "photos/below", 1)
    time.sleep(TICK)
    for _ in range(2):
        found = list_folder(tmp_path)
        assert list(found.names) == sorted(name for name in walked(tmp_path) if name.startswith("photos"))
        assert found.outputs == ("out",) and found.unread == {}
    mark_output(tmp_path / "photos/below")
    assert list_folder(tmp_path).outputs == ("out", "photos/below")
    assert len(list_folder(tmp_path / "out").names) == 4  # named itself, it is what was asked for
    (tmp_path / "out/data.json").unlink()
    assert len(list_folder(tmp_path).names) == 3 + 4


def test_what_is_no_file_is_listed_to_be_named_and_links_in_circles_end(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    names = sorted(os.listdir(tmp_path))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "full.png").mkdir()
    write_images(tmp_path / "full.png", 1)
    time.sleep(TICK)
    special = ["folder.png", "gone.png", "pipe.png", "self.png"]
    for _ in range(2):
        found = list(list_images(tmp_path))
        assert found == sorted([*names, *special, *(f"full.png/{name}" for name in os.listdir(tmp_path / "full.png"))])
        _, manifest = audit(find_images(tmp_path), max_rejected=0.9)
    assert dict(manifest.rejected) == {
        "folder.png": "a folder, not a file",
        "gone.png": "a link to nothing",
        "pipe.png": "a named pipe, not a file",
        "self.png": "a link that leads to itself, not a file",
    }
    write_images(tmp_path / "folder.png", 1)
    assert "folder.png" not in list_images(tmp_path) and len(list_images(tmp_path)) == len(found)


def test_folders_that_link_to_each_other_are_listed_in_finite_time(tmp_path: Path) -> None:
    for one in range(6):
        (tmp_path / f"d{one}").mkdir()
        (tmp_path / f"d{one}" / "x.png").touch()
        for other in range(6):
            (tmp_path / f"d{one}" / f"to{other}").symlink_to(tmp_path / f"d{other}")
    names = list_images(tmp_path)
    assert {f"d{one}/x.png" for one in range(6)} <= set(names)
    assert max(name.count("/to") for name in names) == file_index.MOST_LINKS
