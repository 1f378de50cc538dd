"""`sliproad/Offload-v0`: one decision a frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_ACTIONS
from offload_env.action_check import checked_action
from offload_env.errors import RenderModeError, ResetNeededError
from offload_env.frame_picture import Picture, Shown, describe, paint
from offload_env.from_mapping import from_mapping
from offload_env.resetting import asked_key, checked_seed, draw_key
from offload_env.reward import Multipliers
from offload_env.scenario import Scenario, Split
from offload_env.simulator import EXIT, Outcome, Simulator
from offload_env.world import World, build_world
from testbed.policy.observer import OBS_DIM, STAGED_FIELDS, scaled_bounds


def observation_box(n: int) -> gym.Space[NDArray[np.float32]]:
    """The space of the first n scaled observation elements."""
    low, high = scaled_bounds(STAGED_FIELDS[:n])
    box: Any = gym.spaces.Box(low, high, dtype=np.float32)
    return box  # type: ignore[no-any-return]


class OffloadEnv(Multipliers, gym.Env[NDArray[np.float32], np.int64]):
    """Choose for every camera frame the exit E and the split S.

    ## Description
    A drive of ``n_frames`` frames. Frames come at a fixed rate from real tracks (a car
    approaches a sign); every answer is what the real network answered, looked up in the
    frame table; delays and energies come from the cost model, the link from a network
    trace, the server's wait from a queue that others share. A slow choice delays the
    frames behind it. docs/environment.md holds the whole specification.

    ## Action Space
    ``Discrete(20)``: the canonical number of (E, S), ``index = (E - 1)(E + 2)/2 + S``.
    S = 0 sends the frame, S = E sends nothing. Every action is always legal.

    ## Observation Space
    ``Box`` of 33 float32: `testbed.policy.observer.FIELDS`, scaled so that low is -1 and
    high is 1. Values beyond are clipped, except where the last column says otherwise.

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
    ``-cost - lagrange * (1 - correct)``, where cost is ``delay_weight * delay_ms /
    delay_ref_ms + energy_weight * energy_mj / energy_ref_mj + miss * [delay_ms > deadline_ms
    or skipped]`` plus ``over_budget`` once the energy budget is spent. The references are
    full local processing without queueing. `set_lagrange` moves the multiplier (and that of
    critical classes).

    ## Starting State
    A random trace of the split, a random place in it, random tracks, jitter and server load,
    all from one 64-bit key drawn from the environment's generator.

    ## Episode End
    Never terminated; truncated after ``n_frames`` frames.

    ## Info
    Numbers only, the same keys and values as those of one lane of `OffloadVectorEnv`:
    ``delay_ms, energy_mj, accuracy (0 or 1), cost, cost_delay, cost_energy, cost_miss,
    cost_budget, queue_ms (of the frame just done), action (its canonical number), exit_used
    (whose answer stands, 1..5), status (index into `offload_env.outcome.STATUS`: 0 ok,
    1 fallback, 2 skipped), critical``.

    ## Arguments
    Args:
        scenario: name, path of a TOML file, or a `Scenario`. A mapping as the only argument
            holds all of them by name, as RLlib passes them.
        split: ``train`` or ``test``.
        world: a world instead of both.
        lagrange: first value of the multiplier.
        render_mode: what `render` gives of the last frame: ``ansi`` a line of text,
            ``rgb_array`` a picture (`offload_env.frame_picture`), None nothing.

    ``reset(options={"key": k})`` starts the episode of key k (0..2^64-1): the same drive for
    every policy under comparison. Another option is refused.

    Raises:
        RenderModeError, InvalidResetError, InvalidActionError, ResetNeededError: of
            `offload_env.errors`, from the method that was given what it cannot use. An action
            that is refused changes nothing.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 10,
    }
    simulator: Simulator

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
        self.critical_lagrange = 0.0
        self.set_lagrange(lagrange)
        self._set_up()
        self._n_frames = self.world.scenario.timing.n_frames
        self._critical: list[bool] = self.world.critical.tolist()
        self._last: Outcome | None = None
        self._terms = CostTerms(self.world)

    def _set_up(self) -> None:
        """Simulator and spaces."""
        self.simulator = Simulator(self.world)
        self.action_space = gym.spaces.Discrete(N_ACTIONS)
        self.observation_space = observation_box(OBS_DIM)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start another drive."""
        key = asked_key(options)
        super().reset(seed=checked_seed(seed))
        self.simulator.reset(self.world.plan(draw_key(self.np_random) if key is None else key))
        self._last = None
        return self._observe(), {}

    def _observe(self) -> NDArray[np.float32]:
        return self.simulator.observe()

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Run the frame in front under `action`; the observation is of the next frame."""
        simulator = self.simulator
        check_started(simulator)
        outcome = simulator.step(checked_action(action, N_ACTIONS))
        self._last = outcome
        critical = self._critical[outcome.row]
        reward = -outcome.cost - self._price(outcome.correct, critical)
        return (
            simulator.observe(),
            reward,
            False,
            simulator.frame >= self._n_frames,
            self._terms.info(outcome, critical),
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (20,): every action is legal."""
        return np.ones(N_ACTIONS, bool)

    def render(self) -> str | Picture | None:
        """The last frame that ended, as `render_mode` says."""
        if self.render_mode is None:
            return None
        check_started(self.simulator)
        if self._last is None:
            shown = shown_of(self.world, self.simulator.row, 0)
        else:
            shown = shown_of(self.world, self._last.row, self.simulator.frame - 1, self._last)
        return describe(shown) if self.render_mode == "ansi" else paint(self.world, shown)


class CostTerms:
    """Splits an outcome's cost into its terms, for ``info``."""

    def __init__(self, world: World) -> None:
        price = world.scenario.price
        self.delay = price.delay_weight / world.delay_ref_ms
        self.energy = price.energy_weight / world.energy_ref_mj
        self.miss = price.miss

    def info(self, outcome: Outcome, critical: bool) -> dict[str, Any]:
        """The info of one frame."""
        delay = self.delay * outcome.delay_ms
        energy = self.energy * outcome.energy_mj
        miss = self.miss * outcome.miss
        return {
            "delay_ms": outcome.delay_ms,
            "energy_mj": outcome.energy_mj,
            "accuracy": float(outcome.correct),
            "cost": outcome.cost,
            "cost_delay": delay,
            "cost_energy": energy,
            "cost_miss": miss,
            "cost_budget": outcome.cost - ((delay + energy) + miss),
            "queue_ms": outcome.queue_ms,
            "action": outcome.action,
            "exit_used": EXIT[outcome.used],
            "status": outcome.status,
            "critical": critical,
        }


def check_started(simulator: Simulator) -> None:
    """Raise `ResetNeededError` before the first ``reset``."""
    if simulator.frame < 0:
        raise ResetNeededError(
            "no drive has begun", expected="reset before step and render", hint="call reset"
        )


def check_render_mode(render_mode: str | None, metadata: Mapping[str, Any]) -> str | None:
    """One of ``metadata["render_modes"]`` or None; raises `RenderModeError` otherwise."""
    modes: list[str] = metadata["render_modes"]
    if render_mode is not None and render_mode not in modes:
        raise RenderModeError(
            f"render_mode {render_mode}",
            expected=f"{', '.join(modes)}, or None",
            hint="choose one of them",
        )
    return render_mode


def shown_of(world: World, row: int, number: int, outcome: Outcome | None = None) -> Shown:
    """A frame of the table as `offload_env.frame_picture` shows it, after its outcome or before."""
    label, track = int(world.table.label[row]), int(world.table.track[row])
    if outcome is None:
        return Shown(number, label, track)
    return Shown(
        number,
        label,
        track,
        action=outcome.action,
        exit_used=EXIT[outcome.used],
        status=outcome.status,
        delay_ms=outcome.delay_ms,
        energy_mj=outcome.energy_mj,
        correct=bool(outcome.correct),
        cost=outcome.cost,
    )
