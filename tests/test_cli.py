"""The front door, as processes: help, versions, dry runs, mistakes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import maelift
import pytest
from maelift.cli import main
from maelift.commands import COMMANDS
from maelift.core.config import resolve
from maelift.core.errors import DataError, MaeliftError
from maelift.core.optional_imports import FRAMEWORKS
from maelift.core.tools import doctor
from maelift.key_table import MAIN_KEYS, keys_of, sections_of_schema
from maelift.pretrain.config import PretrainConfig
from maelift.tests.support import TINY, environment, one_line_error, run_maelift, write_images


def test_help_is_fast_and_imports_neither_torch_nor_omegaconf() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "maelift", "--help"], capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "maelift.cli" in imported and not imported & {"torch", "numpy", "omegaconf", "yaml"}
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = run_maelift("--help")
        times.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
    assert min(times) < 0.5
    assert run_maelift().stdout == done.stdout
    for word in (
        "pretrain",
        "transfer classify",
        "predict",
        "bench",
        "bench compare",
        "init",
        "export",
        "import",
        "certify",
        "data fashion-mnist",
        "doctor",
    ):
        assert word in done.stdout


def test_the_version_is_told() -> None:
    assert run_maelift("--version").stdout.strip() == f"maelift {maelift.__version__}"


@pytest.mark.parametrize(
    "command",
    [
        "pretrain",
        "transfer classify",
        "predict",
        "bench",
        "bench compare",
        "init",
        "export",
        "certify",
        "data fashion-mnist",
    ],
)
def test_every_command_lists_its_keys(command: str) -> None:
    done = run_maelift(*command.split(), "-h", "all")
    assert done.returncode == 0
    if command == "pretrain":
        for field in fields(PretrainConfig):
            assert f"  {field.name}" in done.stdout
        assert "masking.ratio  (float; default 0.75)" in done.stdout
    short = run_maelift(*command.split(), "-h").stdout
    assert f"usage: maelift {command}" in short and short.count("\n") < 75


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_that_of_the_schema_and_imports_no_framework(name: str) -> None:
    code = (
        "import sys; from maelift.cli import main; main([*sys.argv[1].split(), '-h'])\n"
        "print(sorted({'torch', 'timm', 'numpy', 'PIL', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, env=environment())
    assert done.stderr == "[]\n" and f"maelift {name}: " in done.stdout
    shown = {one.key: one for one in keys_of(name)}
    for one in sections_of_schema(name):
        for key in one.keys:
            assert shown[key.key].type and key.help
    main_keys = [key for group in MAIN_KEYS.get(name, {}).values() for key in group.split()]
    assert set(main_keys) <= set(shown) and len(main_keys) <= 20


APART = ("evaluate", "fold", "mix", "init", "head", "recipe", "budget")
"""Keys whose examples go with other keys, or need images."""


def test_help_on_one_key_has_an_example_and_a_wrong_one_names_the_nearest() -> None:
    text = run_maelift("pretrain", "-h", "masking.ratio").stdout
    assert (
        text.startswith("  masking.ratio  (float; default 0.75)\n")
        and "example: maelift pretrain ... masking.ratio=" in text
    )
    group = run_maelift("pretrain", "--help", "decoder").stdout
    assert "decoder.depth" in group and "masking.ratio" not in group
    assert "num_classes" in run_maelift("export", "-h", "detectron2").stdout
    assert run_maelift("bench", "mine.yaml", "-h").stdout == run_maelift("bench", "-h").stdout
    one_line_error(run_maelift("pretrain", "-h", "masking.ration"), "no such key. Did you mean masking.ratio?")


@pytest.mark.parametrize(
    "name", ["pretrain", "reconstruct", "transfer classify", "transfer detect", "transfer segment", "predict", "embed"]
)
def test_the_examples_of_keys_can_be_given(name: str) -> None:
    schema = COMMANDS[name].config_type()
    needed = {one.key: "any" for one in keys_of(name) if one.default is None and not one.origin}
    needed |= {"init": "scratch"} if name.startswith("transfer") else {}
    refused = []
    for one in keys_of(name):
        if one.example and one.key not in APART:
            try:
                words = [f"{key}={value}" for key, value in {**needed, one.key: one.example.strip("\"'")}.items()]
                schema.resolve(words) if hasattr(schema, "resolve") else resolve(schema, words)
            except MaeliftError as error:
                refused.append(str(error))
    assert refused == []


def test_completion_knows_commands_keys_and_words() -> None:
    def complete(line: str, shell: str = "bash") -> list[str]:
        return run_maelift("--complete", shell, line).stdout.split()

    assert complete("maelift tr") == ["transfer", "try"] and complete("maelift transfer c") == ["classify"]
    assert "masking.ratio=" in complete("maelift pretrain data=photos mask")
    assert complete("maelift pretrain model=vit_b") == ["vit_base"]
    assert complete("maelift pretrain model=vit_b", "fish") == ["model=vit_base"]
    assert complete("maelift pretrain data=pho") == []  # the shell completes files
    assert complete("maelift export --t") == ["--to"] and "--show-config" in complete("maelift pretrain --")
    assert complete("maelift completion z") == ["zsh"]
    assert complete("maelift bench quick") == ["quickstart", "quickstart_full"] and complete("maelift bench ./s") == []
    assert complete("maelift pretrain -h masking.r") == ["masking.ratio"]
    assert complete("maelift nothing at=all") == []


def test_a_shell_completes_with_the_script(tmp_path: Path) -> None:
    (tmp_path / "maelift").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maelift "$@"\n')
    (tmp_path / "maelift").chmod(0o755)
    script = (
        'source <(maelift completion bash); COMP_LINE="maelift pretrain model=vit_b"; COMP_POINT=${#COMP_LINE}; _maelift; '
        'echo "${COMPREPLY[@]}"'
    )
    environ = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environ)
    assert done.stdout == "vit_base\n", done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrian"], "Did you mean pretrain?"),
        (["transfer", "count"], "expected classify or detect or segment after transfer"),
        (["data", "mnist"], "expected fashion-mnist or fashion-scenes or check or pack or stack after data"),
        (["pretrain", "--fast"], "no such option"),
        (["pretrain", "--data=x"], "Keys have no dashes: data=x"),
        (["pretrain", "--json", "data=x", "out=y"], "--json: no such option"),
        (["doctor", "--jsno"], "Did you mean --json?"),
        (["pretrain", "--config"], "expected a file"),
        (["pretrain", "--config=a.yaml", "--config", "b.yaml"], "given more than once"),
        (["pretrain", "--config=nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["pretrain", "data=x"], "out: needed"),
        (["pretrain", "data=x", "out=y", "masking.ration=0.5"], "Did you mean masking.ratio"),
        (["pretrain", "data=x", "out=y", "masking.ratio=1"], "masking.ratio=1: expected a share between 0 and 1"),
        (["pretrain", "data=x", "out=y", "epochs=soon"], "epochs=soon: expected float"),
        (["pretrain", "data=x", "out=y", "image_size=100"], "[96,96]"),
        (["pretrain", "data=x", "out=y", "model=vit_bse"], "Did you mean vit_base?"),
        (["pretrain", "data=nowhere", "out=y"], "no such folder"),
        (["transfer", "classify", "data=x", "out=y"], "encoder=null: expected an encoder file, or init=scratch"),
        (["bench", "quickstrat", "out=y"], "Did you mean quickstart?"),
        (["bench", "out=y"], "suite: needed"),
        (["predict", "model=nowhere.safetensors", "images=."], "no such file"),
    ],
)
def test_a_mistake_ends_in_one_line(words: list[str], expected: str, tmp_path: Path) -> None:
    one_line_error(run_maelift(*words, cwd=tmp_path), expected)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_hold_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one_line_error(run_maelift("pretrain", f"data={tmp_path / 'empty'}", "out=o", cwd=tmp_path), "the folder is empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    done = run_maelift("pretrain", f"data={tmp_path / 'texts'}", "out=o", cwd=tmp_path)
    one_line_error(done, "no images among its 1 files")
    write_images(tmp_path / "one", 1)
    done = run_maelift("pretrain", f"data={tmp_path / 'one'}", "out=o", cwd=tmp_path)
    one_line_error(done, "batch_size=256", "only 1 images")
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_written(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run_maelift("pretrain", f"data={image_folder}", f"out={tmp_path / 'file' / 'run'}", *TINY)
    one_line_error(done, "nothing can be written there")


def test_a_dry_run_tells_the_plan_and_writes_nothing(image_folder: Path, tmp_path: Path) -> None:
    done = run_maelift("pretrain", "--show-config", f"data={image_folder}", f"out={tmp_path / 'run'}", *TINY)
    assert done.returncode == 0, done.stderr
    for text in (
        "mask",
        "image_size: 16",
        "parameters",
        "steps",
        "step, measured",
        "disk",
        "time, estimated",
        "memory, estimated",
    ):
        assert text in done.stdout
    assert done.stdout.startswith("images") and not (tmp_path / "run").exists()
    short = run_maelift("pretrain", "--dry-run", f"data={image_folder}", f"out={tmp_path / 'run'}", *TINY)
    assert "parameters" in short.stdout and "image_size: 16" not in short.stdout


@pytest.mark.slow
def test_a_config_file_takes_the_place_of_words(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"data: {image_folder}\nout: run\nmodel: vit_nano\nbatch_size: 8\nimage_size: 32\n"
    )
    done = run_maelift("pretrain", "--config", "c.yaml", "--show-config", "epochs=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model: vit_nano" in done.stdout and "epochs: 3.0" in done.stdout


@pytest.mark.slow
def test_doctor_tells_what_is_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    every = {
        "adapters": dict.fromkeys(FRAMEWORKS, "works"),
        "frameworks": dict.fromkeys(doctor.OTHER_PACKAGES, "imports"),
    }
    monkeypatch.setattr(doctor, "ADAPTERS", {"timm": FRAMEWORKS["timm"]})  # the adapters' tests import the others
    monkeypatch.setattr(doctor, "OTHER_PACKAGES", {"tensorboard": "tensorboard"})
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] != "not installed" and "cpu" in found["devices"]
    assert found["frameworks"]["tensorboard"].endswith("(imports)")
    assert found["adapters"]["timm"].startswith("works (timm ")
    text = doctor.Diagnosis(**found | every).summary()
    assert "free here" in text and len(text.splitlines()) <= 50


@pytest.mark.parametrize("words", [["--help"], ["doctor", "--dry-run"], ["data", "fashion-mnist", "-h"]])
def test_a_reader_that_has_gone_is_no_error(words: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "maelift", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_told_in_a_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "maelift", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.startswith("maelift --help: standard output: no space left") and done.stderr.count("\n") == 1


def test_the_commands_of_two_words_introduce_themselves() -> None:
    for words in (["transfer"], ["transfer", "-h"], ["data", "--help"]):
        done = run_maelift(*words)
        assert done.returncode == 0 and f"maelift {words[0]}" in done.stdout
    assert run_maelift("help", "predict").stdout == run_maelift("predict", "-h").stdout


def test_defaults_that_a_recipe_or_a_suite_gives_are_told() -> None:
    text = run_maelift("transfer", "classify", "-h", "all").stdout
    assert "  layer_decay  (float; default 0.65, with init=scratch 1, with method=lora 1," in text
    assert "  data  (text; needed)" in text and "--to TO" in run_maelift("export", "-h").stdout
    assert "[--evaluate SPLIT]" in run_maelift("transfer", "classify", "-h").stdout
    text = run_maelift("bench", "-h", "all").stdout
    assert "  suite  (text; needed)" in text and "  title  (text; default: the suite's)" in text


def fail_with(error: str, *, rank: str = "0") -> subprocess.CompletedProcess[str]:
    """Run ``maelift doctor`` as a process in which looking at the machine raises ``error``, a Python expression."""
    code = (
        "import sys, errno, maelift.cli, maelift.core.tools.doctor as doctor\n"
        "from maelift.core.errors import DataError\n"
        f"def fail(config): raise {error}\n"
        "doctor.doctor = fail\n"
        "sys.exit(maelift.cli.main(['doctor']))"
    )
    environ = {**environment(), "RANK": rank}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (DataError("nothing there."), 2, "maelift doctor: nothing there."),
        (OSError(errno.ENOSPC, "No space", "a.bin"), 2, "maelift doctor: a.bin: no space left on the device."),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "maelift doctor: a: permission denied."),
        (OSError(errno.EROFS, "Read-only file system", "a"), 2, "maelift doctor: a: read-only file system."),
        (OSError(errno.EDQUOT, "Quota", "a"), 2, "maelift doctor: a: the disk quota is used up."),
        (
            OSError(errno.EMFILE, "Too many", "a"),
            2,
            "maelift doctor: too many open files. Raise the limit (ulimit -n",
        ),
        (
            RuntimeError("can't start new thread"),
            2,
            "maelift doctor: the system starts no more processes or threads",
        ),
        (MemoryError(), 2, "maelift doctor: not enough memory. Free some"),
        (KeyboardInterrupt(), 130, "maelift doctor: stopped (SIGINT)"),
    ],
)
def test_what_goes_wrong_on_a_machine_ends_in_one_line(
    error: BaseException,
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(config: object) -> None:
        raise error

    monkeypatch.setattr("maelift.core.tools.doctor.doctor", fail)
    assert main(["doctor"]) == exit_code
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
    monkeypatch.setenv("MAELIFT_DEBUG", "1")
    assert main(["doctor"]) == exit_code and "Traceback" in capsys.readouterr().err


def test_of_several_processes_one_speaks() -> None:
    done = fail_with("DataError('nothing there.')", rank="1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_our_own_mistakes_show_where_they_are() -> None:
    done = fail_with("ZeroDivisionError")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_the_data_is_brought_once_and_checked(fashion_mnist: Path, tmp_path: Path) -> None:
    done = run_maelift("data", "fashion-mnist", f"out={fashion_mnist}")
    assert "already there" in done.stdout, done.stderr
    for file in fashion_mnist.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    done = run_maelift("data", "fashion-mnist", f"out={tmp_path}", timeout=600)
    if done.returncode == 0:
        sound = (fashion_mnist / "t10k-labels-idx1-ubyte.gz").read_bytes()
        assert (tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes() == sound
    else:
        one_line_error(done, "can't be had here", "Tried")


def test_python_is_imported_without_torch() -> None:
    code = "import sys, maelift; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
    assert callable(maelift.load_encoder) and callable(maelift.Encoder) and callable(maelift.bench)
