"""Trace files of one trace: our own JSON, Mahimahi packet-delivery files, sample CSVs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from cnn.errors import ConfigError, DataError
from testbed.traces.sample_files import read_columns
from testbed.traces.series import Series, answered, cut_at_gaps, generation, resample, tile
from testbed.traces.trace import Trace

FORMAT: Final = "sliproad-trace-1"

MAHIMAHI_BITS: Final = 1500 * 8
"""Bits of one packet-delivery opportunity (mahimahi's link shells send one MTU in each)."""

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
"""Larger trace files are refused rather than read into memory."""


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
            raise ValueError(f"format {raw['format']!r}")
        return Trace(
            uplink_mbps=np.asarray(raw["uplink_mbps"], dtype=np.float64),
            rtt_ms=np.asarray(raw["rtt_ms"], dtype=np.float64),
            period_s=float(raw["period_s"]),
            name=str(raw["name"]),
            tech=str(raw["tech"]),
            source=str(raw["source"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {type(error).__name__} {error}",
            expected=f"a trace of format {FORMAT}",
            mend="write it again, or give another file",
        ) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all."""
    write_text(path, json.dumps(content) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all; raises `DataError` if that fails."""
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}",
            expected="a path that can be written",
            mend="choose a file in a folder of yours",
        ) from error


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


def read_mahimahi(path: Path, rtt_ms: float, period_s: float = 0.1) -> Trace:
    """A Mahimahi packet-delivery file as a trace.

    Each line is a time in milliseconds at which one 1500-byte packet can leave; the file
    repeats after its last line. Opportunities are counted in bins of `period_s`; the last
    bin is as long as the others, so a pass may be up to one period longer than the file's.

    Args:
        path: text file.
        rtt_ms: base round trip, which such files do not hold.
        period_s: spacing of the trace, seconds.
    """
    try:
        times_ms = np.array([int(line) for line in _text(path).split()], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: {error}",
            expected="one whole number of milliseconds a line (a Mahimahi file)",
            mend="check the file, or name it .csv or .json if it is one",
        ) from error
    if len(times_ms) == 0 or times_ms[0] < 0 or (np.diff(times_ms) < 0).any() or not times_ms[-1]:
        raise DataError(
            f"{path}: {len(times_ms)} times, not rising from 0 up to a positive end",
            expected="rising times in milliseconds (a Mahimahi file)",
            mend="check the file",
        )
    if times_ms[-1] > 7 * 24 * 3600 * 1000:
        raise DataError(
            f"{path}: lasts {times_ms[-1] / 3.6e6:.0f} h",
            expected="at most a week",
            mend="check that the times are milliseconds",
        )
    bins = int(np.ceil(times_ms[-1] / (period_s * 1e3) - 1e-9))
    # A time on a border belongs to the bin that it ends, so that the last line has a bin.
    at = np.maximum(np.ceil(times_ms / (period_s * 1e3) - 1e-9).astype(np.int64) - 1, 0)
    capacity = np.bincount(at, minlength=bins) * MAHIMAHI_BITS / period_s / 1e6
    return Trace(
        uplink_mbps=capacity,
        rtt_ms=np.full(bins, float(rtt_ms)),
        period_s=period_s,
        name=path.name,
        tech="LTE",
        source=f"measured: mahimahi file {path.name}, constant round trip {rtt_ms:g} ms by hand",
    )


def read_trace(
    path: Path,
    *,
    name: str | None = None,
    rtt_ms: float | None = None,
    period_s: float = 0.1,
) -> Trace:
    """One trace from a file: JSON (ours), CSV or CSV.gz (samples), else Mahimahi.

    Args:
        path: the file.
        name: which trace of a CSV file that holds several.
        rtt_ms: constant base round trip, for files without one; replaces a file's own.
        period_s: spacing of traces read from CSV or Mahimahi files, seconds.

    Raises:
        DataError: the file cannot be read, or has gaps that would cut the trace.
        ConfigError: `name` or `rtt_ms` is needed and was not given.
    """
    if path.suffix == ".json":
        return _read_json(path, rtt_ms)
    if path.name.endswith((".csv", ".csv.gz")):
        return _read_csv(path, name, rtt_ms, period_s)
    if rtt_ms is None:
        raise _needs_rtt(path)
    return read_mahimahi(path, rtt_ms, period_s)


def _read_json(path: Path, rtt_ms: float | None) -> Trace:
    try:
        raw = json.loads(_text(path))
        trace = trace_from_json(raw.get("trace", raw), str(path))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: {error}", expected="a JSON trace", mend="write it again"
        ) from error
    if rtt_ms is None:
        return trace
    return replace(
        trace,
        rtt_ms=np.full(len(trace.rtt_ms), float(rtt_ms)),
        source=f"{trace.source}; constant round trip {rtt_ms:g} ms by hand",
    )


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes",
                expected=f"at most {MAX_FILE_BYTES}",
                mend="cut the trace",
            )
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: {error}", expected="a readable text file", mend="check the path"
        ) from error


def _needs_rtt(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} has no round trips", expected="a base round trip", mend="give --rtt-ms"
    )


def _read_csv(path: Path, name: str | None, rtt_ms: float | None, period_s: float) -> Trace:
    uplinks = read_columns(path, "uplink_mbps")
    rates = {n: s for n, s in uplinks.items() if np.isfinite(s[1]).any()}
    if name is None and len(rates) == 1:
        name = next(iter(rates))
    if name is None or name not in rates:
        some = ", ".join(list(rates)[:3])
        raise ConfigError(
            f"trace name {name!r} in {path}",
            expected=f"one of its {len(rates)} traces with an uplink, such as {some}",
            mend="give --trace-name",
        )
    pieces = cut_at_gaps(_series(path, name, "ul", rates[name], period_s))
    # The longest piece: holding a value over a long gap would invent capacity.
    longest = max(pieces, key=lambda piece: len(piece.values))
    capacity = resample(longest, period_s)
    if rtt_ms is not None:
        rtt = np.full(len(capacity), float(rtt_ms))
        origin = f"constant round trip {rtt_ms:g} ms set by hand"
    else:
        own = read_columns(path, "rtt_ms")[name]
        if not np.isfinite(own[1]).any():
            raise _needs_rtt(path)
        pings = answered(_series(path, name, "rtt", own, period_s))
        rtt = tile(resample(pings, period_s), len(capacity))
        origin = "its own round trips"
    return Trace(
        uplink_mbps=capacity,
        rtt_ms=rtt,
        period_s=period_s,
        name=longest.name,
        tech=generation(name),
        source=f"measured: uplink {longest.name} of {path.name}, {origin}",
    )


def _series(path: Path, name: str, kind: str, columns: tuple[Any, Any], period_s: float) -> Series:
    time, values = columns
    spacing = float(np.median(np.diff(time))) if len(time) > 1 else period_s
    return Series(name, path.name, kind, "", "", "", time, values, spacing)
