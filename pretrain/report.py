"""The report of a pretraining, summary.html: losses, reconstructions, probes, data, events and cost in one file."""

from __future__ import annotations

import csv
import io
import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from ..core.data.composite import Display, picture_grid
from ..core.errors import show
from ..core.files import atomic_write_bytes
from ..core.models.encoder_file import EncoderFile, Provenance
from ..core.models.stored_contract import ENCODER_FILE
from ..core.optional_imports import installed_versions
from ..core.progress import duration
from ..core.public_names import public_config, public_name
from ..core.report.charts import points
from ..core.report.html import Table, data_url, describe_machine, keys_table, render
from ..core.training.batch_sheet import sheet_for_page
from ..core.training.tracker import EVENTS_FILE, METRICS_FILE, WAIT_LIMIT, Event, read_events, read_metrics
from ..core.yaml_files import flatten, to_dict
from ..version import __version__
from .animation import reconstruction_animation
from .config import PretrainConfig
from .curves import curve_charts, loss_unit
from .data import Source
from .evaluation import PICTURE_FOLDER, picture_columns, shown_count
from .online_probe import UNDERSTATES, ProbeImages
from .result import REPORT_FILE

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
TIMES = 6
"""Evaluations whose reconstructions are shown."""
ACROSS = 4
"""Images side by side in a picture."""
STRIP_WIDTH = 640
"""Largest width of a picture in pixels."""
GAP = 4
LISTED = 50
"""Events and broken images that are listed; of more, only the number is shown."""
FALLING = 0.02
"""Relative decrease of the held-out loss over the last quarter of evaluations at which longer training is suggested."""
FEW_IMAGES = 10_000


def write_report(
    folder: Path,
    source: Source,
    encoder: EncoderFile,
    labeled: ProbeImages | None = None,
    seconds: float | None = None,
) -> Path:
    """Write summary.html, self-contained, into the folder of a finished run, atomically.

    ``labeled``: the images of the run's probes; ``seconds`` of training over all restarts, if known.
    """
    config, provenance = source.config, encoder.provenance
    display = Display(encoder.encoder.preprocessing.channel_names, config.shown)
    records, events = read_metrics(folder / METRICS_FILE), read_events(folder / EVENTS_FILE)
    broken = _broken_images(folder)
    html = render(
        Path(__file__).with_name("report.html.j2"),
        title=f"Pretraining: {public_name(config.out)}",
        headline=_headline(records, source),
        start=_start(config, source, provenance),
        probed=labeled is not None,
        understates=UNDERSTATES,
        notes=_notes(records, events, source, broken),
        figures=_figures(records, source, labeled),
        charts=_charts(records, source, labeled),
        pictures=_pictures(folder, source),
        shown=_shown(source, display),
        animation=_animation(folder, source),
        batch=None if (sheet := sheet_for_page(folder)) is None else data_url(*sheet),
        augmented=f"{source.config.crop.words(source.size)} {display.caption(source.channels)}".rstrip(),
        events=_event_table(events),
        kinds=dict(Counter(event.kind for event in events)),
        data=_data_table(source, broken),
        broken=broken[:LISTED],
        more_broken=max(0, len(broken) - LISTED),
        costs=_cost_table(records, provenance, seconds),
        next_steps=_next(config, folder / ENCODER_FILE),
        keys=keys_table(dict(flatten(public_config(to_dict(config))))),
        versions={"maelift": __version__, "python": platform.python_version(), **installed_versions(*LIBRARIES)},
        machine=describe_machine(),
    )
    path = folder / REPORT_FILE
    atomic_write_bytes(path, html.encode("utf-8", "replace"))  # file names need not be UTF-8
    return path


def _last(records: Sequence[Mapping[str, float]], name: str) -> float | None:
    found = points(records, name)
    return found[-1][1] if found else None


def _headline(records: Sequence[Mapping[str, float]], source: Source) -> str:
    loss = _last(records, "held_out/loss")
    if loss is not None:
        return f"Held-out masked loss {loss:.4f} on {len(source.held_out):,} images that were never trained on"
    training = _last(records, "train/loss")
    if training is None:
        return "No loss was recorded."
    return f"Training loss {training:.4f} at the end; no images were held out to compare it with"


def _start(config: PretrainConfig, source: Source, provenance: Provenance) -> str:
    height, width = source.size
    return (
        f"{config.model} at {height}×{width} pixels in {_channels(source.channels)}, {provenance.steps:,} steps of "
        f"{config.batch_size:,} images: {provenance.images_seen:,} seen, {len(source.pool):,} different ones, with "
        f"{config.masking.ratio:.0%} of the patches hidden."
    )


def _channels(count: int) -> str:
    return {1: "gray", 3: "colour"}.get(count, f"{count} channels")


def _notes(
    records: Sequence[Mapping[str, float]], events: Sequence[Event], source: Source, broken: Sequence[tuple[str, str]]
) -> list[str]:
    """Warnings for the reader."""
    notes = []
    counts = Counter(event.kind for event in events)
    if not len(source.held_out):
        notes.append(
            "No images were held out (holdout): whether the model generalises beyond its training images is unknown."
        )
    if counts["rewind"]:
        notes.append(
            f"The loss was not finite: the run went back to a checkpoint {_times(counts['rewind'])}; see Events."
        )
    elif counts["skip"]:
        notes.append(f"{counts['skip']:,} steps were skipped, as their loss or gradient was out of range; see Events.")
    share = _mean(records, "data_wait_share")
    if share is not None and share > WAIT_LIMIT:
        helps = (
            "see the warnings under Events"
            if counts["loader"]
            else "more workers, maelift data pack or crops_per_image help"
        )
        notes.append(f"{share:.0%} of the training time was spent waiting for images; {helps}.")
    if broken:
        what = "image is broken and was" if len(broken) == 1 else "images are broken and were"
        notes.append(f"{len(broken):,} {what} left out; see Data.")
    if len(source.pool) < FEW_IMAGES:
        notes.append(
            f"{len(source.pool):,} images are few to pretrain on: compare with a public encoder and with training from "
            "nothing before you rely on this one (maelift bench)."
        )
    held_out = [value for _, value in points(records, "held_out/loss")]
    if len(held_out) >= 8 and held_out[-1] < (1 - FALLING) * held_out[-1 - len(held_out) // 4]:
        notes.append("The held-out loss was still falling at the end: longer training (epochs) is worth a try.")
    if len(held_out) >= 4 and held_out[-1] > 1.02 * min(held_out):
        notes.append("The held-out loss has risen from its minimum: the model overfits to the images.")
    return notes


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _mean(records: Sequence[Mapping[str, float]], name: str) -> float | None:
    found = [value for _, value in points(records, name)]
    return sum(found) / len(found) if found else None


def _figures(records: Sequence[Mapping[str, float]], source: Source, labeled: ProbeImages | None) -> Table:
    """The last figures, with images and unit in each row."""
    unit, rows = loss_unit(source.config.norm_pix_loss), []
    wanted = [
        ("held-out loss", "held_out/loss", f"{len(source.held_out):,} held-out images, fixed masks", unit, 1.0, ".4f"),
        ("training loss", "train/loss", "one training batch, drawn masks", unit, 1.0, ".4f"),
    ]
    if labeled is not None:
        names = {"knn": "kNN probe", "linear": "linear probe", "attentive": "attentive probe"}
        of = f"{len(labeled.val):,} validation images, {len(labeled.train):,} labels"
        for kind in source.config.probe.kinds:
            wanted.append((names[kind], f"probe/{kind}_top1_val", of, "top-1 accuracy in %", 100.0, ".2f"))
    for title, name, of, measure, factor, form in wanted:
        value = _last(records, name)
        if value is not None:
            rows.append((title, format(factor * value, form), of, measure))
    return Table("Figures at the end of the run (1 seed)", ("figure", "value", "of", "unit"), tuple(rows))


def _charts(
    records: Sequence[Mapping[str, float]], source: Source, labeled: ProbeImages | None
) -> list[tuple[str, str, Markup]]:
    """The curves as (caption, description, inline SVG)."""
    probed = "" if labeled is None else f" ({labeled.words()}; {UNDERSTATES})"
    unit = loss_unit(source.config.norm_pix_loss)
    return [chart.inline() for chart in curve_charts(records, unit, len(source.held_out), probed)]


def _pictures(folder: Path, source: Source) -> list[tuple[str, str]]:
    """Pictures as (data URL, caption): the originals, the visible patches, reconstructions from the first to the last."""
    found = _saved_pictures(folder)
    steps = sorted(found)
    if not steps:
        return []
    chosen = sorted({steps[round(number * (len(steps) - 1) / max(1, TIMES - 1))] for number in range(TIMES)})
    strips: list[tuple[str, str]] = []
    for step in chosen:
        with Image.open(found[step]) as file:
            originals, masked, rebuilt = picture_columns(file.convert("RGB"), shown_count(source))
        if not strips:
            hidden = f"{source.config.masking.ratio:.0%} hidden"
            strips += [(_strip(originals), "The originals"), (_strip(masked), f"Visible to the encoder ({hidden})")]
        strips.append((_strip(rebuilt), f"Reconstructed after {step:,} steps"))
    return strips


def _saved_pictures(folder: Path) -> dict[int, Path]:
    """The pictures of reconstructions by step."""
    return {int(path.stem.removeprefix("step-")): path for path in (folder / PICTURE_FOLDER).glob("step-*.png")}


def _animation(folder: Path, source: Source) -> tuple[str, str, int] | None:
    """The animation of the reconstructions and its still as data URLs, and its number of pictures."""
    found = reconstruction_animation(_saved_pictures(folder), source)
    return None if found is None else (data_url(found.moving, "png"), data_url(found.still, "png"), found.frames)


def _strip(tiles: Sequence[Image.Image]) -> str:
    """Tiles in rows on white, as a data URL."""
    across = min(ACROSS, len(tiles))
    width, height = tiles[0].size
    scale = min(1.0, (STRIP_WIDTH - (across - 1) * GAP) / (across * width))
    width, height = max(1, round(scale * width)), max(1, round(scale * height))
    small = [tile if scale == 1 else tile.resize((width, height), Image.Resampling.BICUBIC) for tile in tiles]
    sheet = picture_grid(small, across, GAP)
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=88)
    return data_url(buffer.getvalue(), "jpeg")


def _shown(source: Source, display: Display) -> str:
    """A description of the pictures."""
    which = f"{shown_count(source)} images that were never trained on"
    if not len(source.held_out):
        which = f"{shown_count(source)} of the images that were trained on, as none were held out"
    text = f"{which}, the same masks each time. Visible patches are the original's."
    if source.config.norm_pix_loss:
        text += " Each hidden patch gets the brightness and contrast of the true one, which the model does not predict."
    return f"{text} {display.caption(source.channels)}".rstrip()


def _event_table(events: Sequence[Event]) -> Table | None:
    if not events:
        return None
    more = f" (the last {LISTED} of {len(events):,}; all are in {EVENTS_FILE})" if len(events) > LISTED else ""
    rows = tuple((f"{event.step:,}", event.kind, event.text) for event in events[-LISTED:])
    return Table(f"Events{more}", ("after step", "kind", "what"), rows)


def _broken_images(folder: Path) -> list[tuple[str, str]]:
    """The images that were left out, before or during training, with the reasons."""
    found: dict[str, str] = {}
    for name in ("rejected.csv", "quarantine.csv"):
        path = folder / name
        if path.exists():
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                found |= {row[0]: row[1] for row in list(csv.reader(file))[1:] if len(row) > 1}
    return list(found.items())


def _data_table(source: Source, broken: Sequence[tuple[str, str]]) -> Table:
    rows = (
        ("from", show(public_config({"data": source.config.data})["data"])),
        ("trained on", f"{len(source.pool):,}"),
        ("held out", f"{len(source.held_out):,}"),
        ("broken, left out", f"{len(broken):,}"),
        ("channels", _channels(source.channels)),
    )
    return Table("The images", ("what", "number"), rows)


def _cost_table(records: Sequence[Mapping[str, float]], provenance: Provenance, seconds: float | None) -> Table:
    on_gpu = provenance.gpu_hours > 0
    hours = provenance.gpu_hours if on_gpu else provenance.cpu_hours
    rows = [(f"{'GPU' if on_gpu else 'CPU'} hours, over all processes", f"{hours:.3f}")]
    if seconds is not None:
        rows.insert(0, ("time, with evaluations", duration(seconds)))
    for title, name, factor, unit in (
        ("throughput of training, mean", "images_per_second", 1.0, "images/s"),
        ("time waiting for images, mean", "data_wait_share", 100.0, "%"),
    ):
        if (mean := _mean(records, name)) is not None:
            rows.append((f"{title} ({unit})", f"{factor * mean:,.1f}"))
    for title, name in (("main process", "memory/cpu_peak_mib"), ("GPU", "memory/cuda_peak_mib")):
        if (peak := max((value for _, value in points(records, name)), default=None)) is not None:
            rows.append((f"peak memory, {title} (MiB)", f"{peak:,.0f}"))
    return Table("Cost", ("what", "value"), tuple(rows))


def _next(config: PretrainConfig, encoder: Path) -> list[tuple[str, str]]:
    """Next steps as (description, command), for the folder that the run's folder is in."""
    if encoder.is_absolute():
        encoder = Path(encoder.parent.name) / encoder.name
    file = shlex.quote(f"encoder={encoder}")
    return [
        (
            "Train a classifier on labelled images",
            f"maelift transfer classify {file} data=LABELLED_FOLDER out=FOLDER recipe=auto",
        ),
        ("Train a detector", f"maelift transfer detect {file} data=COCO_FOLDER out=FOLDER"),
        ("Train a segmentor", f"maelift transfer segment {file} data=MASKS_FOLDER out=FOLDER"),
        ("Reconstruct hidden parts of your own images", f"maelift reconstruct {file} images=IMAGES out=FOLDER"),
        ("Load it in another framework", f"maelift export {shlex.quote(str(encoder))} --to timm out=FOLDER"),
        ("Measure whether pretraining helps, with error bars", "maelift bench SUITE.yaml out=FOLDER"),
    ]
