"""Signed bundles: made by the command line, checked by the device, and by openssl."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cnn.bundle import load_bundle, manifest_hash
from cnn.common.errors import BundleError, ConfigError
from cnn.topology import SHIPPED
from testbed.deploy.deployment import Sources, load
from testbed.deploy.signing import TrustedKeys, make_key_pair, sign, signature_path, signed_bytes
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.task_settings import DEFAULT_TASK

BUNDLE_HASH = load_bundle().hash
LOOK, SEND = SHIPPED.action(1, 1), SHIPPED.action(3, 1)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half is ``release.key.pub``."""
    path = tmp_path / "release.key"
    make_key_pair(path, public(path))
    return path


def public(private: Path) -> Path:
    return private.with_name(private.name + ".pub")


@pytest.fixture
def policy(tmp_path: Path, write_policy: Callable[..., str]) -> Path:
    write_policy(tmp_path / "a.policy", BUNDLE_HASH, LOOK)
    return tmp_path / "a.policy"


def sources(policy: Path, *keys: Path, **more: Path) -> Sources:
    return Sources(policy=policy, trusted_keys=tuple(map(public, keys)), **more)


def test_the_signature_is_plain_ed25519_over_the_content_hash(
    tmp_path: Path, key: Path, policy: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    signed = sign(policy, key)
    assert signed.signature == tmp_path / "a.policy.sig"
    about = json.loads(signed.signature.read_text())
    (tmp_path / "raw").write_bytes(base64.b64decode(about["signature"]))
    text = f"sliproad policy 1\n{PolicyBundle.load(policy).content_hash}\n"
    for name, said, code in (("message", text, 0), ("other", text + " ", 1)):
        (tmp_path / name).write_text(said)
        command = "openssl pkeyutl -verify -pubin -rawin -inkey release.key.pub -sigfile raw -in"
        done = subprocess.run([*command.split(), name], cwd=tmp_path, capture_output=True)
        assert done.returncode == code, done


def test_a_private_key_is_its_owners_alone_and_never_replaced(tmp_path: Path, key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        make_key_pair(key, tmp_path / "new.pub")
    with pytest.raises(ConfigError, match="exists"):
        make_key_pair(tmp_path / "new.key", public(key))
    assert key.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"release.key", "release.key.pub"}


def test_signed_bundles_of_every_kind_are_used(
    tmp_path: Path,
    key: Path,
    policy: Path,
    other_bundle: Callable[[Path], str],
    write_policy: Callable[..., str],
    write_staged_policy: Callable[..., str],
) -> None:
    model_hash = other_bundle(tmp_path / "model")
    write_policy(policy, model_hash, LOOK)
    shadow = tmp_path / "b.policy"
    write_staged_policy(shadow, model_hash, LOOK, SEND, 0.5)
    another = tmp_path / "another.key"
    make_key_pair(another, public(another))
    every = sources(policy, another, key, model=tmp_path / "model", shadow=shadow)
    for bundle in (policy, shadow, tmp_path / "model"):
        with pytest.raises(BundleError, match="signature"):
            load(every)
        sign(bundle, key)
    assert load(every).model.hash == model_hash
    assert load_bundle(tmp_path / "model").hash == model_hash  # the signature is no part of it
    # What comes with the installation and the configuration needs none.
    load(Sources(action="e1s1", trusted_keys=(public(key),)))


def test_another_key_is_refused_and_named(tmp_path: Path, key: Path, policy: Path) -> None:
    other = tmp_path / "other.key"
    name = make_key_pair(other, public(other))
    sign(policy, other)
    with pytest.raises(BundleError, match=f"signed with key {name}"):
        load(sources(policy, key))
    # The right name over the wrong key's signature does not help.
    path = signature_path(policy)
    trusted = TrustedKeys.read([public(key)])
    about = json.loads(path.read_text()) | {"key": next(iter(trusted.keys))}
    path.write_text(json.dumps(about))
    with pytest.raises(BundleError, match="other content"):
        load(sources(policy, key))


def test_other_content_is_refused_even_if_its_hashes_are_in_order(
    tmp_path: Path,
    key: Path,
    policy: Path,
    write_policy: Callable[..., str],
    other_bundle: Callable[[Path], str],
) -> None:
    sign(policy, key)
    load(sources(policy, key))
    write_policy(policy, BUNDLE_HASH, SEND)  # a whole, valid policy file
    with pytest.raises(BundleError, match="other content"):
        load(sources(policy, key))
    other_bundle(tmp_path / "model")
    sign(tmp_path / "model", key)
    file = tmp_path / "model" / "manifest.json"
    about = {**json.loads(file.read_text()), "note": "tampered with, and hashed again"}
    about["hash"] = manifest_hash(about)
    file.write_text(json.dumps(about))
    assert load_bundle(tmp_path / "model").hash == about["hash"]
    with pytest.raises(BundleError, match="other content"):
        load(Sources(model=tmp_path / "model", action="e1s1", trusted_keys=(public(key),)))


def test_a_signature_of_a_model_is_none_of_a_policy(key: Path, policy: Path) -> None:
    sign(policy, key)
    trusted, content = TrustedKeys.read([public(key)]), PolicyBundle.load(policy).content_hash
    trusted.check(policy, "policy", content)
    with pytest.raises(BundleError, match="other content"):
        trusted.check(policy, "model", content)
    assert signed_bytes("policy", content) != signed_bytes("model", content)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 2}', "x" * 10_000, '{"format":1,"algorithm":"none"}']
)
def test_a_damaged_signature_is_refused(key: Path, policy: Path, text: str) -> None:
    sign(policy, key)
    signature_path(policy).write_text(text)
    with pytest.raises(BundleError, match="signature"):
        load(sources(policy, key))


@pytest.mark.parametrize("damage", ["", "a", "=", "AAAA"])
def test_a_signature_of_the_wrong_length_is_refused(key: Path, policy: Path, damage: str) -> None:
    sign(policy, key)
    path = signature_path(policy)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"signature": damage}))
    with pytest.raises(BundleError, match="signature"):
        load(sources(policy, key))


def test_what_is_no_key_is_named(tmp_path: Path, key: Path, policy: Path) -> None:
    other = tmp_path / "rsa.key"
    command = f"openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out {other}"
    subprocess.run(command.split(), check=True, capture_output=True)
    command = f"openssl pkey -in {other} -pubout -out {public(other)}"
    subprocess.run(command.split(), check=True, capture_output=True)
    (tmp_path / "garbage").write_text("no key")
    for bad in (other, tmp_path / "garbage", tmp_path / "none", public(key)):
        with pytest.raises(ConfigError, match=r"private key .*sliproad testbed keygen"):
            sign(policy, bad)
    for bad in (public(other), tmp_path / "garbage", tmp_path / "none", key):
        with pytest.raises(ConfigError, match="trusted key"):
            TrustedKeys.read([bad])
    assert not signature_path(policy).exists()


def test_what_is_damaged_is_not_signed(tmp_path: Path, key: Path, policy: Path) -> None:
    policy.write_bytes(policy.read_bytes()[:-40])
    with pytest.raises(BundleError):
        sign(policy, key)
    with pytest.raises(BundleError):
        sign(tmp_path, key)  # a folder without a manifest
    assert not list(tmp_path.glob("*.sig"))


def test_a_network_exchanged_after_its_check_does_not_run(
    tmp_path: Path, other_bundle: Callable[[Path], str]
) -> None:
    from cnn.runtime import SplitRuntime

    other_bundle(tmp_path / "model")
    checked = load_bundle(tmp_path / "model")
    segments = tmp_path / "model" / "segments"
    shutil.copy(segments / "block2.onnx", segments / "block1.onnx")
    with pytest.raises(BundleError, match="block1"):
        SplitRuntime(checked).warm(("block1",))


def run(*words: object, prelude: str = "", cwd: Path) -> subprocess.CompletedProcess[str]:
    code = f"{prelude}\nfrom agents.cli import main\nmain()"
    command = [sys.executable, "-c", code, "testbed", *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=60, env=os.environ
    )


@pytest.mark.slow(8)
def test_from_the_command_line(tmp_path: Path, policy: Path) -> None:
    made = run("keygen", "--out", "k", "--json", cwd=tmp_path)
    name = json.loads(made.stdout.splitlines()[-1])["key"]
    (tmp_path / "device.toml").write_text(
        '[bundles]\npolicy = "a.policy"\ntrusted_keys = ["k.pub"]\n'
    )
    check = ("device", "--config", "device.toml", "--check")
    refused = run(*check, cwd=tmp_path)
    assert refused.returncode == 2
    assert "sliproad testbed sign" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    done = run("sign", "a.policy", "--key", "k", "--json", cwd=tmp_path)
    (signed,) = json.loads(done.stdout.splitlines()[-1])["signed"]
    assert (signed["key"], signed["kind"]) == (name, "policy")
    accepted = run(*check, cwd=tmp_path)
    assert accepted.returncode == 0, accepted.stderr


@pytest.mark.slow(9)
@pytest.mark.parametrize(
    "words",
    [
        ("keygen", "--out", "k2"),
        ("sign", "a.policy", "--key", "release.key"),
        ("device", "--config", "device.toml", "--check"),
    ],
    ids=lambda words: words[0],
)
def test_without_the_extra_it_is_named(
    tmp_path: Path, key: Path, policy: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "device.toml").write_text(
        '[bundles]\npolicy = "a.policy"\ntrusted_keys = ["release.key.pub"]\n'
    )
    absent = "import sys\nsys.modules['cryptography'] = None"
    done = run(*words, prelude=absent, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'sliproad[signing]'" in done.stderr
    (tmp_path / "device.toml").write_text('[bundles]\npolicy = "a.policy"\n')
    plain = run("device", "--config", "device.toml", "--check", prelude=absent, cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr


def test_a_signature_covers_the_policys_task(key: Path, policy: Path) -> None:
    task = DEFAULT_TASK.to_json() | {"full_local_ms": 80.0}
    bundle = PolicyBundle.load(policy)
    replace(bundle, manifest={**bundle.manifest, "task": task}).save(policy)
    sign(policy, key)
    assert load(sources(policy, key)).task == replace(DEFAULT_TASK, full_local_ms=80.0)
    other = {**task, "accuracy_floor": 0.5}
    replace(bundle, manifest={**bundle.manifest, "task": other}).save(policy)
    with pytest.raises(BundleError, match="other content"):
        load(sources(policy, key))
