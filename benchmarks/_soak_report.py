"""The soak test's result as a Markdown page."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any


def report(result: dict[str, Any], command: str) -> str:
    """The result as a page."""
    shown = [
        ("frames captured", "frames"),
        ("frames lost", "frames_lost"),
        ("unhandled exceptions", "exceptions"),
        ("exit code", "exit_code"),
        ("status", "status"),
        ("reasons", "reasons"),
        ("frames that a server answered in the last quarter", "answered_in_last_quarter"),
        ("longest time without a decision, s", "longest_gap_s"),
        ("bundles swapped", "swaps"),
        ("bundles taken back", "rollbacks"),
        ("falls of the guard", "guard_falls"),
        ("rows that the full disk had no room for", "rows_dropped"),
        ("mean delay, ms", "delay_ms"),
        ("resident memory at the start, MB", "rss_mb_first"),
        ("resident memory at the end, MB", "rss_mb_last"),
        ("resident memory at most, MB", "rss_mb_most"),
        ("Theil-Sen slope of memory over the last half, MB an hour", "rss_mb_an_hour"),
        ("its 95 % interval", "rss_mb_an_hour_95"),
        ("memory flat (slope below 5 MB an hour)", "memory_flat"),
    ]
    rows = "\n".join(f"| {label} | {figure(result[key])} |" for label, key in shown)
    step = max(1, len(result["rss_mb"]) // 30)
    series = "\n".join(f"| {t} | {mb} |" for t, mb in result["rss_mb"][::step])
    counts = "\n".join(f"| {name} | {n} |" for name, n in sorted(result["events"].items()))
    events = "\n".join(f"| {at_s} | {name} | {s} |" for at_s, name, s in result["happened"])
    return f"""# Soak

Written by `benchmarks/soak.py`; every figure is measured. A device of 10 frames a second ran for
{result["minutes"]:g} minutes against a server over {"mutual TLS" if result["tls"] else "TCP"},
through a link that replayed {result["trace"]}
({100 * result["trace_outage_share"]:.1f} % of its samples are outages), while the events below
happened. Its policies are untrained, so that every action is taken. A frame is lost if it was
captured, and neither recorded with an answer or as skipped, nor counted as a row that the full disk
had no room for. Memory is judged by the median slope over all pairs of samples of the last half, on
which the few jumps of an allocator have little weight, and a leak its whole one.

```sh
{command}
```

| | |
| --- | --- |
{rows}

Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},
{datetime.now(UTC).date()}.

| event | times |
| --- | --- |
{counts}

Resident memory of the device:

| second | MB |
| --- | --- |
{series}

Every event, by its beginning (a server's are done when a good one listens again):

| second | event | took, s |
| --- | --- | --- |
{events}
"""


def figure(value: Any) -> str:
    """A value as the report shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {n}" for key, n in value.items()) or "none"
    if isinstance(value, list):
        return " to ".join(map(figure, value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)
