"""Everything that may go wrong in a year, in a few minutes, on loopback, with real processes.

    python benchmarks/faults.py --json [--only GROUP] [--seed 0] [--quick]

Groups, one after another, each in processes of its own and with a limit on its time:

* ``records``: an ext4 image copied without a sync while a device writes to it, damaged journals,
  flipped bits in finished files (the image needs root);
* ``disk``: a device started, run and restarted on a disk without room;
* ``injection``: an error raised inside the server at every step of a call; afterwards it must
  answer, or say that it does not serve, or have ended with an exit code that is not 0;
* ``device``: servers that are live but deaf, that lie, that are stopped or killed and come back;
* ``fairness``: a polite client beside one that hoards calls, and beside calls without a message;
* ``certificates``: a new authority and new certificates on both ends while frames flow;
* ``swaps``: policy files that must not be used.

Prints a table of what was found and what is allowed, or with ``--json`` one object; what
this machine cannot do (no root, no openssl) is null there, with the reason on standard error.
Exits with 0 if everything that was tried is within its bound, and with 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _faults_parts import NotHereError, say, unmount_below

SHARE, RECOVERY_S = 0.8, 2.0
CUT_S = 2.0
"""Rows may be lost that waited in memory for `flush_s`, 1 s here, and those of a slow write."""
LIMITS_S = {
    "records": 390.0,
    "disk": 240.0,
    "injection": 390.0,
    "device": 330.0,
    "fairness": 135.0,
    "certificates": 120.0,
    "swaps": 180.0,
}
"""Of each group, against one that hangs; an ordinary round takes a sixth of them together."""
Bound = tuple[str, Callable[[Any], bool]]
NONE: Bound = ("0", lambda n: n == 0)
TRUE: Bound = ("true", lambda value: value is True)
AT_LEAST: Bound = (f"at least {SHARE}", lambda share: share >= SHARE)
BOUNDS: dict[str, dict[str, Bound]] = {
    "records": {
        "rows_lost_after_power_cut_s": (f"at most {CUT_S:g}", lambda s: s <= CUT_S),
        "journals_damaged": ("(how many)", lambda n: n > 0),
        "journal_crashes": NONE,
        "impossible_rows": NONE,
    },
    "injection": {
        "deaf_after_injection": NONE,
        "injection_points": ("at least 15", lambda n: n >= 15),
    },
    "fairness": {
        "polite_share_under_hoarder": AT_LEAST,
        "polite_share_under_idle_calls": AT_LEAST,
    },
    "device": {
        "frames_lost": NONE,
        "wrong_answers_counted_ok": NONE,
        "recovery_s_max": (f"at most {RECOVERY_S:g}", lambda s: s <= RECOVERY_S),
    },
    "disk": {"start_on_full_disk": TRUE},
    "certificates": {"cert_reload": TRUE},
    "swaps": {"swap_rollbacks": ("all that were tried", lambda n: n > 0)},
}
"""What each group finds, in the order of the output, and what is allowed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=sorted(BOUNDS), help="this group alone")
    parser.add_argument("--seed", type=int, default=0, help="of damages, moments and points")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        return inside(arguments.only, arguments.inside, arguments.seed, arguments.quick)
    found: dict[str, Any] = {name: None for bounds in BOUNDS.values() for name in bounds}
    failed = []
    for group, bounds in BOUNDS.items():
        if arguments.only not in (None, group):
            continue
        result = run_group(group, arguments.seed, arguments.quick)
        if result is None:
            failed.append(group)
            continue
        found |= {name: result.get(name) for name in bounds}
        failed += result.get("failed", [])
        failed += [
            name
            for name, (_, holds) in bounds.items()
            if found[name] is not None and not holds(found[name])
        ]
    if failed:
        say(f"not within bounds: {', '.join(failed)}")
    if arguments.json:
        print(json.dumps(found))
    else:
        for bounds in BOUNDS.values():
            for name, (allowed, _) in bounds.items():
                print(f"{name:32} {json.dumps(found[name]):>10}   {allowed}")
    return 1 if failed else 0


def run_group(group: str, seed: int, quick: bool) -> dict[str, Any] | None:
    """One group in processes of its own; None if it failed or took too long."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sliproad-faults-") as folder:
        command = [sys.executable, __file__, "--only", group, "--seed", str(seed)]
        command += ["--inside", folder, *(["--quick"] if quick else [])]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            stdout = child.communicate(timeout=LIMITS_S[group])[0]
        except subprocess.TimeoutExpired:
            say(f"{group}: not done within {LIMITS_S[group]:g} s")
            stdout = ""
        finally:
            end_session(child)
            unmount_below(Path(folder))
    say(f"{group}: {time.monotonic() - began_s:.1f} s")
    if child.returncode or not stdout.strip():
        return None
    result: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return result


def end_session(child: subprocess.Popen[str]) -> None:
    """End a group's process and whatever it started and left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def inside(group: str, folder: Path, seed: int, quick: bool) -> int:
    """In the group's process: run it and print what it found."""
    module = importlib.import_module(f"_faults_{group}")
    try:
        result = module.run(folder, seed, quick)
    except NotHereError as error:
        say(f"{group}: not tried: {error}")
        result = {}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
