"""Segmentation scores: by hand, against mmseg's IoUMetric, ignored pixels, classes that are not there."""

import numpy as np
import pytest
from maelift.core.errors import DataError
from maelift.tests.support import framework
from maelift.transfer.segmentation import metrics
from maelift.transfer.segmentation.metrics import PixelCounts
from numpy.typing import NDArray

Masks = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def some_masks(classes: int, seed: int, *, empty: tuple[int, ...] = (), unpredicted: tuple[int, ...] = ()) -> Masks:
    """Predictions and truths of several sizes that agree in part, with ignored pixels; some classes left out."""
    generator = np.random.default_rng(seed)
    pairs: Masks = []
    for height, width in ((7, 11), (1, 1), (30, 5), (16, 16)):
        truth = generator.choice([c for c in range(classes) if c not in empty], (height, width)).astype(np.uint8)
        noise = generator.choice([c for c in range(classes) if c not in unpredicted], (height, width)).astype(np.uint8)
        predicted = np.where(generator.random((height, width)) < 0.5, truth, noise).astype(np.uint8)
        predicted[np.isin(predicted, unpredicted)] = 0
        truth[generator.random((height, width)) < 0.2] = 255
        pairs.append((predicted, truth))
    pairs.append((np.full((4, 4), 1, np.uint8), np.full((4, 4), 255, np.uint8)))  # nothing of it counts
    return pairs


def counted(pairs: Masks, classes: int) -> PixelCounts:
    counts = PixelCounts(classes)
    for predicted, truth in pairs:
        counts.add(predicted, truth)
    return counts


def test_influences_are_what_leaving_an_image_out_changes() -> None:
    """Their mean is mIoU, and their spread that of the jackknife, which leaves out one image after another."""
    pairs = [pair for seed in range(6) for pair in some_masks(4, seed)]
    whole, single = counted(pairs, 4), [counted([pair], 4) for pair in pairs]
    found = whole.influences([(one.hits, one.unions) for one in single])
    assert found is not None and found.mean() == pytest.approx(whole.metrics()["mIoU"])
    left = np.array([counted(pairs[:n] + pairs[n + 1 :], 4).metrics()["mIoU"] for n in range(len(pairs))], dtype=float)
    jackknife = (len(pairs) - 1) ** 2 * left.var(ddof=1) / len(pairs)
    assert found.var(ddof=1) / len(pairs) == pytest.approx(jackknife, rel=0.15)
    assert np.corrcoef(found, -left)[0, 1] > 0.99
    empty = PixelCounts(3)
    assert empty.influences([]) is None


def test_scores_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [255, 255, 2, 2]])
    predicted = np.array([[0, 1, 1, 1], [0, 3, 2, 0]])
    counts = counted([(predicted.astype(np.uint8), truth.astype(np.uint8))], 5)
    assert counts.iou() == [1 / 3, 2 / 3, 1 / 2, None, None]
    assert counts.accuracy() == [1 / 2, 1.0, 1 / 2, None, None]
    metrics = counts.metrics()
    assert list(metrics) == ["mIoU", "aAcc", "mAcc", "mDice"]
    assert metrics["mIoU"] == pytest.approx(0.5)
    assert metrics["aAcc"] == pytest.approx(4 / 6)


def test_a_class_that_is_predicted_but_not_there_counts_as_0_and_one_that_is_neither_is_left_out() -> None:
    predicted, truth = np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8)
    counts = counted([(predicted, truth)], 3)
    assert counts.iou() == [0.5, 0.0, None]
    assert counts.accuracy() == [0.5, None, None]
    assert counts.metrics()["mIoU"] == 0.25
    scores = counts.scores("test", ("sky", "sea", "sand"))
    assert scores.count == 1 and scores.per_class["sand"] == {"IoU": None, "Acc": None, "Dice": None, "pixels": 0}


def test_where_no_pixel_counts_there_is_no_figure() -> None:
    counts = counted([(np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8))], 2)
    assert set(counts.metrics().values()) == {None}


@pytest.mark.parametrize(
    "classes, empty, unpredicted", [(2, (), ()), (7, (2,), ()), (7, (2, 6), (2, 6)), (7, (), (3,)), (150, (149,), (0,))]
)
def test_scores_agree_with_mmseg(classes: int, empty: tuple[int, ...], unpredicted: tuple[int, ...]) -> None:
    framework("mmseg")
    import torch
    from mmseg.evaluation import IoUMetric

    pairs = some_masks(classes, seed=classes, empty=empty, unpredicted=unpredicted)
    areas = [
        IoUMetric.intersect_and_union(torch.from_numpy(predicted), torch.from_numpy(truth), classes, 255)
        for predicted, truth in pairs
    ]
    theirs = IoUMetric.total_area_to_metrics(*(sum(area) for area in zip(*areas, strict=True)), ["mIoU", "mDice"])
    ours = counted(pairs, classes)
    for name, values in (("IoU", ours.iou()), ("Acc", ours.accuracy()), ("Dice", ours.dice())):
        found = [np.nan if value is None else value for value in values]
        np.testing.assert_allclose(found, np.asarray(theirs[name]), atol=1e-6, err_msg=name)
        assert ours.metrics()[f"m{name}"] == pytest.approx(float(np.nanmean(theirs[name])), abs=1e-6)
    assert ours.metrics()["aAcc"] == pytest.approx(float(theirs["aAcc"]), abs=1e-6)


def test_large_images_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = some_masks(5, seed=1)
    whole = counted(pairs, 5).matrix
    monkeypatch.setattr(metrics, "CHUNK", 3)
    np.testing.assert_array_equal(counted(pairs, 5).matrix, whole)


def test_values_that_are_no_class_and_sizes_that_differ_are_refused() -> None:
    good = np.zeros((2, 2), np.uint8)
    with pytest.raises(
        DataError, match=r"cat.png: a mask with the value 7: expected class numbers from 0 to 2, or 255"
    ):
        PixelCounts(3).add(good, np.full((2, 2), 7, np.uint8), "cat.png")
    with pytest.raises(DataError, match="a prediction with the value 3"):
        PixelCounts(3).add(np.full((2, 2), 3, np.uint8), good)
    with pytest.raises(DataError, match=r"\(2, 2\) for a mask of \(2, 3\)"):
        PixelCounts(3).add(good, np.zeros((2, 3), np.uint8))
