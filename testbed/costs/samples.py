"""The frames of a campaign that a fit uses, and the powers behind their energy figures."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from cnn.common.errors import DataError
from cnn.topology import SHIPPED, Topology
from testbed.meters.cost_model import Floats
from testbed.meters.power import PowerProfile, RadioPower
from testbed.records.record_file import Records


@dataclass(frozen=True, slots=True)
class Stages:
    """Times of the stages of N frames; arrays (N,), milliseconds as measured.

    Attributes:
        action: int64, canonical number.
        head_ms, encode_ms: of the device; 0 without an encoder.
        compute_ms: the frame's time beyond exchange and server: the device's own time, with
            decision and Python overhead, which no single stage shows.
        transfer_ms, server_queue_ms, server_ms: of the exchange; 0 if local.
        delay_ms: without the wait for the device.
        energy_mj: NaN if it was not read.
        topology: of the network that ran.
    """

    action: NDArray[np.int64]
    head_ms: Floats
    encode_ms: Floats
    compute_ms: Floats
    transfer_ms: Floats
    server_queue_ms: Floats
    server_ms: Floats
    delay_ms: Floats
    energy_mj: Floats
    topology: Topology = field(default=SHIPPED, kw_only=True)

    def __len__(self) -> int:
        return len(self.action)

    def take(self, rows: NDArray[Any]) -> Self:
        """The rows `rows` (positions or mask)."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self.columns()})

    @classmethod
    def columns(cls) -> list[str]:
        """Names of the arrays."""
        return [column.name for column in fields(cls) if column.name != "topology"]


def topology_of(records: Records) -> Topology:
    """The network of a record file; raises `ValueError` if the file states none that is valid."""
    return Topology.stored_in(records.source)


def machine_of(source: dict[str, Any]) -> str:
    """Where a file's times were measured, in one line, as far as its provenance says."""
    told = [f"{source.get('cpu')}, {source.get('cpus')} cores, {source.get('platform')}"]
    told.append(f"onnxruntime {source.get('onnxruntime')}")
    if "providers" in source:
        told[-1] += f" ({', '.join(map(str, source['providers']))})"
    if source.get("server"):
        told.append(f"server {source['server']}")
    return "; ".join(told)


def stages_of(records: Records) -> dict[str, Any]:
    """The fields of `Stages`, by name, with every row of a file, used or not."""
    exchange = ("transfer_ms", "server_queue_ms", "server_ms")
    times = {name: np.nan_to_num(records.numbers(name)) for name in ("encode_ms", *exchange)}
    delay_ms = records.numbers("delay_ms") - records.numbers("queue_ms")
    compute_ms = delay_ms - times["transfer_ms"] - times["server_queue_ms"] - times["server_ms"]
    return {
        "action": records.numbers("action").astype(np.int64),
        "head_ms": records.numbers("head_ms"),
        "compute_ms": compute_ms,
        "delay_ms": delay_ms,
        "energy_mj": records.numbers("energy_mj"),
        "topology": topology_of(records),
        **times,
    }


@dataclass(frozen=True, slots=True)
class Samples(Stages):
    """The used frames of a campaign: answered as decided, warm-up excluded.

    Attributes:
        condition: str, name of the link.
        round: int64.
        uplink_mbps, rtt_ms: of the link.
    """

    condition: NDArray[np.str_]
    round: NDArray[np.int64]
    uplink_mbps: Floats
    rtt_ms: Floats


def samples_of(records: Records) -> Samples:
    """Read the data for a fit from campaign records.

    Raises:
        DataError: if this is not a campaign, or an action or condition has no frame.
    """
    if records.source.get("kind") != "campaign":
        raise DataError(
            f"records of kind {records.source.get('kind')!r}",
            expected="records of `sliproad testbed campaign`",
            hint="run a campaign first",
        )
    use = (records.texts("status") == "ok") & ~np.array(records.table["warm_up"].to_pylist(), bool)
    condition, links = records.texts("condition"), records.source["conditions"]
    samples = Samples(
        **stages_of(records),
        condition=condition,
        round=records.numbers("round").astype(np.int64),
        uplink_mbps=np.array([links[c]["uplink_mbps"] for c in condition], np.float64),
        rtt_ms=np.array([links[c]["rtt_ms"] for c in condition], np.float64),
    ).take(use)
    n_actions = samples.topology.n_actions
    for name in np.unique(samples.condition):
        seen = np.unique(samples.action[samples.condition == name])
        if len(seen) < n_actions:
            raise DataError(
                f"condition {name} with answered frames of {len(seen)} actions",
                expected=f"of all {n_actions}",
                hint="repeat the campaign with a longer --timeout-ms",
            )
    if not len(samples):
        raise DataError("no answered frames", expected="a campaign", hint="repeat the campaign")
    return samples


def payloads_of(records: Records) -> Floats:
    """Payload bytes actually sent by each action, float64 (n_actions,)."""
    action = records.numbers("action").astype(np.int64)
    sent, n_actions = records.numbers("uplink_bytes"), topology_of(records).n_actions
    return np.array([sent[action == a].max(initial=0.0) for a in range(n_actions)])


@dataclass(frozen=True, slots=True)
class Powers:
    """Powers in the energy model, milliwatts, with their source.

    ``fitted`` ones come from a hardware meter's readings, other ones from a publication.
    """

    idle_mw: float
    busy_mw: float
    radio: RadioPower
    source: str
    fitted: bool = False

    def energy_mj(self, compute_ms: Floats, away_ms: Floats, sent_bytes: Floats) -> Floats:
        """Modelled energy of frames with an exchange of `away_ms` (0 if local)."""
        device_mj = (self.busy_mw * compute_ms + self.idle_mw * away_ms) / 1e3
        radio = self.radio
        return device_mj + (radio.active_mw * away_ms / 1e3 + radio.mj_per_byte * sent_bytes)


def powers_of(records: Records, samples: Samples) -> Powers:
    """Powers that the energy model uses.

    With the model meter they are those behind the energy figures. With a hardware
    meter the device's two powers are fitted, and no modem is included.

    Raises:
        DataError: if the campaign has no energy figures.
    """
    told = records.source
    if told["config"]["meter"] == "model":
        power = PowerProfile.of_json(told)
        device = power.device
        return Powers(device.idle_mw, device.busy_mw, power.radio, device.origin)
    powers = fit_powers(samples, samples.delay_ms, told["config"]["meter"])
    if powers is None:
        raise DataError(
            f"a campaign with meter {told['config']['meter']!r} and no energy figure",
            expected="energy of at least some frames",
            hint="use --meter model, or see `sliproad testbed doctor`",
        )
    return powers


def fit_powers(samples: Stages, window_ms: Floats, meter: str) -> Powers | None:
    """Idle and busy power from readings over windows of `window_ms`; None without a reading."""
    known = np.isfinite(samples.energy_mj) & np.isfinite(window_ms)
    if not known.any():
        return None
    columns = np.stack([samples.compute_ms, window_ms], 1)[known] / 1e3
    # busy = idle + extra with extra >= 0, so that busy is never below idle.
    extra_mw, idle_mw = nnls(columns, samples.energy_mj[known])[0].tolist()
    none = RadioPower("none", 0.0, 0.0, 0.0, 0.0, "the meter sees no modem")
    return Powers(idle_mw, idle_mw + extra_mw, none, f"fitted to {meter}", True)
