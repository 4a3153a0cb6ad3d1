"""Configurations: whatever is wrong with a key ends in a line that names it and what was expected."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from maelift.core.config import config_difference, resolve
from maelift.core.config_keys import describe, section
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.yaml_files import to_dict, to_yaml, write_config


@dataclass(frozen=True)
class Inner:
    """A nested part."""

    ratio: float = 0.75
    """share of patches"""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ConfigError("ratio", self.ratio, "a share between 0 and 1, both excluded")


@dataclass(frozen=True)
class Stage:
    """One of several parts."""

    name: str = "first"
    """how it is called"""
    lr: float = 1e-3
    """learning rate"""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Keys that are inherited."""

    steps: int
    """steps of the optimiser"""


@dataclass(frozen=True, kw_only=True)
class Schema(Parent):
    """Keys of every kind."""

    data: str
    """folder of images"""
    size: int | tuple[int, int] | None = None
    """pixels"""
    kind: Literal["random", "grid"] = "random"
    """which one"""
    flip: bool = True
    """mirror"""
    rates: tuple[float, ...] = (0.1, 0.2)
    """rates tried"""
    inner: Inner = field(default_factory=Inner)
    half: Inner = field(default_factory=lambda: Inner(0.5))
    stages: tuple[Stage, ...] = ()
    """what is done, one after another"""
    weights: dict[str, float] = field(default_factory=dict)
    """weights by class"""
    note: str | None = None
    """said in the report"""


GOOD = ["data=photos", "steps=5"]


def test_values_of_every_kind_are_read() -> None:
    words = [*GOOD, "size=[28,32]", "kind=grid", "flip=false", "rates=[1e-3,2]", "inner.ratio=0.5"]
    config = resolve(Schema, words)
    assert config == Schema(
        steps=5, data="photos", size=(28, 32), kind="grid", flip=False, rates=(1e-3, 2.0), inner=Inner(0.5)
    )
    assert resolve(Schema, [*GOOD, "size=28"]).size == 28
    assert resolve(Schema, [*GOOD, "size=null"]).size is None
    assert resolve(Schema, ["data=007", "steps=1"]).data == "007"  # text stays as it was typed
    assert resolve(Schema, ["data=a=b: c", "steps=1"]).data == "a=b: c"
    assert resolve(Schema, [*GOOD, "note=1e5"]).note == "1e5"
    assert resolve(Schema, [*GOOD, "note=null"]).note is None
    assert resolve(Schema, [*GOOD, "weights.shoe=2", "weights.bag=3"]).weights == {"shoe": 2.0, "bag": 3.0}
    assert resolve(Schema, [*GOOD, "stages=[{name: b}, {lr: 1}]"]).stages == (Stage("b"), Stage(lr=1.0))


def test_the_last_word_about_a_key_wins() -> None:
    words = ["steps=6", "inner={ratio: 0.2}", "inner.ratio=0.3", "size=[1,2]", "size=3"]
    config = resolve(Schema, [*GOOD, *words])
    assert (config.steps, config.inner.ratio, config.size) == (6, 0.3, 3)


def test_values_may_refer_to_others_and_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS", "/mnt/photos")
    words = ["data=${oc.env:PHOTOS}/2024", "steps=7", "inner.ratio=${half.ratio}", "size=${steps}"]
    config = resolve(Schema, words)
    assert (config.data, config.inner.ratio, config.size) == ("/mnt/photos/2024", 0.5, 7)


def test_from_python_keys_may_be_paths_tuples_and_parts() -> None:
    parts = {"inner": Inner(0.1), "stages": (Stage("x"),)}
    config = resolve(Schema, {"data": Path("a/b"), "steps": 1, "size": (3, 4), **parts})
    assert (config.data, config.size) == ("a/b", (3, 4))
    assert (config.inner, config.stages) == (Inner(0.1), (Stage("x"),))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "inner.ration=0.5",
            "inner.ration: no such key. Did you mean inner.ratio (float, share of patches, default 0.75)?",
        ),
        ("ratio=0.5", "ratio: no such key. Did you mean half.ratio (float, share of patches, default 0.5)?"),
        ("steps.x=3", "steps.x: no such key. Did you mean steps (int"),
        ("stesp=3", "stesp: no such key. Did you mean steps (int, steps of the optimiser, needed)?"),
        ("stages=[{nme: a}]", "stages[0].nme: no such key. Did you mean stages[0].name (text, how it is called"),
        ("stages=[{lr: fast}]", "stages[0].lr=fast: expected float"),
        ("zzz=3", "zzz: no such key. Those there are:"),
        ("steps=many", "steps=many: expected int"),
        ("steps=2.5", "steps=2.5: expected int"),
        ("steps=true", "steps=true: expected int"),
        ("flip=3", "flip=3: expected true or false"),
        ("kind=gird", "kind=gird: expected one of random, grid. Did you mean grid?"),
        ("size=[1,2,3]", "size=[1,2,3]: expected int | [int, int] | null"),
        ("rates=[1,x]", "rates"),
        ("inner.ratio=1.5", "inner.ratio=1.5: expected a share between 0 and 1"),
        ("inner.ratio=1.50", "inner.ratio=1.50: expected a share"),
        ("steps=1e3", "steps=1e3: expected int"),
        ("inner.ratio=.inf", "inner.ratio=.inf: expected a finite number"),
        ("inner.ratio=1e999", "inner.ratio=1e999: expected a finite number"),
        ("inner.ratio=.nan", "inner.ratio=.nan: expected a finite number"),
        ("inner=3", "inner=3: expected {ratio}"),
        ("weights=[1]", "weights=[1]: expected mapping"),
        ("rates={a: 1}", "rates={a: 1}: expected [float, ...]"),
        ("steps", "'steps': expected key=value"),
        ("data=", "data=: expected text"),
        ("size=", "size=: expected int | [int, int] | null. Leave the key out to get its default."),
        ("size=[1,2", "size=[1,2: expected int | [int, int] | null. It isn't YAML"),
        ("size=${nothing}", "size: Interpolation key 'nothing' not found."),
        ("note=${nothing", "note=${nothing: expected text | null"),
    ],
)
def test_a_wrong_word_is_refused_in_a_line(word: str, expected: str) -> None:
    with pytest.raises(MaeliftError) as caught:
        resolve(Schema, [*GOOD, word])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named_with_its_meaning() -> None:
    with pytest.raises(MaeliftError, match=r"data: needed \(text: folder of images\)"):
        resolve(Schema, ["steps=3"])


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: from-file\nsteps: 2\ninner: {ratio: 0.4}\n")
    config = resolve(Schema, ["steps=3"], file, {"steps": 1, "flip": False})
    assert (config.data, config.steps, config.inner.ratio, config.flip) == ("from-file", 3, 0.4, False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"steps: 1\na: [", " line 2: not YAML"),
        (b"steps: 1\nsteps: 2\n", " line 2: not YAML (found duplicate key steps)"),
        (b"- 1", ": expected keys and values, found a list"),
        (b"3", ": expected keys and values"),
        (b"\xff\xfe", ": not YAML"),
        (b"!!python/object/apply:os.system [exit]", " line 1: not YAML"),
        (None, ": no such configuration file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MaeliftError) as caught:
        resolve(Schema, GOOD, file)
    assert f"{file}{expected}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(MaeliftError, match="can't be read"):
        resolve(Schema, GOOD, tmp_path)


def test_a_wrong_key_in_a_file_is_told_as_one_in_a_word_is(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("inner: {ration: 0.5}\n")
    with pytest.raises(MaeliftError, match=r"inner\.ration: no such key\. Did you mean inner\.ratio"):
        resolve(Schema, GOOD, file)
    file.write_text("inner.ratio: 0.5\n")
    with pytest.raises(MaeliftError, match=r"inner\.ratio: .* Write inner: \{ratio: \.\.\.\}"):
        resolve(Schema, GOOD, file)


WORDS = (
    *(
        "Batch #2",
        "2024",
        "007",
        "1e5",
        "null",
        "yes",
        "~/x",
        "~",
        "2024-11-29",
        "[a] b",
        "a: b",
        "{a}",
        "1:30",
        "-x",
        "a=b",
    ),
    *(
        "'quoted'",
        '"half',
        "100%",
        "tab\there",
        "ünï",
        "b\udcff",
        "- x",
        "&x",
        "*x",
        "!!int 3",
        "? x",
        "|",
        "> x",
        "@x",
        "`x`",
    ),
)


@dataclass(frozen=True)
class Texts:
    """Keys of texts."""

    data: str | tuple[str, ...]
    """one or several"""
    out: str = "x"
    names: tuple[str, ...] = ()
    by_name: dict[str, str] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    steps: dict[str, int] = field(default_factory=dict)
    note: str | None = None


@pytest.mark.parametrize("word", WORDS)
def test_a_key_of_text_gets_exactly_the_words_given(word: str) -> None:
    found = resolve(Texts, [f"data={word}", f"out={word}", f"by_name.a={word}", f"note=x{word}"])
    assert (found.data, found.out, found.by_name, found.note) == (word, word, {"a": word}, f"x{word}")
    assert resolve(Texts, {"data": to_dict(found)["data"]}).data == word


def test_lists_of_texts_keep_their_items_as_they_were_typed() -> None:
    word = "[2024, 1e5,null ,Batch #2, shards/{000..009}.tar, x{a,b}.tar, 'a, b', \"it's\", it's, a: b,]"
    texts = ("2024", "1e5", "null", "Batch #2", "shards/{000..009}.tar", "x{a,b}.tar", "a, b", "it's", "it's", "a: b")
    assert resolve(Texts, [f"data={word}", f"names={word}"]).data == texts
    assert resolve(Texts, ["data=x", f"names={word}"]).names == texts
    assert resolve(Texts, ["data=[]"]).data == () and resolve(Texts, ["data=[a]"]).data == ("a",)
    with pytest.raises(ConfigError, match="a quote or a brace isn't closed"):
        resolve(Texts, ["data=['a, b]"])


def test_texts_of_a_file_are_as_they_are_written_there(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "data: [2024-11-29, 007, yes]\nout: 1e5\nnote: ~\nby_name: {a: 0x10}\nstages: [{name: 12, lr: 1e-3}]\nsteps: {a: 010}\n"
    )
    found = resolve(Texts, file=file)
    assert (found.data, found.out, found.note, found.by_name) == (
        ("2024-11-29", "007", "yes"),
        "1e5",
        None,
        {"a": "0x10"},
    )
    assert found.stages == (Stage("12", 1e-3),) and found.steps == {"a": 8}  # YAML's numbers where numbers are meant
    write_config(found, file)
    assert resolve(Texts, file=file) == found


def test_pairs_without_a_space_are_pairs_and_times_are_no_numbers(tmp_path: Path) -> None:
    assert resolve(Texts, ["data=x", "steps={30:40,b:2}"]).steps == {"30": 40, "b": 2}
    assert resolve(Texts, ["data=x", "stages=[{name:x,lr:1}]"]).stages == (Stage("x", 1.0),)
    with pytest.raises(ConfigError, match=r"steps.a=1:30: expected int"):
        resolve(Texts, ["data=x", "steps.a=1:30"])
    file = tmp_path / "config.yaml"
    file.write_text("data: x\nsteps: {30:40}\n")
    with pytest.raises(MaeliftError, match=r"Put a space after the colon: \{30: 40\}"):
        resolve(Texts, file=file)
    file.write_text("data: x\nsteps: {30: 40}\n")
    assert resolve(Texts, file=file).steps == {"30": 40}


def test_what_would_not_end_or_fit_is_refused(tmp_path: Path) -> None:
    levels = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12))
    file = tmp_path / "config.yaml"
    file.write_text(f"a0: &a0 x\n{levels}\n")
    with pytest.raises(MaeliftError, match="stands for more than 1,000,000 values"):
        resolve(Texts, file=file)
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(MaeliftError, match="more than the 16,777,216 that are read"):
        resolve(Texts, file=file)
    for word, expected in {
        "steps.a=" + "9" * 5000: "expected int",
        "steps.a=" + "9" * 100: "a number of at most 64 bits",
        "stages=" + "[" * 5000: "steps|nested too deeply",
        "stages=&a [*a]": "stands for more than",
        "note=${note}": "circle",
    }.items():
        with pytest.raises(MaeliftError) as caught:
            resolve(Texts, ["data=x", word])
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value), expected


def test_a_configuration_comes_back_from_its_yaml(tmp_path: Path) -> None:
    words = ["size=[3,4]", "stages=[{name: x}]", "weights={a: 1}", "rates=[1e-5, 0.123456789]"]
    config = resolve(Schema, [*GOOD, *words])
    write_config(config, tmp_path / "c.yaml")
    assert (tmp_path / "c.yaml").read_text() == to_yaml(config)
    assert resolve(Schema, (), tmp_path / "c.yaml") == config
    assert resolve(Schema, json.loads(json.dumps(to_dict(config)))) == config


def test_every_key_is_described_inherited_and_nested_ones_too() -> None:
    described = {entry.key: entry for entry in describe(Schema)}
    assert " ".join(described) == ("steps data size kind flip rates inner.ratio half.ratio stages weights note")
    assert described["steps"].help == "steps of the optimiser" and described["steps"].default is None
    assert described["inner.ratio"].default == "0.75" and described["half.ratio"].default == "0.5"
    text = section(Schema, {"steps": "default: the recipe's"}).text()
    assert "  steps  (int; default: the recipe's)\n      steps of the optimiser\n" in text
    assert "  kind  (one of random, grid; default random)" in text
    for key in described:
        assert f"  {key}  (" in text


def test_differences_are_told_by_key() -> None:
    old, new = {"a": 1, "inner": {"b": 2}}, {"a": 1, "inner": {"b": 3}, "c": None}
    assert config_difference(old, new) == ["inner.b: 2 -> 3", "c: unset -> null"]
    assert config_difference({"lr": 0.12345678}, {"lr": 0.12345679}) == ["lr: 0.12345678 -> 0.12345679"]


def test_on_and_off_are_words_where_they_are_choices() -> None:
    @dataclass(frozen=True)
    class Lamp:
        light: Literal["off", "on", "auto"] = "auto"

    assert resolve(Lamp, ["light=off"]).light == "off" and resolve(Lamp, ["light=on"]).light == "on"
    with pytest.raises(MaeliftError, match="expected one of off, on, auto"):
        resolve(Lamp, ["light=0"])
