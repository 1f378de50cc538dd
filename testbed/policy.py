"""Policies that a device runs with numpy alone, and the file they travel in.

A policy sees the observation of `testbed.observation` and answers with the canonical
number of an action. `agents` writes policy files; nothing here imports it, torch or
stable-baselines3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_ACTIONS, Action, action_from_index
from cnn.errors import BundleError, ConfigError
from testbed.policy_bundle import PolicyBundle

__all__ = [
    "NetworkPolicy",
    "Policy",
    "PolicyBundle",
    "RandomPolicy",
    "StaticPolicy",
    "load_policy",
    "policy_from_bundle",
]

ACTIVATIONS: Final = ("tanh", "relu")


@runtime_checkable
class Policy(Protocol):
    """Chooses an action for every frame.

    Attributes:
        name: shown in tables and records.

    A policy whose decisions depend on nothing but the observation says so by an attribute
    ``memoryless = True``: asking it twice then changes nothing.
    """

    name: str

    def reset(self) -> None:
        """Forget everything learnt since the start of the drive."""

    def decide(self, observation: NDArray[np.float32]) -> int:
        """Canonical action number for one observation, float32 (OBS_DIM,)."""

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """Canonical action numbers, int64 (B,), for float32 (B, OBS_DIM).

        Row b of successive calls belongs to drive b: a policy with memory keeps one
        memory a row.
        """


class StaticPolicy:
    """Always the same action."""

    memoryless: Final = True

    def __init__(self, action: Action | int, name: str | None = None) -> None:
        self.action = action if isinstance(action, Action) else action_from_index(action)
        self.name = name or f"static {self.action.name}"
        self._index = self.action.index

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32]) -> int:
        """The fixed action's number."""
        return self._index

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """The fixed action's number, once a row."""
        return np.full(len(observations), self._index, np.int64)


class RandomPolicy:
    """Uniform over `actions` (all 20 by default), from its own seeded generator."""

    def __init__(self, seed: int, actions: Sequence[int] = range(N_ACTIONS)) -> None:
        self.name = "random"
        self._seed = seed
        self._actions = np.asarray(actions, np.int64)
        self._rng = np.random.default_rng(seed)

    def reset(self) -> None:
        """Start the sequence of random numbers anew."""
        self._rng = np.random.default_rng(self._seed)

    def decide(self, observation: NDArray[np.float32]) -> int:
        """A uniformly random action."""
        return int(self._rng.choice(self._actions))

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """Independent uniformly random actions."""
        return self._rng.choice(self._actions, len(observations))


class NetworkPolicy:
    """Greedy policy of a multi-layer perceptron: the action with the largest output.

    Outputs are logits (PPO) or action values (DQN); both are read by argmax. Buffers
    are allocated once and every bias is a column of its layer's matrix that meets a
    constant 1 at the end of the layer's input, so that a decision is one small
    matrix-vector product and one activation a layer.

    Args:
        weights: float32 (n_out, n_in) of every layer, input side first.
        biases: float32 (n_out,) of every layer.
        activation: ``tanh`` or ``relu``, after every layer but the last.
        actions: canonical action number of each output.
        name: shown in tables and records.

    Raises:
        BundleError: if the shapes do not chain, a number is not finite, or the
            activation or an action is unknown.
    """

    memoryless: Final = True

    def __init__(
        self,
        weights: Sequence[NDArray[np.float32]],
        biases: Sequence[NDArray[np.float32]],
        *,
        activation: str = "tanh",
        actions: Sequence[int] = range(N_ACTIONS),
        name: str = "agent",
    ) -> None:
        _check_layers(weights, biases, activation, list(actions))
        self.name = name
        self.n_inputs = weights[0].shape[1]
        self._actions = np.asarray(actions, np.int64)
        self._action_list = [int(a) for a in actions]
        self._relu = activation == "relu"
        self._layers = [
            np.ascontiguousarray(np.column_stack([w, b]), np.float32)
            for w, b in zip(weights, biases, strict=True)
        ]
        sizes = [layer.shape[1] for layer in self._layers]
        self._inputs = [np.ones(size, np.float32) for size in sizes]
        outputs = [*(x[:-1] for x in self._inputs[1:]), np.empty(len(self._actions), np.float32)]
        self._observation, self._logits = self._inputs[0][:-1], outputs[-1]
        self._hidden = list(zip(self._layers[:-1], self._inputs[:-1], outputs[:-1], strict=True))
        self._penalty = np.zeros(len(self._actions), np.float32)
        self._masked = False

    def reset(self) -> None:
        """Nothing to forget: the network has no memory."""

    def set_mask(self, allowed: NDArray[np.bool_] | None) -> None:
        """Restrict decisions to the actions that are True in bool (20,); None allows all.

        Raises:
            ConfigError: if no action of this policy is left.
        """
        self._masked = allowed is not None
        if allowed is None:
            return
        keep = np.asarray(allowed, bool)[self._actions]
        if not keep.any():
            raise ConfigError(
                "an action mask that forbids every action of the policy",
                expected=f"at least one of {[ACTIONS[a].name for a in self._action_list]}",
                mend="allow one of them",
            )
        self._penalty[:] = np.where(keep, 0.0, -np.inf)

    def decide(self, observation: NDArray[np.float32]) -> int:
        """Action with the largest output, one observation."""
        self._observation[:] = observation
        for layer, x, out in self._hidden:
            np.dot(layer, x, out)
            if self._relu:
                np.maximum(out, 0.0, out=out)
            else:
                np.tanh(out, out=out)
        logits = self._logits
        np.dot(self._layers[-1], self._inputs[-1], logits)
        if self._masked:
            logits += self._penalty
        return self._action_list[logits.argmax()]

    def outputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unmasked outputs, float32 (B, n_outputs), for float32 (B, n_inputs)."""
        x = np.asarray(observations, np.float32)
        for i, layer in enumerate(self._layers):
            x = x @ layer[:, :-1].T + layer[:, -1]
            if i < len(self._layers) - 1:
                x = np.maximum(x, 0.0) if self._relu else np.tanh(x)
        return x

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """Actions with the largest outputs, one a row."""
        logits = self.outputs(observations)
        if self._masked:
            logits = logits + self._penalty
        actions: NDArray[np.int64] = self._actions[logits.argmax(1)]
        return actions


def _check_layers(
    weights: Sequence[NDArray[np.float32]],
    biases: Sequence[NDArray[np.float32]],
    activation: str,
    actions: list[int],
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
    elif len(actions) != weights[-1].shape[0] or not set(actions) <= set(range(N_ACTIONS)):
        problem = f"{weights[-1].shape[0]} outputs for actions {actions}"
    elif not all(np.isfinite(a).all() for a in (*weights, *biases)):
        problem = "weights that are not finite"
    if problem:
        raise BundleError(
            f"policy network with {problem}",
            expected=f"finite layers that chain, one action an output, {ACTIVATIONS}",
            mend="export the policy again with `sliproad agent export`",
        )


def policy_from_bundle(bundle: PolicyBundle) -> NetworkPolicy | StaticPolicy:
    """The policy inside a bundle.

    Raises:
        BundleError: if the bundle's kind or its arrays are not understood.
    """
    manifest = bundle.manifest
    kind = manifest.get("kind")
    try:
        if kind == "static":
            return StaticPolicy(int(manifest["actions"][0]), manifest["name"])
        if kind == "mlp":
            n = int(manifest["layers"])
            return NetworkPolicy(
                [bundle.arrays[f"weight{i}"] for i in range(n)],
                [bundle.arrays[f"bias{i}"] for i in range(n)],
                activation=manifest["activation"],
                actions=manifest["actions"],
                name=manifest["name"],
            )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BundleError(
            f"policy bundle with {type(error).__name__}: {error}",
            expected="the arrays and keys of format 1",
            mend="export the policy again with `sliproad agent export`",
        ) from error
    raise BundleError(
        f"policy of kind {kind!r}",
        expected="'mlp' or 'static'",
        mend="export the policy with this version of sliproad",
    )


def load_policy(path: Path | str, bundle_hash: str | None = None) -> NetworkPolicy | StaticPolicy:
    """Read a policy file and refuse it unless it fits this device.

    Args:
        path: a ``.policy`` file.
        bundle_hash: hash of the model bundle the device runs; None does not check it.

    Raises:
        BundleError: if the file is missing or corrupt, was made for another model
            bundle, or reads another observation.
    """
    bundle = PolicyBundle.load(Path(path))
    bundle.check_fit(bundle_hash)
    return policy_from_bundle(bundle)
