"""Staged policies under the pilot: shadows, failures and changes, on the real network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from networks import NETWORKS, network_id

from cnn.common.errors import BundleError
from cnn.topology import SHIPPED, Action, Topology
from testbed.deploy.deployment import Deployment, Sources, check_policy, load
from testbed.deploy.guarded_policy import Decision, GuardedPolicy, stage_start
from testbed.deploy.hot_swap import LiveRuntime, Swapper
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.meters.meter import NoMeter
from testbed.policy.decision_points import START, decision_points
from testbed.policy.network_policy import NetworkPolicy
from testbed.policy.observation_fields import schema_of
from testbed.policy.observer import Observer
from testbed.policy.policies import Policy, StaticPolicy
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement

pair = SHIPPED.action
POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)

SAFE = pair(5, 5)
SETTINGS = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
Make = Callable[..., NetworkPolicy]
Rows = list[tuple[Measurement, Decision]]


@pytest.fixture(scope="module")
def frames() -> list[CameraFrame]:
    return list(open_frames("render", 48, seed=5, n=40))


@pytest.fixture(scope="module")
def shipped() -> Deployment:
    return load(Sources(action=SAFE.name))


def drive(
    shipped: Deployment,
    frames: list[CameraFrame],
    first: Policy,
    shadow: Policy | None = None,
    change: Callable[[Swapper, int], None] = lambda swapper, number: None,
) -> tuple[Rows, Swapper]:
    """A device without clock, server and meter; offloads fall back at the block they left."""
    deployment = replace(shipped, policy=first, policy_hash="first", shadow=shadow)
    guarded = GuardedPolicy(first, "first", "", SAFE.index, shadow)
    runtime = LiveRuntime(shipped.runtime)
    swapper = Swapper(deployment, guarded, runtime, None, 20)
    device = Device(
        runtime, None, guarded, Observer(SETTINGS), NoMeter(), DeviceConfig(period_ms=0)
    )

    def stream() -> Iterator[CameraFrame]:
        for number, frame in enumerate(frames):
            change(swapper, number)
            guarded.begin(number)
            yield frame

    rows: Rows = []
    for row in device.run(stream()):
        swapper.observe(row)
        decision = guarded.take(row.frame_id)
        assert decision is not None
        rows.append((row, decision))
    assert [row.frame_id for row, _ in rows] == list(range(len(frames)))
    return rows, swapper


def confidences(shipped: Deployment, frames: list[CameraFrame], exit: int) -> np.ndarray:
    return np.array([shipped.runtime.local(frame.image, exit)[1] for frame in frames])


@pytest.mark.parametrize("topology", [SHIPPED, *NETWORKS], ids=network_id)
def test_before_a_look_the_observation_is_that_of_the_device(topology: Topology) -> None:
    base = np.zeros(schema_of(topology).obs_dim, np.float32)
    seen = Observer(SETTINGS, topology).observe_stage(base, [], 0, 0.0)
    np.testing.assert_array_equal(seen[len(base) :], stage_start(topology))


def test_a_staged_shadow_is_asked_as_far_as_the_acting_policy_looks(
    shipped: Deployment, frames: list[CameraFrame], threshold_policy: Make
) -> None:
    look, sure = pair(1, 1), confidences(shipped, frames, 1)
    middle = float(np.median(sure))
    acting = threshold_policy(look, pair(3, 2), middle)
    shadow = threshold_policy(look, pair(4, 3), float(np.quantile(sure, 0.25)))
    rows, _ = drive(shipped, frames, acting, shadow)
    alone, _ = drive(shipped, frames, shadow)
    answered = 0
    for (row, decision), (own, _), confidence in zip(rows, alone, sure, strict=True):
        expected = look if confidence > middle else pair(3, 2)
        answered += expected == look
        assert row.action == decision.action == decision.policy_action == expected.index
        assert row.looks == 1
        # It looked where the shadow would have: what the shadow does is known to the end.
        assert (decision.shadow_action, decision.shadow_open) == (own.action, False)
        assert not decision.policy_open
    assert 10 < answered < 30
    assert {d.shadow_action for _, d in rows} == {look.index, pair(4, 3).index}


def test_a_shadow_that_would_look_elsewhere_is_left_open(
    shipped: Deployment, frames: list[CameraFrame], threshold_policy: Make
) -> None:
    acting = threshold_policy(pair(1, 1), SAFE, 2.0)
    for shadow, known in (
        (threshold_policy(pair(2, 2), SAFE, -1.0), (pair(2, 2).index, True)),
        (threshold_policy(pair(2, 0), SAFE, -1.0), (pair(2, 0).index, False)),
        (threshold_policy(SAFE, SAFE, -1.0), (SAFE.index, False)),
        (StaticPolicy(pair(2, 2)), (pair(2, 2).index, False)),
    ):
        for policy in (acting, StaticPolicy(pair(3, 3))):
            rows, _ = drive(shipped, frames[:5], policy, shadow)
            assert {(d.shadow_action, d.shadow_open) for _, d in rows} == {known}
            plain, _ = drive(shipped, frames[:5], policy)
            assert [r.action for r, _ in rows] == [r.action for r, _ in plain]


def test_after_giving_up_the_acting_policy_decides_on_and_the_pair_stays_the_one_sent(
    shipped: Deployment, frames: list[CameraFrame], threshold_policy: Make
) -> None:
    send = pair(4, 3)
    acting = threshold_policy(pair(1, 1), send, 2.0)  # never sure enough, as long as it may send
    rows, _ = drive(shipped, frames[:6], acting, shadow=threshold_policy(pair(1, 1), send, 2.0))
    for (row, decision), frame in zip(rows, frames, strict=False):
        assert row.status == "fallback"
        assert row.action == decision.action == decision.policy_action == send.index
        assert not decision.policy_open
        # Without the server this policy answers with the exit it looked at.
        assert row.exit_used == 1
        assert row.prediction == shipped.runtime.local(frame.image, 1)[0]
        # What the shadow would have done then is not asked: it sent.
        assert (decision.shadow_action, decision.shadow_open) == (send.index, False)


@pytest.mark.parametrize("safe", [pair(5, 0), pair(3, 2)], ids=str)
def test_a_safe_action_that_sends_is_finished_on_the_device(
    shipped: Deployment, frames: list[CameraFrame], threshold_policy: Make, safe: Action
) -> None:
    """The policy fails where it stands after block 1, and then the server does."""
    bad = Fails(threshold_policy(pair(1, 1), SAFE, 2.0), 0)
    deployment = replace(shipped, policy=bad, policy_hash="bad")
    guarded = GuardedPolicy(bad, "bad", "", safe.index)
    device = Device(
        deployment.runtime, None, guarded, Observer(SETTINGS), NoMeter(), DeviceConfig(period_ms=0)
    )
    guarded.begin(0)
    (row,) = device.run(frames[:1])
    decision = guarded.take(0)
    assert decision is not None
    assert decision.decided_by == "safe"
    assert row.action == decision.action == pair(safe.exit, max(safe.split, 1)).index
    assert (row.status, row.exit_used) == ("fallback", safe.exit)
    assert row.prediction == shipped.runtime.local(frames[0].image, safe.exit)[0]


class Fails(NetworkPolicy):
    """A threshold policy that from the `after`-th time on fails where it stands after a block."""

    def __init__(self, plain: NetworkPolicy, after: int, answer: object = None) -> None:
        self.__dict__.update(plain.__dict__)
        self.left, self.answer = after, answer

    def decide(self, observation: np.ndarray, point: int = START) -> int:
        if point:
            self.left -= 1
        if point and self.left < 0:
            if isinstance(self.answer, int):
                return self.answer
            raise RuntimeError("out of ideas")
        return super().decide(observation, point)


@pytest.mark.parametrize("answer", [None, pair(4, 1).index, pair(2, 2).index, -1, POINTS.n_actions])
def test_a_staged_policy_that_fails_within_a_frame_is_overruled_from_where_it_stands(
    shipped: Deployment, frames: list[CameraFrame], threshold_policy: Make, answer: object
) -> None:
    # None of the answers is legal after block 2.
    bad = Fails(threshold_policy(pair(2, 2), SAFE, -1.0), 3, answer)
    rows, swapper = drive(shipped, frames[:8], bad)
    assert [row.action for row, _ in rows] == [pair(2, 2).index] * 3 + [SAFE.index] * 5
    for (row, decision), frame in zip(rows[3:], frames[3:], strict=False):
        assert row.prediction == shipped.runtime.local(frame.image, 5)[0]
        assert row.looks == 0b10010
        assert (decision.policy_action, decision.decided_by) == (None, "safe")
    assert swapper.rollbacks == 0


@pytest.mark.parametrize(
    ("once", "taken"),
    [
        (pair(4, 4), pair(4, 4)),
        (pair(4, 0), pair(4, 2)),  # the device stands after block 2 already
        (pair(5, 3), pair(5, 3)),
        (pair(1, 1), pair(2, 2)),  # that exit is behind it: what it looked at is answered
    ],
)
def test_a_staged_policy_is_taken_back_for_a_frame_level_one_within_the_frame(
    shipped: Deployment,
    frames: list[CameraFrame],
    threshold_policy: Make,
    once: Action,
    taken: Action,
) -> None:
    bad = Fails(threshold_policy(pair(2, 2), SAFE, -1.0), 2)

    def change(swapper: Swapper, number: int) -> None:
        if number == 10:
            swapper.install(replace(shipped, policy=bad, policy_hash="bad"), number)

    rows, swapper = drive(shipped, frames, StaticPolicy(once), change=change)
    actions = [SHIPPED.actions[row.action] for row, _ in rows]
    assert actions[9:14] == [once, pair(2, 2), pair(2, 2), taken, once]
    assert rows[12][1].policy_hash == "first"
    assert rows[12][1].decided_by == "policy"
    assert rows[12][1].policy_action == once.index
    assert rows[12][0].prediction == shipped.runtime.local(frames[12].image, taken.exit)[0]
    assert (swapper.rollbacks, set(actions[13:])) == (1, {once})


class FailsOnce(StaticPolicy):
    """Raises from its third decision on."""

    left = 2

    def decide(self, observation: np.ndarray, point: int = START) -> int:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of ideas")
        return super().decide(observation)


def test_a_frame_level_policy_is_taken_back_for_a_staged_one_within_the_frame(
    shipped: Deployment, frames: list[CameraFrame], threshold_policy: Make
) -> None:
    staged = threshold_policy(pair(1, 1), pair(3, 2), 2.0)

    def change(swapper: Swapper, number: int) -> None:
        if number == 10:
            bad = FailsOnce(pair(4, 4))
            swapper.install(replace(shipped, policy=bad, policy_hash="bad"), number)

    rows, swapper = drive(shipped, frames, staged, change=change)
    actions = [SHIPPED.actions[row.action] for row, _ in rows]
    assert actions == [pair(3, 2)] * 10 + [pair(4, 4)] * 2 + [pair(3, 2)] * 28
    assert [row.looks for row, _ in rows[10:14]] == [0, 0, 1, 1]
    assert {d.decided_by for _, d in rows} == {"policy"}
    assert swapper.rollbacks == 1


class Torn:
    """A segment that no longer runs."""

    def run(self, *_: object) -> None:
        raise RuntimeError("torn")


@pytest.mark.parametrize("segment", ["block1", "exit1", "block3", "exit4"])
def test_a_network_that_fails_in_a_staged_frame_is_taken_back_within_it(
    shipped: Deployment,
    frames: list[CameraFrame],
    tmp_path,
    other_bundle,
    threshold_policy: Make,
    segment: str,
) -> None:
    other_bundle(tmp_path / "model")
    new = load(Sources(model=tmp_path / "model", action="e1s1"), running=shipped)
    new.runtime._sessions[segment] = Torn()
    staged = threshold_policy(pair(1, 1), pair(4, 4), 2.0)

    def change(swapper: Swapper, number: int) -> None:
        if number == 10:
            swapper.install(replace(new, policy=staged), number)

    rows, swapper = drive(shipped, frames, staged, change=change)
    assert swapper.rollbacks == 1
    expected = [shipped.runtime.act(frame.image, pair(4, 4)) for frame in frames]
    got = [(row.prediction, row.confidence) for row, _ in rows]
    np.testing.assert_allclose(np.array(got, float), np.array(expected), rtol=1e-5)


def test_the_self_test_asks_a_staged_policy_at_every_stand(threshold_policy: Make) -> None:
    good = threshold_policy(pair(1, 1), SAFE, 0.5)
    check_policy(good, np.zeros((3, SCHEMA.obs_dim), np.float32))
    for answer in (pair(1, 1).index, POINTS.n_actions):
        with pytest.raises(BundleError, match="self-test"):
            check_policy(Fails(good, 0, answer))
    n = POINTS.n_actions
    weights = [np.full((64, SCHEMA.staged_obs_dim), 3e38, np.float32), np.ones((n, 64), np.float32)]
    biases = [np.zeros(64, np.float32), np.zeros(n, np.float32)]
    with np.errstate(all="ignore"), pytest.raises(BundleError, match="self-test"):
        check_policy(NetworkPolicy(weights, biases, space=POINTS.staged, activation="relu"))
