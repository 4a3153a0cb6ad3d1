"""Exports to ONNX: the encoder as one graph for onnxruntime, TensorRT or OpenVINO, with normalisation inside."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile, Provenance, contract_text, encoder_hash, read_contract
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.models.stored_contract import CONTRACT_KEY
from ..core.optional_imports import require
from .bundle import Bundle, ExportConfig, at_size
from .certificate import Certificate, Keys
from .onnx_graph import PREPARED, data_file, in_float32, write_graph
from .parity import Candidate, Level, Pixels, certificate_sizes, compare_keys, measure_parity

GRAPH_FILE = "encoder.onnx"
MISSING = {
    r"graph\.pixel_.*": "mean and deviation, from the encoder file's contract",
    r"graph\..*": "sizes and scalars of the graph",
}
USAGE = """\
import numpy as np, onnxruntime                        # neither torch nor maelift
session = onnxruntime.InferenceSession("{out}/encoder.onnx")
images = np.zeros((1, {channels}, {height}, {width}), np.float32)  # {meaning}
{outputs} = session.run([{names}], {{"images": images}})"""


@dataclass(frozen=True)
class OnnxExport(ExportConfig):
    """A graph for onnxruntime, TensorRT, OpenVINO, in which images can be normalised too."""

    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width], to resize the positions to; null: as trained"""
    patch_size: int | None = None
    """pixels a side of a patch, to resample the patch kernel to; null: as trained"""
    dynamic_size: bool = True
    """take images of any size that the patch divides; false: of image_size only, for runtimes that need fixed shapes"""
    normalize: bool = True
    """take stored pixel values (0 to 255, as float32) and normalise in the graph; false: take normalised images"""


def export(file: EncoderFile, folder: Path, config: OnnxExport) -> Bundle:
    """Write ``encoder.onnx``, beside it ``encoder.onnx.data`` from 1.9 GB on; raises ConfigError for sizes."""
    encoder = at_size(file.encoder, config.image_size, config.patch_size)
    path = folder / GRAPH_FILE
    certificate = _write_and_certify(
        encoder,
        path,
        file.provenance,
        file.content_hash,
        normalize=config.normalize,
        dynamic_size=config.dynamic_size,
    )
    files = {GRAPH_FILE: "the graph, its weights under the encoder file's names, and the contract in its metadata"}
    if data_file(path).exists():
        files[data_file(path).name] = "weights; keep it beside the graph"
    sizes = "any size that the patch divides" if config.dynamic_size else "this size only"
    note = f"images: float32 (batch, {encoder.spec.channels}, height, width), {sizes}"
    spec, normalised = encoder.spec, None if config.normalize else "the contract in the metadata says"
    names = (["class_token"] if spec.class_token else []) + ["tokens", "pooled"]
    return Bundle(files, certificate, usage(USAGE, spec, encoder.preprocessing, names, normalised), (note,))


def to_onnx(
    encoder: Encoder,
    path: str | Path,
    *,
    normalize: bool = True,
    dynamic_size: bool = True,
    provenance: Provenance | None = None,
) -> Certificate:
    """Write an encoder as an ONNX graph and certify it; nothing is written when the certificate fails.

    Input ``images``, float32 (B, C, H, W): stored pixel values, or normalised ones without ``normalize``. Outputs
    ``tokens`` (B, N, D) and ``class_token`` (B, D), where there is one, after the norm, and ``pooled`` (B, D), the mean
    of the tokens. Without ``dynamic_size``, images of the encoder's own size only. Raises CheckpointError.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
        written = Path(folder) / path.name
        certificate = _write_and_certify(
            encoder,
            written,
            provenance or Provenance(method=""),
            encoder_hash(encoder),
            normalize=normalize,
            dynamic_size=dynamic_size,
        )
        certificate.check()
        for file in (data_file(written), written):  # the graph last: it needs the other
            if file.exists():
                os.replace(file, path.with_name(file.name))
    return certificate


def certify_folder(path: Path, file: EncoderFile) -> Certificate:
    """Compare an exported graph, or the one in a folder, with the encoder file, whose positions it may have resized.

    Raises CheckpointError for a file that isn't ONNX, or that no export wrote.
    """
    require("onnx")
    path = path / GRAPH_FILE if path.is_dir() else path
    spec = LoadedGraph(path).spec
    return certify_file(path, at_size(file.encoder, spec.image_size, spec.patch_size), file.content_hash)


def certify_file(path: Path, encoder: Encoder, digest: str) -> Certificate:
    """Compare a written graph, as onnxruntime loads it, with the encoder; ``digest`` is the encoder file's hash."""
    graph = LoadedGraph(path)
    sizes = [graph.image_size] if graph.image_size else certificate_sizes(encoder.spec)
    reference = in_float32(encoder)
    keys = _keys(graph, reference)
    return measure_parity(
        lambda size: _candidate(graph, reference, keys),
        sizes,
        framework="onnx",
        encoder=digest,
        distributions=["onnx", "onnxruntime"],
    )


def _write_and_certify(
    encoder: Encoder, path: Path, provenance: Provenance, digest: str, *, normalize: bool, dynamic_size: bool
) -> Certificate:
    require("onnx")
    contract = contract_text(encoder, provenance, digest)
    write_graph(encoder, path, contract, normalize=normalize, dynamic_size=dynamic_size)
    return certify_file(path, encoder, digest)


class LoadedGraph:
    """A graph file in onnxruntime, on the CPU, with its metadata.

    ``image_size`` (height, width) is None where both are free; ``normalizes``: it takes stored pixel values.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        self.path = path
        try:
            self.session = session(str(path))
        except Exception as error:  # onnxruntime's errors have no class in common but this
            raise CheckpointError(
                f"{path}: no graph that onnxruntime can read ({str(error).splitlines()[0]})."
            ) from error
        contract = self.session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
        if contract is None:
            raise CheckpointError(
                f"{path}: no graph that maelift export wrote: there is no '{CONTRACT_KEY}' in its metadata."
            )
        _, spec, self.preprocessing, _ = read_contract(path, contract)
        if not isinstance(spec, EncoderSpec):
            raise CheckpointError(
                f"{path}: a graph of another architecture than a plain ViT. Expected one of maelift export."
            )
        self.spec = spec
        self.outputs = [output.name for output in self.session.get_outputs()]
        height, width = self.session.get_inputs()[0].shape[2:]
        self.image_size = (height, width) if isinstance(height, int) else None
        self.structure = onnx.load(str(path), load_external_data=False)
        self.normalizes = any(PREPARED in node.output for node in self.structure.graph.node)
        self._normalizing = session(self._head().SerializeToString()) if self.normalizes else None

    def prepare(self, stored: Sequence[Pixels]) -> Tensor:
        """Normalised images (B, C, H, W): by the graph's own first nodes, or as its metadata define."""
        images = _batch(stored)
        if self._normalizing is not None:
            return torch.from_numpy(self._normalizing.run([PREPARED], {"images": images})[0])
        mean, std = (
            np.asarray(values, np.float32).reshape(-1, 1, 1)
            for values in (self.preprocessing.pixel_mean, self.preprocessing.pixel_std)
        )
        return torch.from_numpy((images - mean) / std)

    def features(self, images: NDArray[np.float32]) -> list[Tensor]:
        """All tokens and the pooled ones of the input (B, C, H, W), as one batch; all tokens of one image at a time."""
        single = [self._tokens(images[number : number + 1])[0] for number in range(len(images))]
        tokens, pooled = self._tokens(images)
        return [tokens, pooled[:, None], torch.cat(single)]

    def _tokens(self, images: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        found = dict(zip(self.outputs, map(torch.from_numpy, self.session.run(None, {"images": images})), strict=True))
        tokens = found["tokens"]
        if "class_token" in found:
            tokens = torch.cat([found["class_token"][:, None], tokens], dim=1)
        return tokens, found["pooled"]

    def _head(self) -> Any:
        """The nodes up to the normalised images, as a model."""
        from onnx import TensorProto, helper

        graph = self.structure.graph
        last = next(number for number, node in enumerate(graph.node) if PREPARED in node.output)
        nodes = graph.node[: last + 1]
        used = {name for node in nodes for name in node.input}
        constants = [tensor for tensor in graph.initializer if tensor.name in used]
        output = helper.make_tensor_value_info(PREPARED, TensorProto.FLOAT, None)
        model = helper.make_model(
            helper.make_graph(nodes, "normalizing", graph.input, [output], constants),
            opset_imports=self.structure.opset_import,
        )
        model.ir_version = self.structure.ir_version
        return model

    def tensors(self) -> dict[str, Tensor]:
        """The graph's constants by name, as the file holds them."""
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(self.path)).graph
        return {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}

    def epsilons(self) -> list[float]:
        """The epsilon of every LayerNorm."""
        nodes = (node for node in self.structure.graph.node if node.op_type == "LayerNormalization")
        return [next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5) for node in nodes]


def _candidate(graph: LoadedGraph, encoder: Encoder, keys: Keys) -> Candidate:
    last, with_class = encoder.spec.depth - 1, encoder.spec.class_token
    return Candidate(
        reference=encoder,
        levels=(
            Level("all tokens" if with_class else "tokens", last, normed=True, prefix=with_class),
            Level("pooled", last, normed=True, pooled=True),
            Level("one image at a time", last, normed=True, prefix=with_class),
        ),
        keys=keys,
        prepare=graph.prepare,
        features=lambda images: graph.features(images.numpy()),
        from_stored=(lambda stored: graph.features(_batch(stored))) if graph.normalizes else None,
        precisions=(torch.float32,),
    )


def _keys(graph: LoadedGraph, encoder: Encoder) -> Keys:
    """How the tensors match; also a wrong epsilon, which features in float32 hardly show."""
    keys = compare_keys(encoder, encoder.state_dict(), graph.tensors(), unused={}, missing=MISSING)
    expected = encoder.spec.norm_eps
    wrong = [eps for eps in graph.epsilons() if not math.isclose(eps, expected, rel_tol=1e-6)]
    if not wrong:
        return keys
    reason = f"an epsilon of {wrong[0]:g}, where the encoder has {expected:g}"
    return replace(keys, wrong={**keys.wrong, "LayerNormalization": reason})


def session(model: str | bytes) -> Any:
    """A graph in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _batch(stored: Sequence[Pixels]) -> NDArray[np.float32]:
    return np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) for image in stored])


def usage(
    template: str, spec: EncoderSpec, preprocessing: Preprocessing, outputs: Sequence[str], normalised: str | None
) -> str:
    """How a graph is run: ``template`` with sizes, channels, outputs and the meaning of the input values.

    ``normalised`` says by what they are to be normalised; None: the graph does it, and they are stored values.
    """
    low, high = preprocessing.value_range
    values = f"stored values, {low:g} to {high:g}" if normalised is None else f"normalised as {normalised}"
    return template.format(
        out="{out}",
        channels=spec.channels,
        height=spec.image_size[0],
        width=spec.image_size[1],
        meaning=f"{values}; channels {', '.join(preprocessing.channel_names)}",
        outputs=", ".join(outputs),
        names=", ".join(f'"{name}"' for name in outputs),
    )
