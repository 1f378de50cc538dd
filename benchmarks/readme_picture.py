"""The picture of the README: one live drive of a shipped policy beside full local processing.

    python benchmarks/readme_picture.py [--scenario urban-5g] [--frames 300] [--out docs/drive.png]

Drives both through real processes (server, link, device) over the same frames and the same
held-out trace, and draws their records. Transfers, server and answers are measured; the device's
computing is modelled: it keeps the pace of the scenario's device. Prints ``{"agent", "full_local":
{"delay_ms", "energy_mj", "accuracy", ...}, "pace": {...}, "picture"}``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from agents.baselines.rules import full_local
from agents.contenders import shipped_path
from agents.drive_picture import Driven, drive_picture
from agents.live_run import FrameSource, run_live
from cnn.common.files import write_bytes
from offload_env.world import build_world
from testbed.device.processor import PaceKept


def main() -> None:
    """Drive, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="urban-5g", help="name of a scenario")
    parser.add_argument("--frames", type=int, default=300, help="frames of the drive")
    parser.add_argument("--seed", type=int, default=0, help="of frames and trace")
    parser.add_argument("--out", type=Path, default=Path("docs/drive.png"), help="PNG file")
    given = parser.parse_args()
    world = build_world(given.scenario, "test")
    trace = world.traces[given.seed % len(world.traces)]
    name = "gtsrb:policy-test" if os.environ.get("SLIPROAD_DATA") else "render"
    source = FrameSource(name, given.seed)
    ways = {
        "agent": ("--policy", str(shipped_path(given.scenario))),
        "full_local": ("--action", full_local(world.topology).action.name),
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            key: run_live(
                world, trace, source, decide, given.frames, Path(folder) / f"{key}.parquet"
            )
            for key, decide in ways.items()
        }
        drives = [Driven.of_records(run.records, key) for key, run in runs.items()]
    kept = sum((run.kept for run in runs.values()), PaceKept(0, 0))
    text = (
        f"{given.frames} frames ({name}) over {trace.name}, live: transfers and answers measured, "
        "the device's computing modelled (paced)"
    )
    deadline_ms = world.scenario.timing.deadline_ms
    write_bytes(given.out, drive_picture(drives[0], drives[1], deadline_ms, text))
    result = {key: run.figures(world) for key, run in runs.items()}
    print(json.dumps({**result, "pace": kept.to_json(), "picture": str(given.out)}))


if __name__ == "__main__":
    main()
