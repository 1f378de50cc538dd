"""A small real campaign: server process, links, every action; interrupted and resumed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rows import FINISHED

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, DataError
from cnn.common.outputs import Claim
from cnn.topology import SHIPPED
from testbed.costs.campaign import _is_done, disturbed, run_campaign
from testbed.costs.campaign_config import CampaignConfig, Condition
from testbed.device.frame_sources import open_frames
from testbed.meters.cost_model import CostModel
from testbed.records.record_file import RecordWriter, read_records

pytestmark = pytest.mark.slow(20)

CONDITIONS = (Condition(5, 10), Condition(40, 25))
SMALL = CampaignConfig(conditions=CONDITIONS, rounds=1, repetitions=2, warm_up=3, timeout_ms=20_000)


def test_orders_are_random_reproducible_and_balanced() -> None:
    config = CampaignConfig(rounds=2, seed=1)
    names = [block.name for block in config.blocks()]
    assert names == [block.name for block in CampaignConfig(rounds=2, seed=1).blocks()]
    assert names != [block.name for block in CampaignConfig(rounds=2, seed=2).blocks()]
    assert sorted(Counter(b.condition for b in config.blocks()).values()) == [2] * 5
    assert config.n_frames(SHIPPED) == 10 * (10 + 10 * 20)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="all different"):
        CampaignConfig(conditions=(Condition(1, 1), Condition(1, 1)))
    with pytest.raises(ConfigError, match="repetitions"):
        CampaignConfig(repetitions=0)
    with pytest.raises(ConfigError, match="8x80"):
        Condition.parse("8x80")
    assert Condition.parse("8/80") == Condition(8, 80)


def test_blocks_of_a_disturbed_machine_are_found(tmp_path: Path) -> None:
    """Rows of real blocks, made slower by hand."""
    blocks = CampaignConfig(conditions=CONDITIONS, rounds=2).blocks()
    for i, block in enumerate(blocks):
        with RecordWriter(tmp_path / f"{block.name}.parquet", {"kind": "test"}) as writer:
            for k in range(9):
                spike = 5.0 if k == 0 else 1.0  # one stall is no disturbed block
                head_ms = (20.0 if i == 2 else 15.0 + 0.1 * i) * spike
                writer.write(dataclasses.replace(FINISHED, action=SHIPPED.main, head_ms=head_ms))
                writer.write(dataclasses.replace(FINISHED, action=0, head_ms=99.0))
    assert disturbed(blocks, tmp_path) == [blocks[2]]


class InterruptedCampaignError(Exception):
    pass


def test_an_interrupted_campaign_goes_on_where_it_stopped(tmp_path: Path) -> None:
    bundle = load_bundle()
    frames = open_frames("render", bundle.config.input_size)
    out = tmp_path / "campaign.parquet"
    done: list[int] = []

    def stop_after_first(n: int) -> None:
        done.append(n)
        if sum(done) > 0:
            raise InterruptedCampaignError

    with pytest.raises(InterruptedCampaignError):
        run_campaign(SMALL, bundle, frames, out, progress=stop_after_first)
    kept = list((tmp_path / "campaign.parquet.blocks").glob("*.parquet"))
    assert len(kept) == 1
    assert not out.exists()
    first_block, block = read_records(kept[0]), kept[0].read_bytes()

    other = CampaignConfig(conditions=CONDITIONS, rounds=1, repetitions=1)
    with pytest.raises(DataError, match="another campaign"):
        run_campaign(other, bundle, frames, out)

    assert run_campaign(SMALL, bundle, frames, out) == SMALL.n_frames(SHIPPED)
    assert [path.name for path in tmp_path.iterdir()] == ["campaign.parquet"]
    records = read_records(out)
    same = records.texts("condition") == first_block.texts("condition")[0]
    np.testing.assert_array_equal(
        records.numbers("delay_ms")[same], first_block.numbers("delay_ms")
    )

    # A kill between the merged file and the end leaves some of its blocks: they go, no more.
    (tmp_path / "campaign.parquet.blocks").mkdir()
    (tmp_path / "campaign.parquet.blocks" / kept[0].name).write_bytes(block)
    written = out.read_bytes()
    assert run_campaign(SMALL, bundle, frames, out) == SMALL.n_frames(SHIPPED)
    assert out.read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["campaign.parquet"]

    assert set(records.texts("status")) == {"ok"}
    counted = ~np.array(records.table["warm_up"].to_pylist())
    for condition in CONDITIONS:
        here = counted & (records.texts("condition") == condition.name)
        actions = Counter(records.numbers("action")[here].astype(int).tolist())
        assert actions == dict.fromkeys(range(SHIPPED.n_actions), 2)
        order = records.numbers("action")[here]
        assert (np.diff(order) < 0).any()  # not simply ascending
        sent = here & (records.numbers("uplink_bytes") > 0)
        bits = 8 * records.numbers("uplink_bytes")[sent]
        least_ms = bits / (1e3 * condition.uplink_mbps) + condition.rtt_ms
        assert (records.numbers("transfer_ms")[sent] >= 0.98 * least_ms).all()
        assert set(records.numbers("rtt_ms")[sent]) == {condition.rtt_ms}
    assert (records.numbers("queue_ms") == 0).all()
    assert records.source["bundle_hash"] == bundle.hash
    assert records.source["emulation"] == "as it is"

    model, report = tmp_path / "model.json", tmp_path / "report"
    command = [sys.executable, "-m", "testbed", "fit", "--records", str(out)]
    ran = subprocess.run(
        [*command, "--out", str(model), "--report", str(report), "--bootstrap", "3", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert {"delay_mape", "energy_mape", "r2_delay", "r2_energy", "coefficients"} <= result.keys()
    assert set(result["by_action"]) == {f"e{e}s{s}" for e in range(1, 6) for s in range(e + 1)}
    assert CostModel.load(model).bundle_hash == bundle.hash
    text = (report / "fit.md").read_text()
    assert "delay   = compute" in text
    assert (report / "delay.png").stat().st_size > 1000
    assert (report / "energy.png").stat().st_size > 1000


def test_a_second_campaign_into_the_same_file_is_refused(tmp_path: Path) -> None:
    bundle, out = load_bundle(), tmp_path / "campaign.parquet"
    frames = open_frames("render", bundle.config.input_size)
    with (
        Claim(tmp_path / "campaign.parquet.blocks", folder=True),
        pytest.raises(DataError, match="in use by process"),
    ):
        run_campaign(SMALL, bundle, frames, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PAR1 and no end"])
def test_a_block_that_a_power_cut_damaged_counts_as_missing(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "5mbps-10ms-round0.parquet"
    path.write_bytes(content)
    assert not _is_done(path, "fingerprint")
    assert "5mbps-10ms-round0.parquet" in caplog.text


def test_a_flipped_bit_in_the_rows_of_a_block_never_changes_one(tmp_path: Path) -> None:
    """Before the footer, whose length stands in front of the last four bytes."""
    path = tmp_path / "block.parquet"
    with RecordWriter(path, {"fingerprint": "x"}) as writer:
        for i in range(100):
            writer.write(dataclasses.replace(FINISHED, frame_id=i, delay_ms=4.25 + i))
    data, table = path.read_bytes(), read_records(path).table
    found = 0
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(4, footer, 83):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            assert read_records(path).table.equals(table)
        except DataError:
            found += 1
    assert found > 20


def test_fit_without_records_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    ran = subprocess.run(
        [sys.executable, "-m", "testbed", "fit", "--records", "/nowhere", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 2
    assert "error: records /nowhere" in ran.stderr
    assert not out.exists()
