"""The wheel holds the four packages with all their data; alone it is a device without torch."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from testbed.server.server_process import ServerProcess

pytestmark = pytest.mark.slow(50)

ROOT = Path(__file__).parents[1]
PACKAGES = ("cnn", "testbed", "offload_env", "agents")
IGNORED = shutil.ignore_patterns("__pycache__", "*.part", "*.egg-info")


# Runs in the environment that holds the wheel and what it asks for.
CHECK = """
import importlib.util, json
names = "torch stable_baselines3 gymnasium pandas prometheus_client cryptography".split()
absent = [name for name in names if importlib.util.find_spec(name) is None]
print(json.dumps({"absent": absent, "from": importlib.util.find_spec("testbed").origin}))
"""


def run(*command: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    # Bytecode is written, because pip is not asked to compile what is never imported.
    kept_out = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={k: v for k, v in os.environ.items() if k not in kept_out},
        cwd="/",
    )


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built from a copy so that nothing is left in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    built = run(*command)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


@pytest.fixture(scope="module")
def python(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    interpreter = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-compile"]
    pip += ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    done = run(*pip, "--constraint", ROOT / "constraints.txt", wheel_file)
    offline = ("No matching distribution", "Connection", "connection", "Temporary failure")
    if done.returncode and any(word in done.stderr for word in offline):
        pytest.skip(f"the package registry is out of reach: {done.stderr.splitlines()[-1][:120]}")
    assert done.returncode == 0, done.stderr
    return interpreter


def test_everything_in_the_packages_is_in_the_wheel_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    inside = {n for n in wheel.namelist() if ".dist-info/" not in n}
    files = (p for package in PACKAGES for p in (ROOT / package).rglob("*") if p.is_file())
    kept = {
        str(p.relative_to(ROOT))
        for p in files
        if "__pycache__" not in p.parts and p.suffix != ".part"
    }
    assert inside == kept


def test_the_wheel_fits_a_device(wheel: zipfile.ZipFile) -> None:
    assert sum(item.compress_size for item in wheel.infolist()) < 64 * 2**20


def test_the_base_requirements_are_those_of_a_device(wheel: zipfile.ZipFile) -> None:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    base = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    names = {re.match(r"[\w-]+", r)[0] for r in base}
    assert "onnxruntime" in names
    assert not names & {"torch", "stable-baselines3", "sb3-contrib", "gymnasium", "pandas"}
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_console_script_is_the_root_command_line(wheel: zipfile.ZipFile) -> None:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    assert "sliproad = agents.cli:main" in wheel.read(name).decode()


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
