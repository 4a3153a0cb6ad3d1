"""What trained models cost to use is measured once a suite, on a named device, and no report is lost for it."""

from __future__ import annotations

import json
from pathlib import Path

import maelift
import pytest
import torch
from maelift.benchmarks import measure_cost
from maelift.benchmarks.measure_cost import COSTS_FILE, forward_flops, measured, prediction_step, read_costs
from maelift.benchmarks.model_cost import ModelCost, cheaper, milliseconds
from maelift.core.device import device_name
from maelift.core.models.cost import encoder_flops
from maelift.tests.benchmarks.brightness import home, resolved
from maelift.tests.benchmarks.canned import use_this_process
from maelift.tests.support import random_encoder
from maelift.transfer.classification.model import Classifier

__all__ = ["home"]

CPU = torch.device("cpu")


def test_a_classifier_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_cost, "SECONDS", 0.01)
    encoder = random_encoder("vit_nano", image_size=32)
    model = Classifier(encoder, ["a", "b"]).eval()
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    found = measured(ModelCost("arm", "classify", "key", "here"), model, pixels, CPU)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    expected = encoder_flops(encoder.spec) + 2 * 2 * encoder.spec.embed_dim
    assert found.flops == pytest.approx(expected, rel=0.01) and found.image == (3, 32, 32)
    assert found.latency is not None and 0 < found.latency < 1 and found.batch == 5 and found.memory is None
    assert found.throughput is not None and found.throughput > 0 and not found.reason


def test_operations_are_those_of_convolutions_too() -> None:
    conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert forward_flops(conv, torch.zeros(1, 3, 16, 16)) == 2 * 16 * 16 * 3 * 8 * 9


def test_a_batch_that_would_take_long_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_cost, "LONGEST", 0.0)
    model = Classifier(random_encoder("vit_nano", image_size=16), ["a", "b"]).eval()
    found = measured(ModelCost("a", "classify", "k", "here"), model, torch.zeros(4, 3, 16, 16, dtype=torch.uint8), CPU)
    assert found.latency is not None and found.throughput is None and "throughput not measured" in found.reason


def test_models_normalise_stored_values_themselves() -> None:
    model = Classifier(random_encoder("vit_nano", image_size=16), ["a", "b"]).eval()
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = model(model.preprocessing.normalize(pixels))
    assert torch.equal(prediction_step(model)(pixels), expected)  # type: ignore[arg-type]


@pytest.mark.slow
def test_models_that_cannot_be_measured_cost_no_report_and_nothing_is_measured_twice(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_this_process(monkeypatch)
    out = tmp_path / "out"
    done = maelift.benchmarks.runner.bench(resolved(home, out))
    found = read_costs(out / COSTS_FILE)
    assert [cost.arm for cost in found] == ["mae", "supervised", "scratch"] and done.result.costs == tuple(found)
    assert all(cost.reason and cost.latency is None for cost in found)  # canned runs have empty model files
    assert "Not measured: MAE on the pool: " in (out / "report.md").read_text()
    entries = json.loads((out / COSTS_FILE).read_text())
    entries[0] |= {"device": "another machine", "latency": 0.123, "reason": ""}
    (out / COSTS_FILE).write_text(json.dumps(entries))
    monkeypatch.setattr(measure_cost, "_measure", lambda *words: pytest.fail("measured again"))
    again = maelift.benchmarks.runner.bench(resolved(home, out))
    assert again.result.costs[0].device == "another machine"
    assert "another machine" in (out / "report.md").read_text() and "| 123 |" in (out / "report.md").read_text()


def test_a_damaged_file_of_costs_is_measured_again(tmp_path: Path) -> None:
    for content in ("", "[1]", '[{"arm": "a"}]', '{"a": 1}'):
        (tmp_path / COSTS_FILE).write_text(content)
        assert read_costs(tmp_path / COSTS_FILE) == []
    assert read_costs(tmp_path / "gone.json") == []


def test_cheaper_is_clearly_cheaper() -> None:
    def cost(arm: str, latency: float | None, flops: float | None) -> ModelCost:
        return ModelCost(arm, "classify", "k", "here", latency=latency, flops=flops)

    costs = [cost("a", 1.0, 9.0), cost("b", 0.95, 1.0), cost("c", None, 1.0), cost("d", None, None)]
    assert not cheaper(costs, "classify", "b", "a")  # within the noise of a measurement
    assert cheaper(costs, "classify", "c", "a") and not cheaper(costs, "classify", "a", "c")
    assert not cheaper(costs, "classify", "d", "a") and not cheaper(costs, "other", "c", "a")
    assert [milliseconds(value) for value in (0.2, 0.01234, 0.00123, 0.0000123)] == ["200", "12.3", "1.23", "0.012"]


def test_the_device_has_a_name() -> None:
    assert device_name(CPU).strip()
