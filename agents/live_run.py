"""A live run: real frames through a device process, a link process and a server process.

The link replays a trace that training never saw. The device keeps the pace of the scenario's device
(`testbed.device.processor`), so that it can be compared with the simulation of the same frames,
trace and policy: compute times are modelled on both sides, all else is measured live.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.rollout import mean_figures
from cnn.bundle import load_bundle
from cnn.common.errors import RemoteError
from cnn.frame_table import FrameTable
from cnn.runtime import SplitRuntime
from offload_env.episode import Plan
from offload_env.heat import Heat
from offload_env.outcome import Outcome
from offload_env.replay import source_table
from offload_env.server_load import ServerLoad
from offload_env.simulator import Simulator
from offload_env.world import POOL, World, build_world
from testbed.common.child_process import wait_for_end
from testbed.device.processor import Pace, PaceKept
from testbed.link.link_process import LinkProcess
from testbed.link.transfer import LinkRecord
from testbed.policy.policies import Policy, decide_frame
from testbed.records.record_file import Records, read_records
from testbed.server.server_process import ServerProcess
from testbed.traces.trace import Trace

_STOP_S: Final = 10.0
_REPLAYS: Final = 8
"""Replays with other draws of the server's jitter, averaged."""


@dataclass(frozen=True, slots=True)
class FrameSource:
    """Source of live frames, in the terms of the device's options.

    Attributes:
        name: ``render`` or ``gtsrb:policy-test``.
        seed: of the order of tracks, or of the drawing.
        data: GTSRB folder; None takes ``gtsrb`` in SLIPROAD_DATA.
    """

    name: str
    seed: int
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class LiveRun:
    """The device's measurements, and its link.

    Attributes:
        records: one row a frame.
        link: trace, and when it started.
    """

    records: Records
    link: LinkRecord

    @property
    def offset_ms(self) -> float:
        """Trace time at which the device started its drive, milliseconds."""
        return 1e3 * self.link.trace_time_s(self.records.source["started_monotonic_s"])

    @property
    def kept(self) -> PaceKept:
        """Whether this machine kept the device's pace."""
        return PaceKept.of_source(self.records.source) or PaceKept(0, 0)

    def server_ratio(self, world: World) -> float:
        """The server's time, its queue included, over the cost model's.

        The live server runs on this machine, at this machine's speed. 1 if it answered no frame.
        """
        took_ms = self.records.numbers("server_ms") + self.records.numbers("server_queue_ms")
        answered = np.isfinite(took_ms)
        action = self.records.numbers("action")[answered].astype(np.int64)
        modelled_ms = float(world.server_ms[action].sum())
        return float(took_ms[answered].sum()) / modelled_ms if modelled_ms > 0 else 1.0

    def figures(self, world: World) -> dict[str, float]:
        """Mean figures as in `agents.rollout.summary`, cost by the world's price."""
        delay, energy = self.records.numbers("delay_ms"), self.records.numbers("energy_mj")
        skipped = self.records.texts("status") == "skipped"
        miss = (delay > world.scenario.timing.deadline_ms) | skipped
        return _figures(world, delay, energy, self.records.numbers("correct") == 1, miss)


def frame_table(runtime: SplitRuntime, source: FrameSource, n: int, progress: Any) -> FrameTable:
    """Answers of the real network to the same frames that the device will process."""
    return source_table(runtime, source.name, source.seed, n, source.data, progress=progress)


def run_live(
    world: World,
    trace: Trace,
    source: FrameSource,
    decide: Sequence[str],
    n: int,
    out: Path,
    start_offset_s: float = 0.0,
    bundle: Path | None = None,
) -> LiveRun:
    """Start server, link and device as processes, drive `n` frames, end them all.

    The device keeps the pace of the world's device: its profile is written beside `out`.

    Args:
        world: for timing, price and the device's task settings.
        trace: replayed by the link.
        source: of the frames.
        decide: the device's option for its policy: ``("--policy", file)`` or
            ``("--action", name)``.
        n: frames.
        out: Parquet file of the measurements.
        start_offset_s: where in the trace the drive starts.
        bundle: folder of the model bundle; None is the shipped one.

    Raises:
        RemoteError: if a process failed or measured fewer frames.
        ConfigError: if the bundle is of another network than the world.
    """
    model = load_bundle(bundle)
    frames = f"the frames of scenario {world.scenario.name}"
    world.topology.require_same(model.topology, f"model bundle {model.hash[:12]}", frames)
    profile = out.with_suffix(".device.json")
    world.cost.save(profile)
    radio = world.cost.radio
    with (
        going_first(),
        ServerProcess(bundle) as server,
        LinkProcess(
            trace,
            ("127.0.0.1", server.port),
            start_offset_s=start_offset_s,
            tail_ms=radio.tail_ms,
            promotion_ms=radio.promotion_ms,
        ) as link,
    ):
        command = [sys.executable, "-m", "testbed", "device"]
        command += ["--server", f"{link.host}:{link.port}", *decide]
        command += _settings(world, source, n, profile, out)
        command += [] if bundle is None else ["--bundle", str(bundle)]
        _run(command)
        run = LiveRun(read_records(out), link.record())
    if len(run.records) != n:
        raise RemoteError(
            f"{len(run.records)} frames measured",
            expected=f"{n}",
            hint="see the device's messages above",
        )
    return run


@contextlib.contextmanager
def going_first() -> Iterator[None]:
    """Processes started here get a higher priority where that is allowed (root).

    On separate machines, device and server would not wait for other processes.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def _settings(world: World, source: FrameSource, n: int, profile: Path, out: Path) -> list[str]:
    timing, settings = world.scenario.timing, world.settings
    options: dict[str, object] = {
        "--frames": source.name,
        "--seed": source.seed,
        "--n-frames": n,
        "--fps": 1e3 / timing.period_ms,
        "--pace": profile,
        "--timeout-ms": timing.timeout_ms,
        "--deadline-ms": timing.deadline_ms,
        "--max-queue-ms": timing.max_queue_ms,
        "--power": world.scenario.device.power or profile,
        "--accuracy-floor": settings.accuracy_floor,
        "--delay-share": settings.delay_share,
        "--full-local-ms": settings.full_local_ms,
        "--tech": "5G" if settings.radio_5g else "LTE",
        "--out": out,
    }
    if source.data is not None:
        options["--data"] = source.data
    return [text for pair in options.items() for text in map(str, pair)]


def _run(command: list[str]) -> None:
    """Run the device to its end; it never outlives this call. Its progress goes to stderr."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            wait_for_end(process, _STOP_S)
            raise
    if status:
        raise RemoteError(
            f"the device process ended with status {status}",
            expected="status 0",
            hint="see its messages above",
        )


def replay(
    world: World,
    table: FrameTable,
    trace: Trace,
    policy: Policy,
    offset_ms: float,
    seed: int,
    server_ratio: float = 1.0,
) -> dict[str, float]:
    """The simulation of a live run: same frames, stretch of trace, policy and device times.

    The live server has no other users, and a paced device does not get hot: the scenario's are left
    out.

    Args:
        world: the live run's.
        table: the network's answers to its frames.
        trace: what its link replayed.
        policy: what decided.
        offset_ms: trace time at which the drive started.
        seed: of the device, which draws the spread of its times.
        server_ratio: the server's compute time over the cost model's.

    Returns:
        mean figures as in `agents.rollout.summary`, over several draws of the server's jitter.
    """
    alone = replace(world.scenario, server=ServerLoad(), heat=Heat())
    world = build_world(alone, "test", traces=[trace], table=table, cost=None)
    factors = Pace.of(world.cost).factors(seed)
    world = replace(
        world,
        device_jitter=np.resize(factors, POOL),
        server_ms=world.server_ms * server_ratio,
    )
    simulator = Simulator(world)
    outcomes: list[Outcome] = []
    for k in range(_REPLAYS):
        simulator.reset(Plan(k, 0, offset_ms, 0, k * len(factors)), range(len(table)))
        policy.reset()
        for _ in range(len(table)):
            outcomes.append(decide_frame(simulator, policy))
    return _figures(
        world,
        np.array([o.delay_ms for o in outcomes]),
        np.array([o.energy_mj for o in outcomes]),
        np.array([o.correct for o in outcomes]),
        np.array([o.miss for o in outcomes]),
    )


def _figures(
    world: World,
    delay_ms: NDArray[np.float64],
    energy_mj: NDArray[np.float64],
    correct: NDArray[np.bool_],
    miss: NDArray[np.bool_],
) -> dict[str, float]:
    cost = world.frame_cost(delay_ms, energy_mj, miss.astype(np.float64))
    return mean_figures(cost, delay_ms, energy_mj, correct, miss)


def warm_runtime(bundle: Path | None = None) -> SplitRuntime:
    """A model bundle's folder, or the shipped bundle, loaded and run once."""
    runtime = SplitRuntime(load_bundle(bundle))
    runtime.warm()
    return runtime
