"""ONNX: the encoder as one graph, for onnxruntime, TensorRT, OpenVINO and others; it can normalise images itself."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import CONTRACT_KEY, EncoderFile, Provenance, contract_text, encoder_hash, read_contract
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.optional_imports import require
from .bundle import Bundle, ExportConfig, at_size
from .certificate import Candidate, Certificate, Keys, Level, Pixels, certificate_sizes, certify, compare_keys

GRAPH_FILE = "encoder.onnx"
OPSET, IR_VERSION = 17, 8
"""The oldest with LayerNormalization; readable from onnxruntime 1.13 on."""
INLINE_BYTES = 1_900_000_000
"""Weights of more bytes go into a file beside the graph: a protobuf message ends at 2 GiB."""
OWN = "graph."
"""How the names of the graph's own constants begin; the encoder's tensors have the names of the encoder file."""
PREPARED = "prepared"
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
    """Hold an exported graph, or the one in a folder, against the encoder file, whose positions it may have resized.

    Raises CheckpointError for a file that isn't ONNX, or that no export wrote.
    """
    require("onnx")
    path = path / GRAPH_FILE if path.is_dir() else path
    spec = LoadedGraph(path).spec
    return certify_file(path, at_size(file.encoder, spec.image_size, spec.patch_size), file.content_hash)


def certify_file(path: Path, encoder: Encoder, digest: str) -> Certificate:
    """Hold a written graph, as onnxruntime loads it, against the encoder; ``digest`` is the encoder file's hash."""
    graph = LoadedGraph(path)
    sizes = [graph.image_size] if graph.image_size else certificate_sizes(encoder.spec)
    reference = _in_float32(encoder)
    keys = _keys(graph, reference)
    return certify(
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
    """A graph file in onnxruntime, on the CPU, and what its metadata say.

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
        _, self.spec, self.preprocessing, _ = read_contract(path, contract)
        self.outputs = [output.name for output in self.session.get_outputs()]
        height, width = self.session.get_inputs()[0].shape[2:]
        self.image_size = (height, width) if isinstance(height, int) else None
        self.structure = onnx.load(str(path), load_external_data=False)
        self.normalizes = any(PREPARED in node.output for node in self.structure.graph.node)
        self._normalizing = session(self._head().SerializeToString()) if self.normalizes else None

    def prepare(self, stored: Sequence[Pixels]) -> Tensor:
        """Normalised images (B, C, H, W): by the graph's own first nodes, or by what its metadata say."""
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
    """What became of the tensors; a wrong epsilon too, which features in float32 hardly show."""
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


def _in_float32(encoder: Encoder) -> Encoder:
    """The encoder in float32 on the CPU: itself where it is there already."""
    if encoder.pos_embed.dtype == torch.float32 and encoder.pos_embed.device.type == "cpu":
        return encoder
    return copy.deepcopy(encoder).float().cpu()


def _batch(stored: Sequence[Pixels]) -> NDArray[np.float32]:
    return np.stack([np.asarray(picture, np.float32).transpose(2, 0, 1) for picture in stored])


def data_file(path: Path) -> Path:
    """Where the weights of a large graph are."""
    return path.with_name(f"{path.name}.data")


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


def write_graph(encoder: Encoder, path: Path, contract: str, *, normalize: bool, dynamic_size: bool) -> None:
    """Write the encoder's graph, with ``contract`` in its metadata; the inputs and outputs are those of ``to_onnx``."""
    encoder = _in_float32(encoder)
    nodes = Nodes({name: tensor.numpy() for name, tensor in encoder.state_dict().items()})
    network(nodes, encoder, normalize=normalize, dynamic_size=dynamic_size)
    sides: list[str | int] = ["height", "width"] if dynamic_size else list(encoder.spec.image_size)
    patches = "patches" if dynamic_size else encoder.spec.num_patches
    dim = encoder.spec.embed_dim
    shapes: dict[str, list[str | int]] = {"class_token": ["batch", dim]} if encoder.spec.class_token else {}
    shapes |= {"tokens": ["batch", patches, dim], "pooled": ["batch", dim]}
    save_graph(
        nodes,
        path,
        name="encoder",
        images=["batch", encoder.spec.channels, *sides],
        outputs=shapes,
        metadata={CONTRACT_KEY: contract},
        meaning=_meaning(encoder, normalize),
        output_meaning="after the final norm",
    )


def save_graph(
    nodes: Nodes,
    path: Path,
    *,
    name: str,
    images: Sequence[str | int],
    outputs: Mapping[str, Sequence[str | int]],
    metadata: Mapping[str, str],
    meaning: str = "",
    output_meaning: str = "",
    whole_numbers: Sequence[str] = (),
) -> None:
    """Write nodes as a graph with the input ``images`` and the ``outputs``, of these shapes; large weights beside it.

    Outputs among ``whole_numbers`` are int64, the others float32.
    """
    import onnx
    from onnx import TensorProto, helper

    kinds = {name: TensorProto.INT64 for name in whole_numbers}
    model = helper.make_model(
        helper.make_graph(
            nodes.nodes,
            name,
            [_value("images", images, meaning)],
            [_value(key, shape, output_meaning, kinds.get(key)) for key, shape in outputs.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="maelift",
        ir_version=IR_VERSION,
    )
    nodes.add_constants(model.graph)
    helper.set_model_props(model, dict(metadata))
    outside = sum(array.nbytes for array in nodes.arrays.values()) > INLINE_BYTES
    onnx.save_model(model, str(path), save_as_external_data=outside, location=data_file(path).name, size_threshold=4096)
    onnx.checker.check_model(str(path))


def _meaning(encoder: Encoder, normalize: bool) -> str:
    names = ", ".join(encoder.preprocessing.channel_names)
    low, high = encoder.preprocessing.value_range
    if normalize:
        return f"stored pixel values, {low:g} to {high:g}; channels: {names}"
    mean, std = (list(values) for values in (encoder.preprocessing.pixel_mean, encoder.preprocessing.pixel_std))
    return f"(pixel values - {mean}) / {std}; channels: {names}"


def _value(name: str, shape: Sequence[str | int], text: str, kind: int | None = None) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT if kind is None else kind, shape, doc_string=text)


class Nodes:
    """The nodes of a graph, one line each, and its constants; values are known by their names."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.nodes: list[Any] = []
        self.arrays = arrays

    def add(self, op: str, inputs: Sequence[str], name: str = "", attributes: Mapping[str, Any] | None = None) -> str:
        """Add a node with one output; gives the output's name, ``name`` or one of its own."""
        from onnx import helper

        output = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"/{output}", **(attributes or {})))
        return output

    def split(self, value: str, parts: int) -> list[str]:
        """Split a value along its first axis into ``parts``, and drop that axis."""
        from onnx import helper

        names = [f"Split_{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], names, name=f"/Split_{len(self.nodes)}", axis=0))
        return [self.add("Squeeze", [name, self.integers(0)]) for name in names]

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """A constant of the graph's own."""
        self.arrays[OWN + name] = array
        return OWN + name

    def integers(self, *values: int) -> str:
        """A constant list of whole numbers, for shapes and axes."""
        return self.constant("int_" + "_".join(map(str, values)).replace("-", "minus"), np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant float32."""
        return self.constant(f"float_{value}", np.array(value, np.float32))

    def linear(self, value: str, layer: str) -> str:
        """The layer's ``value @ weight.T + bias``."""
        weight = self.add("Transpose", [f"{layer}.weight"], attributes={"perm": [1, 0]})
        return self.add("Add", [self.add("MatMul", [value, weight]), f"{layer}.bias"])

    def norm(self, value: str, layer: str, eps: float) -> str:
        """LayerNorm over the last axis."""
        inputs = [value, f"{layer}.weight", f"{layer}.bias"]
        return self.add("LayerNormalization", inputs, attributes={"axis": -1, "epsilon": eps})

    def add_constants(self, graph: Any) -> None:
        """Put the constants into an ONNX graph, one by one: all at once would hold large weights in memory thrice."""
        from onnx import numpy_helper

        for name, array in self.arrays.items():
            graph.initializer.add().CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))


def network(nodes: Nodes, encoder: Encoder, *, normalize: bool, dynamic_size: bool) -> None:
    """The whole encoder, with the outputs of ``to_onnx``."""
    spec = encoder.spec
    images = normalize_images(nodes, encoder.preprocessing) if normalize else "images"
    tokens = embed(nodes, spec, images, dynamic_size=dynamic_size)  # (B, P + N, D)
    for number in range(spec.depth):
        tokens = block(nodes, spec, tokens, f"blocks.{number}")
    tokens = nodes.norm(tokens, "norm", spec.norm_eps)
    if spec.class_token:
        first = nodes.add("Slice", [tokens, nodes.integers(0), nodes.integers(1), nodes.integers(1)])
        nodes.add("Squeeze", [first, nodes.integers(1)], "class_token")
    patches = nodes.add(
        "Slice",
        [tokens, nodes.integers(spec.num_prefix_tokens), nodes.integers(2**31 - 1), nodes.integers(1)],
        "tokens",
    )
    nodes.add("ReduceMean", [patches], "pooled", {"axes": [1], "keepdims": 0})


def normalize_images(nodes: Nodes, preprocessing: Preprocessing) -> str:
    """Stored pixel values to the network's input."""
    mean, std = (
        nodes.constant(name, np.asarray(values, np.float32).reshape(1, -1, 1, 1))
        for name, values in (("pixel_mean", preprocessing.pixel_mean), ("pixel_std", preprocessing.pixel_std))
    )
    return nodes.add("Div", [nodes.add("Sub", ["images", mean]), std], PREPARED)


def embed(
    nodes: Nodes,
    spec: EncoderSpec,
    images: str,
    *,
    dynamic_size: bool,
    class_token: bool | None = None,
    prefix: int | None = None,
) -> str:
    """Tokens with their positions, the class token first.

    ``class_token`` and ``prefix``, the positions before those of the patches, are the encoder's where they aren't given:
    backbones of segmentors may do without the token.

    The grid's sides are rounded up, those of the convolution down: where the patch does not divide an image, the
    reshaping fails, instead of a border that is lost in silence.
    """
    patch, dim = spec.patch_size, spec.embed_dim
    kernel = {"kernel_shape": [patch, patch], "strides": [patch, patch]}
    maps = nodes.add("Conv", [images, "patch_embed.proj.weight", "patch_embed.proj.bias"], attributes=kernel)
    sides = nodes.add("Shape", [images], attributes={"start": 2, "end": 4})
    grid = nodes.add("Div", [nodes.add("Add", [sides, nodes.integers(patch - 1)]), nodes.integers(patch)])
    count = nodes.add("ReduceProd", [grid], attributes={"keepdims": 1})
    flat = nodes.add("Concat", [nodes.integers(0, dim), count], attributes={"axis": 0})  # (as it was, D, N)
    tokens = _columns_last(nodes, maps, flat)
    first, rest = nodes.integers(0), nodes.integers(spec.num_prefix_tokens if prefix is None else prefix)
    axis = nodes.integers(1)
    positions = nodes.add("Slice", ["pos_embed", rest, nodes.integers(2**31 - 1), axis])  # (1, N, D)
    if dynamic_size:
        positions = _resized_positions(nodes, spec, positions, grid, flat)
    tokens = nodes.add("Add", [tokens, positions])
    if not (spec.class_token if class_token is None else class_token):
        return tokens
    token = nodes.add("Add", ["cls_token", nodes.add("Slice", ["pos_embed", first, rest, axis])])
    batch = nodes.add("Shape", [images], attributes={"start": 0, "end": 1})
    shape = nodes.add("Concat", [batch, nodes.integers(1, dim)], attributes={"axis": 0})
    return nodes.add("Concat", [nodes.add("Expand", [token, shape]), tokens], attributes={"axis": 1})


def _resized_positions(nodes: Nodes, spec: EncoderSpec, positions: str, grid: str, flat: str) -> str:
    """The positions (1, N, D) on another grid: PyTorch's bicubic, not antialiased; on their own grid unchanged."""
    plane = nodes.add("Reshape", [positions, nodes.integers(1, *spec.grid, spec.embed_dim)])
    plane = nodes.add("Transpose", [plane], attributes={"perm": [0, 3, 1, 2]})  # (1, D, rows, columns)
    sizes = nodes.add("Concat", [nodes.integers(1, spec.embed_dim), grid], attributes={"axis": 0})
    how = {"mode": "cubic", "cubic_coeff_a": -0.75, "coordinate_transformation_mode": "half_pixel"}
    return _columns_last(nodes, nodes.add("Resize", [plane, "", "", sizes], attributes=how), flat)


def _columns_last(nodes: Nodes, maps: str, flat: str) -> str:
    """Maps (B, D, rows, columns) as tokens (B, N, D)."""
    return nodes.add("Transpose", [nodes.add("Reshape", [maps, flat])], attributes={"perm": [0, 2, 1]})


def block(nodes: Nodes, spec: EncoderSpec, tokens: str, name: str) -> str:
    """A pre-norm transformer block: attention, then the MLP, each added to its input."""
    normed = nodes.norm(tokens, f"{name}.norm1", spec.norm_eps)
    tokens = nodes.add("Add", [tokens, _attention(nodes, spec, normed, f"{name}.attn")])
    hidden = nodes.linear(nodes.norm(tokens, f"{name}.norm2", spec.norm_eps), f"{name}.mlp.fc1")
    return nodes.add("Add", [tokens, nodes.linear(activation(nodes, hidden, spec.act), f"{name}.mlp.fc2")])


def _attention(nodes: Nodes, spec: EncoderSpec, tokens: str, name: str) -> str:
    width = spec.embed_dim // spec.num_heads
    qkv = nodes.add("Reshape", [nodes.linear(tokens, f"{name}.qkv"), nodes.integers(0, 0, 3, spec.num_heads, width)])
    qkv = nodes.add("Transpose", [qkv], attributes={"perm": [2, 0, 3, 1, 4]})  # (3, B, heads, N, D / heads)
    query, key, value = nodes.split(qkv, 3)
    query = nodes.add("Mul", [query, nodes.number(width**-0.5)])
    scores = nodes.add("MatMul", [query, nodes.add("Transpose", [key], attributes={"perm": [0, 1, 3, 2]})])
    mixed = nodes.add("MatMul", [nodes.add("Softmax", [scores], attributes={"axis": -1}), value])
    merged = nodes.add("Transpose", [mixed], attributes={"perm": [0, 2, 1, 3]})
    return nodes.linear(nodes.add("Reshape", [merged, nodes.integers(0, 0, spec.embed_dim)]), f"{name}.proj")


def activation(nodes: Nodes, value: str, act: str) -> str:
    """The activation of an encoder's MLPs, one of core.encoder.ACTIVATIONS."""
    if act == "gelu":
        return gelu(nodes, value)
    if act == "relu":
        return nodes.add("Relu", [value])
    if act == "gelu_tanh":  # x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³))) / 2
        cube = nodes.add("Mul", [nodes.add("Mul", [value, value]), value])
        inner = nodes.add("Add", [value, nodes.add("Mul", [cube, nodes.number(0.044715)])])
        bent = nodes.add("Tanh", [nodes.add("Mul", [inner, nodes.number(math.sqrt(2 / math.pi))])])
        gate = nodes.add("Add", [bent, nodes.number(1.0)])
        return nodes.add("Mul", [nodes.add("Mul", [value, gate]), nodes.number(0.5)])
    steepness = {"quick_gelu": 1.702, "silu": 1.0}[act]
    return nodes.add("Mul", [value, nodes.add("Sigmoid", [nodes.add("Mul", [value, nodes.number(steepness)])])])


def gelu(nodes: Nodes, value: str) -> str:
    """The exact GELU, x * (1 + erf(x / sqrt 2)) / 2, in the order that onnxruntime fuses."""
    inner = nodes.add("Erf", [nodes.add("Div", [value, nodes.number(math.sqrt(2))])])
    gate = nodes.add("Add", [inner, nodes.number(1.0)])
    return nodes.add("Mul", [nodes.add("Mul", [value, gate]), nodes.number(0.5)])
