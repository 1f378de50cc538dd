"""One device, and behind its server's address what should not be there.

First a server that lies in every way, to a device without a circuit breaker, so that each lie is
heard: none may be recorded as an answer. Then, to a device as it is deployed, servers that are
live but deaf, held and let go, or killed and started again after a short and a long while: once a
good server listens again, the next answered frame may take at most two seconds. Both devices send
every frame, and none may be lost.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _evil_server import HALF, USELESS, WRONG_ANSWERS, EvilServer
from _faults_parts import RunningDevice, frames_lost, rows_of, say, wait_for

from testbed.server.server_process import ServerProcess

KILLED_S, HELD_S, DEAF_S = (1.0, 10.0), 5.0, 8.0
LIES, LYING_LIMIT_S, SETTLE_S = 2, 5.0, 0.6
NOT_ANSWERS = (*WRONG_ANSWERS, *(mode for mode in USELESS if mode != "late"))
RECOVERY_LIMIT_S = 15.0


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    lied, back_s = lied_to(folder, seed, quick)
    left, recovery_s = left_alone(folder, seed, quick)
    wrong = lied.pop("wrong")
    codes = [each["exit_code"] for each in (lied, left)]
    return {
        "frames_lost": lied["lost"] + left["lost"],
        "wrong_answers_counted_ok": wrong,
        "recovery_s_max": round(max(back_s, recovery_s), 2),
        "failed": [f"device's exit code {code}" for code in codes if code != 0],
    }


def lied_to(folder: Path, seed: int, quick: bool) -> tuple[dict[str, Any], float]:
    """A device and every lie: what it made of them, and seconds until it took true answers."""
    modes = NOT_ANSWERS[seed % 4 :: 4] if quick else NOT_ANSWERS
    with EvilServer("honest") as server:
        text = settings(server.target, seed) + "breaker_failures = 0\n"
        with RunningDevice(folder, text + records(folder / "lied")) as device:
            if not device.running() or not device.goes_on(3, "ok", 15):
                raise RuntimeError("no frame was answered by an honest server")
            server.mode = "deaf"  # what was answered until now is counted before the lies begin
            time.sleep(SETTLE_S)
            before = at = device.frames("ok")
            taken = []
            for server.mode in modes:
                told = server.inferences
                if wait_for(lambda n=told: server.inferences > n + LIES, LYING_LIMIT_S) is None:
                    say(f"device: too few frames for a server that lies ({server.mode})")
                now = device.frames("ok")
                taken += [server.mode] if now > at else []
                at = now
            time.sleep(SETTLE_S)
            wrong = device.frames("ok") - before
            server.mode = "honest"
            back_s = answered_within(device)
            result = account(device, folder / "lied")
    say(f"device: {len(modes)} ways to lie, {wrong} lies recorded as answers: {taken or 'none'}")
    return {**result, "wrong": wrong}, back_s


def left_alone(folder: Path, seed: int, quick: bool) -> tuple[dict[str, Any], float]:
    """A device whose server is away in every way; seconds of the longest return."""
    longest_s = 0.0
    server = ServerProcess().start()
    try:
        text = settings(server.target, seed) + records(folder / "left")
        with RunningDevice(folder, text) as device:
            if not device.running() or not device.goes_on(3, "ok", 15):
                raise RuntimeError("no frame was answered by a good server")
            for name, happening in happenings(server, quick):
                before = device.frames()
                happening()
                took_s = answered_within(device)
                longest_s = max(longest_s, took_s)
                n = device.frames() - before
                say(f"device: {name}: {n} frames, answered again after {took_s:.2f} s")
                device.goes_on(10, "ok")
            result = account(device, folder / "left")
    finally:
        server.kill()
    return result, longest_s


def happenings(server: ServerProcess, quick: bool) -> list[tuple[str, Callable[[], object]]]:
    """What happens to the server, by name; each ends when a good server listens again."""

    def killed(down_s: float) -> None:
        server.kill()
        time.sleep(down_s)
        server.start()

    def held() -> None:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(2 if quick else HELD_S)
        os.kill(server.pid, signal.SIGCONT)

    def useless(mode: str) -> None:
        server.stop()
        with EvilServer(mode, server.port):
            time.sleep(3 if quick else DEAF_S)
        server.start()

    plan: list[tuple[str, Callable[[], object]]] = [
        ("a live but deaf server", lambda: useless("deaf")),
        ("a held server", held),
    ]
    if not quick:
        plan.append((f"a half deaf server ({HALF[1]} answered)", lambda: useless(HALF[1])))
    for down_s in KILLED_S[:1] if quick else KILLED_S:
        plan.append((f"killed for {down_s:g} s", lambda s=down_s: killed(s)))
    return plan


def answered_within(device: RunningDevice) -> float:
    """Seconds until the next answered frame."""
    before = device.frames("ok")
    took_s = wait_for(lambda: device.frames("ok") > before, RECOVERY_LIMIT_S)
    return RECOVERY_LIMIT_S if took_s is None else took_s


def account(device: RunningDevice, folder: Path) -> dict[str, Any]:
    """End a device: its exit code, and the frames it lost."""
    result = device.stop()
    rows = rows_of(folder)
    # A device that did not end by itself printed nothing; its rows say how far it came.
    frames = int(result.get("frames") or max(row["frame_id"] for row in rows) + 1)
    lost = frames_lost(frames, rows)
    say(f"device: {frames} frames, {lost} lost, {result.get('status')}, {result.get('reasons')}")
    return {"exit_code": result["exit_code"], "lost": lost}


def settings(target: str, seed: int) -> str:
    """A device that sends every frame; [frames] is still open at the end."""
    return (
        f'[server]\naddress = "{target}"\n[bundles]\naction = "e3s1"\n'
        f"[frames]\nseed = {seed}\nperiod_ms = 50\ntimeout_ms = 250\nmax_queue_ms = 2000\n"
    )


def records(folder: Path) -> str:
    """The section of its records."""
    return f'[records]\nfolder = "{folder}"\nflush_s = 0.3\n'
