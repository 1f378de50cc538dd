"""A policy that grows careful while its accuracy credit is below zero.

The device counts the calibrated confidence of its answers: the *accuracy credit* is their mean over
the drive less the floor, and an element of the observation. A trained policy hardly heeds it, as
nothing in training made accuracy fall for a whole drive. `at_credit` adds a price on disagreement
with the main exit (`agents.careful`) that rises as the credit falls. One more unit in each hidden
layer carries it, so the result is an ordinary policy file: any device runs it, as fast as before.

The control needs no labels, and knows no more than the confidences. If they are wrong, under
conditions that the network was not trained for, so is the credit; that is for the device's monitor
(`testbed.deploy.loss_monitor`) to see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.prediction import reader
from agents.baselines.tuning import measure_each
from agents.careful import PRICES, disagreement, output_disagreement
from agents.export_policy import reference_profile_of
from agents.floor_kept import keeps
from cnn.common.errors import BundleError
from offload_env.episode import Keys
from offload_env.scenario import Scenario, Split
from offload_env.sources import load_traces
from offload_env.world import World, build_world
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy
from testbed.policy.policy_file import PolicyBundle

Floats = NDArray[np.float64]

HALF_AT: Final = -0.005
"""Credit at which half of the price is charged: hardly any at 0, nearly all at twice this."""
_STEEP: Final = 2.0
"""Weight from a unit to that of the next layer: tanh would flatten the step from layer to layer."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A policy on some drives: mean cost of a frame, and accuracy less the floor."""

    cost: float
    over_floor: float


@dataclass(frozen=True, slots=True)
class Controlled:
    """A control that pays, on training drives.

    Attributes:
        price: on disagreement, at most.
        bundle: of the policy with the control; a certificate of the one without it is left out.
        home, home_before: with and without it, where the policy was trained.
        away, away_before: the same with all round trips doubled.
    """

    price: float
    bundle: PolicyBundle
    home: Figures
    home_before: Figures
    away: Figures
    away_before: Figures

    def as_json(self) -> dict[str, Any]:
        """Plain values by name, but for the policy."""
        parts = ("home", "home_before", "away", "away_before")
        return {"price": self.price, **{name: asdict(getattr(self, name)) for name in parts}}


def controlled(bundle: PolicyBundle, train: World, keys: Keys, most: float) -> Controlled | None:
    """The highest of `PRICES` that pays; None if none does.

    It may cost a share of `most` more where the policy was trained. It loses no accuracy there, and
    gains some where all round trips are doubled. (Where frames queue a more accurate answer is also
    a later one, and the frames that are skipped behind it cost more accuracy than it brings.)

    Args:
        bundle: of a trained policy.
        train: world that it was trained in.
        keys: uint64 (B,), of training drives.
        most: share of the cost.

    Raises:
        BundleError: if it has no two hidden layers or a control already, or does not fit the world.
    """
    if "control" in bundle.manifest:
        raise BundleError(
            f"policy {bundle.manifest['name']!r} with a control",
            expected="a policy without one",
            hint="give the policy that it was made of",
        )
    bundle.check_fit(train.table.bundle_hash, train.topology)
    disagree, away = disagreement(train), doubled_round_trips(train.scenario, "train")
    prices = PRICES[:-1]
    priced = [at_credit(bundle, price, disagree) for price in prices]
    policies = [policy_from_bundle(each) for each in (bundle, *priced)]
    home_before, *homes = figures_each(policies, train, keys)
    away_before, *aways = figures_each(policies, away, keys)
    for price, found, home, there in zip(prices, priced, homes, aways, strict=True):
        if (
            home.cost <= (1.0 + most) * home_before.cost
            and keeps(home.over_floor, home_before.over_floor)
            and there.over_floor > away_before.over_floor
        ):
            result = Controlled(price, found, home, home_before, there, away_before)
            return replace(result, bundle=_told(result, train, keys))
    return None


def at_credit(bundle: PolicyBundle, price: float, disagree: Floats) -> PolicyBundle:
    """The policy with a price on disagreement while its accuracy credit is low.

    Args:
        bundle: trained policy of two hidden layers or more, of either space.
        price: at most, as in `agents.careful.PRICES`.
        disagree: float64 (A,), of `agents.careful.disagreement`.

    Raises:
        BundleError: if it has fewer hidden layers, for example none.
    """
    n_layers = bundle.manifest.get("layers", 0)
    if n_layers < 3:
        raise BundleError(
            f"policy {bundle.manifest.get('name')!r} of {n_layers} layers",
            expected="two hidden layers, as `sliproad agent train` makes them",
            hint="give a trained policy",
        )
    arrays = dict(bundle.arrays)
    credit = reader(bundle.topology).at["accuracy_credit"]
    from_at, half_at, whole_at = (
        schema_of(bundle.topology).scale_one(credit, x) for x in (0.0, HALF_AT, 2 * HALF_AT)
    )
    units: list[tuple[float, float]]  # weight and bias of each, the first of which reads the credit
    if bundle.manifest["activation"] == "tanh":
        steep = 1.0 / (half_at - whole_at)
        units = [(steep, -half_at * steep), *[(_STEEP, 0.0)] * (n_layers - 2)]
        high = 1.0
        for weight, _ in units[1:]:
            high = math.tanh(weight * high)
        low = -high
    else:  # relu: 0 from a credit of 0 up and 1 where the price is whole; then the other way round
        steep = 1.0 / (whole_at - from_at)
        units = [(steep, -from_at * steep), (-1.0, 1.0), *[(1.0, 0.0)] * (n_layers - 3)]
        high, low = 1.0, 0.0
    for layer, (weight, bias) in enumerate(units):
        _add_unit(arrays, layer, -1 if layer else credit, weight, bias)
    charged = price / (high - low) * output_disagreement(bundle, disagree)
    last = n_layers - 1
    arrays[f"weight{last}"] = _float32(np.hstack([arrays[f"weight{last}"], charged[:, None]]))
    arrays[f"bias{last}"] = _float32(arrays[f"bias{last}"] - high * charged)
    return replace(bundle, arrays=arrays)


def _add_unit(
    arrays: dict[str, NDArray[np.float32]], layer: int, at: int, weight: float, bias: float
) -> None:
    """One unit more in a hidden layer, which reads input `at` alone."""
    weights = arrays[f"weight{layer}"]
    if layer:  # the units that were here do not read the one added before
        weights = np.pad(weights, ((0, 0), (0, 1)))
    reads = np.zeros(weights.shape[1])
    reads[at] = weight
    arrays[f"weight{layer}"] = _float32(np.vstack([weights, reads]))
    arrays[f"bias{layer}"] = _float32(np.append(arrays[f"bias{layer}"], bias))


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def doubled_round_trips(scenario: Scenario, split: Split) -> World:
    """A scenario's world with all round trips doubled."""
    traces = [replace(t, rtt_ms=2 * t.rtt_ms) for t in load_traces(scenario, split)]
    return build_world(scenario, split, traces=traces)


def figures(policy: Policy, world: World, keys: Keys) -> Figures:
    """A policy on the drives `keys` of a world."""
    return figures_each([policy], world, keys)[0]


def figures_each(policies: Sequence[Policy], world: World, keys: Keys) -> list[Figures]:
    """Policies that decide in one space, on the drives `keys` of a world."""
    driven = measure_each(world, policies, keys)
    return [Figures(found.cost, found.accuracy - world.accuracy_floor) for found in driven]


def _told(found: Controlled, train: World, keys: Keys) -> PolicyBundle:
    """The policy with its own reference profile and figures, and no certificate of what it was."""
    bundle = found.bundle
    profile = reference_profile_of(train, policy_from_bundle(bundle), keys)
    metrics = {**bundle.manifest["metrics"], "promise": profile.to_json()}
    rest = {k: v for k, v in bundle.manifest.items() if k != "certificate"}
    told = {"metrics": metrics, "control": found.as_json()}
    return replace(bundle, manifest={**rest, **told})
