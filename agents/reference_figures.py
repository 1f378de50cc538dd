"""What a trained policy promises a device's guard: its own figures on validation drives."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.rollout import staged_frame
from offload_env.batch_simulator import SKIPPED, BatchOutcome, BatchSimulator
from offload_env.world import World
from testbed.deploy.guard import unscaled
from testbed.policy.observer import FIELDS
from testbed.policy.reference_profile import WINDOW, ReferenceProfile
from testbed.policy.staged_policies import AnyPolicy, StagedPolicy

_OBSERVED: Final = {f.name: f for f in FIELDS if f.name in ("uplink_mbps", "rtt_ms")}


def promise_of(
    world: World, policy: AnyPolicy, keys: NDArray[np.uint64], window: int = WINDOW
) -> ReferenceProfile:
    """Drive the policy through the episodes `keys` (uint64 (B,)) and note what came of it.

    The energies count as those of the model meter with the scenario's power profile; a
    scenario that keeps the cost model's own powers is comparable with no meter.
    """
    simulator = BatchSimulator(world, len(keys))
    simulator.reset(keys)
    policy.reset()
    outcomes: list[BatchOutcome] = []
    seen: list[NDArray[np.float32]] = []
    for _ in range(world.scenario.timing.n_frames):
        observations = simulator.observe()
        seen.append(observations[:, [field.index for field in _OBSERVED.values()]])
        if isinstance(policy, StagedPolicy):
            outcomes.append(staged_frame(simulator, policy))
        else:
            outcomes.append(simulator.settle(policy.decide_batch(observations)))

    def stack(name: str) -> NDArray[np.float64]:
        return np.stack([getattr(o, name) for o in outcomes], axis=1).astype(np.float64)

    row, used = stack("row").astype(np.int64), stack("used").astype(np.int64)
    skipped = stack("status") == SKIPPED
    observed = np.stack(seen, axis=1)
    power = world.scenario.device.power
    return ReferenceProfile.of_drives(
        {
            "delay_ms": stack("delay_ms"),
            "energy_mj": stack("energy_mj"),
            "confidence": np.where(skipped, np.nan, world.table.confidence[row, used]),
            "miss_rate": stack("miss"),
            **{
                name: unscaled(field, observed[:, :, i])
                for i, (name, field) in enumerate(_OBSERVED.items())
            },
        },
        stack("action").astype(np.int64),
        window=min(window, len(outcomes)),
        energy_source=f"model:{power}" if power else f"cost model {world.cost.name}",
    )
