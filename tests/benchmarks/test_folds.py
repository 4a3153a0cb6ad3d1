"""Folds of a seed's labelled images, and probes that are cross-validated on them, against scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from maelift.benchmarks.arm_kind import ArmConfig, Training
from maelift.benchmarks.arm_kinds import kind_of
from maelift.benchmarks.baseline_model import BaselineClassifier
from maelift.benchmarks.baseline_tasks import PixelTask
from maelift.benchmarks.folds import CROSS_FOLDS, Folds, cross_folds
from maelift.core.config import resolve
from maelift.core.data.classification import LabeledImages
from maelift.core.data.classification_reader import single_label_parts
from maelift.core.data.images import ImageSet
from maelift.core.data.labeled_dataset import Splits, draw_labeled
from maelift.core.data.splits import cluster, stratified_folds
from maelift.core.distributed import Ranks
from maelift.core.errors import DataError
from maelift.core.models.logistic_regression import L2_GRID
from maelift.tests.support import framework, random_encoder
from maelift.transfer.classification.config import ClassifyRecipe
from maelift.transfer.classification.model import Classifier
from maelift.transfer.classification.probe import ProbeTask
from maelift.transfer.recipe import recipe_defaults
from numpy.typing import NDArray
from torch import nn

CPU = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Named:
    """Images of which the names alone are known."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def subset(self, indices: Sequence[int]) -> Named:
        return Named(tuple(self.names[index] for index in indices))


def labelled(labels: Sequence[int], groups: Sequence[str] = ()) -> LabeledImages:
    images = cast(ImageSet, Named(tuple(f"{number}.png" for number in range(len(labels)))))
    return LabeledImages(images, tuple(labels), ("a", "b", "c", "d"), tuple(groups))


def folds_of(images: LabeledImages, seed: int = 0, contents: Sequence[str] | None = None) -> Folds:
    own = contents or [str(number) for number in range(len(images))]
    return cross_folds(images, seed, own, "patient" if images.groups else None)


def check(images: LabeledImages, folds: Folds) -> None:
    """Every image is left out once or never, and every class is trained on in each fold."""
    left_out: list[str] = []
    for fold in range(folds.count):
        train, out = folds.split(images, fold)
        names = [[part.images.name(index) for index in range(len(part))] for part in (train, out)]
        assert sorted([*names[0], *names[1]]) == sorted(cast(Named, images.images).names) and names[1]
        assert set(train.labels) == set(images.labels) and len(out) == folds.sizes[fold]
        left_out += names[1]
    assert len(set(left_out)) == len(left_out) == folds.scored


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_even_over_the_classes_and_another_draw_for_each_seed(seed: int) -> None:
    images = labelled([0] * 10 + [1] * 10 + [2] * 5)
    folds = folds_of(images, seed)
    check(images, folds)
    assert folds.count == CROSS_FOLDS and folds.sizes == (5, 5, 5, 5, 5)
    for fold in range(folds.count):
        assert sorted(folds.split(images, fold)[1].labels) == [0, 0, 1, 1, 2]
    assert folds == folds_of(images, seed) and folds.digest != folds_of(images, seed + 1).digest


def test_a_class_of_one_image_stays_in_training() -> None:
    images = labelled([0, 0, 0, 1, 2, 2])
    folds = folds_of(images)
    check(images, folds)
    assert folds.numbers[3] == -1 and folds.scored == 5


@pytest.mark.parametrize("seed", range(20))
def test_groups_and_equal_images_are_in_one_fold_and_no_class_is_left_out_as_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups = draw.integers(0, 6, 16).tolist()
    images = labelled(draw.integers(0, 4, 16).tolist(), [f"p{group}" for group in groups])
    contents = [str(number) for number in range(16)]
    contents[7] = contents[3]  # which joins two groups
    try:
        folds = folds_of(images, seed, contents)
    except DataError:
        return
    check(images, folds)
    numbers = np.array(folds.numbers)
    for group in set(groups):
        assert len(set(numbers[np.array(groups) == group])) == 1
    assert numbers[7] == numbers[3]


def test_groups_of_several_classes_never_leave_out_all_of_one() -> None:
    labels = [2, 5, 4, 6, 4, 2, 7, 3, 1, 5, 7, 3, 1, 5, 0, 1, 6, 0]
    groups = [2, 5, 6, 3, 1, 1, 2, 5, 2, 2, 5, 4, 0, 0, 3, 0, 6, 2]
    images = labelled(labels, [f"p{group}" for group in groups])
    together = stratified_folds(images.strata, CROSS_FOLDS, 0, cluster(18, [images.groups]))
    assert {together[index] for index in range(18) if labels[index] == 6} == {0}  # both groups that have class 6
    folds = folds_of(images)
    check(images, folds)
    assert -1 in {folds.numbers[index] for index in range(18) if labels[index] == 6}


def test_too_few_images_are_refused_in_words() -> None:
    assert folds_of(labelled([0, 0, 1, 1])).count == 4
    with pytest.raises(
        DataError, match=r"labels=3: the images of seed 7 can't be cross-validated .* Expected more labels"
    ):
        folds_of(labelled([0, 1, 2]), 7)


def test_a_mean_counts_every_image_alike() -> None:
    folds = Folds((0, 0, 0, 1, -1))
    assert folds.sizes == (3, 1) and folds.mean([1.0, 0.0]) == pytest.approx(0.75)


@pytest.fixture(scope="module")
def splits(fashion_mnist: Path) -> Splits[LabeledImages]:
    """60 labelled images, none to validate with, and 200 to test with."""
    parts = single_label_parts(str(fashion_mnist))
    train = draw_labeled(parts["train"], 60, 0)
    return Splits(train, train.subset([]), parts["test"].subset(range(200)))


@pytest.fixture(scope="module")
def folds(splits: Splits[LabeledImages]) -> Folds:
    return cross_folds(splits.train, 0, [str(number) for number in range(60)], None)


def training(splits: Splits[LabeledImages], folds: Folds, variant: str, folder: Path) -> Training:
    recipe = resolve(ClassifyRecipe, {}, defaults=recipe_defaults("classify_scratch"))
    encoder = random_encoder(channels=1, image_size=28)
    return Training(recipe, variant, encoder, splits, CPU, folder=folder, shared=folder, folds=folds.numbers)


def logistic_regression_by_hand(
    rows: NDArray[np.float64], labels: NDArray[np.int64], folds: Folds, test: NDArray[np.float64]
) -> tuple[float, NDArray[np.int64]]:
    """The share of left-out images that the best penalty gets right, and the classes of ``test`` by it, fitted to all images."""
    from sklearn.linear_model import LogisticRegression

    def fitted(penalty: float, train: NDArray[np.bool_], seen: NDArray[np.float64]) -> NDArray[np.float64]:
        mean, std = rows[train].mean(axis=0), np.sqrt(rows[train].var(axis=0) + 1e-6)
        model = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-7).fit(
            (rows[train] - mean) / std, labels[train]
        )
        return cast(NDArray[np.float64], model.predict_proba((seen - mean) / std))

    numbers = np.array(folds.numbers)
    found: list[tuple[float, float, float]] = []
    for penalty in L2_GRID:
        chances = np.zeros((len(rows), 10))
        for fold in range(folds.count):
            chances[numbers == fold] = fitted(penalty, numbers != fold, rows[numbers == fold])
        right = (chances.argmax(axis=1) == labels).mean()
        found.append((float(right), float(np.log(chances[np.arange(len(labels)), labels]).mean()), penalty))
    right, _, best = max(found)
    return right, fitted(best, np.ones(len(rows), dtype=bool), test).argmax(axis=1)


def neighbours_by_hand(
    rows: NDArray[np.float64], labels: NDArray[np.int64], folds: Folds, test: NDArray[np.float64], count: int
) -> tuple[float, NDArray[np.int64]]:
    from sklearn.neighbors import KNeighborsClassifier

    def voted(train: NDArray[np.bool_], seen: NDArray[np.float64]) -> NDArray[np.int64]:
        votes = KNeighborsClassifier(count, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        return cast(NDArray[np.int64], votes.fit(rows[train], labels[train]).predict(seen))

    numbers, found = np.array(folds.numbers), np.full(len(labels), -1)
    for fold in range(folds.count):
        found[numbers == fold] = voted(numbers != fold, rows[numbers == fold])
    return float((found == labels).mean()), voted(np.ones(len(rows), dtype=bool), test)


@pytest.mark.parametrize("variant", ["linear", "knn5"])
@pytest.mark.parametrize("arm", ["pixels", "frozen"])
def test_probes_choose_across_folds_as_scikit_learn_does(
    splits: Splits[LabeledImages], folds: Folds, arm: str, variant: str, tmp_path: Path
) -> None:
    framework("sklearn")
    assert folds.scored == 60
    frozen = ArmConfig("encoder", "frozen", weights="given", frozen=True)
    kind = kind_of(frozen if arm == "frozen" else ArmConfig("pixels", "pixels"))
    task = kind.task(training(splits, folds, variant, tmp_path))
    model = task.build_model()
    task.prepare(model)
    figures = task.validate(model.eval())
    final = task.final_model(model).eval()
    if isinstance(task, PixelTask):
        vectors = cast(nn.Sequential, cast(BaselineClassifier, final).network)[:-1]
        train, test = (task._vectors(vectors, part) for part in (splits.train, splits.test))
    else:
        assert isinstance(task, ProbeTask) and isinstance(final, Classifier)
        unread = training(Splits(splits.test, splits.train, splits.test), folds, "knn1", tmp_path)
        other = cast(ProbeTask, kind.task(unread))
        other.folds = ()
        other.prepare(other.build_model())
        train, test = task.train_rows.all(), other.train_rows.all()
    rows, seen = train.double().numpy(), test.double().numpy()
    by_hand = (
        logistic_regression_by_hand(rows, splits.train.targets(), folds, seen)
        if variant == "linear"
        else neighbours_by_hand(rows, splits.train.targets(), folds, seen, 5)
    )
    assert figures["val/top1"] == pytest.approx(by_hand[0], abs=1e-9)
    _, right = task.score_items(final, splits.test, "test")
    assert right is not None and np.mean((by_hand[1] == splits.test.targets()) == right.astype(bool)) > 0.98
