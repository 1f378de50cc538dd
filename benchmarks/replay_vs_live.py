"""Does the simulator say what the testbed measures? Replay a live run's decisions and link.

    python benchmarks/replay_vs_live.py [--scenario urban-5g] [--frames 400] [--out DIR]
    python benchmarks/replay_vs_live.py --from DIR

Drives the live environment (server, link and device, real images, real sockets) with random
actions among the 20 over a test drive of the scenario, writes ``records.parquet`` and
``link.json``, reads them back, and simulates the same frames, decisions and stretch of trace.
The device keeps the scenario's pace, so its compute times are modelled on both sides; ``pace`` says
whether this machine was fast enough. Energies on both sides come from published powers: what is
compared is transfer, queues, radio and server.

Prints one JSON object. Its errors are relative for mean delay and mean energy and absolute for
accuracy, over all frames; a skipped frame counts as wrong.

* ``delay_error, energy_error, accuracy_error``: device and server compute for as long as they
  did live (`offload_env.replay.repeat`); queue, radio, link, time-outs, modem are simulated.
* ``modelled``: the same with compute times of the cost model, means over draws of its jitter.
  Beside the model's error it holds what the machine's speed wandered during the run.
* ``accuracy_error_answered``: among the ``answered`` frames that neither side skipped.
* ``skipped_live_only, skipped_replay_only``: frames that one side alone skipped.
* ``timed_out_live_only, timed_out_replay_only``: exchanges that one side alone gave up.
* How busy the machine was otherwise: ``stalled`` frames started over 5 ms late live though they
  were there and the device free (the replay starts them late, too, except ``modelled``);
  ``slow_exchanges`` took over 5 ms longer live than replayed; ``link_late_ms_p99`` is how late
  the link's process let bytes out; ``load_average`` is that of the minute before the run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents.live_run import going_first
from cnn.bundle import load_bundle
from cnn.common.files import write_text
from cnn.common.outputs import check_folder, json_kind
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from offload_env.live_env import OffloadLiveEnv
from offload_env.replay import (
    Figures,
    computed_times,
    measured,
    repeat,
    simulate,
    simulated,
    source_table,
)
from offload_env.scenario import load_scenario
from offload_env.simulator import FALLBACK, SKIPPED
from testbed.common.output_kinds import LINK_RECORD, RECORDS
from testbed.link.transfer import LinkRecord
from testbed.records.record_file import RecordWriter, provenance, read_records

FILES = {
    "records.parquet": RECORDS,
    "link.json": LINK_RECORD,
    "run.json": json_kind("a run", "replay_vs_live.py", "started_s", "link_late_ms_p99"),
}
LATE_MS = 5.0


def main() -> None:
    """Drive live (unless given a run), replay, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="urban-5g", help="name or TOML file")
    parser.add_argument("--frames", type=int, default=400, help="frames of the live run")
    parser.add_argument("--source", default="render", help="frame source with labels")
    parser.add_argument("--seed", type=int, default=0, help="of decisions, drive and frames")
    parser.add_argument("--out", type=Path, help="folder for the run's records; else temporary")
    parser.add_argument("--from", dest="run", type=Path, help="replay this folder instead")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.run or options.out
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.run is None:
            drive(options.scenario, options.source, options.frames, options.seed, folder)
        print(json.dumps(compare(folder)))


def drive(scenario: str, source: str, n: int, seed: int, folder: Path) -> None:
    """A live run of `n` frames under random actions; its records go to `folder`."""
    check_folder(folder, FILES)
    rng = np.random.default_rng(seed)
    env = OffloadLiveEnv(scenario, "test", frames=source, n_frames=n)
    with going_first(), contextlib.closing(env):
        env.reset(seed=seed)
        about = provenance(
            SHIPPED,
            kind="replay_vs_live",
            scenario=scenario,
            frames=source,
            frames_seed=env.frames_seed,
        )
        actions = rng.integers(SHIPPED.n_actions, size=n).tolist()
        # Writing waits for the end: between two steps a frame is already on the clock.
        bar = tqdm(actions, desc="live frames", file=sys.stderr, mininterval=2.0)
        rows = [env.step(action)[4]["measurement"] for action in bar]
        with RecordWriter(folder / "records.parquet", about) as writer:
            for row in rows:
                writer.write(row)
        env.link_record().save(folder / "link.json")
        late_ms = env.link_stats().get("late_ms_p99")
        kept = env.pace_kept
        run = {
            "started_s": env.started_s,
            "link_late_ms_p99": late_ms,
            "pace": None if kept is None else kept.to_json(),
        }
        write_text(folder / "run.json", json.dumps(run))


def compare(folder: Path) -> dict[str, object]:
    """Replay the run in `folder` and say how far off the simulation is."""
    records = read_records(folder / "records.parquet")
    about, rows = records.source, list(records.rows())
    run = json.loads((folder / "run.json").read_text())
    started_s = run["started_s"]
    runtime = SplitRuntime(load_bundle(), threads=1)
    table = source_table(runtime, about["frames"], about["frames_seed"], len(rows))
    scenario = load_scenario(about["scenario"])
    link = LinkRecord.load(folder / "link.json")
    live, outcomes = measured(rows), repeat(scenario, table, rows, link, started_s)
    repeated, modelled = simulated(outcomes), simulate(scenario, table, rows, link, started_s)
    gone = np.array([row.status == "skipped" for row in rows])
    gone_too = np.array([o.status == SKIPPED for o in outcomes])
    both = ~gone & ~gone_too
    right = np.array([bool(row.correct) for row in rows])[both].mean()
    right_too = np.array([o.correct for o in outcomes])[both].mean()
    computed = computed_times(rows, scenario.timing.timeout_ms)
    fell = np.array([row.status == "fallback" for row in rows])
    fell_too = np.array([o.status == FALLBACK for o in outcomes])
    live_ms = np.array([row.transfer_ms or 0.0 for row in rows])
    replay_ms = np.array([o.transfer_ms for o in outcomes])
    answered_live, answered = live_ms > 0, replay_ms > 0
    return {
        **errors(live, repeated),
        "accuracy_error_answered": abs(float(right_too - right)),
        "answered": int(both.sum()),
        "skipped_live_only": int((gone & ~gone_too).sum()),
        "skipped_replay_only": int((gone_too & ~gone).sum()),
        "timed_out_live_only": int((fell & answered).sum()),
        "timed_out_replay_only": int((answered_live & fell_too).sum()),
        "stalled": sum(c.stall_ms > LATE_MS for c in computed),
        "slow_exchanges": int((live_ms - replay_ms > LATE_MS)[answered & answered_live].sum()),
        "link_late_ms_p99": run.get("link_late_ms_p99"),
        "load_average": about.get("load_average"),
        "live": asdict(live),
        "replay": asdict(repeated),
        "modelled": {**errors(live, modelled), "replay": asdict(modelled)},
        "frames": len(rows),
        "scenario": about["scenario"],
        "pace": run.get("pace"),
    }


def errors(live: Figures, replayed: Figures) -> dict[str, float]:
    """How far a replay is off."""
    return {
        "delay_error": abs(replayed.delay_ms / live.delay_ms - 1),
        "energy_error": abs(replayed.energy_mj / live.energy_mj - 1),
        "accuracy_error": abs(replayed.accuracy - live.accuracy),
    }


if __name__ == "__main__":
    main()
