"""Signatures of policy files and model bundles, checked before use.

A hash finds damage; a signature finds files made by someone else. It is detached: one small JSON
file beside the policy file, or beside the manifest in a model bundle's folder. It signs the content
hash, which covers everything in the file or folder, together with the kind of the file. The
algorithm is Ed25519 (RFC 8032) of the package ``cryptography``, which only the extra ``signing``
installs; it is imported only when a key is read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from cnn.bundle import load_bundle
from cnn.common.errors import BundleError, ConfigError, SliproadError
from cnn.common.files import write_new, write_text
from cnn.common.outputs import check_file
from testbed.common.output_kinds import SIGNATURE
from testbed.policy.policy_file import PolicyBundle

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

Kind = Literal["policy", "model"]

FORMAT: Final = 1
ALGORITHM: Final = "ed25519"
SUFFIX: Final = ".sig"
_MAX_BYTES: Final = 4096
"""A signature file has about 200 bytes, a public key in PEM about 120."""


def signature_path(bundle: Path) -> Path:
    """Path of the signature of a policy file, or of a model bundle's folder."""
    signed = bundle / "manifest.json" if bundle.is_dir() else bundle
    return signed.with_name(signed.name + SUFFIX)


def signed_bytes(kind: Kind, content_hash: str) -> bytes:
    """The signed bytes, with the kind: a signature of one kind is not valid for the other."""
    return f"sliproad {kind} {FORMAT}\n{content_hash}\n".encode()


def key_name(public: Ed25519PublicKey) -> str:
    """A key's name: sixteen hexadecimal digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys whose signatures a device accepts.

    Attributes:
        keys: by `key_name`.
    """

    keys: Mapping[str, Ed25519PublicKey]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        """Read public keys (PEM).

        Raises:
            ConfigError: if one cannot be read or is not an Ed25519 public key.
            ModuleNotFoundError: without the extra ``signing``.
        """
        read = [read_public_key(path) for path in paths]
        return cls({key_name(key): key for key in read})

    def check(self, bundle: Path, kind: Kind, content_hash: str) -> str:
        """The name of the key that signed this content.

        Args:
            bundle: policy file or bundle folder; its signature is beside it.
            kind: which of the two.
            content_hash: computed from the content that was read.

        Raises:
            BundleError: if there is no signature, it is not of a trusted key, or it belongs to
                other content.
        """
        from cryptography.exceptions import InvalidSignature

        path = signature_path(bundle)
        name, signature = _read_signature(path)
        key = self.keys.get(name)
        if key is None:
            raise BundleError(
                f"{bundle} signed with key {name}",
                expected=f"a trusted key: {', '.join(sorted(self.keys)) or 'there is none'}",
                hint="sign it with one of them, or add that key to bundles.trusted_keys",
            )
        try:
            key.verify(signature, signed_bytes(kind, content_hash))
        except InvalidSignature as error:
            raise BundleError(
                f"{bundle} with content hash {content_hash[:12]}, and a signature of other content",
                expected=f"a signature of this content by key {name}",
                hint="copy bundle and signature again, or sign it with `sliproad testbed sign`",
            ) from error
        return name


def read_public_key(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key (PEM); raises `ConfigError` if it is invalid."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    hint = "give the .pub file that `sliproad testbed keygen` wrote"
    what = f"trusted key {path}"
    expected = "public key in PEM"
    key: Ed25519PublicKey = _read_key(
        path, load_pem_public_key, Ed25519PublicKey, what, expected, hint
    )
    return key


def _read_key(
    path: Path,
    load: Callable[[bytes], object],
    kind: type[Any],
    what: str,
    expected: str,
    hint: str,
) -> Any:
    """A key in a PEM file, of `kind`; raises `ConfigError`."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        key = load(_read(path))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = getattr(error, "strerror", None) or error or type(error)
        raise ConfigError(f"{what} ({why})", expected=f"a {expected}", hint=hint) from error
    if not isinstance(key, kind):
        raise ConfigError(
            f"{what} of type {type(key).__name__}", expected=f"an Ed25519 {expected}", hint=hint
        )
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")
    return text


def _read_signature(path: Path) -> tuple[str, bytes]:
    """Name of the key and the signature; raises `BundleError`."""
    try:
        raw: dict[str, Any] = json.loads(_read(path))
        if (raw["format"], raw["algorithm"]) != (FORMAT, ALGORITHM):
            raise ValueError(f"format {raw['format']!r}, algorithm {raw['algorithm']!r}")
        return str(raw["key"]), base64.b64decode(raw["signature"], validate=True)
    except FileNotFoundError as error:
        raise BundleError(
            f"no signature {path}",
            expected="a signature by a trusted key, since bundles.trusted_keys names some",
            hint="sign it with `sliproad testbed sign`",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"signature {path} ({type(error).__name__}: {error})",
            expected="a file written by `sliproad testbed sign`",
            hint="sign it again",
        ) from error


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that was written.

    Attributes:
        signature: file of the signature.
        kind: ``policy`` or ``model``.
        content_hash: of the signed content.
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
        DataError: if one cannot be written; then neither exists.
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
        private.unlink()  # we wrote it, and it is useless alone
        raise
    return key_name(key.public_key())


def sign(bundle: Path, key_path: Path) -> Signed:
    """Sign a policy file or a model bundle's folder, after checking it.

    Args:
        bundle: the file or folder to sign; the signature is written beside it.
        key_path: private key (PEM).

    Raises:
        BundleError: if the bundle is damaged.
        ConfigError: if the key cannot be used.
        DataError: if the signature cannot be written, or another file has its name.
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
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    load = partial(load_pem_private_key, password=None)
    expected = "private key in PEM, without a passphrase"
    hint = "make one with `sliproad testbed keygen`"
    what = f"private key {path}"
    key: Ed25519PrivateKey = _read_key(path, load, Ed25519PrivateKey, what, expected, hint)
    return key


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"key file {path}, which exists",
        expected="a new name: a key is never replaced",
        hint="give another --out, or move the old key away",
    )
