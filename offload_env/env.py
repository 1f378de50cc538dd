"""`sliproad/Offload-v0` and `sliproad/OffloadStaged-v0`: one decision a frame, or several."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from offload_env.env_input import (
    ResetNeededError,
    asked_key,
    check_render_mode,
    checked_action,
    checked_seed,
    draw_key,
    from_mapping,
)
from offload_env.frame_picture import METADATA, Picture, rendered, shown_of
from offload_env.outcome import Outcome, frame_info, open_info
from offload_env.scenario import Scenario, Split
from offload_env.simulator import Simulator
from offload_env.world import World, build_world
from testbed.policy.decision_points import DecisionSpace, decision_points
from testbed.policy.observation_fields import scaled_bounds, schema_of

Step = tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]


def observation_box(space: DecisionSpace) -> gym.Space[NDArray[np.float32]]:
    """Gymnasium's space of the observations of a decision space."""
    low, high = scaled_bounds(schema_of(space.topology).staged_fields[: space.obs_dim])
    box: Any = gym.spaces.Box(low, high, dtype=np.float32)
    return box  # type: ignore[no-any-return]


class Multipliers:
    """Prices of a wrong answer; mixed into every environment.

    The reward is minus the cost, minus a price of a wrong answer that a learner may move. The
    constraint (mean accuracy at or above the floor) stays out of the cost, so that constrained
    methods can use ``info["cost"]`` and ``info["accuracy"]``; a Lagrangian method raises or lowers
    `lagrange` by dual ascent and learns on the reward.

    Attributes:
        lagrange: taken off the reward for each wrong or missing answer.
        critical_lagrange: taken off as well if the frame's class is a critical one.
    """

    lagrange: float = 0.0
    critical_lagrange: float = 0.0

    def set_lagrange(self, value: float, critical: float | None = None) -> None:
        """Set the price of a wrong answer, and (if given) the extra one of critical classes.

        Raises:
            ConfigError: if a price is negative or no finite number.
        """
        prices = (value,) if critical is None else (value, critical)
        if not all(0 <= price < math.inf for price in prices):
            raise ConfigError(
                f"Lagrange multipliers {', '.join(map(str, prices))}",
                expected="finite numbers of 0 or more",
                hint="a multiplier of an inequality is never negative",
            )
        self.lagrange = float(value)
        if critical is not None:
            self.critical_lagrange = float(critical)

    def _price(self, correct: Any, critical: Any) -> Any:
        """Cost of wrong answers, for one frame or arrays of frames."""
        if self.critical_lagrange:
            return (self.lagrange + self.critical_lagrange * critical) * (1.0 - correct)
        return self.lagrange * (1.0 - correct)


class OffloadEnv(Multipliers, gym.Env[NDArray[np.float32], np.int64]):
    """Choose for every camera frame the exit E and the split S.

    ## Description
    A drive of ``n_frames`` frames. Frames come at a fixed rate from real tracks (a car
    approaches a sign); answers of the real network are looked up in the frame table; delays and
    energies come from the cost model, the link from a network trace, the server's wait from a queue
    that others share. A slow action delays the frames after it. docs/environment.md has the whole
    specification. The sizes below are those of the shipped network; with frames of another
    network they follow from its topology (`World.topology`).

    ## Action Space
    ``Discrete(20)``: the canonical number of (E, S), ``index = (E - 1)(E + 2)/2 + S``.
    S = 0 sends the frame, S = E sends nothing. Every action is always legal.

    ## Observation Space
    ``Box`` of 33 float32: the `fields` of `testbed.policy.observation_fields.Schema`, scaled so
    that low is -1 and high is 1. Values beyond are clipped, except where the last column says
    otherwise.

    | index | name | unit | low | high | scale | told apart |
    |---|---|---|---|---|---|---|
    | 0 | uplink_mbps | Mbit/s | 0.1 | 300 | log | |
    | 1 | rtt_ms | ms | 2 | 1000 | log | up to 100000 |
    | 2 | transfer_mean_ms | ms | 2 | 1000 | log | up to 100000 |
    | 3 | transfer_spread_ms | ms | 0.1 | 500 | log | up to 100000 |
    | 4 | transfer_age_s | s | 0.01 | 60 | log | |
    | 5 | failure_age_s | s | 0.01 | 60 | log | |
    | 6 | server_wait_ms | ms | 0.1 | 500 | log | up to 100000 |
    | 7 | server_age_s | s | 0.01 | 60 | log | |
    | 8 | tail_left_ms | ms | 1 | 20000 | log | up to 100000 |
    | 9 | transfer_residual_ms | ms | -100 | 100 | linear | |
    | 10 | failures | 1 | 0 | 5 | linear | |
    | 11 | queue_ms | ms | 0 | 200 | linear | |
    | 12-16 | confidence_exit1 .. 5 | 1 | 0 | 1 | linear | |
    | 17 | last_confidence | 1 | 0 | 1 | linear | |
    | 18 | last_exit | 1 | 0 | 5 | linear | |
    | 19 | agreement | 1 | 0 | 1 | linear | |
    | 20 | answers_on_track | 1 | 0 | 30 | linear | |
    | 21 | accuracy_credit | 1 | -0.1 | 0.1 | linear | |
    | 22 | energy_left | 1 | 0 | 1 | linear | |
    | 23 | brightness | 1 | 0 | 1 | linear | |
    | 24 | contrast | 1 | 0 | 0.4 | linear | |
    | 25 | sharpness | 1 | 0.001 | 1 | log | |
    | 26, 27 | width_px, height_px | px | 10 | 300 | log | |
    | 28 | frame_in_track | 1 | 0 | 30 | linear | |
    | 29 | radio_5g | 1 | 0 | 1 | linear | |
    | 30 | accuracy_floor | 1 | 0.8 | 1 | linear | from 0 |
    | 31 | delay_share | 1 | 0 | 1 | linear | |
    | 32 | full_local_ms | ms | 1 | 1000 | log | 0.01 to 100000 |

    Never the label, the future or the true current rate.

    ## Rewards
    ``-cost - lagrange * (1 - correct)``, where correct is 0 or 1 (of frames with qualities, the
    answer's quality) and cost is ``delay_weight * delay_ms / delay_ref_ms + energy_weight *
    energy_mj / energy_ref_mj + miss * [delay_ms > deadline_ms or skipped]`` plus ``over_budget``
    once the energy budget is spent. The references are full local processing without queueing.
    `set_lagrange` moves the multiplier (and that of critical classes).

    ## Starting State
    A random trace of the split, a random place in it, random tracks, jitter and server load,
    all from one 64-bit key drawn from the environment's generator.

    ## Episode End
    Never terminated; truncated after ``n_frames`` frames.

    ## Info
    Numbers only, with the same keys and values as one lane of `OffloadVectorEnv`: ``delay_ms,
    energy_mj, accuracy (0 or 1, or the answer's quality), cost, cost_delay, cost_energy, cost_miss,
    cost_budget, queue_ms (of the frame just done), action (its canonical number), exit_used (the
    exit whose answer is used, 1..5), status (index into `offload_env.outcome.STATUS`: 0 ok, 1
    fallback, 2 skipped), critical``.

    ## Arguments
    Args:
        scenario: name, path of a TOML file, or a `Scenario`. A mapping as the only argument holds
            all arguments by name, as RLlib passes them.
        split: ``train`` or ``test``.
        world: a world instead of both.
        lagrange: first value of the multiplier.
        render_mode: form of the last frame in `render`: ``ansi`` a line of text, ``rgb_array`` a
            picture (`offload_env.frame_picture`), None nothing.

    ``reset(options={"key": k})`` starts the episode of key k (0..2^64-1): the same drive for
    every policy under comparison. Another option is refused.

    Raises:
        RenderModeError, InvalidResetError, InvalidActionError, ResetNeededError: of
            `offload_env.env_input`, from the method that got the wrong input. An action that is
            refused changes nothing.
    """

    metadata: dict[str, Any] = METADATA
    granularity: ClassVar[Literal["frame", "staged"]] = "frame"
    """What one step decides: a whole frame, or one decision point of it."""

    @from_mapping
    def __init__(
        self,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "train",
        *,
        world: World | None = None,
        lagrange: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self.world = world if world is not None else build_world(scenario, split)
        self.set_lagrange(lagrange)
        self.simulator = Simulator(self.world)
        self._points = decision_points(self.world.topology)
        self.space = self._points.space(self.granularity)
        self.action_space = gym.spaces.Discrete(self.space.n_actions)
        self.observation_space = observation_box(self.space)
        self._staged = self.space.is_staged
        self._n_frames = self.world.scenario.timing.n_frames
        self._critical: list[bool] = self.world.critical.tolist()
        self._prices = (
            self.world.delay_price,
            self.world.energy_price,
            self.world.scenario.price.miss,
        )
        self._last: Outcome | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start another drive."""
        key = asked_key(options)
        super().reset(seed=checked_seed(seed))
        self.simulator.reset(self.world.plan(draw_key(self.np_random) if key is None else key))
        self._last = None
        return self.simulator.observe(self.space), {}

    def step(self, action: np.int64 | int) -> Step:
        """Carry out a decision; the observation is for the next one, usually on a new frame."""
        simulator = self.simulator
        self._check_started()
        number = checked_action(action, self.space.n_actions)
        if self._staged:
            chosen = int(self._points.repair[simulator.point, number])
            advanced = simulator.advance(chosen)
            if advanced is None:
                info = open_info(simulator.pair_of[chosen])
                return simulator.observe(self.space), 0.0, False, False, info
            outcome = advanced
        else:
            outcome = simulator.settle(number)
        self._last = outcome
        critical = self._critical[outcome.row]
        exit_used = simulator.exit_of[outcome.used]
        info = frame_info(outcome, exit_used, float(outcome.correct), critical, self._prices)
        if self._staged:
            info["frame_done"] = True
        return (
            simulator.observe(self.space),
            -outcome.cost - self._price(outcome.correct, critical),
            False,
            simulator.frame >= self._n_frames,
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (n_actions,), legal actions now; all of them where one action decides a frame."""
        if not self._staged:
            return np.ones(self.space.n_actions, bool)
        self._check_started()
        return np.array(self._points.legal[self.simulator.point])

    def render(self) -> str | Picture | None:
        """The last frame that ended, as `render_mode` says."""
        if self.render_mode is None:
            return None
        self._check_started()
        if self._last is None:
            shown = shown_of(self.world, self.simulator.row, 0)
        else:
            shown = shown_of(self.world, self._last.row, self.simulator.frame - 1, self._last)
        return rendered(self.world, shown, self.render_mode)

    def _check_started(self) -> None:
        if self.simulator.frame < 0:
            raise ResetNeededError(
                "no drive has begun", expected="reset before step and render", hint="call reset"
            )


class OffloadStagedEnv(OffloadEnv):
    """Decide again after every exit that the device evaluates, knowing its confidence.

    ## Description
    As `OffloadEnv`, but a frame may take several decisions. The device is at a decision point after
    block p (0 at first). It may run on to a block S and send from there to exit E, or run on to
    exit E, evaluate its class and calibrated confidence, and then decide again. Every exit that is
    evaluated costs its head's device time. If no answer comes before the time-out, the frame stays
    open: the device resumes from block S, evaluates an exit there or later and answers, but does
    not send this frame again.

    ## Action Space
    ``Discrete(36)``. After block p, whose exit was evaluated last (0: none):

    | action | legal if | what happens |
    |---|---|---|
    | (E, S), S < E, 0..19 | S >= p, E > p | run to S, encode, send to exit E; wait |
    | (E, E), 0..19 | E > p | run to E, evaluate exit E; E = 5 answers and ends |
    | 20 | p > 0 | answer with the exit evaluated last: the frame ends |
    | 21..35, early time-out | as 0..19 with S < E, in order | the same, but wait less |

    An answer before the time-out ends the frame. The early time-out is the time of two usual
    exchanges (`testbed.policy.estimators.early_timeout_ms`), if that is less. After a time-out at
    block S only exits that were not evaluated yet, from S on, and 20 are legal.

    `action_masks` says which are legal. An illegal action is not an error (many learners
    know no masks): an exit at or before p means "answer", a split before p means split at p, an
    action that would send after a time-out evaluates its exit, and 20 with no exit evaluated
    evaluates the nearest exit.

    ## Observation Space
    ``Box`` of 43 float32: the `staged_fields` of `testbed.policy.observation_fields.Schema`, that
    is the 33 elements of `OffloadEnv` (with the confidences of this frame's exits as they are
    evaluated) and

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
    As `OffloadEnv`, and ``frame_done``. While a frame is open, figures are 0, ``action`` is the
    pair just run and the status is 3 (deciding). ``action`` of a finished frame is the equivalent
    canonical action: the pair sent, if one was (``exit_used`` says which exit's answer is used).

    ## Arguments
    As `OffloadEnv`.
    """

    granularity = "staged"
