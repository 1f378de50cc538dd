"""The round of faults and the soak test, in their short forms, as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run_benchmark(name: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the object printed, and what was said."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip(), done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, found, done.stderr


@pytest.mark.slow(40)
@pytest.mark.parametrize(
    ("group", "figures"),
    [
        ("device", {"frames_lost": 0, "wrong_answers_counted_ok": None, "recovery_s_max": None}),
        ("swaps", {"swap_rollbacks": None}),
    ],
)
def test_a_group_of_faults_says_what_it_found(group: str, figures: dict[str, Any]) -> None:
    code, found, said = run_benchmark("faults.py", "--json", "--quick", "--only", group)
    assert code == (1 if "not within bounds" in said else 0), said
    assert {name for name, value in found.items() if value is not None} <= set(figures), said
    for name, value in figures.items():
        assert found[name] is not None, said
        assert value is None or found[name] == value, said


@pytest.mark.slow(75)
def test_a_minute_of_everything_loses_no_frame() -> None:
    _, found, said = run_benchmark("soak.py", "--minutes", "0.5")
    assert found["frames_lost"] == 0, said
    assert found["exit_code"] == 0, said
    happened = set(found["events"])
    assert {"server restarted", "server held", "server live but deaf", "disk full"} <= happened
    assert {"log reader stalled", "policy swapped", "model swapped"} <= happened
    assert found["frames"] > 200
