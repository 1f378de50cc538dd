"""The device program on networks of other forms than the shipped one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import NETWORKS, THREE_EXITS, TWO_EXITS, made_up_cost, network_id
from rows import FINISHED

from cnn.bundle import Bundle
from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED, Topology
from testbed.deploy.assembly import preflight, safe_action_of
from testbed.deploy.deployment import Sources, load
from testbed.deploy.device_file import DeviceFile, GuardSection, parse_device_file
from testbed.deploy.device_metrics import DeviceMetrics
from testbed.deploy.device_service import DeviceService
from testbed.deploy.guard import Guard
from testbed.deploy.guarded_policy import Decision, GuardedPolicy
from testbed.deploy.hot_swap import Watcher
from testbed.policy.decision_points import decision_points
from testbed.policy.observation_fields import schema_of
from testbed.policy.reference_profile import ReferenceProfile
from testbed.records.record_file import read_records
from testbed.server.mec_server import MecServer

MakeBundle = Callable[[Topology], Bundle]
WritePolicy = Callable[..., str]
each_network = pytest.mark.parametrize("topology", NETWORKS, ids=network_id)


def device_file(bundle: Bundle, more: str = "", action: str = "0") -> DeviceFile:
    return parse_device_file(f'[bundles]\nmodel = "{bundle.path}"\naction = "{action}"\n{more}')


@each_network
def test_a_device_program_measures_and_records_its_own_network(
    topology: Topology,
    tiny_bundle: MakeBundle,
    write_policy: WritePolicy,
    write_staged_policy: WritePolicy,
    tmp_path: Path,
) -> None:
    bundle, points = tiny_bundle(topology), decision_points(topology)
    look, send = topology.actions[topology.local[0]], topology.actions[points.sending[-1]]
    write_staged_policy(tmp_path / "a.policy", bundle.hash, look, send, 2.0, topology)
    write_policy(tmp_path / "b.policy", bundle.hash, look, topology)
    with MecServer(bundle) as server:
        text = f"""
        [bundles]
        model = "{bundle.path}"
        policy = "{tmp_path}/a.policy"
        shadow = "{tmp_path}/b.policy"
        [server]
        address = "{server.address}"
        [frames]
        count = 12
        period_ms = 0
        timeout_ms = 20_000
        [records]
        folder = "{tmp_path}/records"
        observations = true
        [guard]
        enabled = true
        max_delay_ms = 1e6
        """
        result = DeviceService(parse_device_file(text)).run()
    assert result["actions"] == {send.name: 12}
    (path,) = (tmp_path / "records").glob("*.parquet")
    records = read_records(path)
    assert records.topology == topology
    assert np.stack(records.table["observation"].to_pylist()).shape == (12, points.frame.obs_dim)
    for name, value in (
        *(("action", send.index), ("exit_used", send.exit), ("looks", 1 << look.exit - 1)),
        *(("policy_action", send.index), ("shadow_action", look.index)),
    ):
        assert set(records.table[name].to_pylist()) == {value}, name


@each_network
def test_metrics_name_the_actions_of_the_network(
    topology: Topology,
) -> None:
    metrics = DeviceMetrics(topology)
    for action in topology.actions:
        nothing = np.zeros(0, np.float32)
        decision = Decision(action.index, action.index, None, "policy", "p", "b", nothing)
        metrics.frame(replace(FINISHED, action=action.index), decision)
        told = {"action": action.name, "decided_by": "policy"}
        assert metrics.registry.get_sample_value("sliproad_device_actions_total", told) == 1


@each_network
def test_the_guard_notes_a_drift_of_rate_and_actions(topology: Topology) -> None:
    n, schema = topology.n_actions, schema_of(topology)
    rng, drives = np.random.default_rng(0), (8, 120)
    reference = ReferenceProfile.of_drives(
        {"uplink_mbps": rng.uniform(10, 30, drives), "rtt_ms": rng.uniform(20, 40, drives)},
        np.tile(np.arange(drives[1]) % n, (drives[0], 1)),
        n_actions=n,
        window=n,
    )
    assert len(reference.actions) == n

    def drift(uplink_mbps: float, actions: list[int]) -> tuple[str, ...]:
        seen = np.zeros(schema.obs_dim, np.float32)
        seen[:2] = schema.normalise([uplink_mbps, 30.0])
        guard = Guard(GuardSection(), 1e9, reference, topology)
        for action in actions:
            decision = Decision(action, action, None, "policy", "p", "b", seen)
            guard.observe(replace(FINISHED, action=action), decision)
        return guard.drift

    assert drift(20.0, list(range(n)) * 2) == ()
    assert drift(1.0, list(range(n)) * 2) == ("uplink_mbps",)
    assert drift(20.0, [n - 1] * 2 * n) == ("actions",)


@each_network
def test_the_safe_action_is_full_local_processing_or_a_local_one(
    topology: Topology, tiny_bundle: MakeBundle
) -> None:
    bundle, main = tiny_bundle(topology), topology.n_blocks
    assert safe_action_of(device_file(bundle), topology) == topology.index(main, main)
    for action in topology.actions:
        for text in (action.name, f" {action.name.upper()}", str(action.index)):
            file = device_file(bundle, f'[guard]\nsafe_action = "{text}"\n')
            if action.is_local:
                assert safe_action_of(file, topology) == action.index
            else:
                with pytest.raises(ConfigError, match=r"guard\.safe_action .*a local action"):
                    safe_action_of(file, topology)


@each_network
def test_what_is_of_another_network_is_refused_at_the_start(
    topology: Topology, tiny_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle, of_two = tiny_bundle(topology), "of a network with .* expected a network with"
    file = device_file(bundle)
    assert preflight(file)[0].endswith(bundle.hash[:12])
    with pytest.raises(ConfigError, match=r"action \(exit=9, split=9\)"):
        preflight(device_file(bundle, action="e9s9"))
    with pytest.raises(ConfigError, match=r"guard\.safe_action 'e9s9'"):
        preflight(device_file(bundle, '[guard]\nsafe_action = "e9s9"\n'))
    made_up_cost(SHIPPED).save(tmp_path / "cost.json")
    with pytest.raises(ConfigError, match=f"frames.pace .*cost.json {of_two}"):
        preflight(device_file(bundle, f'[frames]\npace = "{tmp_path / "cost.json"}"\n'))


def test_a_swap_to_another_network_is_refused_and_the_device_goes_on(
    tiny_bundle: MakeBundle,
    write_policy: WritePolicy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, other = tiny_bundle(THREE_EXITS), tiny_bundle(TWO_EXITS)
    sources = Sources(tmp_path / "model", tmp_path / "a.policy")

    def put(model: Bundle, topology: Topology, action: int) -> None:
        (tmp_path / "model").unlink(missing_ok=True)
        (tmp_path / "model").symlink_to(model.path)
        write_policy(tmp_path / "a.policy", model.hash, topology.actions[action], topology)

    put(own, THREE_EXITS, 0)
    running = load(sources)
    guarded = GuardedPolicy(running.policy, "p", "b", THREE_EXITS.main)
    watcher = Watcher(sources, lambda: running, guarded.observations, lambda: None, None, 0)
    put(own, TWO_EXITS, 0)  # a policy that says it is for this bundle
    watcher.check()
    put(other, TWO_EXITS, 0)
    watcher.check()
    assert (watcher.failures, watcher.take()) == (2, None)
    of_policy, of_model = [r.fields["error"] for r in caplog.records]  # type: ignore[attr-defined]
    assert "policy for a network with 2 blocks" in of_policy
    assert "restart the device" in of_model
    put(own, THREE_EXITS, 3)
    watcher.check()
    ready = watcher.take()
    assert ready is not None
    assert ready.runtime is running.runtime
    assert ready.policy.decide(np.zeros(ready.policy.space.obs_dim, np.float32)) == 3
