"""The doctor finds what is there, says what is not, and changes nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.doctor import examine


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
            assert finding.mend  # type: ignore[attr-defined]


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gtsrb", "traces"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SLIPROAD_DATA", str(tmp_path))
    assert by_name(port=0)["data folder"].ok  # type: ignore[attr-defined]


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
