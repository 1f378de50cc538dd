"""The examples run from top to bottom and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "01_split_and_merge.py": ([], ["864 bytes to send", "e5s5"]),
    "02_device_and_server.py": (
        ["--frames", "20"],
        ["10 frames answered by the server", "10 frames finished on the device", "lost: 0"],
    ),
    "03_train_tiny_agent.py": (["--steps", "16384"], ["trained on 16384 frames", "agent  "]),
    "04_write_a_policy.py": ([], ["quick answers just now: e5s2", "slow answers just now: e3s3"]),
    "05_import_a_detector_table.py": (
        ["--drives", "6"],
        ["e3s3: F1 0.", "best-static: cost", "clairvoyant: cost", "bound: no policy that keeps"],
    ),
    "06_plain_stable_baselines3.py": (
        ["--steps", "4096"],
        ["plain reward:  cost 0.", "with KeepFloor: cost 0.", "price of a wrong answer"],
    ),
}


def test_every_example_is_tested() -> None:
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.slow(25)
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_runs(name: str, tmp_path: Path) -> None:
    arguments, expected = EXAMPLES[name]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
