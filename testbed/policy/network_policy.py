"""The trained policy: a multi-layer perceptron in numpy, and how a policy file becomes one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import BundleError
from cnn.topology import Topology
from testbed.policy.decision_points import START, DecisionSpace, decision_points
from testbed.policy.policies import StaticPolicy
from testbed.policy.policy_file import KINDS, PolicyBundle

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
        raise _unusable_network(problem)


def _unusable_network(problem: str) -> BundleError:
    """The error for a policy network with `problem`."""
    return BundleError(
        f"policy network with {problem}",
        expected=f"finite layers that chain, one action an output, {ACTIVATIONS}",
        hint="export the policy again with `sliproad agent export`",
    )


class NetworkPolicy:
    """Greedy policy of a multi-layer perceptron: the legal action with the largest output.

    Outputs are logits (PPO) or action values (DQN, QR-DQN); both are read by argmax. In the frame
    space every action is legal.

    Args:
        weights: float32 (n_out, n_in) of every layer, input side first.
        biases: float32 (n_out,) of every layer.
        space: in which it decides.
        activation: ``tanh`` or ``relu``, after every layer but the last.
        actions: of the space, one for each output; None is all of them.
        name: shown in tables and records.

    Raises:
        BundleError: if the layers are unusable (`Mlp`), an action is unknown, or at some decision
            point none is left.
    """

    memoryless: Final = True

    def __init__(
        self,
        weights: Sequence[NDArray[np.float32]],
        biases: Sequence[NDArray[np.float32]],
        *,
        space: DecisionSpace,
        activation: str = "tanh",
        actions: Sequence[int] | None = None,
        name: str = "agent",
    ) -> None:
        self._network = Mlp(weights, biases, activation)
        self._action_list = [
            int(a) for a in (range(space.n_actions) if actions is None else actions)
        ]
        known = set(self._action_list) <= set(range(space.n_actions))
        if len(self._action_list) != self._network.n_outputs or not known:
            problem = f"{self._network.n_outputs} outputs for actions {self._action_list}"
            raise _unusable_network(problem)
        self.name, self.space = name, space
        self.n_inputs = self._network.n_inputs
        self._actions = np.asarray(self._action_list, np.int64)
        self._penalty: NDArray[np.float32] | None = None
        if space.is_staged:
            legal = decision_points(space.topology).legal[:, self._action_list]
            if not legal.any(1).all():
                problem = f"no legal action at some decision point among {self._action_list}"
                raise _unusable_network(problem)
            self._penalty = np.where(legal, 0.0, -np.inf).astype(np.float32)
        # A list of rows is faster to index than the matrix.
        self._penalties = None if self._penalty is None else list(self._penalty)

    def reset(self) -> None:
        """Nothing to forget: the network has no memory."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """The action for one observation.

        Raises:
            ValueError: if an output is NaN, or the largest infinite: finite weights can overflow.
        """
        outputs = self._network(observation)
        if self._penalties is not None:
            outputs += self._penalties[point]
        best = int(outputs.argmax())  # of a NaN, if there is one
        if not math.isfinite(outputs[best]):
            raise ValueError("an output that is not finite")
        return self._action_list[best]

    def outputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs, with the illegal ones, float32 (B, n_outputs), for float32 (B, n_inputs)."""
        return self._network.batch(observations)

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The actions for a batch."""
        outputs = self.outputs(observations)
        if self._penalty is not None:
            outputs = outputs + self._penalty[START if points is None else points]
        actions: NDArray[np.int64] = self._actions[outputs.argmax(1)]
        return actions


def policy_from_bundle(bundle: PolicyBundle) -> NetworkPolicy | StaticPolicy:
    """The policy inside a bundle, of either space.

    Raises:
        BundleError: if the bundle's kind or its arrays are not understood.
    """
    manifest, kind = bundle.manifest, bundle.manifest.get("kind")
    try:
        if kind == "static":
            return StaticPolicy(int(manifest["actions"][0]), manifest["name"], bundle.topology)
        if kind in KINDS:
            layers = range(int(manifest["layers"]))
            return NetworkPolicy(
                [bundle.arrays[f"weight{i}"] for i in layers],
                [bundle.arrays[f"bias{i}"] for i in layers],
                space=bundle.space,
                **{key: manifest[key] for key in ("activation", "actions", "name")},
            )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BundleError(
            f"policy bundle with {type(error).__name__}: {error}",
            expected="the arrays and keys of a policy file",
            hint="export the policy again with `sliproad agent export`",
        ) from error
    raise BundleError(
        f"policy of kind {kind!r}",
        expected=f"one of {', '.join(KINDS)}",
        hint="export the policy with this version of sliproad",
    )


def load_policy(
    path: Path | str, bundle_hash: str | None = None, topology: Topology | None = None
) -> NetworkPolicy | StaticPolicy:
    """Read a policy file, of either space, and refuse it unless it fits this device.

    Args:
        path: a ``.policy`` file.
        bundle_hash: hash of the model bundle the device runs; None does not check it.
        topology: of that bundle; None does not check it.

    Raises:
        BundleError: if the file is missing or corrupt, was made for another model
            bundle or network, or reads another observation.
    """
    bundle = PolicyBundle.load(Path(path))
    bundle.check_fit(bundle_hash, topology)
    return policy_from_bundle(bundle)
