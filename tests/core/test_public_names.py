"""What is published shows the last names of paths only: no file of a run but its config.yaml names anyone's folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from maelift.cli import main
from maelift.core.models.encoder_file import read_encoder
from maelift.core.public_names import FULL_PATHS, public_config, public_name, public_text
from maelift.tests.support import TINY, write_images

SECRET = "anna_mueller_kunde_7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/anna/data", "data"),
        ("/home/anna/data/", "data"),
        ("/home/anna/my photos/x{000..099}.tar", "x{000..099}.tar"),
        ("~/data", "data"),
        ("~anna/data", "data"),
        ("~", "~"),
        ("/", "/"),
        ("../kunde/data", "data"),
        ("./data", "data"),
        (r"C:\Users\anna\data", "data"),
        (r"\\server\anna\data", "data"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("timm:vit_base_patch16_224.mae", "timm:vit_base_patch16_224.mae"),
        ("MAE/scratch", "MAE/scratch"),
        ("1e-3", "1e-3"),
        ("", ""),
    ],
)
def test_paths_are_their_last_names_and_other_text_stays(text: str, expected: str) -> None:
    assert public_name(text) == expected


def test_relative_paths_to_what_is_there_are_their_last_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kunde" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = {
        "data": ["kunde/data", "kunde/x*.tar"],
        "probe": {"out": "kunde/new"},
        "title": "a/b",
        "lr": 0.1,
        "on": None,
    }
    expected = {"data": ["data", "x*.tar"], "probe": {"out": "new"}, "title": "a/b", "lr": 0.1, "on": None}
    assert public_config(config) == expected
    said = f"{tmp_path}/kunde/data/a.png: broken, {Path.home()}/x, {tmp_path.parent}"
    assert public_text(said, [tmp_path / "kunde"]) == f"data/a.png: broken, x, {tmp_path.parent}"
    monkeypatch.setenv(FULL_PATHS, "1")
    assert public_config(config) == config and public_text(said) == said


@pytest.mark.slow
def test_nothing_that_is_published_names_the_folders_that_it_was_made_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / SECRET
    write_images(root / "images", 24)
    for number, name in enumerate("ab"):
        write_images(root / "classes" / name, 10, first=50 * number)
    monkeypatch.chdir(root)
    encoder, model = f"{root}/two/encoder.safetensors", f"{root}/tuned/model.safetensors"
    start, method = [f"init={root}/one/encoder.safetensors"], ["steps=3", "batch_size=4", "workers=0"]
    ended = [
        main(["pretrain", f"data={root}/images", f"out={root}/one", *TINY, "epochs=1"]),
        main(["pretrain", f"data={root}/images", f"out={root}/two", *TINY, "epochs=1", *start]),
        main(["transfer", "classify", f"encoder={encoder}", f"data={root}/classes", f"out={root}/tuned", *method]),
        main(["export", encoder, "--to", "torchvision", f"out={root}/backbone"]),
        main(["import", f"{root}/backbone", f"out={root}/imported.safetensors"]),
        main(["export", model, "--to", "onnx", f"out={root}/graph"]),
        main(["predict", f"model={model}", f"images={root}/images", f"out={root}/found.csv"]),
    ]
    assert ended == [0] * len(ended)
    written = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".png"]
    naming = {path.relative_to(root).as_posix() for path in written if SECRET.encode() in path.read_bytes()}
    assert naming <= {"one/config.yaml", "two/config.yaml", "tuned/config.yaml"}, naming
    provenance = read_encoder(root / "two" / "encoder.safetensors").provenance
    assert provenance.config["init"] == "encoder.safetensors"
    assert provenance.parent is not None and provenance.parent.startswith("encoder.safetensors (masked autoencoder")
    page = (root / "one" / "summary.html").read_text()
    command = f"maelift transfer classify encoder={Path('one') / 'encoder.safetensors'}"
    assert command in page and (root / "one" / "encoder.safetensors").is_file()
