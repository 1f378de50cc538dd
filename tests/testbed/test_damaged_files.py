"""Every kind of file from elsewhere, damaged in every way: the same content, or one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.bundle import embedded_bundle_path, load_bundle
from cnn.common.errors import SliproadError
from cnn.frame_table import FrameTable, embedded_table
from testbed.deploy.device_file import load_device_file
from testbed.deploy.signing import TrustedKeys, make_key_pair, sign
from testbed.link.transfer import LinkRecord
from testbed.meters.cost_model import CostModel, load_profile
from testbed.policy.network_policy import load_policy
from testbed.policy.policy_file import PolicyBundle
from testbed.traces.generator import load_models
from testbed.traces.trace import constant_trace, save_trace
from testbed.traces.trace_files import read_trace

Kind = tuple[Callable[[Path], None], Callable[[Path], Any]]
"""What writes a file of the kind, and what reads it as something comparable."""
SHIPPED = load_bundle().hash
SEALED = ("policy", "frame table", "model bundle", "signature")
"""Kinds with a hash or a checksum, of which no damage goes unseen."""


def _policy(path: Path) -> None:
    shutil.copy(next(Path(__file__).parents[2].glob("agents/assets/urban-5g.policy")), path)


def _read_policy(path: Path) -> Any:
    load_policy(path, SHIPPED)
    return PolicyBundle.load(path).content_hash


def _table(path: Path) -> None:
    table = embedded_table("policy-test")
    rows = slice(0, 60)
    names = [n for n in table.__slots__ if isinstance(getattr(table, n), np.ndarray)]
    replace(table, **{n: getattr(table, n)[rows] for n in names}).save(path)


def _read_table(path: Path) -> Any:
    table = FrameTable.load(path)
    values = {name: getattr(table, name) for name in table.__slots__}
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}


def _bundle(path: Path) -> None:
    shutil.copy(embedded_bundle_path() / "manifest.json", path)


def _read_bundle(path: Path) -> Any:
    segments = path.parent / "segments"
    if not segments.exists():
        segments.symlink_to(embedded_bundle_path() / "segments")
    if path.name != "manifest.json" and path.exists():
        path = shutil.move(path, path.with_name("manifest.json"))
    return load_bundle(path.parent).manifest


def _cost_model(path: Path) -> None:
    load_profile("shipped").save(path)


def _key(path: Path) -> None:
    make_key_pair(path.with_name("secret"), path)


def _signature(path: Path) -> None:
    policy = path.with_name("a.policy")
    _policy(policy)
    make_key_pair(path.with_name("secret"), path.with_name("public"))
    shutil.move(sign(policy, path.with_name("secret")).signature, path)


def _read_signature(path: Path) -> Any:
    policy = path.with_name("a.policy")
    if path.exists():
        shutil.copy(path, policy.with_name("a.policy.sig"))
    keys = TrustedKeys.read([path.with_name("public")])
    return keys.check(policy, "policy", _hash_of(policy))


@cache
def _hash_of(policy: Path) -> str:
    return PolicyBundle.load(policy).content_hash


def _device_file(path: Path) -> None:
    text = '[bundles]\naction = "e3s1"\nthreads = 2\n[guard]\nenabled = true\nmargin = 0.25\n'
    path.write_text(text + "max_delay_ms = 80\n[frames]\nperiod_ms = 50.0\ncount = 7\n")


def _link(path: Path) -> None:
    LinkRecord(constant_trace(20, 30), 12.5, 0.5, 100.0, ((1.0, 2.0),), "user-space").save(path)


def _trace(path: Path) -> None:
    save_trace(constant_trace(20, 30), path)


def _models(path: Path) -> None:
    path.write_text(json.dumps({"models": [m.to_json() for m in load_models().values()]}))


KINDS: dict[str, Kind] = {
    "policy": (_policy, _read_policy),
    "frame table": (_table, _read_table),
    "model bundle": (_bundle, _read_bundle),
    "cost model": (_cost_model, lambda path: asdict(CostModel.load(path))),
    "public key": (_key, lambda path: list(TrustedKeys.read([path]).keys)),
    "signature": (_signature, _read_signature),
    "device file": (_device_file, load_device_file),
    "link record": (_link, lambda path: str(LinkRecord.load(path))),
    "trace": (_trace, lambda path: str(read_trace(path))),
    "trace models": (_models, load_models),
}


def damaged(data: bytes) -> Iterator[bytes]:
    """The content with bits flipped, cut, doubled, emptied, or of another kind."""
    rng = np.random.default_rng(len(data))
    for at in rng.integers(0, 8 * len(data), 150).tolist():
        yield data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]
    for end in rng.integers(0, len(data), 25).tolist():
        yield data[:end]
        yield data[end:]
        yield data[:end] + bytes(rng.integers(0, 256, 64, np.uint8)) + data[end:]
    yield from (
        data + data,
        data[::-1],
        b"\0" * len(data),
        b"\xff\xfe" + data,
        b"\xef\xbb\xbf" + data,
    )
    depth = 200_000
    yield from (b"", b"{}", b"[]", b"null", b"[" * depth, b'{"a":' * depth, b"a=" + b"[" * depth)
    yield from (b"1" * 5000, b'"' + b"x" * 10**6, b"PK\5\6" + b"\0" * 18)


@pytest.mark.slow(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_reads_the_same_or_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    data, content = path.read_bytes(), read(path)
    for bad in damaged(data):
        path.unlink(missing_ok=True)
        path.write_bytes(bad)
        with suppress(SliproadError):
            found = read(path)
            assert kind not in SEALED or found == content
    path.unlink(missing_ok=True)
    for name in ("manifest.json", "a.policy.sig"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(SliproadError):
        read(path)
