"""The parts of a device, made from its file; ``--check`` makes them all and discards them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cnn.bundle import Bundle
from cnn.common.errors import ConfigError, DataError, require
from cnn.common.plug_ins import plug_in
from cnn.topology import Topology
from testbed.deploy.deployment import Deployment, Sources, load
from testbed.deploy.device_file import DeviceFile
from testbed.deploy.device_records import check_records
from testbed.deploy.guard import Guard, Limits
from testbed.deploy.log import event
from testbed.deploy.policy_monitor import PolicyMonitor
from testbed.device.device_loop import DeviceConfig
from testbed.device.frame_sources import FRAME_PLUG_INS, CameraFrame, open_frames
from testbed.device.processor import Pace
from testbed.meters.available import METER_PLUG_INS, find_meters, open_meter
from testbed.policy.plugged_policy import POLICY_PLUG_INS, names_plug_in
from testbed.policy.task_settings import (
    Task,
    assumptions_note,
    contradictions,
    differing,
    effective_task,
    shown,
)
from testbed.wire.address import check_free, is_loopback, parse_address
from testbed.wire.client import MecClient
from testbed.wire.tls import TlsFiles, client_tls

TASK_KEYS: Final[dict[str, str]] = {
    "tech": "drive.tech",
    "accuracy_floor": "drive.accuracy_floor",
    "delay_share": "drive.delay_share",
    "full_local_ms": "drive.full_local_ms",
    "period_ms": "frames.period_ms",
    "timeout_ms": "frames.timeout_ms",
    "deadline_ms": "frames.deadline_ms",
    "max_queue_ms": "frames.max_queue_ms",
    "power": "meter.power",
}
"""Key of each field of a task that a device's file may set."""

Warn = Callable[[str], object]

_log = logging.getLogger(__name__)


def log_warning(line: str) -> None:
    """Log a warning of an unattended device."""
    event(_log, logging.WARNING, line)


def sources_of(file: DeviceFile) -> Sources:
    """The sources of its network and policies."""
    b = file.bundles
    plugged = b.policy is not None and names_plug_in(b.policy)
    return Sources(
        model=path_of(b.model),
        policy=None if plugged else path_of(b.policy),
        action=b.action,
        shadow=path_of(b.shadow),
        threads=b.threads,
        providers=tuple(b.providers.split(",")),
        trusted_keys=tuple(Path(key) for key in b.trusted_keys),
        needs_reference=file.guard.enabled and Limits.own(file.guard) == Limits(),
        explore=b.explore,
        seed=file.frames.seed,
        plug_in=b.policy if plugged else None,
    )


def plug_ins_of(file: DeviceFile) -> list[str]:
    """The plug-ins that it uses, for its records."""
    named = (
        (POLICY_PLUG_INS, sources_of(file).plug_in or ""),
        (METER_PLUG_INS, file.meter.name.partition(":")[0]),
        (FRAME_PLUG_INS, file.frames.source.partition(":")[0]),
    )
    found = [plug_in(group, name) for group, name in named]
    return [str(each) for each in found if each is not None]


def path_of(text: str | None) -> Path | None:
    """A path, if one is given."""
    return None if text is None else Path(text)


def task_of(
    file: DeviceFile,
    deployment: Deployment,
    warn: Warn = log_warning,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Task:
    """The device's task: the file's values, else the policy's task, else the defaults.

    Args:
        file: configuration.
        deployment: the network and policies in use.
        warn: called with a line on values of the file that contradict the policy, and on the
            assumptions for a policy file without a task.
        names: the name of a key where it was given (a flag), if it differs.
    """
    given = {}
    for field, key in TASK_KEYS.items():
        section, _, name = key.partition(".")
        given[field] = getattr(getattr(file, section), name)
    policy = sources_of(file).policy
    if policy is not None and deployment.task is None:
        warn(assumptions_note(policy, given))
    shown_as = {field: names.get(key, key) for field, key in TASK_KEYS.items()}
    for line in contradictions(deployment.task, given, shown_as):
        warn(line)
    task = effective_task(deployment.task, given)
    if deployment.shadow_task is not None:
        others = differing(deployment.shadow_task, task.to_json())
        if others:
            said = ", ".join(f"{k} {shown(v)} ({shown(own)})" for k, (v, own) in others.items())
            warn(f"the shadow policy was trained for another task: {said}")
    return task


def device_config_of(file: DeviceFile, task: Task, topology: Topology) -> DeviceConfig:
    """The settings of its device loop.

    Raises:
        ConfigError: if its pace is of a network of another topology.
        DataError: if its pace cannot be read.
    """
    config = followed_config_of(file, task)
    if file.frames.pace is None:
        return config
    pace = Pace.load(file.frames.pace, task.full_local_ms)
    given = f"frames.pace {file.frames.pace}"
    topology.require_same(pace.topology, given, "the device's model bundle")
    return replace(config, pace=pace)


def followed_config_of(file: DeviceFile, task: Task) -> DeviceConfig:
    """The settings that change with the task; without the pace of an emulated device."""
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


def frames_of(file: DeviceFile, model: Bundle, n: int | None = None) -> Iterator[CameraFrame]:
    """Its camera's frames for a network; `n` of them, or the number in the file."""
    f = file.frames
    return open_frames(
        f.source,
        model.config.input_size,
        seed=f.seed,
        data=path_of(f.data),
        n=n or f.count or None,
        class_names=model.class_names,
    )


def client_of(file: DeviceFile, deployment: Deployment) -> MecClient | None:
    """Its connection to its server; None without one."""
    if file.server.address is None:
        return None
    return MecClient(file.server.address, deployment.model.hash, tls_of(file))


def tls_of(file: DeviceFile) -> TlsFiles | None:
    """Its certificate files; None (no ``tls_`` key) connects without TLS."""
    s = file.server
    return client_tls(s.tls_ca, s.tls_cert, s.tls_key, s.tls_name)


def certificate_complaints(file: DeviceFile) -> list[str]:
    """Certificates that are out of date, one line each; for the operator before the start."""
    tls = tls_of(file)
    return [] if tls is None else tls.complaints()


def plain_note(file: DeviceFile) -> str | None:
    """A warning if the server is called across a network without TLS; None otherwise."""
    s = file.server
    if s.address is None or tls_of(file) is not None:
        return None
    if is_loopback(parse_address(s.address, "address")[0]):
        return None
    return f"{s.address} without TLS: frames travel in the clear; give tls_ca (docs/deploy.md)"


def guard_of(file: DeviceFile, deployment: Deployment, task: Task) -> Guard | None:
    """Its guard over the policy of `deployment`; None if it has none."""
    if not file.guard.enabled:
        return None
    topology = deployment.model.topology
    return Guard(file.guard, task.deadline_ms, deployment.reference, topology)


def monitor_of(file: DeviceFile, deployment: Deployment, warn: Warn = log_warning) -> PolicyMonitor:
    """The monitor of its policy, which is off if the policy has no certificate with one.

    Args:
        file: configuration.
        deployment: the network and policies in use.
        warn: called with a line if actions are drawn at random, of which no certificate speaks.
    """
    terms = deployment.monitor
    if terms is not None and file.bundles.explore:
        warn(
            f"explore {file.bundles.explore:g}: the policy's certificate does not hold for "
            "actions drawn at random, and its monitor is off"
        )
        terms = None
    return PolicyMonitor(terms, deployment.policy_hash)


def safe_action_of(file: DeviceFile, topology: Topology) -> int:
    """Number of the action taken while its policy may not, or cannot, decide.

    Raises:
        ConfigError: if it is not a local action of this network.
    """
    text = file.guard.safe_action
    if text is None:
        return topology.main
    local = [topology.actions[a] for a in topology.local]
    found = [a.index for a in local if text.strip().lower() in (a.name, str(a.index))]
    require(
        bool(found),
        f"guard.safe_action {text!r}",
        f"a local action of this network: {', '.join(a.name for a in local)}",
    )
    return found[0]


def preflight(file: DeviceFile) -> list[str]:
    """Check everything that a run of `file` needs; one line for each part that is ready.

    Bundles and policies are loaded and tested as at the start of a run. The meter is opened,
    the camera gives a first frame, the records' place is checked for writing, and the metrics'
    port is checked to be free. The server is not called: a device starts without one.

    Raises:
        SliproadError: names the first part that a run would lack.
    """
    check_records(file, now=True)
    deployment = load(sources_of(file))
    task = task_of(file, deployment)
    device_config_of(file, task, deployment.model.topology)
    guard_of(file, deployment, task)
    safe_action_of(file, deployment.model.topology)
    lines = [f"bundles: policy {deployment.policy.name}, model bundle {deployment.model.hash[:12]}"]
    if monitor_of(file, deployment).is_on:
        lines.append("monitor: of the policy's certificate")
    lines += _checked_server(file, deployment)
    _check_meter(file.meter.name, task.power)
    lines.append(f"meter: {file.meter.name}")
    source = file.frames.source
    if next(frames_of(file, deployment.model, n=1), None) is None:
        raise DataError(
            f"frame source {source} without a frame",
            expected="at least one",
            hint="give another [frames] source",
        )
    lines.append(f"frames: {source}")
    if place := file.records.folder or file.records.file:
        lines.append(f"records: {place}")
    if file.metrics.port is not None:
        _check_metrics(file.metrics.host, file.metrics.port)
        lines.append(f"metrics: {file.metrics.host}:{file.metrics.port}")
    return lines


def _checked_server(file: DeviceFile, deployment: Deployment) -> list[str]:
    client, complaints = client_of(file, deployment), certificate_complaints(file)
    if client is not None:
        client.close()
    require(
        not complaints,
        "; ".join(complaints),
        "certificates that are valid now",
        "renew them, or set this machine's clock",
    )
    if file.server.address is None:
        return []
    tls, plain = tls_of(file), plain_note(file)
    how = "in the clear" if tls is None else f"TLS: {tls.describe()}"
    warning = [] if plain is None else [f"warning: {plain}"]
    return [f"server: {file.server.address}, {how}", *warning]


def _check_meter(name: str, power: str) -> None:
    with open_meter(name, power):
        pass
    for info in find_meters():
        if info.name == name and not info.readable:
            raise ConfigError(
                f"meter {name}: {info.note}",
                expected="a meter that this process can read",
                hint="give it the right to, or use another [meter] name",
            )


def _check_metrics(host: str, port: int) -> None:
    import prometheus_client  # noqa: F401 - whether the extra is installed

    check_free(host, port, what="metrics")
