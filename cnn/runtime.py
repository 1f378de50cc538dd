"""Run any part of a bundle with ONNX Runtime: blocks, exits, encoders, decoders.

The segments are composed at run time, so no weight is stored or loaded twice and a device that is
after block S can always finish by itself. Needs numpy and onnxruntime only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.bundle import Bundle
from cnn.common.errors import BundleError, ConfigError, DataError
from cnn.common.outside import said
from cnn.ort import CPU_PROVIDER, checked_providers
from cnn.ort import onnxruntime as ort
from cnn.topology import Action

_MOST_INPUTS: Final = 2**24
"""Numbers in the input of a segment for one frame; the largest of VGG-16's own has 0.8 million."""
Features = NDArray[Any]
"""Either the uint8 frame (B, H, W, 3) or float32 block output (B, C, h, w)."""


class SplitRuntime:
    """One process's copy of the network.

    Args:
        bundle: a verified bundle.
        threads: ONNX Runtime's threads for one segment, at least 1.
        providers: ONNX Runtime's execution providers by name, in the order in which each operator
            is offered to them.

    Attributes:
        providers: of every session, the CPU's included. ONNX Runtime goes on silently without one
            that does not start; here that is an error. An operator that a provider lacks runs on
            the next one.

    Segments are loaded when first used; `warm` loads and runs them beforehand.

    Raises:
        ConfigError: if there are no threads, or this machine's ONNX Runtime lacks a provider; from
            any method that runs a segment, if a provider does not start.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 1, providers: Sequence[str] = (CPU_PROVIDER,)
    ) -> None:
        if threads < 1:
            raise ConfigError(f"{threads} threads", expected="at least 1", hint="try 1")
        self.bundle = bundle
        self.topology = bundle.topology
        self.threads = threads
        self.providers = checked_providers(providers)
        self._sessions: dict[str, ort.InferenceSession] = {}

    def start(self, frame: NDArray[np.uint8]) -> Features:
        """uint8 (H, W, 3) RGB -> uint8 (1, H, W, 3), the input of block 1.

        Raises:
            DataError: if the frame has another shape or dtype.
        """
        size = self.bundle.config.input_size
        if frame.shape != (size, size, 3) or frame.dtype != np.uint8:
            raise DataError(
                f"frame of shape {frame.shape}, {frame.dtype}",
                expected=f"uint8 ({size}, {size}, 3)",
                hint="resize it with cnn.data.image_file.resize_rgb",
            )
        return np.ascontiguousarray(frame)[None]

    def forward(self, x: Features, first: int, last: int) -> Features:
        """Run blocks `first`..`last`; `x` is returned as it is if ``last < first``."""
        for block in range(first, last + 1):
            x = self._run(f"block{block}", x)
        return x

    def wire_shape(self, split: int) -> tuple[int, int, int]:
        """Shape of one frame's uint8 payload at `split`, without the batch."""
        return self.topology.payload_shape(split)

    def payload(self, x: Features, split: int) -> NDArray[np.uint8]:
        """The payload on the uplink: the frame (split 0) or the quantised latent, uint8."""
        return x if split == 0 else self._run(f"enc{split}", x)

    def received(self, payload: NDArray[np.uint8], split: int) -> Features:
        """Server side of `payload`: input of block `split` + 1."""
        return payload if split == 0 else self._run(f"dec{split}", payload)

    def logits(self, x: Features, exit: int) -> NDArray[np.float32]:
        """Uncalibrated logits (B, n_classes) of `exit`, given the output of its block."""
        out: NDArray[np.float32] = self._run(f"exit{exit}", x)
        return out

    def calibrated(
        self, logits: NDArray[np.float32], exit: int, split: int
    ) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Classes int16 (B,) and calibrated confidences float32 (B,) of (exit, split).

        A confidence is at least 1 / n_classes; 0 means that the logits were not finite.
        """
        z = logits / self.bundle.temperatures[self.topology.index(exit, split)]
        z = z - z.max(1, keepdims=True)
        confidence = np.nan_to_num(1 / np.exp(z).sum(1), nan=0.0)  # of logits that are not finite
        return logits.argmax(1).astype(np.int16), confidence.astype(np.float32)

    def answer(self, x: Features, exit: int, split: int) -> tuple[int, float]:
        """Class and calibrated confidence of the first frame in `x` at `exit`."""
        predictions, confidences = self.calibrated(self.logits(x, exit), exit, split)
        return int(predictions[0]), float(confidences[0])

    def tail(
        self, payload: NDArray[np.uint8], exit: int, split: int
    ) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Server side of (exit, split) for a batch: int16 (B,), float32 (B,)."""
        x = self.forward(self.received(payload, split), split + 1, exit)
        return self.calibrated(self.logits(x, exit), exit, split)

    def act(self, frame: NDArray[np.uint8], action: Action) -> tuple[int, float]:
        """Whole path of one action in this process, bottleneck included."""
        x = self.forward(self.start(frame), 1, action.split)
        if action.is_local:
            return self.answer(x, action.exit, action.split)
        predictions, confidences = self.tail(
            self.payload(x, action.split), action.exit, action.split
        )
        return int(predictions[0]), float(confidences[0])

    def local(self, frame: NDArray[np.uint8], exit: int) -> tuple[int, float]:
        """Fully local answer of `exit`."""
        return self.act(frame, self.topology.action(exit, exit))

    def warm(self, segments: tuple[str, ...] | None = None, runs: int = 2) -> None:
        """Load segments and run each `runs` times on zeros (first runs are slow).

        Args:
            segments: their names; None is all of the network's.
            runs: of each.

        Raises:
            BundleError: if one cannot be loaded or does not run.
        """
        for name in self.topology.segments if segments is None else segments:
            session = self._session(name)
            spec = session.get_inputs()[0]
            shape = [1 if not isinstance(d, int) else d for d in spec.shape]
            if math.prod(shape) > _MOST_INPUTS:
                raise self._unusable(name, f"an input of {math.prod(shape)} numbers")
            dtype = np.uint8 if spec.type == "tensor(uint8)" else np.float32
            for _ in range(runs):
                self._run(name, np.zeros(shape, dtype))

    def _run(self, name: str, x: Features) -> Any:
        session = self._session(name)
        try:
            return session.run(None, {"x": x})[0]
        except Exception as error:  # onnxruntime raises its own pybind classes
            raise self._unusable(name, said(error)) from error

    def _unusable(self, name: str, what: str) -> BundleError:
        return BundleError(
            f"segment {name} of {self.bundle.path}: {what}",
            expected="an ONNX segment that this onnxruntime can load and run",
            hint="update onnxruntime, or export the bundle again",
        )

    def _session(self, name: str) -> ort.InferenceSession:
        session = self._sessions.get(name)
        if session is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            content = self.bundle.segment_bytes(name)  # run the bytes that were checked
            try:
                session = ort.InferenceSession(
                    content,
                    options,
                    providers=list(self.providers),
                )
            except Exception as error:
                raise self._unusable(name, said(error)) from error
            self._check_started(session)
            self._sessions[name] = session
        return session

    def _check_started(self, session: ort.InferenceSession) -> None:
        """Raise `ConfigError` unless the session has every provider, and keep it so."""
        session.disable_fallback()  # a failing `run` would go on with the CPU's alone
        started = session.get_providers()
        lacking = [name for name in self.providers if name not in started]
        if lacking:
            raise ConfigError(
                f"execution provider {lacking[0]}, which does not start on this machine",
                expected=f"providers that do; {', '.join(started)} did",
                hint="install what it needs (its driver and libraries; ONNX Runtime's own messages "
                "say what is missing), or leave it out",
            )
