"""accumulate=auto: the fewest passes that fit, simulated on a CPU by a model that has too little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from maelift.core.config import resolve
from maelift.core.distributed import Ranks
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.encoder_spec import preset_spec
from maelift.pretrain.auto_accumulate import _fits, auto_accumulate, fewest_passes
from maelift.pretrain.config import PretrainConfig
from maelift.pretrain.mae import LossOutput, MaskedAutoencoder
from maelift.tests.support import TINY, one_line_error, run_maelift, write_images
from torch import Tensor

CPU = Ranks(0, 1, torch.device("cpu"))
CONFIG = resolve(PretrainConfig, ["data=x", "out=y", *TINY, "accumulate=auto", "batch_size=24"])


class Cramped(MaskedAutoencoder):
    """A model whose device takes no more than some images at once."""

    room = 5

    def forward(  # type: ignore[override]
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None
    ) -> LossOutput:
        if len(images) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().forward(images, mask_ratio, noise)


def cramped() -> Cramped:
    return Cramped(preset_spec("vit_nano", image_size=16, patch_size=4), CONFIG.decoder)


def test_the_fewest_passes_that_fit_are_found_and_nothing_is_left_behind() -> None:
    model = cramped()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    assert fewest_passes(24, lambda images: _fits(model, images, CONFIG, CPU.device), CPU) == 6
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("share", "room", "passes"), [(7, 7, 1), (7, 6, 7), (12, 4, 3), (12, 5, 3), (1, 1, 1)])
def test_passes_are_of_equal_size(share: int, room: int, passes: int) -> None:
    assert fewest_passes(share, lambda images: images <= room, CPU) == passes


def test_where_nothing_fits_it_is_said() -> None:
    with pytest.raises(MaeliftError, match="not even a single image fits"):
        fewest_passes(4, lambda images: False, CPU)


def test_a_cpu_makes_one_pass() -> None:
    assert auto_accumulate(cramped(), CONFIG, CPU) == 1


def test_other_words_are_refused() -> None:
    for wrong in ("accumulate=0", "accumulate=-2", "accumulate=often"):
        with pytest.raises(ConfigError, match="accumulate"):
            resolve(PretrainConfig, ["data=x", "out=y", wrong])


@pytest.mark.slow
def test_a_run_takes_it(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 24)
    words = [f"data={tmp_path / 'data'}", *TINY, "epochs=1", "accumulate=auto"]
    done = run_maelift("pretrain", *words, f"out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    plan = run_maelift("pretrain", *words, f"out={tmp_path / 'other'}", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    one_line_error(run_maelift("pretrain", *words[:-1], "accumulate=3", f"out={tmp_path / 'x'}"), "a multiple of 3")
