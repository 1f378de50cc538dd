"""One staged policy for many links, loads, devices and cameras, beside those of one scenario each.

    python benchmarks/one_policy.py [--policy FILE] [--steps 4000000] [--scenarios 32]
        [--drives 64] [--seed 0] [--json]

The *one policy* is trained in many scenarios of the shipped network at once, drawn at random: kind
of link, load of the server, speed and powers of the device, modem, period of the camera, time-out.
Each has its own traces and its own price of a wrong answer, moved by dual ascent. The policy is not
told which scenario it is in; it knows what a device observes. `--policy` keeps it in a file, or
takes it from there. The *specialists* are the shipped staged policies of the six classic scenarios,
and the *planner* is tuned anew in every scenario, on 12 training drives.

*Classic*: all of them in each classic scenario: cost, and accuracy above the floor in points.
*Drawn*: in 12 scenarios drawn in the same way, none of them trained in: cost over the bound (mean
and worst), in how many the floor is kept, and the least accuracy above it in points. All on test
drives: signs and traces that nobody trained on.

Prints ``{"classic": {scenario: {policy: {"cost", "over_floor"}}}, "drawn": {policy: {"over_bound",
"worst_over_bound", "floors_kept", "least_over_floor"}}, "drives", "seed"}``; without ``--json``
also both as tables of Markdown on the standard error. Replayed: answers measured, times from the
fitted cost model, links generated, powers published.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from agents.baselines.planner import PlannerPolicy
from agents.baselines.tuning import tuned_planner
from agents.contenders import shipped_contenders
from agents.credit_control import figures
from agents.evaluation import STAGED
from agents.export_policy import bundle_of
from agents.rollout import simulate
from agents.sb3_adapter import FrameRolloutBuffer, OffloadVecEnv
from agents.supervisor import Watch, greedy_policy
from agents.teacher import imitate
from agents.train_config import MARGIN, STAGED_SETTINGS, TrainConfig
from agents.training import adapter_of, ppo_settings
from offload_env.bound.proof import lower_bound
from offload_env.episode import Keys, episode_keys
from offload_env.scenario import CLASSIC, Device, Link, Scenario, load_scenario
from offload_env.server_load import ServerLoad
from offload_env.world import World, build_world
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.policies import Policy
from testbed.policy.policy_file import PolicyBundle

SETTINGS: Final = {
    "n_envs": 48,  # in each scenario: a step of few drives costs nearly as much
    "n_steps": 32,
    "hidden": 128,  # twice the usual width
    "teacher": "planner",
    "teacher_steps": 2_000_000,
    "learning_rate": 3e-4,
    "entropy": 0.001,
}
"""Of the training, beside those of any staged one (`agents.train_config`)."""
GUIDED_ON: Final = 8
"""Training drives of a planner that the training begins at."""
BONUS: Final = 0.4
"""Of its sending after a pause."""
TUNED_ON: Final = 12
"""Training drives of a planner that is judged."""
JUDGED: Final = 12
"""Drawn scenarios that judge."""
MODEMS: Final = {
    "urban-5g": ("5g-nsa-lowband", "5g-nsa-lowband-tail"),
    "highway-lte": ("lte", "lte-tail"),
    "poor-coverage": ("lte", "lte-tail"),
}
_JUDGES_FROM: Final = 1000
"""Numbers of the drawn scenarios that judge; those of the training begin at 0."""
_DUAL_SHARE: Final = 0.5
"""Of the plain training's dual rate: each scenario sees few of the frames."""
_ROLLOUTS: Final = 10
"""Over which an exploring policy's accuracy is smoothed, to compare it with the greedy one's."""
_SHORTFALL_PRICE: Final = 100.0
"""Cost that validation charges for each unit of accuracy missing below a floor."""


def drawn(number: int, seed: int) -> Scenario:
    """A scenario drawn at random; equal arguments give equal ones."""
    rng = np.random.default_rng([seed, number])
    kind = str(rng.choice(list(MODEMS)))
    full_local_ms = float(np.exp(rng.uniform(np.log(6.0), np.log(400.0))))
    period_ms = max(50.0, full_local_ms * rng.uniform(1.1, 1.9))
    base = load_scenario("urban-5g")
    return replace(
        base,
        name=f"drawn-{number}",
        device=Device(
            full_local_ms=full_local_ms,
            power=f"{rng.choice(['jetson-nano', 'raspberry-pi-4'])}+{rng.choice(MODEMS[kind])}",
        ),
        link=Link(kind=kind, seed=200_000 + 200 * number, train_traces=16, test_traces=16),
        server=ServerLoad(
            utilisation=float(rng.uniform(0.0, 0.75)),
            service_ms=float(rng.uniform(4.0, 10.0)),
            swing=float(rng.uniform(0.0, 1.5)),
            memory_s=float(rng.uniform(2.0, 10.0)),
        ),
        timing=replace(
            base.timing,
            period_ms=period_ms,
            timeout_ms=period_ms * rng.uniform(0.4, 0.7),
            deadline_ms=period_ms,
            max_queue_ms=period_ms,
        ),
    )


class Joined(VecEnv):
    """The lanes of several adapters, one after another."""

    def __init__(self, parts: Sequence[OffloadVecEnv]) -> None:
        self.parts = list(parts)
        self.render_mode = None
        first = self.parts[0]
        lanes = [part.num_envs for part in self.parts]
        self.ends = np.cumsum(lanes)[:-1]
        super().__init__(sum(lanes), first.observation_space, first.action_space)

    def reset(self) -> NDArray[np.float32]:
        """Reset every lane; the parts' seeds follow each other."""
        for k, part in enumerate(self.parts):
            if self._seeds[0] is not None:
                part.seed(self._seeds[0] + k)
        self._reset_seeds()
        return np.concatenate([part.reset() for part in self.parts])

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Store the learner's actions."""
        for part, own in zip(self.parts, np.split(actions, self.ends), strict=True):
            part.step_async(own)

    def step_wait(self) -> Any:
        """One decision in every lane."""
        seen, rewards, done, infos = zip(*(part.step_wait() for part in self.parts), strict=True)
        told = [info for part in infos for info in part]
        return np.concatenate(seen), np.concatenate(rewards), np.concatenate(done), told

    @property
    def frame_done(self) -> NDArray[np.bool_]:
        """Lanes in which the last step ended a frame, bool (B,)."""
        return np.concatenate([part.frame_done for part in self.parts])

    @property
    def points(self) -> NDArray[np.int64]:
        """Decision point of each lane, int64 (B,)."""
        return np.concatenate([part.points for part in self.parts])

    @property
    def multiplier(self) -> list[float]:
        """Price of a wrong answer in each part."""
        return [part.multiplier for part in self.parts]

    @multiplier.setter
    def multiplier(self, prices: Sequence[float]) -> None:
        for part, price in zip(self.parts, prices, strict=True):
            part.multiplier = price

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal actions of each lane, bool (B, n_actions)."""
        return np.concatenate([part.action_masks() for part in self.parts])

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts:
            part.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same value for every lane."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not offered."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **named: Any) -> Any:
        """A method's rows, one for each lane."""
        rows = getattr(self, method_name)(*args, **named)
        return [rows[lane] for lane in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """No lane is wrapped."""
        return [False for _ in self._get_indices(indices)]


class Guides:
    """A teacher of all lanes: each part's own planner."""

    def __init__(self, planners: Sequence[PlannerPolicy], env: Joined) -> None:
        self._planners, self._ends = planners, env.ends

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Staged actions, int64 (B,)."""
        lanes = zip(np.split(observations, self._ends), np.split(points, self._ends), strict=True)
        decided = [p.decide_batch(*own) for p, own in zip(self._planners, lanes, strict=True)]
        return np.concatenate(decided)


class Ascent(Watch):
    """Dual ascent in every world; the best policy on validation drives of all of them is kept."""

    def __init__(self, config: TrainConfig, worlds: Sequence[World], env: Joined) -> None:
        super().__init__(config, worlds[0], env, Path())
        self.worlds, self.next_checkpoint = worlds, math.inf
        self.best: PolicyBundle | None = None
        self._score, self._due = np.inf, config.validate_every
        self._keys = episode_keys(config.validation_seed, 16)
        self._gap = np.zeros(len(worlds))
        self._accuracy = np.full(len(worlds), worlds[0].accuracy_floor)

    def _on_rollout_end(self) -> None:
        rate = _DUAL_SHARE * self.config.dual_rate * (0.1 + 0.9 * self.left)
        for k, (world, part) in enumerate(zip(self.worlds, self.env.parts, strict=True)):
            accuracy = part.sums.take()[0]["accuracy"]
            self._accuracy[k] += (accuracy - self._accuracy[k]) / _ROLLOUTS
            missing = world.accuracy_floor + self.config.margin - accuracy - self._gap[k]
            part.multiplier = max(0.0, part.multiplier + rate * missing)
        if self.num_timesteps >= self._due:
            self._due += self.config.validate_every
            self.validate()

    def validate(self) -> None:
        """Drive the greedy policy in every world."""
        policy = greedy_policy(self.model, self.config, self.worlds[0].topology)
        found = [simulate(world, policy, self._keys) for world in self.worlds]
        accuracy = np.array([run.correct.mean() for run in found])
        self._gap = accuracy - self._accuracy
        floors = np.array([world.accuracy_floor for world in self.worlds]) + self.config.margin
        short = np.maximum(floors - accuracy, 0.0)
        cost = float(np.mean([run.cost.mean() for run in found]))
        score = cost + _SHORTFALL_PRICE * float(short.mean())
        say(
            f"step {self.num_timesteps:,}: cost {cost:.4f}, accuracy above the floors by "
            f"{100 * (accuracy - floors).mean():.2f} points, below {(short > 0).sum()} of them"
        )
        if score < self._score:
            self._score, self.best = score, self._bundle()

    def _bundle(self) -> PolicyBundle:
        world = self.worlds[0]
        return bundle_of(
            self.model,
            actions=self.config.outputs(world.topology),
            name="one policy",
            bundle_hash=world.table.bundle_hash,
            scenario="drawn",
            algorithm="maskable-ppo",
            metrics={},
            provenance={"config": asdict(self.config), "scenarios": len(self.worlds)},
            topology=world.topology,
        )


def trained(steps: int, scenarios: int, seed: int) -> PolicyBundle:
    """The one policy."""
    worlds = [build_world(drawn(k, seed), "train") for k in range(scenarios)]
    settings = {**STAGED_SETTINGS, **SETTINGS, "steps": steps, "seed": seed}
    config = TrainConfig(env="staged", algo="maskable-ppo", **settings).of(worlds[0].topology)
    torch.set_num_threads(1)  # as in `agents.training`
    set_random_seed(seed)
    env = Joined([adapter_of(config, world) for world in worlds])
    env.seed(seed)
    whole = replace(config, n_envs=env.num_envs)
    model = MaskablePPO(
        "MlpPolicy", env, **ppo_settings(whole), rollout_buffer_class=FrameRolloutBuffer
    )
    buffer: Any = model.rollout_buffer
    buffer.follow(lambda: env.frame_done)
    guides = [planner_of(world, seed, GUIDED_ON, (BONUS,)) for world in worlds]
    imitate(model, env, Guides(guides, env), [guide.error_price for guide in guides], whole)
    for part in env.parts:
        part.sums.take()
    ascent = Ascent(config, worlds, env)
    model.learn(steps, callback=ascent, log_interval=10**9)
    ascent.validate()
    assert ascent.best is not None
    return ascent.best


def planner_of(
    train: World, seed: int, drives: int, bonuses: Sequence[float] = ()
) -> PlannerPolicy:
    """The planner, tuned in one scenario on so many training drives."""
    floor = train.accuracy_floor + MARGIN
    found = tuned_planner(train, episode_keys(seed, drives), floor, bonuses)
    say(f"{train.scenario.name}: the planner's price of a wrong answer is {found.error_price:.2f}")
    return found


def classic(
    learnt: Mapping[str, Policy], drives: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Every policy in every classic scenario; the planner is tuned in each."""
    found = {}
    for name in CLASSIC:
        world, keys = build_world(name, "test"), episode_keys(seed, drives)
        planner = planner_of(build_world(name, "train"), seed, TUNED_ON)
        policies = {**learnt, "planner": planner}
        found[name] = {which: told(policy, world, keys) for which, policy in policies.items()}
        say(f"{name}: {found[name]}")
    return found


def told(policy: Policy, world: World, keys: Keys) -> dict[str, float]:
    """Cost, and accuracy above the floor in points."""
    driven = figures(policy, world, keys)
    return {"cost": driven.cost, "over_floor": 100 * driven.over_floor}


def away(learnt: Mapping[str, Policy], drives: int, seed: int) -> dict[str, dict[str, float]]:
    """Every policy in drawn scenarios that nobody trained in; the planner is tuned in each."""
    over: dict[str, list[float]] = {}
    floors: dict[str, list[float]] = {}
    for k in range(JUDGED):
        scenario, keys = drawn(_JUDGES_FROM + k, seed), episode_keys(seed, drives)
        world = build_world(scenario, "test")
        bound = lower_bound(world, keys).cost
        planner = planner_of(build_world(scenario, "train"), seed, TUNED_ON)
        policies = {**learnt, "planner": planner}
        for name, policy in policies.items():
            driven = told(policy, world, keys)
            over.setdefault(name, []).append(driven["cost"] / bound)
            floors.setdefault(name, []).append(driven["over_floor"])
        say(f"{scenario.name}: {over['one policy'][-1]:.3f} over the bound")
    return {
        name: {
            "over_bound": float(np.mean(ratios)),
            "worst_over_bound": max(ratios),
            "floors_kept": int(sum(f >= 0 for f in floors[name])),
            "least_over_floor": min(floors[name]),
        }
        for name, ratios in over.items()
    }


def tables(found: Mapping[str, Any]) -> str:
    """Both parts in Markdown."""
    lines = [f"| {' | '.join(['scenario', *next(iter(found['classic'].values()))])} |"]
    lines.append("|" + " --- |" * (lines[0].count("|") - 1))
    for name, cells in found["classic"].items():
        texts = [f"{cell['cost']:.4f} ({cell['over_floor']:+.2f})" for cell in cells.values()]
        lines.append(f"| `{name}` | {' | '.join(texts)} |")
    lines += ["", "| policy | cost over the bound | worst | floors kept | least above floor |"]
    lines.append("|" + " --- |" * 5)
    for name, r in found["drawn"].items():
        lines.append(
            f"| {name} | {r['over_bound']:.3f} | {r['worst_over_bound']:.2f} | "
            f"{r['floors_kept']} of {JUDGED} | {r['least_over_floor']:+.2f} |"
        )
    return "\n".join(lines)


def specialists() -> dict[str, Policy]:
    """The shipped staged policies of the classic scenarios."""
    return {n: shipped_contenders(build_world(n, "test"))[STAGED].policy for n in CLASSIC}


def say(line: str) -> None:
    """To the standard error: what it does takes minutes."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Train or read the one policy, drive all, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", type=Path, help="File of the one policy.")
    parser.add_argument("--steps", type=int, default=4_000_000, help="Decisions to train on.")
    parser.add_argument("--scenarios", type=int, default=32, help="Scenarios of the training.")
    parser.add_argument("--drives", type=int, default=64, help="Drives in each scenario.")
    parser.add_argument("--seed", type=int, default=0, help="Of everything random.")
    parser.add_argument("--json", action="store_true", help="Print JSON alone.")
    given = parser.parse_args()
    if given.policy and given.policy.exists():
        bundle = PolicyBundle.load(given.policy)
    else:
        bundle = trained(given.steps, given.scenarios, given.seed)
        if given.policy:
            bundle.save(given.policy)
    learnt = {"one policy": policy_from_bundle(bundle), **specialists()}
    found = {
        "classic": classic(learnt, given.drives, given.seed),
        "drawn": away(learnt, given.drives, given.seed),
        "drives": given.drives,
        "seed": given.seed,
    }
    if not given.json:
        say(tables(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
