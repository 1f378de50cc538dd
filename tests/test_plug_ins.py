"""The example plug-ins, installed by pip into a folder of their own and used by real commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributions import install
from PIL import Image

from cnn.common.outside import read_text
from testbed.records.record_file import read_records

pytestmark = pytest.mark.slow(50)

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "plugins").iterdir())
PLUG_INS = {
    "uplink-rule, policy": "sliproad-uplink-rule 1.0 (uplink_rule:policies)",
    "hwmon, meter": "sliproad-hwmon-meter 1.0 (hwmon_meter:open_meter)",
    "animation, frame source": "sliproad-animation-frames 1.0 (animation_frames:frames)",
    "iperf3-text, trace reader": "sliproad-iperf3-text 1.0 (iperf3_text)",
}

WHEELS = [f"sliproad_{example.name}-1.0-py3-none-any" for example in EXAMPLES]
BUILD = """
import os, sys
from setuptools import build_meta
source, wheels = sys.argv[1:]  # a build changes sys.argv
for name in os.listdir(source):
    os.chdir(os.path.join(source, name))
    build_meta.build_wheel(wheels)
"""

IPERF3 = """Connecting to host 192.0.2.7, port 5201
[  5] local 192.0.2.20 port 41234 connected to 192.0.2.7 port 5201
[ ID] Interval           Transfer     Bitrate         Retr  Cwnd
{rows}- - - - - - - - - - - - - - - - - - - - - - - - -
[ ID] Interval           Transfer     Bitrate         Retr
[  5]   0.00-{end}.00  sec  99.9 MBytes  99.9 Mbits/sec    0             sender
[  5]   0.00-{end}.04  sec  99.9 MBytes  99.9 Mbits/sec                  receiver

iperf Done.
"""


def iperf3_text(rates: list[str]) -> str:
    """What iperf3 prints for a test with these rates, one a second."""
    rows = [
        f"[  5]   {t}.00-{t + 1}.00  sec  1.00 MBytes  {rate}/sec    0   84.8 KBytes\n"
        for t, rate in enumerate(rates)
    ]
    return IPERF3.format(rows="".join(rows), end=len(rates))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the four examples, without network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    wheels = tmp_path_factory.mktemp("wheels")
    for example in EXAMPLES:  # copied, because a build leaves files beside what it builds
        shutil.copytree(example, source / example.name)
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile"]
    pip += ["--quiet", "--disable-pip-version-check", "--target", str(target)]
    # What pip would ask of the build backend (PEP 517), in one process for all four.
    build = [sys.executable, "-c", BUILD, str(source), str(wheels)]
    for command in (build, [*pip, *(str(wheels / f"{name}.whl") for name in WHEELS)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
    return target


def sliproad(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with what lies in `site` installed."""
    return subprocess.run(
        [sys.executable, "-m", "agents", *map(str, words)],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def result(site: Path, *words: object) -> dict[str, Any]:
    """The JSON object that the command ends with."""
    done = sliproad(site, *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def plug_ins_in(findings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f["name"].removeprefix("plug-in "): f for f in findings if "plug-in" in f["name"]}


def test_each_is_a_module_of_under_forty_lines() -> None:
    assert len(EXAMPLES) == len(PLUG_INS)
    for example in EXAMPLES:
        (module,) = example.glob("*.py")
        assert len(module.read_text().splitlines()) < 40, module.name


def test_doctor_lists_them(site: Path) -> None:
    found = plug_ins_in(result(site, "testbed", "doctor", "--port", 0)["findings"])
    assert {name: f["found"] for name, f in found.items()} == PLUG_INS
    assert all(f["ok"] for f in found.values())


def test_a_device_uses_policy_meter_and_frames(site: Path, tmp_path: Path) -> None:
    sensor, film, records = (tmp_path / name for name in ("power1_input", "film.gif", "r.parquet"))
    sensor.write_text("2500000\n")  # microwatts
    pages = [Image.new("RGB", (30, 20), (60 * k, 0, 0)) for k in range(4)]
    pages[0].save(film, save_all=True, append_images=pages[1:])
    found = result(
        *(site, "testbed", "device", "--local-only", "--policy", "uplink-rule"),
        *("--meter", f"hwmon:{sensor}", "--frames", f"animation:{film}"),
        *("--n-frames", 30, "--fps", 20, "--out", records),
    )
    assert (found["policy"], found["policy_hash"]) == ("uplink-rule", "sliproad-uplink-rule 1.0")
    assert (found["frames"], found["policy_errors"]) == (30, 0)
    assert found["energy_source"] == "hwmon:power1_input"
    kept = read_records(records)
    rows = list(kept.rows())
    assert {row.energy_source for row in rows} == {"hwmon:power1_input"}
    assert [row.track for row in rows][:9] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    # 2.5 W for the whole drive, from its first capture to its last.
    energy_mj = sum(row.energy_mj for row in rows[:-1] if row.energy_mj is not None)
    seconds = rows[-1].captured_s - rows[0].captured_s
    assert energy_mj == pytest.approx(2500 * seconds, rel=0.1)
    of_policy, of_meter, of_frames = kept.source["plug_ins"]
    assert of_policy == f"policy uplink-rule of {PLUG_INS['uplink-rule, policy']}"
    assert of_meter == f"meter hwmon of {PLUG_INS['hwmon, meter']}"
    assert of_frames == f"frame source animation of {PLUG_INS['animation, frame source']}"


def test_the_frames_are_the_pages_of_the_film(site: Path, tmp_path: Path) -> None:
    colours = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pages = [Image.new("RGB", (30, 20), colour) for colour in colours]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    code = (
        "from testbed import open_frames\n"
        f"for f in open_frames('animation:{tmp_path}/pages.tif', 8, n=5):\n"
        "    print(f.image.mean((0, 1)).astype(int).tolist(), f.track, f.width_px, f.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = [f"{list(c)} 0 30 pages.tif#{k}" for k, c in enumerate(colours)]
    assert done.stdout.splitlines() == [*expected, "[0, 0, 0] 1 30 pages.tif#0"]


@pytest.mark.parametrize("more", [(), ("--format", "iperf3-text")])
def test_a_text_of_iperf3_is_imported(site: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    run, out = tmp_path / "run.txt", tmp_path / "run.json"
    run.write_text(iperf3_text(["10.5 Mbits", "500 Kbits", "0.00 bits", "1.00 Gbits"]))
    words = ("testbed", "traces", "import", run, "--out", out, "--rtt-ms", 30, "--period-s", 1)
    found = result(site, *words, *more)
    assert json.loads(read_text(out))["uplink_mbps"] == [10.5, 0.5, 0, 1000]
    assert (found["duration_s"], found["mean_rtt_ms"]) == (4, 30)
    assert "run.txt (iperf3's text output)" in found["source"]


def test_streams_are_summed_up_and_without_it_the_file_is_refused(
    site: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run.txt", tmp_path / "run.json"
    rows = "".join(
        f"[{stream}]   {t}.00-{t + 1}.00  sec  1.00 MBytes  {rate} Mbits/sec    0\n"
        for t in range(3)
        for stream, rate in (("  5", 3 + t), ("  7", 1), ("SUM", 4 + t))
    )
    run.write_text(IPERF3.format(rows=rows, end=3))
    words = ("testbed", "traces", "import", run, "--out", out, "--rtt-ms", 30, "--period-s", 1)
    result(site, *words)
    assert json.loads(read_text(out))["uplink_mbps"] == [4, 5, 6]
    done = sliproad(tmp_path, *words)
    assert done.returncode == 2
    assert "iperf's text output; run it with --json" in done.stderr


def test_an_evaluation_drives_it_over_traces_that_the_reader_reads(
    site: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "drives").mkdir()
    for k in range(4):
        rates = [f"{rate:.3g} Mbits" for rate in rng.gamma(2.0, 6.0, 30)]
        (tmp_path / "drives" / f"{k}.txt").write_text(iperf3_text(rates))
    text = (resources.files("offload_env") / "scenarios" / "urban-5g.toml").read_text()
    text = text.replace("[timing]\n", "[timing]\nn_frames = 20\n")
    link = f'source = "measured"\nfolder = "{tmp_path}/drives"\nrtt_ms = 30.0\n'
    (tmp_path / "own.toml").write_text(text.replace("[link]\n", f"[link]\n{link}"))
    words = ("agent", "evaluate", "--scenario", tmp_path / "own.toml", "--episodes", 2)
    found = result(site, *words, "--baseline", "uplink-rule")
    row = found["policies"]["uplink-rule"]
    assert row["plug_in"].startswith(f"policy uplink-rule of {PLUG_INS['uplink-rule, policy']}: ")
    assert not row["keeps_floor"] or row["cost"] >= found["bound_cost"] - 1e-9


def test_the_pages_commands_run(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the evaluation, which the test above runs on shorter drives."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.txt").write_text(iperf3_text(["10.5 Mbits", "9.5 Mbits"]))
    (tmp_path / "power1_input").write_text("2500000\n")
    Image.new("RGB", (30, 20)).save(tmp_path / "film.gif")
    page = read_text(ROOT / "docs" / "plug-ins.md")
    lines = re.findall(r"^sliproad (?!agent evaluate)(.*)$", page, re.M)
    assert len(lines) == 6
    for line in lines:
        here = line.replace("/sys/class/hwmon/hwmon2/", "").replace("-frames 100", "-frames 9")
        done = sliproad(site, *shlex.split(here))
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that fail in every group, and one whose metadata cannot be read."""
    folder = tmp_path_factory.mktemp("broken")
    groups = ("policies", "meters", "frame_sources", "trace_readers")
    points = {f"sliproad.{group}": "bad = bad_plug:made" for group in groups}
    install(folder, "bad-plug", "raise RuntimeError('two\\nlines')\n", points)
    ours = {
        "sliproad.meters": "model = fake_plug:made",
        "sliproad.policies": "greedy = fake_plug:x",
    }
    install(folder, "fake-plug", "raise RuntimeError('imported')\n", ours)
    install(folder, "strange", "", {"sliproad.meters": "x = strange:x"})
    (folder / "strange-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe[\x00")
    return folder


DEVICE = ("testbed", "device", "--local-only", "--n-frames", 3, "--fps", 0)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ((*DEVICE, "--action", "e1s1", "--meter", "bad:x"), "meter"),
        ((*DEVICE, "--action", "e1s1", "--frames", "bad"), "frame source"),
        ((*DEVICE, "--policy", "bad"), "policy"),
        (("agent", "evaluate", "--episodes", 2, "--baseline", "bad"), "policy"),
        (
            (
                *("testbed", "traces", "import", ROOT / "LICENSE", "--out", "unused.json"),
                *("--format", "bad", "--rtt-ms", 1),
            ),
            "trace reader",
        ),
    ],
    ids=["meter", "frames", "policy", "baseline", "reader"],
)
def test_a_broken_one_is_one_line(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sliproad(broken, *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {word} bad of bad-plug 1.0 (bad_plug:made) raised RuntimeError (two lines); "
        f"expected a {word} that works; check what it was given, or correct or uninstall "
        "bad-plug 1.0; docs/plug-ins.md has the interface"
    )
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_broken_ones_disturb_nothing_else(broken: Path) -> None:
    found = result(broken, *DEVICE, "--action", "e1s1")
    assert found["energy_source"].startswith("model:")
    findings = result(broken, "testbed", "doctor", "--port", 0)["findings"]
    listed = plug_ins_in(findings)
    assert set(listed) == {
        *(f"bad, {word}" for word in ("policy", "meter", "frame source", "trace reader")),
        "model, meter",
        "greedy, policy",
    }
    assert not any(f["ok"] or f["needed"] for f in listed.values())
    assert "raised RuntimeError (two lines)" in listed["bad, meter"]["found"]
    for name in ("model, meter", "greedy, policy"):
        assert "sliproad's own, which is used instead" in listed[name]["found"]
        assert "imported" not in listed[name]["found"]
