"""`sliproad/OffloadLive-v0` and `OffloadLiveStaged-v0`: real frames through the real testbed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from offload_env.env import Multipliers, Step, observation_box
from offload_env.env_input import (
    asked_key,
    check_render_mode,
    checked_action,
    checked_seed,
    draw_key,
    from_mapping,
)
from offload_env.frame_picture import METADATA, Picture, Shown, rendered
from offload_env.live_rig import LiveRig
from offload_env.outcome import NOTHING, STATUS, Outcome, frame_info, open_info
from offload_env.scenario import Scenario, Split
from offload_env.world import World, build_world
from testbed.policy.decision_points import decision_points
from testbed.policy.observation_fields import schema_of

if TYPE_CHECKING:
    from testbed.device.processor import PaceKept
    from testbed.link.transfer import LinkRecord
    from testbed.records.measurement import Measurement


class OffloadLiveEnv(Multipliers, gym.Env[NDArray[np.float32], np.int64]):
    """`OffloadEnv` on real processes: link, server, protocol and answers are real.

    ## Description
    A MEC server and a link run as processes of their own, the device runs here: its blocks
    compute on real images, payloads cross real sockets through a link that replays the
    drive's trace, the server answers. The device keeps the pace of the scenario's device: it
    computes every section for real, then waits until the time that the cost model states has
    passed. So compute times are modelled and all other times are measured; `pace_kept` says whether
    this machine was fast enough. Time is real: ``step`` returns when the next frame has been
    captured, and a learner that thinks longer than the device computes delays its own frames. The
    server has no other users; those of the scenario are left out.

    ## Action Space, Observation Space, Rewards, Episode End
    As `OffloadEnv`. Energy is the model meter's: measured times and bytes, published powers.

    ## Info
    As `OffloadEnv`, and ``measurement``, the row of the testbed.

    ## Starting State
    A trace of the split and a place in it, as `OffloadEnv`, and the frame source from its
    beginning, in an order drawn from the seed. Not deterministic: real time is not.

    ## Arguments
    Args:
        scenario, split, world, lagrange, render_mode: as in `OffloadEnv`.
        frames: ``render`` (road signs drawn here) or ``gtsrb:policy-test``.
        n_frames: frames of an episode; None takes the scenario's.
        paced: emulate the scenario's device (`testbed.device.processor`); False takes this
            machine as it is.
        bundle: folder of the model bundle that device and server run, of the scenario's network;
            None is the shipped one.

    Raises:
        ConfigError: at the first `reset`, if the bundle has other exits or splits than the
            scenario's network; and as `OffloadEnv`.

    Call `close` to end the processes (``with contextlib.closing(env)``).
    """

    metadata: dict[str, Any] = METADATA
    granularity: ClassVar[Literal["frame", "staged"]] = "frame"
    """What one step decides: a whole frame, or one decision point of it."""

    @from_mapping
    def __init__(
        self,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "test",
        *,
        world: World | None = None,
        lagrange: float = 0.0,
        frames: str = "render",
        n_frames: int | None = None,
        paced: bool = True,
        bundle: Path | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self.world = world if world is not None else build_world(scenario, split)
        self._points = decision_points(self.world.topology)
        self.space = self._points.space(self.granularity)
        self.action_space = gym.spaces.Discrete(self.space.n_actions)
        self.observation_space = observation_box(self.space)
        self._staged = self.space.is_staged
        fields = schema_of(self.world.topology).fields
        self._queue_at = next(f.index for f in fields if f.name == "queue_ms")
        self.set_lagrange(lagrange)
        self._n_frames = n_frames or self.world.scenario.timing.n_frames
        self._rig = LiveRig(self.world, frames, self._n_frames, paced, bundle)
        self._last: tuple[Measurement, Outcome] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the server (once), a link over the drive's trace, and the device."""
        key = asked_key(options)
        super().reset(seed=checked_seed(seed))
        self._rig.start(draw_key(self.np_random) if key is None else key)
        self._done = 0
        self._spent_mj = 0.0
        self._last = None
        observation = self._rig.receive()
        # The drive starts with its first capture, so no frame has queued yet.
        observation[self._queue_at] = -1.0
        return self._before_deciding(observation), {}

    def _before_deciding(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """The observation before the first decision on the current frame."""
        if not self._staged:
            return observation
        if self._rig.skipped:
            return self._rig.look_staged(observation)
        return self._rig.device.frame.observe(self.space)

    def step(self, action: np.int64 | int) -> Step:
        """Carry out a decision; where it ends the frame, wait for the next one's capture."""
        device = self._rig.device
        chosen = checked_action(action, self.space.n_actions)
        if not self._staged:
            if not self._rig.skipped:
                device.frame.settle(chosen)
            return self._finish(chosen)
        chosen = int(self._points.repair[device.point, chosen])
        pair = int(self._points.canonical[chosen])
        if not self._rig.skipped and device.frame.advance(chosen) is None:
            return device.frame.observe(self.space), 0.0, False, False, open_info(pair)
        observation, reward, terminated, truncated, info = self._finish(pair)
        info["frame_done"] = True
        if truncated:
            seen = self._rig.look_staged(observation)
        else:
            seen = self._before_deciding(observation)
        return seen, reward, terminated, truncated, info

    def _finish(self, action: int) -> Step:
        """The current frame has ended: wait for the next one, and account for it."""
        device = self._rig.device
        self._image = self._rig.image
        self._done += 1
        truncated = self._done >= self._n_frames
        if truncated:
            done = device.finish()
            observation = self._rig.look()
        else:
            observation = self._rig.receive()
            done = device.finished
        assert done is not None
        if done.status == "skipped":  # not carried out, but this action was decided
            chosen = self.world.topology.actions[action]
            done = replace(done, action=chosen.index, exit_used=chosen.exit)
        info = self._account(done)
        reward = -info["cost"] - self._price(info["accuracy"], info["critical"])
        return observation, float(reward), False, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (n_actions,), legal actions now; all of them where one action decides a frame."""
        if not self._staged:
            return np.ones(self.space.n_actions, bool)
        return np.array(self._points.legal[self._rig.device.point])

    def render(self) -> str | Picture | None:
        """The last frame that ended, as `render_mode` says."""
        if self.render_mode is None:
            return None
        if self._last is None:
            shown = Shown(0, image=self._rig.image)
        else:
            row, outcome = self._last
            shown = Shown(self._done - 1, row.label, image=self._image, outcome=outcome)
        return rendered(self.world, shown, self.render_mode)

    @property
    def pace_kept(self) -> PaceKept | None:
        """How this machine kept the pace in this drive; None if it was not paced."""
        return self._rig.device.pace_kept

    @property
    def frames_seed(self) -> int:
        """Seed of the frame source in this drive."""
        return self._rig.frames_seed

    @property
    def started_s(self) -> float | None:
        """`time.monotonic` of the first frame's capture; None before it."""
        return self._rig.started_s

    def link_record(self) -> LinkRecord:
        """The trace that this drive's link replays, and when it started."""
        return self._rig.link_record()

    def link_stats(self) -> dict[str, Any]:
        """How late the link of this drive let bytes out."""
        return self._rig.link_stats()

    def close(self) -> None:
        """End device, link and server."""
        self._rig.close()

    def _account(self, row: Measurement) -> dict[str, Any]:
        world = self.world
        if row.correct is None and row.status != "skipped":
            raise DataError(
                f"frames of {self._rig.source!r} without labels",
                expected="labelled frames, since the reward needs them",
                hint="use render or gtsrb:policy-test",
            )
        energy = float(row.energy_mj or 0.0)
        miss = row.status == "skipped" or row.delay_ms > world.scenario.timing.deadline_ms
        cost = world.frame_cost(row.delay_ms, energy, float(miss)) + self._budget_cost(energy)
        outcome = NOTHING._replace(
            action=row.action,
            used=int(world.topology.local_of[row.exit_used]),
            status=STATUS.index(row.status),
            queue_ms=row.queue_ms,
            delay_ms=row.delay_ms,
            energy_mj=energy,
            correct=bool(row.correct),
            miss=miss,
            cost=cost,
        )
        self._last = row, outcome
        critical = row.label in world.scenario.constraint.critical_classes
        prices = world.delay_price, world.energy_price, world.scenario.price.miss
        info = frame_info(outcome, row.exit_used, float(outcome.correct), critical, prices)
        return {**info, "measurement": row}

    def _budget_cost(self, energy_mj: float) -> float:
        """The charge on a frame once the drive's energy budget is spent."""
        price = self.world.scenario.price
        self._spent_mj += energy_mj
        over = 0 < price.energy_budget_mj < self._spent_mj
        return price.over_budget if over else 0.0


class OffloadLiveStagedEnv(OffloadLiveEnv):
    """`OffloadStagedEnv` on the real testbed, as `OffloadLiveEnv` is `OffloadEnv` on it.

    ## Description
    The device that runs here computes, evaluates exits, sends and measures as
    `sliproad testbed device` does with a staged policy; a step is one of its decisions.
    ``step`` returns when the exit's answer is known or, at the end of a frame, when the next
    one has been captured.

    ## Action Space, Observation Space, Rewards, Episode End
    As `OffloadStagedEnv`, with the same masks and 0 while a frame is open. Every action on a frame
    that waited too long ends it, skipped.

    ## Info
    As `OffloadStagedEnv`, and ``measurement`` where ``frame_done``.

    ## Starting State, Arguments
    As `OffloadLiveEnv`.
    """

    granularity = "staged"
