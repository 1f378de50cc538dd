"""The wheel holds the four packages with all their data, and asks a device for no torch."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cnn", "testbed", "offload_env", "agents")
IGNORED = shutil.ignore_patterns("__pycache__", "*.part", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this source tree, built from a copy so that nothing is left in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


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
