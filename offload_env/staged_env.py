"""`sliproad/OffloadStaged-v0`: several decisions within a frame."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from offload_env.env import OffloadEnv, check_started, observation_box
from offload_env.env_input import checked_action
from offload_env.outcome import DECIDING
from offload_env.staged_simulator import StagedSimulator
from testbed.policy.decision_points import CANONICAL, LEGAL, N_STAGED, REPAIR
from testbed.policy.observer import STAGED_OBS_DIM

__all__ = ["OffloadStagedEnv", "deciding"]


class OffloadStagedEnv(OffloadEnv):
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
    usual exchanges take (`testbed.policy.estimators.early_timeout_ms`), if that is less.
    After giving up at block S only exits that were not evaluated yet, from S on, and 20 are legal.

    `action_masks` says which are legal. An illegal action is not an error (many learners
    know no masks): one whose exit lies behind is "answer", one whose split lies behind
    splits at p, what would send after giving up evaluates its exit, and 20 with nothing
    evaluated evaluates the nearest exit.

    ## Observation Space
    ``Box`` of 43 float32: `testbed.policy.observer.STAGED_FIELDS`, that is the 33
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
    As `OffloadEnv`, and ``frame_done``. While a frame is open, figures are 0, ``action`` is
    the pair that was run just now and the status 3 (deciding). ``action`` of a finished frame
    is the canonical action that it amounts to: the pair sent, if one was (``exit_used`` says
    which exit's answer stands).

    ## Arguments
    As `OffloadEnv`.
    """

    simulator: StagedSimulator

    def _set_up(self) -> None:
        self.simulator = StagedSimulator(self.world)
        self.action_space = gym.spaces.Discrete(N_STAGED)
        self.observation_space = observation_box(STAGED_OBS_DIM)

    def _observe(self) -> NDArray[np.float32]:
        return self.simulator.observe_staged()

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision; the frame ends or the device stands further on."""
        simulator = self.simulator
        check_started(simulator)
        chosen = int(REPAIR[simulator.point, checked_action(action, N_STAGED)])
        outcome = simulator.take(chosen)
        if outcome is None:
            return simulator.observe_staged(), 0.0, False, False, deciding(chosen)
        self._last = outcome
        critical = self._critical[outcome.row]
        info = self._terms.info(outcome, critical)
        info["frame_done"] = True
        return (
            simulator.observe_staged(),
            -outcome.cost - self._price(outcome.correct, critical),
            False,
            simulator.frame >= self._n_frames,
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (36,): what is legal where the device stands."""
        check_started(self.simulator)
        return np.array(LEGAL[self.simulator.point])


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
        "action": int(CANONICAL[action]),
        "exit_used": 0,
        "status": DECIDING,
        "critical": False,
        "frame_done": False,
    }
