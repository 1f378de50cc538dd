"""Making a key pair and signing bundles with it: where policies are trained, not on a device."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, SliproadError
from cnn.common.files import write_new, write_text
from cnn.common.outputs import check_file
from testbed.deploy.signature import (
    ALGORITHM,
    FORMAT,
    Kind,
    key_name,
    signature_path,
    signed_bytes,
)
from testbed.common.output_kinds import SIGNATURE
from testbed.policy.policy_file import PolicyBundle

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed.

    Attributes:
        signature: file of the signature.
        kind: ``policy`` or ``model``.
        content_hash: of what was signed.
        key: name of the key.
    """

    signature: Path
    kind: Kind
    content_hash: str
    key: str


def make_key_pair(private: Path, public: Path) -> str:
    """Write a new key pair (PEM); the private key can be read by its owner alone. Its name.

    Raises:
        ConfigError: if one of the files exists.
        DataError: if one cannot be written; then neither is there.
        ModuleNotFoundError: without the extra ``signing``.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for path in (private, public):
        if os.path.lexists(path):
            raise _exists(path)
    if not write_new(private, secret, 0o600):
        raise _exists(private)
    try:
        if not write_new(public, shown, 0o644):
            raise _exists(public)
    except SliproadError:
        private.unlink()  # ours, and of no use alone
        raise
    return key_name(key.public_key())


def sign(bundle: Path, key_path: Path) -> Signed:
    """Sign a policy file or a model bundle's folder, after checking that it is whole.

    Args:
        bundle: what to sign; the signature is written beside it.
        key_path: private key (PEM).

    Raises:
        BundleError: if the bundle is damaged.
        ConfigError: if the key cannot be used.
        DataError: if the signature cannot be written, or something else stands there.
        ModuleNotFoundError: without the extra ``signing``.
    """
    key = _read_private_key(key_path)
    path = signature_path(bundle)
    check_file(path, SIGNATURE, room=4096)
    kind: Kind = "model" if bundle.is_dir() else "policy"
    content_hash = (
        load_bundle(bundle).hash if kind == "model" else PolicyBundle.load(bundle).content_hash
    )
    name = key_name(key.public_key())
    signature = key.sign(signed_bytes(kind, content_hash))
    about = {
        "format": FORMAT,
        "algorithm": ALGORITHM,
        "key": name,
        "signature": base64.b64encode(signature).decode(),
    }
    write_text(path, json.dumps(about) + "\n")
    return Signed(path, kind, content_hash, name)


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"private key {path} ({getattr(error, 'strerror', None) or error})",
            expected="a private key in PEM, without a passphrase",
            hint="make one with `sliproad testbed keygen`",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"private key {path} of type {type(key).__name__}",
            expected="an Ed25519 private key",
            hint="make one with `sliproad testbed keygen`",
        )
    return key


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"key file {path}, which exists",
        expected="a new name: a key is never replaced",
        hint="give another --out, or move the old key away",
    )
