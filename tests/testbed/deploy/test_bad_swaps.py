"""A swap that fails in any way leaves the device with what it ran, and deciding."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import testbed
from cnn.bundle import load_bundle
from cnn.common.errors import BundleError
from cnn.topology import SHIPPED, Action
from testbed.deploy.deployment import Sources, load
from testbed.deploy.device_file import parse_device_file
from testbed.deploy.device_service import DeviceService
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.reference_profile import LEVELS, MAX_WINDOW
from testbed.policy.task_settings import DEFAULT_TASK

SCHEMA = schema_of(SHIPPED)

BUNDLE_HASH = load_bundle().hash
OLD, NEW = SHIPPED.action(3, 3), SHIPPED.action(2, 2)
ROOT = Path(testbed.__file__).parents[1]
PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("cnn", "testbed"))
PROMISE: dict[str, Any] = {
    "window": 30,
    "windows": 1000,
    "quantiles": {
        "delay_ms": [10.0, 20.0, 30.0, 40.0, 50.0],
        "energy_mj": [10.0, 20.0, 30.0, 40.0, 50.0],
        "confidence": [0.9, 0.95, 0.96, 0.97, 1.0],
        "miss_rate": [0.0, 0.0, 0.0, 0.0, 0.1],
        "uplink_mbps": [1.0, 2.0, 30.0, 100.0, 300.0],
        "rtt_ms": [10.0, 20.0, 30.0, 40.0, 50.0],
    },
    "actions": [1.0] + [0.0] * (SHIPPED.n_actions - 1),
    "action_shift": 0.5,
    "energy_source": "model:jetson-nano+5g-nsa-lowband",
    "levels": list(LEVELS),
}
TASK = {**DEFAULT_TASK.to_json(), "full_local_ms": 80.0, "timeout_ms": 90.0}


def write(path: Path, action: Action = NEW, **changed: Any) -> None:
    """A policy file with promise and task; its hash fits whatever is `changed` in its manifest."""
    bias = np.zeros(SHIPPED.n_actions, np.float32)
    bias[action.index] = 1.0
    arrays = {
        "weight0": np.zeros((SHIPPED.n_actions, SCHEMA.obs_dim), np.float32),
        "bias0": bias,
    }
    manifest: dict[str, Any] = {
        "format": 2,
        "kind": "mlp",
        "name": "always",
        "layers": 1,
        "activation": "tanh",
        "actions": list(range(SHIPPED.n_actions)),
        "observation": {"schema_hash": SCHEMA.hash},
        "bundle_hash": BUNDLE_HASH,
        "task": TASK,
        "metrics": {"promise": PROMISE},
        **changed,
    }
    sealed = {**manifest, "content_hash": PolicyBundle(manifest, arrays).content_hash}
    text = np.frombuffer(json.dumps(sealed).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, manifest=text, **arrays)  # type: ignore[arg-type]


class Unit:
    """A guarded device between two frames: looks for new files, and decides."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "a.policy"
        write(self.path, OLD)
        text = '[bundles]\npolicy = "a.policy"\nwatch_s = 0\n[guard]\nenabled = true\n'
        self.service = DeviceService(parse_device_file(text, folder=folder))
        self.swapper, self.watcher = self.service._swapper, self.service._watcher
        self.guarded, self.guard = self.service._guarded, self.service._guard
        self.service._full_local_ms = 70.0
        self.first = self.swapper.deployment

    def swap(self, frame_id: int = 0) -> None:
        """What happens between two frames."""
        self.watcher.check(asked=True)
        ready = self.watcher.take()
        if ready is not None:
            self.swapper.install(ready, frame_id)

    def decide(self) -> int:
        return self.guarded.decide(np.zeros(SCHEMA.obs_dim, np.float32))

    def runs_old(self) -> bool:
        """Whether the first policy runs, with everything that belongs to it."""
        assert self.guard is not None
        return (
            self.swapper.deployment is self.first
            and self.guarded.policy is self.first.policy
            and self.service._runtime.bundle is self.first.model
            and self.guard._reference is self.first.reference
            and self.service.task.timeout_ms == TASK["timeout_ms"]
            and self.decide() == OLD.index
        )


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return Unit(tmp_path)


@pytest.fixture(scope="module")
def shared_unit(tmp_path_factory: pytest.TempPathFactory) -> Unit:
    return Unit(tmp_path_factory.mktemp("unit"))


def test_a_good_file_is_put_in_place_with_its_task_and_promise(unit: Unit) -> None:
    assert unit.runs_old()
    write(unit.path, task={**TASK, "timeout_ms": 33.0})
    unit.swap()
    assert unit.decide() == NEW.index
    assert unit.service.task.timeout_ms == 33.0
    assert (unit.swapper.swaps, unit.swapper.rollbacks, unit.watcher.failures) == (1, 0, 0)


@contextmanager
def failing_at(call: int, error: BaseException) -> Iterator[list[int]]:
    """Raise `error` in the `call`-th function of this project that is called within."""
    seen = [0]

    def profile(frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(PACKAGES):
            return
        seen[0] += 1
        if seen[0] == call:
            sys.setprofile(None)
            raise error

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.mark.slow(2)
def test_an_error_at_any_step_of_a_swap_leaves_the_old_policy_in_place(unit: Unit) -> None:
    error = MemoryError()
    write(unit.path, task={**TASK, "timeout_ms": 33.0})
    with failing_at(0, error) as seen:
        unit.watcher.check(asked=True)
    ready = unit.watcher.take()
    assert ready is not None
    # Most of the calls ask the policy under test, again and again: some of them will do.
    steps = [*range(2, 120), *range(120, seen[0], max(1, seen[0] // 60))]
    for step in steps:
        before = unit.watcher.failures
        with failing_at(step, error):
            unit.watcher.check(asked=True)
        assert unit.watcher.take() is None
        assert unit.watcher.failures == before + 1
        assert unit.runs_old()
    for step in range(2, 1000):
        with failing_at(step, error):
            installed = unit.swapper.install(ready, 0)
        if installed:
            break
        assert unit.runs_old()
    assert step > 20
    assert unit.swapper.rollbacks == unit.swapper.swaps - 1 == step - 2
    assert unit.decide() == NEW.index
    assert unit.service.task.timeout_ms == 33.0


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    "changed",
    [
        {"metrics": {"promise": {**PROMISE, "window": window}}}
        for window in (2**70, MAX_WINDOW + 1, 10**9, 0, -1, True, 30.0, "30", None, [30])
    ]
    + [{"metrics": {"promise": {**PROMISE, "windows": n}}} for n in (2**70, 0, 1.5)]
    + [{"metrics": {"promise": {**PROMISE, "action_shift": n}}} for n in (2.0, -1, "1", True)]
    + [{"metrics": {"promise": {**PROMISE, "actions": a}}} for a in ([1.0], [2.0] * 20, {}, "x")]
    + [
        {"metrics": {"promise": {**PROMISE, "quantiles": q}}}
        for q in (
            {"delay_ms": [float("nan")] * 5},
            {"delay_ms": [1, 2, 3, 4, float("inf")]},
            {"delay_ms": [1, 2, 3, 4, 10**400]},
            {"delay_ms": [5, 4, 3, 2, 1]},
            {"delay_ms": [1, 2, 3, 4]},
            {"confidence": [0, 0.5, 0.6, 0.7, 1.5]},
            {"volume": [1, 2, 3, 4, 5]},
            [1],
        )
    ]
    + [{"task": {**TASK, name: value}} for name, value in (
        ("full_local_ms", 10**400), ("full_local_ms", 2e5), ("period_ms", 1e300),
        ("timeout_ms", float("nan")), ("timeout_ms", True), ("deadline_ms", "100"),
        ("max_queue_ms", -1), ("accuracy_floor", 1.5), ("tech", 5), ("power", "a" * 10**5),
        ("energy_budget_mj", 1e300), ("accuracy_floors", [0, 2]), ("odd", 1),
    )]
    + [{"actions": a} for a in ([], [*range(19), 20], [*range(19), True], "abc", None)]
    + [{"layers": n} for n in (2**70, 0, 2, -1, True, 1.0, "1", None)]
    + [{"name": n} for n in (5, "a" * 10**6, "a\nb", None, {})]
    + [{"kind": k} for k in ("static", "mlp-staged", "odd", 1, None, [])]
    + [{"activation": "sin"}, {"activation": []}, {"observation": []}, {"metrics": [1]}]
    + [{"format": f} for f in (True, 2.0, "2", 3, None)]
    + [{"bundle_hash": h} for h in (None, "0" * 64, 5, [])],
)  # fmt: skip
def test_a_number_that_no_policy_has_is_refused_before_the_swap(
    shared_unit: Unit, changed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    unit = shared_unit
    before = unit.watcher.failures + unit.swapper.rollbacks
    write(unit.path, **changed)
    unit.swap()
    assert unit.runs_old()
    assert unit.watcher.failures + unit.swapper.rollbacks == before + 1
    (line,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert len(json.dumps(line.fields)) < 2000  # type: ignore[attr-defined]


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**70, -(2**70), 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.floats(), max_size=21),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


ALL = {"metrics": {"promise": PROMISE}, "task": TASK, "actions": list(range(SHIPPED.n_actions)),
       "layers": 1, "activation": "tanh", "kind": "mlp", "name": "n", "format": 2,
       "observation": {"schema_hash": "0"}}  # fmt: skip


@pytest.fixture(scope="module")
def other_unit(tmp_path_factory: pytest.TempPathFactory) -> Unit:
    return Unit(tmp_path_factory.mktemp("unit"))


@pytest.mark.slow(4)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(places(ALL), key=str)), odd), max_size=3))
def test_whatever_stands_in_a_manifest_the_device_decides(
    other_unit: Unit, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    manifest = json.loads(json.dumps({k: v for k, v in ALL.items() if k != "observation"}))
    for path, value in changes:
        inside = manifest
        for key in path[:-1]:
            inside = inside.get(key) if isinstance(inside, dict) else None
            if not isinstance(inside, dict):
                break
        else:
            inside[path[-1]] = copy.deepcopy(value)  # one value may be drawn for two places
    unit = other_unit
    write(unit.path, NEW, **manifest)
    before = unit.swapper.deployment
    unit.swap()
    for _ in range(3):
        assert 0 <= unit.decide() < SHIPPED.n_actions
    assert unit.guarded.policy is unit.swapper.deployment.policy
    assert unit.guard is not None
    assert 1 <= unit.guard.window.size <= MAX_WINDOW
    if not changes:
        assert unit.swapper.deployment is not before


def test_a_failed_file_is_not_tried_again_until_it_changes(unit: Unit) -> None:
    write(unit.path, metrics={"promise": {**PROMISE, "window": 2**70}})
    for _ in range(5):
        unit.watcher.check()
    assert unit.watcher.failures == 1
    # Also one that passes its test, and then fails as it is put in place.
    write(unit.path, task={**TASK, "full_local_ms": 2e5})
    for _ in range(5):
        unit.watcher.check()
        ready = unit.watcher.take()
        if ready is not None:
            unit.swapper.install(ready, 0)
    assert unit.watcher.failures + unit.swapper.rollbacks == 2
    assert unit.runs_old()


def test_a_file_that_disappears_while_it_is_read_is_refused(unit: Unit) -> None:
    stamp = Sources(policy=unit.path).stamp()
    unit.path.unlink()
    assert Sources(policy=unit.path).stamp() != stamp
    with pytest.raises(BundleError):
        load(Sources(policy=unit.path))
    unit.swap()
    assert unit.runs_old()
