"""The parts of a live environment: a server and a link as processes, and a device in this one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from offload_env.env_input import ResetNeededError
from offload_env.world import World
from testbed.device.processor import Pace

if TYPE_CHECKING:
    from cnn.runtime import SplitRuntime
    from testbed.device.device_loop import Device
    from testbed.device.frame_sources import CameraFrame
    from testbed.link.link_process import LinkProcess
    from testbed.link.transfer import LinkRecord

CONNECT_TIMEOUT_S: Final = 10.0


class LiveRig:
    """Processes and device of live drives through one world.

    Args:
        world: scenario and split.
        source: frame source with labels, ``render`` or ``gtsrb:policy-test``.
        n_frames: frames of a drive, made before it starts.
        paced: emulate the scenario's device; False takes this machine as it is.
        bundle: folder of the model bundle of device and server; None is the shipped one.
    """

    def __init__(
        self, world: World, source: str, n_frames: int, paced: bool, bundle: Path | None = None
    ) -> None:
        self.world, self.source, self.n_frames, self._bundle = world, source, n_frames, bundle
        self._pace = Pace.of(world.cost) if paced else None
        self.frames_seed = 0
        self.skipped = False
        self._runtime: SplitRuntime | None = None
        self._processes = contextlib.ExitStack()
        self._drive = contextlib.ExitStack()
        self._device: Device | None = None
        self._link: LinkProcess | None = None
        self._server_port = 0

    @property
    def device(self) -> Device:
        """The device of this drive."""
        if self._device is None:
            raise ResetNeededError(
                "no drive has begun", expected="reset before step and render", hint="call reset"
            )
        return self._device

    @property
    def image(self) -> NDArray[np.uint8]:
        """The current frame, uint8 (H, W, 3), RGB, as the device captured it."""
        assert self.device is not None  # raises before the first drive
        return self._frame.image

    @property
    def started_s(self) -> float | None:
        """`time.monotonic` of the first frame's capture; None before it."""
        return None if self._device is None else self._device.origin_s

    def link_record(self) -> LinkRecord:
        """The trace that this drive's link replays, and when it started."""
        if self._link is None:
            raise ConfigError("no drive", expected="reset first", hint="call reset()")
        return self._link.record()

    def link_stats(self) -> dict[str, Any]:
        """How late the link let bytes out (`testbed.link.emulator.LinkEmulator.stats`)."""
        if self._link is None:
            raise ConfigError("no drive", expected="reset first", hint="call reset()")
        return self._link.stats()

    def start(self, key: int) -> None:
        """Start the server (once), a link over the trace of episode `key`, and the device."""
        from testbed.device.frame_sources import open_frames, prepared
        from testbed.device.processor import keep_collector_short

        self._drive.close()
        runtime = self._start()
        self._device = self._connect(runtime, key)
        model = runtime.bundle
        size, names = model.config.input_size, model.class_names
        self.frames_seed = key % 2**31
        frames = open_frames(self.source, size, seed=self.frames_seed, class_names=names)
        self._frames: Iterator[CameraFrame] = prepared(frames, self.n_frames)
        self._device.reset()
        keep_collector_short()

    def receive(self) -> NDArray[np.float32]:
        """Wait for the next frame's capture; its observation (also of one that is skipped)."""
        self._frame = next(self._frames)
        observation = self.device.receive(self._frame)
        self.skipped = observation is None
        return self.look() if observation is None else observation

    def look(self) -> NDArray[np.float32]:
        """The device's observation of a frame on which it does not decide."""
        from cnn.frame_table import frame_features

        frame = self._frame
        features = frame_features(
            frame.image, frame.width_px, frame.height_px, frame.frame_in_track
        )
        queue_ms = self.world.scenario.timing.max_queue_ms if self.skipped else 0.0
        return self._observer.observe(time.monotonic(), features, queue_ms, 0.0)

    def look_staged(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """The staged observation before any exit of a frame, from its frame-level observation."""
        return self._observer.observe_stage(base, [], 0, 0.0)

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
        from testbed.server.server_process import ServerProcess

        if self._runtime is None:
            bundle = load_bundle(self._bundle)
            self.world.topology.require_same(
                bundle.topology,
                f"model bundle {bundle.hash[:12]}",
                f"the frames of scenario {self.world.scenario.name}",
            )
            self._runtime = SplitRuntime(bundle, threads=1)
            self._runtime.warm()
        if not self._server_port:
            server = self._processes.enter_context(ServerProcess(self._bundle))
            self._server_port = server.port
        return self._runtime

    def _connect(self, runtime: SplitRuntime, key: int) -> Device:
        """A device connected through a fresh link over the trace of episode `key`."""
        from testbed.device.device_loop import Device, DeviceConfig
        from testbed.link.link_process import LinkProcess
        from testbed.meters.power import DevicePower, ModelMeter, PowerProfile
        from testbed.policy.observer import Observer
        from testbed.policy.policies import StaticPolicy
        from testbed.wire.address import join_address
        from testbed.wire.client import MecClient

        world, plan = self.world, self.world.plan(key)
        timing, cost = world.scenario.timing, world.cost
        self._link = link = self._drive.enter_context(
            LinkProcess(
                world.traces[plan.trace],
                ("127.0.0.1", self._server_port),
                start_offset_s=plan.offset_ms / 1e3,
                tail_ms=cost.radio.tail_ms,
                promotion_ms=cost.radio.promotion_ms,
            )
        )
        client = MecClient(join_address(link.host, link.port), runtime.bundle.hash)
        self._drive.callback(client.close)
        client.connect(CONNECT_TIMEOUT_S)
        device_power = DevicePower("scenario", cost.idle_mw, cost.busy_mw, cost.power_source)
        self._observer = Observer(world.settings, world.topology)
        return Device(
            runtime,
            client,
            # Decides nothing: this environment does.
            StaticPolicy(0, topology=world.topology),
            self._observer,
            ModelMeter(PowerProfile(device_power, cost.radio)),
            DeviceConfig(
                period_ms=timing.period_ms,
                timeout_ms=timing.timeout_ms,
                deadline_ms=timing.deadline_ms,
                max_queue_ms=timing.max_queue_ms,
                pace=self._pace,
                seed=key % 2**31,
            ),
            link_truth=link.truth,
        )
