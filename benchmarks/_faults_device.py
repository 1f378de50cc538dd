"""One device, and behind its server's address what should not be there.

A server is killed and comes back after a short, a long and a very long while, is held and let go,
is replaced by one that is live but never answers, and by ones that lie. The device sends every
frame. No frame may be lost, no lie may be recorded as an answer, and after each of these, once a
good server listens again, the next answered frame may take at most two seconds.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _faults_evil_server import KINDS, EvilServer, is_lie
from _faults_parts import RunningDevice, frames_lost, rows_of, say, wait_for

from testbed.server.process import ServerProcess

KILLED_S, HELD_S, DEAF_S = (1.0, 10.0), 5.0, 8.0
LIES = 3
RECOVERY_LIMIT_S = 15.0


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    times_s: dict[str, float] = {}
    server = ServerProcess().start()
    text = (
        f'[server]\naddress = "{server.target}"\n[bundles]\naction = "e3s1"\n'
        f"[frames]\nseed = {seed}\nperiod_ms = 50\ntimeout_ms = 250\nmax_queue_ms = 2000\n"
        f'[records]\nfolder = "{folder / "rec"}"\nflush_s = 0.3\n'
    )
    try:
        with RunningDevice(folder, text) as device:
            if not device.running() or not device.goes_on(3, "ok", 15):
                raise RuntimeError("no frame was answered by a good server")
            for name, happening in happenings(server, quick):
                before = device.frames()
                happening()
                answered = device.frames("ok")
                took_s = wait_for(
                    lambda n=answered: device.frames("ok") > n, RECOVERY_LIMIT_S
                )
                times_s[name] = RECOVERY_LIMIT_S if took_s is None else took_s
                done = device.frames() - before
                say(f"device: {name}: {done} frames, answered again after {times_s[name]:.2f} s")
                device.goes_on(10, "ok")
            result = device.stop()
    finally:
        server.kill()
    rows = rows_of(folder / "rec")
    lies = [row for row in rows if is_lie(row)]
    say(f"device: {result.get('status')}, {result.get('reasons')}")
    if result["exit_code"] != 0:
        say(f"device: exit code {result['exit_code']}")
    frames = int(result.get("frames") or max(row["frame_id"] for row in rows) + 1)
    return {
        "frames_lost": frames_lost(frames, rows),
        "wrong_answers_counted_ok": len(lies),
        "recovery_s_max": round(max(times_s.values()), 2),
        "failed": [] if result["exit_code"] == 0 else ["device's exit code"],
    }


def happenings(server: ServerProcess, quick: bool) -> list[tuple[str, Callable[[], object]]]:
    """What happens to the server, by name; each ends when a good server listens again."""

    def killed(down_s: float) -> None:
        server.kill()
        time.sleep(down_s)
        server.start()

    def held(seconds: float) -> None:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(server.pid, signal.SIGCONT)

    def deaf() -> None:
        server.stop()
        with EvilServer("deaf", server.port):
            time.sleep(3 if quick else DEAF_S)
        server.start()

    def lying() -> None:
        server.stop()
        with EvilServer(KINDS[0], server.port) as liar:
            for liar.kind in KINDS:
                told = liar.answers
                if wait_for(lambda n=told: liar.answers >= n + LIES, 5) is None:
                    say(f"device: too few answers of a server that lies ({liar.kind})")
        server.start()

    plan: list[tuple[str, Callable[[], object]]] = [("a server that lies", lying)]
    plan.append(("a live but deaf server", deaf))
    plan.append(("a held server", lambda: held(2 if quick else HELD_S)))
    for down_s in KILLED_S[:2] if quick else KILLED_S:
        plan.append((f"killed for {down_s:g} s", lambda s=down_s: killed(s)))
    return plan
