"""Flags and file are one configuration: the same keys, defaults, ranges and program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cnn.common.errors import ConfigError
from testbed.cli.app import app
from testbed.cli.device_command import ATTENDED, FLAGS, file_of_flags
from testbed.deploy.device_file import keys, parse_device_file
from testbed.records.record_file import read_records

ALONE = {"--action": "e1s1"}


def test_every_flag_sets_a_key_of_its_own() -> None:
    named = [flag.key for flag in FLAGS]
    assert len(set(named)) == len(named)
    assert set(named) | set(ATTENDED) <= set(keys())


def test_flags_mean_what_the_file_says() -> None:
    given = {
        **{"--server": "mec:8001", "--policy": Path("a.policy"), "--explore": 0.1},
        **{"--n-frames": 7, "--fps": 20.0, "--timeout-ms": 60.0, "--breaker": 2, "--seed": 3},
        **{"--probe-budget": 4.0, "--meter": "none", "--tech": "LTE", "--bundle": Path("/m")},
        **{"--out": Path("r.parquet"), "--tls-ca": Path("ca.pem"), "--threads": 2, "--data": None},
    }
    text = """
    [bundles]
    policy = "a.policy"
    model = "/m"
    explore = 0.1
    threads = 2
    [server]
    address = "mec:8001"
    tls_ca = "ca.pem"
    probe_budget_per_min = 4
    [frames]
    count = 7
    period_ms = 50
    timeout_ms = 60
    breaker_failures = 2
    seed = 3
    [meter]
    name = "none"
    [drive]
    tech = "LTE"
    [records]
    file = "r.parquet"
    [log]
    level = "warning"
    every_s = 0
    """
    assert file_of_flags(given, local_only=False) == parse_device_file(text)


def test_a_run_that_somebody_waits_for_ends_and_offloads_as_the_simulator() -> None:
    (command,) = (
        c
        for n, c in typer.main.get_command(app).commands.items()
        if n == "device"  # type: ignore[attr-defined]
    )
    shown = {p.opts[0]: p.default for p in command.params}
    assert (shown["--n-frames"], shown["--breaker"], shown["--frames"]) == (300, 0, "render")
    assert (shown["--timeout-ms"], shown["--fps"], shown["--out"]) == (None, None, None)
    file = file_of_flags(ALONE, local_only=True)
    assert (file.frames.count, file.frames.breaker_failures) == (300, 0)


@pytest.mark.parametrize(
    ("given", "local_only", "said"),
    [
        (ALONE, False, "neither --server"),
        ({**ALONE, "--server": "mec:8001"}, True, "--server mec:8001 and --local-only"),
        ({}, True, "neither --policy"),
        ({**ALONE, "--policy": Path("x")}, True, "--policy x and --action"),
        ({**ALONE, "--tech": "6G"}, True, "--tech '6G'"),
        ({**ALONE, "--accuracy-floor": 1.5}, True, "--accuracy-floor 1.5"),
        ({**ALONE, "--tls-key": Path("k")}, True, "--local-only"),
    ],
)
def test_what_is_wrong_is_named_as_it_was_given(
    given: dict[str, object], local_only: bool, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        file_of_flags(given, local_only)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '[bundles]\naction = "e1s1"\nexplore = 0.1\n[guard]\nenabled = true\n',
        '[bundles]\naction = "e1s1"\nexplore = 0.1\nshadow = "b.policy"\n',
        '[bundles]\naction = "e1s1"\n[records]\nfile = "a"\nfolder = "b"\n',
    ],
)
def test_what_does_not_go_together_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"explore 0\.1|both file and folder"):
        parse_device_file(text)


@pytest.mark.slow(1)
@pytest.mark.parametrize("place", ['file = "r.parquet"', 'folder = "rec"\nobservations = true'])
def test_a_file_too_may_explore_and_says_how_likely_each_action_was(
    tmp_path: Path, place: str
) -> None:
    path = tmp_path / "device.toml"
    path.write_text(
        '[bundles]\naction = "e1s1"\nexplore = 0.5\nwatch_s = 0\n'
        f"[frames]\ncount = 30\nperiod_ms = 0\n[records]\n{place}\n"
    )
    run = CliRunner().invoke(app, ["device", "--config", str(path), "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout.splitlines()[-1])
    assert (result["frames"], result["rows_written"], result["policy_errors"]) == (30, 30, 0)
    (written,) = tmp_path.rglob("*.parquet")
    records = read_records(written)
    action, propensity = records.numbers("action"), records.numbers("propensity")
    np.testing.assert_allclose(propensity, 0.5 / 20 + 0.5 * (action == 1))
    assert len(set(action)) > 3
    assert ("decided_by" in records.table.column_names) == ("folder" in place)
    assert ("first_capture_unix_s" in records.source) == ("file" in place)
