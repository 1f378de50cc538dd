"""The unattended device as a process: records, metrics, log, signals, swaps, shadow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_until

from cnn.bundle import load_bundle
from cnn.topology import SHIPPED
from testbed.deploy.record_folder import record_files
from testbed.deploy.signing import make_key_pair, sign
from testbed.policy.observation_fields import scaled_bounds, schema_of
from testbed.records.record_file import read_records
from testbed.server.server_process import ServerProcess

pair = SHIPPED.action
SCHEMA = schema_of(SHIPPED)

pytestmark = pytest.mark.slow(40)

BUNDLE_HASH = load_bundle().hash
WAIT_S = 60.0


class Running:
    """A device process, its log as objects, and a way to wait for a line of it."""

    def __init__(self, path: Path) -> None:
        self.log_path = path.with_suffix(".log")
        self._log = self.log_path.open("w")
        command = [sys.executable, "-m", "testbed", "device", "--config", str(path), "--json"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=os.environ
        )

    def log(self) -> list[dict[str, object]]:
        text = self.log_path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for(self, message: str, **more: object) -> dict[str, object]:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until and self.process.poll() is None:
            for line in self.log():
                if line["message"] == message and more.items() <= line.items():
                    return line
            time.sleep(0.05)
        raise AssertionError(f"no {message!r} in {self.log_path.read_text()}")

    def end(self, number: int | None = signal.SIGTERM) -> dict[str, object]:
        if number is not None:
            self.process.send_signal(number)
        stdout, _ = self.process.communicate(timeout=WAIT_S)
        self._log.close()
        assert self.process.returncode == 0, self.log_path.read_text()
        result: dict[str, object] = json.loads(stdout.splitlines()[-1])
        return result


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Running]]:
    """Starts a device from the text of its file; kills it at the end if it still runs."""
    running: list[Running] = []

    def begin(text: str) -> Running:
        path = tmp_path / f"device{len(running)}.toml"
        path.write_text(text + '\n[log]\nformat = "json"\n')
        running.append(Running(path))
        return running[-1]

    yield begin
    for each in running:
        each.process.kill()
        each.process.communicate()
        each._log.close()


def all_rows(folder: Path) -> dict[str, list[object]]:
    tables = [read_records(path).table for path in record_files(folder)]
    names = tables[0].column_names
    return {n: [v for table in tables for v in table[n].to_pylist()] for n in names}


def test_sigterm_writes_every_row_and_exits_with_0(
    tmp_path: Path, start: Callable[[str], Running]
) -> None:
    unit = start(
        '[bundles]\naction = "e1s1"\n[frames]\nperiod_ms = 5\nmax_queue_ms = 5000\n'
        '[records]\nfolder = "rec"\nflush_s = 3600\nobservations = true\n'
    )
    unit.wait_for("running")
    time.sleep(1.0)
    result = unit.end()
    rows = all_rows(tmp_path / "rec")
    assert rows["frame_id"] == list(range(int(result["frames"])))  # type: ignore[call-overload]
    assert result["frames"] == result["rows_written"]
    assert {path.suffix for path in (tmp_path / "rec").iterdir()} == {".parquet"}
    seen = np.array(rows["observation"])
    assert seen.shape == (result["frames"], SCHEMA.obs_dim)
    low, high = scaled_bounds(SCHEMA.fields)  # a fast machine's full local processing is below -1
    assert (low <= seen).all()
    assert (seen <= high).all()


def test_after_a_kill_the_next_start_saves_the_rows(
    tmp_path: Path, start: Callable[[str], Running]
) -> None:
    text = (
        '[bundles]\naction = "e1s1"\n[frames]\nperiod_ms = 5\nmax_queue_ms = 5000\ncount = {}\n'
        '[records]\nfolder = "rec"\nflush_s = 0.2\n'
    )
    unit = start(text.format(0))
    unit.wait_for("running")
    folder = tmp_path / "rec"
    # Two batches: rows of at least one flush are in the journal.
    wait_until(lambda: sum(path.stat().st_size for path in folder.iterdir()) >= 20_000)
    unit.process.kill()
    unit.process.wait()
    assert record_files(tmp_path / "rec") == []
    start(text.format(5)).end(None)
    saved, new = record_files(tmp_path / "rec")
    kept = read_records(saved).numbers("frame_id").tolist()
    assert kept == list(range(len(kept)))
    assert len(kept) > 1
    assert len(read_records(new)) == 5


def scrape(port: object) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r"^([a-z_]+(?:\{[^}]*\})?) ([0-9.e+-]+)$", text, re.M)
    return {name: float(value) for name, value in found}


def test_a_device_is_watched_and_changed_while_it_runs(
    tmp_path: Path, start: Callable[[str], Running], write_policy: Callable[..., str]
) -> None:
    old = write_policy(tmp_path / "a.policy", BUNDLE_HASH, pair(3, 1))
    write_policy(tmp_path / "b.policy", BUNDLE_HASH, pair(2, 2))
    with ServerProcess() as server:
        unit = start(
            f'[server]\naddress = "{server.target}"\n'
            '[bundles]\npolicy = "a.policy"\nshadow = "b.policy"\nwatch_s = 0\n'
            "probation_frames = 5\n"
            "[frames]\nperiod_ms = 20\ntimeout_ms = 5000\nmax_queue_ms = 60000\n"
            '[records]\nfolder = "rec"\nflush_s = 0.2\n'
            "[guard]\nenabled = true\nmax_delay_ms = 10000\n[metrics]\nport = 0\n"
        )
        port = unit.wait_for("metrics")["port"]
        unit.wait_for("running")
        time.sleep(0.5)
        new = write_policy(tmp_path / "a.policy", BUNDLE_HASH, pair(4, 1))
        unit.process.send_signal(signal.SIGHUP)
        assert unit.wait_for("swapped")["policy"] == new
        unit.wait_for("kept")
        (tmp_path / "a.policy").write_bytes(b"damaged")
        unit.process.send_signal(signal.SIGHUP)
        unit.wait_for("new bundles not used")
        answered = 'sliproad_device_frames_total{status="ok"}'
        wait_until(lambda: scrape(port).get(answered, 0) > 10)
        shown = scrape(port)
        result = unit.end()
    assert shown[answered] > 10
    assert shown['sliproad_device_guard_state{state="policy"}'] == 1
    assert shown['sliproad_device_shadow_total{agrees="false"}'] > 10
    assert shown["sliproad_device_swaps"] == 1
    assert shown["sliproad_device_delay_seconds_count"] > 10
    assert shown["sliproad_device_energy_joules_sum"] > 0
    info = f'sliproad_device_info{{bundle_hash="{BUNDLE_HASH[:12]}",policy_hash="{new}"}}'
    assert shown[info] == 1
    rows = all_rows(tmp_path / "rec")
    assert rows["frame_id"] == list(range(int(result["frames"])))  # type: ignore[call-overload]
    assert set(rows["status"]) == {"ok"}
    by_hash = {h: {a for a, x in zip(rows["action"], rows["policy_hash"], strict=True) if x == h}
               for h in (old, new)}  # fmt: skip
    assert by_hash == {old: {pair(3, 1).index}, new: {pair(4, 1).index}}
    assert set(rows["shadow_action"]) == {pair(2, 2).index}
    assert set(rows["decided_by"]) == {"policy"}
    assert (result["swaps"], result["rollbacks"], result["policy_errors"]) == (1, 0, 0)


def test_a_staged_policy_is_deployed_changed_for_another_kind_and_back(
    tmp_path: Path,
    start: Callable[[str], Running],
    write_policy: Callable[..., str],
    write_staged_policy: Callable[..., str],
) -> None:
    path, look, send, once = tmp_path / "a.policy", pair(1, 1), pair(3, 2), pair(4, 1)
    first = write_staged_policy(path, BUNDLE_HASH, look, send, 2.0)  # looks, then always sends
    write_staged_policy(tmp_path / "b.policy", BUNDLE_HASH, look, send, -1.0)  # looks and answers
    with ServerProcess() as server:
        unit = start(
            f'[server]\naddress = "{server.target}"\n'
            '[bundles]\npolicy = "a.policy"\nshadow = "b.policy"\nwatch_s = 0\n'
            "probation_frames = 5\n"
            "[frames]\nperiod_ms = 20\ntimeout_ms = 5000\nmax_queue_ms = 60000\n"
            '[records]\nfolder = "rec"\nflush_s = 0.2\n[metrics]\nport = 0\n'
        )
        port = unit.wait_for("metrics")["port"]
        unit.wait_for("running")
        time.sleep(0.5)
        second = write_policy(path, BUNDLE_HASH, once)
        unit.process.send_signal(signal.SIGHUP)
        unit.wait_for("kept", policy=second)
        third = write_staged_policy(path, BUNDLE_HASH, look, send, -1.0)
        unit.process.send_signal(signal.SIGHUP)
        unit.wait_for("kept", policy=third)
        shown = scrape(port)
        result = unit.end()
    rows = all_rows(tmp_path / "rec")
    assert rows["frame_id"] == list(range(int(result["frames"])))  # type: ignore[call-overload]
    assert set(rows["status"]) == {"ok"}
    assert (result["swaps"], result["rollbacks"], result["policy_errors"]) == (2, 0, 0)
    names = ("policy_hash", "action", "looks", "shadow_action", "shadow_open", "policy_open")
    assert set(zip(*(rows[name] for name in names), strict=True)) == {
        (first, send.index, 1, look.index, False, False),
        (second, once.index, 0, look.index, True, False),  # nobody looked at exit 1 for it
        (third, look.index, 1, look.index, False, False),
    }
    assert shown['sliproad_device_shadow_total{agrees="false"}'] > 10
    assert shown['sliproad_device_shadow_total{agrees="unknown"}'] >= 5
    assert shown['sliproad_device_shadow_total{agrees="true"}'] >= 5


def test_what_is_not_signed_is_not_swapped_in_and_the_old_policy_goes_on(
    tmp_path: Path, start: Callable[[str], Running], write_policy: Callable[..., str]
) -> None:
    path, keys = tmp_path / "a.policy", [tmp_path / "right.key", tmp_path / "wrong.key"]
    for key in keys:
        make_key_pair(key, key.with_name(key.name + ".pub"))
    first = write_policy(path, BUNDLE_HASH, pair(1, 1))
    sign(path, keys[0])
    unit = start(
        '[bundles]\npolicy = "a.policy"\nwatch_s = 0\nprobation_frames = 5\n'
        'trusted_keys = ["right.key.pub"]\n'
        '[frames]\nperiod_ms = 10\nmax_queue_ms = 60000\n[records]\nfolder = "rec"\n'
    )
    unit.wait_for("running")

    def refused(times: int) -> None:
        unit.process.send_signal(signal.SIGHUP)
        line = "new bundles not used"
        wait_until(lambda: [each["message"] for each in unit.log()].count(line) == times)

    # Still beside the old one's signature.
    second = write_policy(path, BUNDLE_HASH, pair(2, 2))
    refused(1)
    sign(path, keys[1])
    refused(2)
    (tmp_path / "a.policy.sig").unlink()
    refused(3)
    time.sleep(0.2)
    sign(path, keys[0])
    unit.process.send_signal(signal.SIGHUP)
    unit.wait_for("kept", policy=second)
    result = unit.end()
    rows = all_rows(tmp_path / "rec")
    assert rows["frame_id"] == list(range(int(result["frames"])))  # type: ignore[call-overload]
    assert set(zip(rows["policy_hash"], rows["action"], strict=True)) == {
        (first, pair(1, 1).index),
        (second, pair(2, 2).index),
    }
    assert (result["swaps"], result["rollbacks"]) == (1, 0)


def test_the_guard_falls_from_a_staged_policy_and_tries_it_again(
    tmp_path: Path, start: Callable[[str], Running], write_staged_policy: Callable[..., str]
) -> None:
    look, safe = pair(2, 2), pair(5, 5)
    write_staged_policy(tmp_path / "a.policy", BUNDLE_HASH, look, safe, -1.0)
    unit = start(
        '[bundles]\npolicy = "a.policy"\n[frames]\nperiod_ms = 10\nmax_queue_ms = 5000\n'
        'count = 60\n[records]\nfolder = "rec"\n[guard]\nenabled = true\n'
        "max_delay_ms = 0.001\nwindow = 8\npatience = 1\ncooldown_frames = 20\n"
    )
    result = unit.end(None)
    rows = all_rows(tmp_path / "rec")
    decided = [str(by) for by in rows["decided_by"]]
    # A full window falls; the frame after it may already have been decided.
    assert decided[:8] == ["policy"] * 8
    assert decided[9:27] == ["guard"] * 18
    assert "policy" in decided[27:34]
    assert result["guard_falls"] in (2, 3)
    names = ("decided_by", "action", "looks", "policy_action", "policy_open")
    assert set(zip(*(rows[name] for name in names), strict=True)) == {
        ("policy", look.index, 2, look.index, False),
        ("guard", safe.index, 0, look.index, True),
    }


def test_a_device_starts_without_its_server_and_uses_it_once_it_is_there(
    start: Callable[[str], Running],
) -> None:
    server = ServerProcess().start()
    server.stop()
    unit = start(
        f'[server]\naddress = "{server.target}"\nconnect_timeout_s = 0.1\n'
        '[bundles]\naction = "e3s1"\n'
        "[frames]\nperiod_ms = 20\ntimeout_ms = 500\nmax_queue_ms = 60000\nbreaker_failures = 3\n"
        "breaker_backoff_ms = 200\n"
    )
    unit.wait_for("starting without a server")
    unit.wait_for("running")
    time.sleep(0.5)
    with server:
        time.sleep(2.5)
        result = unit.end()
    status = result["status"]
    assert isinstance(status, dict)
    assert status["fallback"] > 3
    assert status["ok"] > 3
    assert set(status) == {"fallback", "ok"}


def test_the_check_says_what_is_wrong_without_starting(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    for text, code, said in (
        ('[bundles]\naction = "e3s1"\n', 0, "fit to run"),
        ('[bundles]\npolicy = "none.policy"\n', 2, "none.policy"),
        ('[bundles]\naction = "e3s1"\nx = 1\n', 2, "unknown key"),
    ):
        path.write_text(text)
        command = [sys.executable, "-m", "testbed", "device", "--config", str(path), "--check"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == (code == 2)
