"""A user's own torch network: read from a Python file, measured, given exits and bottlenecks.

The file's function returns a module that states its blocks: an ordered list ``blocks``, or a plain
`nn.Sequential`, whose children are the blocks. Together they are the whole network, from the image
(B, C, H, W) in [0, 1] to logits (B, n_classes); normalisation belongs in the first one. Also read,
if the module has them: ``input_size`` (pixels), ``channels`` (3 or 1), ``exits`` and ``splits``
(block numbers from 1; split 0 is the frame itself).
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from cnn.common.errors import ConfigError, require, shown
from cnn.common.outside import said
from cnn.model_config import NetworkConfig
from cnn.network.added_parts import (
    HEAD_SHARE,
    latent_shape,
    make_decoder,
    make_encoder,
    make_exit,
    run_counted,
)
from cnn.network.block_network import BlockNetwork
from cnn.network.onnx_block import OnnxBlock
from cnn.topology import Topology

BLOCKS: Final = (2, 12)
CLASSES: Final = (2, 10_000)
_APART: Final = 0.1
"""Least share of the multiply-accumulates between two exits that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A function that makes a network.

    Attributes:
        name: as given, ``FILE.py:NAME``.
        sha256: of the file.
        function: the function.
        why: what was chosen while it was read, and why, in words.
    """

    name: str
    sha256: str
    function: Callable[..., object]
    why: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str) -> Definition:
        """The function NAME of ``FILE.py:NAME``; the file is run.

        Raises:
            ConfigError: if there is no such file or function, or the file fails.
        """
        file, _, function = name.rpartition(":")
        path = Path(file)
        hint = "such as --model examples/networks/resnet.py:resnet20"
        require(path.is_file() and bool(function), f"model {name!r}", "FILE.py:NAME", hint)
        with _running(f"{file}"), _importing_from(path.resolve().parent):
            spec = importlib.util.spec_from_file_location(f"sliproad_model_{path.stem}", path)
            require(spec is not None, f"model file {file}", "a Python file, FILE.py", hint)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        found = getattr(module, function, None)
        require(callable(found), f"no function {function!r} in {file}", "FILE.py:NAME", hint)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(name, digest, cast(Callable[..., object], found))

    def make(self, n_classes: int | None = None) -> nn.Module:
        """The module; the function gets ``n_classes`` if it has such a parameter.

        Args:
            n_classes: None: any number will do.

        Raises:
            ConfigError: if the function fails, or gives no module.
        """
        with _running(self.name):
            parameter = inspect.signature(self.function).parameters.get("n_classes")
            if parameter is not None and n_classes is None and parameter.default is parameter.empty:
                n_classes = CLASSES[0]
            given = {} if parameter is None or n_classes is None else {"n_classes": n_classes}
            found = self.function(**given)
        what = f"{self.name} gives {type(found).__name__}"
        require(isinstance(found, nn.Module), what, "a torch.nn.Module", "return the network")
        return cast(nn.Module, found)


@dataclass(frozen=True, slots=True)
class MeasuredBlock:
    """What one forward pass says about a block.

    Attributes:
        features: shape of its output for one frame, (C, H, W), (C,) or another one.
        macs: multiply-accumulates for one frame.
        parameters: numbers that are trained.
        rectified: no number in its output was negative.
    """

    features: tuple[int, ...]
    macs: int
    parameters: int
    rectified: bool


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks that a module states, without in-place operations.

    In place, a block would change the output of the one before, which exits and encoders read.

    Raises:
        ConfigError: if it states none, or too few or too many.
    """
    stated = module if type(module) is nn.Sequential else getattr(module, "blocks", None)
    fine = isinstance(stated, (list, tuple, nn.Sequential, nn.ModuleList))
    blocks = list(cast(Sequence[nn.Module], stated)) if fine else []
    fine = fine and all(isinstance(b, nn.Module) for b in blocks)
    what = f"a network ({type(module).__name__}) that states no blocks"
    expected = "an attribute `blocks`, a list of modules, or an nn.Sequential of the blocks"
    require(fine, what, expected, "group its layers into blocks, see docs/your-network.md")
    low, high = BLOCKS
    what = f"a network in {len(blocks)} block{'s' * (len(blocks) != 1)}"
    hint = "group its layers, such as a stage each"
    require(low <= len(blocks) <= high, what, f"{low} to {high} blocks", hint)
    for layer in module.modules():
        if getattr(layer, "inplace", False) is True:
            cast(Any, layer).inplace = False
    return blocks


def input_size_of(module: nn.Module) -> int:
    """Side of the square image that a module states; raises `ConfigError` if it does not."""
    size = getattr(module, "input_size", None)
    expected = "an attribute `input_size`, pixels, or --input-size"
    require(type(size) is int, f"a network of input size {shown(size)}", expected, "state it")
    return cast(int, size)


def channels_of(module: nn.Module) -> int:
    """Channels of the image that a module takes: stated, or those of its first convolution."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    channels = getattr(module, "channels", 3 if first is None else first.in_channels)
    hint = "let the first block take one of these"
    require(channels in (1, 3), f"images of {shown(channels)} channels", "3 (RGB) or 1", hint)
    return cast(int, channels)


def measure(module: nn.Module, x: Tensor, n_classes: int) -> list[MeasuredBlock]:
    """One forward pass, block by block.

    Args:
        module: states its blocks.
        x: images (B, C, H, W) in [0, 1], at least 2.
        n_classes: of the data.

    Raises:
        ConfigError: if a block fails, the last one does not give (B, n_classes), or all together
            give something else than the module itself.
    """
    found, image = [], x
    for number, block in enumerate(blocks_of(module), 1):
        with _running(f"block {number} on input of shape {shown(list(x.shape))}"):
            y, macs = run_counted(block, x)
        parameters = sum(p.numel() for p in block.parameters())
        if isinstance(block, OnnxBlock):
            macs, parameters = block.macs, block.n_weights
        fine = isinstance(y, Tensor) and y.dim() >= 2 and len(y) == len(x)
        what = f"block {number} gives {_shape(y)} for a batch of {len(x)}"
        require(fine, what, "one tensor with the batch first", "correct the block")
        finite = bool(y.isfinite().all())
        require(finite, f"block {number} gives numbers that are not finite", "finite ones")
        found.append(MeasuredBlock(tuple(y.shape[1:]), macs, parameters, bool((y >= 0).all())))
        x = y
    what = f"a network with output (B, {', '.join(map(str, found[-1].features))})"
    hint = "let its function take n_classes, and the last block end with the classifier"
    expected = f"(B, {n_classes}), logits of the data's {n_classes} classes"
    require(found[-1].features == (n_classes,), what, expected, hint)
    if type(module).forward is not nn.Module.forward:
        with _running("the network as a whole"), torch.no_grad():
            whole = module.eval()(image)
        same = not isinstance(whole, Tensor) or torch.allclose(whole, x, rtol=1e-3, atol=1e-4)
        what = "blocks that give something else than the network's own forward"
        require(same, what, "blocks that are the whole network, in order", "correct `blocks`")
    return found


def choose_topology(
    module: nn.Module, measured: Sequence[MeasuredBlock], input_size: int, payload: float
) -> tuple[Topology, list[str]]:
    """Exits, splits and payloads of a network, and why they are these, in words.

    Args:
        module: may state ``exits`` and ``splits``.
        measured: its blocks.
        input_size: side of a frame, pixels.
        payload: share of a block's output that its latent has.

    Raises:
        ConfigError: if those stated do not fit the network.
    """
    n, frame = len(measured), (input_size, input_size, 3)
    latents: dict[int, tuple[int, int, int]] = {0: frame}
    for b, block in enumerate(measured[:-1], 1):
        if len(block.features) == 3:
            latents[b] = latent_shape(block.features, math.prod(frame), payload)
    exits, splits = _stated(module, "exits", 1, n), _stated(module, "splits", 0, n - 1)
    why = []
    if exits is None:
        exits = _spread_exits(measured)
        why.append(
            f"exits {_listed(exits)}: a tenth of the multiply-accumulates or more lies between two"
        )
    if splits is None:
        splits = _falling(latents)
        why.append(f"splits {_listed(splits)}: each sends fewer bytes than the one before")
    for b in exits[:-1]:
        _check_features(f"an exit behind block {b}", measured[b - 1], (1, 3))
    for b in splits:
        if b > 0:
            _check_features(f"a split behind block {b}", measured[b - 1], (3,))
            whole, sent = math.prod(measured[b - 1].features), math.prod(latents[b])
            why.append(
                f"split {b} sends {sent} bytes ({' x '.join(map(str, latents[b]))}): "
                f"1/{whole / sent:.3g} of the block's output, "
                f"{100 * sent / math.prod(frame):.0f} % of the frame"
            )
    return Topology(n, exits, splits, tuple(latents[s] for s in splits)), why


def add_parts(
    blocks: Sequence[nn.Module],
    measured: Sequence[MeasuredBlock],
    config: NetworkConfig,
    topology: Topology,
    channels: int,
) -> BlockNetwork:
    """The network with untrained exits and bottlenecks; the main exit is the last block's output.

    The weights of the new parts are drawn from torch's generator.
    """
    macs = 0
    exits: list[nn.Module] = []
    for b, block in enumerate(measured[:-1], 1):
        macs += block.macs
        if b in topology.exits:
            exits.append(make_exit(block.features, config.n_classes, HEAD_SHARE * macs))
    encoders, decoders = [], []
    for s in topology.splits:
        if s > 0:
            features = cast(tuple[int, int, int], measured[s - 1].features)
            latent = topology.payload_shape(s)
            encoders.append(make_encoder(features, latent))
            rectified = measured[s - 1].rectified
            decoders.append(make_decoder(features, latent, rectified, encoders[-1]))
    parts = (blocks, [*exits, nn.Identity()], encoders, decoders)
    return BlockNetwork(config, topology, *parts, channels=channels)


def _stated(module: nn.Module, name: str, low: int, high: int) -> tuple[int, ...] | None:
    """Block numbers that a module states; None if it does not."""
    given = getattr(module, name, None)
    if given is None:
        return None
    fine = isinstance(given, (list, tuple)) and all(type(b) is int for b in given)
    what = f"{name} {shown(list(given)) if fine else type(given).__name__}"
    expected = f"block numbers from {low} to {high}, ascending"
    fine = fine and list(given) == sorted(set(given)) and all(low <= b <= high for b in given)
    if name == "exits":
        expected += f", the last block ({high}) among them"
        fine = fine and high in given
    require(fine, f"a network with {what}", expected, "correct the attribute, or leave it out")
    return tuple(given)


def _spread_exits(measured: Sequence[MeasuredBlock]) -> tuple[int, ...]:
    total, done, last = sum(b.macs for b in measured), 0, 0
    exits = []
    for b, block in enumerate(measured[:-1], 1):
        done += block.macs
        far = min(done - last, total - done) >= _APART * total
        if far and len(block.features) in (1, 3):
            exits.append(b)
            last = done
    return (*exits, len(measured))


def _falling(latents: dict[int, tuple[int, int, int]]) -> tuple[int, ...]:
    splits, least = [], math.inf
    for b, shape in latents.items():
        if math.prod(shape) < least:
            splits.append(b)
            least = math.prod(shape)
    return tuple(splits)


def _check_features(what: str, block: MeasuredBlock, dimensions: tuple[int, ...]) -> None:
    expected = "(channels, height, width)" + (" or (channels,)" if 1 in dimensions else "")
    require(
        len(block.features) in dimensions,
        f"{what}, whose output is {shown(list(block.features))} a frame",
        expected,
        "leave it out, or cut the blocks elsewhere",
    )


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))


def _shape(y: object) -> str:
    return shown(list(y.shape)) if isinstance(y, Tensor) else type(y).__name__


@contextmanager
def _running(what: str) -> Iterator[None]:
    """Turn an error of the user's code into one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{what}: {said(error)}", expected="code that runs", hint="correct the network's file"
        ) from error


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """As for a script: modules beside it can be imported while it loads."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
