"""Encoders to and from the Hugging Face Hub, against a fake of its interface: commits, cards, names, refusals."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from maelift.adapters.model_card import CardContent, SuiteVerdicts, card_text, header, markdown
from maelift.benchmarks.short_arms import expanded
from maelift.core.errors import ConfigError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, read_backbone, read_encoder, save_encoder
from maelift.core.models.hub_files import hub_error
from maelift.core.models.hub_names import HubName, cached_name, is_moving
from maelift.core.models.preprocessing import Preprocessing
from maelift.tests.benchmarks.made_up import made_up
from maelift.tests.fake_hub import READER, WRITER, FakeHub, HubProcess, running_hub
from maelift.tests.support import TINY, encoder_file, eventually, one_line_error, random_encoder

FILES = {"encoder.safetensors", "config.json", "model.safetensors", "certificate.json", "README.md", ".gitattributes"}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with running_hub() as found:
        yield found


@pytest.fixture(scope="module")
def shared(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A process for the commands of all tests."""
    process = HubProcess(hub, tmp_path_factory.mktemp("hub") / "cache")
    yield process
    process.end()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.fixture(autouse=True)
def _sound(hub: FakeHub) -> Iterator[None]:
    yield
    hub.hang = hub.fail = None


def pushed(hub: FakeHub, shared: HubProcess, encoder: Path, repo: str, *words: object) -> str:
    """Push an encoder; what was printed."""
    done = shared.run("push", encoder, repo, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_pushed_encoder_is_pulled_byte_by_byte_and_loaded_by_timm(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path
) -> None:
    out = pushed(hub, shared, encoder, "ada/first")
    repo = hub.repos["ada/first"]
    assert set(hub.files("ada/first")) == FILES and repo.private and len(repo.commits) == 2
    assert "encoder.safetensors" in out and repo.branches["main"] in out
    done = shared.run("pull", "hf:ada/first", f"out={tmp_path / 'pulled.safetensors'}")
    assert done.returncode == 0 and repo.branches["main"] in done.stdout, done.stderr
    assert (tmp_path / "pulled.safetensors").read_bytes() == encoder.read_bytes()
    again = shared.run("pull", "ada/first@main", f"out={tmp_path / 'pulled.safetensors'}")
    assert again.returncode == 0 and "is there already, with the same content" in again.stdout
    size = read_encoder(encoder).encoder.spec.image_size
    done = shared.python(
        f"""
import maelift, timm, torch
images = torch.randn(2, 3, *{size}, generator=torch.Generator().manual_seed(0))
model = timm.create_model("hf-hub:ada/first", pretrained=True, num_classes=0).eval()
encoder = maelift.load_encoder("hf:ada/first").eval()
own = maelift.load_encoder({str(encoder)!r}).eval()
with torch.inference_mode():
    assert torch.equal(encoder(images), own(images))
    assert torch.allclose(model.forward_features(images), own(images), atol=2e-5)
"""
    )
    assert done.returncode == 0, done.stderr


def test_the_same_encoder_again_changes_nothing_and_another_replaces_it(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path
) -> None:
    pushed(hub, shared, encoder, "ada/again", "private=false")
    before = dict(hub.repos["ada/again"].commits)
    hub.requests.clear()
    out = pushed(hub, shared, encoder, "ada/again")
    assert "nothing was uploaded" in out and "stays public" in out
    assert hub.repos["ada/again"].commits == before
    assert not [request for request in hub.requests if request.startswith(("POST", "PUT"))]
    other = encoder_file(tmp_path / "other.safetensors", random_encoder(seed=1))
    pushed(hub, shared, other, "ada/again", "timm=false")
    files = hub.files("ada/again")
    assert files["encoder.safetensors"] == other.read_bytes()
    assert set(files) == {"encoder.safetensors", "README.md", ".gitattributes"}  # timm's were of the encoder before


def test_a_branch_is_made_and_a_commit_stays_the_same(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path
) -> None:
    pushed(hub, shared, encoder, "ada/branches")
    first = hub.repos["ada/branches"].branches["main"]
    other = encoder_file(tmp_path / "other.safetensors", random_encoder(seed=2))
    pushed(hub, shared, other, "ada/branches", "revision=v2", "message=second")
    assert hub.repos["ada/branches"].branches["main"] == first
    for name, source in (("hf:ada/branches@v2", other), (f"hf:ada/branches@{first}", encoder)):
        out = tmp_path / f"{len(name)}.safetensors"
        assert shared.run("pull", name, f"out={out}").returncode == 0
        assert out.read_bytes() == source.read_bytes()
    one_line_error(shared.run("pull", "hf:ada/branches@v3", f"out={tmp_path / 'x.safetensors'}"), "no such revision")


def test_hf_names_are_read_where_weights_are_named_and_their_commit_is_recorded(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path
) -> None:
    pushed(hub, shared, encoder, "ada/named")
    commit, digest = hub.repos["ada/named"].branches["main"], read_encoder(encoder).content_hash
    done = shared.run("export", "hf:ada/named", "--to", "timm", f"out={tmp_path / 'vit'}")
    assert done.returncode == 0, done.stderr
    assert shared.run("certify", tmp_path / "vit", "hf:ada/named").returncode == 0
    done = shared.run("import", "hf:ada/named", f"out={tmp_path / 'mit.safetensors'}", "licence=mit")
    assert done.returncode == 0 and read_encoder(tmp_path / "mit.safetensors").content_hash == digest, done.stderr
    done = shared.python(
        """
from maelift.adapters.pretrained import read_pretrained
from maelift.pretrain.config import PretrainConfig
from maelift.pretrain.init_weights import read_init_weights
file = read_pretrained("hf:ada/named", "encoder")
keys = {"data": "d", "out": "o", "init": "hf:ada/named", "model": "vit_nano"}
config = PretrainConfig.resolve({**keys, "patch_size": file.encoder.spec.patch_size})
init = read_init_weights(config)
print(file.hub_name, file.parent, init.parent, sep="\\n")
"""
    )
    assert done.returncode == 0, done.stderr
    name, parent, init = done.stdout.splitlines()
    assert name == f"hf:ada/named@{commit}" and parent == f"{name} (sha256 {digest})" and init.startswith(f"{name} (")


@pytest.mark.slow
def test_without_a_network_what_is_cached_is_used(encoder: Path, tmp_path: Path) -> None:
    with running_hub() as own:
        process = HubProcess(own, tmp_path / "cache")
        pushed(own, process, encoder, "ada/cached")
        assert process.run("pull", "hf:ada/cached", f"out={tmp_path / 'one.safetensors'}").returncode == 0
    done = process.run("pull", "hf:ada/cached", f"out={tmp_path / 'two.safetensors'}")
    assert done.returncode == 0 and (tmp_path / "two.safetensors").read_bytes() == encoder.read_bytes(), done.stderr
    one_line_error(process.run("pull", "hf:ada/other", f"out={tmp_path / 'x.safetensors'}"), "there is no network")
    other = encoder_file(tmp_path / "other.safetensors", random_encoder(seed=1))
    one_line_error(process.run("push", other, "ada/cached"), "there is no network", "Nothing was uploaded")
    process.end()


@pytest.mark.slow
def test_offline_mode_asks_nothing(hub: FakeHub, encoder: Path, tmp_path: Path) -> None:
    process = HubProcess(hub, tmp_path / "cache")
    pushed(hub, process, encoder, "ada/offline")
    assert process.run("pull", "hf:ada/offline", f"out={tmp_path / 'one.safetensors'}").returncode == 0
    process.end()
    hub.requests.clear()
    offline = HubProcess(hub, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert offline.run("pull", "hf:ada/offline", f"out={tmp_path / 'two.safetensors'}").returncode == 0
    one_line_error(offline.run("push", encoder, "ada/offline"), "HF_HUB_OFFLINE is set")
    offline.end()
    assert not hub.requests and (tmp_path / "two.safetensors").read_bytes() == encoder.read_bytes()


@pytest.mark.parametrize(
    ("token", "repo", "expected"),
    [
        (None, "ada/new", "no token of the Hugging Face Hub. Log in (hf auth login), or set HF_TOKEN"),
        ("hf_wrongwrongwrong", "ada/new", "does not accept the token (401)"),
        (READER, "ada/new", "the token may not do this (403)"),
        (WRITER, "grace/new", "may write to grace"),
    ],
)
def test_tokens_that_do_not_suffice_are_one_line_without_the_token(
    shared: HubProcess, encoder: Path, token: str | None, repo: str, expected: str
) -> None:
    done = shared.run("push", encoder, repo, token=token)
    one_line_error(done, expected)
    assert "hf_" not in done.stderr + done.stdout


def test_a_private_repository_is_not_there_for_others(
    shared: HubProcess, hub: FakeHub, encoder: Path, tmp_path: Path
) -> None:
    pushed(hub, shared, encoder, "ada/secret")
    for token in (None, READER):
        done = shared.run("pull", "hf:ada/secret", f"out={tmp_path / 'x.safetensors'}", token=token)
        one_line_error(done, "hf:ada/secret: there is no such repository", "private")
    one_line_error(shared.run("pull", "hf:ada/nothing", f"out={tmp_path / 'x.safetensors'}"), "no such repository")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_token_that_no_header_can_hold_is_not_shown(
    shared: HubProcess, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = shared.run("push", encoder, "ada/new", token="secret\x01secret")
    one_line_error(done, "characters that no token has")
    assert "secret" not in done.stderr
    monkeypatch.setenv("HF_TOKEN", "secret")
    for text in ("Illegal header value b'Bearer secret'", "Bearer other", "hf_writerwriter in x", "secret"):
        said = str(hub_error(ValueError(text), HubName("a/b"), ""))
        assert "the Hub's client failed" in said
        assert not any(word in said for word in ("secret", "other", "writer"))


def test_an_upload_that_fails_leaves_no_commit_and_is_repeated(hub: FakeHub, shared: HubProcess, encoder: Path) -> None:
    hub.fail = ("/commit/", 409)
    one_line_error(shared.run("push", encoder, "ada/failing"), "changed by somebody else")
    assert set(hub.files("ada/failing")) == {".gitattributes"}
    hub.fail = None
    pushed(hub, shared, encoder, "ada/failing")
    assert set(hub.files("ada/failing")) == FILES


@pytest.mark.skipif(huggingface_hub.__version__.startswith("0."), reason="its requests can't be given a limit")
@pytest.mark.parametrize("address", ["/api/models/ada/silent", "/commit/"])
def test_a_hub_that_never_answers_is_given_up(hub: FakeHub, shared: HubProcess, encoder: Path, address: str) -> None:
    hub.hang = address
    began = time.monotonic()
    done = shared.python(
        f"""
from maelift.adapters import hub_push
from maelift.adapters.hub_config import PushConfig
hub_push.ANSWER_WAIT, before = 0.5, hub_push.ANSWER_WAIT
try:
    hub_push.push(PushConfig({str(encoder)!r}, "ada/silent"), None)
finally:
    hub_push.ANSWER_WAIT = before
"""
    )
    one_line_error(done, "hf:ada/silent: there is no network, or 127.0.0.1", "Run the command again")
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_push_that_is_killed_before_its_commit_is_repeated(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path
) -> None:
    hub.hang = "/commit/"
    command = [sys.executable, "-m", "maelift", "push", str(encoder), "ada/killed"]
    hub.requests.clear()
    with subprocess.Popen(command, env=hub.environment(tmp_path / "cache"), stderr=subprocess.DEVNULL) as process:
        eventually(lambda: any("/commit/" in request for request in hub.requests))
        process.kill()
    hub.hang = None
    assert set(hub.files("ada/killed")) == {".gitattributes"}
    pushed(hub, shared, encoder, "ada/killed")
    assert set(hub.files("ada/killed")) == FILES and len(hub.repos["ada/killed"].commits) == 2


def test_repositories_and_files_of_others_are_refused(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    pushed(hub, shared, encoder, "ada/theirs")
    files, repo = hub.files("ada/theirs"), hub.repos["ada/theirs"]
    repo.commit("main", {name: files[name] for name in ("config.json", "model.safetensors")})
    done = shared.run("pull", "hf:ada/theirs", f"out={tmp_path / 'x.safetensors'}")
    one_line_error(done, "has no encoder.safetensors", "hf-hub:ada/theirs", "maelift import")
    one_line_error(shared.run("push", encoder, "ada/theirs"), "config.json, model.safetensors", "Nothing was uploaded")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    repo.commit("main", {"encoder.safetensors": (tmp_path / "foreign.safetensors").read_bytes()})
    done = shared.run("pull", "hf:ada/theirs", f"out={tmp_path / 'x.safetensors'}")
    one_line_error(done, "isn't one of maelift", "hf-hub:ada/theirs")
    one_line_error(shared.run("push", encoder, "ada/theirs"), "didn't write", "Choose another name")
    changed = bytearray(files["encoder.safetensors"])
    changed[-3] ^= 1
    repo.commit("main", {"encoder.safetensors": bytes(changed)})
    done = shared.run("pull", "hf:ada/theirs", f"out={tmp_path / 'x.safetensors'}")
    one_line_error(done, "hash")
    assert not (tmp_path / "x.safetensors").exists()
    one_line_error(shared.run("push", tmp_path / "foreign.safetensors", "ada/new"), "foreign.safetensors")


@pytest.mark.slow
def test_training_goes_on_from_a_name_and_records_its_commit(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path, class_folders: Path
) -> None:
    pushed(hub, shared, encoder, "ada/trained", "timm=false")
    name = f"hf:ada/trained@{hub.repos['ada/trained'].branches['main']}"
    data, keys = f"data={class_folders}", ["recipe=small", "steps=2", "batch_size=4", "evaluations=1", "workers=0"]
    done = shared.run("transfer", "classify", "encoder=hf:ada/trained", data, f"out={tmp_path / 'tuned'}", *keys)
    assert done.returncode == 0, done.stderr
    done = shared.run(
        "pretrain", "init=hf:ada/trained", data, f"out={tmp_path / 'run'}", *TINY, "image_size=32", "epochs=1"
    )
    assert done.returncode == 0, done.stderr
    for run in ("tuned", "run"):
        assert (read_encoder(tmp_path / run / "encoder.safetensors").provenance.parent or "").startswith(f"{name} (")


SUITE = """
from pathlib import Path
import yaml
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.runner import _input_files
from maelift.benchmarks.suite import BenchConfig

def context_of(weights):
    keys = {"title": "t", "labels": [6], "seeds": [0], "model": "vit_nano", "image_size": 16, "patch_size": 4}
    arms = {"a": {"start": "encoder", "weights": weights, "label": "a"}, "s": {"start": "scratch", "label": "s"}}
    data = {"path": FOLDER, "val": 9, "test": 9}
    Path(FILE).write_text(yaml.safe_dump({**keys, "data": data, "arms": arms, "workers": 1, "simple_arms": False}))
    config = BenchConfig.resolve({"suite": FILE, "out": "x"})
    return Context.of(config, read_suite_images(config))

def run_of(context):
    return context.pretraining("a", 0)
"""


@pytest.mark.slow
def test_runs_of_a_suite_are_those_of_the_weights_and_not_of_a_branch_that_moved(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path, class_folders: Path
) -> None:
    pushed(hub, shared, encoder, "ada/suite", "timm=false")
    first = hub.repos["ada/suite"].branches["main"]
    other = encoder_file(tmp_path / "other.safetensors", random_encoder(seed=5))
    names = f"FOLDER, FILE = {str(class_folders)!r}, {str(tmp_path / 'suite.yaml')!r}\n"
    done = shared.python(
        names
        + SUITE
        + f"""
before = context_of("hf:ada/suite")
assert run_of(before).key == run_of(context_of({str(encoder)!r})).key == run_of(context_of("hf:ada/suite@{first}")).key
assert _input_files(before.config) is None and _input_files(context_of("hf:ada/suite@{first}").config) is not None
"""
    )
    assert done.returncode == 0, done.stderr
    pushed(hub, shared, other, "ada/suite", "timm=false")
    done = shared.python(
        names
        + SUITE
        + f"""
now, then = context_of("hf:ada/suite"), run_of(context_of("hf:ada/suite@{first}"))
assert run_of(now).key == run_of(context_of({str(other)!r})).key != then.key
now.config.arm_kind("a").make_encoder(then, now, Path({str(tmp_path)!r}), None, None)
"""
    )
    one_line_error(done, "arms.a.weights=hf:ada/suite: other weights than when the suite began")


def test_a_word_of_a_list_of_arms_may_be_a_name_on_the_hub() -> None:
    found = expanded(["scratch", "hf:ada/first@v2", "hf:ada/first@v2 frozen"], {})
    assert list(found) == ["scratch", "ada_first_v2", "ada_first_v2_frozen"]
    assert found["ada_first_v2"]["weights"] == "hf:ada/first@v2" and found["ada_first_v2"]["start"] == "weights"


def test_verdicts_of_a_report_stand_in_the_card(
    hub: FakeHub, shared: HubProcess, encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(made_up().to_json())
    pushed(hub, shared, encoder, "ada/verdicts")
    assert "No comparison was given" in hub.files("ada/verdicts")["README.md"].decode()
    before = hub.files("ada/verdicts")
    pushed(hub, shared, encoder, "ada/verdicts", f"report={tmp_path}")  # the same encoder: its card alone
    card = ModelCard(hub.files("ada/verdicts")["README.md"].decode()).text
    assert "At 100 labels, this encoder (MAE on the pool) helps: +7.45 points of test accuracy" in card
    assert "95 % interval" in card and "4 paired seeds" in card and "10,000 test images" in card
    assert "the verdicts are of other encoders" in card
    assert {**hub.files("ada/verdicts"), "README.md": b""} == {**before, "README.md": b""}
    (tmp_path / "runs" / "1").mkdir(parents=True)
    shutil.copy(encoder, tmp_path / "runs" / "1")
    pushed(hub, shared, encoder, "ada/verdicts", f"report={tmp_path}")
    assert "folder has this encoder" in hub.files("ada/verdicts")["README.md"].decode()
    one_line_error(shared.run("push", encoder, "ada/verdicts", "report=nowhere"), "results.json", "Give a suite's out")


def test_a_dry_run_lists_files_and_asks_nothing(hub: FakeHub, shared: HubProcess, encoder: Path) -> None:
    hub.requests.clear()
    done = shared.run("push", encoder, "ada/dry", "--dry-run", token=None)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in FILES - {".gitattributes"})
    assert f"{encoder.stat().st_size:,} bytes" in done.stdout and "private" in done.stdout and "licence" in done.stdout
    done = shared.run("pull", "hf:ada/dry", "out=x.safetensors", "--dry-run")
    assert done.returncode == 0 and not hub.requests


def test_an_encoder_that_timm_cannot_hold_is_pushed_without(hub: FakeHub, shared: HubProcess, tmp_path: Path) -> None:
    encoder = random_encoder(channels=2)
    encoder.preprocessing = Preprocessing(("a", "b"), (0.5, 0.5), (0.2, 0.2), (0.0, 4095.0), 12)
    path = encoder_file(tmp_path / "deep.safetensors", encoder)
    one_line_error(shared.run("push", path, "ada/deep"), "timm reads 0 to 255 only", "timm=false")
    assert "ada/deep" not in hub.repos
    pushed(hub, shared, path, "ada/deep", "timm=false")
    card = ModelCard(hub.files("ada/deep")["README.md"].decode())
    assert data_of(card).library_name == "maelift" and "0 to 4095" in card.text


HOSTILE = "a | b <script>*x*</script> `c` [d](http://e) $f$\n# heading\n---\nlicense: mit"


def hostile_file(path: Path, licence: str | None) -> Path:
    """An encoder file whose every text would act on YAML or Markdown."""
    encoder: Encoder = random_encoder()
    encoder.preprocessing = replace(encoder.preprocessing, channel_names=("r|ed", "<b>green", "blue\n# x"))
    provenance = Provenance(
        HOSTILE, {"note": f"```\n{HOSTILE}", "key: x": "'---'"}, 3, 10, 20, 1.5, parent=HOSTILE, licence=licence
    )
    save_encoder(encoder, path, provenance)
    return path


@pytest.mark.parametrize("licence", [None, "mit", "CC-BY-NC-4.0", HOSTILE])
def test_a_card_parses_whatever_the_texts_of_the_file_hold(tmp_path: Path, licence: str | None) -> None:
    file = read_backbone(hostile_file(tmp_path / "encoder.safetensors", licence))
    verdicts = SuiteVerdicts(HOSTILE, (HOSTILE, "1. helps"), (HOSTILE,), contained=True)
    text = card_text(file, CardContent("ada/first", 10, "certificate passed", (HOSTILE,), verdicts))
    card = ModelCard(text)
    known = {None: None, "mit": "mit", "CC-BY-NC-4.0": "cc-by-nc-4.0"}.get(licence, "other")
    assert data_of(card).license == known and header(file, CardContent("a/b", 1, None)).get("license") == known
    assert data_of(card).library_name == "timm" and data_of(card).pipeline_tag == "image-feature-extraction"
    if known == "other":
        assert re.fullmatch("[a-z0-9.-]+", data_of(card).license_name)
    assert {"masked-autoencoder", "maelift", "image-feature-extraction"} <= set(data_of(card).tags)
    headings = [line for line in outside_code(card.text) if line.startswith("#")]
    assert headings[0] == "# first" and len(headings) == 7 and not any("heading" in line for line in headings)
    assert not any(line.startswith("---") or "<script>" in line.replace("\\<", "") for line in outside_code(card.text))
    assert file.content_hash in card.text and "1.50 CPU" in card.text and "certificate passed" in card.text
    rows = [line for line in outside_code(card.text) if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)


def data_of(card: ModelCard) -> Any:
    """A card's metadata, whose names are those of its YAML."""
    return card.data


def outside_code(text: str) -> Iterator[str]:
    """The lines of Markdown that are no code."""
    fence = ""
    for line in text.splitlines():
        if fence:
            fence = "" if line.strip() == fence else fence
        elif line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
        else:
            yield line


def test_text_at_the_beginning_of_a_line_makes_no_list() -> None:
    assert markdown("- x") == "\\- x" and markdown("12. x") == "12\\. x" and markdown("0.5, 1") == "0.5, 1"


@pytest.mark.parametrize(
    "text", ["hf:x", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b@../c", "hf:a/b@-x", "hf://a/b", "hf:a--b/c"]
)
def test_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="hf:NAME/MODEL"):
        HubName.parse(text, "encoder")


def test_a_commit_does_not_move_and_is_read_off_the_cache(tmp_path: Path) -> None:
    commit = "0123456789" * 4
    assert (
        is_moving("hf:a/b") and is_moving("hf:a/b@main") and not is_moving(f"hf:a/b@{commit}") and not is_moving("a/b")
    )
    path = tmp_path / "models--a--b" / "snapshots" / commit / "encoder.safetensors"
    assert cached_name(path) == f"hf:a/b@{commit}" and cached_name(tmp_path / "encoder.safetensors") == ""
