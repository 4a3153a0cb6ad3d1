"""Draws of splits: each class its share, what belongs together in one split, and nothing twice."""

from __future__ import annotations

import csv
import logging
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.suite import BenchConfig
from maelift.core.data.classification import LabeledImages, MultiLabeledImages
from maelift.core.data.classification_reader import read_parts
from maelift.core.data.missing_splits import audited_splits, draw_missing_splits
from maelift.core.data.readers.folder import FolderImages
from maelift.core.data.splits import cluster, stratified_draw, stratified_folds, stratified_order
from maelift.core.errors import ConfigError, DataError
from maelift.core.tools.check_data import DataCheckConfig, data_check
from maelift.pretrain.online_probe import read_probe_images
from maelift.pretrain.probe_config import ProbeConfig
from maelift.tests.support import noise_image
from maelift.transfer.classification.config import ClassifyConfig
from maelift.transfer.run_files import split_of_run
from PIL import Image

FAST = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def labeled(counts: list[int]) -> LabeledImages:
    labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
    images = FolderImages(Path(), tuple(f"{number}.png" for number in range(len(labels))))
    return LabeledImages(images, labels, tuple(f"c{label}" for label in range(len(counts))))


def names_of(part: LabeledImages | MultiLabeledImages) -> list[str]:
    return [part.images.name(number) for number in range(len(part))]


def test_each_class_gives_its_share_of_validation_and_test() -> None:
    splits = draw_missing_splits({"train": labeled([240, 30])}, "x", 0.1, 0.1, 0)
    assert [Counter(part.labels)[1] for _, part in splits.items()] == [24, 3, 3]
    assert [Counter(part.labels)[0] for _, part in splits.items()] == [195, 21, 24]


@pytest.mark.parametrize(("classes", "each", "count"), [(3, 20, 7), (5, 40, 13), (10, 30, 20)])
def test_draws_of_classes_of_equal_sizes_are_those_of_earlier_versions(classes: int, each: int, count: int) -> None:
    data = labeled([each] * classes)
    for seed in (0, 3):
        order = stratified_order(data.labels, seed, "val")
        last = set({data.labels[index]: index for index in order}.values())
        early = [index for index in order if index not in last][:count]
        splits = draw_missing_splits({"train": data, "test": data}, "x", count, 0.1, seed)
        assert names_of(splits.val) == [f"{index}.png" for index in sorted(early)]


@given(st.lists(st.integers(1, 120), min_size=2, max_size=8), st.integers(0, 99))
@FAST
def test_shares_are_within_one_of_proportional(counts: list[int], seed: int) -> None:
    data = labeled(counts)
    if sum(counts) < 12 * len(counts):
        return
    splits = draw_missing_splits({"train": data}, "x", 0.1, 0.1, seed)
    names = [part.images.name(number) for _, part in splits.items() for number in range(len(part))]
    assert len(set(names)) == len(names) == len(data)
    rest = np.array(counts)
    # a class of few images gives one though its share is less: the others give that much less
    forced = sum(count < 10 for count in counts)
    for part in (splits.test, splits.val):
        found = np.bincount(part.labels, minlength=len(counts))
        wanted = rest * len(part) / rest.sum()
        assert np.abs(found - wanted).max() <= 1 + forced, (found, wanted)
        assert all(one >= 1 for one, count in zip(found, counts, strict=True) if count >= 3)
        rest = rest - found
    assert rest.min() >= 1


def test_rare_classes_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        splits = draw_missing_splits({"train": labeled([60, 2, 1])}, "x", 0.1, 0.1, 0)
    assert "classes of fewer than 3 images can't be in every split that is drawn: c1 (2), c2 (1)" in caplog.text
    assert 2 in splits.train.labels and 1 in splits.train.labels


@given(st.integers(0, 10_000))
@FAST
def test_several_labels_get_their_shares(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rates = generator.uniform(0.02, 0.6, 5)
    sets = tuple(tuple(np.flatnonzero(row).tolist()) for row in generator.random((300, 5)) < rates)
    images = FolderImages(Path(), tuple(f"{number}.png" for number in range(300)))
    data = MultiLabeledImages(images, sets, tuple("abcde"))
    splits = draw_missing_splits({"train": data}, "x", 0.2, 0.2, seed)
    assert [len(part) for _, part in splits.items()] == [192, 48, 60]
    totals = data.targets().sum(axis=0)
    for part in (splits.test, splits.val):
        found, wanted = part.targets().sum(axis=0), totals * len(part) / 300
        assert np.abs(found - wanted).max() <= np.maximum(3, 0.15 * wanted).max(), (found, wanted)
        assert (found >= 1)[totals >= 3].all()
    assert splits.train.targets().sum(axis=0).min() >= min(1, totals.min())


@given(st.integers(0, 10_000), st.integers(2, 6))
@FAST
def test_folds_are_even_and_each_image_is_in_one(seed: int, folds: int) -> None:
    generator = np.random.default_rng(seed)
    strata = [(int(label),) for label in generator.choice(4, 200, p=[0.6, 0.25, 0.1, 0.05])]
    groups = generator.integers(0, 60, 200)
    for clusters in (None, np.unique(groups, return_inverse=True)[1]):
        fold_of = stratified_folds(strata, folds, seed, clusters)
        for label in range(4):
            counts = [sum(strata[i] == (label,) for i in np.flatnonzero(fold_of == fold)) for fold in range(folds)]
            tolerance = 1 if clusters is None else 8
            assert max(counts) - min(counts) <= tolerance, counts
        if clusters is not None:
            assert all(len(set(fold_of[clusters == one])) == 1 for one in set(clusters.tolist()))
    with pytest.raises(DataError, match="has a test split, and folds=3"):
        draw_missing_splits({"train": labeled([9, 9]), "test": labeled([3, 3])}, "x", 0.1, 0.1, 0, folds=3)
    data = labeled([20, 10])
    tested = [
        part.images.name(number)
        for fold in range(folds)
        for part in [draw_missing_splits({"train": data}, "x", 0.1, 0.1, 0, folds=folds, fold=fold).test]
        for number in range(len(part))
    ]
    assert sorted(tested) == sorted(names_of(data))


def test_clusters_join_what_shares_any_key() -> None:
    found = cluster(6, [["a", "b", "a", None, None, "c"], ["x", "y", None, "y", None, None]])
    assert found.tolist() == [0, 1, 0, 1, 2, 3]
    drawn = stratified_draw([(0,)] * 6, 2, 0, "test", found)
    assert {0, 2} <= set(drawn) or not {0, 2} & set(drawn)


KEYS = st.lists(st.none() | st.sampled_from("abcdef"), min_size=12, max_size=12)


@FAST
@given(st.lists(KEYS, max_size=3))
def test_clusters_are_numbered_by_their_first_images(keys: list[list[str | None]]) -> None:
    cluster_of = list(range(12))
    for values in keys:
        for one, other in [(i, j) for i in range(12) for j in range(i) if values[i] == values[j] is not None]:
            joined = {cluster_of[one], cluster_of[other]}
            cluster_of = [min(joined) if number in joined else number for number in cluster_of]
    numbers = list(dict.fromkeys(cluster_of))
    assert cluster(12, keys).tolist() == [numbers.index(number) for number in cluster_of]


PICTURES = 50


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which some are equal, in PNG and in BMP."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        image = noise_image(number - number % 3 if number < 24 else number, size=(16, 16))
        image.save(root / f"p{number % 12:02d}_{number}.{'bmp' if number % 3 == 1 else 'png'}")
    return root


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_no_path_picture_or_group_is_in_two_splits(pictures: Path, seed: int, grouped: bool) -> None:
    generator = np.random.default_rng(seed)
    names = sorted(path.name for path in pictures.iterdir() if path.suffix != ".csv")
    chosen = generator.permutation(names)[: generator.integers(30, len(names) + 1)]
    label = dict(zip(names, generator.choice(3, len(names), p=[0.6, 0.3, 0.1]).tolist(), strict=True))
    rows = [(name, f"c{label[name]}") for name in [*generator.choice(chosen, len(chosen)).tolist(), *chosen]]
    with (pictures / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    parts = read_parts(pictures)
    if len(set(parts["train"].labels)) < 2:
        return
    group = "^(p[0-9]+)_" if grouped else None
    splits, manifest = audited_splits(parts, pictures, 0.2, 0.2, seed, group=group)
    places: dict[str, set[str]] = defaultdict(set)
    for split, part in splits.items():
        for number in range(len(part)):
            name = part.images.name(number)
            with Image.open(pictures / name) as image:
                pixels = image.convert("RGB").tobytes().hex()
            for key in (name, pixels, *((name.split("_")[0],) if grouped else ())):
                places[key].add(split)
        assert len(part) > 0
        assert manifest.splits[split].names == tuple(part.images.name(number) for number in range(len(part)))
    assert all(len(found) == 1 for found in places.values())
    assert sum(len(part) for _, part in splits.items()) == len(set(chosen.tolist()))


def test_groups_in_two_splits_are_refused_and_listed(tmp_path: Path) -> None:
    for split, patients in (("train", (1, 2, 3, 4, 5)), ("test", (6, 2))):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for patient in patients:
                noise_image(crc32(f"{split}{label}{patient}".encode())).save(
                    tmp_path / split / label / f"patient{patient}.png"
                )
    group = "patient[0-9]+"
    parts = read_parts(tmp_path)
    with pytest.raises(DataError, match=r"1 groups are in two splits: patient2 is in train \(a/patient2.png\)"):
        draw_missing_splits(parts, tmp_path, 2, 2, 0, group=group)
    found = {finding.kind: finding for finding in data_check(DataCheckConfig(str(tmp_path), group=group)).findings}
    assert found["group in two splits"].rule is None and len(found["group in two splits"].texts) == 1
    with pytest.raises(DataError, match=r"matches 0 of 10 paths; not a/patient1.png. Expected a column"):
        draw_missing_splits(parts, tmp_path, 2, 2, 0, group="flight")
    with pytest.raises(DataError, match="not a regular expression"):
        draw_missing_splits(parts, tmp_path, 2, 2, 0, group="(patient")
    whole = draw_missing_splits({"train": parts["train"]}, tmp_path, 2, 2, 0, group=group)
    for _, part in whole.items():
        assert set(Counter(name.split("/")[1] for name in names_of(part)).values()) == {2}
    with pytest.raises(DataError, match="each group of images that belong together has all images of a class"):
        alone = replace(labeled([5, 5, 5]), groups=("p0",) * 5 + ("p1",) * 5 + ("p2",) * 5)
        draw_missing_splits({"train": alone}, tmp_path, 2, 2, 0, group="patient")
    with pytest.raises(DataError, match="1 groups of images that belong together"):
        draw_missing_splits({"train": parts["train"]}, tmp_path, 2, 2, 0, group="patient")


def test_an_equal_picture_with_another_label_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(8):
            noise_image(number if number == 0 else crc32(f"{label}{number}".encode())).save(
                tmp_path / label / f"{number}.png"
            )
    with caplog.at_level(logging.WARNING):
        audited_splits(read_parts(tmp_path), tmp_path, 2, 2, 0)
    assert "1 equal images with different labels, such as a/0.png and b/0.png" in caplog.text
    found = {finding.kind: finding for finding in data_check(DataCheckConfig(str(tmp_path))).findings}
    assert "which has the label 'a', not 'b'" in found["equal pictures with different labels"].texts[0]


SUITE = """
title: groups
data: {path: DATA, unlabelled: POOL, val: 0.2, test: 0.2, group: "p[0-9]+", near: "off"}
labels: [6]
seeds: [0, 1]
model: vit_nano
image_size: 16
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2]}
arms:
  mae: {start: mae, label: MAE}
  scratch: {start: scratch, label: scratch}
"""


def test_groups_stay_in_one_part_of_a_suite(tmp_path: Path) -> None:
    for patient in range(12):
        for label in ("a", "b"):
            for number in range(2):
                path = tmp_path / "data" / label / f"p{patient}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise_image(crc32(f"{label}{patient}{number}".encode())).save(path)
        (tmp_path / "pool").mkdir(exist_ok=True)
        noise_image(9000 + patient).save(tmp_path / "pool" / f"p{patient}_u.png")
    noise_image(9999).save(tmp_path / "pool" / "nobody.png")
    for pool in (str(tmp_path / "pool"), "null"):
        text = SUITE.replace("DATA", str(tmp_path / "data")).replace("POOL", pool)
        (tmp_path / "suite.yaml").write_text(text)
        pools = read_suite_images(BenchConfig.resolve({"suite": str(tmp_path / "suite.yaml"), "out": "x"}))
        parts = {split: names_of(part) for split, part in pools.classify.items()}
        parts["pool"] = [pools.pool.name(number) for number in range(len(pools.pool))]
        groups = {name: {path.split("/")[-1].split("_")[0] for path in paths} for name, paths in parts.items()}
        assert not groups["val"] & groups["test"] and not groups["train"] & (groups["val"] | groups["test"])
        assert not groups["pool"] & (groups["val"] | groups["test"])
        if pool != "null":
            assert "nobody.png" in parts["pool"] and len(parts["pool"]) == 13 - len(groups["val"] | groups["test"])
            assert any("of a group in validation or test" in finding for finding in pools.findings)
        else:
            assert not groups["pool"] & groups["train"]


def test_a_run_is_evaluated_on_the_splits_that_it_drew(tmp_path: Path) -> None:
    parts = {"train": labeled([8, 8])}
    (tmp_path / "splits.csv").write_text("path,split\n0.png,val\n9.png,test\n3.png,train\n")
    assert names_of(split_of_run(parts, "x", tmp_path, "val")) == ["0.png"]
    assert names_of(split_of_run(parts, "x", tmp_path, "test")) == ["9.png"]
    assert len(split_of_run(parts, "x", tmp_path, "train")) == 14
    (tmp_path / "splits.csv").write_text("path,split\n99.png,val\n")
    with pytest.raises(DataError, match=r"1 images of the run's val split aren't there, such as 99.png"):
        split_of_run(parts, "x", tmp_path, "val")
    with pytest.raises(ConfigError, match="fold=5: expected 0 to 2, with folds=3"):
        ClassifyConfig.resolve({"data": "x", "out": "y", "encoder": "x", "folds": 3, "fold": 5})


def test_a_broken_image_leaves_the_splits_of_the_others_as_they_are(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(30):
            noise_image(crc32(f"{label}{number}".encode())).save(tmp_path / label / f"{number}.png")
    before, _ = audited_splits(read_parts(tmp_path), tmp_path, 5, 5, 0)
    (tmp_path / "b" / "7.png").write_bytes(b"broken")
    after, manifest = audited_splits(read_parts(tmp_path), tmp_path, 5, 5, 0)
    assert [name for name, _ in manifest.rejected] == ["b/7.png"]
    for (_, one), (_, other) in zip(before.items(), after.items(), strict=True):
        assert [name for name in names_of(one) if name != "b/7.png"] == names_of(other)
    plain = draw_missing_splits(read_parts(tmp_path), tmp_path, 5, 5, 0)  # as a plan, and a probe, draw
    assert names_of(plain.test) == names_of(before.test)


def test_errors_name_the_keys_of_the_file_that_they_are_in(tmp_path: Path) -> None:
    for label in ("2020", "2021"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(9):
            noise_image(crc32(f"{label}{number}".encode())).save(tmp_path / "data" / label / f"{number}.png")
    text = SUITE.replace("DATA", str(tmp_path / "data")).replace("POOL", "null").replace('"p[0-9]+"', "null")
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(DataError, match=r"If each folder is a class, give data\.layout=class_folders"):
        read_suite_images(BenchConfig.resolve({"suite": str(tmp_path / "suite.yaml"), "out": "x"}))
    (tmp_path / "suite.yaml").write_text(text.replace("group: null", "layout: class_folders"))
    assert read_suite_images(BenchConfig.resolve({"suite": str(tmp_path / "suite.yaml"), "out": "x"})).classify.train
    with pytest.raises(DataError, match=r"give probe\.layout=class_folders"):
        read_probe_images(ProbeConfig(str(tmp_path / "data")), 0.05)
    assert read_probe_images(ProbeConfig(str(tmp_path / "data"), layout="class_folders"), 0.05)
