"""A rule on the uplink as a policy of sliproad: is its estimated rate high enough to send?"""

import numpy as np
from numpy.typing import NDArray

from cnn import Topology
from testbed import START, decision_points, schema_of


class UplinkRule:
    """Send at the first split from `mbps` on, else answer at `exit` on the device."""

    memoryless = True

    def __init__(self, topology: Topology, mbps: float, exit: int) -> None:
        self.name = f"sends from {mbps:g} Mbit/s, else answers at exit {exit}"
        self.space = decision_points(topology).frame
        self.sends = topology.index(topology.n_blocks, topology.splits[0])
        self.answers = topology.index(exit, exit)
        schema = schema_of(topology)
        self.at = next(field.index for field in schema.fields if field.name == "uplink_mbps")
        self.enough = schema.scale_one(self.at, mbps)

    def reset(self) -> None: ...

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        return int(self.decide_batch(observation[None])[0])

    def decide_batch(self, observations: NDArray[np.float32], points: object = None) -> NDArray:
        enough = observations[:, self.at] >= self.enough
        return np.where(enough, self.sends, self.answers)


def policies(topology: Topology, world: object = None) -> list[UplinkRule]:
    rates, exits = (10, 2, 5, 20, 50), topology.exits[::-1]
    return [UplinkRule(topology, mbps, exit) for exit in exits for mbps in rates]
