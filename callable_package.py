"""A package that can be called by the function of its name: ``maelift.pretrain`` is both a folder and a function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that can be called, and is described, by the function of its name in ``api``.

    ``maelift.pretrain`` is both the command as a function and the folder of the stage. Importing the folder would hide a
    function of that name, in an order that nobody controls; so the folder itself is callable.
    """

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        """Call the function."""
        return _function(self)(*arguments, **keys)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's, for ``inspect.signature`` and the completion of keys."""
        return inspect.signature(_function(self))

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """The function's, for ``help``."""
        found = _function(self)
        return f"{found.__name__}{inspect.signature(found)}\n\n{found.__doc__}"


def make_callable(package: str) -> None:
    """Let the package, imported under this name, be called."""
    sys.modules[package].__class__ = CallablePackage


def _function(package: ModuleType) -> Callable[..., Any]:
    root, _, name = package.__name__.rpartition(".")
    found: Callable[..., Any] = importlib.import_module(f"{root}.api").function(name)
    return found
