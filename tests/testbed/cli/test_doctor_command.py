"""The doctor finds what is there, says what is not, and changes nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from testbed.cli.doctor_command import examine

pytestmark = pytest.mark.slow(5)


def by_name(**settings: object) -> dict[str, object]:
    return {finding.name: finding for finding in examine(**settings)}  # type: ignore[arg-type]


def test_it_finds_what_a_test_machine_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = by_name(sysfs=tmp_path, port=taken.getsockname()[1], data=tmp_path)
    assert found["onnxruntime"].ok  # type: ignore[attr-defined]
    assert found["model bundle"].ok  # type: ignore[attr-defined]
    assert not found["server port"].ok  # type: ignore[attr-defined]
    assert not found["meter rapl"].ok  # type: ignore[attr-defined]
    assert not found["data folder"].ok  # type: ignore[attr-defined]
    for finding in found.values():
        if not finding.ok and not finding.name.startswith("meter "):  # type: ignore[attr-defined]
            assert finding.hint  # type: ignore[attr-defined]


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gtsrb", "traces"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SLIPROAD_DATA", str(tmp_path))
    assert by_name(port=0)["data folder"].ok  # type: ignore[attr-defined]


def test_certificates_are_named_with_their_dates(
    tmp_path: Path, new_pki: Callable[..., Any]
) -> None:
    pki, now, day = new_pki(tmp_path), datetime.now(UTC), timedelta(days=1)
    _, old_key = pki.make("old", now - 2 * day, now - day)
    good, _ = pki.make("good", now - day, now + 40.5 * day)
    (tmp_path / "empty.pem").write_text("")
    config = tmp_path / "device.toml"
    config.write_text(
        f'[bundles]\naction = "e5s2"\n[server]\ntls_cert = "old.pem"\ntls_key = "{old_key}"\n'
    )
    more = [str(path) for path in (good, tmp_path / "empty.pem", tmp_path / "absent.pem")]
    ran = subprocess.run(
        [sys.executable, "-m", "testbed", "doctor", "--port", "0", "--json", "--config", config]
        + [word for path in more for word in ("--certificate", path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = {f["name"]: f for f in json.loads(ran.stdout.splitlines()[-1])["findings"]}
    assert not found["certificate old.pem"]["ok"]
    assert found["certificate old.pem"]["found"].startswith("expired on")
    assert found["certificate good.pem"]["ok"]
    assert found["certificate good.pem"]["found"].endswith("40 days")
    assert found["certificate empty.pem"]["found"] == "no PEM certificate in it"
    assert found["certificate absent.pem"]["found"] == "No such file or directory"


@pytest.mark.parametrize(("bundle", "code"), [(None, 0), ("/nowhere", 2)])
def test_the_command_and_its_exit_code(bundle: str | None, code: int) -> None:
    more = ["--bundle", bundle] if bundle else []
    ran = subprocess.run(
        [sys.executable, "-m", "testbed", "doctor", "--port", "0", "--json", *more],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["ok"] == (code == 0)
    assert "Traceback" not in ran.stderr


def test_what_goes_in_the_clear_is_named(tmp_path: Path) -> None:
    config = tmp_path / "device.toml"
    config.write_text('[bundles]\naction = "e5s2"\n[server]\naddress = "192.0.2.7:8001"\n')
    command = [sys.executable, "-m", "testbed", "doctor", "--json", "--config", str(config)]
    ran = subprocess.run(
        [*command, "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True, timeout=60
    )
    found = {f["name"]: f for f in json.loads(ran.stdout.splitlines()[-1])["findings"]}
    assert not found["device TLS"]["ok"]
    assert found["device TLS"]["found"].startswith("192.0.2.7:8001 without TLS")
    assert not found["server TLS"]["ok"]
    assert "in the clear" in found["server TLS"]["found"]
    alone = {finding.name for finding in examine(port=0)}
    assert not {"device TLS", "server TLS"} & alone
