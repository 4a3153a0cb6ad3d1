"""Features as a file: those of the encoder and of timm, of every source of images, resumed; neighbours against scikit-learn."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import timm
import torch
from maelift.core.config import resolve
from maelift.core.data.pixel_format import picture_of
from maelift.core.data.transforms import fit_and_crop, to_array
from maelift.core.errors import DataError, MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.timm_backbone import TimmBackbone
from maelift.core.models.timm_spec import TimmSpec
from maelift.tests.support import encoder_file, framework, one_line_error, random_encoder, run_maelift, write_images
from maelift.transfer import embed as embedding
from maelift.transfer import partial_features
from maelift.transfer.embed import EmbedResult, embed, plan
from maelift.transfer.embed_config import EmbedConfig
from maelift.transfer.embed_images import FittedEncoder
from maelift.transfer.feature_files import read_features
from maelift.transfer.neighbours import nearest_neighbours
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 32


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors", random_encoder(image_size=SIDE))


def run(encoder: Path, images: Path | Sequence[Path], out: Path, **keys: Any) -> EmbedResult:
    source = str(images) if isinstance(images, Path) else tuple(map(str, images))
    given = {"encoder": str(encoder), "images": source, "out": str(out), "page": False, "workers": 0, **keys}
    return embed(EmbedConfig(**given))


def prepared(path: Path, size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    """An image file as every encoder here gets it, without any of the code of the command."""
    with Image.open(path) as image:
        return torch.from_numpy(to_array(fit_and_crop(picture_of(image.convert("RGB")), size), 3))


def directly(model: Encoder, paths: Sequence[Path]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        found = model.eval().forward_features(model.preprocessing.normalize(torch.stack([prepared(p) for p in paths])))
    assert found.class_token is not None
    mean, token = found.tokens.mean(dim=1), found.class_token
    return {"mean": mean.numpy(), "class_token": token.numpy(), "both": torch.cat([mean, token], 1).numpy()}


@pytest.mark.parametrize("pooling", ["mean", "class_token", "both"])
@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv"])
def test_the_features_are_those_of_the_encoder_in_every_format(
    encoder: Path, tmp_path: Path, pooling: str, suffix: str
) -> None:
    if suffix == ".parquet":
        framework("pyarrow")
    images = write_images(tmp_path / "images" / "deep", 5).parent
    result = run(encoder, images, tmp_path / f"new/f{suffix}", features=pooling, batch_size=2, neighbours=2)
    assert result.names == [f"deep/image{number:03d}.png" for number in range(5)] and result.labels is None
    expected = directly(read_encoder(encoder).encoder, [images / name for name in result.names])[pooling]
    assert result.features.dtype == np.float32 and result.features.shape == (5, result.dim)
    assert np.allclose(result.features, expected, atol=1e-5) and np.ptp(result.features) > 0.1
    near = result.table.neighbours
    assert near is not None and near.numbers.shape == near.cosines.shape == (5, 2)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(near.cosines[:, 0], [unit[row] @ unit[near.numbers[row, 0]] for row in range(5)], atol=1e-5)
    if suffix != ".csv":
        about = result.table.metadata
        assert about["encoder_content_hash"] == read_encoder(encoder).content_hash
        assert about["maelift_version"] == maelift.__version__ and about["features"] == pooling
        assert about["preprocessing"]["mean"] and about["image_size"] == [SIDE, SIDE] and about["images"] == 5
    assert sorted(path.name for path in result.out.parent.iterdir()) == [f"f{suffix}"]


def test_the_columns_of_parquet_are_what_others_read(encoder: Path, tmp_path: Path) -> None:
    pa, pq = framework("pyarrow"), framework("pyarrow.parquet")
    result = run(encoder, write_images(tmp_path / "images", 4), tmp_path / "f.parquet", neighbours=3)
    table = pq.read_table(result.out)
    assert table.column_names == ["name", "features", "neighbour_names", "neighbour_cosines"]
    assert table.schema.field("features").type == pa.list_(pa.float32(), result.dim)
    first = table.to_pylist()[0]
    assert first["name"] == "image000.png" and np.allclose(first["features"], result.features[0])
    assert sorted(first["neighbour_names"]) == ["image001.png", "image002.png", "image003.png"]
    assert first["neighbour_cosines"] == sorted(first["neighbour_cosines"], reverse=True)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 48), ("vit_tiny_patch16_224", 48)])
def test_a_model_of_timm_gives_what_timm_s_classifier_gets(name: str, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(TimmSpec(name, (size, size), 3, {})).eval()
    save_encoder(backbone, tmp_path / "encoder.safetensors", Provenance(method="test"))
    images = write_images(tmp_path / "images", 3)
    result = run(tmp_path / "encoder.safetensors", images, tmp_path / "f.npz")
    arguments = {"img_size": size} if name.startswith("vit") else {}
    own = timm.create_model(name, num_classes=0, **arguments).eval()
    own.load_state_dict(backbone.net.state_dict())
    pixels = torch.stack([prepared(images / name, (size, size)) for name in result.names])
    with torch.inference_mode():
        inputs = backbone.preprocessing.normalize(pixels)
        expected = own.forward_head(own.forward_features(inputs), pre_logits=True)
        tokens = own.forward_features(inputs)
    assert result.table.metadata["features"] == "head" and np.allclose(result.features, expected.numpy(), atol=1e-5)
    mean = tokens.mean(dim=(2, 3)) if tokens.ndim == 4 else tokens[:, 1:].mean(dim=1)
    found = run(tmp_path / "encoder.safetensors", images, tmp_path / "m.npz", features="mean")
    assert np.allclose(found.features, mean.numpy(), atol=1e-5)


def test_neighbours_are_those_of_scikit_learn_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    framework("sklearn")
    from sklearn.neighbors import NearestNeighbors

    features = np.random.default_rng(0).normal(size=(97, 24)).astype(np.float32)
    distances, numbers = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(features).kneighbors()
    for block in (10**6, 97 * 10, 1):
        monkeypatch.setattr("maelift.transfer.neighbours.SIMILARITIES", block)
        found = nearest_neighbours(features, 7, torch.device("cpu"))
        assert np.array_equal(found.numbers, numbers) and np.allclose(1 - found.cosines, distances, atol=1e-5)
    some = nearest_neighbours(features, 7, torch.device("cpu"), [5, 3])
    assert np.array_equal(some.numbers, numbers[[5, 3]])


def test_a_row_of_zeros_and_equal_images_are_no_trouble() -> None:
    features = np.zeros((4, 3), dtype=np.float32)
    features[1:3] = 1, 2, 3
    found = nearest_neighbours(features, 3, torch.device("cpu"))
    assert found.numbers[1, 0] == 2 and found.numbers[2, 0] == 1 and np.isfinite(found.cosines).all()
    assert all(row not in found.numbers[row] for row in range(4)) and np.allclose(found.cosines[0], 0)


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """The numbers of the images that are opened; an interrupt after so many."""
    opened: list[int] = []
    first = FittedEncoder.pixels

    def pixels(self: FittedEncoder, images: Any, number: int) -> Any:
        if stop_after is not None and len(opened) == stop_after:
            raise KeyboardInterrupt
        opened.append(number)
        return first(self, images, number)

    monkeypatch.setattr(FittedEncoder, "pixels", pixels)
    return opened


def test_an_interrupted_command_goes_on_where_it_was(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images", 9)
    (images / "image001.png").write_bytes(b"broken")
    whole = run(encoder, images, tmp_path / "whole.npz", batch_size=2)
    monkeypatch.setattr(partial_features, "SAVE_SECONDS", 0.0)
    out = tmp_path / "results" / "f.npz"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, 5)
        run(encoder, images, out, batch_size=2)
    assert [path.name for path in out.parent.iterdir()] == [".f.npz.partial"]
    with monkeypatch.context() as patch:
        opened = counted(patch)
        result = run(encoder, images, out, batch_size=3)
    assert opened == [4, 5, 6, 7, 8] and (result.count, result.rejected) == (8, 1)
    assert result.names == whole.names and np.allclose(result.features, whole.features, atol=1e-6)
    assert sorted(path.name for path in out.parent.iterdir()) == ["f.npz", "f.rejected.csv"]


def test_what_is_converted_is_counted_also_after_an_interruption(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path / "images", 3)
    write_images(images, 4, first=3, mode="L")
    Image.new("RGB", (20, 20), (7, 7, 7)).save(images / "image007.png")
    monkeypatch.setattr(partial_features, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, 5)
        run(encoder, images, tmp_path / "f.npz", batch_size=1)
    with caplog.at_level("INFO", "maelift"):
        run(encoder, images, tmp_path / "f.npz", batch_size=1)
    assert "going on after 5 of 8 images" in caplog.text
    assert "4 of 8 images have 1 channel, brought to the encoder's 3" in caplog.text


@pytest.mark.parametrize("change", ["encoder", "images", "features", "damage"])
def test_what_another_command_computed_is_not_taken(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    images, out, keys = write_images(tmp_path / "images", 5), tmp_path / "f.npz", {}
    monkeypatch.setattr(partial_features, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, 3)
        run(encoder, images, out, batch_size=1)
    if change == "encoder":
        encoder = encoder_file(tmp_path / "other.safetensors", random_encoder(image_size=SIDE, seed=1))
    elif change == "images":
        Image.new("RGB", (20, 20), (9, 8, 7)).save(images / "image000.png")
    elif change == "features":
        keys["features"] = "class_token"
    else:
        (out.with_name(".f.npz.partial") / "progress.json").write_text("{")
    opened = counted(monkeypatch)
    result = run(encoder, images, out, batch_size=1, **keys)
    assert opened == [0, 1, 2, 3, 4]
    expected = directly(read_encoder(encoder).encoder, [images / name for name in result.names])
    assert np.allclose(result.features, expected[keys.get("features", "mean")], atol=1e-5)


def test_broken_images_are_named_and_have_no_row(encoder: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 4)
    (images / "image002.png").write_bytes(b"broken")
    result = run(encoder, images, tmp_path / "f.npz", batch_size=1)
    assert (result.count, result.rejected) == (3, 1) and result.names == [f"image00{n}.png" for n in (0, 1, 3)]
    rejected = tmp_path / "f.rejected.csv"
    with rejected.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["image002.png"]
    assert str(rejected) in result.summary() and result.table.metadata["rejected"] == 1
    (images / "image002.png").unlink()
    assert run(encoder, images, tmp_path / "f.npz").rejected == 0 and not rejected.exists()


def test_images_come_from_arrays_lists_and_several_sources(encoder: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    arrays = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    np.save(tmp_path / "images.npy", arrays)
    (tmp_path / "list.txt").write_text("images/image002.png\nimages/image000.png\n")
    first = run(encoder, folder, tmp_path / "a.npz").features
    of_array = run(encoder, tmp_path / "images.npy", tmp_path / "b.npz", workers=2)
    assert of_array.names == [f"images.npy[{number}]" for number in range(3)] and np.allclose(of_array.features, first)
    single = run(encoder, folder / "image001.png", tmp_path / "e.npz")
    assert single.names == ["image001.png"] and np.allclose(single.features, first[[1]], atol=1e-6)
    of_list = run(encoder, tmp_path / "list.txt", tmp_path / "c.npz")
    assert np.allclose(of_list.features, first[[2, 0]]) and of_list.names[0].endswith("image002.png")
    both = run(encoder, [tmp_path / "images.npy", folder], tmp_path / "d.npz")
    assert both.count == 6 and np.allclose(both.features, np.concatenate([first, first]))


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_labels_are_read_with_their_splits(encoder: Path, class_folders: Path, tmp_path: Path, suffix: str) -> None:
    for split, chosen in (("train", range(3)), ("test", range(3, 5))):
        for name in ("dark", "light"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in chosen:
                shutil.copy(class_folders / name / f"{number}.png", tmp_path / "data" / split / name)
    result = run(encoder, tmp_path / "data", tmp_path / f"f{suffix}", labels=True)
    assert result.count == 10 and sorted(result.names)[0] == "test/dark/3.png"
    assert result.labels == [name.split("/")[1] for name in result.names]
    assert result.table.splits == [name.split("/")[0] for name in result.names]
    (tmp_path / "data" / "labels.csv").write_text(
        "path,labels\ntrain/dark/0.png,dark|small\ntrain/light/0.png,light\ntest/dark/3.png,dark\n"
    )
    several = run(encoder, tmp_path / "data" / "labels.csv", tmp_path / f"g{suffix}", labels=True)
    assert several.labels == ["dark|small", "light", "dark"] and several.names[0] == "train/dark/0.png"


def test_channels_of_the_images_get_an_encoder_that_is_fitted_to_them(encoder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.random.default_rng(0).integers(0, 256, (4, 20, 20, 5), dtype=np.uint8))
    with pytest.raises(DataError, match="none of 4 can be read"):
        run(encoder, tmp_path / "five.npy", tmp_path / "f.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["five.npy"]
    result = run(encoder, tmp_path / "five.npy", tmp_path / "f.npz", channels=5, image_size=40)
    assert result.count == 4 and result.table.metadata["image_size"] == [40, 40]
    assert len(result.table.metadata["preprocessing"]["mean"]) == 5 and result.table.metadata["adapted"]


@pytest.mark.slow
def test_the_function_and_the_command_give_the_same(encoder: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 12)
    words = (f"encoder={encoder}", f"images={images}", f"out={tmp_path / 'f.npz'}", "neighbours=1", "page=false")
    done = run_maelift("embed", *words)
    assert done.returncode == 0 and "features of 12 images, 64 values each" in done.stdout, done.stderr
    result = maelift.embed(encoder=encoder, images=images, out=tmp_path / "g.npz", page=False)
    assert isinstance(result, EmbedResult) and result.features.shape == (12, 64)
    assert np.array_equal(read_features(tmp_path / "f.npz").features, result.features)
    planned = plan(resolve(EmbedConfig, words)).text()
    assert "12 in" in planned and "mean, 64 values each" in planned and "the 1 nearest of each" in planned


def test_mistakes_are_refused_in_one_line_and_write_nothing(encoder: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    out = tmp_path / "results" / "f.npz"
    for keys, expected in (
        ({"out": str(tmp_path / "f.txt")}, "out=.*a file name that ends with .parquet, .npz, .csv"),
        ({"features": "head"}, "features=head: expected mean"),
        ({"neighbours": 3}, "neighbours=3: expected fewer than the 3 images"),
        ({"neighbours": -1}, "neighbours=-1: expected 0 or more"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
        ({"images": str(tmp_path / "nowhere")}, "images=.*nowhere: no such"),
        ({"images": (str(images), str(images)), "labels": True}, "images=.*a single data set with labels=true"),
        ({"labels": True}, "images=.*images are outside class folders"),
        ({"label_column": "x"}, "label_column=x: expected null without labels=true"),
        ({"shown": (1,)}, "shown=.*null with page=false"),
        ({"encoder": str(tmp_path / "none.safetensors")}, "none.safetensors"),
        ({"out": str(images / "f.npz")}, "out=.*: expected a file outside of images="),
    ):
        with pytest.raises(MaeliftError, match=expected) as caught:
            given = {"encoder": str(encoder), "images": str(images), "out": str(out), "page": False}
            embed(EmbedConfig(**{**given, **keys}))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert not out.parent.exists()
    one_line_error(
        run_maelift("embed", f"encoder={encoder}", f"images={images}", "feature=mean"), "Did you mean features ("
    )
    (tmp_path / "f.npz").write_bytes(b"no file of features")
    with pytest.raises(DataError, match="no file of features that can be read"):
        read_features(tmp_path / "f.npz")


def test_parquet_without_pyarrow_is_refused_before_anything_is_computed(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    opened = counted(monkeypatch)
    with pytest.raises(MaeliftError, match="pip install -U pyarrow"):
        run(encoder, write_images(tmp_path / "images", 3), tmp_path / "f.parquet")
    assert opened == []


def test_features_that_are_not_finite_are_refused(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "pooled_features", lambda *_: torch.full((1, 64), torch.nan))
    with pytest.raises(MaeliftError, match=r"image000\.png: its features aren't finite"):
        run(encoder, write_images(tmp_path / "images", 3), tmp_path / "f.npz", batch_size=1)
    assert not (tmp_path / "f.npz").exists()
