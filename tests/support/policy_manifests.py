"""The manifest of a policy file that nobody trained."""

from __future__ import annotations

from typing import Any

from cnn.topology import SHIPPED, Topology
from testbed.policy.observation_fields import schema_of


def static_manifest(
    bundle_hash: str, scenario: str, action: str = "e2s0", topology: Topology = SHIPPED
) -> dict[str, Any]:
    """Of a policy of format 1 that always takes one action of the network."""
    index = topology.parse(action).index
    return {
        "kind": "static",
        "name": f"static {action}",
        "actions": [index],
        "observation": {"schema_hash": schema_of(topology).hash},
        "bundle_hash": bundle_hash,
        "topology": topology.to_json(),
        "scenario": scenario,
    }
