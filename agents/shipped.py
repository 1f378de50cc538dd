"""Policies that come with the package, two a scenario, if they fit the model bundle."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cnn.common.errors import BundleError
from offload_env.world import World
from testbed.policy.policies import Policy, load_policy
from testbed.policy.staged_policies import AnyPolicy, StagedPolicy, load_staged_policy


def shipped_agents(world: World) -> dict[str, AnyPolicy]:
    """The shipped policies of a world's scenario by name: ``agent``, ``staged-agent``."""
    found = {"agent": shipped_policy(world), "staged-agent": shipped_staged_policy(world)}
    return {name: policy for name, policy in found.items() if policy is not None}


def shipped_policy(world: World) -> Policy | None:
    """The shipped policy of a world's scenario; None if there is none that fits."""
    path = shipped_path(world.scenario.name)
    if not path.is_file():
        return None
    try:
        return load_policy(path, world.table.bundle_hash)
    except BundleError:
        return None


def shipped_staged_policy(world: World) -> StagedPolicy | None:
    """The shipped staged policy of a world's scenario; None if there is none that fits."""
    path = shipped_path(world.scenario.name, staged=True)
    if not path.is_file():
        return None
    try:
        return load_staged_policy(path, world.table.bundle_hash)
    except BundleError:
        return None


def shipped_path(scenario: str, staged: bool = False) -> Path:
    """Where the shipped policy of a scenario lies, or would lie."""
    name = f"{scenario}.staged.policy" if staged else f"{scenario}.policy"
    return Path(str(resources.files("agents"))) / "assets" / name
