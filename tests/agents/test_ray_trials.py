"""Studies by real Ray: a killed driver, a lost node, and policies of uninterrupted trainings."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from waiting import wait_until

from testbed.policy.policy_file import PolicyBundle

pytest.importorskip("ray", reason="needs the extra 'ray'")
pytestmark = pytest.mark.slow(90)

ROOT = Path(__file__).parents[2]
SPEC = """
steps = 40960
seeds = 2
[settings]
n_envs = 16
n_steps = 16
batch_size = 128
hidden = 16
validate_every = 4096
validate_drives = 2
checkpoint_every = 2048
[grid]
gamma = [0.0, 0.9]
"""
N_TRIALS = 4
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(nodes[0], allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def start(*arguments: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """``sliproad agent tune`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "agents", "agent", "tune", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """What a driver prints at its end as JSON, which must be all that it did."""
    said, faults = driver.communicate(timeout=600)
    assert driver.returncode == 0, faults
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def policies(out: Path) -> dict[str, PolicyBundle]:
    paths = out.glob("trials/*/agent.policy")
    return {path.parent.name: PolicyBundle.load(path) for path in paths}


def same(one: PolicyBundle, other: PolicyBundle) -> bool:
    """Whether two policies are equal bit for bit.

    Only the time of writing may differ, and with it the hash of everything.
    """
    written = {"created": None, "content_hash": None}
    ours, theirs = ({**bundle.manifest, **written} for bundle in (one, other))
    assert one.arrays.keys() == other.arrays.keys()
    pairs = [(one.arrays[name], other.arrays[name]) for name in one.arrays]
    return ours == theirs and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def begun(out: Path) -> dict[str, int]:
    """How often each trial was begun: every beginning makes one file for TensorBoard."""
    folders = out.glob("trials/*/tensorboard")
    return {f.parent.name: len(list(f.glob("events.*"))) for f in folders}


def half_way(out: Path) -> bool:
    """Whether two trials are finished, and another one is at work and has a checkpoint."""
    saved = {p.parents[1].name for p in out.glob("trials/*/checkpoint/manifest.json")}
    finished = {p.parent.name for p in out.glob("trials/*/agent.policy")}
    return len(finished) >= 2 and bool(saved - finished)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "study.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def whole(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PolicyBundle]:
    """Policies of an uninterrupted study."""
    out = tmp_path_factory.mktemp("whole")
    result = result_of(start(spec, "--local", "--at-once", 2, "--out", out, "--seed", 5, "--json"))
    assert [row["seed"] for row in result["trials"]] == [5, 6, 5, 6]
    assert begun(out) == dict.fromkeys((row["trial"] for row in result["trials"]), 1)
    assert json.loads((out / "study.json").read_text())["trials"] == result["trials"]
    found = policies(out)
    for row in result["trials"]:
        metrics = found[row["trial"]].manifest["metrics"]
        assert row["cost"] == metrics["validation"]["cost"]
        assert row["accuracy"] == metrics["validation"]["accuracy"]
    return found


def test_a_trial_is_the_training_of_the_same_settings(
    whole: dict[str, PolicyBundle], tmp_path: Path
) -> None:
    """`agents.train` in this process, without Ray."""
    from agents.train_config import TrainConfig
    from agents.training import train

    name, policy = sorted(whole.items())[-1]
    config = TrainConfig(**policy.manifest["provenance"]["config"])
    train(config, tmp_path / "run")
    assert (config.gamma, config.seed, config.steps) == (0.9, 6, 40_960)
    assert same(PolicyBundle.load(tmp_path / "run" / "agent.policy"), policy), name


def test_a_study_whose_driver_was_killed_is_finished_by_resume(
    spec: Path, whole: dict[str, PolicyBundle], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    options = (spec, "--local", "--at-once", 2, "--out", out, "--seed", 5, "--json")
    driver = start(*options)
    wait_until(lambda: half_way(out) or driver.poll() is not None, 300)
    rays = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    early = {p.parent.name: p.read_bytes() for p in out.glob("trials/*/agent.policy")}
    assert 0 < len(early) < N_TRIALS
    result = result_of(start(*options, "--resume"))  # at once: Ray's processes may still be there
    for ray in rays:  # two of its agents stay
        with suppress(psutil.NoSuchProcess):
            ray.kill()
    found = policies(out)
    assert found.keys() == whole.keys() == {row["trial"] for row in result["trials"]}
    assert {name: found[name] for name in found if not same(found[name], whole[name])} == {}
    for name, content in early.items():  # finished once, and left alone since
        assert (out / "trials" / name / "agent.policy").read_bytes() == content
    counts = begun(out)
    assert {counts.pop(name) for name in early} == {1}
    assert max(counts.values()) == 2  # from its checkpoint


def test_trials_of_a_lost_node_are_finished_by_others(
    spec: Path, whole: dict[str, PolicyBundle], tmp_path: Path
) -> None:
    """Three nodes of one processor each, all at work; the second is killed."""
    out = tmp_path / "study"
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        cwd=tmp_path,
        env={**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        address = next(line for line in cluster.stdout if re.fullmatch(r"[\d.]+:\d+\n", line))
        driver = start(spec, "--address", address.strip(), "--out", out, "--seed", 5, "--json")
        saved = lambda: len(list(out.glob("trials/*/checkpoint/manifest.json")))  # noqa: E731
        wait_until(lambda: saved() >= 3 or driver.poll() is not None, 300)
        assert not policies(out), "the trials were too short"
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        assert "removed\n" in cluster.stdout
        result_of(driver)
    finally:
        cluster.communicate("\n", timeout=120)
    found = policies(out)
    assert found.keys() == whole.keys()
    assert {name: found[name] for name in found if not same(found[name], whole[name])} == {}
    assert sorted(begun(out).values()) == [1, 1, 1, 2]  # one was on the lost node


def test_a_training_that_cannot_be_is_told_and_the_others_are_finished(tmp_path: Path) -> None:
    """A file of the user's is in the way of one trial, from after the check on."""
    spec = tmp_path / "study.toml"
    spec.write_text(SPEC.replace("40960", "1024").replace("seeds = 2", "seeds = 1"))
    out = tmp_path / "study"
    (out / "trials").mkdir(parents=True)
    driver = start(spec, "--local", "--at-once", 1, "--out", out)
    wait_until(lambda: (out / "spec.json").exists() or driver.poll() is not None, 120)
    (out / "trials" / "001-urban-5g-ppo-gamma=0.9-seed0").write_text("mine")
    faults = driver.communicate(timeout=300)[1]
    assert driver.returncode == 2
    assert "error: 1 of 2 trainings failed, such as: 001-urban-5g-ppo-gamma=0.9-seed0: " in faults
    assert len(policies(out)) == 1
    assert not (out / "study.json").exists()


def test_no_cluster_is_one_line(tmp_path: Path, spec: Path) -> None:
    driver = start(spec, "--address", "127.0.0.1:9", "--out", tmp_path / "study")
    faults = driver.communicate(timeout=300)[1]
    assert driver.returncode == 2
    assert "error: no Ray cluster at 127.0.0.1:9" in faults.splitlines()[-1]


def test_the_pages_commands_run(tmp_path: Path) -> None:
    """Those of one machine; `--address` has a test above."""
    (tmp_path / "examples").mkdir()
    example = (ROOT / "examples" / "tune.toml").read_text()
    small = example.replace("200_000", "8_192").replace("100_000", "8_192")
    (tmp_path / "examples" / "tune.toml").write_text(small)
    page = (ROOT / "docs" / "studies.md").read_text()
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S))
    lines = re.findall(r"^sliproad agent tune (.*)$", blocks, re.M)
    here = [line for line in lines if "--address" not in line]
    assert (len(lines), len(here)) == (3, 2)
    for line in here:
        result = result_of(start(*shlex.split(line), "--json", cwd=tmp_path))
        assert len(result["trials"]) == 4
