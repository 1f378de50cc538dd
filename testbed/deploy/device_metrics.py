"""Prometheus metrics of one device, in a registry of its own (extra ``server``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cnn.topology import ACTIONS
from testbed.deploy.guarded_policy import Decision
from testbed.records.measurement import Measurement
from testbed.records.run_summary import reason_kind

DELAY_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
ENERGY_BUCKETS_J: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
GUARD_STATES: Final = ("policy", "safe", "trial")


class DeviceMetrics:
    """Counters and histograms of a running device."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._frames = Counter(
            "sliproad_device_frames",
            "Frames by status (ok, fallback, skipped).",
            ["status"],
            registry=self.registry,
        )
        self._reasons = Counter(
            "sliproad_device_reasons",
            "Frames that were not ok, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._actions = Counter(
            "sliproad_device_actions",
            "Actions taken, and by whom (policy, guard, safe).",
            ["action", "decided_by"],
            registry=self.registry,
        )
        self._shadow = Counter(
            "sliproad_device_shadow",
            "Frames on which the shadow policy agreed with the acting one (true, false, or "
            "unknown where a staged one could not be asked to its end).",
            ["agrees"],
            registry=self.registry,
        )
        self._delay = Histogram(
            "sliproad_device_delay_seconds",
            "Capture until the answer is known.",
            buckets=DELAY_BUCKETS_S,
            registry=self.registry,
        )
        self._energy = Histogram(
            "sliproad_device_energy_joules",
            "Energy of a frame, where it could be read.",
            buckets=ENERGY_BUCKETS_J,
            registry=self.registry,
        )
        self._guard = Gauge(
            "sliproad_device_guard_state",
            "1 for the guard's state.",
            ["state"],
            registry=self.registry,
        )
        self._drift = Gauge(
            "sliproad_device_drift",
            "Quantities that lie outside what training saw.",
            registry=self.registry,
        )
        self._info = Gauge(
            "sliproad_device_info",
            "Always 1: what the device runs.",
            ["bundle_hash", "policy_hash"],
            registry=self.registry,
        )

    def frame(self, row: Measurement, decision: Decision | None) -> None:
        """Count one measured frame."""
        self._frames.labels(row.status).inc()
        if row.reason:
            self._reasons.labels(reason_kind(row)).inc()
        if row.status != "skipped":
            self._delay.observe(row.delay_ms / 1e3)
        if row.energy_mj is not None:
            self._energy.observe(row.energy_mj / 1e3)
        if decision is None:
            return
        self._actions.labels(ACTIONS[decision.action].name, decision.decided_by).inc()
        if decision.shadow_action is not None:
            agrees = str(decision.shadow_action == decision.policy_action).lower()
            known = not (decision.shadow_open or decision.policy_open)
            self._shadow.labels(agrees if known else "unknown").inc()

    def guard(self, state: str, drifting: int) -> None:
        """Show the guard's state and how many quantities drift."""
        for name in GUARD_STATES:
            self._guard.labels(name).set(name == state)
        self._drift.set(drifting)

    def runs(self, bundle_hash: str, policy_hash: str) -> None:
        """Show what the device runs from now on."""
        self._info.clear()
        self._info.labels(bundle_hash, policy_hash).set(1)

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A gauge ``sliproad_device_<name>`` whose value is asked for at every scrape."""
        gauge = Gauge(f"sliproad_device_{name}", meaning, registry=self.registry)
        gauge.set_function(value)
