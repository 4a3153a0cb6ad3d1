"""A package that can be called by the function of its name: ``maelift.pretrain`` is both a folder and a function."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that can be called by the function of its name.

    ``maelift.pretrain`` is both the command as a function and the folder of the stage. Importing the folder would hide a
    function of that name, in an order that nobody controls; so the folder itself is callable.
    """

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        """Call the function of this package's name in ``api``."""
        root, _, name = self.__name__.rpartition(".")
        return getattr(importlib.import_module(f"{root}.api"), name)(*arguments, **keys)


def make_callable(package: str) -> None:
    """Let the package, imported under this name, be called."""
    sys.modules[package].__class__ = CallablePackage
