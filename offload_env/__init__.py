"""The decision problem: simulator, Gymnasium environments, scenarios, clairvoyant bound.

Importing this package registers the environments where Gymnasium is installed, as packages of
environments do: ``gymnasium.make("sliproad/Offload-v0")`` works after ``import offload_env``, and
``gymnasium.make("offload_env:sliproad/Offload-v0")`` without it. Only their names are registered:
an environment's own module is imported when it is made.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from offload_env.scenario import Scenario, Split, load_scenario, scenario_names

if TYPE_CHECKING:
    from offload_env.batch_simulator import BatchSimulator
    from offload_env.env import OffloadEnv, OffloadStagedEnv
    from offload_env.episode import episode_keys
    from offload_env.keep_floor import FloorPrice, KeepFloor
    from offload_env.live_env import OffloadLiveEnv, OffloadLiveStagedEnv
    from offload_env.preferences import ConditionedVectorEnv
    from offload_env.registration import register
    from offload_env.simulator import Simulator
    from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
    from offload_env.world import World, build_world

__all__ = [
    "BatchSimulator",
    "ConditionedVectorEnv",
    "FloorPrice",
    "KeepFloor",
    "OffloadEnv",
    "OffloadLiveEnv",
    "OffloadLiveStagedEnv",
    "OffloadStagedEnv",
    "OffloadStagedVectorEnv",
    "OffloadVectorEnv",
    "Scenario",
    "Simulator",
    "World",
    "build_world",
    "episode_keys",
    "load_scenario",
    "make_simulator",
    "register",
    "scenario_names",
]

_MODULE_OF: Final = {
    "BatchSimulator": "batch_simulator",
    "ConditionedVectorEnv": "preferences",
    "FloorPrice": "keep_floor",
    "KeepFloor": "keep_floor",
    "OffloadEnv": "env",
    "OffloadLiveEnv": "live_env",
    "OffloadLiveStagedEnv": "live_env",
    "OffloadStagedEnv": "env",
    "OffloadStagedVectorEnv": "vector_env",
    "OffloadVectorEnv": "vector_env",
    "Simulator": "simulator",
    "World": "world",
    "build_world": "world",
    "episode_keys": "episode",
    "register": "registration",
}
"""Modules that are imported when one of their names is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def make_simulator(scenario: str | Scenario, split: Split = "train", seed: int = 0) -> Simulator:
    """A scalar simulator of a scenario, at the start of the first episode of `seed`.

    Args:
        scenario: name, path of a TOML file, or a `Scenario`.
        split: ``train`` or ``test``.
        seed: of the episode.
    """
    import numpy as np

    from offload_env.simulator import Simulator
    from offload_env.world import build_world

    world = build_world(scenario, split)
    simulator = Simulator(world)
    simulator.reset(world.plan(int(np.random.default_rng(seed).integers(0, 2**63))))
    return simulator


if find_spec("gymnasium") is not None:
    import_module("offload_env.registration").register()
