"""What the tests make and check again and again: small real images, and errors of one line."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.core.models.contract import sealed, sealed_hash
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, save_encoder
from maelift.core.models.encoder_spec import EncoderSpec, preset_spec
from maelift.core.seeding import seeded_rng
from maelift.tests.preloaded import CODE, FRAMEWORKS, PLACE, PLAIN, PROGRAM, Preloaded, Started
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
FASHION_MNIST = ROOT / "data" / "fashion-mnist"
GOLDEN = Path(__file__).parent / "golden"

TINY = [
    "model=vit_nano",
    "image_size=16",
    "patch_size=4",
    "decoder.embed_dim=16",
    "decoder.depth=1",
    "decoder.num_heads=2",
    "batch_size=8",
    "holdout=4",
    "evaluations=2",
    "workers=0",
    "lr=1e-3",
]
"""Keys that make a pretraining of seconds."""
SMALL_DECODER = "decoder.embed_dim=16 decoder.depth=1 decoder.num_heads=2 evaluations=2"
"""Keys that make a page's pretraining of a minute one of seconds."""


def framework(name: str) -> Any:
    """An optional framework; where it is not installed, the test is skipped, but in CI it fails."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


@cache
def preloaded() -> Preloaded:
    """What starts the commands of this process."""
    return Preloaded()


def run_maelift(*words: object, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run ``maelift`` with these words as a process of its own; give its exit code and what it said."""
    return preloaded().run([str(word) for word in words], cwd, environment(), timeout)


def start_maelift(*words: object, cwd: Path | None = None, session: bool = False) -> Started:
    """The same, at work: to be watched, told to stop, or killed. ``session``: in a process group of its own."""
    return preloaded().start([str(word) for word in words], cwd, environment(), session=session)


def start_ranks(processes: int, *words: object) -> list[Started]:
    """``maelift`` with these words in so many processes, each with the environment that torchrun would give it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    shared["LOCAL_WORLD_SIZE"] = shared["WORLD_SIZE"]
    return [
        preloaded().start(
            [str(word) for word in words], None, {**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(processes)
    ]


def run_ranks(processes: int, *words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run them to the end: the first exit code that isn't 0, and what the processes said one after the other."""
    ranks = start_ranks(processes, *words)
    said = [rank.communicate(timeout) for rank in ranks]
    code = next((rank.wait() for rank in ranks if rank.wait()), 0)
    out, err = ("".join(texts) for texts in zip(*said, strict=True))
    return subprocess.CompletedProcess(["maelift", *map(str, words)], code, out, err)


def start_torchrun(processes: int, *words: object, session: bool = False) -> Started:
    """torchrun with these words at work: it has its imports done, the processes that it starts are Python's as for anybody."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "maelift"]
    return preloaded().start([CODE, PROGRAM, *launcher, *map(str, words)], None, environment(), session=session)


def environment() -> dict[str, str]:
    """One thread a process: the tests share few cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def noise_image(seed: int, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Image.Image:
    """An image of smooth noise, (height, width) in ``size``: real enough to be pretrained on."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((size[1], size[0]), Image.Resampling.BICUBIC).convert(mode)


def write_images(folder: Path, count: int, *, suffix: str = ".png", first: int = 0, mode: str = "RGB") -> Path:
    """``count`` images of smooth noise in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        noise_image(number, mode=mode).save(folder / f"image{number:03d}{suffix}")
    return folder


def random_encoder(
    model: str | EncoderSpec = "vit_nano",
    *,
    channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Encoder:
    """An encoder whose every parameter is random: none is zero or one by chance, so that none can be missed unseen."""
    spec = preset_spec(model, channels=channels, image_size=image_size) if isinstance(model, str) else model
    with seeded_rng(seed, "random encoder"):
        encoder = Encoder(spec)
        for parameter in encoder.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder


def wide_encoder(image_size: int = 96, seed: int = 0) -> Encoder:
    """A random encoder as wide as ViT-B, and with its heads, but with three blocks: all twelve are in test_certificate.py."""
    return random_encoder(replace(preset_spec("vit_base", image_size=image_size), depth=3), seed=seed)


def encoder_file(path: Path, encoder: Encoder | None = None) -> Path:
    """An encoder file, of a random vit_nano if no encoder is given."""
    save_encoder(encoder or random_encoder(), path, Provenance(method="test"))
    return path


def rewrite_metadata(path: Path, change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    """Change the metadata of an encoder, decoder or model file; with ``seal`` the hashes are those of the change."""
    with safe_open(path, "pt") as file:
        ((key, text),) = file.metadata().items()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = json.loads(text)
    change(content)
    if seal:
        content = json.loads(sealed(content, sealed_hash(content, state)))
    save_file(state, path, {key: json.dumps(content)})


@contextmanager
def bounded_memory(extra: int = 8 * 2**30) -> Iterator[None]:
    """Have what asks for more than ``extra`` bytes of address space fail, and see that no more than a quarter was in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < extra // 4 // 1024


def has_checkpoint(out: Path, least: int = 1) -> bool:
    """Whether a run has saved a state that it can go on from, of at least so many steps."""
    return any(int(path.name.removeprefix("step-")) >= least for path in (out / "checkpoints").glob("step-*"))


def eventually(condition: Callable[[], object], seconds: float = 240) -> None:
    """Wait until it holds; fail where that takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came"
        time.sleep(0.02)


def one_line_error(done: subprocess.CompletedProcess[str], *expected: str) -> str:
    """Check that a process refused its user's mistake in one line, without a traceback, and that the line says this."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("maelift ")]
    assert len(lines) == 1, done.stderr
    for text in expected:
        assert text in lines[0], (text, lines[0])
    return lines[0]


def start_program(file: Path, *words: object, cwd: Path | None = None, framework: str) -> Started:
    """A program in a file, unchanged, at work as ``python FILE WORDS``: a process that has a framework imported already."""
    preloaded().prepare(framework)
    return preloaded().start([CODE, PROGRAM, str(file), *map(str, words)], cwd, environment(), framework=framework)


WITHOUT = """import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)
ABSENT = {absent!r}
sys.meta_path.insert(0, Absent())
for name in [name for name in sys.modules if name.split(".")[0] in ABSENT]:
    del sys.modules[name]
"""


def run_consumer(script: str, *words: str, folder: Path, alone: bool, absent: Sequence[str] = ("maelift",)) -> None:
    """Run a program of somebody who has a framework, but not these packages, in a process that has its imports done.

    One program of each kind runs ``alone``, in a Python of its own: nothing is there that it does not import itself.
    """
    if alone:
        command = [sys.executable, "-c", script, *words]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    else:
        block = WITHOUT.format(absent=tuple(absent)) + script
        done = preloaded().run([CODE, block, *words], folder, environment(), 240)
    assert done.returncode == 0, done.stderr


def run_page(
    page: Path,
    folder: Path,
    timeout: float = 600,
    languages: Sequence[str] = ("bash", "python"),
    shorter: Mapping[str, str] | None = None,
) -> str:
    """Do what a page says, in ``folder``: its blocks of these languages in order, each a process of its own.

    Other blocks are not run; those that need a framework are "sh". ``shorter`` are commands, by the words that they begin with,
    and keys that these get besides their own, so that what takes a reader minutes takes seconds here. Returns what the blocks
    printed; fails with the block and what it said, at the first that fails.
    """
    pattern = rf"^```({'|'.join(languages)})\n(.*?)^```$"
    text = page.read_text()
    blocks = re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"{page} has no blocks of {' or '.join(languages)}"
    path = os.pathsep.join([str(preloaded().shim()), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    printed = []
    env = {**environment(), "PATH": path}
    env.pop(PLAIN, None)  # a page's commands draw what they draw for a reader
    named = [framework for framework in FRAMEWORKS if any(framework in block for _, block in blocks)]
    if named:
        env[PLACE] = str(preloaded().prepare(named[0]))
    for begins, keys in (shorter or {}).items():
        call = rf"^({re.escape(begins)}(?:[^\n\\]|\\\n)*?)(?= --dry-run|\n)"
        assert re.search(call, text, flags=re.MULTILINE), f"{page.name} has no {begins}"
        blocks = [(language, re.sub(call, rf"\1 {keys}", block, flags=re.MULTILINE)) for language, block in blocks]
    for language, block in blocks:
        if language == "python":
            done = preloaded().run([CODE, block], folder, env, timeout)
        else:
            command = ["bash", "-euo", "pipefail", "-c", block]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=timeout, env=env)
        assert done.returncode == 0, f"{page.name}: exit code {done.returncode}\n{block}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return "".join(printed)


def deep_png(array: np.ndarray) -> bytes:
    """A PNG of 16 bits in colour or with transparency, (H, W, 2 to 4) uint16, which PIL can't write."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
