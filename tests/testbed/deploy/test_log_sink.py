"""A log that nobody reads costs lines, never frames."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from testbed.deploy.log import LineSink
from testbed.records.record_file import read_all

pytestmark = pytest.mark.slow(25)

ROOT = Path(__file__).parents[3]
SMALL_PIPE = 4096


def notice(lines: int) -> bytes:
    return b"%d lost\n" % lines


def narrow_pipe() -> tuple[int, int]:
    """Both ends of a pipe that takes one page."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, SMALL_PIPE)
    return read_end, write_end


def test_what_is_too_much_is_counted_and_told_where_it_would_have_stood() -> None:
    read_end, write_end = narrow_pipe()
    sink = LineSink(write_end, notice, most_bytes=2000)
    lines = [b"%0100d\n" % i for i in range(500)]
    for line in lines:
        sink.put(line)
    assert sink.dropped > 0
    found: list[bytes] = []

    def read() -> None:
        with os.fdopen(read_end, "rb") as stream:
            found.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    assert sink.close(60.0)
    os.close(write_end)
    reader.join()
    assert found == [*lines[: len(found) - 1], notice(500 - len(found) + 1)]
    assert sink.dropped == 500 - len(found) + 1


def test_once_it_is_read_again_lines_follow_what_was_lost() -> None:
    read_end, write_end = narrow_pipe()
    sink = LineSink(write_end, notice, most_bytes=300)
    for _ in range(200):
        sink.put(b"x" * 99 + b"\n")
    lost = sink.dropped
    with os.fdopen(read_end, "rb") as stream:
        before = [stream.readline() for _ in range(200 - lost)]
        assert set(before) == {b"x" * 99 + b"\n"}
        assert stream.readline() == notice(lost)  # without waiting for another line
        sink.put(b"later\n")
        assert stream.readline() == b"later\n"
        assert sink.close(60.0)
    os.close(write_end)


def test_a_pipe_without_a_reader_loses_lines_only() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    sink = LineSink(write_end, notice)
    for _ in range(10):
        sink.put(b"line\n")
    assert sink.close(60.0)
    os.close(write_end)
    assert sink.dropped == 10


def test_lines_that_a_full_disk_did_not_take_are_told_of_once_there_is_room(
    tmp_path: Path,
) -> None:
    """A limit of the file's size stands for the disk: half a line is written, then none."""
    program = f"""
import resource, signal, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
import os
from testbed.deploy.log import LineSink
fd = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sink = LineSink(fd, lambda n: b"%d lost\\n" % n)
for i in range(4):
    sink.put(b"line %d ...\\n" % i)
while sink.dropped < 2:
    time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
sink.put(b"there is room\\n")
assert sink.close(60.0)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["line 0 ...", "line 1 ...", "lin", "2 lost", "there is room"]


FLOOD = """
import logging
from testbed.deploy.log import event, logged, dropped_lines
log = logging.getLogger("testbed.x")
with logged({form!r}, "info"):
    for i in range(3000):
        event(log, logging.INFO, "x" * 1000, number=i)
    assert dropped_lines() > 1000
    print("done", flush=True)
    assert input() == "go on"
    event(log, logging.INFO, "last")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_process_says_how_many_lines_its_stalled_reader_has_lost(form: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FLOOD.format(form=form)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"  # all were logged, and nobody has read one
    _, log = process.communicate("go on", timeout=60)
    assert process.returncode == 0
    lines = log.splitlines()
    lost = [int(n) for n in re.findall(r"(\d+) lines of the log dropped", log)]
    assert lost  # said once, or again if the reader's first bytes made room in the middle
    assert sum(lost) == 3001 - (len(lines) - len(lost))


def device_file(folder: Path, count: int) -> Path:
    path = folder / "device.toml"
    path.write_text(
        f'[bundles]\naction = "e1s1"\n[frames]\ncount = {count}\nperiod_ms = 1\n'
        "[drive]\nfull_local_ms = 10\n"
        f'[records]\nfolder = "{folder / "records"}"\n'
        '[log]\nlevel = "debug"\nevery_s = 0.0001\n'
    )
    return path


def device(config: Path, stderr: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "testbed", "device", "--config", str(config)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)


@pytest.mark.parametrize("reader", ["stalls", "is gone"])
def test_every_frame_of_a_device_whose_log_nobody_reads(tmp_path: Path, reader: str) -> None:
    read_end, write_end = narrow_pipe()
    process = device(device_file(tmp_path, 60), write_end)
    os.close(write_end)
    if reader == "is gone":
        os.close(read_end)
    assert process.wait(120) == 0  # and its end does not wait for the reader, either
    assert sum(len(r.table) for r in read_all(tmp_path / "records")) == 60
    if reader == "stalls":
        with os.fdopen(read_end, "rb") as log:
            said = log.read()
        assert b"frames frames=1" in said


def test_a_device_whose_log_is_on_a_full_disk_runs_on(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = device(device_file(tmp_path, 30), full.fileno())
    assert process.wait(120) == 0
    assert sum(len(r.table) for r in read_all(tmp_path / "records")) == 30


def test_an_error_that_ends_the_process_is_still_said() -> None:
    program = (
        "from testbed.deploy.log import logged\n"
        "import os, sys, threading\n"
        "with logged('text', 'info'):\n"
        "    print('by Python', file=sys.stderr)\n"
        "    raise RuntimeError('the end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("by Python\nTraceback")
    assert done.stderr.endswith("RuntimeError: the end\n")


def test_a_native_crash_is_still_told() -> None:
    program = (
        "from testbed.deploy.log import logged\nimport os\n"
        "with logged('text', 'info'):\n    os.abort()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr
