"""A certificate for a trained policy: Learn-then-Test over its more careful versions.

Calibration signs come from a table that neither the policy nor the order of the candidates has
seen (the scenario's test frames, if no other is given), and the link from training drives. All
of those signs certify; how such promises are kept is then looked at by dividing the signs into
halves many times.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from agents.careful import candidates
from agents.certificate import Resampled, certify, resampled, sign_losses, signs_needed
from agents.critical_promise import (
    CriticalPromise,
    critical_of,
    main_accuracy,
    promised,
    splits_margin,
)
from agents.export_policy import reference_profile_of
from agents.loss_bounds import upper_bound
from agents.rollout import Rollout, simulate, simulate_each, summary
from agents.shift_alarm import Monitoring, monitoring
from cnn.calibration_tracks import signs_of
from cnn.common.errors import ConfigError, DataError
from cnn.frame_table import FrameTable
from offload_env.episode import episode_keys
from offload_env.scenario import Scenario
from offload_env.world import World, build_world, load_traces
from testbed.deploy.picture_reference import PictureReference
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.policy_file import PolicyBundle

MAX_FRAMES: Final = 1_500_000
_DRIVES: Final = 128
"""Training drives that order the candidates, and at least so many past the calibration signs."""


@dataclass(frozen=True, slots=True)
class Certified:
    """What a certification found.

    Attributes:
        floor: accuracy of the main exit over the calibration signs, each counted once, less the
            margin.
        margin, level: asked for.
        certified: whether any candidate keeps the margin at that level.
        price: of the certified policy on disagreement (`agents.careful`); None without one.
        cost_factor: its cost over the uncertified policy's; None without one.
        signs: calibration signs.
        signs_needed: that could certify this margin, had none a loss.
        smallest_margin: upper bound of the most careful candidate's mean loss.
        splits: promises on half of the signs, kept or broken on the others.
        splits_margin: margin of these promises: half of the signs may not do for the one asked.
        monitor: of the certified policy, or of the uncertified one.
        bundle: policy file's content; None without a certificate.
        critical: what is promised besides; None if the scenario has no critical classes.
    """

    floor: float
    margin: float
    level: float
    certified: bool
    price: float | None
    cost_factor: float | None
    signs: int
    signs_needed: int
    smallest_margin: float
    splits: Resampled
    splits_margin: float
    monitor: Monitoring
    bundle: PolicyBundle | None
    critical: CriticalPromise | None = None

    @property
    def broken_share(self) -> float | None:
        """Share of the divisions that broke a promise; None if none of them made one."""
        return self.splits.broken_share if self.splits.certified_share else None

    def as_json(self) -> dict[str, Any]:
        """The printed result."""
        own = ("floor", "certified", "level", "margin", "cost_factor", "price")
        counts = ("signs", "signs_needed", "smallest_margin")
        splits = {k: None if v != v else v for k, v in asdict(self.splits).items()}
        return {
            **{name: getattr(self, name) for name in own},
            "broken_share": self.broken_share,
            "alarm_frames_under_shift": self.monitor.alarm_frames,
            "false_alarms_per_day": self.monitor.false_alarms_per_day,
            **{name: getattr(self, name) for name in counts},
            "critical": None if self.critical is None else self.critical.as_json(),
            "splits": {**splits, "margin": self.splits_margin},
            "monitor": self.monitor.as_json(),
        }


def certify_policy(
    bundle: PolicyBundle,
    scenario: Scenario,
    table: FrameTable,
    *,
    level: float,
    margin: float,
    critical_margin: float | None = None,
    seed: int = 0,
    shifted: FrameTable | None = None,
) -> Certified:
    """Certify a policy on the signs of a table.

    Args:
        bundle: trained policy.
        scenario: that it was trained for.
        table: frames of signs that it did not learn on.
        level: probability at which the promise is kept.
        margin: highest mean loss that is promised.
        critical_margin: the same of the signs of critical classes; None is the scenario's.
        seed: of drives and divisions.
        shifted: frames of signs under conditions that the network was not trained for.

    Raises:
        ConfigError: if level or margin is out of range, or the policy learnt on these frames.
        DataError: if a table has fewer than two signs or too many, or does not fit the scenario.
        BundleError: if the policy does not fit it.
    """
    needed = signs_needed(margin, level)
    _check_unseen(bundle, table)
    train = build_world(scenario, "train")
    bundle.check_fit(train.table.bundle_hash, train.topology)
    traces = load_traces(scenario, "train")
    world = build_world(scenario, "test", traces=traces, table=table)
    critical = critical_of(world, critical_margin)
    chain = candidates(bundle, train, episode_keys(seed, _DRIVES))
    keys = episode_keys(seed + 1, _drives(world))
    rollouts = list(simulate_each(world, [policy_from_bundle(each) for _, each in chain], keys))
    losses = [sign_losses(world, rollout) for rollout in rollouts]
    costs = [float(rollout.cost.mean()) for rollout in rollouts]
    of_signs, of_costs = np.stack(losses), np.array(costs)
    found = certify(of_signs, of_costs, margin, level, critical=critical)
    of_halves = splits_margin(margin, of_signs.shape[1], level)
    promise, divided = promised(world, critical, of_signs[0], level)
    used = len(chain) - 1 if found.chosen is None else found.chosen
    price, chosen = chain[used]
    watched = monitoring(
        world,
        rollouts[used],
        level,
        seed,
        pictures=PictureReference.of(train.features),
        shifted=_shifted(scenario, shifted, chosen, seed),
    )
    floor = float(main_accuracy(world).mean()) - margin
    certified = found.chosen is not None
    result = Certified(
        floor=floor,
        margin=margin,
        level=level,
        certified=certified,
        price=price if certified else None,
        cost_factor=costs[used] / costs[-1] if certified else None,
        signs=found.signs,
        signs_needed=needed,
        smallest_margin=upper_bound(of_signs[0], level),
        splits=resampled(
            of_signs,
            of_costs,
            of_halves,
            level,
            calibration=of_signs.shape[1] // 2,
            critical=divided,
            seed=seed,
        ),
        splits_margin=of_halves,
        monitor=watched,
        bundle=None,
        critical=promise,
    )
    return replace(result, bundle=_sealed(chosen, train, table, result)) if certified else result


def _check_unseen(bundle: PolicyBundle, table: FrameTable) -> None:
    """Refuse frames that the policy learnt on or was chosen on, and too few signs to divide."""
    learnt = str((bundle.manifest.get("provenance") or {}).get("frames", ""))
    chosen = str((bundle.manifest.get("certificate") or {}).get("frames", ""))
    for seen, how in ((learnt, "learnt on"), (chosen, "was certified on")):
        if seen and (seen.startswith(table.source) or table.source.startswith(seen)):
            raise ConfigError(
                f"calibration frames ({table.source}) of signs that the policy {how} ({seen})",
                expected="a frame table of other signs",
                hint="give one with --frames, or the policy as it was before",
            )
    if int(signs_of(table).max()) < 3:
        raise DataError(
            f"frame table ({table.source}) of {int(signs_of(table).max()) + 1} signs",
            expected="four or more, to divide them",
            hint="make a table of more tracks",
        )


def _drives(world: World) -> int:
    """So many that a sign is left out with a chance of a thousandth.

    Raises:
        DataError: if these are more than `MAX_FRAMES`.
    """
    table, frames = world.table, world.scenario.timing.n_frames
    signs = int(signs_of(table).max()) + 1
    passes = max(1.0, frames * table.n_tracks / len(table))
    drives = max(_DRIVES, math.ceil(signs * (math.log(signs) + 7.0) / passes))
    if drives * frames > MAX_FRAMES:
        raise DataError(
            f"{signs} signs, which take {drives} drives of {frames} frames to see",
            expected=f"at most {MAX_FRAMES} frames in all",
            hint="give a frame table of fewer tracks",
        )
    return drives


def _shifted(
    scenario: Scenario, table: FrameTable | None, bundle: PolicyBundle, seed: int
) -> tuple[World, Rollout] | None:
    if table is None:
        return None
    world = build_world(scenario, "test", traces=load_traces(scenario, "train"), table=table)
    return world, simulate(world, policy_from_bundle(bundle), episode_keys(seed + 2, _DRIVES))


def _sealed(
    bundle: PolicyBundle, train: World, table: FrameTable, result: Certified
) -> PolicyBundle:
    """The certified policy's file: what it promises, and figures of its own on training drives."""
    policy = policy_from_bundle(bundle)
    keys = episode_keys(1, _DRIVES)
    metrics = {
        **(bundle.manifest.get("metrics") or {}),
        "validation": summary(simulate(train, policy, keys)),
        "validated_on": f"{_DRIVES} drives over {train.table.source}",
        "promise": reference_profile_of(train, policy, keys).to_json(),
    }
    certificate = {
        "level": result.level,
        "margin": result.margin,
        "floor": result.floor,
        "signs": result.signs,
        "frames": table.source,
        "price": result.price,
        "monitor": result.monitor.terms.to_json(),
    }
    if result.critical is not None:
        told = result.critical.as_json()
        kept = ("classes", "margin", "floor", "signs")
        certificate["critical"] = {name: told[name] for name in kept}
    manifest = {**bundle.manifest, "metrics": metrics, "certificate": certificate}
    return replace(bundle, manifest=manifest)
