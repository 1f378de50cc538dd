"""Policies, bundles and certificates for the tests of a deployed device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cnn.bundle import embedded_bundle_path, manifest_hash
from cnn.topology import SHIPPED, Action, Topology
from testbed.policy.decision_points import DecisionSpace, decision_points
from testbed.policy.network_policy import NetworkPolicy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import STAGED_KIND, PolicyBundle

DAY = timedelta(days=1)


def _manifest(bundle_hash: str, name: str, space: DecisionSpace, **more: Any) -> dict[str, Any]:
    schema, other = schema_of(space.topology), space.topology != SHIPPED
    return {
        "name": name,
        "actions": list(range(space.n_actions)),
        "observation": {"schema_hash": schema.staged_hash if space.is_staged else schema.hash},
        "bundle_hash": bundle_hash,
        "layers": 1,
        "activation": "tanh",
        **({"topology": space.topology.to_json()} if other else {}),
        **more,
    }


def _replace(path: Path, bundle: PolicyBundle) -> str:
    """Write a policy file in one step; its hash."""
    beside = path.with_name(path.name + ".new")
    bundle.save(beside)
    beside.replace(path)
    return PolicyBundle.load(path).content_hash[:12]


def _write_policy(
    path: Path, bundle_hash: str, action: Action, topology: Topology = SHIPPED, **metrics: Any
) -> str:
    """A linear policy that always takes `action`; replaced in one step. Its hash."""
    space = decision_points(topology).frame
    bias = np.zeros(space.n_actions, np.float32)
    bias[action.index] = 1.0
    weight = np.zeros((space.n_actions, space.obs_dim), np.float32)
    about = _manifest(bundle_hash, f"always {action.name}", space, kind="mlp", metrics=metrics)
    return _replace(path, PolicyBundle(about, {"weight0": weight, "bias0": bias}))


def _threshold_arrays(
    look: Action, send: Action, threshold: float, topology: Topology = SHIPPED
) -> dict[str, np.ndarray]:
    """One linear layer that looks at `look`, answers above the threshold and else does `send`."""
    points, fields = decision_points(topology), schema_of(topology).staged_fields
    weight = np.zeros((points.n_actions, len(fields)), np.float32)
    bias = np.full(points.n_actions, -9.0, np.float32)
    bias[look.index], bias[send.index], bias[points.answer] = 9.0, 2 * threshold - 1, 0.0
    (confidence,) = (f.index for f in fields if f.name == "stage_confidence")
    weight[points.answer, confidence] = 1.0
    return {"weight0": weight, "bias0": bias}


def _write_staged_policy(
    path: Path,
    bundle_hash: str,
    look: Action,
    send: Action,
    threshold: float,
    topology: Topology = SHIPPED,
    **metrics: Any,
) -> str:
    """The file of such a policy, as `_write_policy`; 2 as threshold never answers, -1 always."""
    space = decision_points(topology).staged
    about = _manifest(bundle_hash, "threshold", space, kind=STAGED_KIND, metrics=metrics)
    return _replace(path, PolicyBundle(about, _threshold_arrays(look, send, threshold, topology)))


def _other_bundle(folder: Path) -> str:
    """The shipped network under another hash; its hash."""
    shutil.copytree(embedded_bundle_path(), folder)
    file = folder / "manifest.json"
    about = {**json.loads(file.read_text()), "note": "another export of the same weights"}
    about["hash"] = manifest_hash(about)
    file.write_text(json.dumps(about))
    return str(about["hash"])


@pytest.fixture(scope="session")
def write_policy() -> Callable[..., str]:
    """``write_policy(path, bundle_hash, action, **metrics)`` -> hash of the policy file."""
    return _write_policy


@pytest.fixture(scope="session")
def write_staged_policy() -> Callable[..., str]:
    """``write_staged_policy(path, bundle_hash, look, send, threshold)`` -> hash of the file."""
    return _write_staged_policy


@pytest.fixture(scope="session")
def threshold_policy() -> Callable[..., NetworkPolicy]:
    """``threshold_policy(look, send, threshold, topology=SHIPPED)``, such a policy in memory."""

    def make(
        look: Action, send: Action, threshold: float, topology: Topology = SHIPPED
    ) -> NetworkPolicy:
        arrays = _threshold_arrays(look, send, threshold, topology)
        space = decision_points(topology).staged
        return NetworkPolicy([arrays["weight0"]], [arrays["bias0"]], space=space)

    return make


@pytest.fixture(scope="session")
def other_bundle() -> Callable[[Path], str]:
    """``other_bundle(folder)`` -> hash of a bundle with the shipped weights."""
    return _other_bundle


@dataclass(frozen=True)
class Pki:
    """An authority in a folder, and the certificates it signs: ``NAME.pem`` with ``NAME.key``."""

    folder: Path
    authority: Any
    key: Any

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def make(
        self,
        name: str,
        first: datetime | None = None,
        last: datetime | None = None,
        also: tuple[x509.GeneralName, ...] = (),
    ) -> tuple[Path, Path]:
        """Certificate of 127.0.0.1 and localhost, valid from `first` to `last` (UTC; left out,
        today), and key; made anew if they are there. `also`: more alternative names."""
        now = datetime.now(UTC)
        first, last = first or now - DAY, last or now + DAY
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")), *also]
        made = (
            _certificate(name, self.authority.subject, key.public_key(), first, last)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        cert_path, key_path = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert_path, key_path


def _certificate(name: str, issuer: Any, key: Any, first: datetime, last: datetime) -> Any:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
    )


@pytest.fixture(scope="session")
def new_pki() -> Callable[..., Pki]:
    """``new_pki(folder)`` -> an authority that is valid today; or from one date to another."""
    now = datetime.now(UTC)

    def make(
        folder: Path,
        first: datetime = now - DAY,
        last: datetime = now + DAY,
        name: str = "an authority",
    ) -> Pki:
        key = ec.generate_private_key(ec.SECP256R1())
        authority = (
            _certificate(name, None, key.public_key(), first, last)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pki = Pki(folder, authority, key)
        pki.ca.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        return pki

    return make
