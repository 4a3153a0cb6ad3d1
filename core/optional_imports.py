"""The optional frameworks: which versions the adapters need, how they are installed, and a clear line when they aren't."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from .errors import MaeliftError


@dataclass(frozen=True)
class Framework:
    """A framework that an adapter imports.

    ``distributions`` are the names that it is published under, any of which will do; ``minimum`` is the oldest version
    that has what the adapter uses; ``needs`` are modules that it does not work without; ``install`` says how to get it.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    minimum: str
    install: str
    needs: tuple[str, ...] = ()


_DETECTRON2 = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git' (docs/detectron2.md)"
)

FRAMEWORKS = {
    framework.name: framework
    for framework in (
        Framework("timm", "timm", ("timm",), "1.0.9", "pip install -U timm"),
        Framework("transformers", "transformers", ("transformers",), "4.48", "pip install -U 'transformers>=4.48'"),
        Framework("torchvision", "torchvision", ("torchvision",), "0.21", "pip install -U torchvision"),
        Framework(
            "detectron2",
            "detectron2",
            ("detectron2", "sal-detectron2"),
            "0.6",
            _DETECTRON2,
            needs=("detectron2.modeling", "cv2"),
        ),
        Framework(
            "mmseg",
            "mmseg",
            ("onedl-mmsegmentation", "mmsegmentation"),
            "1.0",
            "pip install onedl-mmsegmentation onedl-mmcv onedl-mmengine tifffile",
            needs=("mmseg.models",),
        ),
        Framework("onnx", "onnx", ("onnx",), "1.17", "pip install -U onnx onnxruntime", needs=("onnxruntime",)),
        Framework("peft", "peft", ("peft",), "0.13", "pip install -U peft"),
        Framework("pyarrow", "pyarrow", ("pyarrow",), "15", "pip install -U pyarrow"),
        Framework("ray", "ray", ("ray",), "2.9", "pip install -U ray"),
        Framework("submitit", "submitit", ("submitit",), "1.5", "pip install -U submitit"),
        Framework("webdataset", "webdataset", ("webdataset",), "0.2.86", "pip install -U webdataset"),
        Framework("wandb", "wandb", ("wandb",), "0.17", "pip install -U wandb"),
    )
}
"""The frameworks that are used when someone asks for them, by the name that the command line knows them by."""


def require(name: str) -> ModuleType:
    """Import a framework; raises MaeliftError when it isn't there, is too old, or doesn't import."""
    framework = FRAMEWORKS[name]
    if (fault := too_old(framework)) is not None:
        raise MaeliftError(fault)
    for module in (framework.module, *framework.needs):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):
                raise MaeliftError(f"{module} is not installed here. Install it: {framework.install}") from error
            raise _broken(module, error, framework) from error
        except Exception as error:  # whatever a broken installation raises, it is not the user's traceback to read
            raise _broken(module, error, framework) from error
    return importlib.import_module(framework.module)


def too_old(framework: Framework) -> str | None:
    """What is wrong with the installed version, if it is older than the adapter can use."""
    version = installed_version(framework.distributions)
    if version is None or _numbers(version) >= _numbers(framework.minimum):
        return None
    return f"{framework.name} {version} is installed; expected {framework.minimum} or newer. Update it: {framework.install}"


def versions(*distributions: str) -> dict[str, str]:
    """The installed versions of these distributions; those that aren't there are left out."""
    found = {name: installed_version([name]) for name in distributions}
    return {name: version for name, version in found.items() if version is not None}


def installed_version(distributions: Iterable[str]) -> str | None:
    """The version of the first of these distributions that is installed."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _broken(module: str, error: Exception, framework: Framework) -> MaeliftError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MaeliftError(f"{module} is installed, but does not import ({reason}). Mend it: {framework.install}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
