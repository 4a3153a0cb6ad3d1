"""The curves of a pretraining, for its report and for notebooks: losses, probes, rate, gradient, speed, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.report.charts import MAX_LINES, CurveChart, points


def loss_unit(norm_pix_loss: bool) -> str:
    """What the loss is, and its unit, by the key of that name."""
    scale = "patches of mean 0 and deviation 1" if norm_pix_loss else "normalised pixels"
    return f"mean squared error of hidden patches, in {scale}"


def curve_charts(
    records: Sequence[Mapping[str, float]], unit: str, held_out: int, probed: str = ""
) -> list[CurveChart]:
    """The charts of the records of a metrics.jsonl that there are values of.

    ``unit`` is that of the loss, ``held_out`` the number of held-out images, ``probed`` what the probes were fitted on.
    """
    of = f"; held_out/loss: {held_out:,} images, fixed masks" if held_out else ""
    metrics = list(dict.fromkeys(name for record in records for name in record))
    found = []
    for key, caption, label, chosen, factor in (
        ("loss", f"Loss: {unit} (1 seed{of})", "loss", ["train/loss", "held_out/loss"], 1.0),
        ("probe", f"Probes of the encoder{probed}", "top-1 accuracy in %", _with(metrics, "probe/"), 100.0),
        ("rate", "Learning rate", "learning rate", ["lr"], 1.0),
        ("gradient", "Norm of the gradient of the full model, before clipping", "norm", ["gradient_norm"], 1.0),
        ("speed", "Throughput of training, without evaluations", "images/s", ["images_per_second"], 1.0),
        ("wait", "Share of the training time spent waiting for images", "%", ["data_wait_share"], 100.0),
        ("memory", "Peak memory so far (CPU: the main process alone)", "MiB", _with(metrics, "memory/"), 1.0),
    ):
        lines = [(name, values) for name in chosen[:MAX_LINES] if (values := points(records, name, factor))]
        if lines:
            logarithmic = key == "gradient" and all(value > 0 for _, values in lines for _, value in values)
            found.append(CurveChart(key, caption, label, tuple(lines), logarithmic))
    return found


def _with(names: Sequence[str], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]
