"""`sliproad/OffloadLive-v0`: every step is a real frame through the real testbed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cnn.action import N_ACTIONS, action_from_index
from cnn.errors import ConfigError, DataError
from offload_env.env import check_render_mode, episode_key, observation_box
from offload_env.reward import Multipliers
from offload_env.scenario import Scenario, Split
from offload_env.world import MAIN, World, build_world
from testbed.decide.observation import FIELDS, OBS_DIM

if TYPE_CHECKING:
    from cnn.runtime import SplitRuntime
    from testbed.device.device import Device
    from testbed.device.frames import CameraFrame
    from testbed.link.process import LinkProcess
    from testbed.link.record import LinkRecord
    from testbed.records.measurement import Measurement

QUEUE_AT: Final = next(f.index for f in FIELDS if f.name == "queue_ms")
CONNECT_TIMEOUT_S: Final = 10.0
CALIBRATION_FRAMES: Final = 25


def matching_slowdown(runtime: SplitRuntime, world: World) -> float:
    """Factor that makes a device on this machine as slow as the scenario's.

    Measured with the device itself: full local processing of a few frames, slowed down by
    the cost model's own factor. How fast a shared machine is changes from hour to hour.

    Returns:
        at least 1: a faster device than this machine cannot be emulated.
    """
    from testbed.decide.observation import Observer
    from testbed.decide.policy import StaticPolicy
    from testbed.device.device import Device, DeviceConfig
    from testbed.device.frames import open_frames
    from testbed.meters.base import NoMeter

    guess = max(1.0, world.cost.slowdown)
    device = Device(
        runtime,
        None,
        StaticPolicy(action_from_index(MAIN)),
        Observer(world.settings),
        NoMeter(),
        DeviceConfig(period_ms=0, pause_ms=20, slowdown=guess),
    )
    frames = open_frames("render", runtime.bundle.config.input_size, seed=0)
    rows = list(device.run(islice(frames, CALIBRATION_FRAMES)))
    # The first frames run cold: there is nothing yet to keep warm with.
    typical_ms = float(np.median([row.delay_ms - row.queue_ms for row in rows[5:]]))
    return max(1.0, guess * world.delay_ref_ms / typical_ms)


class OffloadLiveEnv(Multipliers, gym.Env[NDArray[np.float32], np.int64]):
    """`OffloadEnv` with nothing simulated but the radio's capacity and the power of the parts.

    ## Description
    A MEC server and a link run as processes of their own, the device runs here: its blocks
    compute on real images, payloads cross real sockets through a link that replays the
    drive's trace, the server answers. The device is slowed down (by pauses) to the
    scenario's speed where this machine is faster. Time is real: ``step`` returns when the
    next frame has been captured, and a learner that thinks for long delays its own frames.
    The server serves nobody else; the scenario's other users are left out.

    ## Action Space, Observation Space, Rewards, Episode End
    As `OffloadEnv`. Energy is the model meter's: measured times and bytes, published powers.

    ## Info
    As `OffloadEnv` (without ``cost_budget``), and ``measurement``, the row of the testbed.

    ## Starting State
    A trace of the split and a place in it, as `OffloadEnv`, and the frame source from its
    beginning, in an order drawn from the seed. Not deterministic: real time is not.

    ## Arguments
    Args:
        scenario, split, world, lagrange, render_mode: as in `OffloadEnv`.
        frames: ``render`` (road signs drawn here) or ``gtsrb:policy-test``.
        n_frames: frames of an episode; None takes the scenario's.
        slowdown: factor on this machine's compute, at least 1; None measures what makes
            full local processing here as slow as the scenario's.

    Call `close` to end the processes (``with contextlib.closing(env)``).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "test",
        *,
        world: World | None = None,
        lagrange: float = 0.0,
        frames: str = "render",
        n_frames: int | None = None,
        slowdown: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.world = world if world is not None else build_world(scenario, split)
        self.action_space = gym.spaces.Discrete(N_ACTIONS)
        self.observation_space = observation_box(OBS_DIM)
        self.critical_lagrange = 0.0
        self.set_lagrange(lagrange)
        self.render_mode = check_render_mode(render_mode)
        self._n_frames = n_frames or self.world.scenario.timing.n_frames
        self._source = frames
        self._slowdown = slowdown
        self._mask = np.ones(N_ACTIONS, bool)
        self._runtime: SplitRuntime | None = None
        self._processes = contextlib.ExitStack()
        self._drive = contextlib.ExitStack()
        self._device: Device | None = None
        self._link: LinkProcess | None = None
        self._server_port = 0
        self.frames_seed = 0
        self._last: Measurement | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the server (once), a link over the drive's trace, and the device."""
        super().reset(seed=seed)
        key = episode_key(options, self.np_random)
        self._drive.close()
        runtime = self._start()
        self._device = device = self._connect(runtime, key)
        from testbed.device.frames import open_frames, prepared
        from testbed.device.processor import keep_collector_short

        size = runtime.bundle.config.input_size
        self.frames_seed = key % 2**31
        frames = open_frames(self._source, size, seed=self.frames_seed)
        self._frames = prepared(frames, self._n_frames)
        self._done = 0
        self._skipped = False
        self._last = None
        device.reset()
        keep_collector_short()
        observation = self._receive(next(self._frames))
        # The drive starts with its first capture: by definition nothing has queued.
        observation[QUEUE_AT] = -1.0
        return observation, {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Carry out `action` on the frame in hand and wait for the next one's capture."""
        device = self._device
        if device is None:
            raise ConfigError("step before reset", expected="reset first", mend="call reset()")
        if not self._skipped:
            device.process(int(action))
        self._done += 1
        truncated = self._done >= self._n_frames
        if truncated:
            done = device.finish()
            observation = self._look(self._frame)
        else:
            observation = self._receive(next(self._frames))
            done = device.finished
        assert done is not None
        if done.status == "skipped":  # nothing was carried out, but this was decided
            chosen = action_from_index(int(action))
            done = replace(done, action=chosen.index, exit_used=chosen.exit)
        self._last = done
        info = self._info(done)
        reward = -info["cost"] - self._price(info["accuracy"], info["critical"])
        return observation, float(reward), False, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (20,): every action is legal."""
        return self._mask

    def render(self) -> str | None:
        """The last frame as one line."""
        if self.render_mode != "ansi":
            return None
        row = self._last
        if row is None:
            return "no frame yet"
        name = action_from_index(row.action).name
        return f"{name} {row.status} delay {row.delay_ms:.1f} ms energy {row.energy_mj} mJ"

    @property
    def slowdown(self) -> float | None:
        """Factor by which this machine's compute is slowed down; None before it is measured."""
        return self._slowdown

    @property
    def started_s(self) -> float | None:
        """`time.monotonic` of the first frame's capture; None before it."""
        return None if self._device is None else self._device.origin_s

    def link_record(self) -> LinkRecord:
        """What the link of this drive replays and when it started."""
        if self._link is None:
            raise ConfigError("no drive", expected="reset first", mend="call reset()")
        return self._link.record()

    def close(self) -> None:
        """End device, link and server."""
        self._device = self._link = None
        self._drive.close()
        self._processes.close()
        self._server_port = 0

    def _start(self) -> SplitRuntime:
        """The network and the server process, started once."""
        from cnn.bundle import load_bundle
        from cnn.runtime import SplitRuntime
        from testbed.server.process import ServerProcess

        if self._runtime is None:
            self._runtime = SplitRuntime(load_bundle(), threads=1)
            self._runtime.warm()
        if not self._server_port:
            server = self._processes.enter_context(ServerProcess())
            self._server_port = server.port
        return self._runtime

    def _connect(self, runtime: SplitRuntime, key: int) -> Device:
        """A device connected through a fresh link over the trace of episode `key`."""
        from testbed.costs.power import DevicePower, PowerProfile
        from testbed.decide.observation import Observer
        from testbed.decide.policy import StaticPolicy
        from testbed.device.device import Device, DeviceConfig
        from testbed.link.process import LinkProcess
        from testbed.meters.model import ModelMeter
        from testbed.wire.client import MecClient

        world, plan = self.world, self.world.plan(key)
        timing, cost = world.scenario.timing, world.cost
        if self._slowdown is None:
            self._slowdown = matching_slowdown(runtime, world)
        self._link = link = self._drive.enter_context(
            LinkProcess(
                world.traces[plan.trace],
                ("127.0.0.1", self._server_port),
                start_offset_s=plan.offset_ms / 1e3,
            )
        )
        client = MecClient(f"{link.host}:{link.port}", runtime.bundle.hash)
        self._drive.callback(client.close)
        client.connect(CONNECT_TIMEOUT_S)
        device_power = DevicePower("scenario", cost.idle_mw, cost.busy_mw, cost.power_source)
        self._observer = Observer(world.settings)
        return Device(
            runtime,
            client,
            StaticPolicy(action_from_index(0)),  # decides nothing: this environment does
            self._observer,
            ModelMeter(PowerProfile(device_power, cost.radio)),
            DeviceConfig(
                period_ms=timing.period_ms,
                timeout_ms=timing.timeout_ms,
                deadline_ms=timing.deadline_ms,
                max_queue_ms=timing.max_queue_ms,
                slowdown=self._slowdown,
            ),
            link_truth=link.truth,
        )

    def _receive(self, frame: CameraFrame) -> NDArray[np.float32]:
        """Wait for a frame's capture; its observation (also of one that is skipped)."""
        assert self._device is not None
        self._frame = frame
        observation = self._device.receive(frame)
        self._skipped = observation is None
        return self._look(frame) if observation is None else observation

    def _look(self, frame: CameraFrame) -> NDArray[np.float32]:
        """What the device knows now of a frame on which it does not decide."""
        from cnn.features import frame_features

        features = frame_features(
            frame.image, frame.width_px, frame.height_px, frame.frame_in_track
        )
        queue_ms = self.world.scenario.timing.max_queue_ms if self._skipped else 0.0
        return self._observer.observe(time.monotonic(), features, queue_ms, 0.0)

    def _info(self, row: Measurement) -> dict[str, Any]:
        world = self.world
        if row.correct is None and row.status != "skipped":
            raise DataError(
                f"frames of {self._source!r} without labels",
                expected="labelled frames, since the reward needs them",
                mend="use render or gtsrb:policy-test",
            )
        price, energy = world.scenario.price, float(row.energy_mj or 0.0)
        miss = row.status == "skipped" or row.delay_ms > world.scenario.timing.deadline_ms
        terms = {
            "cost_delay": price.delay_weight / world.delay_ref_ms * row.delay_ms,
            "cost_energy": price.energy_weight / world.energy_ref_mj * energy,
            "cost_miss": price.miss * float(miss),
        }
        return {
            "delay_ms": row.delay_ms,
            "energy_mj": energy,
            "accuracy": float(bool(row.correct)),
            "cost": sum(terms.values()),
            **terms,
            "queue_ms": row.queue_ms,
            "action": action_from_index(row.action).name,
            "status": row.status,
            "critical": row.label in world.scenario.constraint.critical_classes,
            "measurement": row,
        }
