"""Fit the trace generator's parameters to measured traces of the training drives.

    python benchmarks/fit_trace_models.py --data DIR

writes ``testbed/assets/trace_models.json`` (or ``--out``) with, for each kind, the sets and
drives used and this command. Deterministic: the same data give the same file, but for the date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path

from cnn.common.errors import SliproadError
from cnn.common.files import write_text
from cnn.common.outputs import check_file, json_kind
from testbed.traces.collection import rtt_series, uplink_series
from testbed.traces.generator import TraceModel
from testbed.traces.generator_fit import fit_model
from testbed.traces.series import cut_at_gaps, resample
from testbed.traces.trace_kinds import SELECTIONS

STEP_S = {"urban-5g": 0.5, "highway-lte": 0.1, "poor-coverage": 0.5}
"""Spacing of the capacity: that of the coarser set of the kind (sa24: 0.5 s). memu22's 1 s
series of the 5G phone are held for two steps."""

RTT_STEP_S = {"urban-5g": 0.1, "highway-lte": 0.1, "poor-coverage": 0.2}
"""Spacing of the round trips: that of the pings, cicv5g's 0.05 s averaged in pairs."""

LEVELS = {"urban-5g": 6, "highway-lte": 6, "poor-coverage": 6}
MIN_S = 20.0


def fit_kind(folder: Path, kind: str) -> TraceModel:
    """The model of one kind from its training drives."""
    selection = SELECTIONS[kind]
    series = uplink_series(folder, selection, "train")
    pings = rtt_series(folder, selection, "train", {one.run for one in series})
    pieces = [
        resample(piece, STEP_S[kind])
        for one in series
        for piece in cut_at_gaps(one)
        if piece.time_s[-1] >= MIN_S
    ]
    provenance = {
        "command": "python benchmarks/fit_trace_models.py --data DIR",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "uplink_drives": sorted({one.group for one in series}),
        "rtt_drives": sorted({one.group for one in pings}),
    }
    return fit_model(
        kind,
        selection.tech,
        pieces,
        STEP_S[kind],
        [resample(one, RTT_STEP_S[kind]) for one in pings],
        RTT_STEP_S[kind],
        LEVELS[kind],
        provenance,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fit the trace generator.")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SLIPROAD_DATA"),
        help="folder of the trace collection (default: SLIPROAD_DATA)",
    )
    here = Path(__file__).resolve().parent.parent
    parser.add_argument(
        "--out", type=Path, default=here / "testbed" / "assets" / "trace_models.json"
    )
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set SLIPROAD_DATA")
    try:
        check_file(options.out, json_kind("trace models", "fit_trace_models.py", "models"))
        models = [fit_kind(options.data, kind).to_json() for kind in SELECTIONS]
    except SliproadError as error:
        parser.error(str(error))
    write_text(options.out, json.dumps({"models": models}) + "\n")
    print(f"{options.out}: {', '.join(model['kind'] for model in models)}")


if __name__ == "__main__":
    main()
