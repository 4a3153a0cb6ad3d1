"""Settings that nobody means, for every command: each is taken or refused in a line; none ends in a traceback or hangs."""

from __future__ import annotations

import dataclasses
import gzip
import os
import random
import shutil
from functools import cache
from pathlib import Path
from typing import cast

import pytest
from maelift.benchmarks.suite import BenchConfig
from maelift.cli import main
from maelift.commands import COMMANDS
from maelift.core.config_keys import describe
from maelift.core.errors import MaeliftError
from maelift.tests.support import write_images

SETTINGS = 500
RUNS = {
    "pretrain": (
        "data=photos",
        "out=run",
        "model=vit_nano",
        "image_size=32",
        "patch_size=8",
        "batch_size=4",
        "epochs=1",
    ),
    "data check": ("photos",),
    "data pack": ("data=photos", "out=run"),
    "data stack": ("data=photos", "out=run"),
    "init": ("photos",),
    "transfer classify": ("data=photos", "out=run", "encoder=absent.safetensors"),
    "transfer detect": ("data=photos", "out=run", "encoder=absent.safetensors"),
    "transfer segment": ("data=photos", "out=run", "encoder=absent.safetensors"),
    "predict": ("model=absent", "images=photos"),
    "embed": ("encoder=absent", "images=photos", "out=features.npz"),
    "reconstruct": ("encoder=absent", "images=photos", "out=run"),
    "bench": ("quickstart", "out=run", "data.path=absent"),
    "bench compare": ("one", "two"),
    "export": ("absent.safetensors", "--to", "timm", "out=run"),
    "import": ("weights=absent.pth", "out=run"),
    "certify": ("absent", "encoder.safetensors"),
    "data fashion-scenes": ("out=run", "source=photos"),
    "data fashion-mnist": ("out=run",),
    "doctor": (),
}
NUMBERS = (
    *(
        "nan",
        ".nan",
        "inf",
        "-.inf",
        "1e400",
        "-1e400",
        "1e-400",
        "-0",
        "-0.0",
        "-1",
        "0",
        "1",
        "0.5",
        "2",
        "7",
        "1e300",
        "0x10",
    ),
    *(
        "9" * 40,
        "-" + "9" * 40,
        "9" * 5000,
        "9223372036854775807",
        "1:30",
        "1_000",
        "[0,0]",
        "[8,100000]",
        "[-8,8]",
        "[.nan,1]",
    ),
)
TEXTS = (
    *(
        "",
        " ",
        "null",
        "~",
        "true",
        "no",
        "auto",
        "a\nb",
        "\0",
        "'",
        '"',
        "\udcff",
        "\x1b[31m",
        "x" * 100_000,
        "/dev/zero",
        "../..",
    ),
    *(
        "[]",
        "{}",
        "[1,2,3]",
        "[[[]]]",
        "[a,b]",
        "[1,",
        "]",
        "{a: 1}",
        "{1:2}",
        "{30:40}",
        "[" * 1200,  # deeper than Python's stack; YAML's time is quadratic
        "{a: " * 300,
        "a=b",
        "=",
    ),
    *(
        "${seed}",
        "${x}",
        "${data}",
        "${oc.env:NOPE}",
        "${oc.decode:x}",
        "${a.b.${c}}",
        "${",
        "$",
        "&a [*a]",
        "*x",
        "2024-11-29",
    ),
    *("!!python/object/apply:os.system ['true']", "!!int x", "%", "@", "`", "| x", "- a", "? x", "🙂"),
)
BELOW = ("a", "0", "", "..", "x y", "[0]", "__class__")


@cache
def keys_of(name: str) -> list[str]:
    """The keys of a command that start nothing elsewhere."""
    schema = COMMANDS[name].config_type()
    keys = (
        [entry.key for entry in describe(cast(type, schema))]
        if dataclasses.is_dataclass(schema)
        else ["encoder", "to", "out"]
    )
    return [key for key in keys if key.partition(".")[0] not in ("slurm", "launch")] or ["x"]


def hostile_words(draw: random.Random, name: str) -> list[str]:
    """One to three words for a command, most of them keys that it has."""
    keys = keys_of(name)
    words = [f"{draw.choice(keys)}={draw.choice(draw.choice((NUMBERS, TEXTS)))}" for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.1:
        words.append(f"{draw.choice(keys)}.{draw.choice(BELOW)}={draw.choice(NUMBERS)}")
    if draw.random() < 0.05:
        words.append(draw.choice(TEXTS))
    return words


@pytest.mark.slow
def test_hostile_settings_are_taken_or_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAELIFT_DEBUG", raising=False)
    for folder in "ab":
        write_images(tmp_path / "photos" / folder, 4)
    draw, codes = random.Random(0), {0: 0, 2: 0}
    for number in range(SETTINGS):
        name = list(COMMANDS)[number % len(COMMANDS)]
        words = hostile_words(draw, name)
        code = main(
            [*name.split(), *RUNS.get(name, ()), *words, "--dry-run"]
        )  # an exception here is the failure looked for
        said = capsys.readouterr().err
        told = (name, [word[:80] for word in words], said[:500])
        assert code in codes, told
        errors = [line for line in said.splitlines() if line.startswith("maelift ")]
        assert "Traceback" not in said and "Logging error" not in said, told
        assert code == 0 or (len(errors) == 1 and said.endswith(f"{errors[0]}\n") and len(errors[0]) < 2000), told
        codes[code] += 1
    assert min(codes.values()) > SETTINGS / 50, codes  # not all are refused for one reason


def test_pairs_without_a_space_reach_an_arm(tmp_path: Path) -> None:
    words = ["suite=quickstart", "out=x", "arms.mae.steps={30:40}"]
    assert BenchConfig.resolve(words).arms["mae"].steps["30"] == 40
    file = tmp_path / "suite.yaml"
    file.write_text("extends: quickstart\narms: {mae: {steps: {30:40}}}\n")
    with pytest.raises(MaeliftError, match="Put a space after the colon"):
        BenchConfig.resolve([f"suite={file}", "out=x"])


def test_the_advice_about_files_works_when_it_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path / "photos", 6)

    def check(data: str, code: int) -> str:
        assert main(["data", "pack", f"data={data}", "out=packed", "--dry-run"]) == code
        return "".join(capsys.readouterr())

    assert "give $HOME/... instead" in check("~/photos", 2)
    check(os.path.expandvars("$HOME/photos"), 0)
    shutil.make_archive("zipped", "zip", tmp_path / "photos")
    assert "(unpack it)" in check("zipped.zip", 2)
    shutil.unpack_archive("zipped.zip", "unpacked")
    check("unpacked", 0)
    shutil.make_archive("0", "tar", tmp_path / "photos")
    assert "Give the folder that they lie in" in check("{0..999999}.tar", 2)
    check("0.tar", 0)
    header = bytes([0, 0, 8, 3, *(10**5).to_bytes(4, "big"), *(1000).to_bytes(4, "big"), 0, 0, 0, 1])
    Path("blank-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(10**8), 1))
    assert "Unpack it with gunzip" in check("blank-images-idx3-ubyte.gz", 2)
    with gzip.open("blank-images-idx3-ubyte.gz") as packed, Path("blank-images-idx3-ubyte").open("wb") as file:
        shutil.copyfileobj(packed, file)
    check("blank-images-idx3-ubyte", 0)
    Path("packed.yaml").write_text("data: photos\nout: packed\nsize: {30:40}\n")
    assert main(["data", "pack", "--config", "packed.yaml"]) == 2 and "{30: 40}" in capsys.readouterr().err
