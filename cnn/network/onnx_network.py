"""A network given as ONNX alone, cut into blocks.

The file is cut with the ONNX tools' own extractor (`onnx.utils.Extractor`) at tensors that all
paths through the graph pass. Exits and bottlenecks are torch, and learn on the blocks' outputs;
the blocks stay as they are.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.utils import Extractor
from torch import nn

from cnn.common.errors import ConfigError, require, shown
from cnn.common.outside import file_bytes, said
from cnn.network.onnx_block import OnnxBlock, measured_nodes, unused
from cnn.network.user_network import Definition

_MOST_BYTES: Final = 2**31 - 1
"""A Protocol Buffers message cannot be larger."""


def onnx_definition(
    path: Path,
    cuts: Sequence[str],
    *,
    input_size: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Definition:
    """The network of an ONNX file, cut into blocks.

    Args:
        path: the file: one image (B, C, H, W) goes in, logits (B, n_classes) come out; a softmax
            at the end is left out.
        cuts: tensors behind which a block ends, in order; () proposes some (`propose_cuts`).
        input_size: side of the image, pixels, if the file leaves it free.
        mean, std: by channel, taken out of an image in [0, 1]; () leaves it as it is.

    Raises:
        ConfigError: if it cannot be read, or not be cut there.
    """
    with _reading(path, "no ONNX file that can be read"):
        content = file_bytes(path, _MOST_BYTES)
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
        graph = model.graph
        inputs = [i.name for i in graph.input if not _is_weight(model, i)]
    what = f"{path}: {len(inputs)} inputs and {len(graph.output)} outputs"
    require(len(inputs) == 1 and len(graph.output) == 1, what, "one of each", "cut the rest off")
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    channels, side = _image(path, shape, input_size)
    for dim in graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = side
    _normalise(model, inputs[0], channels, mean, std)
    _free_batch(model)
    why: tuple[str, ...] = ()
    if not cuts:
        with _reading(path, "a graph in which no cut is found"):
            cuts, why = propose_cuts(model)
    known = {o for node in graph.node for o in node.output}
    for cut in cuts:
        some = ", ".join(sorted(known)[:5])
        what = f"{path}: no tensor {shown(cut)}"
        require(cut in known, what, f"names of its tensors, such as {some}", "correct --cuts")
    with _reading(path, "a graph whose shapes cannot be inferred"):
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    names = [inputs[0], *cuts, _logits(graph)]
    pieces = [_piece(inferred, a, b, path) for a, b in pairwise(names)]

    def network() -> nn.Module:
        found: Any = nn.Sequential(*(OnnxBlock(piece) for piece in pieces))
        found.input_size, found.channels = side, channels
        return cast(nn.Module, found)

    digest = hashlib.sha256(content).hexdigest()
    return Definition(f"{path} cut at {', '.join(cuts)}", digest, network, why)


def propose_cuts(model: onnx.ModelProto) -> tuple[list[str], tuple[str, ...]]:
    """Tensors at which to cut a graph, and why these, in words.

    Of those that all paths pass, the one with the fewest numbers within each tenth of the
    multiply-accumulates (the last of equal ones): there a device has computed more than at the cut
    before, or sends less. The last tenth has none: an exit there would save little.
    """
    nodes, macs, shapes = measured_nodes(model)
    (given,) = (i.name for i in model.graph.input if i.name in shapes and not _is_weight(model, i))
    last_use = {name: at for at, node in enumerate(nodes) for name in node.input}
    done, total = 0, max(sum(macs), 1)
    live, best = {given}, dict[int, tuple[int, str, int]]()
    for at, node in enumerate(nodes):
        done += macs[at]
        if live & set(node.input):  # else it is computed from weights alone
            live |= set(node.output)
        live = {name for name in live if last_use.get(name, -1) > at}
        (name,) = live if len(live) == 1 else ("",)
        numbers = math.prod(shapes.get(name, ()))
        tenth = 10 * done // total
        fine = len(shapes.get(name, ())) == 4 and 0 < done <= 0.9 * total and numbers > 0
        if fine and (tenth not in best or numbers <= best[tenth][0]):
            best[tenth] = (numbers, name, done)
    chosen = sorted(best.values(), key=lambda found: found[2])
    why = tuple(
        f"cut at {name}: {numbers:,} numbers, {100 * macs / total:.0f} % of the "
        "multiply-accumulates; the fewest in their tenth"
        for numbers, name, macs in chosen
    )
    return [name for _, name, _ in chosen], why


def _is_weight(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> bool:
    """Older files list their weights among the inputs, too."""
    return any(t.name == value.name for t in model.graph.initializer)


def _image(path: Path, shape: Sequence[int], input_size: int | None) -> tuple[int, int]:
    """Channels and side of the image."""
    fine = len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3]
    what = f"{path}: input of shape {shown(list(shape))} (0 is free)"
    require(fine, what, "(batch, 3 or 1, side, side)", "export it with that input")
    side = shape[2] or input_size or 0
    require(side > 0, f"{path}: an image of any size", "one size", "state it with --input-size")
    fine = input_size in (None, side)
    require(fine, f"--input-size {input_size}", f"{side}, the file's own", "leave it out")
    return shape[1], side


def _logits(graph: onnx.GraphProto) -> str:
    """The output, or what a softmax makes it of."""
    name = str(graph.output[0].name)
    last = next((node for node in graph.node if name in node.output), None)
    return str(last.input[0]) if last is not None and last.op_type == "Softmax" else name


def _normalise(
    model: onnx.ModelProto, given: str, channels: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Put (x - mean) / std in front of everything that reads the input."""
    if not (mean or std):
        return
    fine = len(mean) == len(std) == channels and min(std) > 0
    what = f"--mean {shown(list(mean))} and --std {shown(list(std))}"
    require(fine, what, f"{channels} numbers each, the second ones above 0", "give both")
    taken = {o for node in model.graph.node for o in node.output} | {given}
    names = [unused(f"sliproad_{word}", taken) for word in ("mean", "std", "centred", "normal")]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == given:
                node.input[i] = names[3]
    for name, values in zip(names, (mean, std), strict=False):
        array = np.array(values, np.float32).reshape(1, channels, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.node.insert(0, helper.make_node("Sub", [given, names[0]], [names[2]]))
    model.graph.node.insert(1, helper.make_node("Div", [names[2], names[1]], [names[3]]))


def _free_batch(model: onnx.ModelProto) -> None:
    """Any number of images may go in at once; shapes inferred for another number are dropped."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims):
            dims[0].dim_param = "batch"
    del model.graph.value_info[:]


def _piece(model: onnx.ModelProto, start: str, end: str, path: Path) -> onnx.ModelProto:
    """The graph between two tensors, which are renamed to ``x`` and ``y``."""
    with _reading(path, f"cannot be cut from {shown(start)} to {shown(end)}"):
        piece = copy.deepcopy(Extractor(model).extract_model([start], [end]))
    graph = piece.graph
    made = {o for node in graph.node for o in node.output}
    made |= {t.name for t in graph.initializer} | {start, ""}
    loose = sorted({i for node in graph.node for i in node.input} - made)
    what = f"{path}: a cut between {shown(start)} and {shown(end)}, past which {loose[:1]} leads"
    expected = "tensors that all paths pass, in the order in which they are computed"
    require(not loose and end in made, what, expected, "choose other --cuts")
    used = {i for node in graph.node for i in node.input}
    wanted = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(wanted)
    taken = (made | used) - {start, end}
    new = {name: unused(f"inner_{name}", taken) for name in ("x", "y") if name in taken}
    new |= {start: "x", end: "y"}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = new.get(value.name, value.name)
    del graph.value_info[:]
    return piece


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn any error of the ONNX tools into one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{path}: {what}: {said(error)}",
            expected="an ONNX model, whole in one file",
            hint="export it again, or choose other --cuts",
        ) from error
