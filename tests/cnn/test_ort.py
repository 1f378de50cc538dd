"""ONNX Runtime is loaded in one place, which turns its telemetry off before."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cnn", "testbed", "offload_env", "agents")
SUPPRESSORS = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "GITLAB_CI", "BUILD_ID")
"""Where one of these is set ONNX Runtime takes the machine for a test runner and is silent."""


def loads(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every module that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


@pytest.mark.slow(2)
def test_every_module_takes_it_from_there() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 100
    for path in paths:
        if path == ROOT / "cnn" / "ort.py":
            continue
        found = list(loads(path))
        ours = min((line for line, name in found if name == "cnn.ort"), default=10**9)
        theirs = [line for line, name in found if name.partition(".")[0] == "onnxruntime"]
        assert all(ours < line for line in theirs), path


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0"), ("yes", "yes")])
def test_it_is_off_before_the_library_is_loaded_unless_the_user_says_otherwise(
    given: str | None, kept: str
) -> None:
    code = """
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
import cnn.runtime
"""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [kept], done.stderr


def test_running_the_network_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    code = """
from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
SplitRuntime(load_bundle()).warm(runs=1)
"""
    silent = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", *SUPPRESSORS)
    environment = {k: v for k, v in os.environ.items() if k not in silent}
    environment["HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_providers_are_asked_in_the_given_order_and_the_cpu_last() -> None:
    from cnn.ort import checked_providers, onnxruntime

    here = onnxruntime.get_available_providers()
    assert checked_providers(["CPUExecutionProvider"]) == ("CPUExecutionProvider",)
    assert checked_providers([f" {name}" for name in here]) == tuple(here)
    for name in here:
        assert checked_providers([name])[-1] == "CPUExecutionProvider"


@pytest.mark.parametrize("given", ["NoSuchProvider", "", "CPUExecutionProvider,", "CPU"])
def test_a_provider_that_is_not_here_is_refused_with_those_that_are(given: str) -> None:
    from cnn.common.errors import ConfigError
    from cnn.ort import checked_providers, onnxruntime

    with pytest.raises(ConfigError) as refused:
        checked_providers(given.split(","))
    assert all(name in refused.value.expected for name in onnxruntime.get_available_providers())
    assert "onnxruntime-gpu" in refused.value.hint
