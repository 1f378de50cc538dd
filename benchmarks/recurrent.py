"""Does a memory of the policy's own earn its place?

    python benchmarks/recurrent.py [--scenario busy-edge] [--steps 2000000] [--seed 0]

Trains sb3-contrib's RecurrentPPO (an LSTM before both heads) and PPO for the same number of frames
with the same reward, dual ascent, learning rate, discount and validation drives, and prints
``{"scenario", "steps", "seed", "floor", "ppo": {"cost", "accuracy", "seconds"}, "recurrent-ppo":
{...}, "cost_ratio", "time_ratio"}``: figures of the best validated policy of each that keeps floor
and margin. The observation already carries running means, ages and the confidences of the track,
which is what a memory would have to learn. Replayed on training drives.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed

from agents.supervisor import Progress, Supervisor
from agents.train_config import TrainConfig, priced
from agents.training import adapter_of, ppo_settings, train
from cnn.topology import Topology
from offload_env.world import World, build_world
from testbed.policy.decision_points import START, decision_points


class RecurrentPolicy:
    """A recurrent model as a `testbed.policy.policies.Policy` that decides for many drives."""

    name = "recurrent"

    def __init__(self, model: RecurrentPPO, topology: Topology) -> None:
        self.space = decision_points(topology).frame
        self._model = model
        self._state: tuple[NDArray[np.float32], ...] | None = None

    def reset(self) -> None:
        """Forget: new drives."""
        self._state = None

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """One drive's next action."""
        return int(self.decide_batch(observation[None])[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The next action of every drive, int64 (B,)."""
        starts = np.full(len(observations), self._state is None)
        actions, self._state = self._model.predict(
            observations, state=self._state, episode_start=starts, deterministic=True
        )
        return np.asarray(actions, np.int64)


class RecurrentSupervisor(Supervisor):
    """Dual ascent and validation of a recurrent model; keeps figures, not models."""

    best: dict[str, float] | None = None

    def _greedy(self) -> RecurrentPolicy:
        assert isinstance(self.model, RecurrentPPO)
        return RecurrentPolicy(self.model, self.world.topology)

    def _keep(self, figures: dict[str, float]) -> None:
        self.best = figures
        _note(f"recurrent {self.num_timesteps}: {figures['cost']:.4f} {figures['accuracy']:.4f}")

    def checkpoint(self) -> None:
        """None: a benchmark is not resumed."""


def main() -> None:
    """Train both and print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="busy-edge", help="name or TOML file")
    parser.add_argument("--steps", type=int, default=2_000_000, help="frames of each training")
    parser.add_argument("--hidden", type=int, default=64, help="width of the LSTM and both layers")
    parser.add_argument("--seed", type=int, default=0, help="of training and drives")
    options = parser.parse_args()
    config = TrainConfig(
        options.scenario, steps=options.steps, hidden=options.hidden, seed=options.seed
    )
    world = build_world(config.scenario, "train")
    config = priced(config, world.accuracy_floor, ()).of(world.topology)
    with tempfile.TemporaryDirectory() as folder:
        plain = train(config, Path(folder), world=world)
    ppo = _figures(plain.validation, plain.seconds)
    _note(f"ppo: {ppo}")
    recurrent = _recurrent(config, world)
    print(
        json.dumps(
            {
                "scenario": options.scenario,
                "steps": options.steps,
                "seed": options.seed,
                "floor": round(world.accuracy_floor, 5),
                "ppo": ppo,
                "recurrent-ppo": recurrent,
                "cost_ratio": round(recurrent["cost"] / ppo["cost"], 4),
                "time_ratio": round(recurrent["seconds"] / ppo["seconds"], 2),
            }
        )
    )


def _recurrent(config: TrainConfig, world: World) -> dict[str, float]:
    torch.set_num_threads(1)
    set_random_seed(config.seed)
    env = adapter_of(config, world)
    env.seed(config.seed)
    settings = ppo_settings(config)
    settings["policy_kwargs"] = {**settings["policy_kwargs"], "lstm_hidden_size": config.hidden}
    model = RecurrentPPO("MlpLstmPolicy", env, **settings)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model.set_logger(configure(folder, ["tensorboard"]))
        progress = Progress(config.dual_start, next_validation=config.validate_every)
        supervisor = RecurrentSupervisor(config, world, env, Path(folder), progress)
        model.learn(config.steps, callback=supervisor, log_interval=10**9)
        supervisor.finish()
        model.logger.close()
    assert supervisor.best is not None
    return _figures(supervisor.best, time.monotonic() - began)


def _figures(validation: dict[str, float], seconds: float) -> dict[str, Any]:
    figures = {name: round(validation[name], 5) for name in ("cost", "accuracy")}
    return {**figures, "seconds": round(seconds, 1)}


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
