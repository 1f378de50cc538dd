"""The parts of a device service, made from its configuration file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from testbed.deploy.deployment import Deployment, Sources
from testbed.deploy.device_file import DeviceFile
from testbed.deploy.guard import Guard, GuardSettings, Limits
from testbed.deploy.log import event
from testbed.device.device_loop import DeviceConfig
from testbed.device.processor import Pace
from testbed.policy.task_settings import (
    Task,
    assumptions_note,
    contradictions,
    differing,
    effective_task,
    shown,
)
from testbed.wire.address import is_loopback, parse_address
from testbed.wire.client import MecClient
from testbed.wire.tls import TlsFiles, client_tls

TASK_KEYS: Final[dict[str, tuple[str, str]]] = {
    "tech": ("drive", "tech"),
    "accuracy_floor": ("drive", "accuracy_floor"),
    "delay_share": ("drive", "delay_share"),
    "full_local_ms": ("drive", "full_local_ms"),
    "period_ms": ("frames", "period_ms"),
    "timeout_ms": ("frames", "timeout_ms"),
    "deadline_ms": ("frames", "deadline_ms"),
    "max_queue_ms": ("frames", "max_queue_ms"),
    "power": ("meter", "power"),
}
"""Section and key of each field of a task that a device's file may set."""

_log = logging.getLogger(__name__)


def sources_of(file: DeviceFile) -> Sources:
    """Where its network and policies come from."""
    b = file.bundles
    return Sources(
        model=path_of(b.model),
        policy=path_of(b.policy),
        action=b.action,
        shadow=path_of(b.shadow),
        threads=b.threads,
        trusted_keys=tuple(Path(key) for key in b.trusted_keys),
        needs_promise=file.guard.enabled and _own_limits(file) == Limits(),
    )


def path_of(text: str | None) -> Path | None:
    """A path, if one is given."""
    return None if text is None else Path(text)


def task_of(file: DeviceFile, deployment: Deployment) -> Task:
    """What the device does: what the file says, else the policy's task, else the defaults.

    What of the file contradicts the policy, and what is assumed of a policy that does not say
    its task, goes to the log.
    """
    given = {
        field: getattr(getattr(file, section), key) for field, (section, key) in TASK_KEYS.items()
    }
    if file.bundles.policy is not None and deployment.task is None:
        event(_log, logging.WARNING, assumptions_note(file.bundles.policy, given))
    names = {field: ".".join(key) for field, key in TASK_KEYS.items()}
    for line in contradictions(deployment.task, given, names):
        event(_log, logging.WARNING, line)
    task = effective_task(deployment.task, given)
    if deployment.shadow_task is not None:
        others = differing(deployment.shadow_task, task.to_json())
        if others:
            said = ", ".join(f"{k} {shown(v)} ({shown(own)})" for k, (v, own) in others.items())
            event(_log, logging.WARNING, f"the shadow policy was trained for another task: {said}")
    return task


def device_config_of(file: DeviceFile, task: Task) -> DeviceConfig:
    """The settings of its device loop."""
    pace = file.frames.pace
    config = followed_config_of(file, task)
    return config if pace is None else replace(config, pace=Pace.load(pace, task.full_local_ms))


def followed_config_of(file: DeviceFile, task: Task) -> DeviceConfig:
    """Those that follow another task; an emulated device's pace does not, and is left out."""
    f, s = file.frames, file.server
    return DeviceConfig(
        period_ms=task.period_ms,
        timeout_ms=task.timeout_ms,
        deadline_ms=task.deadline_ms,
        max_queue_ms=task.max_queue_ms,
        breaker_failures=f.breaker_failures,
        breaker_backoff_ms=f.breaker_backoff_ms,
        seed=f.seed,
        frame_encoding=s.frame_encoding,
        probe_budget_per_min=s.probe_budget_per_min,
        probe_bytes=s.probe_bytes,
        probe_stale_s=s.probe_stale_s,
    )


def client_of(file: DeviceFile, deployment: Deployment) -> MecClient | None:
    """Its connection to the server that it names; None without one."""
    if file.server.address is None:
        return None
    return MecClient(file.server.address, deployment.model.hash, tls_of(file))


def tls_of(file: DeviceFile) -> TlsFiles | None:
    """The certificate files that it names; None (no ``tls_`` key) connects in the clear."""
    s = file.server
    return client_tls(s.tls_ca, s.tls_cert, s.tls_key, s.tls_name)


def plain_note(file: DeviceFile) -> str | None:
    """What is wrong with a server that is called across a network without TLS; None if nothing."""
    s = file.server
    if s.address is None or tls_of(file) is not None:
        return None
    if is_loopback(parse_address(s.address, "address")[0]):
        return None
    return f"{s.address} without TLS: frames travel in the clear; give tls_ca (docs/deploy.md)"


def guard_of(file: DeviceFile, deployment: Deployment, task: Task) -> Guard | None:
    """Its guard over the policy of `deployment`; None if it has none."""
    g = file.guard
    if not g.enabled:
        return None
    settings = GuardSettings(g.window, g.margin, g.patience, g.cooldown_frames, g.act_on_drift)
    return Guard(settings, _own_limits(file), task.deadline_ms, deployment.reference)


def _own_limits(file: DeviceFile) -> Limits:
    g = file.guard
    return Limits(g.max_delay_ms, g.max_energy_mj, g.min_confidence, g.max_miss_rate)
