"""An unattended device does what its policy was trained for, unless its file says otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnn.bundle import load_bundle
from cnn.common.errors import BundleError
from cnn.topology import SHIPPED, Action
from testbed.deploy.deployment import Sources, load
from testbed.deploy.device_file import parse_device_file
from testbed.deploy.device_service import DeviceService
from testbed.deploy.record_folder import record_files
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.task_settings import DEFAULT_TASK, Task
from testbed.records.measurement import Measurement
from testbed.records.record_file import read_records

pair = SHIPPED.action

WritePolicy = Callable[..., str]
BUNDLE_HASH = load_bundle().hash
FIRST = Task("LTE", 0.98, 0.25, 80.0, 20.0, 60.0, 70.0, 5000.0, "jetson-nano+lte-tail")
SECOND = Task("5G", 0.9, 0.75, 7.0, 30.0, 35.0, 50.0, 6000.0, "raspberry-pi-4+5g-nsa-lowband")


def write(path: Path, task: Task | None, write_policy: WritePolicy, action: Action) -> str:
    """A policy file that carries a task; its hash."""
    write_policy(path, BUNDLE_HASH, action)
    if task is not None:
        bundle = PolicyBundle.load(path)
        replace(bundle, manifest={**bundle.manifest, "task": task.to_json()}).save(path)
    return PolicyBundle.load(path).content_hash[:12]


def service(folder: Path, more: str = "", bundles: str = 'policy = "a.policy"') -> DeviceService:
    return DeviceService(parse_device_file(f"[bundles]\n{bundles}\n{more}", folder=folder))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_what_the_file_leaves_out_is_as_the_policy_says(
    tmp_path: Path, write_policy: WritePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.policy", FIRST, write_policy, pair(1, 1))
    assert service(tmp_path).task == FIRST
    assert warnings_of(caplog) == []


def test_what_contradicts_the_policy_is_used_and_named(
    tmp_path: Path, write_policy: WritePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.policy", FIRST, write_policy, pair(1, 1))
    more = (
        "[frames]\ntimeout_ms = 250\nperiod_ms = 20\n"
        '[drive]\naccuracy_floor = 0.95\n[meter]\npower = "jetson-nano+lte"\n'
    )
    task = service(tmp_path, more).task
    power = "jetson-nano+lte"
    assert task == replace(FIRST, timeout_ms=250.0, accuracy_floor=0.95, power=power)
    assert warnings_of(caplog) == [
        "drive.accuracy_floor 0.95 contradicts the policy's 0.98; using 0.95",
        "frames.timeout_ms 250 contradicts the policy's 60; using 250",
        "meter.power jetson-nano+lte contradicts the policy's jetson-nano+lte-tail; "
        "using jetson-nano+lte",
    ]


def test_without_a_policy_that_says_the_defaults_hold(
    tmp_path: Path, write_policy: WritePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    action = service(tmp_path, "[drive]\naccuracy_floor = 0.9\n", 'action = "e1s1"').task
    assert action == replace(DEFAULT_TASK, accuracy_floor=0.9)
    assert warnings_of(caplog) == []
    write(tmp_path / "a.policy", None, write_policy, pair(1, 1))
    assert service(tmp_path, "[frames]\ntimeout_ms = 60\n").task == replace(
        DEFAULT_TASK, timeout_ms=60.0
    )
    (line,) = warnings_of(caplog)
    assert "format 1" in line
    assert "accuracy_floor 0.95" in line
    assert "timeout_ms" not in line


def test_a_shadow_trained_for_another_task_is_named(
    tmp_path: Path, write_policy: WritePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.policy", FIRST, write_policy, pair(1, 1))
    write(tmp_path / "b.policy", replace(FIRST, delay_share=0.5), write_policy, pair(1, 1))
    task = service(tmp_path, bundles='policy = "a.policy"\nshadow = "b.policy"').task
    assert task == FIRST
    (line,) = warnings_of(caplog)
    assert "shadow" in line
    assert "delay_share 0.25 (0.5)" in line


def test_a_task_that_no_device_can_follow_is_refused_with_its_file(
    tmp_path: Path, write_policy: WritePolicy
) -> None:
    path = tmp_path / "a.policy"
    write(path, FIRST, write_policy, pair(1, 1))
    bundle = PolicyBundle.load(path)
    task = {**FIRST.to_json(), "power": "toaster+lte"}
    replace(bundle, manifest={**bundle.manifest, "task": task}).save(path)
    with pytest.raises(BundleError, match="toaster"):
        load(Sources(policy=path))


class Swapping(DeviceService):
    """A device whose policy file is replaced before its tenth frame."""

    replacement: Callable[[], object]

    def _measured(self, row: Measurement) -> None:
        super()._measured(row)
        if row.frame_id == 8:
            self.replacement()
            self._watcher.check()


@pytest.mark.slow(1)
def test_a_new_policy_brings_its_task_to_what_the_file_leaves_out(
    tmp_path: Path, write_policy: WritePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "a.policy"
    old = write(path, FIRST, write_policy, pair(1, 1))
    text = (
        '[bundles]\npolicy = "a.policy"\nwatch_s = 0\n[frames]\ncount = 20\ndeadline_ms = 70\n'
        '[records]\nfolder = "rec"\nobservations = true\n[guard]\nenabled = true\n'
        "max_delay_ms = 60000\n"
    )
    unit = Swapping(parse_device_file(text, folder=tmp_path))
    unit.replacement = lambda: write(path, SECOND, write_policy, pair(2, 2))
    unit.run()
    told = replace(SECOND, deadline_ms=70.0)
    assert unit.task == told
    assert unit.summary.deadline_ms == 70.0
    assert "frames.deadline_ms 70 contradicts the policy's 50; using 70" in warnings_of(caplog)
    (file,) = record_files(tmp_path / "rec")
    table = read_records(file).table
    assert set(table["status"].to_pylist()) == {"ok"}
    seen = np.array(table["observation"].to_pylist(), np.float32)[
        :, schema_of(SHIPPED).constants_at :
    ]
    former = np.array([h == old for h in table["policy_hash"].to_pylist()])
    assert former.sum() in (9, 10)
    for rows, task in ((former, FIRST), (~former, told)):
        expected = np.tile(np.float32(task.settings().scaled()), (rows.sum(), 1))
        np.testing.assert_array_equal(seen[rows], expected)
        sources = {
            s for s, row in zip(table["energy_source"].to_pylist(), rows, strict=True) if row
        }
        assert sources == {f"model:{task.power}"}
    steps_ms = 1e3 * np.diff(table["captured_s"].to_numpy())
    first_new = int(former.sum())  # captured as was planned, the next one at the new pace
    expected = [FIRST.period_ms] * first_new + [SECOND.period_ms] * (19 - first_new)
    np.testing.assert_allclose(steps_ms, expected, atol=1e-3)
