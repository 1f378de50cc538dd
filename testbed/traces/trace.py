"""A network trace: uplink capacity and base round trip over time, and its JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.common.files import write_text

FORMAT: Final = "sliproad-trace-1"
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
"""Larger trace files are refused instead of read into memory."""
MAX_SAMPLES: Final = 10_000_000
"""Longer traces are refused where files are read: a week at 0.1 s is 6 million."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Piecewise-constant uplink capacity and base RTT, repeated after its end.

    Sample i holds from ``i * period_s`` to ``(i + 1) * period_s``.

    Attributes:
        uplink_mbps: float64 (T,), capacity, 1e6 bit/s; 0 is an outage.
        rtt_ms: float64 (T,), round trip of a tiny packet on an idle link, milliseconds.
        period_s: duration of one sample, seconds.
        name: such as ``sa24-20241101-145730`` or ``generated:urban-5g:7``.
        tech: ``5G`` or ``LTE``.
        source: ``measured`` or ``generated``, and which sets were joined.
    """

    uplink_mbps: NDArray[np.float64]
    rtt_ms: NDArray[np.float64]
    period_s: float
    name: str
    tech: str
    source: str

    def __post_init__(self) -> None:
        up, rtt = self.uplink_mbps, self.rtt_ms
        ok = up.ndim == 1 and up.shape == rtt.shape and len(up) > 0 and 0 < self.period_s < np.inf
        if not ok or not (np.isfinite(up).all() and np.isfinite(rtt).all()):
            raise DataError(
                f"trace {self.name}: {up.size} capacities, {rtt.size} round trips, "
                f"period {self.period_s} s",
                expected="two finite series of one equal length and a positive period",
                hint="check the trace file for gaps",
            )
        if up.min() < 0 or rtt.min() < 0 or up.max() == 0:
            raise DataError(
                f"trace {self.name}: capacity {up.min():g} to {up.max():g} Mbit/s, "
                f"round trips from {rtt.min():g} ms",
                expected="no negative values and some capacity",
                hint="check the units of the trace file",
            )

    @property
    def duration_s(self) -> float:
        """Length of one pass, seconds."""
        return len(self.uplink_mbps) * self.period_s


def n_samples(length_s: float, period_s: float, name: str) -> int:
    """Number of samples of about `period_s` that fill `length_s`, at least 1.

    Raises:
        DataError: if they are more than `MAX_SAMPLES`.
    """
    count = length_s / period_s
    if not 0 < count <= MAX_SAMPLES:
        raise DataError(
            f"trace {name}: {length_s:.4g} s in samples of {period_s:g} s",
            expected=f"at most {MAX_SAMPLES} samples",
            hint="check the unit of its times, cut it, or ask for longer samples",
        )
    return max(1, round(count))


def constant_trace(uplink_mbps: float, rtt_ms: float) -> Trace:
    """A trace of one sample: the same capacity and round trip for ever."""
    return Trace(
        uplink_mbps=np.array([float(uplink_mbps)]),
        rtt_ms=np.array([float(rtt_ms)]),
        period_s=1.0,
        name=f"constant:{uplink_mbps:g}-mbps:{rtt_ms:g}-ms",
        tech="5G",
        source="generated: constant",
    )


def trace_to_json(trace: Trace) -> dict[str, Any]:
    """A plain dictionary that `trace_from_json` reads back exactly."""
    return {
        "format": FORMAT,
        "name": trace.name,
        "tech": trace.tech,
        "source": trace.source,
        "period_s": trace.period_s,
        "uplink_mbps": trace.uplink_mbps.tolist(),
        "rtt_ms": trace.rtt_ms.tolist(),
    }


def trace_from_json(raw: dict[str, Any], where: str) -> Trace:
    """A trace from `trace_to_json`'s dictionary; `where` names the source in errors."""
    try:
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}")
        return Trace(
            uplink_mbps=np.asarray(raw["uplink_mbps"], dtype=np.float64),
            rtt_ms=np.asarray(raw["rtt_ms"], dtype=np.float64),
            period_s=float(raw["period_s"]),
            name=str(raw["name"]),
            tech=str(raw["tech"]),
            source=str(raw["source"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        said = f"nothing under {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{where}: {said}",
            expected=f"a trace of format {FORMAT}",
            hint="write it again, or give another file",
        ) from error


def save_trace(trace: Trace, path: Path) -> None:
    """Write one trace as JSON, whole or not at all; raises `DataError` if that fails."""
    write_text(path, json.dumps(trace_to_json(trace)) + "\n")
