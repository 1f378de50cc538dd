"""Prometheus metrics of one device, in a registry of its own (extra ``server``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cnn.topology import Topology
from testbed.deploy.guarded_policy import Decision, GuardedPolicy
from testbed.deploy.hot_swap import Swapper, Watcher
from testbed.deploy.log import dropped_lines
from testbed.deploy.policy_monitor import PolicyMonitor
from testbed.records.measurement import Measurement
from testbed.records.run_summary import reason_kind
from testbed.server.server_metrics import watch_certificates
from testbed.wire.client import MecClient

DELAY_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
ENERGY_BUCKETS_J: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
GUARD_STATES: Final = ("policy", "safe", "trial", "alarm")


class DeviceMetrics:
    """Counters and histograms of a running device.

    Args:
        topology: of its network; gives the actions their names.
    """

    def __init__(self, topology: Topology) -> None:
        self._names = [action.name for action in topology.actions]
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self._frames = counter(
            "sliproad_device_frames", "Frames by status (ok, fallback, skipped).", ["status"]
        )
        self._reasons = counter(
            "sliproad_device_reasons", "Frames that were not ok, by reason.", ["reason"]
        )
        self._actions = counter(
            "sliproad_device_actions",
            "Actions taken, and by whom (policy, guard, safe).",
            ["action", "decided_by"],
        )
        self._shadow = counter(
            "sliproad_device_shadow",
            "Frames on which the shadow policy agreed with the acting one (true, false, or "
            "unknown where a staged one could not be asked to its end).",
            ["agrees"],
        )
        self._delay = histogram(
            "sliproad_device_delay_seconds",
            "Capture until the answer is known.",
            buckets=DELAY_BUCKETS_S,
        )
        self._energy = histogram(
            "sliproad_device_energy_joules",
            "Energy of a frame, where it could be read.",
            buckets=ENERGY_BUCKETS_J,
        )
        self._guard = gauge("sliproad_device_guard_state", "1 for the guard's state.", ["state"])
        self._drift = gauge(
            "sliproad_device_drift", "Quantities that lie outside what training saw."
        )
        self._info = gauge(
            "sliproad_device_info",
            "Always 1: what the device runs.",
            ["bundle_hash", "policy_hash"],
        )

    def watch_parts(
        self,
        swapper: Swapper,
        watcher: Watcher,
        guarded: GuardedPolicy,
        monitor: PolicyMonitor,
        client: MecClient | None,
        rows_dropped: Callable[[], float],
    ) -> None:
        """Show the counts of the parts around the loop at every scrape."""
        for name, meaning, value in (
            ("swaps", "Bundles put in place.", lambda: swapper.swaps),
            ("rollbacks", "Bundles taken back.", lambda: swapper.rollbacks),
            ("swaps_refused", "New bundles not used.", lambda: watcher.failures),
            ("policy_errors", "Decisions that failed.", lambda: guarded.errors),
            ("monitor_alarms", "Alarms of a certificate's monitor.", lambda: monitor.alarms or 0),
            (
                "monitor_capital",
                "Capital of the running policy's monitor; it alarms at 1.",
                lambda: monitor.capital,
            ),
            ("rows_dropped", "Rows the disk had no room for.", rows_dropped),
            ("log_lines_dropped", "Log lines that nobody took.", dropped_lines),
        ):
            Gauge(f"sliproad_device_{name}", meaning, registry=self.registry).set_function(value)
        if client is not None and client.tls_watch is not None:
            name = "sliproad_device_certificate_not_after_timestamp_seconds"
            watch_certificates(self.registry, name, client.tls_watch.not_after)
        self.runs(swapper.deployment.model.hash[:12], swapper.deployment.policy_hash)

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
        self._actions.labels(self._names[decision.action], decision.decided_by).inc()
        if decision.shadow_action is not None:
            agrees = str(decision.shadow_action == decision.policy_action).lower()
            known = not (decision.shadow_open or decision.policy_open)
            self._shadow.labels(agrees if known else "unknown").inc()

    def guard(self, state: str | None, drifting: int) -> None:
        """Show the guard's state (None: there is no guard) and how many quantities drift."""
        for name in GUARD_STATES:
            self._guard.labels(name).set(name == state)
        self._drift.set(drifting)

    def runs(self, bundle_hash: str, policy_hash: str) -> None:
        """Show the network and policy in use from now on."""
        self._info.clear()
        self._info.labels(bundle_hash, policy_hash).set(1)
