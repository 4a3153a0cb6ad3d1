"""Figures of classification, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maelift.transfer.classification.metrics import multi_label_scores, single_label_scores
from sklearn import metrics as sk

CLASSES = tuple("abcdefg")


@pytest.mark.slow
def test_figures_of_one_class_an_image_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, 3, 5], 300)  # no image of e and g
    logits = 3 * generator.normal(size=(300, 7)) + 2 * np.eye(7)[labels]
    scores = single_label_scores("test", torch.tensor(logits), torch.tensor(labels), CLASSES)
    probabilities = torch.tensor(logits).softmax(dim=1).numpy()
    predicted, present = logits.argmax(axis=1), sorted(set(labels))
    ap = {k: sk.average_precision_score(labels == k, probabilities[:, k]) for k in present}
    bins = np.ceil(probabilities.max(axis=1) * 15)
    gaps = [
        abs((predicted == labels)[bins == b].mean() - probabilities.max(axis=1)[bins == b].mean()) * (bins == b).mean()
        for b in set(bins)
    ]
    expected = {
        "top1": sk.accuracy_score(labels, predicted),
        "top5": sk.top_k_accuracy_score(labels, probabilities, k=5, labels=range(7)),
        "balanced": np.mean(sk.recall_score(labels, predicted, labels=present, average=None)),
        "macro_f1": sk.f1_score(labels, predicted, labels=present, average="macro"),
        "map": np.mean(list(ap.values())),
        "nll": sk.log_loss(labels, probabilities, labels=range(7)),
        "ece": sum(gaps),
    }
    assert scores.metrics == pytest.approx(expected, abs=1e-6)
    assert (np.array(scores.confusion) == sk.confusion_matrix(labels, predicted, labels=range(7))).all()
    assert scores.per_class["b"]["ap"] == pytest.approx(ap[1], abs=1e-6)
    assert scores.per_class["e"] == {"count": 0, "recall": None, "precision": None, "f1": None, "ap": None}


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    logits, labels = torch.tensor([[0.9, 0.2], [0.8, 0.1]]), torch.tensor([0, 0])
    ece = single_label_scores("test", logits, labels, ("a", "b")).metrics["ece"]
    assert ece == pytest.approx(1 - float(logits.softmax(dim=1)[:, 0].mean()), abs=1e-6)


def test_five_of_five_classes_are_no_figure() -> None:
    scores = single_label_scores("test", torch.eye(5), torch.arange(5), CLASSES[:5])
    assert scores.metrics["top5"] is None and scores.metrics["top1"] == 1


def test_figures_of_many_classes_an_image_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    targets = (generator.random((200, 7)) < 0.3).astype(np.float32)
    targets[:, 4] = 0  # no image of e
    logits = generator.normal(size=(200, 7)) + targets
    scores = multi_label_scores("val", torch.tensor(logits), torch.tensor(targets), CLASSES)
    predicted, present = logits >= 0, [0, 1, 2, 3, 5, 6]
    probabilities = torch.tensor(logits).sigmoid().numpy()
    ap = [sk.average_precision_score(targets[:, k], probabilities[:, k]) for k in present]
    expected = {
        "map": np.mean(ap),
        "micro_map": sk.average_precision_score(targets, probabilities, average="micro"),
        "macro_f1": sk.f1_score(targets[:, present], predicted[:, present], average="macro"),
        "micro_f1": sk.f1_score(targets, predicted, average="micro"),
        "subset": sk.accuracy_score(targets, predicted),
        "nll": np.mean([sk.log_loss(targets[:, k], probabilities[:, k], labels=[0, 1]) for k in range(7)]),
    }
    assert scores.metrics == pytest.approx(expected, abs=1e-6)
    assert scores.confusion is None and scores.count == 200
    assert scores.per_class["e"]["ap"] is None and scores.per_class["g"]["ap"] == pytest.approx(ap[-1], abs=1e-6)


def test_a_split_without_any_class_has_no_figures_of_classes() -> None:
    scores = multi_label_scores("test", torch.full((3, 2), -1.0), torch.zeros(3, 2), ("a", "b"))
    assert scores.metrics["map"] is None and scores.metrics["macro_f1"] is None and scores.metrics["subset"] == 1
