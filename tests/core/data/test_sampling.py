"""Batches: each image once an epoch, and the same global batches however they are split, loaded or gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from maelift.core.data.sampling import Sample, Sampler, Uniforms, each
from maelift.core.distributed import Ranks
from maelift.core.errors import DataError
from maelift.core.training.loader import Batch, Batches, Quarantine


def make(index: int, draws: Uniforms) -> Sample:
    """An image that tells its number and its draws, and has as many boxes as its number."""
    return Sample(np.array([[[index, *draws]]], dtype=np.float32), {"boxes": np.full((index, 4), index)})


def global_batches(
    first: int, last: int, *, world_size: int = 1, accumulate: int = 1, workers: int = 0, seed: int = 3
) -> torch.Tensor:
    """The pixels of the global batches (steps, batch, 3), put together from all processes and passes."""
    rows: dict[int, list[tuple[tuple[int, int], Batch]]] = {}
    for rank in range(world_size):
        ranks = Ranks(rank, world_size, torch.device("cpu"))
        batches = Batches(Sampler(7, 8, seed), each(make), draws=2, ranks=ranks, accumulate=accumulate, workers=workers)
        for together in batches.steps(first, last):
            assert len(together) == accumulate
            for batch in together:
                assert torch.equal(batch.pixels[:, 0, 0, 0].long(), batch.indices)
                assert [target["boxes"].sum() for target in batch.targets] == [4 * i * i for i in batch.indices]
                rows.setdefault(batch.step, []).append((batch.rows, batch))
    result = []
    for step in range(first, last):
        parts = sorted(rows[step], key=lambda part: part[0])
        covered = [row for (start, stop), _ in parts for row in range(start, stop)]
        assert covered == list(range(8))
        result.append(torch.cat([batch.pixels[:, 0, 0] for _, batch in parts]))
    return torch.stack(result)


@pytest.mark.parametrize(("length", "batch_size"), [(7, 3), (6, 3), (3, 8), (1, 4)])
def test_every_epoch_holds_each_image_once(length: int, batch_size: int) -> None:
    order = Sampler(length, batch_size, seed=0)
    images = np.concatenate([order.batch(step) for step in range(6 * length)])
    epochs = images.reshape(-1, length)
    assert (np.sort(epochs, axis=1) == np.arange(length)).all()
    assert length == 1 or len({tuple(epoch) for epoch in epochs}) > 1
    assert (Sampler(length, batch_size, seed=0).batch(5) == order.batch(5)).all()


def test_seeds_give_other_orders_and_draws() -> None:
    assert not torch.equal(global_batches(0, 3, seed=3), global_batches(0, 3, seed=4))
    draws = global_batches(0, 3)[:, :, 1:]
    assert len(np.unique(draws.numpy())) == draws.numel()


@pytest.mark.parametrize(("world_size", "accumulate", "workers"), [(2, 1, 0), (1, 4, 0), (2, 2, 0), (1, 1, 2)])
def test_processes_passes_and_workers_do_not_change_the_batches(world_size: int, accumulate: int, workers: int) -> None:
    split = global_batches(0, 4, world_size=world_size, accumulate=accumulate, workers=workers)
    assert torch.equal(split, global_batches(0, 4))


def test_a_later_start_gives_the_batches_that_were_left() -> None:
    assert torch.equal(global_batches(2, 5, workers=1), global_batches(0, 5)[2:])
    assert (
        list(Batches(Sampler(7, 8, 3), each(make), draws=2, ranks=Ranks(0, 1, torch.device("cpu"))).steps(5, 5)) == []
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_told_in_one_line_by_workers_too(workers: int) -> None:
    def fail(index: int, draws: Uniforms) -> Sample:
        raise DataError("photo.png: gone")

    ranks = Ranks(0, 1, torch.device("cpu"))
    batches = Batches(Sampler(4, 2, 0), each(fail), draws=1, ranks=ranks, workers=workers)
    with pytest.raises(DataError) as caught:
        next(batches.steps(0, 2))
    assert str(caught.value) == "photo.png: gone"


def crops_of(steps: range, crops: int, *, world_size: int = 1, accumulate: int = 1) -> tuple[torch.Tensor, list[int]]:
    """The pixels of the global batches, and which images were opened, with several crops an image."""
    opened: list[int] = []

    def several(index: int, draws: Uniforms) -> list[Sample]:
        opened.append(index)
        return [make(index, row) for row in draws]

    rows: dict[tuple[int, int], torch.Tensor] = {}
    for rank in range(world_size):
        ranks = Ranks(rank, world_size, torch.device("cpu"))
        batches = Batches(
            Sampler(7, 12 // crops, 3), several, draws=2, ranks=ranks, accumulate=accumulate, crops_per_image=crops
        )
        for together in batches.steps(steps.start, steps.stop):
            rows.update({(batch.step, batch.rows[0]): batch.pixels[:, 0, 0] for batch in together})
    return torch.cat([rows[place] for place in sorted(rows)]), opened


def test_crops_of_one_decode_have_draws_of_their_own_and_every_epoch_holds_each_image_once() -> None:
    pixels, opened = crops_of(range(7), 4)
    assert len(opened) == 7 * 3 and sorted(opened[:7]) == list(range(7))
    numbers = pixels[:, 0].long().reshape(-1, 4)
    assert (numbers == numbers[:, :1]).all()
    assert len(np.unique(pixels[:, 1:].numpy())) == pixels[:, 1:].numel()


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 4), (2, 3), (1, 6)])
def test_crops_of_one_decode_may_be_split_between_processes(world_size: int, accumulate: int) -> None:
    split, _ = crops_of(range(4), 4, world_size=world_size, accumulate=accumulate)
    assert torch.equal(split, crops_of(range(4), 4)[0])


def quarantined(
    path: Path, broken: set[int], *, workers: int = 0, world_size: int = 1, first: int = 0, max_rejected: float = 0.5
) -> tuple[torch.Tensor, list[str]]:
    """The pixels of the global batches 5 to ``first`` out of 7 images, of which some are broken; and what was told."""

    def fragile(index: int, draws: Uniforms) -> Sample:
        if index in broken:
            raise DataError(f"image{index}: no image")
        return make(index, draws)

    rows: dict[tuple[int, int], torch.Tensor] = {}
    told: list[str] = []
    for rank in range(world_size):
        ranks = Ranks(rank, world_size, torch.device("cpu"))
        quarantine = Quarantine(path, 7, lambda index: f"image{index}", max_rejected)
        quarantine.report = lambda step, text: told.append(text)
        batches = Batches(
            Sampler(7, 8, 3), each(fragile), draws=2, ranks=ranks, workers=workers, quarantine=quarantine
        )  # fmt: skip
        for (batch,) in batches.steps(first, 5):
            assert torch.equal(batch.pixels[:, 0, 0, 0].long(), batch.indices)
            rows[batch.step, batch.rows[0]] = batch.pixels[:, 0, 0]
    return torch.cat([rows[place] for place in sorted(rows)]), told


def test_the_next_sound_image_stands_in_for_a_broken_one_with_its_draws(tmp_path: Path) -> None:
    whole, told = quarantined(tmp_path / "none.csv", set())
    assert not told and not (tmp_path / "none.csv").exists()
    mended, told = quarantined(tmp_path / "q.csv", {2, 3, 6})
    replaced = {2: 4, 3: 4, 6: 0}
    expected = torch.tensor([replaced.get(int(number), int(number)) for number in whole[:, 0]])
    assert torch.equal(mended[:, 0].long(), expected)
    assert torch.equal(mended[:, 1:], whole[:, 1:])
    assert len(told) == 3 and all("no image" in text for text in told)
    lines = (tmp_path / "q.csv").read_text().splitlines()
    assert lines[0] == "path,reason" and sorted(lines[1:]) == [f"image{n},no image" for n in (2, 3, 6)]


@pytest.mark.parametrize(("workers", "world_size"), [(2, 1), (0, 2)])
def test_what_stands_in_is_the_same_whoever_loads_it_and_after_a_restart(
    tmp_path: Path, workers: int, world_size: int
) -> None:
    whole, _ = quarantined(tmp_path / "one.csv", {2, 3, 6})
    split, told = quarantined(tmp_path / "two.csv", {2, 3, 6}, workers=workers, world_size=world_size)
    assert torch.equal(split, whole)
    assert len(told) == 3 and len((tmp_path / "two.csv").read_text().splitlines()) == 4
    rest, told = quarantined(tmp_path / "two.csv", {2, 3, 6}, workers=workers, world_size=world_size, first=2)
    assert torch.equal(rest, whole[16:])
    assert not told and len((tmp_path / "two.csv").read_text().splitlines()) == 4


def test_too_many_broken_images_end_the_run_and_all_of_them_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"max_rejected=0.3 allows; see .*q.csv"):
        quarantined(tmp_path / "q.csv", {2, 3, 6}, max_rejected=0.3)
    with pytest.raises(DataError, match=r"7 images in a row can't be opened \(image\d: no image\)"):
        quarantined(tmp_path / "all.csv", set(range(7)), max_rejected=1.0)
