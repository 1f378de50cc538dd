"""A hoarder and a polite client, each a process of its own, with a real server process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from testbed.server.server_process import ServerProcess

pytestmark = pytest.mark.slow(8)

CLIENT = """
import json, os, sys, threading, time
import grpc, numpy as np
from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.wire.requests import build_request
from testbed.wire.protocol import SERVICE

target, connections, calls, exit, split = sys.argv[1], *map(int, sys.argv[2:])
bundle = load_bundle()
shape = (1, *SplitRuntime(bundle).wire_shape(split))
request = build_request(bundle.hash, exit, split, shape)
request.raw_input_contents[0] = np.zeros(shape, np.uint8).tobytes()
data = request.SerializeToString()
counts, lock, counting = {}, threading.Lock(), threading.Event()

def ask(call):
    call.future(data, timeout=60).add_done_callback(lambda future: answered(call, future))

def answered(call, future):
    code = future.code()
    with lock:
        if counting.is_set():
            counts[code.name] = counts.get(code.name, 0) + 1
            print(json.dumps(counts), flush=True)
    if code is grpc.StatusCode.OK:
        ask(call)
    else:
        threading.Timer(0.01, ask, (call,)).start()

for _ in range(connections):
    channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
    grpc.channel_ready_future(channel).result(30)
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    for _ in range(calls):
        ask(call)
print("ready", flush=True)
sys.stdin.readline()
counting.set()
threading.Event().wait()
"""
ANSWERS = 100
Client = subprocess.Popen[str]


@contextmanager
def client(target: str, *options: int) -> Iterator[Client]:
    """A process that keeps calls under way; its counts by status, whenever one ended."""
    command = [sys.executable, "-c", CLIENT, target, *map(str, options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert line_of(process) == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def begin(process: Client) -> None:
    assert process.stdin is not None
    process.stdin.write("begin\n")
    process.stdin.flush()


def line_of(process: Client) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_client_gets_its_fifth_beside_four_hoarding_connections() -> None:
    """Connections of one host are clients of their own: four hoard, with 64 calls each, and
    fill every batch with another tail than this one's."""
    counts: list[dict[str, int]] = []
    with (
        ServerProcess(options=("--queue", "512")) as server,
        client(server.target, 4, 64, 5, 2) as hoarder,
        client(server.target, 1, 16, 3, 1) as polite,
    ):
        watch = threading.Thread(
            target=lambda: counts.extend(json.loads(c) for c in all_of(hoarder))
        )
        for process in (hoarder, polite):
            begin(process)
        watch.start()
        line_of(polite)
        before = sum(counts[-1].values()) if counts else 0
        mine = [json.loads(line_of(polite)) for _ in range(ANSWERS)][-1]
        theirs = sum(counts[-1].values()) - before
        hoarder.kill()
        watch.join(20)
    assert mine == {"OK": ANSWERS + 1}
    assert ANSWERS / (ANSWERS + theirs) >= 0.8 / 5


def all_of(process: Client) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout
