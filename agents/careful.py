"""More careful versions of a trained policy: the candidates of a certificate.

Every action of a network costs some agreement with the main exit. A price on that is taken off the
policy's outputs: a higher price moves decisions to actions that are right where the main exit is
right, and a price of 0 is the policy itself. Outputs are a last layer's, so the price goes
into its biases, and the result is an ordinary policy file that any device runs as fast as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.certificate import mean_loss
from agents.rollout import simulate_each
from offload_env.world import World
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.policy_file import PolicyBundle

Floats = NDArray[np.float64]

PRICES: Final = (1000.0, 500.0, 250.0, 120.0, 60.0, 30.0, 15.0, 8.0, 4.0, 0.0)
"""Logits for each frame in which an action's answer is right and the main exit's is not, or the
other way round; the most careful first. At 1000 a share of one in a hundred counts ten logits."""


def disagreement(world: World) -> Floats:
    """How often each action is right where the main exit is not, or the other way round.

    The mean of |quality of the action - quality of the main exit| over all frames, float64 (A,).
    """
    quality = world.correct.astype(np.float64)
    found: Floats = np.abs(quality - quality[:, [world.topology.main]]).mean(0)
    return found


def at_price(bundle: PolicyBundle, price: float, disagree: Floats) -> PolicyBundle:
    """The policy with a price on disagreement.

    Args:
        bundle: trained policy, of either space. A static one stays as it is.
        price: see `PRICES`.
        disagree: float64 (A,), of `disagreement`.
    """
    if price == 0.0 or bundle.manifest["kind"] == "static":
        return bundle
    last = f"bias{bundle.manifest['layers'] - 1}"
    cheaper = bundle.arrays[last] - price * output_disagreement(bundle, disagree)
    return replace(bundle, arrays={**bundle.arrays, last: cheaper.astype(np.float32)})


def output_disagreement(bundle: PolicyBundle, disagree: Floats) -> Floats:
    """`disagree` of the action behind each output of a policy, float64 (outputs,)."""
    outputs = bundle.manifest["actions"]
    if bundle.space.is_staged:
        outputs = decision_points(bundle.topology).canonical[outputs]
    found: Floats = disagree[outputs]
    return found


def candidates(
    bundle: PolicyBundle, train: World, keys: NDArray[np.uint64]
) -> Sequence[tuple[float, PolicyBundle]]:
    """Prices and policies, most careful first.

    The most careful is not that of the highest price: the main exit on every frame may skip
    frames where the device cannot keep up. It is the one that loses least on training drives; the
    cheaper ones follow it. Calibration tracks have no part in the order.

    Args:
        bundle: trained policy.
        train: world that it was trained in.
        keys: uint64 (B,), of training drives.
    """
    if bundle.manifest["kind"] == "static":
        return [(0.0, bundle)]
    disagree = disagreement(train)
    found = [(price, at_price(bundle, price, disagree)) for price in PRICES]
    policies = [policy_from_bundle(each) for _, each in found]
    losses = [mean_loss(train, rollout) for rollout in simulate_each(train, policies, keys)]
    return found[int(np.argmin(losses)) :]
