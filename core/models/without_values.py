"""Models without values: built on the meta device for their shapes alone, without their random initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

_IN_PLACE = frozenset(
    {
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.erfinv_,
        Tensor.mul_,
        Tensor.add_,
        Tensor.clamp_,
        Tensor.fill_,
        Tensor.zero_,
    }
)
"""Operations that change values and nothing else."""


class _Uninitialized(TorchFunctionMode):
    """Skips operations in place on tensors without values: torch computes their shapes in Python, which takes long."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _IN_PLACE and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def limited_parameters(most: int, error: Exception) -> Iterator[None]:
    """Within it, ``error`` is raised as soon as modules have had more parameters made than ``most``, however large they are."""
    made = 0

    def count(module: nn.Module, name: str, parameter: object) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise error

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_values() -> Iterator[None]:
    """Within it, modules and tensors are made on the meta device, and their initialisation takes no time."""
    with torch.device("meta"), _Uninitialized():
        yield
