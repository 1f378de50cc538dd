"""A multi-layer perceptron on numpy alone, for one observation or many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import BundleError

ACTIVATIONS: Final = ("tanh", "relu")


class Mlp:
    """Layers of a perceptron, their buffers allocated once.

    Every bias is a column of its layer's matrix that meets a constant 1 at the end of the
    layer's input, so that one layer is one small matrix-vector product and one activation.

    Args:
        weights: float32 (n_out, n_in) of every layer, input side first.
        biases: float32 (n_out,) of every layer.
        activation: ``tanh`` or ``relu``, after every layer but the last.

    Raises:
        BundleError: if the shapes do not chain, a number is not finite, or the activation
            is unknown.
    """

    def __init__(
        self,
        weights: Sequence[NDArray[np.float32]],
        biases: Sequence[NDArray[np.float32]],
        activation: str = "tanh",
    ) -> None:
        _check_layers(weights, biases, activation)
        self.n_inputs: int = weights[0].shape[1]
        self.n_outputs: int = weights[-1].shape[0]
        self._relu = activation == "relu"
        self._layers = [
            np.ascontiguousarray(np.column_stack([w, b]), np.float32)
            for w, b in zip(weights, biases, strict=True)
        ]
        sizes = [layer.shape[1] for layer in self._layers]
        self._inputs = [np.ones(size, np.float32) for size in sizes]
        outputs = [*(x[:-1] for x in self._inputs[1:]), np.empty(self.n_outputs, np.float32)]
        self._observation, self._logits = self._inputs[0][:-1], outputs[-1]
        self._hidden = list(zip(self._layers[:-1], self._inputs[:-1], outputs[:-1], strict=True))

    def __call__(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs, float32 (n_outputs,), for float32 (n_inputs,).

        The array is the network's own buffer: the next call overwrites it.
        """
        self._observation[:] = observation
        for layer, x, out in self._hidden:
            np.dot(layer, x, out)
            if self._relu:
                np.maximum(out, 0.0, out=out)
            else:
                np.tanh(out, out=out)
        logits = self._logits
        np.dot(self._layers[-1], self._inputs[-1], logits)
        return logits

    def batch(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs, float32 (B, n_outputs), for float32 (B, n_inputs); a new array."""
        x = np.asarray(observations, np.float32)
        for i, layer in enumerate(self._layers):
            x = x @ layer[:, :-1].T + layer[:, -1]
            if i < len(self._layers) - 1:
                x = np.maximum(x, 0.0) if self._relu else np.tanh(x)
        return x


def best(outputs: NDArray[np.float32]) -> int:
    """Where the largest output stands.

    Raises:
        ValueError: if one is NaN, or the largest is infinite: finite weights can overflow, too.
    """
    at = int(outputs.argmax())  # of a NaN, if there is one
    if not math.isfinite(outputs[at]):
        raise ValueError("an output that is not finite")
    return at


def _check_layers(
    weights: Sequence[NDArray[np.float32]], biases: Sequence[NDArray[np.float32]], activation: str
) -> None:
    problem = ""
    if activation not in ACTIVATIONS:
        problem = f"activation {activation!r}"
    elif not weights or len(weights) != len(biases):
        problem = f"{len(weights)} weight matrices and {len(biases)} biases"
    elif any(w.ndim != 2 or b.shape != w.shape[:1] for w, b in zip(weights, biases, strict=True)):
        problem = f"layers {[w.shape for w in weights]} with biases {[b.shape for b in biases]}"
    elif any(b.shape[0] != a.shape[1] for b, a in pairwise(weights)):
        problem = f"layers {[w.shape for w in weights]} that do not chain"
    elif not all(np.isfinite(a).all() for a in (*weights, *biases)):
        problem = "weights that are not finite"
    if problem:
        raise unusable_network(problem)


def unusable_network(problem: str) -> BundleError:
    """The error for a policy network with `problem`."""
    return BundleError(
        f"policy network with {problem}",
        expected=f"finite layers that chain, one action an output, {ACTIVATIONS}",
        hint="export the policy again with `sliproad agent export`",
    )
