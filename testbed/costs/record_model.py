"""From record files of deployed devices to a cost model that states which figures were measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from cnn.common.errors import DataError
from cnn.common.outside import file_sha256
from testbed.costs.cost_fit import cost_model
from testbed.costs.fit_check import hold_out_actions, hold_out_times
from testbed.costs.record_fit import RecordFit, fit_records
from testbed.costs.record_samples import DeviceRecords, device_records, powers_of_devices
from testbed.costs.samples import Powers, machine_of
from testbed.meters.cost_model import CostModel, load_profile
from testbed.records.record_file import Records, parquet_files

_SHA_256_DIGITS: Final = 64


def model_of_records(
    path: Path, runs: Sequence[Records], base_name: str | None, name: str
) -> tuple[CostModel, dict[str, Any]]:
    """Fit, check on held-out frames, and state the origin of every figure.

    Args:
        path: the source of `runs`.
        runs: records of deployed devices.
        base_name: cost model for figures that the records lack: a file, or ``shipped``.
        name: of the cost model.

    Returns:
        The model, and the figures of the fit, JSON-able.

    Raises:
        DataError: if the records cannot be used, have too little data without a base, or were made
            with another network than the base.
    """
    records = device_records(runs)
    base = None if base_name is None else load_profile(base_name)
    bundle_hash = _network(records, base)
    samples, slowdown = records.samples, records.slowdown
    powers = powers_of_devices(records) or _base_powers(base)
    fit = fit_records(samples, slowdown, base)
    model = cost_model(
        fit,
        fit.payload_bytes,
        powers,
        name=name,
        source=_source(path, records, fit, base),
        bundle_hash=bundle_hash,
        machine=machine_of(records.source),
    )
    actions = samples.topology.actions
    frames = np.bincount(samples.action)
    from_base = [actions[a].name for a in np.flatnonzero(~fit.known)]
    unseen = None if base is None else hold_out_actions(samples, slowdown, base, powers)
    return model, {
        "frames": len(samples),
        "left_out": records.left_out,
        "actions": {actions[a].name: int(frames[a]) for a in np.flatnonzero(frames)},
        "measured": [actions[a].name for a in np.flatnonzero(fit.known)],
        "from_base": from_base,
        "filled": list(model.filled),
        "base": None if base is None else base.name,
        "device_scale": fit.device.scale,
        "server_scale": fit.server_scale,
        "server_wait_ms": fit.server_wait_ms,
        "jitter": fit.jitter,
        "energy_source": powers.source,
        "held_out_times": hold_out_times(samples, slowdown, base, powers).errors(),
        "held_out_actions": None if unseen is None else unseen.errors(),
        "source": model.source,
    }


def _network(records: DeviceRecords, base: CostModel | None) -> str:
    """The whole hash of the network; raises `DataError` if the base is of another one."""
    told = records.bundle_hash
    if base is not None and not (told and base.bundle_hash.startswith(told)):
        raise DataError(
            f"base cost model {base.name} of network {base.bundle_hash[:12]}",
            expected=f"one of {told[:12] or 'unknown'}, the network in the records",
            hint="give a base that was measured with this network",
        )
    if base is not None:
        return base.bundle_hash
    if len(told) < _SHA_256_DIGITS:
        raise DataError(
            f"records of network {told or 'unknown'}, whose whole hash no file states",
            expected="a file that a device began with this network",
            hint="restart the device once after a change of its network, or give --base",
        )
    return told


def _base_powers(base: CostModel | None) -> Powers:
    if base is None:
        raise DataError(
            "records without an energy figure",
            expected="energy of at least some frames, or a base cost model",
            hint='use meter.name = "model" on the device, or give --base',
        )
    source = f"base cost model {base.name}: {base.power_source}"
    return Powers(base.idle_mw, base.busy_mw, base.radio, source)


def _source(path: Path, records: DeviceRecords, fit: RecordFit, base: CostModel | None) -> str:
    """The origin of the model's times, in one line."""
    files = parquet_files(path) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(file_sha256(file)))
    told = records.source
    text = (
        f"measured: {len(records.samples)} frames of device records {digest.hexdigest()[:16]} up "
        f"to {told.get('created')} on {told.get('cpu')}, {told.get('emulation')}"
    )
    if base is None:
        return text
    scales = " and ".join(
        f"{by:.3f} ({side})"
        for side, by in (("device", fit.device.scale), ("server", fit.server_scale))
        if by is not None
    )
    return f"{text}; what `filled` names: base {base.name} times {scales or '1'} ({base.source})"
