"""The usual operators of a convolutional ONNX graph in torch, so that gradients pass through it.

Semantics: the ONNX operator specification, operator sets 13 to 21. An operator that is not here, or
not with these attributes, raises `KeyError` or `ValueError`: the graph then has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

Attributes = Mapping[str, Any]


def run_in_torch(model: onnx.ModelProto, x: Tensor) -> Tensor:
    """Output ``y`` of a graph for its input ``x``, float32, with a gradient.

    Raises:
        KeyError: if an operator is not known here.
        ValueError: if one has attributes that are not known here.
    """
    graph = model.graph
    values: dict[str, Any] = {"": None, "x": x}
    for t in graph.initializer:
        values[t.name] = torch.from_numpy(np.array(numpy_helper.to_array(t))).to(x.device)
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise ValueError("auto_pad")
        given = [values[name] for name in node.input]
        values[node.output[0]] = OPERATORS[node.op_type](attributes, *given).to(x.device)
    found: Tensor = values["y"]
    return found


def _padded(x: Tensor, a: Attributes, value: float = 0.0) -> Tensor:
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    return F.pad(x, (left, right, top, bottom), value=value)


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    return F.conv2d(_padded(x, a), weight, bias, strides, 0, dilations, a.get("group", 1))


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    if a.get("ceil_mode", 0) or set(a.get("dilations", (1,))) != {1}:
        raise ValueError("MaxPool")
    x = _padded(x, a, -torch.inf)
    return F.max_pool2d(x, a["kernel_shape"], a.get("strides", (1, 1)))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    if (any(a.get("pads", ())) and not a.get("count_include_pad", 0)) or a.get("ceil_mode", 0):
        raise ValueError("AveragePool")
    return F.avg_pool2d(_padded(x, a), a["kernel_shape"], a.get("strides", (1, 1)))


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if a.get("transA", 0):
        raise ValueError("Gemm")
    y: Tensor = a.get("alpha", 1.0) * x @ (weight.T if a.get("transB", 0) else weight)
    return y if bias is None else y + a.get("beta", 1.0) * bias


def _clip(
    a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _reduce_mean(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    which = a.get("axes") if axes is None else axes.tolist()
    if not which:
        raise ValueError("ReduceMean")
    return x.mean(tuple(which), keepdim=bool(a.get("keepdims", 1)))


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    if a.get("axis", 1) != 1:
        raise ValueError("Flatten")
    return x.flatten(1)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    if a.get("allowzero", 0):
        raise ValueError("Reshape")
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())])


OPERATORS: Final[dict[str, Callable[..., Tensor]]] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Constant": lambda a: torch.from_numpy(np.array(numpy_helper.to_array(a["value"]))),
    "Conv": _conv,
    "Div": lambda a, x, y: x / y,
    "Dropout": lambda a, x, *rest: x,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, x: F.hardswish(x),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "ReduceMean": _reduce_mean,
    "Relu": lambda a, x: F.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: torch.tanh(x),
}
"""By operator: a function of the node's attributes and inputs."""
