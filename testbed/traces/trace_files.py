"""Files of one trace: our own, and foreign measurements with the choice of their reader."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError, DataError
from cnn.common.outside import read_text
from cnn.common.plug_ins import plug_in, plug_in_names
from testbed.traces.gnettrack import read_gnettrack
from testbed.traces.iperf3 import read_iperf3
from testbed.traces.measured import (
    Measured,
    RoundTrips,
    check_options,
    constant_rtt,
    needs_rtt,
    trace_of,
)
from testbed.traces.named_columns import read_columns
from testbed.traces.number_files import (
    UNITS,
    mahimahi_trace,
    read_byte_log,
    read_pensieve,
    read_rates,
)
from testbed.traces.plugged_reader import read_plugged
from testbed.traces.recognise import (
    COLUMNS,
    IMPORTABLE,
    MAHIMAHI,
    OURS,
    RATES,
    READER_PLUG_INS,
    SAMPLES,
    UNKNOWN,
    Recognised,
    recognise,
)
from testbed.traces.sample_files import samples_of, techs_of
from testbed.traces.series import Floats, Series, generation
from testbed.traces.split_rule import day_in
from testbed.traces.trace import MAX_FILE_BYTES, Trace, trace_from_json

DIRECTIONS: Final = ("up", "down")
_TAKEN_BY: Final = {
    "direction": ("gnettrack", "iperf3"),
    "spacing_s": (RATES, COLUMNS),
    "unit": (RATES,),
    "columns": (COLUMNS,),
}
_OPTION: Final = {"columns": "column"}


def read_trace(
    path: Path,
    *,
    name: str | None = None,
    rtt_ms: float | None = None,
    period_s: float = 0.1,
) -> Trace:
    """One trace from a file: JSON (ours), CSV (samples) or Mahimahi, recognised by its content.

    Any of them may be packed with gzip. Files of other formats are refused by name
    (`import_trace` reads them).

    Args:
        path: the file.
        name: the trace to take from a CSV file with several.
        rtt_ms: constant base round trip, for files without one; replaces a file's own.
        period_s: spacing of traces read from CSV or Mahimahi files, seconds.

    Raises:
        DataError: the file cannot be read, or is of another format.
        ConfigError: `name` or `rtt_ms` is needed and was not given, or an argument is out of
            range.
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
        return trace_of(_one_of(_samples(text, path), path, name), rtt_ms, period_s, path)
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
        rtt_ms=constant_rtt(rtt_ms)("", len(trace.rtt_ms), trace.period_s)[0],
        source=f"{trace.source}; constant round trip {rtt_ms:g} ms set by hand",
    )


@dataclass(frozen=True, slots=True)
class FileTrace:
    """A trace as its file has it.

    Attributes:
        trace: the trace.
        day: date on which it was measured; empty if neither content nor name tells.
        own_rtt: whether its round trips are the file's own.
    """

    trace: Trace
    day: str
    own_rtt: bool


class NoTraceError(DataError):
    """A file that is no text, or in none of the formats that are known."""


def traces_in(path: Path, rtt: RoundTrips, period_s: float) -> list[FileTrace]:
    """All traces with some capacity in a file whose content tells its format.

    Uplink rates are taken where a format has both directions.

    Args:
        path: a file of any format of `read_trace`, or of `IMPORTABLE` or a plug-in if the content
            is clear.
        rtt: round trips of traces without their own.
        period_s: spacing of the traces, seconds.

    Raises:
        NoTraceError: it is no such file.
        DataError: it is one, with wrong content, or it could be of two formats.
        ConfigError: the plug-in that recognised it fails.
    """
    try:
        text = read_text(path, MAX_FILE_BYTES)
    except DataError as error:
        raise NoTraceError(error) from error
    found = recognise(text, path.name)
    if found.name == UNKNOWN:
        raise NoTraceError(foreign_format(path, found))
    if found.ask or found.name == RATES:
        raise foreign_format(path, found)
    if found.name == OURS:
        trace = _read_json(text, path, None)
        return [FileTrace(trace, day_in(path.name, trace.name), True)]
    if found.name == MAHIMAHI:
        return [FileTrace(mahimahi_trace(text, path, rtt, period_s), day_in(path.name), False)]
    every = (
        _samples(text, path)
        if found.name == SAMPLES
        else {"": _read(found.name, text, path, ImportOptions())}
    )
    return [
        FileTrace(
            trace_of(each, None, period_s, path, otherwise=rtt),
            each.day or day_in(each.name, path.name),
            each.rtt is not None,
        )
        for each in every.values()
        if each.has_capacity
    ]


def _samples(text: str, path: Path) -> dict[str, Measured]:
    """The traces with an uplink in a file of samples, each sample lasting until the next."""
    found = samples_of(text, path, "uplink_mbps", "rtt_ms")
    techs = techs_of(text, path)
    return {
        name: _measured(name, path, columns, *techs[name])
        for name, columns in found.items()
        if np.isfinite(columns[1]).any()
    }


def _one_of(rates: dict[str, Measured], path: Path, name: str | None) -> Measured:
    """The trace of that name, or the only one."""
    if name is None and len(rates) == 1:
        (name,) = rates
    if name is None or name not in rates:
        raise ConfigError(
            f"{'no trace name' if name is None else f'trace name {name}'} for {path}",
            expected=f"one of its {len(rates)} traces with an uplink, such as "
            f"{', '.join(list(rates)[:3])}",
            hint="give --trace-name",
        )
    return rates[name]


def _measured(
    name: str, path: Path, columns: tuple[Floats, ...], tech: str, mixed: str
) -> Measured:
    time, uplink, rtt_ms = columns
    spacing_s = float(np.median(np.diff(time))) if len(time) > 1 else 1.0
    end = np.minimum(np.append(time[1:], np.inf), time + spacing_s)
    pings = None
    if np.isfinite(rtt_ms).any():
        pings = Series(name, path.name, "rtt", "", "", "", time, rtt_ms, spacing_s)
    notes = (mixed,) if mixed else ()
    return Measured(name, path.name, tech or generation(name), time, end, uplink, pings, notes)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Data that a foreign file does not contain.

    Attributes:
        format: a key of `IMPORTABLE`, or a plug-in; None recognises it by the content.
        rtt_ms: constant base round trip; None takes the file's own.
        tech: ``5G`` or ``LTE``; None takes the file's, else LTE.
        direction: ``up`` or ``down``, for formats with both; None is ``up``.
        spacing_s: seconds between the lines of a file with one rate a line, or of a table
            without a column of times.
        unit: of such a file's rates.
        period_s: spacing of the trace, seconds.
        columns: what stands in which column of a table (`testbed.traces.named_columns`); names
            the format by itself.
    """

    format: str | None = None
    rtt_ms: float | None = None
    tech: str | None = None
    direction: str | None = None
    spacing_s: float | None = None
    unit: str | None = None
    period_s: float = 0.1
    columns: tuple[str, ...] | None = None


def import_trace(path: Path, options: ImportOptions) -> Trace:
    """A foreign file as a trace; `Trace.source` has the counts made on the way.

    Raises:
        ConfigError: an option is missing or unknown, or the plug-in fails.
        DataError: the file is not of the format, or unclear.
    """
    if options.format is not None and plug_in(READER_PLUG_INS, options.format) is None:
        _check("format", options.format, tuple(_formats()))
    _check("tech", options.tech, ("5G", "LTE"))
    _check("direction", options.direction, DIRECTIONS)
    _check("unit", options.unit, tuple(UNITS))
    check_options(options.rtt_ms, options.period_s)
    text = read_text(path, MAX_FILE_BYTES)
    name = options.format or (COLUMNS if options.columns else _recognised(text, path))
    _refuse_unused(name, options)
    if name == MAHIMAHI:
        if options.rtt_ms is None:
            raise needs_rtt(path)
        trace = mahimahi_trace(text, path, options.rtt_ms, options.period_s)
        return replace(trace, tech=options.tech or trace.tech)
    measured = _read(name, text, path, options)
    measured = replace(measured, tech=options.tech or measured.tech)
    return trace_of(measured, options.rtt_ms, options.period_s, path)


def foreign_format(path: Path, found: Recognised) -> DataError:
    """The error for a trace file that must be imported first."""
    if found.is_importable:
        names = " or ".join(f"--format {name}" for name in found.ask or (found.name,))
        hint = f"import it: sliproad testbed traces import {path} --out FILE {names}"
    else:
        hint = f"sliproad testbed traces import reads {', '.join(_formats())}"
    return DataError(
        f"{path}: {found.words}",
        expected="a trace of sliproad (JSON), samples (CSV) or a Mahimahi file",
        hint=hint,
    )


def _recognised(text: str, path: Path) -> str:
    """The name of the importable format that the text certainly has."""
    found = recognise(text, path.name)
    if not found.is_importable:
        raise DataError(
            f"{path}: {found.words}",
            expected=f"one of {', '.join(_formats())}",
            hint="name its columns with --column if it is a table, see docs/traces.md"
            if found.name == UNKNOWN
            else "sliproad testbed link reads it as it is",
        )
    if found.ask:
        raise ConfigError(
            f"{path}: {found.words}",
            expected="to be told the format",
            hint=f"give {' or '.join(f'--format {name}' for name in found.ask)}",
        )
    return found.name


def _check(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ConfigError(
            f"--{option} {value}", expected=f"one of {', '.join(known)}", hint="correct it"
        )


def _refuse_unused(name: str, options: ImportOptions) -> None:
    """Refuse options that the format does not use."""
    for option, formats in _TAKEN_BY.items():
        if getattr(options, option) is not None and name not in formats:
            raise ConfigError(
                f"--{_OPTION.get(option, option.replace('_', '-'))} with "
                f"{IMPORTABLE.get(name, f'the plug-in {name}')}",
                expected=f"it with {' or '.join(formats)} only",
                hint="leave it out, or give another --format",
            )


def _formats() -> list[str]:
    return [*IMPORTABLE, *plug_in_names(READER_PLUG_INS)]


def _read(name: str, text: str, path: Path, options: ImportOptions) -> Measured:
    if (plugged := plug_in(READER_PLUG_INS, name)) is not None:
        return read_plugged(plugged, text, path)
    if name == "gnettrack":
        return read_gnettrack(text, path, options.direction or "up")
    if name == "iperf3":
        return read_iperf3(text, path, options.direction or "up")
    if name == "pensieve":
        return read_pensieve(text, path)
    if name == COLUMNS:
        return read_columns(text, path, options.columns or (), options.spacing_s)
    if name == RATES:
        return read_rates(text, path, options.spacing_s, options.unit)
    return read_byte_log(text, path, name)
