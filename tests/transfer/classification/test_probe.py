"""Probes on cached features: against scikit-learn on the same features, and as models that take images."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import torch
from maelift.core.data.classification_reader import read_splits
from maelift.core.data.readers.folder import find_images
from maelift.core.distributed import Ranks
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.encoder_file import read_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.logistic_regression import logistic_regression
from maelift.core.models.probes import AttentiveProbe, LinearProbe, NearestNeighbours
from maelift.core.training.optimizers import Lars, set_learning_rate
from maelift.core.training.schedule import warmup_cosine
from maelift.tests.support import encoder_file, has_checkpoint, random_encoder, run_maelift, start_maelift
from maelift.transfer.classification import features as features_module
from maelift.transfer.classification.config import ClassifyConfig
from maelift.transfer.classification.features import FeatureRequest, FeatureRows, cached_features
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

SPEC = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=2, num_heads=2)
ONE = Ranks(0, 1, torch.device("cpu"))
KEYS: dict[str, Any] = {"val": 12, "test": 12, "workers": 0, "evaluations": 4}
METHODS: list[dict[str, Any]] = [
    {"method": "linear", "recipe": "small"},
    {"method": "linear", "solver": "lbfgs", "features": "both"},
    {"method": "linear", "recipe": "small", "crops": 3, "crop_scale": [0.5, 1.0]},
    {"method": "knn", "neighbours": 5, "features": "class_token"},
    {"method": "attentive", "recipe": "small", "steps": 200},
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors", random_encoder(SPEC))


def blobs(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, 12) float32 of overlapping classes, and the classes."""
    centres = np.random.default_rng(0).normal(size=(classes, 12))
    generator = np.random.default_rng([1, seed])
    labels = generator.integers(0, classes, count)
    return (centres[labels] + 1.2 * generator.normal(size=(count, 12))).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_neighbours_are_those_of_scikit_learn(temperature: float | None) -> None:
    (bank, labels), (queries, _) = blobs(300, 4, 0), blobs(200, 4, 1)
    knn = NearestNeighbours(12, 4, 300, k=20, temperature=temperature, multi_label=False)
    knn.fill(torch.tensor(bank), torch.eye(4)[labels])
    weights = "uniform" if temperature is None else lambda distances: np.exp((1 - distances) / temperature)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=weights).fit(bank, labels)
    shares = knn(torch.tensor(queries)).softmax(dim=1).numpy()
    assert np.allclose(shares, theirs.predict_proba(queries), atol=1e-4)
    assert (
        shares.argmax(axis=1) == theirs.predict(queries)
    ).mean() >= 0.995  # float32 and float64 may break a tie apart


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_logistic_regression_is_that_of_scikit_learn(classes: int, l2: float) -> None:
    rows, labels = blobs(400, classes, 0)
    weight, bias = logistic_regression(torch.tensor(rows), torch.tensor(labels), classes, l2=l2, tolerance=1e-8)
    theirs = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=5000).fit(rows.astype(np.float64), labels)
    if classes == 2:
        assert np.allclose(weight[1] - weight[0], theirs.coef_[0], atol=1e-4)
    else:
        assert np.allclose(weight, theirs.coef_, atol=1e-4) and np.allclose(bias, theirs.intercept_, atol=1e-4)
    ours = (torch.tensor(rows).double() @ weight.T + bias).softmax(dim=1).numpy()
    assert np.allclose(ours, theirs.predict_proba(rows), atol=1e-4)


def test_logistic_regression_of_many_classes_an_image_is_one_a_class() -> None:
    rows, labels = blobs(400, 3, 0)
    targets = np.stack([labels == 0, labels >= 1], axis=1)
    weight, _ = logistic_regression(torch.tensor(rows), torch.tensor(targets), 2, l2=1.0, tolerance=1e-8)
    for number in range(2):
        theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(rows.astype(np.float64), targets[:, number])
        assert np.allclose(weight[number], theirs.coef_[0], atol=1e-4)


def test_a_folded_probe_gives_the_same_logits() -> None:
    probe = LinearProbe(12, 3)
    for seed in range(5):
        probe(torch.tensor(blobs(50, 3, seed)[0]))
    rows = torch.tensor(blobs(50, 3, 9)[0])
    assert torch.allclose(probe.folded()(rows), probe.eval()(rows), atol=1e-5)


def test_a_linear_probe_by_lars_is_as_good_as_logistic_regression() -> None:
    (rows, labels), (others, truth) = blobs(1000, 5, 0), blobs(2000, 5, 1)
    torch.manual_seed(0)
    probe = LinearProbe(12, 5)
    optimizer = Lars(probe.parameters(), 0.0)
    for step in range(400):
        set_learning_rate(optimizer, warmup_cosine(step, lr=3.0, warmup=40, total=400))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(probe(torch.tensor(rows)), torch.tensor(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    ours = (probe.eval()(torch.tensor(others)).argmax(dim=1).numpy() == truth).mean()
    theirs = LogisticRegression(max_iter=1000).fit(rows, labels).score(others, truth)
    assert abs(ours - theirs) < 0.01 and theirs > 0.6


def test_an_attentive_probe_takes_its_tokens_in_any_order() -> None:
    probe, tokens = AttentiveProbe(8, 3, 2).eval(), torch.randn(4, 6, 8)
    assert torch.allclose(probe(tokens), probe(tokens.flip(1)), atol=1e-6)
    with pytest.raises(ConfigError, match="a divisor of the encoder's embed_dim=8"):
        AttentiveProbe(8, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("keys", METHODS)
def test_every_probe_ends_with_a_model_that_takes_images(
    class_folders: Path, encoder: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    result = maelift.transfer("classify", data=class_folders, out=tmp_path, encoder=encoder, **KEYS, **keys)
    top1 = result.test.metrics["top1"]
    assert top1 is not None and top1 > 0.8 and result.val > 0.8
    model = maelift.load_model(result.model)
    test = read_splits(class_folders, 12, 12).test
    found = model.predict([class_folders / test.images.name(number) for number in range(12)])
    right = [entry.label == test.label_text(number) for number, entry in enumerate(found)]
    assert np.mean(right) == pytest.approx(top1)
    kept = read_encoder(tmp_path / "encoder.safetensors").encoder.state_dict()
    before = read_encoder(encoder).encoder.state_dict()
    assert all(torch.equal(kept[name], before[name]) for name in before)  # it was frozen


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("maelift"), "propagate", True)
    caplog.set_level(logging.INFO, "maelift")
    return caplog


@pytest.mark.slow
def test_kept_features_are_used_again_for_the_same_images_and_encoder_only(
    class_folders: Path, encoder: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    def again(out: str, **keys: Any) -> int:
        said.clear()
        given = {"data": class_folders, "encoder": encoder, "cache": tmp_path / "kept", "method": "knn", **KEYS, **keys}
        maelift.transfer("classify", out=tmp_path / out, **given)
        return sum("is reused" in record.getMessage() for record in said.records)

    other = encoder_file(tmp_path / "other.safetensors", random_encoder(SPEC, seed=1))
    assert again("a") == 0
    assert again("b", method="linear", solver="lbfgs") == 2  # train and val
    assert again("c", encoder=other) == 0
    assert again("d", features="class_token") == 0
    assert again("e", labels=10) == 1  # val
    assert again("f", split_seed=1) == 0


def test_features_are_the_encoders_in_the_order_of_the_images(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "EXTRACT_BATCH", 16)
    images, encoder = find_images(image_folder), random_encoder(SPEC).eval()
    wanted = FeatureRequest(encoder, images, tokens=False, pooling="both")
    found = cached_features(wanted, tmp_path, ONE)
    assert found.shape == (40, 64) and found.dtype == np.float32 and isinstance(found, np.memmap)
    pixels = torch.from_numpy(wanted.pixels(37))[None]
    with torch.no_grad():
        single = encoder.forward_features(encoder.preprocessing.normalize(pixels))
    assert np.allclose(found[37, :32], single.pooled()[0], atol=1e-5)
    assert single.class_token is not None and np.allclose(found[37, 32:], single.class_token[0], atol=1e-5)
    tokens = FeatureRequest(encoder, images, tokens=True, crops=2)
    assert cached_features(tokens, tmp_path, ONE).shape == (80, 16, 32)
    assert not np.array_equal(tokens.pixels(0), tokens.pixels(1))  # two crops of one image
    assert np.array_equal(tokens.pixels(1), FeatureRequest(encoder, images, tokens=True, crops=2).pixels(1))


def test_features_wanted_by_several_at_once_are_computed_once(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    extract = features_module._extract

    def slowly(wanted: FeatureRequest, rows: range, file: NDArray[np.generic], *rest: Any) -> None:
        computed.append(len(rows))
        time.sleep(0.3)
        extract(wanted, rows, file, *rest)

    monkeypatch.setattr(features_module, "_extract", slowly)
    monkeypatch.setattr(features_module, "LOCK_WAIT", 0.05)
    together = threading.Barrier(4)
    encoder, images = random_encoder(SPEC), find_images(image_folder)

    def compute(number: int) -> NDArray[np.generic]:
        wanted = FeatureRequest(encoder, images, tokens=False, manifest="a hash")
        together.wait()
        return np.array(cached_features(wanted, tmp_path, ONE))

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(compute, range(4)))
    assert computed == [40] and all(np.array_equal(one, found[0]) for one in found) and found[0].any()
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_rows_on_disk_are_the_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    file = np.load(tmp_path / "rows.npy", mmap_mode="r")
    held = FeatureRows(file, ONE.device).take(torch.tensor([7, 0, 7]))
    monkeypatch.setattr(features_module, "MAX_BYTES_IN_MEMORY", 0)
    on_disk = FeatureRows(file, ONE.device)
    assert torch.equal(held, on_disk.take(torch.tensor([7, 0, 7]))) and torch.equal(on_disk.all()[7], held[0])


def test_features_that_do_not_fit_on_the_disk_are_refused_before_any_is_computed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    with pytest.raises(MaeliftError, match=r"has 0.0 GB free. Give cache=FOLDER"):
        cached_features(FeatureRequest(random_encoder(SPEC), find_images(image_folder), tokens=True), tmp_path, ONE)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_probe_ends_with_the_weights_of_an_uninterrupted_one(
    class_folders: Path, encoder: Path, tmp_path: Path
) -> None:
    keys = [f"data={class_folders}", f"encoder={encoder}", "method=linear", "recipe=small", "val=12", "test=12"]
    keys += ["steps=1500", "workers=0", "checkpoint_minutes=0.005", "evaluations=3"]
    command = ["transfer", "classify", *keys]
    assert run_maelift(*command, f"out={tmp_path / 'whole'}").returncode == 0
    process = start_maelift(*command, f"out={tmp_path / 'killed'}")
    deadline = time.monotonic() + 120
    while not has_checkpoint(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "test.json").exists()
    done = run_maelift(*command, f"out={tmp_path / 'killed'}")
    assert done.returncode == 0 and "going on from step" in done.stderr
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"method": "linear", "mixup": 0.8}, "mixup=0.8: expected 0 with method=linear"),
        ({"method": "knn", "crops": 2}, "crops=2"),
        ({"method": "knn", "neighbours": 0}, "neighbours=0"),
        ({"method": "linear", "l2": -1.0}, "l2=-1"),
        ({"method": "knn", "recipe": "small"}, "classify_knn_small"),
        ({"blocks": 0.7}, "blocks=0.7"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ClassifyConfig.resolve({"data": "d", "out": "o", "encoder": "e", **keys})


def test_what_does_not_fit_the_encoder_is_refused_before_anything_is_written(
    class_folders: Path, tmp_path: Path
) -> None:
    spec = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=1, num_heads=2, class_token=False)
    start = encoder_file(tmp_path / "encoder.safetensors", random_encoder(spec))
    faults: list[tuple[dict[str, Any], str]] = [
        ({"method": "knn", "features": "class_token"}, "features=class_token.*no class token"),
        ({"method": "attentive", "probe_heads": 5}, "probe_heads=5.*a divisor"),
        ({"method": "partial", "blocks": 2}, "blocks=2.*up to the encoder's 1"),
    ]
    for keys, expected in faults:
        with pytest.raises(ConfigError, match=expected):
            maelift.transfer("classify", data=class_folders, out=tmp_path / "out", encoder=start, **KEYS, **keys)
        assert not (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.parametrize("recipe", ["paper", "small"])
@pytest.mark.parametrize("method", ["full", "partial", "lora", "linear", "attentive", "knn"])
def test_every_method_has_its_recipe(method: str, recipe: str) -> None:
    if (method, recipe) == ("knn", "small"):
        return  # nothing is trained; it is refused
    config = ClassifyConfig.resolve(["data=d", "out=o", "encoder=e", f"method={method}", f"recipe={recipe}"])
    assert config.recipe_name() == f"classify_{'encoder' if method == 'full' else method}" + (
        "_small" if recipe == "small" else ""
    )


def test_what_a_probe_leaves_says_how_it_was_made(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    maelift.transfer("classify", data=class_folders, out=tmp_path, encoder=encoder, method="knn", **KEYS)
    content = json.loads((tmp_path / "test.json").read_text())
    assert content["steps"] == 0 and content["val"]["val/top1"] > 0.8
    assert read_encoder(tmp_path / "encoder.safetensors").provenance.config["method"] == "knn"
