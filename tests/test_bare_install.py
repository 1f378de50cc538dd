"""The wheel alone in an empty environment is a device: frames, a server, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from testbed.server.server_process import ServerProcess

ROOT = Path(__file__).parents[1]

# Runs in the empty environment.
CHECK = """
import importlib.util, json, sys
names = "torch stable_baselines3 gymnasium pandas prometheus_client cryptography".split()
absent = [name for name in names if importlib.util.find_spec(name) is None]
print(json.dumps({"absent": absent, "from": importlib.util.find_spec("testbed").origin}))
"""


def run(*command: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd="/",
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("bare")
    source, dist = folder / "source", folder / "dist"
    source.mkdir()
    for name in ("cnn", "testbed", "offload_env", "agents", "pyproject.toml", "README.md"):
        (source / name).symlink_to(ROOT / name)
    (source / "LICENSE").symlink_to(ROOT / "LICENSE")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, source]
    built = run(*command)
    assert built.returncode == 0, built.stdout + built.stderr
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    constraints = ROOT / "constraints.txt"
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ("No matching distribution", "Connection", "connection", "Temporary failure")
    done = run(*pip, "--retries", "1", "--timeout", "10", "--constraint", constraints, wheel)
    if done.returncode and any(word in done.stderr for word in offline):
        pytest.skip(f"the package registry is out of reach: {done.stderr.splitlines()[-1][:120]}")
    assert done.returncode == 0, done.stderr
    return interpreter


@pytest.mark.slow
def test_the_bare_wheel_runs_frames_against_a_server_without_torch(
    python: Path, tmp_path: Path
) -> None:
    found = json.loads(run(python, "-c", CHECK).stdout)
    assert found["absent"] == [
        "torch", "stable_baselines3", "gymnasium", "pandas", "prometheus_client", "cryptography",
    ]  # fmt: skip
    assert str(ROOT) not in found["from"]
    with ServerProcess() as server:
        config = tmp_path / "device.toml"
        config.write_text(
            f'[server]\naddress = "{server.target}"\n[bundles]\naction = "e3s1"\n'
            "[frames]\ncount = 20\nperiod_ms = 20\ntimeout_ms = 5000\nmax_queue_ms = 5000\n"
            '[records]\nfolder = "records"\n'
        )
        sliproad = python.parent / "sliproad"
        done = run(sliproad, "testbed", "device", "--config", config, "--json", timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["frames"], result["status"]) == (20, {"ok": 20})
    assert result["rows_written"] == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "extra"),
    [
        ('[bundles]\naction = "e1s1"\n[metrics]\nport = 0\n', "server"),
        ('[bundles]\naction = "e1s1"\ntrusted_keys = ["release.key.pub"]\n', "signing"),
    ],
)
def test_what_needs_an_extra_says_which(
    python: Path, tmp_path: Path, text: str, extra: str
) -> None:
    config = tmp_path / "device.toml"
    config.write_text(text)
    sliproad = python.parent / "sliproad"
    done = run(sliproad, "testbed", "device", "--config", config, timeout=60)
    assert done.returncode == 2
    assert f"sliproad[{extra}]" in done.stderr
