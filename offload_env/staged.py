"""`sliproad/OffloadStaged-v0`: several decisions within a frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from offload_env.env import (
    CostTerms,
    check_render_mode,
    describe,
    episode_key,
    observation_box,
)
from offload_env.reward import Multipliers
from offload_env.scenario import Scenario, Split
from offload_env.simulator import Outcome
from offload_env.staged_simulator import StagedSimulator
from offload_env.world import World, build_world
from testbed.decide.observation import STAGED_OBS_DIM
from testbed.decide.stages import LEGAL, N_STAGED, REPAIR, staged_name

__all__ = ["OffloadStagedEnv", "deciding"]


class OffloadStagedEnv(Multipliers, gym.Env[NDArray[np.float32], np.int64]):
    """Decide again after every exit that the device evaluates, knowing its confidence.

    ## Description
    As `OffloadEnv`, but a frame is not settled by one decision. The device stands after
    block p (0 at first). It may run on to a block S and send from there to exit E, or run
    on to exit E and look at its class and calibrated confidence, and then decide again.
    Every exit that is evaluated costs its head's device time. If no answer comes to what was
    sent, the frame stays open: the device goes on from block S, looks at an exit there and
    answers, but does not send this frame again.

    ## Action Space
    ``Discrete(36)``. Standing after block p, whose exit was evaluated last (0: none):

    | action | legal if | what happens |
    |---|---|---|
    | (E, S), S < E, 0..19 | S >= p, E > p | run to S, encode, send to exit E; wait |
    | (E, E), 0..19 | E > p | run to E, evaluate exit E; E = 5 answers and ends |
    | 20 | p > 0 | answer with the exit evaluated last: the frame ends |
    | 21..35, in a hurry | as 0..19 with S < E, in order | the same, but wait less |

    An answer before the time-out ends the frame. In a hurry the device gives up after what two
    usual exchanges take (`testbed.decide.estimators.patience_ms`), if that is less.
    After giving up at block S only exits that were not evaluated yet, from S on, and 20 are legal.

    `action_masks` says which are legal. An illegal action is not an error (many learners
    know no masks): one whose exit lies behind is "answer", one whose split lies behind
    splits at p, what would send after giving up evaluates its exit, and 20 with nothing
    evaluated evaluates the nearest exit.

    ## Observation Space
    ``Box(-1, 1, (43,), float32)``: `testbed.decide.observation.STAGED_FIELDS`, that is the 33
    elements of `OffloadEnv` (with the confidences of this frame's exits as they are seen)
    and

    | index | name | unit | low | high | scale |
    |---|---|---|---|---|---|
    | 33-37 | stands_at_0 .. 4 | 1 | 0 | 1 | linear |
    | 38 | stage_confidence | 1 | 0 | 1 | linear |
    | 39 | stage_agrees_track | 1 | 0 | 1 | linear |
    | 40 | stage_agrees_frame | 1 | 0 | 1 | linear |
    | 41 | stage_gave_up | 1 | 0 | 1 | linear |
    | 42 | stage_spent_ms | ms | 0.1 | 1000 | log |

    ## Rewards
    0 while a frame is open, and that of `OffloadEnv` when it ends.

    ## Starting State
    As `OffloadEnv`.

    ## Episode End
    Never terminated; truncated when ``n_frames`` frames are done.

    ## Info
    As `OffloadEnv`, and ``frame_done``. While a frame is open, figures are 0, the action is
    the one taken and the status ``deciding``. ``action`` of a finished frame is the
    canonical action that it amounts to: the pair sent, if one was (``exit_used`` says which
    exit's answer stands).

    ## Arguments
    As `OffloadEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "train",
        *,
        world: World | None = None,
        lagrange: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.world = world if world is not None else build_world(scenario, split)
        self.simulator = StagedSimulator(self.world)
        self.action_space = gym.spaces.Discrete(N_STAGED)
        self.observation_space = observation_box(STAGED_OBS_DIM)
        self.critical_lagrange = 0.0
        self.set_lagrange(lagrange)
        self.render_mode = check_render_mode(render_mode)
        self._n_frames = self.world.scenario.timing.n_frames
        self._critical: list[bool] = self.world.critical.tolist()
        self._terms = CostTerms(self.world)
        self._last: Outcome | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start another drive."""
        super().reset(seed=seed)
        self.simulator.reset(self.world.plan(episode_key(options, self.np_random)))
        self._last = None
        return self.simulator.observe_staged(), {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision; the frame ends or the device stands further on."""
        simulator = self.simulator
        chosen = int(REPAIR[simulator.stand, int(action)])
        outcome = simulator.take(chosen)
        if outcome is None:
            return self.simulator.observe_staged(), 0.0, False, False, deciding(chosen)
        self._last = outcome
        critical = self._critical[outcome.row]
        info = self._terms.info(outcome, critical)
        info["frame_done"] = True
        return (
            self.simulator.observe_staged(),
            -outcome.cost - self._price(outcome.correct, critical),
            False,
            simulator.frame >= self._n_frames,
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (36,): what is legal where the device stands."""
        return np.array(LEGAL[self.simulator.stand])

    def render(self) -> str | None:
        """The last finished frame as one line."""
        return describe(self._last) if self.render_mode == "ansi" else None


def deciding(action: int) -> dict[str, Any]:
    """The info while a frame is open."""
    zeros = dict.fromkeys(
        (
            "delay_ms",
            "energy_mj",
            "accuracy",
            "cost",
            "cost_delay",
            "cost_energy",
            "cost_miss",
            "cost_budget",
            "queue_ms",
        ),
        0.0,
    )
    return {
        **zeros,
        "action": staged_name(action),
        "exit_used": 0,
        "status": "deciding",
        "critical": False,
        "frame_done": False,
    }
