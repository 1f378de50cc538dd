"""A plug-in's policy: made for a network, held to its actions, run by a device by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributions import install
from networks import NETWORKS, THREE_EXITS, network_id

from cnn.common.errors import BundleError, ConfigError
from cnn.common.plug_ins import PlugIn, plug_in
from cnn.topology import SHIPPED, Topology
from testbed.deploy.assembly import plug_ins_of, sources_of
from testbed.deploy.deployment import Sources, load
from testbed.deploy.device_file import load_device_file, parse_device_file
from testbed.policy.decision_points import decision_points
from testbed.policy.plugged_policy import POLICY_PLUG_INS, plugged_policies
from testbed.policy.policies import Feedback, Learner, Policy

pytestmark = pytest.mark.slow(3)

MODULE = """
import numpy as np
from testbed import decision_points

class Fixed:
    def __init__(self, topology, answer, name="fixed", space="frame"):
        self.space = getattr(decision_points(topology), space)
        self.answer, self.name, self.learnt = answer, name, 0
    def reset(self):
        pass
    def decide(self, observation, point=0):
        return self.answer
    def decide_batch(self, observations, points=None):
        return np.full(len(observations), self.answer)

class Learns(Fixed):
    memoryless = False
    def learn(self, feedback):
        self.learnt += 1

def good(topology, world=None):
    return [Fixed(topology, action.index, action.name) for action in topology.actions]

def beyond(topology, world=None):
    return [Fixed(topology, topology.n_actions)]

def below(topology, world=None):
    return [Fixed(topology, -1)]

def half(topology, world=None):
    return [Fixed(topology, 1.5)]

def staged(topology, world=None):
    return [Fixed(topology, 0, space="staged")]

def learns(topology, world=None):
    yield Learns(topology, 1)

def nothing(topology, world=None):
    return []

def number(topology, world=None):
    return [3]

def other(topology, world=None):
    from cnn.topology import Topology
    return good(Topology(2, (1, 2), (0, 1), ((8, 8, 3), (2, 4, 4))))

def needs_world(topology, world=None):
    return [Fixed(world.topology, 0)]
"""
NAMES = [line[4:].partition("(")[0] for line in MODULE.splitlines() if line.startswith("def ")]


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = "\n".join(f"{name.replace('_', '-')} = rules_plug:{name}" for name in NAMES)
    install(tmp_path / "site", "rules-plug", MODULE, {"sliproad.policies": points})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def named(name: str) -> PlugIn:
    found = plug_in(POLICY_PLUG_INS, name)
    assert found is not None
    return found


@pytest.mark.parametrize("topology", NETWORKS, ids=network_id)
def test_candidates_for_any_network(topology: Topology) -> None:
    policies = plugged_policies(named("good"), topology)
    x = np.zeros((3, decision_points(topology).frame.obs_dim), np.float32)
    assert [p.decide(x[0]) for p in policies] == list(range(topology.n_actions))
    assert [p.decide_batch(x).tolist() for p in policies[:2]] == [[0] * 3, [1] * 3]
    assert all(isinstance(p, Policy) and p.name == "good" for p in policies)
    assert policies[0].policy.name == topology.actions[0].name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", r"raised ValueError \(no policy for "),
        ("number", r"raised TypeError \(it makes int, no testbed.Policy\)"),
        ("needs-world", r"raised AttributeError"),
    ],
)
def test_one_that_makes_no_policy_is_one_line(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy {name} of rules-plug 1\.0 .*{said}"):
        plugged_policies(named(name), SHIPPED)


def test_one_for_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy other of rules-plug"):
        plugged_policies(named("other"), THREE_EXITS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("beyond", "action 15, expected 0 to 14"),
        ("below", "action -1, expected 0 to"),
        ("half", "actions float64"),
    ],
)
def test_an_action_that_there_is_not_is_refused(name: str, said: str) -> None:
    (policy,) = plugged_policies(named(name), SHIPPED)
    x = np.zeros((2, policy.space.obs_dim), np.float32)
    said = said.replace("15, expected 0 to 14", f"{SHIPPED.n_actions}, expected 0 to")
    for ask in (lambda: policy.decide(x[0]), lambda: policy.decide_batch(x)):
        with pytest.raises(ConfigError, match=f"policy {name} of rules-plug 1.0.*{said}"):
            ask()


def test_one_that_learns_is_told() -> None:
    (policy,) = plugged_policies(named("learns"), SHIPPED)
    assert isinstance(policy, Learner)
    policy.learn(Feedback(*(np.zeros(1) for _ in range(5))))  # type: ignore[arg-type]
    assert policy.policy.learnt == 1  # type: ignore[attr-defined]
    (quiet,) = plugged_policies(named("below"), SHIPPED)
    quiet.learn(Feedback(*(np.zeros(1) for _ in range(5))))  # type: ignore[arg-type]


def test_a_device_runs_the_first_candidate() -> None:
    deployment = load(Sources(plug_in="good"))
    x = np.zeros(deployment.policy.space.obs_dim, np.float32)
    assert deployment.policy.decide(x) == 0
    assert (deployment.policy.name, deployment.policy_hash) == ("good", "rules-plug 1.0")
    assert deployment.task is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("below", "policy below of rules-plug 1.0"),
        ("staged", "action 0, not legal at decision point"),
        ("needs-world", "raised AttributeError"),
        ("absent", "no such file, and no plug-in of this name; expected a policy file, or one of"),
    ],
)
def test_a_device_refuses_one_that_cannot_decide(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(Sources(plug_in=name))


def test_signed_bundles_alone_means_no_plug_in(tmp_path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate().public_key()
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "k.pub").write_bytes(pem)
    with pytest.raises(BundleError, match=r"policy good of rules-plug .*trusted_keys"):
        load(Sources(plug_in="good", trusted_keys=(tmp_path / "k.pub",)))


def test_a_word_that_is_no_file_is_a_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "device.toml"
    path.write_text('[bundles]\npolicy = "good"\n')
    file = load_device_file(path)
    sources = sources_of(file)
    assert (sources.policy, sources.plug_in) == (None, "good")
    assert plug_ins_of(file) == ["policy good of rules-plug 1.0 (rules_plug:good)"]
    (tmp_path / "good").write_bytes(b"")  # now there is such a file beside the configuration
    sources = sources_of(load_device_file(path))
    assert (sources.policy, sources.plug_in) == (tmp_path / "good", None)
    monkeypatch.chdir(tmp_path)
    for text in ("a.policy", "./good", "good"):
        assert sources_of(parse_device_file(f'[bundles]\npolicy = "{text}"')).plug_in is None
