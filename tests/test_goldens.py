"""Figures that a rearrangement of the code must not move.

    python tests/test_goldens.py

writes ``tests/goldens/*.json`` anew from the code as it stands; the difference is then to be
reviewed like any other change. ``record.parquet`` (sixty measured rows of a live drive) and
``observations.npz`` are inputs: they are never written anew, because old ones must still be
read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from agents.baselines.rules import full_local
from agents.contenders import shipped_agents, shipped_path
from agents.rollout import Rollout, simulate
from cnn.bundle import load_bundle
from cnn.model_config import ModelConfig
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.scenario import CLASSIC
from offload_env.world import build_world
from testbed.costs.cost_fit import fit_samples
from testbed.costs.samples import Samples
from testbed.costs.terms import terms_of
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import load_policy
from testbed.records.record_file import read_records
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES, InferCall, build_response, probe_message
from testbed.wire.requests import build_request

FOLDER: Final = Path(__file__).parent / "goldens"
DRIVES: Final = 200
TOLERANCE: Final = 1e-9
"""Relative. Another processor's exponentials differ in the last bits, and sums with them."""


def drives(scenario: str) -> dict[str, Any]:
    """Outcomes of the shipped policies and of full local processing on 200 test drives."""
    world = build_world(scenario, "test")
    policies = {**shipped_agents(world), "full-local": full_local(world.topology)}
    keys = episode_keys(15, DRIVES)
    return {name: _driven(simulate(world, policy, keys)) for name, policy in policies.items()}


def _driven(rollout: Rollout) -> dict[str, Any]:
    whole = [rollout.action, rollout.row, rollout.status, rollout.correct, rollout.miss]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a, "<i8").tobytes() for a in whole))
    return {
        "decisions_rows_statuses_sha256": digest.hexdigest(),
        "delay_ms": float(rollout.delay_ms.mean()),
        "energy_mj": float(rollout.energy_mj.mean()),
        "accuracy": float(rollout.correct.mean()),
        "cost_of_each_drive": [float(f"{c:.12g}") for c in rollout.cost.mean(axis=1)],
    }


def decisions() -> dict[str, Any]:
    """What the twelve shipped policies decide about recorded observations."""
    out: dict[str, Any] = {}
    with np.load(FOLDER / "observations.npz") as recorded:
        for name in CLASSIC:
            for staged in (False, True):
                policy = load_policy(shipped_path(name, staged), load_bundle().hash)
                if policy.space is decision_points(SHIPPED).staged:
                    chosen = policy.decide_batch(recorded["staged"], recorded["points"])
                else:
                    chosen = policy.decide_batch(recorded["frame"])
                out[shipped_path(name, staged).name] = chosen.tolist()
    return out


def wire() -> dict[str, Any]:
    """Bytes of the messages between device and server, as hexadecimal digits."""
    bundle_hash, out = "0123456789abcdef" * 4, {}
    for action in SHIPPED.actions:
        if not action.is_local:
            request = build_request(bundle_hash, action.exit, action.split, (1, 4))
            request.raw_input_contents[0] = bytes(range(4))
            out[f"request {action.name}"] = request.SerializeToString(deterministic=True).hex()
    outputs = ("prediction", "confidence")
    call = InferCall(5, 0, np.zeros((2, 4), np.uint8), 40.0, "7", outputs)
    answer = build_response(
        call, np.array([3, 42], np.int16), np.array([0.25, 1], np.float32),
        server_queue_ms=0.5, server_ms=1.25, server_wait_ms=2.5, queue_length=3,
    )  # fmt: skip
    out["answer"] = answer.SerializeToString(deterministic=True).hex()
    out["probe"] = probe_message(200).hex()
    return out


def record() -> list[dict[str, Any]]:
    """Rows of a record file."""
    rows = read_records(FOLDER / "record.parquet").rows()
    return [{name: getattr(row, name) for name in row.__slots__} for row in rows]


def fit() -> dict[str, float]:
    """Coefficients of the cost model that fits an invented campaign."""
    rng, terms = np.random.default_rng(15), terms_of(SHIPPED)
    device = {term: 0.5 + 0.1 * k for k, term in enumerate(terms.device)}
    server = {term: 0.2 + 0.03 * k for k, term in enumerate(terms.server)}
    action = np.repeat([a.index for a in SHIPPED.actions], 30)
    rate, rtt = np.tile([2.0, 10.0, 50.0], 200), np.tile([60.0, 20.0, 40.0], 200)
    payload = np.array(
        [ModelConfig().payload_bytes(a.exit, a.split) for a in SHIPPED.actions], float
    )

    def total(terms: Callable[[Any], list[str]], times: dict[str, float]) -> Any:
        sums = np.array([sum(times[t] for t in terms(a)) for a in SHIPPED.actions])
        return sums[action] * np.exp(0.05 * rng.standard_normal(len(action)))

    local = np.array([a.is_local for a in SHIPPED.actions])[action]
    head = total(terms.of_head, device)
    encode = total(lambda a: [t for t in terms.of_device(a) if t.startswith("enc")], device)
    rest = total(lambda a: ["overhead"] if a.is_local else ["overhead", "send"], device)
    link = 8 * (payload[action] + WIRE_OVERHEAD_BYTES) / (1e3 * rate) + rtt + 1.25
    away = np.where(local, 0.0, link)
    at_server = np.where(local, 0.0, total(terms.of_server, server))
    wait = np.where(local, 0.0, 0.1)
    compute = head + encode + rest
    samples = Samples(
        action=action,
        condition=np.tile(["a", "b", "c"], 200),
        round=np.arange(600) % 3,
        uplink_mbps=rate,
        rtt_ms=rtt,
        head_ms=head,
        encode_ms=encode,
        compute_ms=compute,
        transfer_ms=away,
        server_queue_ms=wait,
        server_ms=at_server,
        delay_ms=compute + away + at_server + wait,
        energy_mj=compute,
    )
    return fit_samples(samples, 1.0, payload).coefficients()


GOLDENS: Final[dict[str, Callable[[], Any]]] = {
    **{f"drives-{name}": partial(drives, name) for name in CLASSIC},
    "decisions": decisions,
    "wire": wire,
    "record": record,
    "fit": fit,
}


SLOW: Final = pytest.mark.slow(30)


@pytest.mark.slow(20)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[SLOW] * n.startswith("drives")) for n in GOLDENS]
)
def test_what_the_code_gives_is_what_it_gave(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    _same(json.loads(json.dumps(GOLDENS[name]())), golden, name)


def _same(now: Any, then: Any, where: str) -> None:
    if isinstance(then, dict):
        assert set(now) == set(then), where
        for key, value in then.items():
            _same(now[key], value, f"{where}/{key}")
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for k, value in enumerate(then):
            _same(now[k], value, f"{where}/{k}")
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=TOLERANCE, abs=TOLERANCE), where
    else:
        assert now == then, where


if __name__ == "__main__":
    for golden, make in GOLDENS.items():
        target = FOLDER / f"{golden}.json"
        target.write_text(json.dumps(make(), indent=1, sort_keys=True) + "\n")
        print(target)
