"""A plug-in's trace reader: asked about unknown texts alone, and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributions import install

from cnn.common.errors import ConfigError, DataError
from testbed.traces.measured import constant_rtt
from testbed.traces.recognise import UNKNOWN, recognise
from testbed.traces.trace_files import ImportOptions, NoTraceError, import_trace, traces_in

MODULE = """
import numpy as np
from testbed import Measured

def recognises(text, file_name):
    return text.startswith("TRAM")

def read(text, path):
    rows = [line.split() for line in text.splitlines()[1:]]
    start, end, rate = ([float(row[i]) for row in rows] for i in range(3))
    return Measured(path.name, f"{path.name} (tram)", "5G", start, end, rate)

class Fails:
    def recognises(self, text, file_name):
        raise RuntimeError("no dictionary")
    def read(self, text, path):
        return text

fails = Fails()
"""
TRAM = "TRAM 7\n0 1 8\n1 2 4\n3 4 nan\n4 5 2\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path, "tram-plug", MODULE, {"sliproad.trace_readers": "tram = tram_plug"})
    failing = {"sliproad.trace_readers": "failing = failing_plug:fails\nghent = failing_plug:fails"}
    install(tmp_path, "failing-plug", MODULE, failing)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("format_name", [None, "tram"])
def test_a_file_is_read_by_content_and_by_name(site: Path, format_name: str | None) -> None:
    (site / "line7.txt").write_text(TRAM)
    options = ImportOptions(format_name, rtt_ms=20.0, period_s=1.0)
    trace = import_trace(site / "line7.txt", options)
    # 8 and 4 Mbit/s; no rate for 2 s is held; then 2 Mbit/s.
    assert trace.uplink_mbps.tolist() == [8, 4, 4, 4, 2]
    assert (trace.tech, trace.period_s, set(trace.rtt_ms)) == ("5G", 1.0, {20.0})
    assert "line7.txt (tram)" in trace.source
    assert "1 of 4 rows without a rate" in trace.source


def test_a_scenarios_file_is_recognised_too(site: Path) -> None:
    path = site / "line7-20240517.txt"
    path.write_text(TRAM)
    (found,) = traces_in(path, constant_rtt(15.0), 1.0)
    assert found.trace.uplink_mbps.tolist() == [8, 4, 4, 4, 2]
    assert (found.day, found.own_rtt) == ("2024-05-17", False)


def test_what_nobody_reads_says_which_reader_failed(site: Path) -> None:
    found = recognise("a word", "x.txt")
    assert found.name == UNKNOWN
    assert "trace reader failing of failing-plug 1.0" in found.words
    assert "raised RuntimeError (no dictionary)" in found.words
    assert recognise("1\n2\n3\n", "a.up").name == "mahimahi"
    (site / "x.txt").write_text("a word")
    with pytest.raises(NoTraceError):
        traces_in(site / "x.txt", constant_rtt(15.0), 1.0)
    with pytest.raises(DataError, match=r"expected one of .*columns, failing, tram;"):
        import_trace(site / "x.txt", ImportOptions(rtt_ms=1.0))


def test_two_that_read_a_file_must_be_told_apart(site: Path) -> None:
    install(site, "train-plug", MODULE, {"sliproad.trace_readers": "train = train_plug"})
    (site / "line7.txt").write_text(TRAM)
    with pytest.raises(ConfigError, match=r"--format train or --format tram|--format tram or"):
        import_trace(site / "line7.txt", ImportOptions(rtt_ms=1.0))
    assert import_trace(site / "line7.txt", ImportOptions("train", 20.0)).tech == "5G"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("TRAM\n0 1 -3\n", ConfigError, "a rate below 0"),
        ("TRAM\n0 1 inf\n", ConfigError, "a rate below 0, or infinite"),
        ("TRAM\n0 0 3\n", ConfigError, "lasts no time"),
        ("TRAM\n0 2 3\n1 3 3\n", ConfigError, "rates that overlap"),
        ("TRAM\n0 1 3\n1 x 3\n", ConfigError, "could not convert string to float"),
        ("TRAM\n", DataError, "trace reader tram finds no rate in it"),
    ],
)
def test_wrong_rates_are_one_line(site: Path, text: str, kind: type[Exception], said: str) -> None:
    (site / "line7.txt").write_text(text)
    with pytest.raises(kind, match=said):
        import_trace(site / "line7.txt", ImportOptions("tram", 20.0))


def test_a_reader_that_gives_something_else(site: Path) -> None:
    (site / "line7.txt").write_text(TRAM)
    with pytest.raises(ConfigError, match=r"it reads str, no testbed.Measured"):
        import_trace(site / "line7.txt", ImportOptions("failing", 20.0))
    with pytest.raises(ConfigError, match=r"--direction with the plug-in tram"):
        import_trace(site / "line7.txt", ImportOptions("tram", 20.0, direction="up"))
    with pytest.raises(ConfigError, match=r"--format trom; expected one of .*failing, tram"):
        import_trace(site / "line7.txt", ImportOptions("trom", 20.0))
    with pytest.raises(DataError, match=r"six columns"):  # ours, not the plug-in of that name
        import_trace(site / "line7.txt", ImportOptions("ghent", 20.0))


def test_rounding_between_neighbours_is_no_overlap(site: Path) -> None:
    edges = np.arange(31) * 0.1
    rows = "".join(f"{a!r} {a + 0.1!r} 3\n" for a in edges[:-1].tolist())
    (site / "line7.txt").write_text(f"TRAM\n{rows}")
    trace = import_trace(site / "line7.txt", ImportOptions("tram", 20.0))
    np.testing.assert_allclose(trace.uplink_mbps, 3.0)
    assert len(trace.uplink_mbps) == 30
