"""An error inside the server at every step of a call: does it answer again, or say that it cannot?

The steps are those that a fresh server passes for a mix of calls (a good one, one that is no
message, one whose deadline has passed); each gets a server of its own, in which the step fails
once. Then the server must answer good calls, or its health must say NOT_SERVING, or its process
must have ended with an exit code other than 0. A server that does none of these is deaf: nobody
would restart it.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from _faults_parts import ROOT, say, wait_for
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.wire.client import INFER, ExchangeFailed, MecClient
from testbed.wire.requests import build_request

EXIT, SPLIT = 5, 4
GOOD_IN_A_ROW = 6
PATIENCE_S: Final = 20.0
"""So long a server may take to notice that it cannot serve any more."""
MOST, MOST_QUICK, LEAST, BESIDE = 48, 16, 16, 3
BUDGET_S: Final = 100.0
"""After that no further step is begun, once `LEAST` were tried: the round is bounded."""
Step = tuple[str, str, str]


class InjectedServer:
    """A server process that raises where it is told."""

    def __init__(self, folder: Path) -> None:
        self._ports = tempfile.TemporaryDirectory(dir=folder)
        port_file = Path(self._ports.name) / "port"
        command = [sys.executable, str(ROOT / "benchmarks" / "_faults_injected_server.py")]
        command += ["--port", "0", "--port-file", str(port_file)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        wait_for(lambda: port_file.exists() or self.process.poll() is not None, 60)
        if not port_file.exists():
            raise RuntimeError("the server did not start")
        self.target = f"127.0.0.1:{int(port_file.read_text())}"

    def order(self, answers: bool = True, **order: Any) -> dict[str, Any]:
        """Give an order and read the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline()) if answers else {}
        return found

    def raised(self) -> bool:
        """Whether the armed step was passed; asked once the process has ended."""
        assert self.process.stdout is not None
        return '"raised"' in self.process.stdout.read()

    def end(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._ports.cleanup()


class Caller:
    """Good calls and others to servers of the shipped bundle."""

    def __init__(self) -> None:
        bundle = load_bundle()
        runtime = SplitRuntime(bundle)
        self.hash = bundle.hash
        shape = runtime.wire_shape(SPLIT)
        self.payload = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
        self.right = int(runtime.tail(self.payload, EXIT, SPLIT)[0][0])

    def good(self, target: str, timeout_ms: float = 1000) -> bool:
        """Whether one good call gets its right answer."""
        with MecClient(target, self.hash) as client, contextlib.suppress(ExchangeFailed):
            reply = client.infer(self.payload, EXIT, SPLIT, timeout_ms)
            return reply.prediction == self.right
        return False

    def mix(self, target: str) -> None:
        """Calls of every kind; how they end does not matter."""
        self.good(target, 300)
        request = build_request(self.hash, EXIT, SPLIT, self.payload.shape)
        request.raw_input_contents[0] = self.payload.tobytes()
        with grpc.insecure_channel(target) as channel:
            infer = channel.unary_unary(INFER)
            for data, timeout_s in ((b"no message", 0.3), (request.SerializeToString(), 0.0005)):
                with contextlib.suppress(grpc.RpcError):
                    infer(data, timeout=timeout_s)
            future = infer.future(request.SerializeToString(), timeout=0.3)
            future.cancel()
        self.good(target, 300)


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    rng = random.Random(seed)
    caller = Caller()
    steps = passed_steps(folder, caller)
    most = MOST_QUICK if quick else MOST
    chosen = rng.sample(steps, min(most, len(steps)))
    cases = [(step, rng.choice(("MemoryError", "RuntimeError"))) for step in chosen]
    until_s = time.monotonic() + BUDGET_S

    def tried(numbered: tuple[int, tuple[Step, str]]) -> str:
        number, case = numbered
        if number >= LEAST and time.monotonic() > until_s:
            return "no time"
        return outcome(folder, caller, *case)

    with ThreadPoolExecutor(BESIDE) as pool:
        outcomes = list(pool.map(tried, enumerate(cases)))
    for (step, error), result in zip(cases, outcomes, strict=True):
        if result == "deaf":
            say(f"injection: deaf after {error} at {step[2]} of {step[1]} ({step[0]})")
    counts = {kind: outcomes.count(kind) for kind in sorted(set(outcomes))}
    say(f"injection: {len(steps)} steps, of {len(chosen)}: {counts}")
    points = sum(result not in ("not reached", "no time", "no start") for result in outcomes)
    return {"deaf_after_injection": outcomes.count("deaf"), "injection_points": points}


def passed_steps(folder: Path, caller: Caller) -> list[Step]:
    """What a server passes for the mix of calls."""
    server = InjectedServer(folder)
    try:
        caller.mix(server.target)
        server.order(answers=False, order="record")
        for _ in range(3):
            caller.mix(server.target)
        found = server.order(order="steps")["steps"]
    finally:
        server.end()
    return sorted((str(file), str(function), str(event)) for file, function, event in found)


def outcome(folder: Path, caller: Caller, step: Step, error: str) -> str:
    """What became of a server in which one step failed once."""
    try:
        server = InjectedServer(folder)
    except RuntimeError:  # nothing was injected yet; a busy machine, or a server that gave up
        return "no start"
    try:
        caller.mix(server.target)
        server.order(order="arm", step=step, error=error)
        for _ in range(3):
            caller.mix(server.target)
        result = state(server, caller)
    finally:
        server.end()
    return result if server.raised() else "not reached"


def state(server: InjectedServer, caller: Caller) -> str:
    """``answers``, ``ended``, ``says so`` or ``deaf``."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        if server.process.poll() is not None:
            return "ended" if server.process.returncode else "deaf"
        if all(caller.good(server.target) for _ in range(GOOD_IN_A_ROW)):
            return "answers"
        if not_serving(server.target):
            return "says so"
        time.sleep(0.2)
    return "deaf"


def not_serving(target: str) -> bool:
    """Whether its health says so."""
    with grpc.insecure_channel(target) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)
