"""The ONNX graph of a full classifier or segmentor: encoder, head, and what follows the logits."""

from __future__ import annotations

import builtins
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..adapters import onnx_graph as encoder_graph
from ..adapters.onnx import OnnxExport
from ..adapters.onnx_graph import Nodes
from ..adapters.simple_feature_pyramid import ChannelNorm
from ..core.errors import CheckpointError
from ..core.models.encoder import Encoder
from ..core.models.probes import AttentiveProbe, LinearProbe
from .classification.model import Classifier
from .model_file import MODEL_KEY, ModelFile
from .segmentation.logits import resize_logits
from .segmentation.model import Segmentor


def write_model_graph(file: ModelFile, model: nn.Module, path: Path, config: OnnxExport) -> dict[str, list[str | int]]:
    """Write the graph; gives the shape of each output. Raises CheckpointError for models that it has no nodes for."""
    height, width = file.spec.image_size
    sides: list[str | int] = ["height", "width"] if config.dynamic_size else [height, width]
    count = len(file.classes)
    if isinstance(model, Classifier):
        nodes = _classifier_nodes(file, model, config)
        outputs: dict[str, list[str | int]] = {"logits": ["batch", count], "probabilities": ["batch", count]}
    else:
        nodes = _segmentor_nodes(file, cast(Segmentor, model), config)
        outputs = {"logits": ["batch", count, *sides], "classes": ["batch", *sides]}
    description = {
        "task": file.task,
        "classes": list(file.classes),
        "spec": asdict(file.spec),
        "preprocessing": file.preprocessing.to_json(),
        "content_hash": file.content_hash,
    }
    encoder_graph.save_graph(
        nodes,
        path,
        name=file.task,
        images=["batch", file.spec.channels, *sides],
        outputs=outputs,
        metadata={MODEL_KEY: json.dumps(description)},
        whole_numbers=("classes",),
    )
    return outputs


def _classifier_nodes(file: ModelFile, model: Classifier, config: OnnxExport) -> Nodes:
    encoder = cast(Encoder, model.encoder)
    nodes = Nodes({name: tensor.float().numpy() for name, tensor in encoder.state_dict().items()})
    encoder_graph.write_encoder(nodes, encoder, normalize=config.normalize, dynamic_size=config.dynamic_size)
    head = model.head.folded() if isinstance(model.head, LinearProbe) else model.head
    if isinstance(head, AttentiveProbe):
        features = _attended(nodes, head)
        head = head.linear
    elif model.pooling == "both":
        features = nodes.add("Concat", ["pooled", "class_token"], attributes={"axis": 1})
    else:
        features = "class_token" if model.pooling == "class_token" else "pooled"
    if not isinstance(head, nn.Linear):
        raise CheckpointError(
            f"{file.source}: a classifier by {type(head).__name__}, which has no ONNX graph here. Nothing was written; "
            "fine-tuned models and linear and attentive probes have one."
        )
    product = _linear(nodes, features, head.weight, "head.weight")
    nodes.add("Add", [product, _tensor(nodes, "head.bias", cast(Tensor, head.bias))], "logits")
    if model.multi_label:
        nodes.add("Sigmoid", ["logits"], "probabilities")
    else:
        nodes.add("Softmax", ["logits"], "probabilities", {"axis": 1})
    return nodes


def _attended(nodes: Nodes, head: AttentiveProbe) -> str:
    """The attentive probe's one vector an image, (B, D)."""
    mean, var = cast(Tensor, head.norm.running_mean), cast(Tensor, head.norm.running_var)
    centred = nodes.add("Sub", ["tokens", _tensor(nodes, "head.mean", mean)])
    tokens = nodes.add("Div", [centred, _tensor(nodes, "head.deviation", (var + head.norm.eps).sqrt())])
    heads, dim = head.num_heads, head.query.shape[-1]
    width = dim // heads
    query = _tensor(nodes, "head.query", head.query.reshape(1, heads, 1, width) * width**-0.5)
    key, value = (
        nodes.add(
            "Transpose",
            [
                nodes.add(
                    "Reshape", [_linear(nodes, tokens, weight, f"head.{name}"), nodes.integers(0, 0, heads, width)]
                )
            ],
            attributes={"perm": order},
        )
        for name, weight, order in (
            ("key", head.key.weight, [0, 2, 3, 1]),
            ("value", head.value.weight, [0, 2, 1, 3]),
        )
    )
    share = nodes.add("Softmax", [nodes.add("MatMul", [query, key])], attributes={"axis": -1})
    return nodes.add("Reshape", [nodes.add("MatMul", [share, value]), nodes.integers(0, dim)])


def _linear(nodes: Nodes, value: str, weight: Tensor, name: str) -> str:
    """A linear layer (out, in) without its bias."""
    return nodes.add("MatMul", [value, _tensor(nodes, f"{name}_transposed", weight.t())])


def _segmentor_nodes(file: ModelFile, model: Segmentor, config: OnnxExport) -> Nodes:
    """Padding, the plain ViT, the head; then the logits resized to the padded image and cut back to the image."""
    backbone: Any = getattr(model.network, "backbone", None)
    head: Any = getattr(model.network, "head", None)
    plain = model.architecture.engine == "torch" and backbone is not None and head is not None
    if not plain or backbone.windows or any(block.attn.rel_pos_h is not None for block in backbone.blocks):
        raise CheckpointError(
            f"{file.source}: a segmentor of engine={model.architecture.engine} with window_size="
            f"{model.architecture.window_size}, which has no ONNX graph here. Nothing was written; those of engine=torch "
            "have one whose blocks attend everywhere, without windows and relative positions."
        )
    nodes = Nodes({name: tensor.float().numpy() for name, tensor in backbone.state_dict().items()})
    spec = file.plain_spec("export to onnx")
    images = encoder_graph.normalize_images(nodes, file.preprocessing) if config.normalize else "images"
    sides = nodes.add("Shape", [images], attributes={"start": 2, "end": 4})
    padded = _padded(nodes, images, sides, model.divisor, model.min_side)
    tokens = encoder_graph.embed(
        nodes, spec, padded, dynamic_size=True, class_token=backbone.cls_token is not None, prefix=backbone.prefix
    )
    grid = nodes.add(
        "Div",
        [nodes.add("Shape", [padded], attributes={"start": 2, "end": 4}), nodes.integers(spec.patch_size)],
    )
    shape = nodes.add("Concat", [nodes.integers(0, spec.embed_dim), grid], attributes={"axis": 0})
    first = nodes.integers(int(backbone.cls_token is not None))
    maps = {}
    for number in range(spec.depth):
        tokens = encoder_graph.block(nodes, spec, tokens, f"blocks.{number}")
        if number in backbone.out_indices:
            last = number == spec.depth - 1 and backbone.norm is not None
            found = nodes.norm(tokens, "norm", spec.norm_eps) if last else tokens
            patches = nodes.add("Slice", [found, first, nodes.integers(2**31 - 1), nodes.integers(1)])
            plane = nodes.add("Transpose", [patches], attributes={"perm": [0, 2, 1]})
            maps[number] = nodes.add("Reshape", [plane, shape])
    given = [maps[number] for number in backbone.out_indices]
    given = given if len(given) == 4 else given[-1:]  # heads read four maps, or the last
    logits = HeadNodes(nodes, file.source).run(head, [padded, *given])
    resized = _resized(nodes, logits, padded)
    begin = nodes.integers(0, 0)
    nodes.add("Slice", [resized, begin, sides, nodes.integers(2, 3)], "logits")
    nodes.add("ArgMax", ["logits"], "classes", {"axis": 1, "keepdims": 0})
    return nodes


def _padded(nodes: Nodes, images: str, sides: str, divisor: int, least: int) -> str:
    """Images with zeros at the right and bottom, up to multiples of ``divisor``, and to at least ``least`` pixels."""
    enough = nodes.add("Max", [sides, nodes.integers(least)])
    count = nodes.add("Div", [nodes.add("Add", [enough, nodes.integers(divisor - 1)]), nodes.integers(divisor)])
    more = nodes.add("Sub", [nodes.add("Mul", [count, nodes.integers(divisor)]), sides])
    pads = nodes.add("Concat", [nodes.integers(0, 0, 0, 0, 0, 0), more], attributes={"axis": 0})
    return nodes.add("Pad", [images, pads])


def _resized(nodes: Nodes, value: str, like: str) -> str:
    """Maps (B, C, h, w) at the size of ``like``: bilinear, as PyTorch does it without aligned corners."""
    batch = nodes.add("Shape", [value], attributes={"start": 0, "end": 2})
    sides = nodes.add("Shape", [like], attributes={"start": 2, "end": 4})
    sizes = nodes.add("Concat", [batch, sides], attributes={"axis": 0})
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return nodes.add("Resize", [value, "", "", sizes], attributes=how)


def _tensor(nodes: Nodes, name: str, tensor: Tensor) -> str:
    nodes.arrays[name] = tensor.detach().float().cpu().numpy()
    return name


@dataclass(frozen=True)
class _Shape:
    """The shape of a value, or a part of it, in the traced code of a head."""

    value: str


class _HeadTracer(fx.Tracer):
    """Traces a head's Python; its own layers are single nodes."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, ChannelNorm | nn.LayerNorm) or super().is_leaf_module(module, name)


class HeadNodes:
    """Writes a segmentation head as nodes, layer by layer, in the order that torch.fx traces."""

    def __init__(self, nodes: Nodes, source: str) -> None:
        self.nodes, self.source = nodes, source
        self.layers: dict[type[nn.Module], Callable[[Any, str, str], str]] = {
            nn.Conv2d: self._convolution,
            nn.ConvTranspose2d: self._convolution,
            nn.GroupNorm: self._group_norm,
            ChannelNorm: self._channel_norm,
            nn.LayerNorm: self._channel_norm,
            nn.GELU: lambda layer, value, name: encoder_graph.gelu(self.nodes, value),
            nn.ReLU: lambda layer, value, name: self.nodes.add("Relu", [value]),
            nn.MaxPool2d: self._max_pool,
            nn.AdaptiveAvgPool2d: self._adaptive_pool,
            nn.Identity: lambda layer, value, name: value,
            nn.Dropout2d: lambda layer, value, name: value,
            nn.Dropout: lambda layer, value, name: value,
        }

    def run(self, head: nn.Module, inputs: Sequence[str]) -> str:
        """The head's logits for the images and maps of these names; raises CheckpointError for what it has no node for."""
        called = _with_arguments(head, len(inputs))
        graph = _HeadTracer().trace(called)
        values: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for node in graph.nodes:
            arguments = fx.map_arg(node.args, values.__getitem__)
            keywords = fx.map_arg(node.kwargs, values.__getitem__)
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "call_module":
                values[node] = self._layer(called.get_submodule(str(node.target)), arguments[0], str(node.target))
            elif node.op == "call_function":
                values[node] = self._function(cast(Any, node.target), arguments, keywords)
            elif node.op == "output":
                return cast(str, arguments[0])
            else:
                raise self._unknown(f"{node.op} {node.target}")
        raise self._unknown("a head without output")

    def _layer(self, layer: nn.Module, value: str, name: str) -> str:
        for kind, write in self.layers.items():
            if isinstance(layer, kind):
                for key, tensor in layer.state_dict().items():
                    _tensor(self.nodes, f"{name}.{key}", tensor)
                return write(layer, value, name)
        raise self._unknown(type(layer).__name__)

    def _function(self, function: Any, arguments: Any, keywords: Mapping[str, Any]) -> Any:
        if function is builtins.getattr and arguments[1] == "shape":
            return _Shape(arguments[0])
        if function is operator.getitem and isinstance(arguments[0], _Shape):
            return arguments[0]
        if function in (operator.add, torch.add):
            return self.nodes.add("Add", list(arguments))
        if function is torch.cat:
            axis = keywords.get("dim", arguments[1] if len(arguments) > 1 else 0)
            return self.nodes.add("Concat", list(arguments[0]), attributes={"axis": axis})
        if function is resize_logits:
            return _resized(self.nodes, arguments[0], self._like(arguments[1]))
        if function is F.interpolate and keywords.get("mode") == "bilinear" and not keywords.get("align_corners"):
            return _resized(self.nodes, arguments[0], self._like(keywords["size"]))
        raise self._unknown(getattr(function, "__name__", str(function)))

    def _like(self, size: Any) -> str:
        """The value whose height and width a size is."""
        found = {part.value for part in (size if isinstance(size, tuple | list) else (size,))}
        if len(found) != 1:
            raise self._unknown("a size of several values")
        return cast(str, found.pop())

    def _convolution(self, layer: Any, value: str, name: str) -> str:
        kernel, stride, padding = (list(numbers) for numbers in (layer.kernel_size, layer.stride, layer.padding))
        attributes = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "group": layer.groups}
        attributes["dilations"] = list(layer.dilation)
        op = "ConvTranspose" if isinstance(layer, nn.ConvTranspose2d) else "Conv"
        if layer.padding_mode != "zeros" or any(getattr(layer, "output_padding", ())):
            raise self._unknown(f"{op} with {layer.padding_mode} padding")
        names = [f"{name}.weight", *([f"{name}.bias"] if layer.bias is not None else [])]
        return self.nodes.add(op, [value, *names], attributes=attributes)

    def _group_norm(self, layer: nn.GroupNorm, value: str, name: str) -> str:
        nodes, groups = self.nodes, layer.num_groups
        shape = nodes.add("Shape", [value])
        grouped = nodes.add("Reshape", [value, nodes.integers(0, groups, -1)])
        one, zero = (
            nodes.constant(f"{kind}_{groups}", np.full(groups, number, np.float32))
            for kind, number in (("ones", 1), ("zeros", 0))
        )
        normed = nodes.add("InstanceNormalization", [grouped, one, zero], attributes={"epsilon": layer.eps})
        normed = nodes.add("Reshape", [normed, shape])
        weight, bias = (
            _tensor(nodes, f"{name}.{key}", tensor.reshape(-1, 1, 1))
            for key, tensor in (("weight", layer.weight), ("bias", cast(Tensor, layer.bias)))
        )
        return nodes.add("Add", [nodes.add("Mul", [normed, weight]), bias])

    def _channel_norm(self, layer: Any, value: str, name: str) -> str:
        moved = self.nodes.add("Transpose", [value], attributes={"perm": [0, 2, 3, 1]})
        return self.nodes.add("Transpose", [self.nodes.norm(moved, name, layer.eps)], attributes={"perm": [0, 3, 1, 2]})

    def _max_pool(self, layer: nn.MaxPool2d, value: str, name: str) -> str:
        kernel, stride = (
            [side, side] if isinstance(side, int) else list(side) for side in (layer.kernel_size, layer.stride)
        )
        if layer.padding != 0 or layer.dilation != 1:
            raise self._unknown("MaxPool2d with padding")
        attributes = {"kernel_shape": kernel, "strides": stride, "ceil_mode": int(layer.ceil_mode)}
        return self.nodes.add("MaxPool", [value], attributes=attributes)

    def _adaptive_pool(self, layer: nn.AdaptiveAvgPool2d, value: str, name: str) -> str:
        """Means over parts of any size: ONNX has none, but they are a product with a matrix on either side."""
        size = layer.output_size
        rows, columns = (size, size) if isinstance(size, int) else cast(tuple[int, int], size)
        by_rows = self.nodes.add("MatMul", [self._parts(value, 2, rows), value])
        across = self.nodes.add("Transpose", [self._parts(value, 3, columns)], attributes={"perm": [1, 0]})
        return self.nodes.add("MatMul", [by_rows, across])

    def _parts(self, value: str, axis: int, parts: int) -> str:
        """The matrix (parts, side) that takes means along an axis, from floor(i * side / parts) to ceil((i + 1) …)."""
        from onnx import TensorProto

        nodes = self.nodes
        side = nodes.add("Shape", [value], attributes={"start": axis, "end": axis + 1})
        scalar = nodes.add("Squeeze", [side, nodes.integers(0)])
        zero, one = (nodes.constant(f"scalar_{number}", np.array(number, np.int64)) for number in (0, 1))
        places = nodes.add("Range", [zero, scalar, one])
        count = nodes.integers(parts)
        first, after = (
            nodes.constant(f"{kind}_{parts}", np.arange(start, start + parts, dtype=np.int64)[:, None])
            for kind, start in (("first", 0), ("after", 1))
        )
        begin = nodes.add("Div", [nodes.add("Mul", [first, side]), count])
        end = nodes.add("Div", [nodes.add("Add", [nodes.add("Mul", [after, side]), nodes.integers(parts - 1)]), count])
        inside = nodes.add("And", [nodes.add("GreaterOrEqual", [places, begin]), nodes.add("Less", [places, end])])
        floats = {"to": TensorProto.FLOAT}
        share = nodes.add("Cast", [nodes.add("Sub", [end, begin])], attributes=floats)
        return nodes.add("Div", [nodes.add("Cast", [inside], attributes=floats), share])

    def _unknown(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: its head has {what}, which has no ONNX node here. Nothing was written.")


def _with_arguments(head: nn.Module, count: int) -> nn.Module:
    """The head as a module of ``count`` single arguments, the images and each map: torch.fx follows no lists."""

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

    class OfTwo(Called):
        def forward(self, images: Tensor, last: Tensor) -> Tensor:
            return cast(Tensor, self.head(images, [last]))

    class OfFive(Called):
        def forward(self, images: Tensor, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
            return cast(Tensor, self.head(images, [first, second, third, fourth]))

    return {2: OfTwo, 5: OfFive}[count]()
