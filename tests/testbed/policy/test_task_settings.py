"""A policy's task: checked, carried by its file, overruled by what is given, and named then."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.common.errors import BundleError, ConfigError
from cnn.topology import SHIPPED
from testbed.policy.observation_fields import schema_of
from testbed.policy.observer import Observer
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.task_settings import (
    DEFAULT_TASK,
    Task,
    assumptions_note,
    contradictions,
    differing,
    effective_task,
)

SCHEMA = schema_of(SHIPPED)

TASK = Task(
    tech="LTE",
    accuracy_floor=0.989,
    delay_share=0.25,
    full_local_ms=80.0,
    period_ms=150.0,
    timeout_ms=60.0,
    deadline_ms=120.0,
    max_queue_ms=90.0,
    power="jetson-nano+lte",
)
WISHES = [name for name in asdict(TASK) if name not in ("accuracy_floors", "delay_shares")]
NAMES = {name: f"--{name.replace('_', '-')}" for name in WISHES} | {"period_ms": "--fps"}

times = st.floats(1e-3, 1e6)
shares = st.floats(0, 1)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Possible tasks; some serve a range of floors or weights, with the default in it."""
    floors, delays = (sorted(draw(st.lists(shares, min_size=3, max_size=3))) for _ in range(2))
    return Task(
        tech=draw(st.sampled_from(["5G", "LTE"])),
        accuracy_floor=floors[1],
        delay_share=delays[1],
        full_local_ms=draw(times),
        period_ms=draw(st.just(0.0) | times),
        timeout_ms=draw(times),
        deadline_ms=draw(times),
        max_queue_ms=draw(st.just(0.0) | times),
        power=draw(st.sampled_from(["", "jetson-nano+5g-nsa-lowband", "raspberry-pi-4+lte-tail"])),
        energy_budget_mj=draw(st.just(0.0) | times),
        accuracy_floors=draw(st.sampled_from([None, (floors[0], floors[2])])),
        delay_shares=draw(st.sampled_from([None, (delays[0], delays[2])])),
    )


@given(tasks())
def test_json_there_and_back(task: Task) -> None:
    assert Task.of_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.slow(1)
@given(tasks(), tasks(), st.sets(st.sampled_from(sorted(NAMES.keys() - {"power"}))))
def test_what_is_given_comes_first_then_the_policys_then_the_defaults(
    task: Task, other: Task, names: set[str]
) -> None:
    chosen = {name: getattr(other, name) for name in names}
    for own in (task, None):
        found = asdict(effective_task(own, {**dict.fromkeys(NAMES), **chosen}))
        base = asdict(DEFAULT_TASK if own is None else own)
        for name in WISHES:
            expected = chosen.get(
                name, base[name] or (DEFAULT_TASK.power if name == "power" else 0)
            )
            assert found[name] == (None if base[name] is None and name not in chosen else expected)
    named = {k for k, v in chosen.items() if v != getattr(task, k)}
    assert set(differing(task, chosen)) <= named


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tech": "6G"}, "tech '6G'"),
        ({"accuracy_floor": 1.2}, "accuracy_floor 1.2"),
        ({"accuracy_floor": float("nan")}, "accuracy_floor = nan"),
        ({"delay_share": -0.1}, "delay_share -0.1"),
        ({"full_local_ms": 0.0}, "full_local_ms 0"),
        ({"timeout_ms": float("inf")}, "timeout_ms = inf"),
        ({"deadline_ms": -1.0}, "deadline_ms -1"),
        ({"period_ms": -1.0}, "period_ms -1"),
        ({"max_queue_ms": float("nan")}, "max_queue_ms = nan"),
        ({"energy_budget_mj": -1.0}, "energy_budget_mj -1"),
        ({"power": "toaster"}, "toaster"),
        ({"accuracy_floors": [0.9]}, "accuracy_floors 0.9"),
        ({"delay_shares": [0.7, 0.2]}, "delay_shares 0.7..0.2"),
        ({"delay_shares": [0.5, 0.7]}, "delay_shares 0.5..0.7"),
        ({"timeout_ms": "soon"}, "timeout_ms"),
        ({"timeout_ms": True}, "timeout_ms"),
        ({"speed": 3}, "unknown key 'speed'"),
    ],
)
def test_an_impossible_task_is_refused_and_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Task.of_json({**TASK.to_json(), **changes})
    assert said in str(caught.value)


def test_every_setting_must_be_there() -> None:
    raw = TASK.to_json()
    del raw["timeout_ms"], raw["tech"]
    with pytest.raises(ConfigError, match="task without tech, timeout_ms"):
        Task.of_json(raw)
    for nonsense in (None, 3, [], "task"):
        with pytest.raises(ConfigError, match="task"):
            Task.of_json(nonsense)


def test_contradictions_are_named_as_they_were_given() -> None:
    given = {"accuracy_floor": 0.95, "period_ms": 200.0, "timeout_ms": 60.0, "tech": "5G"}
    assert contradictions(TASK, given, NAMES) == [
        "--accuracy-floor 0.95 contradicts the policy's 0.989; using 0.95",
        "--fps 5 contradicts the policy's 6.66667; using 5",
        "--tech 5G contradicts the policy's LTE; using 5G",
    ]
    assert contradictions(TASK, {"period_ms": 0.0}, NAMES) == [
        "--fps 0 contradicts the policy's 6.66667; using 0"
    ]
    assert contradictions(None, given, NAMES) == []


def test_the_same_in_other_words_contradicts_nothing() -> None:
    same = {"period_ms": 1e3 / (1e3 / 150.0), "accuracy_floor": 0.989 * (1 + 1e-9), "tech": None}
    assert differing(TASK, same) == {}
    assert differing(replace(TASK, power=""), {"power": "raspberry-pi-4+lte"}) == {}


def test_a_wish_within_the_range_that_a_policy_serves_contradicts_nothing() -> None:
    serving = replace(TASK, accuracy_floors=(0.97, 0.99), delay_shares=(0.0, 1.0))
    assert differing(serving, {"accuracy_floor": 0.972, "delay_share": 0.9}) == {}
    (line,) = contradictions(serving, {"accuracy_floor": 0.95}, NAMES)
    assert line == "--accuracy-floor 0.95 contradicts the policy's 0.97..0.99; using 0.95"


def test_the_observation_is_told_the_task() -> None:
    seen = Observer(TASK.settings()).observe(0.0, [0.5] * 6, 0.0, 0.0)
    # As the table of docs/environment.md scales them: 0..1, 0.8..1, 0..1, logarithmic 1..1000.
    expected = [-1.0, 2 * 0.189 / 0.2 - 1, -0.5, 2 * np.log(80) / np.log(1000) - 1]
    np.testing.assert_allclose(seen[SCHEMA.constants_at :], expected, rtol=1e-6)
    unknown = replace(TASK, full_local_ms=None)
    assert unknown.settings(12.5).full_local_ms == 12.5
    with pytest.raises(ValueError, match="full_local_ms"):
        unknown.settings()


def test_being_told_another_task_forgets_nothing() -> None:
    observer = Observer(TASK.settings())
    observer.record_transfer(1.0, 5000, 40.0)
    observer.record_answer(3, 7, 0.9)
    before = observer.observe(2.0, [0.5] * 6, 0.0, 0.0)
    observer.adopt(replace(TASK, accuracy_floor=0.85, tech="5G").settings())
    after = observer.observe(2.0, [0.5] * 6, 0.0, 0.0)
    assert observer.accuracy_credit == pytest.approx(0.05)
    changed = np.flatnonzero(before != after)
    assert set(changed) <= {
        21,
        SCHEMA.constants_at,
        SCHEMA.constants_at + 1,
    }
    assert {SCHEMA.constants_at, SCHEMA.constants_at + 1} <= set(changed)


def bundle(**more: Any) -> PolicyBundle:
    arrays = {
        "weight0": np.zeros((SHIPPED.n_actions, SCHEMA.obs_dim), np.float32),
        "bias0": np.zeros(SHIPPED.n_actions, np.float32),
    }
    manifest = {
        "kind": "mlp",
        "name": "agent",
        "layers": 1,
        "activation": "tanh",
        "actions": list(range(SHIPPED.n_actions)),
        "observation": {"schema_hash": SCHEMA.hash},
        "bundle_hash": "a" * 64,
    }
    return PolicyBundle({**manifest, **more}, arrays)


def sealed(path: Path, manifest: dict[str, Any], arrays: dict[str, Any]) -> Path:
    """A file with this manifest and its right content hash, whatever stands in it."""
    text = json.dumps({**manifest, "content_hash": PolicyBundle(manifest, arrays).content_hash})
    with path.open("wb") as file:
        np.savez(file, manifest=np.frombuffer(text.encode(), np.uint8), **arrays)
    return path


def test_a_file_carries_the_task(tmp_path: Path) -> None:
    path = tmp_path / "a.policy"
    bundle(task=TASK.to_json()).save(path)
    loaded = PolicyBundle.load(path)
    assert (loaded.manifest["format"], loaded.task) == (2, TASK)


def test_a_file_of_format_1_is_read_and_says_nothing(tmp_path: Path) -> None:
    content = bundle()
    path = sealed(tmp_path / "a.policy", {**content.manifest, "format": 1}, dict(content.arrays))
    assert PolicyBundle.load(path).task is None
    note = assumptions_note(path, {"timeout_ms": 60.0})
    assert "accuracy_floor 0.95" in note
    assert "full_local_ms as measured" in note
    assert "timeout_ms" not in note
    assert f"sliproad agent export --policy {path}" in note


def test_a_policy_without_a_task_is_saved_as_format_1(tmp_path: Path) -> None:
    bundle().save(tmp_path / "a.policy")
    assert PolicyBundle.load(tmp_path / "a.policy").manifest["format"] == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"format": 2}, "format 2 without a task"),
        ({"format": 3, "task": TASK.to_json()}, "format 3"),
        ({"format": 2, "task": {**TASK.to_json(), "timeout_ms": -5}}, "timeout_ms -5"),
        ({"format": 2, "task": {"tech": "5G"}}, "task without accuracy_floor"),
        ({"format": 2, "task": {**TASK.to_json(), "full_local_ms": None}}, "full_local_ms"),
        ({"format": 2, "task": [1]}, "task"),
    ],
)
def test_a_file_with_an_unusable_task_is_refused(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    content = bundle()
    path = sealed(tmp_path / "a.policy", {**content.manifest, **more}, dict(content.arrays))
    with pytest.raises(BundleError) as caught:
        PolicyBundle.load(path)
    assert said in str(caught.value)


def test_a_changed_task_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.policy"
    bundle(task=TASK.to_json()).save(path)
    with np.load(path) as raw:
        members = {name: raw[name] for name in raw.files}
    text = members["manifest"].tobytes().replace(b'"timeout_ms": 60.0', b'"timeout_ms": 90.0')
    members["manifest"] = np.frombuffer(text, np.uint8)
    with path.open("wb") as file:
        np.savez(file, **members)
    with pytest.raises(BundleError, match="content hash"):
        PolicyBundle.load(path)
