"""Policies that a device runs with numpy alone, and the file they travel in.

A policy sees the observation of `testbed.policy.observer` and answers with the canonical
number of an action. `agents` writes policy files; nothing here imports it, torch or
stable-baselines3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import BundleError, ConfigError
from cnn.topology import ACTIONS, N_ACTIONS, Action, action_from_index
from testbed.policy.mlp import Mlp, best, unusable_network
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.policy_manifest import STAGED_KIND

__all__ = [
    "NetworkPolicy",
    "Policy",
    "PolicyBundle",
    "RandomPolicy",
    "StaticPolicy",
    "load_policy",
    "policy_from_bundle",
]


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

    Outputs are logits (PPO) or action values (DQN); both are read by argmax.

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
        self._network = Mlp(weights, biases, activation)
        self._action_list = [int(a) for a in actions]
        if len(actions) != self._network.n_outputs or not set(actions) <= set(range(N_ACTIONS)):
            raise unusable_network(f"{self._network.n_outputs} outputs for actions {list(actions)}")
        self.name = name
        self.n_inputs = self._network.n_inputs
        self._actions = np.asarray(actions, np.int64)
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
                hint="allow one of them",
            )
        self._penalty[:] = np.where(keep, 0.0, -np.inf)

    def decide(self, observation: NDArray[np.float32]) -> int:
        """Action with the largest output, one observation."""
        logits = self._network(observation)
        if self._masked:
            logits += self._penalty
        return self._action_list[best(logits)]

    def outputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unmasked outputs, float32 (B, n_outputs), for float32 (B, n_inputs)."""
        return self._network.batch(observations)

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """Actions with the largest outputs, one a row."""
        logits = self.outputs(observations)
        if self._masked:
            logits = logits + self._penalty
        actions: NDArray[np.int64] = self._actions[logits.argmax(1)]
        return actions


MALFORMED: Final = (KeyError, IndexError, TypeError, ValueError)
"""What reading a manifest or arrays of another form raises."""


def network_arguments(bundle: PolicyBundle) -> dict[str, Any]:
    """What a network policy of either kind is made with; raises one of `MALFORMED`."""
    manifest = bundle.manifest
    n = int(manifest["layers"])
    return {
        "weights": [bundle.arrays[f"weight{i}"] for i in range(n)],
        "biases": [bundle.arrays[f"bias{i}"] for i in range(n)],
        **{key: manifest[key] for key in ("activation", "actions", "name")},
    }


def malformed(error: Exception) -> BundleError:
    """The error of a bundle whose manifest or arrays have another form."""
    return BundleError(
        f"policy bundle with {type(error).__name__}: {error}",
        expected="the arrays and keys of a policy file",
        hint="export the policy again with `sliproad agent export`",
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
            return NetworkPolicy(**network_arguments(bundle))
    except MALFORMED as error:
        raise malformed(error) from error
    if kind == STAGED_KIND:
        raise BundleError(
            "a staged policy, which decides several times within a frame",
            expected="a policy that decides once a frame",
            hint="give it where a staged policy is asked for, or train with --env frame",
        )
    raise BundleError(
        f"policy of kind {kind!r}",
        expected="'mlp' or 'static'",
        hint="export the policy with this version of sliproad",
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
