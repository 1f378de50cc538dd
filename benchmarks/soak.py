"""An unattended device for a long time, with everything going wrong around it.

    python benchmarks/soak.py --minutes 30 [--traces FOLDER] [--report docs/soak.md]

Three real processes: the device (`sliproad testbed device --config`, 10 frames a second from a
folder of images, at the machine's own speed), the MEC server, and the link between them. The
link replays a measured trace, of a kind's test part the one with the most outages (``--traces``
or SLIPROAD_DATA names the collection), or a generated one without a collection. The server is
restarted every minute, every other time by a kill. The device's bundles are swapped twice: at
a third of the time another policy, at two thirds another model bundle with its policies, on
both ends. Prints one JSON object and writes a report: frames lost (captured, but not recorded
with an answer or as skipped), exceptions (tracebacks and policy errors), and resident memory
over time. Light on the processor: other work can go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _soak_files import config, other_bundle, point, write_images, write_policy
from _soak_report import report

from cnn.bundle import embedded_bundle_path, load_bundle
from cnn.files import write_text
from cnn.outputs import check_file, text_kind
from testbed.link.process import LinkProcess
from testbed.records.parquet import read_records
from testbed.server.process import ServerProcess
from testbed.service.record_rotation import record_files
from testbed.traces.collection import load_traces
from testbed.traces.model import generate_trace
from testbed.traces.trace import Trace

RESTART_S = 60.0
DOWN_S = 2.0
SAMPLE_S = 5.0


def outage_share(trace: Trace) -> float:
    """Share of the samples in which nothing passes."""
    return float((trace.uplink_mbps == 0).mean())


class Soak:
    """The three processes and what happens to them."""

    def __init__(self, folder: Path, trace: Trace) -> None:
        self.folder, self.trace = folder, trace
        self.restarts = 0
        self.rss: list[tuple[float, float]] = []
        self.new_hash = other_bundle(folder / "new-model")
        point(folder / "model", embedded_bundle_path())
        write_policy(folder / "a.policy", load_bundle().hash, 1)
        write_policy(folder / "b.policy", load_bundle().hash, 2)
        write_images(folder / "images")
        self.server = ServerProcess().start()

    def run(self, seconds: float) -> dict[str, Any]:
        """Everything; figures at the end."""
        upstream = ("127.0.0.1", self.server.port)
        log_path = self.folder / "device.log"
        with LinkProcess(self.trace, upstream) as link, log_path.open("w") as log:
            path = config(self.folder, f"127.0.0.1:{link.port}")
            command = [sys.executable, "-m", "testbed", "device", "--config", str(path), "--json"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.device = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
            try:
                self._happenings(seconds)
                self.device.send_signal(signal.SIGTERM)
                stdout = self.device.communicate(timeout=60)[0]
            finally:
                self.device.kill()
                self.server.stop()
        return self._result(seconds, stdout, log_path.read_text())

    def _happenings(self, seconds: float) -> None:
        began_s = time.monotonic()
        todo: list[tuple[float, Callable[[], None]]] = [
            (seconds / 3, self._swap_policy),
            (2 * seconds / 3, self._swap_model),
        ]
        n_restarts = max(1, int(seconds / RESTART_S) - 1)
        every_s = seconds / (n_restarts + 1)
        todo += [((i + 1) * every_s + 5, self._restart) for i in range(n_restarts)]
        todo.sort(key=lambda item: item[0])
        process = psutil.Process(self.device.pid)
        sampled_s = -SAMPLE_S
        while (now_s := time.monotonic() - began_s) < seconds:
            if self.device.poll() is not None:
                return
            if todo and now_s >= todo[0][0]:
                todo.pop(0)[1]()
            if now_s - sampled_s >= SAMPLE_S:
                self.rss.append((now_s, process.memory_info().rss / 2**20))
                sampled_s = now_s
            time.sleep(0.2)

    def _restart(self) -> None:
        (self.server.kill if self.restarts % 2 else self.server.stop)()
        self.restarts += 1
        time.sleep(DOWN_S)
        self.server.start()

    def _swap_policy(self) -> None:
        write_policy(self.folder / "a.policy", load_bundle().hash, 3)

    def _swap_model(self) -> None:
        """As docs/deploy.md has it: the server first, then the device's files in any order."""
        self.server.stop()
        port = self.server.port
        self.server = ServerProcess(self.folder / "new-model", port).start()
        point(self.folder / "model", self.folder / "new-model")
        for name, seed in (("a", 4), ("b", 5)):
            write_policy(self.folder / f"{name}.policy", self.new_hash, seed)

    def _result(self, seconds: float, stdout: str, log: str) -> dict[str, Any]:
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        messages = [line["message"] for line in lines]
        told = json.loads(stdout.splitlines()[-1]) if stdout.strip() else {}
        files = [read_records(path) for path in record_files(self.folder / "records")]
        ids = [int(i) for r in files for i in r.numbers("frame_id")]
        status = [s for r in files for s in r.texts("status")]
        answered = [p is not None for r in files for p in r.table["prediction"].to_pylist()]
        unanswered = sum(s != "skipped" and not a for s, a in zip(status, answered, strict=True))
        missing = (max(ids) + 1 - len(set(ids))) if ids else 0
        at, rss = np.array(self.rss[len(self.rss) // 4 :]).T
        slope = float(np.polyfit(at, rss, 1)[0]) * 3600
        return {
            "minutes": seconds / 60,
            "trace": f"{self.trace.name} ({self.trace.source.partition(chr(58))[0]})",
            "trace_outage_share": outage_share(self.trace),
            "frames": told.get("frames"),
            "frames_lost": missing + unanswered + abs(told.get("frames", 0) - len(ids)),
            "exceptions": log.count("Traceback") + told.get("policy_errors", 0),
            "exit_code": self.device.returncode,
            "status": told.get("status"),
            "reasons": told.get("reasons"),
            "server_restarts": self.restarts,
            "swaps": told.get("swaps"),
            "rollbacks": told.get("rollbacks"),
            "swap_messages": messages.count("swapped"),
            "guard_falls": told.get("guard_falls"),
            "rows_dropped": told.get("rows_dropped"),
            "record_files": len(files),
            "delay_ms": told.get("delay_ms"),
            "rss_mb_first": self.rss[0][1],
            "rss_mb_last": self.rss[-1][1],
            "rss_mb_most": max(r for _, r in self.rss),
            "rss_mb_an_hour": slope,
            "rss_mb": [[round(t), round(r, 1)] for t, r in self.rss],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--traces", type=Path, help="collection of measured traces")
    parser.add_argument("--kind", default="poor-coverage", help="kind of trace")
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
        result = Soak(Path(folder), trace).run(60 * arguments.minutes)
    if arguments.report is not None:
        command = f"python benchmarks/soak.py --minutes {arguments.minutes:g}"
        text = report(result, f"{command} --kind {arguments.kind} --report docs/soak.md")
        write_text(arguments.report, text)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
