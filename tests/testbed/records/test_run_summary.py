"""The summary of a run, by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, network_id
from rows import FINISHED

from cnn.topology import SHIPPED, Topology
from testbed.cli.device_command import report
from testbed.records.measurement import Measurement
from testbed.records.run_summary import SAMPLE, RunSummary

SKIPPED = dataclasses.replace(
    FINISHED, prediction=None, confidence=None, correct=False, status="skipped", reason="queued",
    queue_ms=250.0, delay_ms=250.0, energy_mj=None,
)  # fmt: skip
FALLBACK = dataclasses.replace(
    FINISHED, action=2, status="fallback", reason="timeout", fallback_ms=3.0, delay_ms=300.0,
    correct=False, label=6,
)  # fmt: skip


def summarise(rows: Iterable[Measurement], topology: Topology = SHIPPED) -> dict[str, Any]:
    summary = RunSummary(100, topology)
    for row in rows:
        summary.add(row)
    return summary.result()


def test_summary_by_hand() -> None:
    result = summarise([FINISHED, SKIPPED, FALLBACK])
    assert result["frames"] == 3
    assert result["delay_ms"] == pytest.approx((4.25 + 300) / 2)
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["miss_rate"] == pytest.approx(2 / 3)
    assert result["energy_mj"] == pytest.approx(1.5)
    assert result["status"] == {"ok": 1, "skipped": 1, "fallback": 1}
    assert result["reasons"] == {"queued": 1, "timeout": 1}
    assert result["actions"] == {"e1s1": 1, "e2s0": 1}


def test_summary_of_nothing_measured_is_none() -> None:
    result = summarise([])
    assert result["delay_ms"] is None
    assert result["accuracy"] is None


def test_energy_is_the_mean_of_the_frames_that_were_measured() -> None:
    read = dataclasses.replace(FINISHED, energy_mj=4.0, energy_source="rapl:package-0")
    unread = dataclasses.replace(read, energy_mj=None, energy_source="rapl:package-0+dram")
    rows = [unread, read, dataclasses.replace(read, energy_mj=2.0), unread]
    result = summarise(rows)
    assert (result["energy_mj"], result["energy_frames"]) == (3.0, 2)
    assert result["energy_source"] == "rapl:package-0"


def test_queued_frames_are_one_reason() -> None:
    rows = [dataclasses.replace(SKIPPED, reason=f"queued {ms} ms") for ms in (201, 202)]
    assert summarise([*rows, FALLBACK])["reasons"] == {"queued": 2, "timeout": 1}


@pytest.mark.slow(1)
def test_the_percentile_of_a_long_run_is_that_of_a_fair_sample() -> None:
    summary = RunSummary(100, SHIPPED)
    delays = np.random.default_rng(0).permutation(4 * SAMPLE)
    for n, delay_ms in enumerate(delays, 1):
        summary.add(dataclasses.replace(FINISHED, delay_ms=float(delay_ms)))
        if n == SAMPLE:
            exact = np.percentile(delays[:n], 95)
            assert summary.result()["delay_p95_ms"] == pytest.approx(exact)
    # Two standard errors of a percentile's rank are 0.4 % here.
    result = summary.result()
    assert result["delay_p95_ms"] == pytest.approx(0.95 * 4 * SAMPLE, rel=0.008)
    assert result["delay_ms"] == pytest.approx(delays.mean())


def test_energy_that_no_frame_has_is_none() -> None:
    result = summarise([dataclasses.replace(FINISHED, energy_mj=None)])
    assert (result["energy_mj"], result["energy_frames"]) == (None, 0)
    assert result["energy_source"] == "model:x"


@pytest.mark.parametrize(
    ("energies", "said"),
    [
        ([2.0, 4.0], "energy 3.00 mJ a frame (model:x)"),
        ([2.0, None], "energy 2.00 mJ a frame, measured in 1 of 2 frames (model:x)"),
        ([None, None], "energy not measured (model:x)"),
    ],
)
def test_a_run_says_of_how_many_frames_the_energy_is(
    capsys: pytest.CaptureFixture[str], energies: list[float | None], said: str
) -> None:
    rows = [dataclasses.replace(FINISHED, energy_mj=energy) for energy in energies]
    report({"policy": "x", **summarise(rows)})
    assert said in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("topology", NETWORKS, ids=network_id)
def test_actions_are_called_as_their_network_calls_them(topology: Topology) -> None:
    rows = [dataclasses.replace(FINISHED, action=a.index) for a in topology.actions]
    pairs = [(e, s) for e in topology.exits for s in (*topology.splits, e) if s <= e]
    expected = {f"e{e}s{s}": 1 for e, s in sorted(set(pairs))}
    assert summarise(rows, topology)["actions"] == expected
