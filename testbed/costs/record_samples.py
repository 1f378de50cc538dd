"""Cost samples from the records of deployed devices: the frames that ran as decided.

Unlike a campaign, a device takes the actions that its policy prefers, on a link whose true state
was not recorded. Its records have the times of its own stages, of the server's stages and of the
exchange; they do not separate the fixed part of an exchange from the round trip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.common.outside import refusing
from testbed.costs.samples import Powers, Stages, fit_powers, stages_of
from testbed.meters.cost_model import Floats
from testbed.meters.power import PowerProfile, power_profile
from testbed.records.record_file import Records

COLUMNS: Final = (
    "frame_id",
    "action",
    "captured_s",
    "queue_ms",
    "head_ms",
    "encode_ms",
    "transfer_ms",
    "server_queue_ms",
    "server_ms",
    "delay_ms",
    "uplink_bytes",
    "energy_mj",
    "energy_source",
    "status",
    "looks",
    "bundle_hash",
    "condition",
    "round",
    "warm_up",
)
"""Columns that a fit to a campaign or a device's records reads; the last four are not in both."""
MAX_ROWS: Final = 500_000
"""Maximum rows of a fit, each about 1.5 KB of memory; a day's at 5 frames a second."""
_HASH_DIGITS: Final = 12
"""Digits of a network's hash in the rows of an unattended device."""


@dataclass(frozen=True, slots=True)
class RecordSamples(Stages):
    """Frames in the order in which they were recorded; the device's times at its slowdown.

    Attributes:
        looks: int64, exits that a staged policy evaluated, as in `Measurement`.
        window_ms: time until the next frame began; NaN if not recorded.
        uplink_bytes: payload.
    """

    looks: NDArray[np.int64]
    window_ms: Floats
    uplink_bytes: Floats


@dataclass(frozen=True, slots=True)
class DeviceRecords:
    """The records of devices of one kind, with one network.

    Attributes:
        samples: frames used.
        bundle_hash: of the network; its first twelve digits if no file states the whole.
        slowdown: emulated slowdown of the device.
        energy_source: meter of the energies; empty without one.
        left_out: number of frames not used, by reason.
        source: provenance of the newest file.
    """

    samples: RecordSamples
    bundle_hash: str
    slowdown: float
    energy_source: str
    left_out: dict[str, int]
    source: dict[str, Any]


def device_records(runs: Sequence[Records]) -> DeviceRecords:
    """Read the data for a fit from the record files of deployed devices.

    Only frames of the newest network that ran as decided are used: no skipped frame, no fallback,
    and no frame that was sent encoded (the cost model covers raw ones).

    Raises:
        DataError: if a file is of another kind, the devices have different slowdowns, or no
            frame can be used.
        ConfigError: if files state different forms of one network.
    """
    kinds = sorted({str(r.source.get("kind")) for r in runs})
    if kinds != ["device"]:
        raise DataError(
            f"records of kind {', '.join(kinds)}",
            expected="one campaign, or records of deployed devices alone",
            hint="give the file of `sliproad testbed campaign`, or a folder of device records",
        )
    slowdowns = {float(r.source.get("slowdown", 1.0)) for r in runs}  # from older records
    emulations = {str(r.source.get("emulation", "as it is")) for r in runs}
    if len(slowdowns) > 1 or len(emulations) > 1:
        raise DataError(
            f"records of devices {', '.join(sorted(emulations))}, "
            f"slowed down by {', '.join(f'{s:g}' for s in sorted(slowdowns))}",
            expected="one kind of device",
            hint="fit them apart",
        )
    networks = [_networks(r) for r in runs]
    last = next((n[-1] for n in reversed(networks) if len(n)), "")
    left_out, sources = Counter[str](), Counter[str]()
    parts, meters = [], []
    for records, network in zip(runs, networks, strict=True):
        samples = _samples(records)
        keep = _kept(records, samples, network == last, left_out)
        parts.append(samples.take(keep))
        meters.append(records.texts("energy_source")[keep])
        sources.update(meters[-1][np.isfinite(parts[-1].energy_mj)].tolist())
    meter = sources.most_common(1)[0][0] if sources else ""
    for part, read_by in zip(parts, meters, strict=True):
        part.energy_mj[read_by != meter] = np.nan
    used = [part for part in parts if len(part)]
    if not used:
        raise DataError(
            f"records without a frame that ran as decided ({dict(left_out)})",
            expected="frames with status ok",
            hint="record a longer drive",
        )
    topology = used[-1].topology
    for part in used:
        topology.require_same(part.topology, "records", f"newer ones of network {last}")
    samples = RecordSamples(
        *(np.concatenate([getattr(p, name) for p in used]) for name in RecordSamples.columns()),
        topology=topology,
    )
    told = [str(r.source.get("bundle_hash", "")) for r in runs]
    whole = next((h for h in told if h.startswith(last) and len(h) > _HASH_DIGITS), last)
    return DeviceRecords(
        samples, whole, slowdowns.pop(), meter, dict(left_out), dict(runs[-1].source)
    )


def _networks(records: Records) -> NDArray[np.str_]:
    """First digits of the network's hash, one a row; empty where the row has none."""
    if "bundle_hash" in records.table.column_names:
        return np.array([h or "" for h in records.table["bundle_hash"].to_pylist()], np.str_)
    told = str(records.source.get("bundle_hash", ""))[:_HASH_DIGITS]
    return np.full(len(records), told)


def _kept(
    records: Records,
    samples: RecordSamples,
    same_network: NDArray[np.bool_],
    left_out: Counter[str],
) -> NDArray[np.bool_]:
    """Mask of the rows used; counts the others in `left_out` by reason."""
    status = records.texts("status")
    sends_frame = (samples.topology.split_of == 0)[samples.action]
    encoded = sends_frame & np.isfinite(records.numbers("encode_ms"))
    keep = np.ones(len(records), bool)
    for reason, bad in (
        ("skipped", status == "skipped"),
        ("another network", ~same_network),
        ("fallback", status == "fallback"),
        ("encoded frame", encoded),
    ):
        if (keep & bad).any():
            left_out[reason] += int((keep & bad).sum())
        keep &= ~bad
    return keep


def _samples(records: Records) -> RecordSamples:
    """Every row of a file, used or not."""
    start_ms = records.numbers("captured_s") * 1e3 + records.numbers("queue_ms")
    window_ms = np.full(len(records), np.nan)
    follows = np.diff(records.numbers("frame_id")) == 1
    window_ms[:-1][follows] = np.diff(start_ms)[follows]
    return RecordSamples(
        **stages_of(records),
        looks=records.numbers("looks").astype(np.int64),
        window_ms=window_ms,
        uplink_bytes=records.numbers("uplink_bytes"),
    )


def powers_of_devices(records: DeviceRecords) -> Powers | None:
    """Powers behind the energy figures; None if there are none.

    With the model meter they are those behind the figures: of the provenance, or of a shipped
    profile that it names. With a hardware meter
    the device's two powers are fitted over whole windows, from one frame's start to the next
    one's, and no modem is included.
    """
    kind, _, profile = records.energy_source.partition(":")
    if kind == "model" and profile:
        told = _stated_profile(records.source)
        if told is None or told.name != profile:
            told = power_profile(profile)
        return Powers(told.device.idle_mw, told.device.busy_mw, told.radio, told.device.origin)
    if not records.energy_source:
        return None
    return fit_powers(records.samples, records.samples.window_ms, records.energy_source)


def _stated_profile(source: dict[str, Any]) -> PowerProfile | None:
    """The powers that a record file states; None in older ones. Raises `DataError` if damaged."""
    if "device_power" not in source:
        return None
    with refusing(
        DataError, "powers in the records", expected="a device and a modem", hint="measure again"
    ):
        return PowerProfile.of_json(source)
