"""A JSON log holds nothing but JSON, whoever writes to standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError
from testbed.cli.app import app
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.tls import ServerTls

pytestmark = pytest.mark.slow(20)

ROOT = Path(__file__).parents[3]
DAY = timedelta(days=1)


def strict(text: str) -> list[dict[str, Any]]:
    """Every line as RFC 8259 has it, which knows no NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def run(code: str) -> subprocess.CompletedProcess[str]:
    head = "import logging, os, sys\nfrom testbed.deploy.log import event, logged\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_what_others_write_becomes_records_in_the_json_form() -> None:
    done = run("""
with logged("json", "info"):
    event(logging.getLogger("testbed.x"), logging.INFO, "ours", value=1)
    os.write(2, b"from C\\n\\nE0101 12:00:00.000000 1 tcp.cc:1] of gRPC\\n\\xff half a line")
    print(" ends here", file=sys.stderr)
    os.system("echo of a child >&2")
    logging.getLogger("another.library").error("by Python's last resort")
    os.write(2, b"x" * 20_000)
os.write(2, b"after\\n")
""")
    assert done.returncode == 0
    assert done.stderr.endswith("after\n")
    lines = strict(done.stderr.removesuffix("after\n"))
    said = [(line["level"], line["message"]) for line in lines]
    assert said[:6] == [
        ("info", "ours"),
        ("warning", "from C"),
        ("error", "E0101 12:00:00.000000 1 tcp.cc:1] of gRPC"),
        ("warning", "\ufffd half a line ends here"),
        ("warning", "of a child"),
        ("warning", "by Python's last resort"),
    ]
    assert "".join(message for _, message in said[6:]) == "x" * 20_000
    assert {line["logger"] for line in lines[1:]} == {"testbed.native"}


def test_the_text_form_leaves_standard_error_alone() -> None:
    done = run('with logged("text", "info"):\n    os.write(2, b"from C\\n")')
    assert done.stderr == "from C\n"


def test_a_number_that_is_none_is_null() -> None:
    done = run("""
with logged("json", "info"):
    many = {"a": [1.5, float("inf")], "b": "NaN"}
    event(logging.getLogger("testbed.x"), logging.INFO, "odd", x=float("nan"), many=many)
""")
    (line,) = strict(done.stderr)
    assert line["x"] is None
    assert line["many"] == {"a": [1.5, None], "b": "NaN"}


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [
        (
            "from cnn.common.errors import DataError as E; raise E('a', expected='b', hint='c')",
            2,
            False,
        ),
        ("1 / 0", 1, True),
    ],
)
def test_an_error_that_ends_the_device_is_a_line_too(
    error: str, code: int, traceback: bool
) -> None:
    done = run(f'with logged("json", "info"):\n    {error}')
    assert done.returncode == code
    (line,) = strict(done.stderr)
    assert line["level"] == "critical"
    assert ("traceback" in line) == traceback


@pytest.fixture
def stale(new_pki: Callable[..., Any], tmp_path: Path) -> tuple[Any, Path, Path]:
    pki = new_pki(tmp_path)
    now = datetime.now(UTC)
    return pki, *pki.make("stale", now - 2 * DAY, now - DAY)


def device_file(tmp_path: Path, address: str, stale: tuple[Any, Path, Path]) -> Path:
    path = tmp_path / "device.toml"
    pki, cert, key = stale
    path.write_text(
        '[bundles]\naction = "e5s2"\n[frames]\ncount = 3\nperiod_ms = 20\n'
        f'[server]\naddress = "{address}"\nconnect_timeout_s = 0.3\n'
        f'tls_ca = "{pki.ca}"\ntls_cert = "{cert}"\ntls_key = "{key}"\n[log]\nformat = "json"\n'
    )
    return path


def test_a_service_whose_tls_fails_while_grpc_talks(
    tmp_path: Path, stale: tuple[Any, Path, Path]
) -> None:
    tls = ServerTls(*stale[1:])
    with MecServer(load_bundle(), ServerConfig(tls=tls)) as server:
        path = device_file(tmp_path, server.address, stale)
        done = subprocess.run(
            [sys.executable, "-m", "testbed", "device", "--config", str(path)],
            cwd=ROOT,
            env={**os.environ, "GRPC_VERBOSITY": "info"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    lines = strict(done.stderr)
    loggers = [line["logger"] for line in lines]
    assert "testbed.native" in loggers
    (named,) = (line for line in lines if line["message"] == "certificate out of date")
    assert str(stale[1]) in named["certificate"]
    (start,) = (line for line in lines if line["message"] == "starting without a server")
    assert start["error"].startswith("TLS: the server's certificate has expired")
    assert lines[-1]["message"] == "stopped"


def test_by_itself_grpc_is_quiet(tmp_path: Path, stale: tuple[Any, Path, Path]) -> None:
    path = device_file(tmp_path, "127.0.0.1:1", stale)
    done = subprocess.run(
        [sys.executable, "-m", "testbed", "device", "--config", str(path)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "GRPC_VERBOSITY"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "testbed.native" not in {line["logger"] for line in strict(done.stderr)}


def test_check_names_a_certificate_that_is_out_of_date(
    tmp_path: Path, stale: tuple[Any, Path, Path]
) -> None:
    from typer.testing import CliRunner

    path = device_file(tmp_path, "127.0.0.1:1", stale)
    error = CliRunner().invoke(app, ["device", "--config", str(path), "--check"]).exception
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"TLS certificate {stale[1]}: expired on")
