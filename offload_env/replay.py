"""Simulate a live run again: its frames, its decisions, its link.

What remains different is what the simulation models: compute times (the cost model instead
of the stop-watch) and everything between the sockets and the air.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from cnn.data import ImageSet
from cnn.errors import DataError
from cnn.frame_table import FrameTable
from cnn.runtime import SplitRuntime
from cnn.table import make_table
from offload_env.scenario import Scenario
from offload_env.server_load import ServerLoad
from offload_env.simulator import Outcome, Simulator
from offload_env.world import POOL, Plan, build_world
from testbed.device.frames import CameraFrame, open_frames
from testbed.link.record import LinkRecord
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


def live_table(runtime: SplitRuntime, frames: Sequence[CameraFrame], source: str) -> FrameTable:
    """What the real network answers to these frames, for all actions.

    Raises:
        DataError: if a frame has no label.
    """
    if any(f.label is None for f in frames):
        raise DataError(
            f"frames of {source} without labels",
            expected="labelled frames",
            mend="use render or gtsrb:policy-test",
        )
    images = ImageSet(
        np.stack([f.image for f in frames]),
        np.array([f.label for f in frames], np.int16),
        np.array([f.track + _OWN_TRACKS for f in frames], np.int32),
        np.array([f.frame_in_track for f in frames], np.int16),
        np.array([f.width_px for f in frames], np.int16),
        np.array([f.height_px for f in frames], np.int16),
    )
    return make_table(runtime, images, source)


def source_table(
    runtime: SplitRuntime, source: str, seed: int, n: int, data: Path | None = None
) -> FrameTable:
    """`live_table` of the first `n` frames of a frame source."""
    size = runtime.bundle.config.input_size
    frames = list(islice(open_frames(source, size, seed=seed, data=data), n))
    return live_table(runtime, frames, source)


def measured(rows: Sequence[Measurement]) -> Figures:
    """Means of what the testbed measured.

    Raises:
        DataError: if there are no rows, or one has no energy figure.
    """
    energy = [row.energy_mj for row in rows]
    if not rows or any(value is None for value in energy):
        raise DataError(
            f"{len(rows)} measurements, some without energy",
            expected="at least one, all with energy",
            mend="measure with the model meter",
        )
    return Figures(
        float(np.mean([row.delay_ms for row in rows])),
        float(np.mean([value for value in energy if value is not None])),
        float(np.mean([bool(row.correct) for row in rows])),
        float(np.mean([row.status == "fallback" for row in rows])),
        float(np.mean([row.status == "skipped" for row in rows])),
    )


def simulate(
    scenario: Scenario,
    table: FrameTable,
    rows: Sequence[Measurement],
    link: LinkRecord,
    started_s: float,
    *,
    draws: int = DRAWS,
) -> Figures:
    """Run the decisions of `rows` through the simulator over the link of the run.

    Args:
        scenario: device, timing and price of the run; its other server users are left out,
            because a live server serves nobody else.
        table: one row a frame, in the order of the run.
        rows: measurements, of which only the decisions are used.
        link: what the link replayed.
        started_s: `time.monotonic` of the first frame's capture.
        draws: simulations averaged.

    Raises:
        DataError: if table and measurements differ in number, or the link was cut (cuts are
            not part of a trace).
    """
    if len(table) != len(rows) or link.cuts:
        raise DataError(
            f"{len(rows)} measurements, {len(table)} frames, {len(link.cuts)} cuts of the link",
            expected="a measurement for every frame, and a link that was not cut",
            mend="replay the frames and records of one run",
        )
    alone = replace(scenario, server=ServerLoad())
    world = build_world(alone, "test", traces=[link.trace], table=table)
    simulator, outcomes = Simulator(world), list[Outcome]()
    offset_ms = 1e3 * link.trace_time_s(started_s)
    for k in range(draws):
        plan = Plan(k, 0, offset_ms, 0, k * POOL // draws)
        simulator.reset(plan, range(len(table)))
        outcomes += [simulator.step(row.action) for row in rows]
    return Figures(
        float(np.mean([o.delay_ms for o in outcomes])),
        float(np.mean([o.energy_mj for o in outcomes])),
        float(np.mean([o.correct for o in outcomes])),
        float(np.mean([o.status == 1 for o in outcomes])),
        float(np.mean([o.status == 2 for o in outcomes])),
    )
