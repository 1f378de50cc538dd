"""The monitor of a certificate on the device: its alarm ends the trust in the policy.

Pictures, and the confidences of the policy's answers, say whether the frames are still such as the
certificate speaks of. Once they are not, the guard's safe action is taken for every frame, without
a trial: nothing that the device measures could tell that the promise holds again. Only another
policy does.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from testbed.deploy.guarded_policy import Decision
from testbed.deploy.log import event
from testbed.deploy.loss_monitor import MAX_TRACK_FRAMES, MonitorTerms, doubt
from testbed.policy.observation_fields import features_in
from testbed.records.measurement import Measurement

_log = logging.getLogger(__name__)


class _Watched:
    """A policy and its monitor, if its file has a certificate with one."""

    def __init__(self, terms: MonitorTerms | None, policy_hash: str) -> None:
        self.policy_hash = policy_hash
        self.monitors = [] if terms is None else terms.monitors()
        self.pictures = None if terms is None else terms.pictures
        self.track: tuple[int, int] | None = None

    def evidence(self, confidence: float, observation: NDArray[np.float32]) -> list[float]:
        """Of one frame that the policy answered, one for each of `monitors`."""
        # An answer that is no number could not be more doubtful.
        found = [float(doubt(confidence if math.isfinite(confidence) else 0.0))]
        if self.pictures is not None:
            seen = features_in(observation)[None]
            found += self.pictures.reference.strange(seen).tolist()
        return found


class PolicyMonitor:
    """Watches the policy in use, if it is certified.

    Args:
        terms: of the policy's certificate; None without one.
        policy_hash: of the policy.

    Attributes:
        alarms: how many there were, of all policies; None as long as none had a monitor.
    """

    def __init__(self, terms: MonitorTerms | None, policy_hash: str) -> None:
        self._now = self._before = _Watched(terms, policy_hash)
        self.alarms: int | None = None if terms is None else 0

    def watch(self, terms: MonitorTerms | None, policy_hash: str) -> None:
        """Use another policy from now on: its monitor begins anew.

        One that is still in use, or that was in use before this one (a swap was rolled back),
        keeps its monitor, and its alarm.
        """
        if policy_hash == self._now.policy_hash:
            return
        back = self._before if self._before.policy_hash == policy_hash else None
        self._now, self._before = back or _Watched(terms, policy_hash), self._now
        if terms is not None and self.alarms is None:
            self.alarms = 0

    @property
    def is_on(self) -> bool:
        """Whether the policy in use has a monitor."""
        return bool(self._now.monitors)

    @property
    def alarm(self) -> bool:
        """Whether the policy in use is not to act any more."""
        return any(monitor.alarm for monitor in self._now.monitors)

    @property
    def capital(self) -> float:
        """Largest capital of its monitors, as a share of that of an alarm; 0 without one."""
        return max((m.capital / m.between for m in self._now.monitors), default=0.0)

    def observe(self, row: Measurement, decision: Decision | None) -> None:
        """Add a measured frame; called in the order of the frames.

        Frames that the policy in use did not decide are no evidence for or against it: skipped
        ones, the guard's, those of the policy before.
        """
        now = self._now
        if not now.monitors or self.alarm:
            return
        evidence = [math.nan] * len(now.monitors)
        if (
            row.confidence is not None
            and decision is not None
            and decision.decided_by == "policy"
            and decision.policy_hash == now.policy_hash
        ):
            evidence = now.evidence(row.confidence, decision.observation)
        track = row.track, row.frame_in_track // MAX_TRACK_FRAMES
        starts, now.track = track != now.track, track
        pairs = zip(now.monitors, evidence, strict=True)
        alarms = [monitor.add_frame(seen, starts_track=starts) for monitor, seen in pairs]
        if any(alarms):
            self._say(now, alarms)

    def _say(self, now: _Watched, alarms: list[bool]) -> None:
        self.alarms = (self.alarms or 0) + 1
        what = "answers are less sure" if alarms[0] else "pictures are less like those of training"
        event(
            _log,
            logging.WARNING,
            f"monitor: {what} than the policy's certificate allows; "
            "the safe action is taken until there is another policy",
            policy=now.policy_hash,
            limit=now.monitors[alarms.index(True)].limit,
            tracks=now.monitors[0].units,
        )
