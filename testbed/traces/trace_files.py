"""Trace files of one trace: our own JSON, sample CSVs, Mahimahi packet-delivery files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from cnn.common.errors import ConfigError, DataError
from cnn.common.files import write_text
from cnn.common.outside import read_text
from testbed.traces.number_files import mahimahi_trace
from testbed.traces.number_files import read_mahimahi as read_mahimahi
from testbed.traces.recognise import MAHIMAHI, OURS, SAMPLES, recognise
from testbed.traces.sample_files import samples_of, techs_of
from testbed.traces.series import Measured, Series, check_options, generation, needs_rtt, trace_of
from testbed.traces.trace import Trace
from testbed.traces.trace_files import MAX_FILE_BYTES, foreign_format

FORMAT: Final = "sliproad-trace-1"


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all; raises `DataError` if it cannot be."""
    write_text(path, json.dumps(content) + "\n")


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


def save_trace(trace: Trace, path: Path) -> None:
    """Write one trace as JSON."""
    write_json(path, trace_to_json(trace))


def read_trace(
    path: Path,
    *,
    name: str | None = None,
    rtt_ms: float | None = None,
    period_s: float = 0.1,
) -> Trace:
    """One trace from a file: JSON (ours), CSV (samples) or Mahimahi, told by its content.

    Any of them may be packed with gzip. Files of other formats are refused by name
    (`testbed.traces.trace_files` reads them).

    Args:
        path: the file.
        name: which trace of a CSV file that holds several.
        rtt_ms: constant base round trip, for files without one; replaces a file's own.
        period_s: spacing of traces read from CSV or Mahimahi files, seconds.

    Raises:
        DataError: the file cannot be read, or is of another format.
        ConfigError: `name` or `rtt_ms` is needed and was not given, or an argument is no such
            figure.
    """
    check_options(rtt_ms, period_s)
    text = read_text(path, MAX_FILE_BYTES)
    found = recognise(text, path.name)
    if name is not None and found.name in (OURS, MAHIMAHI):
        raise ConfigError(
            f"--trace-name {name} for {path}",
            expected="it with a file of several traces",
            hint="leave it out",
        )
    if found.name == OURS:
        return _read_json(text, path, rtt_ms)
    if found.name == SAMPLES:
        return trace_of(_samples(text, path, name), rtt_ms, period_s, path)
    if found.name != MAHIMAHI or found.ask:
        raise foreign_format(path, found)
    if rtt_ms is None:
        raise needs_rtt(path)
    return mahimahi_trace(text, path, rtt_ms, period_s)


def _read_json(text: str, path: Path, rtt_ms: float | None) -> Trace:
    try:
        raw = json.loads(text)
        trace = trace_from_json(raw.get("trace", raw), str(path))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: {error}", expected="a JSON trace", hint="write it again"
        ) from error
    if rtt_ms is None:
        return trace
    return replace(
        trace,
        rtt_ms=np.full(len(trace.rtt_ms), float(rtt_ms)),
        source=f"{trace.source}; constant round trip {rtt_ms:g} ms by hand",
    )


def _samples(text: str, path: Path, name: str | None) -> Measured:
    """One trace of a file of samples, from each sample to the next."""
    found = samples_of(text, path, "uplink_mbps", "rtt_ms")
    rates = [n for n, (_, uplink, _) in found.items() if np.isfinite(uplink).any()]
    if name is None and len(rates) == 1:
        name = rates[0]
    if name is None or name not in rates:
        raise ConfigError(
            f"{'no trace name' if name is None else f'trace name {name}'} for {path}",
            expected=f"one of its {len(rates)} traces with an uplink, such as "
            f"{', '.join(rates[:3])}",
            hint="give --trace-name",
        )
    time, uplink, rtt_ms = found[name]
    spacing_s = float(np.median(np.diff(time))) if len(time) > 1 else 1.0
    end = np.minimum(np.append(time[1:], np.inf), time + spacing_s)
    pings = None
    if np.isfinite(rtt_ms).any():
        pings = Series(name, path.name, "rtt", "", "", "", time, rtt_ms, spacing_s)
    tech = techs_of(text, path)[name] or generation(name)
    return Measured(name, path.name, tech, time, end, uplink, pings)
