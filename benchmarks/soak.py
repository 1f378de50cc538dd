"""An unattended device for a long time, with everything going wrong around it.

    python benchmarks/soak.py --minutes 30 [--traces FOLDER] [--seed 0] [--report docs/soak.md]

Real processes: the device (`sliproad testbed device --config`, 10 frames a second from a
folder of images, at the machine's own speed), the MEC server, the link between them, and a
reader of the device's log. The link replays a measured trace, of a kind's test part the one with
the most outages (``--traces`` or SLIPROAD_DATA names the collection), or a generated one without a
collection. Both ends use mutual TLS. What happens, at moments that the seed draws:

* the server is restarted every minute, every other time by a kill;
* it is held (SIGSTOP) and let go; a live but deaf server takes its place;
* the disk of the records is full for a while (a file system of its own as root, else a bound on
  the device's file sizes);
* nobody reads the device's standard error for a while;
* both ends get a new authority and new certificates, without a restart;
* at a third of the time the device gets another policy, at two thirds another model bundle with
  its policies, on both ends.

Prints one JSON object and writes a report: frames lost (captured, but neither recorded with
an answer or as skipped, nor counted as a row that the full disk had no room for), exceptions
(tracebacks and policy errors), and resident memory over time. Memory is flat if the Theil-Sen
slope over the last half of the run is below 5 MB an hour: the median over all pairs of samples,
on which the few jumps of an allocator that takes a larger piece have little weight, and a leak its
whole one. Runs of less than ten minutes say nothing about it.

Exits with 0 if no frame was lost, nothing raised, and memory did not grow. Light on the processor:
other work can go on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _evil_server import EvilServer
from _faults_certificates import Pki
from _faults_disk import Disk
from _faults_parts import NotHereError, Row, RunningDevice, mounted, need_root, say
from _soak_events import Event, drawn
from _soak_files import config, other_bundle, point, write_images, write_policy
from _soak_report import report
from scipy.stats import theilslopes

from cnn.bundle import embedded_bundle_path, load_bundle
from cnn.common.errors import DataError
from cnn.common.files import write_text
from cnn.common.outputs import check_file, text_kind
from testbed.deploy.record_folder import record_files
from testbed.deploy.record_rotation import RotatingRecords
from testbed.link.link_process import LinkProcess
from testbed.records.record_file import read_records
from testbed.server.server_process import ServerProcess
from testbed.traces.collection import load_traces
from testbed.traces.generator import generate_trace
from testbed.traces.trace import Trace
from testbed.wire.tls import ServerTls

DOWN_S, SAMPLE_S = 2.0, 5.0
AWAY_S, FULL_S, STALLED_S = 10.0, 30.0, 30.0
"""How long a server is held or deaf, the disk full, the reader stalled; less in a short run."""
TAKEN_UP_S = 4.0
DISK = "size=32m"
FLAT_MB_AN_HOUR, JUDGED_FROM_S = 5.0, 600.0


def outage_share(trace: Trace) -> float:
    """Share of the samples in which nothing passes."""
    return float((trace.uplink_mbps == 0).mean())


class Soak:
    """The processes and what happens to them."""

    def __init__(self, folder: Path, trace: Trace, seconds: float, seed: int) -> None:
        self.folder, self.trace, self.seconds = folder, trace, seconds
        self.rss: list[tuple[float, float]] = []
        self._later: list[Event] = []
        self.happened: list[Event] = []
        self._restarts = 0
        self._fetched: dict[str, list[Row]] = {}
        self._authorities = ["old", "new"]
        self._over = threading.Event()
        self.bundle = load_bundle()
        self.new_hash = other_bundle(folder / "new-model")
        point(folder / "model", embedded_bundle_path())
        write_policy(folder / "a.policy", self.bundle.hash, 1)
        write_policy(folder / "b.policy", self.bundle.hash, 2)
        write_images(folder / "images")
        try:
            self.pki: Pki | None = Pki(folder / "pki")
        except NotHereError as error:
            say(f"soak: in the clear: {error}")
            self.pki = None
        self._options = self.pki.server_options() if self.pki else ()
        self.events = drawn(seconds, seed, self._happenings())
        self.server = ServerProcess(options=self._options).start()

    def run(self) -> dict[str, Any]:
        """Everything; figures at the end."""
        upstream = ("127.0.0.1", self.server.port)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self.server.kill())
            self.disk = self._disk(stack)
            link = stack.enter_context(LinkProcess(self.trace, upstream))
            target, records = f"127.0.0.1:{link.port}", self.disk.folder / "rec"
            text = config(self.folder, target, self.pki, records)
            self.device = RunningDevice(self.folder, text, log="every_s = 0.5\n", piped=True)
            stack.enter_context(self.device)
            if not self.device.running():
                raise RuntimeError(f"the device did not start; see {self.device.log_path}")
            self.began_s = time.monotonic()
            sampler = threading.Thread(target=self._sample, daemon=True)
            sampler.start()
            self._wait_for_the_end()
            told = self.device.stop()
            self._over.set()
            sampler.join()
            return self._result(told, records)

    def _disk(self, stack: contextlib.ExitStack) -> Disk:
        """Where the records go."""
        place = self.folder / "disk"
        try:
            need_root("mount")
            stack.enter_context(mounted(place, "-t", "tmpfs", "-o", DISK, "tmpfs"))
            return Disk(place, own=True)
        except NotHereError:
            place.mkdir(exist_ok=True)
            return Disk(place, own=False)

    def _sample(self) -> None:
        """In a thread of its own: resident memory of the device."""
        process = psutil.Process(self.device.process.pid)
        while not self._over.wait(SAMPLE_S):
            with contextlib.suppress(psutil.Error):
                at_s = time.monotonic() - self.began_s
                self.rss.append((at_s, process.memory_info().rss / 2**20))

    def _wait_for_the_end(self) -> None:
        """Let the events happen; the last ones also where the run is over before them."""
        todo = list(self.events)
        while self.device.alive:
            now_s = time.monotonic() - self.began_s
            due = min([*todo, *self._later], default=None)
            if due is None and now_s >= self.seconds:
                return
            if due is None or now_s < due.at_s:
                time.sleep(0.2)
                continue
            (self._later if due in self._later else todo).remove(due)
            due.began_s = now_s
            self._fetch()
            due.happens()
            due.seconds = time.monotonic() - self.began_s - now_s
            self.happened.append(due)
            say(f"soak: {now_s:6.0f} s: {due.name}")

    def _fetch(self) -> None:
        """Take the finished records off, as an operator does: a full disk costs the oldest."""
        for path in record_files(self.disk.folder / "rec"):
            if path.name not in self._fetched:
                with contextlib.suppress(DataError):  # gone in between
                    self._fetched[path.name] = read_records(path).table.to_pylist()

    def _happenings(self) -> dict[str, Callable[[], object]]:
        known: dict[str, Callable[[], object]] = {
            "server restarted": self._restart,
            "server held": self._hold,
            "server live but deaf": self._deaf,
            "disk full": self._fill,
            "log reader stalled": self._stall,
            "policy swapped": self._swap_policy,
            "model swapped": self._swap_model,
        }
        return known | ({"certificates changed": self._renew} if self.pki else {})

    def _for(self, seconds: float) -> float:
        """A length of time, less where the run is short."""
        return min(seconds, self.seconds / 8)

    def _afterwards(self, seconds: float, name: str, happens: Callable[[], object]) -> None:
        now_s = time.monotonic() - self.began_s
        self._later.append(Event(now_s + self._for(seconds), name, happens))

    def _restart(self) -> None:
        (self.server.kill if self._restarts % 2 else self.server.stop)()
        self._restarts += 1
        time.sleep(DOWN_S)
        self.server.start()

    def _hold(self) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGSTOP)
        time.sleep(self._for(AWAY_S))
        os.kill(self.server.pid, signal.SIGCONT)

    def _deaf(self) -> None:
        self.server.stop()
        credentials = None
        if self.pki is not None:
            shows = self.pki.folder / "server-shows"
            trusts = self.pki.folder / "server-trusts.pem"
            tls = ServerTls(shows.with_suffix(".pem"), shows.with_suffix(".key"), trusts)
            credentials = tls.credentials()
        with EvilServer("deaf", self.server.port, self.bundle, credentials=credentials):
            time.sleep(self._for(AWAY_S))
        self.server.start()

    def _fill(self) -> None:
        self.disk.fill(self.device)
        self._afterwards(FULL_S, "disk free again", lambda: self.disk.free(self.device))

    def _stall(self) -> None:
        assert self.device.reader is not None
        reader = self.device.reader
        reader.send_signal(signal.SIGSTOP)
        self._afterwards(
            STALLED_S, "log reader goes on", lambda: reader.send_signal(signal.SIGCONT)
        )

    def _renew(self) -> None:
        assert self.pki is not None
        old, new = self._authorities
        for _ in self.pki.change(old, new, TAKEN_UP_S):
            pass
        self._authorities = [new, old]

    def _swap_policy(self) -> None:
        write_policy(self.folder / "a.policy", self.bundle.hash, 3)

    def _swap_model(self) -> None:
        """As docs/deploy.md has it: the server first, then the device's files in any order."""
        self.server.stop()
        model = self.folder / "new-model"
        self.bundle = load_bundle(model)
        self.server = ServerProcess(model, self.server.port, self._options).start()
        point(self.folder / "model", model)
        for name, seed in (("a", 4), ("b", 5)):
            write_policy(self.folder / f"{name}.policy", self.new_hash, seed)

    def _result(self, told: dict[str, Any], records: Path) -> dict[str, Any]:
        # A journal that the full disk cut off becomes a file at the next start of a device.
        RotatingRecords(records, {}).close()
        self._fetch()
        rows = [row for part in self._fetched.values() for row in part]
        log = self.device.log_path.read_text(errors="replace")
        messages = Counter(line["message"] for line in self.device.log())
        frames, dropped = int(told.get("frames") or 0), int(told.get("rows_dropped") or 0)
        ids = {row["frame_id"] for row in rows}
        unanswered = sum(r["prediction"] is None and r["status"] != "skipped" for r in rows)
        return {
            "minutes": self.seconds / 60,
            "trace": f"{self.trace.name} ({self.trace.source.partition(chr(58))[0]})",
            "trace_outage_share": outage_share(self.trace),
            "tls": self.pki is not None,
            "events": dict(Counter(event.name for event in self.happened)),
            "frames": told.get("frames"),
            "frames_lost": abs(frames - len(ids) - dropped) + len(rows) - len(ids) + unanswered,
            "exceptions": log.count("Traceback") + int(told.get("policy_errors") or 0),
            "exit_code": told["exit_code"],
            "status": told.get("status"),
            "reasons": told.get("reasons"),
            "answered_in_last_quarter": answered_from(rows, 0.75),
            "longest_gap_s": longest_gap_s(rows),
            "swaps": told.get("swaps"),
            "rollbacks": told.get("rollbacks"),
            "swap_messages": messages["swapped"],
            "guard_falls": told.get("guard_falls"),
            "rows_dropped": dropped,
            "record_files": len(record_files(records)),
            "delay_ms": told.get("delay_ms"),
            **memory(self.rss, self.seconds),
            "happened": [
                [round(e.began_s or 0, 1), e.name, round(e.seconds, 1)] for e in self.happened
            ],
            "rss_mb": [[round(t), round(r, 1)] for t, r in self.rss],
        }


def answered_from(rows: list[dict[str, Any]], share: float) -> int:
    """Frames that a server answered after that share of the run."""
    late_s = share * max(row["captured_s"] for row in rows)
    sent = (row for row in rows if row["captured_s"] >= late_s and row["status"] == "ok")
    return sum(row["uplink_bytes"] > 0 for row in sent)


def longest_gap_s(rows: list[dict[str, Any]]) -> float:
    """Longest time between two frames that were decided; rows that are missing say nothing."""
    longest_s, last = 0.0, None
    before = -1
    for row in sorted(rows, key=lambda row: row["frame_id"]):
        last = last if row["frame_id"] == before + 1 else None
        before = row["frame_id"]
        if row["status"] != "skipped":
            longest_s = max(longest_s, row["captured_s"] - last if last is not None else 0.0)
            last = row["captured_s"]
    return round(longest_s, 2)


def memory(rss: list[tuple[float, float]], seconds: float) -> dict[str, Any]:
    """What the samples say of resident memory, MB; the slope is that of the last half, an hour."""
    at, mb = np.array(rss).T
    last = at >= seconds / 2
    slope = low = high = flat = None
    if last.sum() > 2:
        found = theilslopes(mb[last], at[last] / 3600)
        slope, low, high = (round(float(x), 2) for x in found[:1] + found[2:])
        flat = slope < FLAT_MB_AN_HOUR if seconds >= JUDGED_FROM_S else None
    return {
        "rss_mb_first": float(mb[0]),
        "rss_mb_last": float(mb[-1]),
        "rss_mb_most": float(mb.max()),
        "rss_mb_an_hour": slope,
        "rss_mb_an_hour_95": [low, high],
        "memory_flat": flat,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--traces", type=Path, help="collection of measured traces")
    parser.add_argument("--kind", default="poor-coverage", help="kind of trace")
    parser.add_argument("--seed", type=int, default=0, help="of the events' moments")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    if arguments.report is not None:
        check_file(arguments.report, text_kind("a soak test's report", "soak.py", "# Soak\n"))
    data = arguments.traces or os.environ.get("SLIPROAD_DATA")
    if data is None:
        trace = generate_trace(arguments.kind, seed=7, duration_s=600)
    else:
        measured = load_traces(Path(data), arguments.kind, "test")
        trace = max(measured, key=outage_share)
    with tempfile.TemporaryDirectory() as folder:
        result = Soak(Path(folder), trace, 60 * arguments.minutes, arguments.seed).run()
    if arguments.report is not None:
        command = f"python benchmarks/soak.py --minutes {arguments.minutes:g}"
        command += f" --kind {arguments.kind} --seed {arguments.seed} --report docs/soak.md"
        write_text(arguments.report, report(result, command))
    print(json.dumps(result))
    sound = not (result["frames_lost"] or result["exceptions"] or result["exit_code"])
    return 0 if sound and result["memory_flat"] is not False else 1


if __name__ == "__main__":
    sys.exit(main())
