"""docs/your-traces.md: imports and fits run as they stand. Training: `tests/test_your_pages.py`."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.cli import app
from cnn.common.outside import read_text
from offload_env.scenario import parse_scenario
from testbed.traces.generator import generate_trace
from testbed.traces.trace_files import read_trace

PAGE = Path(__file__).parents[3] / "docs" / "your-traces.md"
TEXT = read_text(PAGE)
COMMANDS = [
    shlex.split(line) for line in re.findall(r"^sliproad (.*)$", re.sub(r"\\\n\s*", "", TEXT), re.M)
]

DRIVE = """when;Throughput [kbit/s];ping;net
2024-05-17T09:30:00Z;1000;30;LTE
2024-05-17T09:30:01Z;2000;;LTE
2024-05-17T09:30:02Z;;40;NR-NSA
2024-05-17T09:30:03Z;4000;31;NR-NSA
2024-05-17T09:30:03Z;4000;31;NR-NSA
2024-05-17T09:30:05Z;5000;31;NR-NSA
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.txt").write_text("3.5\n2.5\n")
    (tmp_path / "cooked.txt").write_text("1.0 3.5\n2.0 2.5\n")
    walk = "Timestamp,DL_bitrate,UL_bitrate,PINGAVG\n"
    walk += "".join(f"2019.12.14_10.16.3{k},8000,500,30\n" for k in range(3))
    (tmp_path / "walk.csv").write_text(walk)
    (tmp_path / "drive.csv").write_text(DRIVE)
    (tmp_path / "drives").mkdir()
    for seed, name in enumerate(("monday", "tuesday")):
        trace = generate_trace("highway-lte", seed, 120.0, 1.0)
        rows = zip(range(120), trace.uplink_mbps.tolist(), trace.rtt_ms.tolist(), strict=True)
        text = "".join(f"{name},{t},{up:.3f},{rtt:.1f}\n" for t, up, rtt in rows)
        path = tmp_path / "drives" / f"{name}.csv"
        path.write_text(f"trace,time_s,uplink_mbps,rtt_ms\n{text}")
    return tmp_path


def test_imports_and_fits_run_as_they_stand(here: Path) -> None:
    run = [words for words in COMMANDS if words[:2] == ["testbed", "traces"]]
    assert len(run) == 5
    for words in run:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        out = Path(words[words.index("--out") + 1])
        if words[2] == "import":
            assert read_trace(out).uplink_mbps.max() > 0
        else:
            assert generate_trace(str(out), 1).uplink_mbps.max() > 0
        if out.name == "drive.json":  # what the page says it prints
            said = " ".join(done.stdout.split())
            assert said in " ".join(TEXT.split())


def test_its_scenarios_are_read() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
    assert [set(tomllib.loads(block)) for block in blocks] == [{"link"}] * 2
    for block in blocks:
        parse_scenario(block, "page")
