"""The user-space link in a separate process, with the same methods as `LinkEmulator`.

A link that shares an interpreter with a busy device loop is delayed by that loop. Here it has its
own interpreter, and a raised priority if the system allows it. Orders and answers are JSON lines
over the child's standard streams; it ends when they close, so it cannot be left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any, Final

from cnn.common.errors import RemoteError, SliproadError
from testbed.common.child_process import wait_for_end
from testbed.link.emulator import BUFFER_BYTES, LinkEmulator
from testbed.link.transfer import Link
from testbed.traces.trace import Trace, trace_from_json, trace_to_json

STOP_S: Final = 5.0


class LinkProcess(Link):
    """A `LinkEmulator` in a child process. Use as a context manager, or call `close`.

    Args: as for `LinkEmulator`.

    Raises:
        RemoteError: the child could not listen, or ended.
    """

    def __init__(
        self,
        trace: Trace,
        upstream: tuple[str, int],
        listen: tuple[str, int] = ("127.0.0.1", 0),
        *,
        start_offset_s: float = 0.0,
        downlink_mbps: float | None = None,
        tail_ms: float = 0.0,
        promotion_ms: float = 0.0,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        super().__init__(trace, start_offset_s, downlink_mbps, "user-space")
        self._start_time: float | None = None
        self._cuts: tuple[tuple[float, float], ...] = ()
        self._one_order = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "testbed.link.link_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            ready = self._order(
                {
                    "trace": trace_to_json(trace),
                    "upstream": list(upstream),
                    "listen": list(listen),
                    "start_offset_s": start_offset_s,
                    "downlink_mbps": downlink_mbps,
                    "tail_ms": tail_ms,
                    "promotion_ms": promotion_ms,
                    "buffer_bytes": buffer_bytes,
                }
            )
        except BaseException:
            self.close()
            raise
        self.host, self.port = str(ready["host"]), int(ready["port"])

    @property
    def start_time(self) -> float | None:
        """`time.monotonic` at which the trace started; None if it has not yet."""
        if self._start_time is None:
            self._start_time = self._order({"order": "start_time"})["start_time"]
        return self._start_time

    def start(self, at: float | None = None) -> None:
        """Start the trace at a moment of `time.monotonic` (None: now). Once only."""
        self._order({"order": "start", "at": at})

    def cut(self, seconds: float, *, drop: bool = False) -> None:
        """Cut the link from now on (`LinkEmulator.cut`)."""
        cuts = self._order({"order": "cut", "seconds": seconds, "drop": drop})["cuts"]
        self._cuts = tuple((float(first), float(end)) for first, end in cuts)

    def _so_far(self) -> tuple[float | None, tuple[tuple[float, float], ...]]:
        return self.start_time, self._cuts

    def stats(self) -> dict[str, Any]:
        """Counts and lateness (`LinkEmulator.stats`)."""
        return self._order({"order": "stats"})

    def close(self) -> None:
        """Reset every connection and end the process."""
        wait_for_end(self._child, STOP_S)

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        with self._one_order:
            try:
                child.stdin.write(json.dumps(order) + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
            except (OSError, ValueError):
                line = ""
        if not line:
            raise RemoteError(
                f"the link process ended (exit status {child.poll()})",
                expected="a link that runs until it is closed",
                hint="see its messages on standard error",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RemoteError(**answer["error"])
        return answer


def serve_orders() -> None:
    """The child: build the link from the first line, then carry out lines until the input ends."""
    settings = json.loads(sys.stdin.readline() or "null")
    if settings is None:
        return
    try:
        link = LinkEmulator(
            trace_from_json(settings["trace"], "order"),
            tuple(settings["upstream"]),
            tuple(settings["listen"]),
            start_offset_s=settings["start_offset_s"],
            downlink_mbps=settings["downlink_mbps"],
            tail_ms=settings["tail_ms"],
            promotion_ms=settings["promotion_ms"],
            buffer_bytes=settings["buffer_bytes"],
            realtime=True,
        )
    except SliproadError as error:
        _answer({"error": _plain(error)})
        return
    with link:
        _answer({"host": link.host, "port": link.port})
        for line in sys.stdin:
            try:
                _answer(_obey(link, json.loads(line)))
            except SliproadError as error:
                _answer({"error": _plain(error)})


def _obey(link: LinkEmulator, order: dict[str, Any]) -> dict[str, Any]:
    match order["order"]:
        case "start_time":
            return {"start_time": link.start_time}
        case "start":
            link.start(order["at"])
        case "cut":
            link.cut(order["seconds"], drop=order["drop"])
            return {"cuts": link.record().cuts}
        case "stats":
            return link.stats()
    return {}


def _plain(error: SliproadError) -> dict[str, str]:
    return {"given": error.given, "expected": error.expected, "hint": error.hint}


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve_orders()
