"""Foreign measurements as traces: which reader takes a file, and what it needs to be told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cnn.common.errors import ConfigError, DataError
from cnn.common.outside import read_text
from testbed.traces.gnettrack import read_gnettrack
from testbed.traces.iperf3 import read_iperf3
from testbed.traces.number_files import (
    UNITS,
    mahimahi_trace,
    read_byte_log,
    read_pensieve,
    read_rates,
)
from testbed.traces.recognise import IMPORTABLE, MAHIMAHI, UNKNOWN, Recognised, recognise
from testbed.traces.series import Measured, check_options, needs_rtt, trace_of
from testbed.traces.trace import Trace

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
"""Larger trace files are refused rather than read into memory."""

DIRECTIONS: Final = ("up", "down")

_TAKEN_BY: Final = {
    "direction": ("gnettrack", "iperf3"),
    "spacing_s": ("rates",),
    "unit": ("rates",),
}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a foreign file does not say.

    Attributes:
        format: a key of `IMPORTABLE`; None tells it by the content.
        rtt_ms: constant base round trip; None takes the file's own.
        tech: ``5G`` or ``LTE``; None takes what the file says, else LTE.
        direction: ``up`` or ``down``, for formats with both; None is ``up``.
        spacing_s: seconds between the lines of a file with one rate a line.
        unit: of such a file's rates.
        period_s: spacing of the trace, seconds.
    """

    format: str | None = None
    rtt_ms: float | None = None
    tech: str | None = None
    direction: str | None = None
    spacing_s: float | None = None
    unit: str | None = None
    period_s: float = 0.1


def import_trace(path: Path, options: ImportOptions) -> Trace:
    """A foreign file as a trace; `Trace.source` says what was counted on the way.

    Raises:
        ConfigError: an option is missing or unknown.
        DataError: the file is not of the format, or unclear.
    """
    _check("format", options.format, tuple(IMPORTABLE))
    _check("tech", options.tech, ("5G", "LTE"))
    _check("direction", options.direction, DIRECTIONS)
    _check("unit", options.unit, tuple(UNITS))
    check_options(options.rtt_ms, options.period_s)
    text = read_text(path, MAX_FILE_BYTES)
    name = options.format or _recognised(text, path)
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
    """What to say about a trace file that is not read as it is."""
    if found.name in IMPORTABLE:
        names = " or ".join(f"--format {name}" for name in found.ask or (found.name,))
        hint = f"import it: sliproad testbed traces import {path} --out FILE {names}"
    else:
        hint = f"sliproad testbed traces import reads {', '.join(IMPORTABLE)}"
    return DataError(
        f"{path}: {found.words}",
        expected="a trace of sliproad (JSON), samples (CSV) or a Mahimahi file",
        hint=hint,
    )


def _recognised(text: str, path: Path) -> str:
    """The name of the importable format that the text surely is in."""
    found = recognise(text, path.name)
    if found.name not in IMPORTABLE:
        raise DataError(
            f"{path}: {found.words}",
            expected=f"one of {', '.join(IMPORTABLE)}",
            hint="convert it to samples (CSV), see docs/traces.md"
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
    """An option that a format does not take was meant for something else."""
    for option, formats in _TAKEN_BY.items():
        if getattr(options, option) is not None and name not in formats:
            raise ConfigError(
                f"--{option.replace('_', '-')} with {IMPORTABLE[name]}",
                expected=f"it with {' or '.join(formats)} only",
                hint="leave it out, or give another --format",
            )


def _read(name: str, text: str, path: Path, options: ImportOptions) -> Measured:
    if name == "gnettrack":
        return read_gnettrack(text, path, options.direction or "up")
    if name == "iperf3":
        return read_iperf3(text, path, options.direction or "up")
    if name == "pensieve":
        return read_pensieve(text, path)
    if name == "rates":
        return read_rates(text, path, options.spacing_s, options.unit)
    return read_byte_log(text, path, name)
