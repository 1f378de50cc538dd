"""The guard: a policy acts only as long as it keeps to its reference profile.

The guard compares means over a window of frames that the policy decided. If one stays beyond its
limit for `patience` frames, the policy falls and the safe action is taken for every frame.
After a pause the policy gets a trial. It is trusted again if the trial stays within the limits
without the margin that applied before the fall (hysteresis); otherwise the pause doubles. Drift of
the policy's inputs (rate, round trip, mix of its actions) is reported, and makes it fall only
if so configured: a link better than any in training does no harm.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cnn.topology import SHIPPED, Topology
from testbed.deploy.device_file import GuardSection
from testbed.deploy.guarded_policy import Decision
from testbed.deploy.log import event
from testbed.policy.observation_fields import schema_of
from testbed.policy.reference_profile import ReferenceProfile, unscaled
from testbed.records.measurement import Measurement

State = Literal["policy", "safe", "trial"]
MAX_DOUBLINGS: Final = 4
MISS_SLACK_FRAMES: Final = 2
"""Missed frames a window may have beyond the profile's share, which is often 0."""
EARLY_END: Final = 0.25
"""A trial that is beyond the limits, margin included, ends after this share of its frames."""

_log = logging.getLogger(__name__)
_OBSERVED: Final = ("uplink_mbps", "rtt_ms")
"""Elements of the observation whose drift is reported."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on window means; None is no limit."""

    delay_ms: float | None = None
    energy_mj: float | None = None
    confidence: float | None = None
    miss_rate: float | None = None

    @classmethod
    def own(cls, section: GuardSection) -> Limits:
        """The limits in the configuration."""
        return cls(
            section.max_delay_ms,
            section.max_energy_mj,
            section.min_confidence,
            section.max_miss_rate,
        )

    @classmethod
    def of(cls, reference: ReferenceProfile | None, own: Limits) -> Limits:
        """The configured limits, and the profile's where none is configured."""
        if reference is None:
            return own
        return cls(
            own.delay_ms if own.delay_ms is not None else reference.high("delay_ms"),
            own.energy_mj if own.energy_mj is not None else reference.high("energy_mj"),
            own.confidence if own.confidence is not None else reference.low("confidence"),
            own.miss_rate if own.miss_rate is not None else reference.high("miss_rate"),
        )

    def broken(self, window: Window, margin: float) -> list[str]:
        """Names of the quantities beyond their limit by more than `margin` of it."""

        def beyond(mean: float | None, limit: float | None, slack: float = 0.0) -> bool:
            known = mean is not None and limit is not None
            return known and mean > limit * (1 + margin) + slack  # type: ignore[operator]

        missed = MISS_SLACK_FRAMES / window.size
        checks = {
            "delay_ms": beyond(window.mean("delay_ms"), self.delay_ms),
            "energy_mj": beyond(window.mean("energy_mj"), self.energy_mj),
            # In terms of the error: 0.97 with a margin of a fifth accepts 0.964.
            "confidence": beyond(_error(window.mean("confidence")), _error(self.confidence)),
            "miss_rate": beyond(window.mean("miss_rate"), self.miss_rate, missed),
        }
        return [name for name, is_beyond in checks.items() if is_beyond]


def _error(confidence: float | None) -> float | None:
    return None if confidence is None else 1 - confidence


class Window:
    """The last `size` frames that the policy decided: their figures and their means."""

    def __init__(self, size: int) -> None:
        self.size = size
        names = ("delay_ms", "energy_mj", "confidence", "miss_rate", "uplink_mbps", "rtt_ms")
        self._values: dict[str, deque[float | None]] = {n: deque(maxlen=size) for n in names}
        self._actions: deque[int] = deque(maxlen=size)

    def add(self, values: dict[str, float | None], action: int) -> None:
        """Add a frame; None, or a number that is not finite, is a figure that was not measured."""
        for name, kept in self._values.items():
            value = values.get(name)
            kept.append(value if value is not None and math.isfinite(value) else None)
        self._actions.append(action)

    def clear(self) -> None:
        """Forget every frame."""
        for kept in self._values.values():
            kept.clear()
        self._actions.clear()

    def __len__(self) -> int:
        return len(self._actions)

    @property
    def full(self) -> bool:
        """Whether it holds `size` frames."""
        return len(self._actions) == self.size

    def mean(self, name: str) -> float | None:
        """Mean of a quantity over the frames that have one."""
        known = [v for v in self._values[name] if v is not None]
        return sum(known) / len(known) if known else None

    def shift(self, mix: tuple[float, ...]) -> float:
        """Total variation distance between the actions here and `mix`."""
        shares = np.bincount(self._actions, minlength=len(mix)) / max(1, len(self))
        return float(0.5 * np.abs(shares - mix).sum())


class Guard:
    """Trusts a policy until it exceeds its limits, and again after a good trial.

    Args:
        settings: patience, and the configured limits, which take precedence over the profile's.
        deadline_ms: a frame that took longer, or was skipped, is a miss.
        reference: of the policy; with None only the configured limits apply.
        topology: of the network.

    Attributes:
        state: ``policy``, ``safe`` or ``trial``.
        reason: quantities of the policy's last fall.
        drift: quantities outside their range in training.
        falls: how often the policy fell.
    """

    def __init__(
        self,
        settings: GuardSection,
        deadline_ms: float,
        reference: ReferenceProfile | None = None,
        topology: Topology = SHIPPED,
    ) -> None:
        self._settings, self._own = settings, Limits.own(settings)
        self._observed = [f for f in schema_of(topology).fields if f.name in _OBSERVED]
        self.falls = 0
        self.watch(reference, deadline_ms)

    def watch(self, reference: ReferenceProfile | None, deadline_ms: float) -> None:
        """Begin with another policy: it is trusted until it exceeds its own limits.

        Args:
            reference: its reference profile, if there is one.
            deadline_ms: a frame that took longer is a miss.
        """
        size = reference.window if reference else self._settings.window
        limits, window, trial = Limits.of(reference, self._own), Window(size), Window(size)
        self._reference, self._deadline_ms = reference, deadline_ms
        self.limits, self.window, self._trial = limits, window, trial
        self.state: State = "policy"
        self.reason = ""
        self.drift: tuple[str, ...] = ()
        self._beyond = self._rested = self._doublings = self._held = 0

    def trusted(self) -> bool:
        """Whether the policy may act on the next frame."""
        return self.state != "safe"

    @property
    def cooldown_frames(self) -> int:
        """The pause after a fall now, frames."""
        return int(self._settings.cooldown_frames * 2**self._doublings)

    def observe(self, row: Measurement, decision: Decision | None) -> None:
        """Add a measured frame; called in the order of the frames."""
        if self.state == "safe":
            self._rested += 1
            if self._rested >= self.cooldown_frames:
                self._trial.clear()
                self._enter("trial")
            return
        if decision is not None and decision.decided_by != "policy":
            return  # decided before the state changed
        if row.reason.startswith("camera: "):
            return  # the camera failed, which is not the policy's fault
        values, action = self._figures(row, decision), row.action
        if self.state == "trial":
            self._trial.add(values, action)
            self._judge_trial()
        else:
            self.window.add(values, action)
            self._judge()

    def _judge(self) -> None:
        self._held += 1
        if self._held >= 4 * self.cooldown_frames:
            self._doublings = 0  # it has been within its limits for long
        if not self.window.full:
            return
        broken = self.limits.broken(self.window, self._settings.margin) + self._drifting()
        self._beyond = self._beyond + 1 if broken else 0
        if self._beyond >= self._settings.patience:
            self._fall(broken)

    def _judge_trial(self) -> None:
        if self._trial.full:
            broken = self.limits.broken(self._trial, 0.0) + self._drifting()
        elif len(self._trial) >= EARLY_END * self._trial.size:
            broken = self.limits.broken(self._trial, self._settings.margin)
            if not broken:
                return
        else:
            return
        if broken:
            self._doublings = min(self._doublings + 1, MAX_DOUBLINGS)
            self._fall(broken)
        else:
            self._enter("policy")

    def _fall(self, broken: list[str]) -> None:
        self.falls += 1
        self.reason = ", ".join(broken)
        self._enter("safe")

    def _enter(self, state: State) -> None:
        before, self.state = self.state, state
        self.window.clear()
        self._beyond = self._rested = self._held = 0
        level = logging.WARNING if state == "safe" else logging.INFO
        more = {"reason": self.reason, "cooldown_frames": self.cooldown_frames}
        event(_log, level, f"guard: {before} to {state}", **(more if state == "safe" else {}))

    def _figures(self, row: Measurement, decision: Decision | None) -> dict[str, float | None]:
        late = row.status == "skipped" or not row.delay_ms <= self._deadline_ms  # NaN is late
        promised = "" if self._reference is None else self._reference.energy_source
        comparable = self._own.energy_mj is not None or promised in ("", row.energy_source)
        values: dict[str, float | None] = {
            "delay_ms": row.delay_ms,
            "energy_mj": row.energy_mj if comparable else None,
            "confidence": row.confidence,
            "miss_rate": float(late),
        }
        if decision is not None:
            for field in self._observed:
                values[field.name] = unscaled(field, float(decision.observation[field.index]))
        return values

    def _drifting(self) -> list[str]:
        """Note quantities outside their range in training; returns those that may cause a fall."""
        reference, window = self._reference, self._trial if self.state == "trial" else self.window
        if reference is None:
            return []
        outside = []
        for name in (*_OBSERVED, "confidence"):
            mean, low, high = window.mean(name), reference.low(name), reference.high(name)
            known = mean is not None and low is not None and high is not None
            if known and not low <= mean <= high:  # type: ignore[operator]
                outside.append(name)
        if window.shift(reference.actions) > reference.action_shift:
            outside.append("actions")
        if tuple(outside) != self.drift:
            self.drift = tuple(outside)
            event(_log, logging.INFO, "drift", outside=outside)
        return [f"drift of {name}" for name in outside] if self._settings.act_on_drift else []
