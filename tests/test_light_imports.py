"""What must start without torch: the device, the server's tails, and every ``--help``."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Import names of everything that only the [train] extra installs.
TRAIN_ONLY = (
    "torch",
    "stable_baselines3",
    "sb3_contrib",
    "gymnasium",
    "tensorboard",
    "onnx",
    "onnxscript",
    "pandas",
    "scipy",
    "matplotlib",
    "jinja2",
    "pooch",
    "tqdm",
)

# Run first: makes those imports fail as they do on a device.
BLOCK = f"""
import sys
for name in {TRAIN_ONLY!r}:
    sys.modules[name] = None
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_blocked_names_are_those_of_the_train_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        requirement.partition(">")[0].strip().replace("-", "_")
        for requirement in project["optional-dependencies"]["train"]
    }
    assert names == set(TRAIN_ONLY)


@pytest.mark.parametrize(
    "module",
    [
        "cnn",
        "cnn.runtime",
        "cnn.frame_table",
        "testbed",
        "testbed.policy",
        "testbed.observation",
        "testbed.device",
        "testbed.server",
        "offload_env",
        "agents",
        "agents.cli",
    ],
)
def test_imports_without_the_train_extra(module: str) -> None:
    block = BLOCK.replace("'gymnasium', ", "") if module == "offload_env" else BLOCK
    done = run_python(f"{block}\nimport {module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["cnn", "info", "--help"],
        ["testbed", "device", "--help"],
        ["testbed", "serve", "--help"],
        ["agent", "train", "--help"],
        ["demo", "--help"],
    ],
    ids=" ".join,
)
def test_help_needs_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from agents.cli import main
sys.argv = ["sliproad", *{arguments!r}]
try:
    main()
except SystemExit as leaving:
    assert leaving.code == 0, leaving.code
heavy = {{m.partition(".")[0] for m in sys.modules}} & {{*{TRAIN_ONLY!r}, "grpc", "onnxruntime", "pyarrow"}}
assert not heavy, heavy
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
