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
        ("server restarts", "server_restarts"),
        ("bundles swapped", "swaps"),
        ("bundles taken back", "rollbacks"),
        ("falls of the guard", "guard_falls"),
        ("rows dropped", "rows_dropped"),
        ("mean delay, ms", "delay_ms"),
        ("resident memory at the start, MB", "rss_mb_first"),
        ("resident memory at the end, MB", "rss_mb_last"),
        ("resident memory at most, MB", "rss_mb_most"),
        ("slope of memory, MB an hour (first quarter left out)", "rss_mb_an_hour"),
    ]
    rows = "\n".join(f"| {label} | {figure(result[key])} |" for label, key in shown)
    step = max(1, len(result["rss_mb"]) // 30)
    series = "\n".join(f"| {t} | {mb} |" for t, mb in result["rss_mb"][::step])
    return f"""# Soak

Written by `benchmarks/soak.py`; every figure is measured. A device of 10 frames a second ran for
{result["minutes"]:g} minutes against a server that was restarted every minute (every other time
killed), through a link that replayed
{result["trace"]} ({100 * result["trace_outage_share"]:.1f} %
of its samples are outages). One policy and one model bundle were swapped while it ran. Its policies
are untrained, so that every action is taken.

```sh
{command}
```

| | |
| --- | --- |
{rows}

Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},
{datetime.now(UTC).date()}.

Resident memory of the device:

| second | MB |
| --- | --- |
{series}
"""


def figure(value: Any) -> str:
    """A value as the report shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {n}" for key, n in value.items()) or "none"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
