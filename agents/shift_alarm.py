"""How soon the device's monitor sees a shift, and how often it alarms without one, in simulation.

What it looks at is defined in `testbed.deploy.loss_monitor`, for the device as well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.loss_bounds import upper_bound
from agents.rollout import Rollout
from cnn.calibration_tracks import signs_of
from offload_env.world import World
from testbed.deploy.loss_monitor import EVIDENCE, MAX_TRACK_FRAMES, LossMonitor, doubt

Floats = NDArray[np.float64]

HOURS: Final = 100
"""Between two false alarms on average, at least."""
_SPLITS: Final = 20
_TRACKS: Final = 20_000
"""Tracks that are simulated for each division of the signs."""
_WAIT: Final = 3000
"""Frames after which a shift counts as not found."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Drives past signs, in the order driven.

    Attributes:
        drive, sign: int64 (n,).
        frames: int64 (n,), of the pass that had evidence.
        evidence: float64 (n,), mean over those frames.
    """

    drive: NDArray[np.int64]
    sign: NDArray[np.int64]
    frames: NDArray[np.int64]
    evidence: Floats

    @classmethod
    def of(cls, world: World, rollout: Rollout) -> Passes:
        """The passes of all drives; one of which every frame was skipped is left out."""
        starts = world.table.frame[rollout.row] % MAX_TRACK_FRAMES == 0
        starts[:, 0] = True
        number = np.cumsum(starts.ravel()) - 1
        answered = ~np.isnan(rollout.confidence.ravel())
        frames = np.bincount(number[answered], minlength=number[-1] + 1)
        of_frames = doubt(rollout.confidence.ravel()[answered])
        total = np.bincount(number[answered], of_frames, minlength=len(frames))
        kept = frames > 0
        first = np.flatnonzero(starts.ravel())[kept]
        return cls(
            drive=first // rollout.row.shape[1],
            sign=signs_of(world.table)[world.table.track[rollout.row.ravel()[first]]],
            frames=frames[kept],
            evidence=np.clip(total[kept] / frames[kept], 0.0, 1.0),
        )

    def limit(self, level: float, signs: NDArray[np.int64] | None = None) -> float:
        """Upper bound of the mean evidence over signs to come, of some signs or all."""
        chosen = np.unique(self.sign) if signs is None else np.intersect1d(signs, self.sign)
        total = np.bincount(self.sign, self.evidence)[chosen]
        means = total / np.bincount(self.sign)[chosen]
        return min(upper_bound(means, level, low=0.0), 1.0 - 1e-9)


@dataclass(frozen=True, slots=True)
class Monitoring:
    """What the monitor does.

    Attributes:
        evidence: what it looks at.
        limit: highest mean evidence without an alarm.
        tracks_between: mean number of tracks between false alarms, at least.
        false_alarms_per_day: of simulated driving without a shift past signs that the limit
            does not know.
        simulated_hours: of that driving.
        alarm_frames: frames from the shift to the alarm that 95 % of the drives keep within; None
            without shifted frames, or if not so many found it within 3000 frames.
        found_share: of the drives whose shift was found within 300 frames; None without.
    """

    evidence: str
    limit: float
    tracks_between: int
    false_alarms_per_day: float
    simulated_hours: float
    alarm_frames: int | None
    found_share: float | None

    def as_json(self) -> dict[str, Any]:
        """The attributes."""
        return asdict(self)


def monitoring(
    world: World,
    rollout: Rollout,
    level: float,
    seed: int,
    shifted: tuple[World, Rollout] | None = None,
) -> Monitoring:
    """Simulate the monitor of one policy.

    Args:
        world, rollout: calibration signs and drives past them.
        level: of the limit.
        seed: of the simulation.
        shifted: the same with frames that the network was not trained for.
    """
    calm = Passes.of(world, rollout)
    frames_an_hour = 3_600_000 / world.scenario.timing.period_ms
    tracks_an_hour = frames_an_hour / float(calm.frames.mean())
    between, hours = max(2, round(HOURS * tracks_an_hour)), _SPLITS * _TRACKS / tracks_an_hour
    limit, delays = calm.limit(level), None
    if shifted is not None:
        delays = _delays(Passes.of(*shifted), limit, between)
    last = None if delays is None else float(np.quantile(delays, 0.95, method="higher"))
    return Monitoring(
        evidence=EVIDENCE,
        limit=limit,
        tracks_between=between,
        false_alarms_per_day=_false_alarms(calm, level, between, seed) * 24 / hours,
        simulated_hours=hours,
        alarm_frames=None if last is None or last == np.inf else int(last),
        found_share=None if delays is None else float((delays <= 300).mean()),
    )


def _delays(passes: Passes, limit: float, between: float) -> Floats:
    """Frames to the alarm from the start of each drive, the others following it; inf: not found."""
    starts = np.flatnonzero(np.diff(passes.drive, prepend=-1))
    n, delays = len(passes.drive), np.full(len(starts), np.inf)
    for i, start in enumerate(starts):
        monitor, frames = LossMonitor(limit, between), 0
        for at in range(start, start + n):
            frames += int(passes.frames[at % n])
            if monitor.add(float(passes.evidence[at % n])):
                delays[i] = frames
            if monitor.alarm or frames > _WAIT:
                break
    return delays


def _false_alarms(calm: Passes, level: float, between: int, seed: int) -> int:
    """Their number: the limit from half of the signs, passes drawn from the others."""
    rng = np.random.default_rng(seed)
    signs, alarms = np.unique(calm.sign), 0
    for _ in range(_SPLITS):
        order = rng.permutation(signs)
        limit = calm.limit(level, order[: len(signs) // 2])
        others = np.flatnonzero(np.isin(calm.sign, order[len(signs) // 2 :]))
        alarms += _alarms(calm.evidence[rng.choice(others, _TRACKS)], limit, between)
    return alarms


def _alarms(evidence: Floats, limit: float, between: int) -> int:
    """Alarms of a monitor that begins anew after each."""
    monitor, alarms = LossMonitor(limit, between), 0
    for x in evidence.tolist():
        if monitor.add(x):
            alarms += 1
            monitor.reset()
    return alarms
