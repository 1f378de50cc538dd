"""A user's own files and folders, none of whose groups the package has ever named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnn.common.errors import ConfigError, DataError
from testbed.traces.collection import load_collection
from testbed.traces.measured import constant_rtt
from testbed.traces.own_traces import load_own
from testbed.traces.split_rule import SplitRule
from testbed.traces.trace import constant_trace, save_trace

FIFTY_MS = constant_rtt(50.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four drives on two days, in three formats; one has round trips; and a file that is none."""
    home = tmp_path / "mine"
    (home / "more").mkdir(parents=True)
    for name, mbps in (("20240517-a", 1), ("20240517-b", 2)):
        rows = "".join(f"{name},{t},{mbps + t % 2},,LTE\n" for t in range(30))
        (home / f"{name}.csv").write_text(f"trace,time_s,uplink_mbps,rtt_ms,tech\n{rows}")
    log = "".join(f"17159328{k:02d} {1000 * (k + 1)} 59 10 125000 1000\n" for k in range(30))
    (home / "more" / "tram.log").write_text(log)  # 17 May 2024, in the file alone
    save_trace(constant_trace(7.0, 33.0), home / "more" / "2024-05-19.json")
    (home / "README.md").write_text("# My drives\n")
    (home / ".hidden").write_text("1\n2\n")
    return home


def names(found: object) -> set[str]:
    return {trace.name for trace in found.traces}  # type: ignore[attr-defined]


def test_every_readable_file_is_taken_and_the_rest_is_said(folder: Path) -> None:
    found = load_own([folder], "all", SplitRule(), otherwise=FIFTY_MS, period_s=1.0)
    by_name = {trace.name: trace for trace in found.traces}
    assert set(by_name) == {"20240517-a", "20240517-b", "tram.log", "constant:7-mbps:33-ms"}
    assert by_name["20240517-a"].uplink_mbps[:3].tolist() == [1, 2, 1]
    assert by_name["tram.log"].uplink_mbps.tolist() == [1.0] * 30
    assert set(by_name["tram.log"].rtt_ms) == {50.0}
    assert "constant round trip 50 ms" in by_name["tram.log"].source
    assert by_name["constant:7-mbps:33-ms"].rtt_ms.tolist() == [33.0]
    assert "1 files in no format that is known left out (README.md)" in found.notes


@pytest.mark.parametrize("by", ["file", "day"])
def test_parts_are_disjoint_deterministic_and_stated(folder: Path, by: str) -> None:
    rule = SplitRule(by, 0.5, seed=3)
    train, test, again = (
        load_own([folder], part, rule, otherwise=FIFTY_MS) for part in ("train", "test", "train")
    )
    assert names(train)
    assert names(test)
    assert not names(train) & names(test)
    assert len(names(train) | names(test)) == 4
    assert names(train) == names(again)
    for part, found in (("train", train), ("test", test)):
        for trace in found.traces:
            assert f"{part} part, split by {by}" in trace.source
            assert "share 0.5, seed 3" in trace.source
    if by == "day":
        assert len(names(train)) in (1, 3)  # three of 17 May, one of 19 May


def test_a_fraction_cuts_every_trace_in_time(folder: Path) -> None:
    files = [folder / "20240517-a.csv", folder / "20240517-b.csv"]
    rule = SplitRule("fraction", 0.4)
    whole, train, test = (
        load_own(files, part, rule, otherwise=FIFTY_MS, period_s=1.0).traces
        for part in ("all", "train", "test")
    )
    for one, head, tail in zip(whole, train, test, strict=True):
        assert (len(head.uplink_mbps), len(tail.uplink_mbps)) == (12, 18)
        joined = np.concatenate([head.uplink_mbps, tail.uplink_mbps])
        assert joined.tolist() == one.uplink_mbps.tolist()
        assert tail.name == f"{one.name}+12s"
        assert "the first 0.4 of each trace trains" in tail.source


def test_the_split_does_not_depend_on_where_the_files_lie(folder: Path, tmp_path: Path) -> None:
    rule = SplitRule("file", 0.5, seed=1)
    before = names(load_own([folder], "train", rule, otherwise=FIFTY_MS))
    moved = folder.rename(tmp_path / "a b")
    assert names(load_own([moved], "train", rule, otherwise=FIFTY_MS)) == before


def test_what_cannot_be_divided_or_read_is_named(folder: Path, tmp_path: Path) -> None:
    def load(*paths: Path, by: str = "file") -> None:
        load_own(list(paths), "train", SplitRule(by), otherwise=FIFTY_MS)

    with pytest.raises(ConfigError, match="traces of one file"):
        load(folder / "20240517-a.csv")
    with pytest.raises(DataError, match=r"README\.md"):
        load(folder / "README.md", folder / "20240517-a.csv")
    with pytest.raises(DataError, match="nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="0 files"):
        load(tmp_path / "empty")
    (folder / "undated.csv").write_text("trace,time_s,uplink_mbps\nx,0,1\nx,1,2\n")
    with pytest.raises(ConfigError, match=r"undated\.csv, trace x: no date"):
        load(folder, by="day")
    (folder / "rates.txt").write_text("1.5\n2.5\n")
    with pytest.raises(DataError, match=r"rates\.txt.*--format rates"):
        load(folder)


# Folders with an index, as the measured collection has one.


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """Four drives of a set nobody has named; two with pings of their own cycle."""
    rows, samples = [], ["trace,time_s,uplink_mbps,rtt_ms\n"]
    for k in range(4):
        series = [("ul", [10.0 + k] * 30), *([("rtt", [20.0 + k] * 10)] if k < 2 else [])]
        for kind, values in series:
            name = f"bus{k}-{kind}"
            rows.append(f"{name},bus.csv,bus,{kind},bus-drive{k},run{k},5G,1.0\n")
            for t, value in enumerate(values):
                cells = f"{value}," if kind == "ul" else f",{value}"
                samples.append(f"{name},{t},{cells}\n")
    (tmp_path / "index.csv").write_text(
        "trace,file,set,kind,group,run,tech,period_s\n" + "".join(rows)
    )
    (tmp_path / "bus.csv").write_text("".join(samples))
    return tmp_path


def test_an_unknown_collection_is_read_whole_with_the_pings_it_has(indexed: Path) -> None:
    found = load_own([indexed], "all", SplitRule(), otherwise=FIFTY_MS, period_s=1.0)
    assert [trace.name for trace in found.traces] == ["bus0-ul", "bus1-ul", "bus2-ul", "bus3-ul"]
    assert [set(t.rtt_ms) for t in found.traces[:2]] == [{20.0}, {21.0}]
    assert all(set(t.rtt_ms) <= {20.0, 21.0} for t in found.traces[2:])
    assert {t.tech for t in found.traces} == {"5G"}


def test_an_unknown_collection_is_divided_by_its_groups(indexed: Path) -> None:
    rule = SplitRule("file", 0.5, seed=2)
    train, test = (
        load_own([indexed], part, rule, otherwise=FIFTY_MS, period_s=1.0)
        for part in ("train", "test")
    )
    assert len(train.traces) == len(test.traces) == 2
    assert not names(train) & names(test)
    for part in (train, test):  # round trips of the same part, or the stated ones
        numbers = {int(trace.name[3]) for trace in part.traces}
        allowed = {20.0 + k for k in numbers if k < 2} or {50.0}
        assert {rtt for trace in part.traces for rtt in trace.rtt_ms} <= allowed


def test_without_any_ping_the_stated_round_trip_is_used(indexed: Path) -> None:
    index = (indexed / "index.csv").read_text().splitlines(keepends=True)
    (indexed / "index.csv").write_text("".join(line for line in index if ",rtt," not in line))
    found = load_own([indexed], "all", SplitRule(), otherwise=FIFTY_MS)
    assert {rtt for trace in found.traces for rtt in trace.rtt_ms} == {50.0}


def test_other_drives_of_a_named_set_without_the_round_trips_that_its_kind_names(
    indexed: Path,
) -> None:
    index = (indexed / "index.csv").read_text()
    for k in range(4):
        index = index.replace(f"bus,ul,bus-drive{k}", f"memu22,ul,memu22-lte-other{k}")
    (indexed / "index.csv").write_text(index)
    with pytest.raises(DataError, match="no round-trip series for part test"):
        load_collection(indexed, "highway-lte", "test")
    found = load_collection(indexed, "highway-lte", "test", otherwise=FIFTY_MS, period_s=1.0)
    assert [set(t.rtt_ms) for t in found.traces[:2]] == [{20.0}, {21.0}]  # of their own cycle
    assert len(found.traces) == 4
    assert (
        "no round trips of the sets that highway-lte names: others of the folder" in found.notes[-1]
    )
    with pytest.raises(DataError, match="no uplink series that this kind takes of sa24 and memu22"):
        load_collection(indexed, "urban-5g", "test", otherwise=FIFTY_MS)
