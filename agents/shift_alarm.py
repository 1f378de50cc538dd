"""How soon the device's monitor sees a shift, and how often it alarms without one, in simulation.

What it looks at is defined in `testbed.deploy.loss_monitor` and
`testbed.deploy.picture_reference`, for the device as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.loss_bounds import upper_bound
from agents.rollout import Rollout
from cnn.calibration_tracks import signs_of
from offload_env.world import World
from testbed.deploy.loss_monitor import (
    MAX_TRACK_FRAMES,
    STAKES,
    MonitorTerms,
    PictureTerms,
    after_bet,
    doubt,
    side_by_side,
)
from testbed.deploy.picture_reference import PictureReference

Floats = NDArray[np.float64]

HOURS: Final = 100
"""Between two false alarms on average, at least."""
_SPLITS: Final = 20
_TRACKS: Final = 20_000
"""Tracks that are simulated for each division of the signs."""
_WAIT: Final = 3000
"""Frames after which a shift counts as not found."""
_HIGHEST: Final = 1.0 - 1e-9
"""A limit is below 1."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Drives past signs, in the order driven; M kinds of evidence.

    Attributes:
        drive, sign: int64 (n,).
        frames: int64 (n,), of the pass that had evidence.
        evidence: float64 (n, M), mean over those frames: doubt, and pictures where they are known.
    """

    drive: NDArray[np.int64]
    sign: NDArray[np.int64]
    frames: NDArray[np.int64]
    evidence: Floats

    @classmethod
    def of(cls, world: World, rollout: Rollout, pictures: PictureReference | None = None) -> Passes:
        """The passes of all drives; one of which every frame was skipped is left out."""
        starts = world.table.frame[rollout.row] % MAX_TRACK_FRAMES == 0
        starts[:, 0] = True
        number = np.cumsum(starts.ravel()) - 1
        answered = ~np.isnan(rollout.confidence.ravel())
        rows = rollout.row.ravel()
        kinds = [doubt(rollout.confidence.ravel()[answered])]
        if pictures is not None:
            kinds.append(pictures.strange(world.features)[rows[answered]])
        frames = np.bincount(number[answered], minlength=number[-1] + 1)
        kept = frames > 0
        totals = [np.bincount(number[answered], kind, len(frames))[kept] for kind in kinds]
        first = np.flatnonzero(starts.ravel())[kept]
        return cls(
            drive=first // rollout.row.shape[1],
            sign=signs_of(world.table)[world.table.track[rows[first]]],
            frames=frames[kept],
            evidence=np.clip(np.stack(totals, 1) / frames[kept, None], 0.0, 1.0),
        )

    def limits(self, level: float, signs: NDArray[np.int64] | None = None) -> list[float]:
        """Upper bounds of the mean evidences over signs to come, of some signs or all.

        They hold together with the probability `level`.
        """
        chosen = np.unique(self.sign) if signs is None else np.intersect1d(signs, self.sign)
        each = 1.0 - (1.0 - level) / self.evidence.shape[1]
        passes = np.bincount(self.sign)[chosen]
        return [
            min(upper_bound(np.bincount(self.sign, kind)[chosen] / passes, each, low=0.0), _HIGHEST)
            for kind in self.evidence.T
        ]


@dataclass(frozen=True, slots=True)
class Monitoring:
    """What the monitor does.

    Attributes:
        terms: what it looks at, and its limits.
        false_alarms_per_day: of simulated driving without a shift past signs that the limits
            do not know.
        simulated_hours: of that driving.
        alarm_frames: frames from the shift to the alarm that 95 % of the drives keep within; None
            without shifted frames, or if not so many found it within 3000 frames.
        found_share: of the drives whose shift was found within 300 frames; None without.
    """

    terms: MonitorTerms
    false_alarms_per_day: float
    simulated_hours: float
    alarm_frames: int | None
    found_share: float | None

    def as_json(self) -> dict[str, Any]:
        """The attributes, the terms without the reference."""
        return {
            "limits": self.terms.limits(),
            "tracks_between": self.terms.tracks_between,
            "false_alarms_per_day": self.false_alarms_per_day,
            "simulated_hours": self.simulated_hours,
            "alarm_frames": self.alarm_frames,
            "found_share": self.found_share,
        }


def monitoring(
    world: World,
    rollout: Rollout,
    level: float,
    seed: int,
    *,
    pictures: PictureReference | None = None,
    shifted: tuple[World, Rollout] | None = None,
) -> Monitoring:
    """Simulate the monitor of one policy.

    Args:
        world, rollout: calibration signs and drives past them.
        level: at which the limits hold.
        seed: of the simulation.
        pictures: of the training frames; None looks at the answers alone.
        shifted: drives past frames that the network was not trained for.
    """
    calm = Passes.of(world, rollout, pictures)
    frames_an_hour = 3_600_000 / world.scenario.timing.period_ms
    tracks_an_hour = frames_an_hour / float(calm.frames.mean())
    between, hours = max(2, round(HOURS * tracks_an_hour)), _SPLITS * _TRACKS / tracks_an_hour
    limits, delays = calm.limits(level), None
    if shifted is not None:
        delays = _delays(Passes.of(*shifted, pictures), limits, between)
    last = None if delays is None else float(np.quantile(delays, 0.95, method="higher"))
    seen = None if pictures is None else PictureTerms(limits[1], pictures)
    return Monitoring(
        terms=MonitorTerms(limits[0], between, seen),
        false_alarms_per_day=_false_alarms(calm, level, between, seed) * 24 / hours,
        simulated_hours=hours,
        alarm_frames=None if last is None or last == np.inf else int(last),
        found_share=None if delays is None else float((delays <= 300).mean()),
    )


def _delays(passes: Passes, limits: list[float], between: float) -> Floats:
    """Frames to the alarm from the start of each drive, the others following it; inf: not found."""
    starts = np.flatnonzero(np.diff(passes.drive, prepend=-1))
    n, delays = len(passes.drive), np.full(len(starts), np.inf)
    rows, lengths = passes.evidence.tolist(), passes.frames.tolist()
    for i, start in enumerate(starts):
        monitors, frames = side_by_side(limits, between), 0
        for at in range(start, start + n):
            frames += lengths[at % n]
            heard = [m.add(seen) for m, seen in zip(monitors, rows[at % n], strict=True)]
            if any(heard):
                delays[i] = frames
                break
            if frames > _WAIT:
                break
    return delays


def _false_alarms(calm: Passes, level: float, between: int, seed: int) -> int:
    """Their number: limits from half of the signs, passes drawn from the others."""
    rng = np.random.default_rng(seed)
    signs, limits, evidence = np.unique(calm.sign), [], []
    for _ in range(_SPLITS):
        order = rng.permutation(signs)
        limits.append(calm.limits(level, order[: len(signs) // 2]))
        others = np.flatnonzero(np.isin(calm.sign, order[len(signs) // 2 :]))
        evidence.append(calm.evidence[rng.choice(others, _TRACKS)])
    return alarms(np.stack(evidence, axis=1), np.array(limits), between)


def alarms(evidence: Floats, limits: Floats, between: float) -> int:
    """Alarms on S devices whose monitors begin anew after each, all devices at once.

    Args:
        evidence: float64 (tracks, S, M), of M kinds.
        limits: float64 (S, M); each device has the monitors `side_by_side` of its limits.
        between: tracks between false alarms, at least.
    """
    devices = [side_by_side(own, between) for own in limits.tolist()]
    needed = np.array([[monitor.between for monitor in own] for own in devices])
    stakes, gains = np.array(STAKES)[:, None, None], evidence / limits - 1.0
    capitals, found = np.zeros((len(stakes), *limits.shape)), 0
    for gain in gains:
        capitals = after_bet(capitals, stakes, gain)
        alarmed = (capitals.sum(0) / len(stakes) >= needed).any(1)
        if alarmed.any():
            found += int(alarmed.sum())
            capitals[:, alarmed] = 0.0
    return found
