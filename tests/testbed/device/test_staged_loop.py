"""Staged decisions on the device: real network, real server process, real sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cnn.bundle import Bundle
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Action
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.link.link_process import LinkProcess
from testbed.meters.meter import NoMeter
from testbed.policy.decision_points import START, decision_points
from testbed.policy.observation_fields import schema_of
from testbed.policy.observer import Observer
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.server.server_process import ServerProcess
from testbed.traces.trace import Trace
from testbed.wire.client import MecClient

pair = SHIPPED.action
POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)

pytestmark = pytest.mark.slow(10)

AT = {field.name: field.index for field in SCHEMA.staged_fields}
PATHS = [
    [pair(1, 1).index, POINTS.answer],
    [pair(1, 1).index, pair(3, 3).index, POINTS.answer],
    [pair(5, 5).index],
    [pair(2, 0).index],
    [pair(1, 1).index, pair(3, 1).index],
    [pair(1, 1).index, pair(2, 2).index, pair(5, 4).index],
]
"""Staged actions of successive frames."""


class Scripted:
    """Plays a list of staged actions a frame and remembers what it saw."""

    name = "scripted"
    space = POINTS.staged

    def __init__(self, paths: Sequence[Sequence[int]]) -> None:
        self._paths = paths
        self.seen: list[list[tuple[int, np.ndarray]]] = []

    def reset(self) -> None:
        self._left: list[int] = []
        self._next = iter(self._paths)

    def decide(self, observation: np.ndarray, point: int = START) -> int:
        if point == 0:
            self._left = list(next(self._next))
            self.seen.append([])
        self.seen[-1].append((point, observation.copy()))
        if POINTS.has_timed_out(point) and not self._left:  # as planned, without the server
            return int(POINTS.repair[point, self._last])
        self._last = self._left.pop(0)
        assert POINTS.legal[point, self._last]
        return self._last

    def decide_batch(self, observations: np.ndarray, points: Any = None) -> np.ndarray:
        raise NotImplementedError


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> list[CameraFrame]:
    return list(open_frames("render", bundle.config.input_size, seed=1, n=len(PATHS)))


def run(
    runtime: SplitRuntime, client: MecClient | None, frames: list[CameraFrame]
) -> tuple[list[Measurement], Scripted]:
    settings = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
    policy = Scripted(PATHS)
    config = DeviceConfig(period_ms=0, timeout_ms=5000)
    device = Device(runtime, client, policy, Observer(settings), NoMeter(), config)
    return list(device.run(frames)), policy


def amounts_to(path: Sequence[int]) -> Action:
    evaluated = [SHIPPED.actions[a] for a in path if a != POINTS.answer]
    return evaluated[-1]


def test_staged_answers_are_those_of_the_action_they_amount_to(
    runtime: SplitRuntime, server: ServerProcess, bundle: Bundle, frames: list[CameraFrame]
) -> None:
    with MecClient(server.target, bundle.hash) as client:
        client.connect(10)
        rows, _ = run(runtime, client, frames)
    assert {row.status for row in rows} == {"ok"}
    for row, frame, path in zip(rows, frames, PATHS, strict=True):
        action = amounts_to(path)
        assert row.action == action.index
        prediction, confidence = runtime.act(frame.image, action)
        assert row.prediction == prediction
        assert row.confidence == pytest.approx(confidence, abs=1e-3)
        assert row.uplink_bytes == bundle.config.payload_bytes(action.exit, action.split)
        assert row.head_ms <= row.delay_ms
        evaluated = [SHIPPED.actions[a] for a in path if a in SHIPPED.local]
        assert row.looks == sum(2 ** (a.exit - 1) for a in evaluated)


def test_without_a_server_it_goes_on_from_where_it_stands(
    runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    rows, _ = run(runtime, None, frames)
    for row, frame, path in zip(rows, frames, PATHS, strict=True):
        action = amounts_to(path)
        assert row.status == ("ok" if action.is_local else "fallback")
        assert row.prediction == runtime.local(frame.image, action.exit)[0]


def test_what_was_looked_at_is_observed(runtime: SplitRuntime, frames: list[CameraFrame]) -> None:
    _, policy = run(runtime, None, frames)
    for frame, seen, path in zip(frames, policy.seen, PATHS, strict=True):
        point, first = seen[0]
        assert point == 0
        assert first.shape == (SCHEMA.staged_obs_dim,)
        assert first[AT["stage_spent_ms"]] == SCHEMA.scale_one(AT["stage_spent_ms"], 0.0)
        for (point, observation), evaluated in zip(seen[1:], path, strict=False):
            if POINTS.has_timed_out(point):
                assert observation[AT["stage_gave_up"]] == 1
                assert observation[AT["failures"]] == -1  # nothing was sent, nothing failed
                continue
            exit = SHIPPED.actions[evaluated].exit
            assert point == exit
            assert observation[AT[f"stands_at_{exit}"]] == 1
            sure = runtime.local(frame.image, exit)[1]
            for name in ("stage_confidence", f"confidence_exit{exit}"):
                assert observation[AT[name]] == pytest.approx(2 * sure - 1, abs=2e-3)
            assert observation[AT["stage_spent_ms"]] > first[AT["stage_spent_ms"]]


def early(exit: int, split: int) -> int:
    return POINTS.sending_early[POINTS.sending.index(pair(exit, split).index)]


def test_a_device_in_a_hurry_gives_up_and_goes_on_with_other_exits(
    runtime: SplitRuntime, server: ServerProcess, bundle: Bundle, frames: list[CameraFrame]
) -> None:
    """Through a link that goes down for good after two seconds; the time-out would be 30."""
    paths = [
        [pair(5, 0).index],
        [pair(1, 1).index, early(5, 2), pair(3, 3).index, POINTS.answer],
        [pair(2, 2).index, early(4, 2), POINTS.answer],
    ]
    up, down = np.full(20, 20.0), np.zeros(3000)
    trace = Trace(np.concatenate([up, down]), np.full(3020, 20.0), 0.1, "test", "5G", "generated")
    settings = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
    policy = Scripted(paths)
    config = DeviceConfig(period_ms=2200, timeout_ms=30_000, max_queue_ms=30_000)
    with (
        LinkProcess(trace, ("127.0.0.1", server.port)) as link,
        MecClient(f"{link.host}:{link.port}", bundle.hash) as client,
    ):
        client.connect(10)
        device = Device(runtime, client, policy, Observer(settings), NoMeter(), config)
        rows = list(device.run(frames[:3]))
    assert [row.status for row in rows] == ["ok", "fallback", "fallback"]
    assert [row.reason for row in rows] == ["", "timeout", "timeout"]
    assert [row.action for row in rows] == [pair(e, s).index for e, s in ((5, 0), (5, 2), (4, 2))]
    assert [row.exit_used for row in rows] == [5, 3, 2]
    assert [row.looks for row in rows] == [0, 0b101, 0b10]
    for row, frame in zip(rows, frames, strict=False):
        assert row.prediction == runtime.local(frame.image, row.exit_used)[0]
    assert rows[0].fallback_ms is None
    assert rows[1].fallback_ms
    assert rows[2].fallback_ms == 0  # the answer was known before it sent
    assert max(row.delay_ms for row in rows) < config.timeout_ms
    points = [[point for point, _ in seen] for seen in policy.seen]
    up = POINTS.point[1]
    assert points == [[0], [0, 1, up[2, 1], up[3, 3]], [0, 2, up[2, 2]]]
    for seen, failures in ((policy.seen[1], 1), (policy.seen[2], 2)):
        (_, before), (_, after) = seen[1:3]
        assert (before[AT["stage_gave_up"]], after[AT["stage_gave_up"]]) == (-1, 1)
        assert after[AT["failures"]] == pytest.approx(SCHEMA.scale_one(AT["failures"], failures))
        assert after[AT["failure_age_s"]] == -1
        assert after[AT["stage_spent_ms"]] > before[AT["stage_spent_ms"]]


def test_no_block_runs_twice(
    runtime: SplitRuntime, frames: list[CameraFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    forward = runtime.forward

    def counted(x: object, first: int, last: int) -> object:
        ran.extend(range(first, last + 1))
        return forward(x, first, last)  # type: ignore[arg-type]

    settings = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
    device = Device(
        runtime, None, Scripted([]), Observer(settings), NoMeter(), DeviceConfig(period_ms=0)
    )
    device.receive(frames[0])
    monkeypatch.setattr(runtime, "forward", counted)
    assert device.frame.advance(pair(1, 1).index) is None
    assert device.frame.advance(pair(3, 3).index) is None
    assert device.frame.advance(pair(5, 4).index) is None  # there is no server
    assert ran == [1, 2, 3, 4]
    assert device.frame.advance(pair(5, 5).index) is device.frame
    assert ran == [1, 2, 3, 4, 5]
    monkeypatch.undo()
    row = device.finish()
    assert row is not None
    assert row.prediction == runtime.local(frames[0].image, 5)[0]
