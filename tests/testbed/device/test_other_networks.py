"""The device loop on networks of other forms than the shipped one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, THREE_EXITS, TWO_EXITS, made_up_cost, network_id

from cnn.bundle import Bundle
from cnn.common.errors import BundleError, ConfigError
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Topology
from testbed.deploy.deployment import Deployment, Sources, check_runtime, device_segments, load
from testbed.deploy.guarded_policy import Decision, GuardedPolicy
from testbed.deploy.hot_swap import LiveRuntime
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.device.processor import Pace, full_local_ms
from testbed.meters.meter import NoMeter
from testbed.policy.decision_points import START, decision_points
from testbed.policy.network_policy import NetworkPolicy, load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.observer import Observer
from testbed.policy.policies import Policy, StaticPolicy
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.server.mec_server import MecServer
from testbed.wire.client import MecClient

MakeBundle = Callable[[Topology], Bundle]
Rows = list[tuple[Measurement, Decision]]
SETTINGS = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
each_network = pytest.mark.parametrize("topology", NETWORKS, ids=network_id)


class RandomStaged:
    """Any legal action at every decision point, drawn from a seed; it notes what it saw.

    `patient`: none with an early time-out, which a busy machine would exceed.
    """

    name = "random staged"

    def __init__(self, topology: Topology, patient: bool = False) -> None:
        self.points = decision_points(topology)
        self.space = self.points.staged
        self._drawn = self.points.legal & ~(self.points.times_out_early & patient)
        self.seen: list[tuple[int, np.ndarray, int]] = []

    def reset(self) -> None:
        self._rng = np.random.default_rng(0)
        self.seen.clear()

    def decide(self, observation: np.ndarray, point: int = START) -> int:
        action = int(self._rng.choice(np.flatnonzero(self._drawn[point])))
        self.seen.append((point, observation.copy(), action))
        return action

    def decide_batch(self, observations: np.ndarray, points: Any = None) -> np.ndarray:
        raise NotImplementedError


def frames_for(bundle: Bundle, n: int) -> list[CameraFrame]:
    return list(open_frames("render", bundle.config.input_size, seed=1, n=n))


def device_of(
    runtime: SplitRuntime, policy: Policy, client: MecClient | None = None, **config: Any
) -> Device:
    settings = DeviceConfig(**{"period_ms": 0, "timeout_ms": 20_000, **config})
    observer = Observer(SETTINGS, runtime.topology)
    return Device(runtime, client, policy, observer, NoMeter(), settings)


def guarded_rows(
    deployment: Deployment, frames: Iterable[CameraFrame], client: MecClient | None = None
) -> Rows:
    """A guarded device of `deployment`: what it measured, and each frame's decision."""
    main = deployment.model.topology.main
    guarded = GuardedPolicy(deployment.policy, "p", "b", main, deployment.shadow)

    def numbered() -> Iterator[CameraFrame]:
        for number, frame in enumerate(frames):
            guarded.begin(number)
            yield frame

    rows = []
    for row in device_of(LiveRuntime(deployment.runtime), guarded, client).run(numbered()):
        decision = guarded.take(row.frame_id)
        assert decision is not None
        rows.append((row, decision))
    return rows


def policy_file(path: Path, bundle: Bundle, seed: int = 0) -> PolicyBundle:
    """A frame policy of one random linear layer, saved to `path`."""
    space, rng = decision_points(bundle.topology).frame, np.random.default_rng(seed)
    arrays = {
        "weight0": rng.normal(size=(space.n_actions, space.obs_dim)).astype(np.float32),
        "bias0": rng.normal(size=space.n_actions).astype(np.float32),
    }
    manifest = {
        "kind": "mlp",
        "name": "linear",
        "actions": list(range(space.n_actions)),
        "observation": {"schema_hash": schema_of(bundle.topology).hash},
        "bundle_hash": bundle.hash,
        "topology": bundle.topology.to_json(),
        "layers": 1,
        "activation": "tanh",
    }
    PolicyBundle(manifest, arrays).save(path)
    return PolicyBundle.load(path)


@pytest.mark.parametrize("served", [True, False], ids=["server", "alone"])
@each_network
def test_a_staged_device_answers_as_the_network_does_for_the_pair_it_took(
    topology: Topology, served: bool, tiny_bundle: MakeBundle
) -> None:
    bundle = tiny_bundle(topology)
    runtime, frames = SplitRuntime(bundle), frames_for(bundle, 40)
    policy, fields = RandomStaged(topology, patient=served), schema_of(topology).staged_fields
    if served:
        with MecServer(bundle) as server, MecClient(server.address, bundle.hash) as client:
            client.connect(20)
            rows = list(device_of(runtime, policy, client).run(frames))
    else:
        rows = list(device_of(runtime, policy).run(frames))
    starts = [i for i, (point, _, _) in enumerate(policy.seen) if point == START]
    assert len(starts) == len(rows) == len(frames)
    taken = [policy.seen[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    for row, frame, steps in zip(rows, frames, taken, strict=True):
        pair = topology.actions[row.action]
        pairs = [policy.points.pair(a) for _, _, a in steps if a != policy.points.answer]
        sent = [p for p in pairs if not p.is_local]
        assert pair == (sent[0] if sent else pairs[-1])
        assert row.status == ("fallback" if sent and not served else "ok")
        if row.status == "ok":
            assert row.exit_used == pair.exit
            expected = runtime.act(frame.image, pair)
        else:
            assert row.exit_used == next(p.exit for p in reversed(pairs) if p.is_local)
            expected = runtime.local(frame.image, row.exit_used)
        assert row.prediction == expected[0]
        assert row.confidence == pytest.approx(expected[1], abs=1e-3)
        assert row.uplink_bytes == (topology.payload_bytes[row.action] if served else 0)
        looks = {p.exit for p in pairs if p.is_local}
        assert row.looks == sum(2 ** (exit - 1) for exit in looks)
        for point, seen, _ in steps:
            told = dict(zip((f.name for f in fields), seen, strict=True))
            block = policy.points.block[point]
            stands = {n: v for n, v in told.items() if n.startswith("stands_at_")}
            assert stands == {n: 1.0 if n == f"stands_at_{block}" else -1.0 for n in stands}
            assert told["stage_gave_up"] == (1.0 if policy.points.has_timed_out(point) else -1.0)
            evaluated = policy.points.evaluated[point]
            if evaluated:
                at_exit = told[f"confidence_exit{evaluated}"]
                assert at_exit == pytest.approx(told["stage_confidence"], abs=1e-6)
    assert len({row.action for row in rows}) > topology.n_actions / 3


@each_network
def test_a_frame_policy_of_a_file_decides_for_its_network(
    topology: Topology, tiny_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = tiny_bundle(topology)
    saved = policy_file(tmp_path / "a.policy", bundle)
    assert saved.topology == topology
    deployment = load(Sources(model=bundle.path, policy=tmp_path / "a.policy"))
    check_runtime(deployment.runtime)
    with MecServer(bundle) as server, MecClient(server.address, bundle.hash) as client:
        client.connect(20)
        rows = guarded_rows(deployment, frames_for(bundle, 25), client)
    weight, bias = saved.arrays["weight0"], saved.arrays["bias0"]
    for (row, decision), frame in zip(rows, frames_for(bundle, 25), strict=True):
        assert (row.status, decision.decided_by) == ("ok", "policy")
        assert row.action == decision.action == int(np.argmax(weight @ decision.observation + bias))
        expected = deployment.runtime.act(frame.image, topology.actions[row.action])
        assert (row.prediction, row.confidence) == pytest.approx(expected, abs=1e-3)
    loaded = load_policy(tmp_path / "a.policy", bundle.hash, topology)
    seen = np.stack([decision.observation for _, decision in rows])
    assert loaded.decide_batch(seen).tolist() == [row.action for row, _ in rows]


@each_network
def test_a_shadow_is_asked_again_where_the_acting_policy_evaluated_its_exit(
    topology: Topology, tiny_bundle: MakeBundle, threshold_policy: Callable[..., NetworkPolicy]
) -> None:
    bundle, last = tiny_bundle(topology), topology.actions[-1]
    deployment = load(Sources(model=bundle.path, action=last.name))
    for exit in topology.exits[:-1]:
        look = topology.action(exit, exit)
        policy = threshold_policy(look, last, 2.0, topology)  # looks, then runs to the end
        shadow = threshold_policy(look, last, -1.0, topology)  # looks, and answers with that
        both = replace(deployment, policy=policy, shadow=shadow)
        for row, decision in guarded_rows(both, frames_for(bundle, 4)):
            assert (row.action, decision.policy_action) == (last.index, last.index)
            assert (decision.shadow_action, decision.shadow_open) == (look.index, False)


@each_network
def test_the_pace_of_an_action_is_that_of_its_parts(topology: Topology) -> None:
    pace = Pace.of(made_up_cost(topology), 40.0)
    assert pace.device_ms[topology.index(topology.n_blocks, topology.n_blocks)] == 40.0
    assert pace.full_local_ms == 40.0
    for action in topology.actions:
        assert sum(pace.parts_ms(action)) == pytest.approx(pace.device_ms[action.index])
        first = pace.parts_ms(action)[0]
        for block in (b for b in range(1, action.split + 1) if b in topology.exits):
            whole = pace.standing_ms[block] + sum(pace.parts_ms(action, block))
            assert whole == pytest.approx(pace.device_ms[action.index])
            assert pace.parts_ms(action, block)[0] < first


@each_network
def test_a_device_loads_everything_but_the_decoders(
    topology: Topology, tiny_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, used = tiny_bundle(topology), set()
    read = Bundle.segment_bytes

    def noted(self: Bundle, name: str) -> bytes:
        used.add(name)
        return read(self, name)

    monkeypatch.setattr(Bundle, "segment_bytes", noted)
    runtime = SplitRuntime(bundle)
    runtime.warm(device_segments(topology), runs=1)
    loaded = set(used)
    list(device_of(runtime, RandomStaged(topology)).run(frames_for(bundle, 20)))
    assert full_local_ms(runtime, runs=2) > 0
    assert used == loaded == {n for n in topology.segments if not n.startswith("dec")}


@each_network
def test_what_is_of_another_network_is_refused(topology: Topology, tiny_bundle: MakeBundle) -> None:
    of_two = "of a network with .* expected a network with"
    runtime, policy = SplitRuntime(tiny_bundle(topology)), StaticPolicy(0, topology=topology)
    with pytest.raises(ConfigError, match=f"pace 'made up from seed 0' {of_two}"):
        device_of(runtime, policy, pace=Pace.of(made_up_cost(SHIPPED)))
    with pytest.raises(ConfigError, match=f"policy 'static e1s0' {of_two}"):
        device_of(runtime, StaticPolicy(0))
    with pytest.raises(ConfigError, match=f"observer {of_two}"):
        Device(runtime, None, policy, Observer(SETTINGS), NoMeter(), DeviceConfig())


def test_a_policy_of_another_network_is_refused_even_with_the_bundles_hash(
    tiny_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle, path = tiny_bundle(THREE_EXITS), tmp_path / "a.policy"
    policy_file(path, replace(bundle, topology=TWO_EXITS))
    refused = "policy for a network with 2 blocks.*expected a network with 4 blocks"
    with pytest.raises(BundleError, match=refused):
        load_policy(path, bundle.hash, THREE_EXITS)
    for sources in (Sources(bundle.path, path), Sources(bundle.path, action="0", shadow=path)):
        with pytest.raises(BundleError, match=refused):
            load(sources)
