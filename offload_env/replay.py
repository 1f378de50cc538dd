"""Simulate a live run again: its frames, its decisions, its link.

In two ways. `repeat` takes device and server compute times from the live run, frame by frame. So it
compares everything else in the simulator (queue, radio, link, time-outs, modem, prices),
undisturbed by a machine whose speed varies during the run. `simulate` takes compute times from the
cost model: it compares the whole model, including the variation of the machine's speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.errors import DataError
from cnn.data.image_set import ImageSet
from cnn.frame_table import FrameTable
from cnn.make_frame_table import make_table
from cnn.runtime import SplitRuntime
from offload_env.episode import Plan
from offload_env.heat import Heat
from offload_env.scenario import Scenario
from offload_env.server_load import ServerLoad
from offload_env.simulator import FALLBACK, SKIPPED, Outcome, Simulator
from offload_env.world import POOL, build_world
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.link.transfer import LinkRecord
from testbed.records.measurement import Measurement

DRAWS: Final = 16
"""Simulations with different draws of the compute jitter, averaged."""
_OWN_TRACKS: Final = 10_000
"""Added to a stream's running track numbers, so that none looks like a spliced GTSRB track."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the frames of a run.

    Attributes:
        delay_ms, energy_mj: means over all frames.
        accuracy: share of right answers; skipped frames count as wrong.
        fallback, skipped: shares of frames.
    """

    delay_ms: float
    energy_mj: float
    accuracy: float
    fallback: float
    skipped: float


def live_table(
    runtime: SplitRuntime,
    frames: Sequence[CameraFrame],
    source: str,
    progress: Callable[[int], object] | None = None,
) -> FrameTable:
    """The real network's answers to these frames, for all actions.

    Args:
        runtime: the network.
        frames: labelled.
        source: their name.
        progress: called with the number of frames just done.

    Raises:
        DataError: if a frame has no label.
    """
    if any(f.label is None for f in frames):
        raise DataError(
            f"frames of {source} without labels",
            expected="labelled frames",
            hint="use render, gtsrb:policy-test, or a folder with one subfolder a class",
        )
    images = ImageSet.of(
        np.stack([f.image for f in frames]),
        label=[-1 if f.label is None else f.label for f in frames],
        track=[f.track + _OWN_TRACKS for f in frames],
        frame=[f.frame_in_track for f in frames],
        width_px=[f.width_px for f in frames],
        height_px=[f.height_px for f in frames],
        what=source,
    )
    return make_table(runtime, images, source, progress=progress)


def source_table(
    runtime: SplitRuntime,
    source: str,
    seed: int,
    n: int,
    data: Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> FrameTable:
    """`live_table` of the first `n` frames of a frame source."""
    size, names = runtime.bundle.config.input_size, runtime.bundle.class_names
    frames = open_frames(source, size, seed=seed, data=data, class_names=names)
    return live_table(runtime, list(islice(frames, n)), source, progress)


def measured(rows: Sequence[Measurement]) -> Figures:
    """Means of the testbed's measurements.

    Raises:
        DataError: if there are no rows, or one has no energy figure.
    """
    energy = [row.energy_mj for row in rows]
    if not rows or any(value is None for value in energy):
        raise DataError(
            f"{len(rows)} measurements, some without energy",
            expected="at least one, all with energy",
            hint="measure with the model meter",
        )
    return Figures(
        float(np.mean([row.delay_ms for row in rows])),
        float(np.mean([value for value in energy if value is not None])),
        float(np.mean([bool(row.correct) for row in rows])),
        float(np.mean([row.status == "fallback" for row in rows])),
        float(np.mean([row.status == "skipped" for row in rows])),
    )


@dataclass(frozen=True, slots=True)
class Computed:
    """How long one frame computed on the live run; None where it did not.

    Attributes:
        stall_ms: from the moment at which the frame was there and the device free until it started;
            caused by the machine that the device runs on, not by the device.
        device_ms: on the device, before anything was sent: all its work on the frame (capture,
            features, decision, head, encoder), not the network alone.
        fallback_ms: on the device, after an exchange that failed.
        server_ms: at the server, waiting there included.
    """

    stall_ms: float
    device_ms: float | None
    fallback_ms: float | None
    server_ms: float | None

    @classmethod
    def of(cls, row: Measurement, before: Measurement | None, timeout_ms: float) -> Computed:
        """Compute it from a measurement and the one before it.

        Failures other than a time-out are known at once.
        """
        stall_ms = row.queue_ms
        if before is not None:
            free_s = before.captured_s + before.delay_ms / 1e3
            stall_ms -= max(0.0, free_s - row.captured_s) * 1e3
        if row.status == "skipped":
            return cls(stall_ms, None, None, None)
        wait_ms, server_ms = 0.0, None
        if row.transfer_ms is not None:
            server_ms = (row.server_queue_ms or 0.0) + (row.server_ms or 0.0)
            wait_ms = row.transfer_ms + server_ms
        elif row.reason == "timeout":
            wait_ms = timeout_ms
        device_ms = row.delay_ms - row.queue_ms - wait_ms - (row.fallback_ms or 0.0)
        return cls(stall_ms, max(0.0, device_ms), row.fallback_ms, server_ms)


class RepeatingSimulator(Simulator):
    """A simulator that computes for given times."""

    def repeat(self, action: int, computed: Computed) -> Outcome:
        """As `settle`; a time that is not given is the cost model's mean."""
        self._start += computed.stall_ms
        self._queue += computed.stall_ms
        if self.will_skip:
            return self._skip(action)
        world = self.world
        self._jitter = self._server_factor = 1.0
        if computed.fallback_ms is not None and world.fallback_ms[action] > 0:
            self._jitter = computed.fallback_ms / float(world.fallback_ms[action])
        if computed.server_ms is not None:
            self._server_factor = computed.server_ms / float(world.server_ms[action])
        mean_ms = float(world.device_ms[action])
        return self._finish(action, mean_ms if computed.device_ms is None else computed.device_ms)


def repeat(
    scenario: Scenario,
    table: FrameTable,
    rows: Sequence[Measurement],
    link: LinkRecord,
    started_s: float,
) -> list[Outcome]:
    """Run decisions and compute times of `rows` through the simulator, over the run's link.

    Args and errors as `simulate`.

    Returns:
        one outcome a frame.
    """
    simulator, plan = _start(scenario, table, rows, link, started_s)
    simulator.reset(plan, range(len(table)))
    return [
        simulator.repeat(row.action, computed)
        for row, computed in zip(
            rows, computed_times(rows, scenario.timing.timeout_ms), strict=True
        )
    ]


def computed_times(rows: Sequence[Measurement], timeout_ms: float) -> list[Computed]:
    """Compute times of each frame of a run."""
    return [
        Computed.of(row, before, timeout_ms)
        for row, before in zip(rows, [None, *rows[:-1]], strict=True)
    ]


def simulate(
    scenario: Scenario,
    table: FrameTable,
    rows: Sequence[Measurement],
    link: LinkRecord,
    started_s: float,
    *,
    draws: int = DRAWS,
) -> Figures:
    """Run the decisions of `rows` through the simulator, over the run's link.

    Args:
        scenario: device, timing and price of the run; its other server users are left out,
            because a live server has no other users, and its heat: a live device's own is in its
            times.
        table: one row a frame, in the order of the run.
        rows: measurements; only their decisions are used.
        link: trace that the link replayed, and its start.
        started_s: `time.monotonic` of the first frame's capture.
        draws: simulations averaged.

    Raises:
        DataError: if table and measurements differ in number, or the link was cut (cuts are
            not part of a trace).
    """
    simulator, plan = _start(scenario, table, rows, link, started_s)
    outcomes = list[Outcome]()
    for k in range(draws):
        simulator.reset(replace(plan, key=k, jitter_at=k * POOL // draws), range(len(table)))
        outcomes += [simulator.settle(row.action) for row in rows]
    return simulated(outcomes)


def simulated(outcomes: Sequence[Outcome]) -> Figures:
    """Means of the simulator's outcomes."""
    return Figures(
        float(np.mean([o.delay_ms for o in outcomes])),
        float(np.mean([o.energy_mj for o in outcomes])),
        float(np.mean([o.correct for o in outcomes])),
        float(np.mean([o.status == FALLBACK for o in outcomes])),
        float(np.mean([o.status == SKIPPED for o in outcomes])),
    )


def _start(
    scenario: Scenario,
    table: FrameTable,
    rows: Sequence[Measurement],
    link: LinkRecord,
    started_s: float,
) -> tuple[RepeatingSimulator, Plan]:
    """A simulator of the run's frames and link, and the place in the trace where it began."""
    if len(table) != len(rows) or link.cuts:
        raise DataError(
            f"{len(rows)} measurements, {len(table)} frames, {len(link.cuts)} cuts of the link",
            expected="a measurement for every frame, and a link that was not cut",
            hint="replay the frames and records of one run",
        )
    alone = replace(scenario, server=ServerLoad(), heat=Heat())
    world = build_world(alone, "test", traces=[link.trace], table=table)
    return RepeatingSimulator(world), Plan(0, 0, 1e3 * link.trace_time_s(started_s), 0, 0)
