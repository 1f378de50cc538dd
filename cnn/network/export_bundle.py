"""Write a trained network as a model bundle: ONNX segments plus manifest.

Batch norm is folded into the convolutions. A float32 bundle stores its weights as float16
and widens them when ONNX Runtime loads a segment (or as float32, if asked to); an int8 bundle is
quantised from it (static, QDQ): weights become int8 with a scale per output channel, activations
uint8 with ranges seen on calibration images. Weights keep to 7 bits (``reduce_range``): on x86
without VNNI the 8-bit product sums would saturate, and the bundle must give the same answers
everywhere.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cnn.bundle import BUNDLE, FORMAT, Bundle, load_bundle, manifest_hash
from cnn.common.errors import BundleError
from cnn.common.folders import replacing_folder
from cnn.common.outside import said
from cnn.network.block_network import LATENT_LEVELS, BlockNetwork
from cnn.network.onnx_block import OnnxBlock
from cnn.ort import onnxruntime as ort
from cnn.runtime import SplitRuntime

# isort: split
# After cnn.ort, which sets the variable that ONNX Runtime reads when it is loaded.
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

QUANTISED_OPS = ("Conv", "Gemm", "MaxPool", "Relu", "Flatten")


class _Block1(nn.Module):
    """uint8 (B, H, W, 3) -> features: scaling and normalisation included."""

    def __init__(self, net: BlockNetwork, block: nn.Module) -> None:
        super().__init__()
        self.net, self.block = net, block

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2).to(torch.float32) / 255
        return cast(Tensor, self.block(self.net.normalise(image)))


class _Encoder(nn.Module):
    """Features -> uint8 latent."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(self.encoder(x) * LATENT_LEVELS).to(torch.uint8)


class _Decoder(nn.Module):
    """uint8 latent -> features."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(x.to(torch.float32) / LATENT_LEVELS))


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Copy of `module` in eval mode, with batch norms of its sequences folded into convolutions.

    Those that follow a convolution in some other way are folded by the ONNX export.
    """
    found = copy.deepcopy(module).eval()
    for layers in found.modules():
        if not isinstance(layers, nn.Sequential):
            continue
        for i in range(1, len(layers)):
            before, layer = layers[i - 1], layers[i]
            if isinstance(before, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d):
                layers[i - 1] = fuse_conv_bn_eval(before, layer)
                layers[i] = nn.Identity()
    return found


def half_weights(layers: nn.Module) -> None:
    """Round every parameter to float16 in place, so that the network equals the stored bundle.

    Raises:
        BundleError: if one is no number, or larger than float16 holds (65,504).
    """
    with torch.no_grad():
        for p in layers.parameters():
            half = p.half().float()
            if not half.isfinite().all():
                raise BundleError(
                    f"a network with a weight of {float(p[~half.isfinite()][0]):g}",
                    expected=f"weights up to {torch.finfo(torch.float16).max:g}, which float16 "
                    "holds",
                    hint="train it again, with a lower learning rate",
                )
            p.copy_(half)


def segment_modules(net: BlockNetwork, half: bool = True) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every segment as (module, example input with batch 2).

    Args:
        net: the network; it is not changed.
        half: round the weights to float16, as they will be stored.
    """

    def ready(module: nn.Module) -> nn.Module:
        found = fold_batch_norm(module)
        if half:
            half_weights(found)
        return found

    side, topology = net.config.input_size, net.topology
    out: dict[str, tuple[nn.Module, Tensor]] = {}
    frame = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    x = frame
    for b in range(1, topology.n_blocks + 1):
        block = ready(net.blocks[b - 1])
        out[f"block{b}"] = (_Block1(net, block) if b == 1 else block, x)
        with torch.no_grad():
            x = out[f"block{b}"][0].eval()(x)
        if b in topology.exits:
            out[f"exit{b}"] = (ready(net.exit_of(b)), x)
        if b in net.cuts:
            out[f"enc{b}"] = (_Encoder(ready(net.encoder_of(b))), x)
            code = torch.zeros(2, *topology.payload_shape(b), dtype=torch.uint8)
            out[f"dec{b}"] = (_Decoder(ready(net.decoder_of(b))), code)
    return {name: out[name] for name in topology.segments}


def to_onnx(module: nn.Module, example: Tensor, half: bool = True) -> bytes:
    """One segment as ONNX, input ``x`` and output ``y`` with a free batch dimension.

    `half` stores large weights as float16.

    Raises:
        BundleError: if ONNX has no such operation.
    """
    block = module.block if isinstance(module, _Block1) else module
    if isinstance(block, OnnxBlock):
        return block.segment(example, module.net.channels if isinstance(module, _Block1) else 0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "segment.onnx"
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module.eval(),
                (example,),
                str(file),
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise BundleError(
                f"a part of the network that cannot be exported: {said(error)}",
                expected="operations of ONNX's operator set 17",
                hint="write that part with other operations",
            ) from error
        model = onnx.load(file)
    if half:
        _store_half(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _store_half(model: onnx.ModelProto) -> None:
    """Keep large float32 initialisers as float16 followed by a Cast."""
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 16:
            continue
        graph.initializer.remove(tensor)
        half = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_f16")
        graph.initializer.append(half)
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    """Feeds recorded segment inputs, one small batch at a time, to the calibrator."""

    def __init__(self, inputs: NDArray[Any], batch: int = 8) -> None:
        parts = (inputs[i : i + batch] for i in range(0, len(inputs), batch))
        self._rest: Iterator[NDArray[Any]] = iter(parts)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next feed, None at the end."""
        x = next(self._rest, None)
        return None if x is None else {"x": x}


def quantise_segment(segment: bytes, inputs: NDArray[Any]) -> bytes:
    """An int8 version of one exported segment.

    Args:
        segment: ONNX, float weights, input ``x``.
        inputs: calibration inputs (N, ...) of the segment's own kind.

    Returns:
        ONNX with the same input and output.
    """
    with tempfile.TemporaryDirectory() as folder, _errors_only():
        folded, target = Path(folder) / "folded.onnx", Path(folder) / "int8.onnx"
        options = ort.SessionOptions()
        # The basic level folds the float16 casts and leaves standard operators.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3
        ort.InferenceSession(segment, options, providers=["CPUExecutionProvider"])
        quantize_static(
            str(folded),
            str(target),
            _Inputs(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(QUANTISED_OPS),
        )
        return target.read_bytes()


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Within the block the root logger logs errors only: the quantiser uses it to recommend
    pre-processing, which has been done."""
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def segment_inputs(runtime: SplitRuntime, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The input of every segment on `images` (B, H, W, 3), by segment name.

    Args:
        runtime: the float runtime of the same network.
        images: calibration frames.
    """
    out: dict[str, NDArray[Any]] = {}
    topology = runtime.topology
    x: NDArray[Any] = images
    for block in range(1, topology.n_blocks + 1):
        out[f"block{block}"] = x
        x = runtime.forward(x, block, block)
        if block in topology.exits:
            out[f"exit{block}"] = x
        if block in topology.splits:
            out[f"enc{block}"] = x
            out[f"dec{block}"] = runtime.payload(x, block)
    return out


def write_bundle(
    net: BlockNetwork,
    path: Path,
    temperatures: Sequence[float] | None = None,
    provenance: dict[str, Any] | None = None,
    int8_images: NDArray[np.uint8] | None = None,
    *,
    half: bool = True,
    class_names: Sequence[str] = (),
) -> Bundle:
    """Export `net` to the folder `path`, replacing a bundle that is there.

    Args:
        net: trained network.
        path: folder to write; appears whole or not at all. A folder that is there must hold
            a bundle and nothing else.
        temperatures: softmax temperatures, by action; None is 1 for all.
        provenance: how the network was trained; stored as it is.
        int8_images: calibration frames (N, H, W, 3) for an int8 bundle; None is float32.
        half: store float32's weights as float16.
        class_names: by class, kept in the bundle; empty leaves them out.

    Raises:
        BundleError: if float16 cannot hold a weight.
        DataError: if the folder holds other files, or cannot be written.
    """
    topology = net.topology
    if temperatures is None:
        temperatures = (1.0,) * topology.n_actions
    if int8_images is not None:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "float32"
            write_bundle(net, plain, temperatures, provenance, half=half, class_names=class_names)
            return _write_int8(load_bundle(plain), path, int8_images)
    parts = {
        name: (to_onnx(module, example, half), module, example)
        for name, (module, example) in segment_modules(net, half).items()
    }
    segments = {}
    for name, (data, module, example) in parts.items():
        with torch.no_grad():
            output = module(example)
        segments[name] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "input": [str(example.dtype).removeprefix("torch."), *example.shape[1:]],
            "output": [str(output.dtype).removeprefix("torch."), *output.shape[1:]],
        }
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "precision": "float32",
        "config": asdict(net.config),
        "topology": topology.to_json(),
        "segments": segments,
        "temperatures": [round(float(t), 6) for t in temperatures],
        "normalisation": net.normalisation,
        "latent": f"uint8 = round({LATENT_LEVELS} z), z in [0, 1]",
        "weights": "float16 on disk, float32 in memory" if half else "float32",
        "provenance": provenance or {},
    }
    if class_names:
        manifest["class_names"] = list(class_names)
    return _write(path, manifest, {name: data for name, (data, _, _) in parts.items()})


def _write_int8(plain: Bundle, path: Path, images: NDArray[np.uint8]) -> Bundle:
    inputs = segment_inputs(SplitRuntime(plain), images)
    data = {
        name: quantise_segment(plain.segment_bytes(name), inputs[name])
        for name in plain.topology.segments
    }
    manifest = plain.manifest
    for name in data:
        manifest["segments"][name]["sha256"] = hashlib.sha256(data[name]).hexdigest()
    manifest["precision"] = "int8"
    manifest["weights"] = f"int8 by channel (7 bits), calibrated on {len(images)} frames"
    return _write(path, manifest, data)


def _write(path: Path, manifest: dict[str, Any], segments: dict[str, bytes]) -> Bundle:
    manifest["hash"] = manifest_hash(json.loads(json.dumps(manifest)))
    with replacing_folder(path, BUNDLE) as temporary:
        (temporary / "segments").mkdir()
        for name, data in segments.items():
            (temporary / "segments" / f"{name}.onnx").write_bytes(data)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return load_bundle(path)
