"""The monitor of a certificate on the device: its alarm ends the trust in the policy.

Confidences of the policy's answers say whether the frames are still such as the certificate speaks
of. Once they are not, the guard's safe action is taken for every frame, without a trial: nothing
that the device measures could tell that the promise holds again. Only another policy does.
"""

from __future__ import annotations

import logging
import math

from testbed.deploy.guarded_policy import Decision
from testbed.deploy.log import event
from testbed.deploy.loss_monitor import MAX_TRACK_FRAMES, LossMonitor, MonitorTerms, doubt
from testbed.records.measurement import Measurement

_log = logging.getLogger(__name__)


class _Watched:
    """A policy and its monitor, if its file has a certificate with one."""

    def __init__(self, terms: MonitorTerms | None, policy_hash: str) -> None:
        self.policy_hash = policy_hash
        self.monitor = None if terms is None else LossMonitor(terms.limit, terms.tracks_between)
        self.track: tuple[int, int] | None = None


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
        return self._now.monitor is not None

    @property
    def alarm(self) -> bool:
        """Whether the policy in use is not to act any more."""
        monitor = self._now.monitor
        return monitor is not None and monitor.alarm

    @property
    def capital(self) -> float:
        """Capital of its monitor, as a share of that of an alarm; 0 without one."""
        monitor = self._now.monitor
        return 0.0 if monitor is None else monitor.capital / monitor.between

    def observe(self, row: Measurement, decision: Decision | None) -> None:
        """Add a measured frame; called in the order of the frames.

        Frames that the policy in use did not decide are no evidence for or against it: skipped
        ones, the guard's, those of the policy before.
        """
        now, monitor = self._now, self._now.monitor
        if monitor is None or monitor.alarm:
            return
        evidence = math.nan
        if (
            row.confidence is not None
            and decision is not None
            and decision.decided_by == "policy"
            and decision.policy_hash == now.policy_hash
        ):
            # An answer that is no number could not be more doubtful.
            known = row.confidence if math.isfinite(row.confidence) else 0.0
            evidence = float(doubt(known))
        track = row.track, row.frame_in_track // MAX_TRACK_FRAMES
        starts, now.track = track != now.track, track
        if monitor.add_frame(evidence, starts_track=starts):
            self.alarms = (self.alarms or 0) + 1
            event(
                _log,
                logging.WARNING,
                "monitor: answers are less sure than the policy's certificate allows; "
                "the safe action is taken until there is another policy",
                policy=now.policy_hash,
                limit=monitor.limit,
                tracks=monitor.units,
            )
