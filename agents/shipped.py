"""Policies that come with the package, one a scenario, if they fit the model bundle."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cnn.errors import BundleError
from offload_env.world import World
from testbed.policy import Policy, load_policy


def shipped_policy(world: World) -> Policy | None:
    """The shipped policy of a world's scenario; None if there is none that fits."""
    path = Path(str(resources.files("agents"))) / "assets" / f"{world.scenario.name}.policy"
    if not path.is_file():
        return None
    try:
        return load_policy(path, world.table.bundle_hash)
    except BundleError:
        return None
