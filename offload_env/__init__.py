"""The decision problem: simulator, Gymnasium environments, scenarios, clairvoyant bound.

Importing this package registers the environments where Gymnasium is installed, as packages of
environments do: ``gymnasium.make("sliproad/Offload-v0")`` works after ``import offload_env``, and
``gymnasium.make("offload_env:sliproad/Offload-v0")`` without it. Only their names are registered:
an environment's own module is imported when it is made.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from offload_env.scenario import Scenario, load_scenario, scenario_names

if TYPE_CHECKING:
    from offload_env.simulator import Simulator

__all__ = [
    "Scenario",
    "load_scenario",
    "make_simulator",
    "register",
    "scenario_names",
]


def register() -> None:
    """Make ``sliproad/Offload-v0`` and its sisters known to Gymnasium; again does nothing.

    Importing the package has done it already, unless Gymnasium was not installed then.

    Raises:
        ModuleNotFoundError: if Gymnasium is not installed.
    """
    from offload_env import registration

    registration.register()


def make_simulator(scenario: str | Scenario, split: str = "train", seed: int = 0) -> Simulator:
    """A scalar simulator of a scenario, at the start of the first episode of `seed`.

    Args:
        scenario: name, path of a TOML file, or a `Scenario`.
        split: ``train`` or ``test``.
        seed: of the episode.
    """
    import numpy as np

    from offload_env.simulator import Simulator
    from offload_env.world import build_world

    world = build_world(scenario, split)  # type: ignore[arg-type]
    simulator = Simulator(world)
    simulator.reset(world.plan(int(np.random.default_rng(seed).integers(0, 2**63))))
    return simulator


if find_spec("gymnasium") is not None:
    register()
