"""Policies and their files: same decisions as plain algebra, and refusal of what does not fit."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cnn.common.errors import BundleError
from cnn.topology import SHIPPED
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import NetworkPolicy, load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy, RandomPolicy, StaticPolicy
from testbed.policy.policy_file import PolicyBundle

SCHEMA = schema_of(SHIPPED)
FRAME = decision_points(SHIPPED).frame

HASH = "a" * 64


def layers(seed: int, sizes: tuple[int, ...] = (SCHEMA.obs_dim, 16, 12, SHIPPED.n_actions)):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)).astype(np.float32) for a, b in pairwise(sizes)]
    biases = [rng.normal(size=b).astype(np.float32) for b in sizes[1:]]
    return weights, biases


def bundle(seed: int = 0, **changes: object) -> PolicyBundle:
    weights, biases = layers(seed)
    arrays = {f"weight{i}": w for i, w in enumerate(weights)}
    arrays |= {f"bias{i}": b for i, b in enumerate(biases)}
    manifest = {
        "kind": "mlp",
        "name": "agent",
        "layers": len(weights),
        "activation": "tanh",
        "actions": list(range(SHIPPED.n_actions)),
        "observation": {"schema_hash": SCHEMA.hash},
        "bundle_hash": HASH,
    }
    return PolicyBundle({**manifest, **changes}, arrays)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_network_equals_plain_algebra_in_float64(activation: str) -> None:
    weights, biases = layers(1)
    policy = NetworkPolicy(weights, biases, space=FRAME, activation=activation)
    observations = np.random.default_rng(2).normal(size=(2000, SCHEMA.obs_dim)).astype(np.float32)
    act = np.tanh if activation == "tanh" else lambda x: np.maximum(x, 0)
    x = observations.astype(float)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = x @ w.astype(float).T + b
        x = act(x) if i < 2 else x
    np.testing.assert_allclose(policy.outputs(observations), x, rtol=1e-4, atol=1e-4)
    best = x.argmax(1)
    assert [policy.decide(o) for o in observations] == best.tolist()
    assert policy.decide_batch(observations).tolist() == best.tolist()


def test_outputs_are_mapped_to_the_action_table() -> None:
    weights, biases = layers(3, (SCHEMA.obs_dim, 8, 3))
    policy = NetworkPolicy(weights, biases, space=FRAME, actions=[19, 0, 7])
    observations = np.random.default_rng(4).normal(size=(300, SCHEMA.obs_dim)).astype(np.float32)
    expected = np.array([19, 0, 7])[policy.outputs(observations).argmax(1)]
    assert policy.decide_batch(observations).tolist() == expected.tolist()
    assert {policy.decide(o) for o in observations} == {0, 7, 19}


def test_static_and_random() -> None:
    observations = np.zeros((1000, SCHEMA.obs_dim), np.float32)
    static = StaticPolicy(19)
    assert static.decide(observations[0]) == 19
    assert set(static.decide_batch(observations)) == {19}
    a, b, other = RandomPolicy(1), RandomPolicy(1), RandomPolicy(2)
    drawn = a.decide_batch(observations)
    assert drawn.tolist() == b.decide_batch(observations).tolist()
    assert drawn.tolist() != other.decide_batch(observations).tolist()
    assert set(drawn) == set(range(SHIPPED.n_actions))
    a.reset()
    assert a.decide_batch(observations).tolist() == drawn.tolist()
    weights, biases = layers(0)
    for policy in (static, a, NetworkPolicy(weights, biases, space=FRAME)):
        assert isinstance(policy, Policy)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.policy"
    original = bundle(7)
    original.save(path)
    policy = load_policy(path, HASH)
    weights, biases = layers(7)
    observations = np.random.default_rng(8).normal(size=(500, SCHEMA.obs_dim)).astype(np.float32)
    expected = NetworkPolicy(weights, biases, space=FRAME).decide_batch(observations)
    assert policy.decide_batch(observations).tolist() == expected.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["x.policy"]


def test_static_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "s.policy"
    manifest = {**bundle().manifest, "kind": "static", "actions": [19], "name": "full local"}
    PolicyBundle(manifest, {}).save(path)
    assert load_policy(path).decide(np.zeros(SCHEMA.obs_dim, np.float32)) == 19


def test_refuses_another_model_bundle_and_another_schema(tmp_path: Path) -> None:
    path = tmp_path / "x.policy"
    bundle().save(path)
    with pytest.raises(BundleError, match="model bundle"):
        load_policy(path, "b" * 64)
    bundle(observation={"schema_hash": "0" * 64}).save(path)
    with pytest.raises(BundleError, match="schema"):
        load_policy(path, HASH)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "python"},
        {"activation": "swish"},
        {"actions": list(range(19))},
        {"actions": [*range(19), 20]},
        {"layers": 4},
        {"layers": "many"},
    ],
)
def test_refuses_nonsense_inside_a_well_formed_file(tmp_path: Path, changes) -> None:
    path = tmp_path / "x.policy"
    bundle(**changes).save(path)
    with pytest.raises(BundleError):
        load_policy(path, HASH)


def test_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    broken = bundle()
    broken.arrays["weight1"][0, 0] = np.nan
    broken.save(tmp_path / "x.policy")
    with pytest.raises(BundleError, match="not finite"):
        load_policy(tmp_path / "x.policy")


def test_refuses_changed_content(tmp_path: Path) -> None:
    path = tmp_path / "x.policy"
    bundle().save(path)
    with np.load(path) as raw:
        members = {k: raw[k] for k in raw.files}
    members["bias2"] = members["bias2"] + np.float32(1)
    with path.open("wb") as file:
        np.savez_compressed(file, **members)
    with pytest.raises(BundleError, match="content hash"):
        load_policy(path)


def test_refuses_every_truncation_and_random_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.policy"
    bundle().save(path)
    whole = path.read_bytes()
    broken = tmp_path / "broken.policy"
    with pytest.raises(BundleError):
        load_policy(broken)
    for end in range(0, len(whole), 97):
        broken.write_bytes(whole[:end])
        with pytest.raises(BundleError):
            load_policy(broken)
    rng = np.random.default_rng(0)
    reference = PolicyBundle.load(path)
    for _ in range(200):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        broken.write_bytes(bytes(data))
        # A flipped bit in a time stamp or an unused header field changes nothing.
        with contextlib.suppress(BundleError):
            assert PolicyBundle.load(broken).content_hash == reference.content_hash


def test_refuses_pickles_and_bombs(tmp_path: Path) -> None:
    path = tmp_path / "x.policy"
    with path.open("wb") as file:
        np.savez(file, manifest=np.array([{"format": 1}], object))
    with pytest.raises(BundleError):
        load_policy(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.npy", b"\0" * (65 * 2**20))
    with pytest.raises(BundleError, match="unpacks to"):
        load_policy(path)


def test_runs_without_torch_gymnasium_and_stable_baselines3(tmp_path: Path) -> None:
    path = tmp_path / "x.policy"
    bundle(9).save(path)
    code = (
        "import json, sys, numpy as np\n"
        "from testbed.policy.network_policy import load_policy\n"
        f"policy = load_policy({str(path)!r})\n"
        f"x = np.random.default_rng(1).normal(size=(50, {SCHEMA.obs_dim})).astype(np.float32)\n"
        "actions = [policy.decide(o) for o in x]\n"
        "loaded = [m for m in ('torch', 'gymnasium', 'stable_baselines3') if m in sys.modules]\n"
        "print(json.dumps([actions, loaded]))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    actions, loaded = json.loads(out.stdout)
    x = np.random.default_rng(1).normal(size=(50, SCHEMA.obs_dim)).astype(np.float32)
    assert actions == load_policy(path).decide_batch(x).tolist()
    assert loaded == []
