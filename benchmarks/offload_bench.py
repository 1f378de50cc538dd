"""OffloadBench: a policy on frozen scenarios, beside the bound and tuned baselines.

    python benchmarks/offload_bench.py [--quick] [--submission FILE.policy | FILE.py:NAME] [--json]
    python benchmarks/offload_bench.py --replay RESULT.json

Prints a table; with ``--json`` one object, which is the whole result: ``{"bench", "size",
"submission", "inputs_frozen", "made_with", "scenarios": {name: {"inputs", "floor", "bound_cost",
"clairvoyant_cost", "best_baseline", "baselines", "submission"}}}``. ``--replay`` computes
everything anew with the decisions that a result records, and prints ``{"same_bits", "differs":
{figure: [recorded, now]}}``. docs/offload-bench.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agents.offload_bench import (
    QUICK,
    VERSION,
    WHOLE,
    Size,
    chosen,
    input_hashes,
    run_scenario,
)
from agents.submission import Recorded, Replayed, Submission
from cnn.common.errors import ConfigError, DataError, SliproadError
from cnn.common.outside import file_bytes, json_object, refusing
from offload_env.scenario import CLASSIC, scenario_names
from offload_env.world import build_world

FROZEN = Path(__file__).with_suffix(".json")
"""Hashes of all inputs, by scenario; its scenarios are those of the benchmark."""
MAX_RESULT_BYTES = 256 << 20


def worlds_of(name: str) -> tuple[Any, Any]:
    """Training and test world of a shipped scenario."""
    return build_world(name, "train"), build_world(name, "test")


def bench(
    names: list[str], size: Size, submission: Submission | None, frozen: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole result."""
    scenarios: dict[str, Any] = {}
    if submission is not None:  # a wrong one fails before the first minute
        for name in names:
            submission.candidates(worlds_of(name)[0])
    for name in names:
        worlds, policy = worlds_of(name), None
        if submission is not None:
            policy = Recorded(chosen(submission, worlds[0], size), f"submission {submission}")
        part = run_scenario(worlds, size, policy, progress_of(name))
        if submission is not None and policy is not None:
            about = {"sha256_of_file": submission.sha256(name), "record": policy.record}
            part["submission"] |= about
        scenarios[name] = part
    return {
        "bench": VERSION,
        "size": asdict(size),
        "submission": None if submission is None else str(submission),
        "inputs_frozen": all(part["inputs"] == frozen[n] for n, part in scenarios.items()),
        "made_with": made_with(),
        "scenarios": scenarios,
    }


def progress_of(scenario: str) -> Any:
    """A function that says what is done, on standard error."""
    return lambda done: print(f"{scenario}: {done}", file=sys.stderr, flush=True)


def made_with() -> dict[str, str]:
    """What may change the last digits of figures that are not table look-ups."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def replay(path: Path) -> dict[str, Any]:
    """Compute a result anew from its recorded decisions, and compare.

    Raises:
        DataError: if the file is none of ours, or its record damaged.
    """
    what, expected = f"result {path}", "what offload_bench.py --submission ... --json printed"
    with refusing(DataError, what, expected=expected, hint="print it again"):
        found = json_object(file_bytes(path, MAX_RESULT_BYTES))
        size, old = Size(**found["size"]), found["scenarios"]
        if found["bench"] != VERSION or size not in (QUICK, WHOLE):
            raise ValueError(f"of bench {found['bench']}, {size}; this is {VERSION}")
        unknown = sorted(set(old) - set(scenario_names()))
        if unknown:
            raise ValueError(f"scenario {unknown[0]} is not there")
        records = {name: part["submission"]["record"] for name, part in old.items()}
    now = {}
    for name, record in records.items():
        worlds = worlds_of(name)
        policy = Replayed.read(record, worlds[0].topology, f"{what}, {name}")
        now[name] = run_scenario(worlds, size, policy, progress_of(name))
        about = {k: old[name]["submission"][k] for k in ("sha256_of_file", "record")}
        now[name]["submission"] |= about
    differs = dict(differences(old, now))
    return {"same_bits": not differs, "differs": differs}


def differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, list[Any]]]:
    """(place, [old, new]) of every value that is not the same in two JSON objects."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{at}/{key}")
    elif old != new:
        yield at, [old, new]


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The result as lines."""
    yield (
        f"{'scenario':16} {'bound':>7} {'best baseline':>22} {'submission':>10} "
        f"{'/bound':>7} {'/best':>7} {'above floor':>11}"
    )
    for name, part in result["scenarios"].items():
        best, mine = part["best_baseline"], part.get("submission")
        cost = f"{part['baselines'][best]['cost']:.4f} {best}" if best else "none keeps the floor"
        line = f"{name:16} {part['bound_cost']:7.4f} {cost:>22}"
        if mine:
            over = mine["over_best_baseline"]
            line += f" {mine['cost']:10.4f} {mine['over_bound']:7.3f} "
            line += "      -" if over is None else f"{over:7.3f}"
            above = 100 * (mine["accuracy"] - part["floor"])
            line += f" {above:+8.2f} pt{'' if mine['keeps_floor'] else '  FLOOR MISSED'}"
        yield line


def main() -> None:
    """Run, replay or freeze."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help="all of the benchmark if left out")
    parser.add_argument("--quick", action="store_true", help="fewer drives")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--submission",
        help="policy file ({scenario} in its path stands for the scenario's name), or FILE.py:NAME",
    )
    what.add_argument("--replay", type=Path, help="result to compute anew from its record")
    what.add_argument("--hashes", action="store_true", help="print the hashes of all inputs alone")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options = parser.parse_args()
    try:
        if options.replay is not None:
            again = replay(options.replay)
            print(json.dumps(again))
            raise SystemExit(not again["same_bits"])
        if options.hashes:
            names = options.scenarios or CLASSIC
            print(json.dumps({name: input_hashes(worlds_of(name)) for name in names}, indent=1))
            return
        frozen = json.loads(FROZEN.read_text())
        names = options.scenarios or list(frozen)
        unknown = [name for name in names if name not in frozen]
        if unknown:
            raise ConfigError(
                f"scenario {unknown[0]}", expected=", ".join(frozen), hint="correct the name"
            )
        submission = Submission.parse(options.submission) if options.submission else None
        result = bench(names, QUICK if options.quick else WHOLE, submission, frozen)
    except SliproadError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result) if options.json else "\n".join(table(result)))
    if not result["inputs_frozen"]:
        print("warning: inputs differ from the frozen ones", file=sys.stderr)


if __name__ == "__main__":
    main()
