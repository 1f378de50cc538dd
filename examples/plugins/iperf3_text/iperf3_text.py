"""iperf3's text output, of runs without --json, as a trace format of sliproad."""

import re
from pathlib import Path

import numpy as np

from testbed import Measured

_LINE = re.compile(
    r"^\[ *(\d+|SUM)\] +([\d.]+)-([\d.]+) +sec +[\d.]+ \w*Bytes +([\d.]+) ([KMGT]?)bits/sec(.*)$",
    re.MULTILINE,
)
_MBPS = {"": 1e-6, "K": 1e-3, "M": 1.0, "G": 1e3, "T": 1e6}


def recognises(text: str, file_name: str) -> bool:
    return "[ ID] Interval" in text and _LINE.search(text) is not None


def read(text: str, path: Path) -> Measured:
    """The intervals of one test: of all its streams together if there are several."""
    lines = [m for m in _LINE.finditer(text) if not re.search("sender|receiver|omitted", m[6])]
    wanted = "SUM" if any(m[1] == "SUM" for m in lines) else lines[0][1] if lines else ""
    rows = [m for m in lines if m[1] == wanted and float(m[3]) > float(m[2])]
    reverse = "Reverse mode" in text
    return Measured(
        name=path.name,
        origin=f"{path.name} (iperf3's text output)",
        tech="",
        start_s=np.array([float(m[2]) for m in rows]),
        end_s=np.array([float(m[3]) for m in rows]),
        mbps=np.array([float(m[4]) * _MBPS[m[5]] for m in rows]),
        notes=("download rates, taken as the uplink's",) if reverse else (),
        rows=np.array([text.count("\n", 0, m.start()) + 1 for m in rows]),
    )
