"""Parameter groups with layer-wise learning-rate decay, and LARS (MAE, Appendix A)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models.encoder_spec import layer_index

NO_DECAY = ("pos_embed", "cls_token", "dist_token")
"""Parameters with more than one axis that get no weight decay (fine-tuning, as in BEiT and MAE)."""


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    depth: int = 0,
    layer_decay: float = 1.0,
    prefix: str = "encoder.",
    no_decay: tuple[str, ...] = NO_DECAY,
    layer_of: Callable[[str], int] | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, each with ``lr_scale``, ``weight_decay`` and the ``names`` of its parameters.

    The encoder's parameters are those whose names begin with ``prefix`` (or have none); all others are treated as above its
    last block. The rate of layer l of L = depth + 1 is scaled by ``layer_decay ** (L - l)``; vectors, biases and the parameters
    named in ``no_decay`` get no weight decay. Frozen parameters are left out. ``layer_of``: the layer of a parameter of the
    encoder by its name; None: that of a plain ViT with ``depth`` blocks.
    """
    layer_of = layer_of or partial(layer_index, depth=depth)
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        bare = name.removeprefix(prefix)
        layer = layer_of(bare) if layer_decay != 1.0 else depth + 1
        decay = 0.0 if parameter.ndim <= 1 or bare in no_decay else weight_decay
        group = groups.setdefault(
            (layer, decay),
            {"lr_scale": layer_decay ** (depth + 1 - layer), "weight_decay": decay, "names": [], "params": []},
        )
        group["names"].append(name)
        group["params"].append(parameter)
    return list(groups.values())


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class Lars(torch.optim.Optimizer):
    """LARS (You et al., 2017), the optimiser of MAE's linear probe (Appendix A.1, Table 10).

    Momentum on gradients that are scaled, weight by weight, by ``trust_coefficient`` times the ratio of the norms of
    weight and update. Vectors and biases get neither the scaling nor weight decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        update = gradient
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            weight_norm, update_norm = parameter.norm(), update.norm()
            usable = (weight_norm > 0) & (update_norm > 0)
            ratio = torch.where(usable, group["trust_coefficient"] * weight_norm / update_norm, 1.0)
            update = update * ratio
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.mul_(group["momentum"]).add_(update)
        parameter.add_(momentum, alpha=-group["lr"])
