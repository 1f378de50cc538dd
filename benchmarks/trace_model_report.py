"""Compare generated traces with measured ones of drives that the fit never saw.

    python benchmarks/trace_model_report.py --data DIR [--png FILE] [--seeds 200]

Prints one JSON object: for each kind the statistics of the training drives, of the held-out
drives and of generated traces, and the distances of the generated from both. The distance
between the two measured parts is the yardstick: drives differ that much among themselves.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cnn.common.errors import SliproadError
from cnn.common.files import replacing
from cnn.common.outputs import SOFTWARE, check_file, picture_kind
from testbed.traces.collection import load_traces
from testbed.traces.generator import KINDS, generate_trace, load_models
from testbed.traces.trace import Trace
from testbed.traces.trace_statistics import distribution_distance, summary


def compare(folder: Path, kind: str, seeds: int, period_s: float) -> dict[str, Any]:
    """Summaries and distances of one kind."""
    parts = {
        "train": load_traces(folder, kind, "train", period_s=period_s),
        "held_out": load_traces(folder, kind, "test", period_s=period_s),
        "generated": [generate_trace(kind, seed, 120.0, period_s) for seed in range(seeds)],
    }
    result: dict[str, Any] = {name: summary(traces) for name, traces in parts.items()}
    result["distance"] = {
        f"{a} to {b}": {
            "uplink": distribution_distance(_pool(parts[a], "uplink"), _pool(parts[b], "uplink")),
            "rtt": distribution_distance(_pool(parts[a], "rtt"), _pool(parts[b], "rtt")),
        }
        for a, b in (("generated", "train"), ("generated", "held_out"), ("train", "held_out"))
    }
    return result


def _pool(traces: list[Trace], which: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([t.uplink_mbps if which == "uplink" else t.rtt_ms for t in traces])


def draw(folder: Path, seeds: int, period_s: float, png: Path) -> None:
    """Distribution functions and three example traces of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(KINDS), 4, figsize=(17, 3.2 * len(KINDS)))
    for row, kind in zip(axes, KINDS, strict=True):
        held = load_traces(folder, kind, "test", period_s=period_s)
        made = [generate_trace(kind, seed, 120.0, period_s) for seed in range(seeds)]
        for traces, name in ((held, "held out"), (made, "generated")):
            for axis, which in ((row[0], "uplink"), (row[1], "rtt")):
                values = np.sort(_pool(traces, which))
                axis.plot(values, np.linspace(0, 1, len(values)), label=name)
        row[0].set(xlabel="uplink (Mbit/s)", ylabel=kind)
        row[1].set(xlabel="round trip (ms)", xscale="log")
        row[0].legend()
        for axis, traces, name in ((row[2], held, "held out"), (row[3], made, "generated")):
            for trace in traces[:: max(1, len(traces) // 3)][:3]:
                count = min(len(trace.uplink_mbps), round(120 / period_s))
                axis.plot(np.arange(count) * period_s, trace.uplink_mbps[:count], lw=0.8)
            axis.set(xlabel="time (s)", ylabel="uplink (Mbit/s)", title=name)
    figure.tight_layout()
    with replacing(png) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": SOFTWARE})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare generated and measured traces.")
    parser.add_argument("--data", type=Path, default=os.environ.get("SLIPROAD_DATA"))
    parser.add_argument("--seeds", type=int, default=200, help="generated traces of 120 s a kind")
    parser.add_argument("--period-s", type=float, default=0.5, help="spacing compared, seconds")
    parser.add_argument("--png", type=Path, help="also draw a figure into this file")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set SLIPROAD_DATA")
    try:
        if options.png is not None:
            check_file(options.png, picture_kind("a figure of traces", "trace_model_report.py"))
        result: dict[str, Any] = {
            kind: compare(options.data, kind, options.seeds, options.period_s) for kind in KINDS
        }
        result["fit"] = {kind: model.provenance for kind, model in load_models().items()}
        if options.png is not None:
            draw(options.data, options.seeds, options.period_s, options.png)
    except SliproadError as error:
        parser.error(str(error))
    print(json.dumps(_rounded(result)))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
