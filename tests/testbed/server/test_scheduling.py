"""The server's scheduling policy, as the system reports it for every thread of a real process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agents.cli import app
from cnn.bundle import load_bundle
from testbed.server.server_process import ServerProcess, prefer_throughput
from testbed.wire.client import MecClient

pytestmark = [
    pytest.mark.slow(8),
    pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason=f"{sys.platform} has no SCHED_BATCH"),
]


def _policies(pid: int | None) -> set[int]:
    """Policies of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {os.sched_getscheduler(int(task.name)) for task in tasks}


@pytest.mark.slow(4)
@pytest.mark.parametrize(
    ("option", "policy"), [("--batch-scheduling", "batch"), ("--no-batch-scheduling", "normal")]
)
def test_every_thread_of_the_server_follows_the_option(option: str, policy: str) -> None:
    bundle = load_bundle()
    with (
        ServerProcess(options=(option,)) as server,
        MecClient(server.target, bundle.hash) as client,
    ):
        client.connect(20)
        size = bundle.config.input_size
        client.infer(np.zeros((1, size, size, 3), np.uint8), 1, 0, timeout_ms=10_000)
        expected = os.SCHED_BATCH if policy == "batch" else os.SCHED_OTHER
        assert _policies(server.pid) == {expected}


def test_what_an_administrator_chose_stays() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # a process of its own: a policy cannot be taken back without rights
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            words = f"{prefer_throughput()} {os.sched_getscheduler(0) == os.SCHED_IDLE}"
            os.write(write, words.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.read() == "as given True"


def test_a_server_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    line = ["testbed", "serve", "--port", "0", "--bundle", str(tmp_path)]
    assert CliRunner().invoke(app, line).exit_code != 0
    assert os.sched_getscheduler(0) == before
