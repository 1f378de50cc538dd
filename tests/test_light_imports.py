"""What must start without torch: the device, the server's tails, and every ``--help``."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow(20)

ROOT = Path(__file__).parents[1]

TRAIN_ONLY = (
    "torch",
    "stable_baselines3",
    "sb3_contrib",
    "gymnasium",
    "tensorboard",
    "threadpoolctl",
    "onnx",
    "onnxscript",
    "pandas",
    "scipy",
    "matplotlib",
    "jinja2",
    "pooch",
    "requests",
    "tqdm",
)
"""Import names of what only the [train] extra installs."""

HEAVY = (*TRAIN_ONLY, "grpc", "onnxruntime", "pyarrow", "tritonclient")
"""What a ``--help`` has no use for."""

SERVER_ONLY = ("grpc_health", "grpc_reflection", "prometheus_client")
"""Import names of what only the [server] extra installs."""


def blocking(names: Iterable[str]) -> str:
    """Code that makes the imports of `names` fail as where they are not installed."""
    return f"import sys\nfor name in {tuple(names)!r}:\n    sys.modules[name] = None\n"


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
        "cnn.render.rendered_tracks",
        "testbed",
        "testbed.wire.client",
        "testbed.meters.cost_model",
        "testbed.costs.campaign",
        "testbed.device.device_loop",
        "testbed.policy.observer",
        "testbed.policy.policies",
        "agents",
        "agents.cli",
    ],
)
def test_the_device_imports_with_the_base_install_alone(module: str) -> None:
    done = run_python(f"{blocking([*TRAIN_ONLY, *SERVER_ONLY])}\nimport {module}")
    assert done.returncode == 0, done.stderr


def test_the_server_imports_without_the_train_extra() -> None:
    done = run_python(f"{blocking(TRAIN_ONLY)}\nimport testbed.server.mec_server")
    assert done.returncode == 0, done.stderr


def test_the_environments_import_without_torch() -> None:
    blocked = ("torch", "stable_baselines3", "sb3_contrib", "matplotlib", "tensorboard")
    done = run_python(f"{blocking(blocked)}\nimport offload_env")
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
heavy = {{m.partition(".")[0] for m in sys.modules}} & {{*{HEAVY!r}}}
assert not heavy, heavy
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
