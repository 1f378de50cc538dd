"""A piece of an ONNX graph as a block of a network; nothing in it is trained."""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any, Self

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cnn.frame_table import LUMA_WEIGHTS
from cnn.network.onnx_in_torch import run_in_torch
from cnn.ort import onnxruntime as ort


class OnnxBlock(nn.Module):
    """A piece of an ONNX graph, input ``x`` and output ``y``, as a module.

    Where a gradient must pass, it is computed in torch (`cnn.network.onnx_in_torch`), else by ONNX
    Runtime.

    Args:
        model: the piece.

    Attributes:
        macs: multiply-accumulates of its convolutions and matrix products for one frame.
        n_weights: numbers in its initialisers.
        has_gradient: all its operators are known in torch, and give what ONNX Runtime gives.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.model, self.macs = model, sum(measured_nodes(model)[1])
        self.n_weights = sum(math.prod(t.dims) for t in model.graph.initializer)
        content = model.SerializeToString()
        self._sha256 = hashlib.sha256(content).hexdigest()
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.has_gradient = self._same_in_torch()

    def forward(self, x: Tensor) -> Tensor:
        """Output on the device of `x`, float32; a gradient passes if there is one."""
        if self.has_gradient and torch.is_grad_enabled() and x.requires_grad:
            return run_in_torch(self.model, x.float())
        given = np.ascontiguousarray(x.detach().float().cpu().numpy())
        return torch.from_numpy(self._session.run(None, {"x": given})[0]).to(x.device)

    def _same_in_torch(self) -> bool:
        (given,) = self.model.graph.input
        shape = [d.dim_value for d in given.type.tensor_type.shape.dim][1:]
        if not shape or min(shape) < 1:
            return False
        x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                found = run_in_torch(self.model, x)
        except (KeyError, ValueError, TypeError, RuntimeError):
            return False
        expected = torch.from_numpy(self._session.run(None, {"x": x.numpy()})[0])
        return found.shape == expected.shape and torch.allclose(found, expected, 1e-3, 1e-4)

    def extra_repr(self) -> str:
        """What tells one piece from another."""
        return self._sha256

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def segment(self, example: Tensor, channels: int) -> bytes:
        """The piece as a bundle's segment.

        Args:
            example: its input; uint8 frames (B, H, W, 3) for block 1, which then makes an image in
                [0, 1] of them.
            channels: of that image: 3, or 1 (luma).
        """
        model = copy.deepcopy(self.model)
        if example.dtype is torch.uint8:
            _take_frames(model, channels)
        kind = TensorProto.UINT8 if example.dtype is torch.uint8 else TensorProto.FLOAT
        del model.graph.input[:]
        shape = ["batch", *example.shape[1:]]
        model.graph.input.append(helper.make_tensor_value_info("x", kind, shape))
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def unused(name: str, taken: set[str]) -> str:
    """`name`, longer if it is taken."""
    while name in taken:
        name += "_"
    return name


def measured_nodes(
    model: onnx.ModelProto,
) -> tuple[list[onnx.NodeProto], list[int], dict[str, list[int]]]:
    """Nodes of a model in order, multiply-accumulates of each, and shapes by tensor, for one frame.

    Counts convolutions and matrix products whose shapes can be inferred.
    """
    single = copy.deepcopy(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    macs = []
    for node in graph.node:
        out, given = shapes.get(node.output[0], []), [shapes.get(i, []) for i in node.input]
        inner = 0
        if node.op_type == "Conv" and given[1]:
            inner = math.prod(given[1][1:])
        elif node.op_type in ("Gemm", "MatMul") and given[0]:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            inner = given[0][0 if transposed else -1]
        macs.append(math.prod(out) * inner)
    return list(graph.node), macs, shapes


def _take_frames(model: onnx.ModelProto, channels: int) -> None:
    """Let the piece take uint8 (B, H, W, 3) instead of an image (B, C, H, W) in [0, 1]."""
    graph = model.graph
    taken = {o for node in graph.node for o in node.output} | {t.name for t in graph.initializer}
    words = ("frame", "bytes", "image", "scale")
    first, second, image, scale = (unused(f"sliproad_{word}", taken) for word in words)
    for node in graph.node:
        node.input[:] = [image if name == "x" else name for name in node.input]
    # A convolution of one pixel scales, and takes the luma if one channel is wanted.
    weights = np.array(LUMA_WEIGHTS) if channels == 1 else np.eye(3)
    array = (weights.reshape(channels, 3, 1, 1) / 255).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(array, scale))
    before = (
        helper.make_node("Transpose", ["x"], [first], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [first], [second], to=TensorProto.FLOAT),
        helper.make_node("Conv", [second, scale], [image], kernel_shape=[1, 1]),
    )
    for i, node in enumerate(before):
        graph.node.insert(i, node)
