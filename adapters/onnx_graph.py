"""The nodes of an encoder's ONNX graph, written one by one, and the file that holds them.

``torch.onnx.export(dynamo=True)`` (torch 2.14.1, onnxscript 0.7.2) passes the certificate, but needs opset 18, renames and
transposes 14 of 42 tensors of vit_nano, crops images that the patches do not divide, and takes 36 s instead of 3 s for ViT-B.
Its graph of vit_nano runs 18 % slower, and that of a UPerNet segmentor is wrong at other sizes than the traced one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.models.encoder import Encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.models.stored_contract import CONTRACT_KEY

OPSET, IR_VERSION = 17, 8
"""The oldest with LayerNormalization; readable from onnxruntime 1.13 on."""
INLINE_BYTES = 1_900_000_000
"""Weights of more bytes go into a file beside the graph: a protobuf message ends at 2 GiB."""
OWN = "graph."
"""How the names of the graph's own constants begin; the encoder's tensors have the names of the encoder file."""
PREPARED = "prepared"


def in_float32(encoder: Encoder) -> Encoder:
    """The encoder in float32 on the CPU: itself where it is there already."""
    if encoder.pos_embed.dtype == torch.float32 and encoder.pos_embed.device.type == "cpu":
        return encoder
    return copy.deepcopy(encoder).float().cpu()


def data_file(path: Path) -> Path:
    """Where the weights of a large graph are."""
    return path.with_name(f"{path.name}.data")


def write_graph(encoder: Encoder, path: Path, contract: str, *, normalize: bool, dynamic_size: bool) -> None:
    """Write the encoder's graph, with ``contract`` in its metadata; the inputs and outputs are those of ``to_onnx``."""
    encoder = in_float32(encoder)
    nodes = Nodes({name: tensor.numpy() for name, tensor in encoder.state_dict().items()})
    write_encoder(nodes, encoder, normalize=normalize, dynamic_size=dynamic_size)
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


def write_encoder(nodes: Nodes, encoder: Encoder, *, normalize: bool, dynamic_size: bool) -> None:
    """Write the nodes of the full encoder, with the outputs of ``to_onnx``."""
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
    """Stored pixel values to the network's input; where pixels may have no value, such ones to 0, the mean."""
    mean, std = (
        nodes.constant(name, np.asarray(values, np.float32).reshape(1, -1, 1, 1))
        for name, values in (("pixel_mean", preprocessing.pixel_mean), ("pixel_std", preprocessing.pixel_std))
    )
    centred = nodes.add("Sub", ["images", mean])
    if not preprocessing.may_have_gaps:
        return nodes.add("Div", [centred, std], PREPARED)
    missing = nodes.add("IsNaN", ["images"])
    if preprocessing.nodata_as_read is not None:
        nodata = nodes.constant("nodata", np.asarray(preprocessing.nodata_as_read, np.float32))
        missing = nodes.add("Or", [missing, nodes.add("Equal", ["images", nodata])])
    zero = nodes.constant("value_of_missing_pixels", np.zeros((), np.float32))
    return nodes.add("Where", [missing, zero, nodes.add("Div", [centred, std])], PREPARED)


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
