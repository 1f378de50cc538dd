"""A signal is never missed, however it falls."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from testbed.common.signals import StopFlag, stop_on_signals

ROOT = Path(__file__).parents[3]


def test_wait_ends_at_its_timeout_or_when_set() -> None:
    flag = StopFlag()
    assert not flag.wait(0.01)
    assert not flag.wait(0)
    threading.Timer(0.05, flag.set).start()
    assert flag.wait()
    assert flag.wait(0)


def test_a_signal_that_another_thread_received_is_seen() -> None:
    """The C handler may run in any thread; the main thread is then not woken."""
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    try:
        flag = stop_on_signals()

        def raise_here() -> None:
            time.sleep(0.2)  # the main thread is in wait() by now
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        threading.Thread(target=raise_here).start()
        assert flag.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.slow(1)
def test_many_signals_at_any_moment_end_the_process() -> None:
    code = (
        "import threading\n"
        "from testbed.common.signals import stop_on_signals\n"
        "flag = stop_on_signals()\n"
        "def spin():\n"
        "    while True: pass\n"
        "threading.Thread(target=spin, daemon=True).start()\n"
        "print('ready', flush=True)\n"
        "flag.wait()\n"
    )
    for wait_ms in range(0, 10, 2):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(wait_ms / 1e3)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.communicate()
