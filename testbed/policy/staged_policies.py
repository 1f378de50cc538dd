"""Policies that decide several times within a frame, and their file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import BundleError
from testbed.policy.decision_points import LEGAL, N_STAGED
from testbed.policy.mlp import Mlp, best, unusable_network
from testbed.policy.policies import (
    MALFORMED,
    NetworkPolicy,
    Policy,
    StaticPolicy,
    malformed,
    network_arguments,
    policy_from_bundle,
)
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.policy_manifest import STAGED_KIND


@runtime_checkable
class StagedPolicy(Protocol):
    """Decides at the start of a frame, and again after a look at an exit and after giving up.

    Attributes:
        name: shown in tables and records.
        staged: True. `isinstance(policy, StagedPolicy)` tells by this attribute a staged
            policy from one that decides once a frame.
        memoryless: as in `testbed.policy.policies.Policy`; may be missing.
    """

    name: str
    staged: bool

    def reset(self) -> None:
        """Forget everything learnt since the start of the drive."""

    def decide(self, observation: NDArray[np.float32], point: int) -> int:
        """A staged action that is legal at `point` (`testbed.policy.decision_points`).

        Args:
            observation: float32 (`STAGED_OBS_DIM`,).
            point: where the device is within the frame, 0..19.
        """

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Legal staged actions, int64 (B,), for float32 (B, STAGED_OBS_DIM), int64 (B,)."""


AnyPolicy = Policy | StagedPolicy


def is_staged(policy: AnyPolicy) -> TypeGuard[StagedPolicy]:
    """Whether the policy decides in stages now: one that changes between frames may change this."""
    return bool(getattr(policy, "staged", False))


class StagedNetworkPolicy:
    """Greedy staged policy of a multi-layer perceptron: the legal action with the largest output.

    Args:
        weights: float32 (n_out, n_in) of every layer, input side first.
        biases: float32 (n_out,) of every layer.
        activation: ``tanh`` or ``relu``, after every layer but the last.
        actions: staged action number of each output.
        name: shown in tables and records.

    Raises:
        BundleError: if the layers are unusable (`testbed.policy.mlp.Mlp`), or at some stand no
            action is left.
    """

    memoryless: Final = True
    staged: bool = True

    def __init__(
        self,
        weights: Sequence[NDArray[np.float32]],
        biases: Sequence[NDArray[np.float32]],
        *,
        activation: str = "tanh",
        actions: Sequence[int] = range(N_STAGED),
        name: str = "staged-agent",
    ) -> None:
        self._network = Mlp(weights, biases, activation)
        self._action_list = [int(a) for a in actions]
        known = set(self._action_list) <= set(range(N_STAGED))
        if len(actions) != self._network.n_outputs or not known:
            raise unusable_network(f"{self._network.n_outputs} outputs for actions {list(actions)}")
        legal = LEGAL[:, self._action_list]
        if not legal.any(1).all():
            raise unusable_network(f"no legal action at some stand among {list(actions)}")
        self.name = name
        self.n_inputs = self._network.n_inputs
        self._actions = np.asarray(actions, np.int64)
        self._penalty = np.where(legal, 0.0, -np.inf).astype(np.float32)
        self._penalties = list(self._penalty)

    def reset(self) -> None:
        """Nothing to forget: the network has no memory."""

    def decide(self, observation: NDArray[np.float32], point: int) -> int:
        """Legal action with the largest output, one observation."""
        logits = self._network(observation)
        logits += self._penalties[point]
        return self._action_list[best(logits)]

    def outputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unmasked outputs, float32 (B, n_outputs), for float32 (B, n_inputs)."""
        return self._network.batch(observations)

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Legal actions with the largest outputs, one a row."""
        logits = self.outputs(observations) + self._penalty[points]
        actions: NDArray[np.int64] = self._actions[logits.argmax(1)]
        return actions


def any_policy_from_bundle(
    bundle: PolicyBundle,
) -> NetworkPolicy | StaticPolicy | StagedNetworkPolicy:
    """The policy inside a bundle, staged or not.

    Raises:
        BundleError: if the bundle's kind or its arrays are not understood.
    """
    if bundle.manifest.get("kind") != STAGED_KIND:
        return policy_from_bundle(bundle)
    try:
        return StagedNetworkPolicy(**network_arguments(bundle))
    except MALFORMED as error:
        raise malformed(error) from error


def load_any_policy(
    path: Path | str, bundle_hash: str | None = None
) -> NetworkPolicy | StaticPolicy | StagedNetworkPolicy:
    """As `testbed.policy.policies.load_policy`, for policies of either kind."""
    bundle = PolicyBundle.load(Path(path))
    bundle.check_fit(bundle_hash)
    return any_policy_from_bundle(bundle)


def load_staged_policy(path: Path | str, bundle_hash: str | None = None) -> StagedNetworkPolicy:
    """As `testbed.policy.policies.load_policy`, for a staged policy.

    Raises:
        BundleError: if the file is missing or corrupt, does not fit the model bundle or the
            observation, or holds a policy that decides once a frame.
    """
    policy = load_any_policy(path, bundle_hash)
    if not isinstance(policy, StagedNetworkPolicy):
        raise BundleError(
            f"policy {path}, which decides once a frame",
            expected="a staged policy",
            hint="train one with `sliproad agent train --algo maskable-ppo --env staged`",
        )
    return policy
