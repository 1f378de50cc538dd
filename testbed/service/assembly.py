"""The parts of a device service, made from its configuration file."""

from __future__ import annotations

from pathlib import Path

from testbed.device.device import DeviceConfig
from testbed.device.pace import Pace
from testbed.service.config import DeviceFile
from testbed.service.guard import Guard, GuardSettings, Limits
from testbed.service.loadout import Loadout, Sources
from testbed.wire.client import MecClient
from testbed.wire.tls import TlsFiles


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


def device_config_of(file: DeviceFile) -> DeviceConfig:
    """The settings of its device loop."""
    f, s = file.frames, file.server
    return DeviceConfig(
        period_ms=f.period_ms,
        timeout_ms=f.timeout_ms,
        deadline_ms=f.deadline_ms,
        max_queue_ms=f.max_queue_ms,
        pace=None if f.pace is None else Pace.load(f.pace, file.drive.full_local_ms),
        breaker_failures=f.breaker_failures,
        breaker_backoff_ms=f.breaker_backoff_ms,
        seed=f.seed,
        frame_encoding=s.frame_encoding,
        probe_budget_per_min=s.probe_budget_per_min,
        probe_bytes=s.probe_bytes,
        probe_stale_s=s.probe_stale_s,
    )


def client_of(file: DeviceFile, loadout: Loadout) -> MecClient | None:
    """Its connection to the server that it names; None without one."""
    if file.server.address is None:
        return None
    return MecClient(file.server.address, loadout.model.hash, tls_of(file))


def tls_of(file: DeviceFile) -> TlsFiles | None:
    """The certificate files that it names; None connects in the clear."""
    s = file.server
    files = TlsFiles(path_of(s.tls_ca), path_of(s.tls_cert), path_of(s.tls_key), s.tls_name)
    return files if s.tls_ca or s.tls_cert else None


def guard_of(file: DeviceFile, loadout: Loadout) -> Guard | None:
    """Its guard over the policy of `loadout`; None if it has none."""
    g = file.guard
    if not g.enabled:
        return None
    settings = GuardSettings(g.window, g.margin, g.patience, g.cooldown_frames, g.act_on_drift)
    return Guard(settings, _own_limits(file), file.frames.deadline_ms, loadout.promise)


def _own_limits(file: DeviceFile) -> Limits:
    g = file.guard
    return Limits(g.max_delay_ms, g.max_energy_mj, g.min_confidence, g.max_miss_rate)
