"""iperf3's JSON (``--json``, ``--json-stream``).

An interval has a ``sum`` of its streams with ``start``, ``end`` (s) and ``bytes``; with
``--bidir`` also ``sum_bidir_reverse``. ``omitted`` intervals are TCP's start (``--omit``); one
without length or bytes may end a test.
A failed test has ``error``, and the intervals up to then (esnet/iperf, ``src/iperf_api.c``).
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from cnn.common.errors import DataError
from testbed.traces.measured import Measured

_NAN: Final = re.compile(r"(?<=:)\s*-?nan\b(?=\s*[,}\]])")
"""iperf3 prints a share of 0 as -nan, which is not JSON (esnet/iperf issue 613)."""
_OVERLAP_S: Final = 0.001


def read_iperf3(text: str, path: Path, direction: str) -> Measured:
    """A test's rates of one direction (``up`` or ``down``, as the client sees it).

    Raises:
        DataError: the file is not a whole test, the test failed, or has no data of this direction.
    """
    test = _test(text, path)
    try:
        return _measured(test, path, direction)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: iperf3 JSON without what an interval has ({error})",
            expected="intervals with sum, start, end and bytes",
            hint="run iperf3 with --json again",
        ) from error


def _measured(test: dict[str, Any], path: Path, direction: str) -> Measured:
    intervals, error = test.get("intervals", []), test.get("error")
    if not intervals:
        raise DataError(
            f"{path}: an iperf3 test without intervals ({error or 'no error named'})",
            expected="a test that ran",
            hint="measure again",
        )
    rows: list[tuple[float, float, float]] = []
    numbers: list[int] = []
    directions, omitted = set(), 0
    for number, interval in enumerate(intervals, start=1):
        for key in ("sum", "sum_bidir_reverse"):
            if key not in interval:
                continue
            part = interval[key]
            way = _direction(test, interval, key)
            directions.add(way)
            row = float(part["start"]), float(part["end"]), float(part["bytes"])
            if part.get("omitted", False):
                omitted += way == direction
            elif way == direction and (row[1] > row[0] or row[2] > 0):
                rows.append(row)
                numbers.append(number)
    if not rows:
        raise DataError(
            f"{path}: an iperf3 test with {' and '.join(sorted(directions)) or 'no'} rates only"
            f"{f', {omitted} of them omitted' if omitted else ''}",
            expected=f"rates of direction {direction}",
            hint=f"give --direction {'down' if direction == 'up' else 'up'}, or measure again",
        )
    start, end, size = np.array(rows).T
    if (end <= start).any() or (start[1:] < end[:-1] - _OVERLAP_S).any() or size.min() < 0:
        raise DataError(
            f"{path}: iperf3 intervals that overlap or last no time",
            expected="one test",
            hint="split the file if it holds several tests",
        )
    mbps = 8e-6 * size / (end - start)
    notes = _notes(intervals, direction, omitted, error)
    # Edges of neighbours differ by rounding only.
    end = np.append(np.minimum(end[:-1], start[1:]), end[-1])
    return Measured(
        path.name,
        f"{path.name} (iperf3)",
        "",
        start - start[0],
        end - start[0],
        mbps,
        None,
        tuple(notes),
        np.array(numbers, np.int64),
        "interval",
        _day(test),
    )


def _day(test: dict[str, Any]) -> str:
    """The date (UTC) of a test's start; empty if the file does not state it."""
    try:
        seconds = float(test["start"]["timestamp"]["timesecs"])
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return ""


def _notes(
    intervals: list[dict[str, Any]], direction: str, omitted: int, error: object
) -> list[str]:
    notes = []
    if direction == "down":
        notes.append("download rates, taken as the uplink's")
    if omitted:
        notes.append(f"{omitted} omitted intervals left out")
    if error:
        notes.append(f"the test ended early: {' '.join(str(error).split())}")
    rtts_us = [s["rtt"] for one in intervals for s in one.get("streams", []) if s.get("rtt")]
    if rtts_us:
        rtt_ms = min(map(float, rtts_us)) / 1e3
        notes.append(f"its TCP round trips, under load, from {rtt_ms:g} ms, not used")
    return notes


def _direction(test: dict[str, Any], interval: dict[str, Any], key: str) -> str:
    """``up`` if the client sent these bytes; if not stated, it counts as sent by the client."""
    start = test.get("start", {})
    is_server = "accepted_connection" in start
    part = interval[key]
    settings = start.get("test_start", {})
    if "sender" in part:
        sent_here = bool(part["sender"])
    elif key == "sum_bidir_reverse" or settings.get("bidir"):
        sent_here = (key == "sum") != is_server
    elif "reverse" in settings:
        sent_here = bool(settings["reverse"]) == is_server
    else:
        streams = [s for s in interval.get("streams", []) if "sender" in s]
        sent_here = bool(streams[0]["sender"]) if streams else not is_server
    return "up" if sent_here != is_server else "down"


def _test(text: str, path: Path) -> dict[str, Any]:
    """The one test in a file; raises `DataError` for none, several, or an incomplete one."""
    decoder, documents, at = json.JSONDecoder(), [], 0
    text = _NAN.sub(" null", text).strip()
    try:
        while at < len(text):
            document, at = decoder.raw_decode(text, at)
            documents.append(document)
            while at < len(text) and text[at].isspace():
                at += 1
    except (ValueError, RecursionError) as error:
        line = text.count("\n", 0, at) + 1
        raise DataError(
            f"{path}: iperf3 JSON that is cut off or broken, from line {line} on",
            expected="one whole test",
            hint="copy the file again, or measure again",
        ) from error
    if all(isinstance(d, dict) and "event" in d for d in documents):
        return _streamed(documents, path)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise DataError(
            f"{path}: {len(documents)} iperf3 tests in one file",
            expected="one test",
            hint="split the file",
        )
    return documents[0]


def _streamed(events: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """The test that ``--json-stream`` wrote, one event a line."""
    of = {
        name: [e.get("data") for e in events if e["event"] == name]
        for name in ("start", "interval", "error")
    }
    if len(of["start"]) > 1:
        raise DataError(
            f"{path}: {len(of['start'])} iperf3 tests in one file",
            expected="one test",
            hint="split the file",
        )
    test: dict[str, Any] = {
        "start": of["start"][0] if of["start"] else {},
        "intervals": of["interval"],
    }
    if of["error"]:
        test["error"] = of["error"][0]
    elif not any(e["event"] == "end" for e in events):
        test["error"] = "no end in the stream"
    return test
