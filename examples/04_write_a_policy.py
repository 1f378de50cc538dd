"""Write a policy of your own and let the device's loop run it.

    python examples/04_write_a_policy.py

A policy has a name, the space that it decides in, `reset`, `decide` and `decide_batch`. This one
decides once a frame: it sends the frame if the last transfer was quick and fresh, and
otherwise leaves at exit 3. Needs the base install only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnn import SHIPPED, Topology
from testbed import START, Observer, Policy, Settings, decision_points, schema_of


class QuickAndFresh:
    """Offload after block 2 while the network is known to be quick, else answer at exit 3.

    Args:
        topology: of the network, whose actions and observation elements it uses.
        quick_ms: a mean transfer time below this counts as quick.
        fresh_s: knowledge older than this counts as none, and one frame is sent to renew it.
    """

    name = "quick and fresh"

    def __init__(self, topology: Topology, quick_ms: float = 40.0, fresh_s: float = 5.0) -> None:
        self.space = decision_points(topology).frame
        self.offload = topology.index(exit=5, split=2)
        self.local = topology.index(exit=3, split=3)
        schema = schema_of(topology)
        index = {field.name: field.index for field in schema.fields}
        self.mean_ms, self.age_s = index["transfer_mean_ms"], index["transfer_age_s"]
        # Observations are scaled to [-1, 1]; scale the thresholds once instead of each frame.
        self.quick = schema.scale_one(self.mean_ms, quick_ms)
        self.stale = schema.scale_one(self.age_s, fresh_s)

    def reset(self) -> None:
        """No memory."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """One observation, float32 (obs_dim,) -> canonical action number."""
        return int(self.decide_batch(observation[None])[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The same for float32 (B, obs_dim) -> int64 (B,)."""
        quick = observations[:, self.mean_ms] < self.quick
        stale = observations[:, self.age_s] > self.stale
        return np.where(quick | stale, self.offload, self.local).astype(np.int64)


def main() -> None:
    policy: Policy = QuickAndFresh(SHIPPED)  # a type checker sees that it fits

    # What the device would know in three situations (times in seconds on one clock).
    observer = Observer(Settings(True, accuracy_floor=0.95, delay_share=0.5, full_local_ms=20))
    features = np.array([0.4, 0.2, 0.1, 40, 40, 0], np.float32)  # of a frame, see cnn.frame_table

    def show(situation: str, now_s: float) -> None:
        observation = observer.observe(now_s, features, queue_ms=0.0, tail_left_ms=0.0)
        print(f"{situation:>28}: {SHIPPED.actions[policy.decide(observation)].name}")

    observer.reset(0.0)
    show("nothing known yet", 0.0)
    for i in range(20):
        observer.record_transfer(0.1 * i, sent_bytes=864, transfer_ms=20)
    show("quick answers just now", 2.0)
    for i in range(20):
        observer.record_transfer(2 + 0.1 * i, sent_bytes=864, transfer_ms=120)
    show("slow answers just now", 4.0)
    show("slow answers, long ago", 30.0)


if __name__ == "__main__":
    main()
