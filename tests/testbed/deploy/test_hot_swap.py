"""Networks and policies changed while a device runs, with the real network and server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnn.bundle import load_bundle
from cnn.common.errors import BundleError
from cnn.topology import SHIPPED, Action
from testbed.deploy.deployment import Deployment, Sources, check_policy, check_runtime, load
from testbed.deploy.guarded_policy import GuardedPolicy
from testbed.deploy.hot_swap import LiveRuntime, Swapper, Watcher
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.meters.meter import NoMeter
from testbed.policy.decision_points import START, decision_points
from testbed.policy.network_policy import NetworkPolicy
from testbed.policy.observation_fields import schema_of
from testbed.policy.observer import Observer
from testbed.policy.policies import StaticPolicy
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.server.server_process import ServerProcess
from testbed.wire.client import MecClient

pair = SHIPPED.action
SCHEMA = schema_of(SHIPPED)

pytestmark = pytest.mark.slow(15)

WritePolicy = Callable[..., str]
LOCAL, REMOTE = pair(3, 3), pair(3, 1)
SETTINGS = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
BUNDLE_HASH = load_bundle().hash


@pytest.fixture(scope="module")
def frames() -> list[CameraFrame]:
    return list(open_frames("render", 48, seed=3, n=40))


@pytest.fixture(scope="module")
def shipped() -> Deployment:
    return load(Sources(action=LOCAL.name))


class Bench:
    """A device without a clock, and what changes its bundles."""

    def __init__(
        self, first: Deployment, client: MecClient | None = None, probation: int = 5
    ) -> None:
        self.guarded = GuardedPolicy(first.policy, first.policy_hash, "", pair(5, 5).index)
        self.runtime = LiveRuntime(first.runtime)
        self.swapper = Swapper(first, self.guarded, self.runtime, client, probation)
        config = DeviceConfig(period_ms=0, timeout_ms=5000)
        self.device = Device(
            self.runtime, client, self.guarded, Observer(SETTINGS), NoMeter(), config
        )

    def run(
        self, frames: list[CameraFrame], between: Callable[[int], None]
    ) -> Iterator[Measurement]:
        def stream() -> Iterator[CameraFrame]:
            for number, frame in enumerate(frames):
                between(number)
                self.guarded.begin(number)
                yield frame

        for row in self.device.run(stream()):
            self.swapper.observe(row)
            yield row

    def watch(self, sources: Sources, client: MecClient | None = None) -> Watcher:
        return Watcher(
            sources,
            lambda: self.swapper.deployment,
            self.guarded.observations,
            lambda: None,
            client,
            0,
        )


def test_a_changed_policy_file_acts_from_one_frame_to_the_next(
    frames: list[CameraFrame], tmp_path: Path, write_policy: WritePolicy
) -> None:
    path = tmp_path / "a.policy"
    write_policy(path, BUNDLE_HASH, pair(1, 1))
    sources = Sources(policy=path)
    bench = Bench(load(sources))
    watcher = bench.watch(sources)

    def between(number: int) -> None:
        if number == 10:
            write_policy(path, BUNDLE_HASH, pair(4, 4))
        watcher.check()
        ready = watcher.take()
        if ready is not None:
            assert (
                ready.runtime is bench.swapper.deployment.runtime
            )  # the network is not loaded anew
            bench.swapper.install(ready, number)

    rows = list(bench.run(frames, between))
    assert [row.frame_id for row in rows] == list(range(len(frames)))
    assert [row.action for row in rows] == [pair(1, 1).index] * 10 + [pair(4, 4).index] * 30
    assert (bench.swapper.swaps, bench.swapper.rollbacks) == (1, 0)
    assert not bench.swapper.on_probation


class FailsLater(StaticPolicy):
    """Passes its self-test, then raises at its third decision after it."""

    def reset(self) -> None:
        self.left = 2

    left = 10**6

    def decide(self, observation: np.ndarray, point: int = START) -> int:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of ideas")
        return super().decide(observation)


def test_a_policy_that_fails_among_its_first_frames_is_taken_back_without_losing_one(
    frames: list[CameraFrame], shipped: Deployment
) -> None:
    bench = Bench(shipped)
    bad = FailsLater(pair(1, 1))
    check_policy(bad)

    def between(number: int) -> None:
        if number == 10:
            bench.swapper.install(replace(shipped, policy=bad, policy_hash="bad"), number)

    rows = list(bench.run(frames, between))
    assert len(rows) == len(frames)
    actions = [row.action for row in rows]
    assert actions[10:12] == [pair(1, 1).index] * 2
    assert actions[12:] == [LOCAL.index] * 28
    assert bench.swapper.rollbacks == 1


class Torn:
    """A segment that no longer runs."""

    def run(self, *_: object) -> None:
        raise RuntimeError("torn")


@pytest.mark.parametrize("segment", ["block1", "block2", "exit3"])
def test_a_network_that_fails_in_a_frame_is_taken_back_within_it(
    frames: list[CameraFrame],
    shipped: Deployment,
    tmp_path: Path,
    other_bundle: Callable[[Path], str],
    segment: str,
) -> None:
    other_bundle(tmp_path / "model")
    new = load(Sources(model=tmp_path / "model", action=LOCAL.name), running=shipped)
    new.runtime._sessions[segment] = Torn()
    bench = Bench(shipped)

    def between(number: int) -> None:
        if number == 10:
            bench.swapper.install(new, number)

    rows = list(bench.run(frames, between))
    expected = [shipped.runtime.act(frame.image, LOCAL) for frame in frames]
    answers = [(row.prediction, row.confidence) for row in rows]
    np.testing.assert_allclose(np.array(answers, float), np.array(expected), rtol=1e-5)
    assert bench.swapper.rollbacks == 1
    assert bench.swapper.deployment is shipped


def test_a_network_is_changed_only_once_the_server_has_it_and_no_frame_is_lost(
    frames: list[CameraFrame],
    tmp_path: Path,
    write_policy: WritePolicy,
    other_bundle: Callable[[Path], str],
) -> None:
    link = tmp_path / "model"
    new_hash = other_bundle(tmp_path / "new")
    link.symlink_to(load_bundle().path)
    policy = tmp_path / "a.policy"
    write_policy(policy, BUNDLE_HASH, REMOTE)
    sources = Sources(model=link, policy=policy)
    server = ServerProcess().start()
    newer = ServerProcess(bundle=tmp_path / "new", port=server.port)
    try:
        with MecClient(server.target, BUNDLE_HASH) as client:
            client.connect(10)
            bench = Bench(load(sources), client)
            watcher = bench.watch(sources, client)

            def between(number: int) -> None:
                if number == 10:  # the network first: the policy does not fit it yet
                    (tmp_path / "beside").symlink_to(tmp_path / "new")
                    (tmp_path / "beside").replace(link)
                if number == 12:
                    write_policy(policy, new_hash, REMOTE)
                if number == 20:
                    server.stop()
                    newer.start()
                if number in (11, 13, 19, 21):
                    watcher.check()
                ready = watcher.take()
                if ready is not None:
                    assert number == 21
                    bench.swapper.install(ready, number)

            rows = list(bench.run(frames, between))
    finally:
        server.stop()
        newer.stop()
    assert [row.frame_id for row in rows] == list(range(len(frames)))
    assert all(row.prediction is not None for row in rows)
    assert {row.status for row in rows[:20]} == {"ok"}
    assert rows[20].status == "fallback"  # the server has the new network, the device not yet
    assert rows[-1].status == "ok"
    assert watcher.failures == 3
    assert bench.swapper.deployment.model.hash == new_hash
    assert bench.swapper.rollbacks == 0


def test_a_network_whose_frames_the_server_rejects_is_taken_back(
    frames: list[CameraFrame], tmp_path: Path, other_bundle: Callable[[Path], str]
) -> None:
    other_bundle(tmp_path / "model")
    with ServerProcess() as server, MecClient(server.target, BUNDLE_HASH) as client:
        client.connect(10)
        first = load(Sources(action=REMOTE.name))
        new = load(Sources(model=tmp_path / "model", action=REMOTE.name), running=first)
        bench = Bench(first, client)

        def between(number: int) -> None:
            if number == 10:
                bench.swapper.install(new, number)

        rows = list(bench.run(frames, between))
    assert bench.swapper.rollbacks == 1
    reasons = [row.reason for row in rows]
    assert set(reasons[:10]) == {""}
    assert set(reasons[10:15]) == {"rejected"}
    assert set(reasons[18:]) == {""}
    assert all(row.prediction is not None for row in rows)


def test_what_does_not_pass_is_not_used_and_not_tried_again_until_it_changes(
    tmp_path: Path, write_policy: WritePolicy
) -> None:
    path = tmp_path / "a.policy"
    write_policy(path, BUNDLE_HASH, LOCAL)
    sources = Sources(policy=path)
    bench = Bench(load(sources))
    watcher = bench.watch(sources)
    for bad in (b"torn", b""):
        path.write_bytes(bad)
        watcher.check()
        watcher.check()
        assert watcher.take() is None
    assert watcher.failures == 2
    watcher.check(asked=True)
    assert watcher.failures == 3
    path.unlink()
    watcher.check()
    write_policy(path, "0" * 64, LOCAL)  # made for another network
    watcher.check()
    assert watcher.take() is None
    assert watcher.failures == 5
    new = write_policy(path, BUNDLE_HASH, pair(2, 2))
    watcher.check()
    ready = watcher.take()
    assert ready is not None
    assert ready.policy_hash == new


def test_a_policy_whose_outputs_overflow_fails_its_test() -> None:
    weights = [
        np.full((64, SCHEMA.obs_dim), 3e38, np.float32),
        np.ones((20, 64), np.float32),
    ]
    biases = [np.zeros(64, np.float32), np.zeros(20, np.float32)]
    policy = NetworkPolicy(weights, biases, space=decision_points(SHIPPED).frame, activation="relu")
    with np.errstate(all="ignore"), pytest.raises(BundleError, match="self-test"):
        check_policy(policy)


def test_a_network_that_answers_nonsense_fails_its_test(shipped: Deployment) -> None:
    class Nonsense(LiveRuntime):
        def act(self, frame: np.ndarray, action: Action) -> tuple[int, float]:
            return 3, float("nan")

    check_runtime(shipped.runtime)
    with pytest.raises(BundleError, match="confidence nan"):
        check_runtime(Nonsense(shipped.runtime))
