"""Batches: each image once an epoch, and the same global batches however they are split, loaded or gone on with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maelift.core.batches import Batch, Batches, Order, Sample, Uniforms
from maelift.core.config import DataError
from maelift.core.distributed import Ranks


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
        batches = Batches(Order(7, 8, seed), make, draws=2, ranks=ranks, accumulate=accumulate, workers=workers)
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
    order = Order(length, batch_size, seed=0)
    images = np.concatenate([order.batch(step) for step in range(6 * length)])
    epochs = images.reshape(-1, length)
    assert (np.sort(epochs, axis=1) == np.arange(length)).all()
    assert length == 1 or len({tuple(epoch) for epoch in epochs}) > 1
    assert (Order(length, batch_size, seed=0).batch(5) == order.batch(5)).all()


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
    assert list(Batches(Order(7, 8, 3), make, draws=2, ranks=Ranks(0, 1, torch.device("cpu"))).steps(5, 5)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_told_in_one_line_by_workers_too(workers: int) -> None:
    def fail(index: int, draws: Uniforms) -> Sample:
        raise DataError("photo.png: gone")

    ranks = Ranks(0, 1, torch.device("cpu"))
    batches = Batches(Order(4, 2, 0), fail, draws=1, ranks=ranks, workers=workers)
    with pytest.raises(DataError) as caught:
        next(batches.steps(0, 2))
    assert str(caught.value) == "photo.png: gone"
