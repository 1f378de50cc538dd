"""The emulated slow processor: nothing is too short, and only harmless sections repeat."""

import threading
import time

import pytest

from testbed.device.processor import Processor


def burn(seconds: float) -> float:
    """Compute for so much processor time; returns what it really was."""
    began_s = time.thread_time()
    while time.thread_time() - began_s < seconds:
        pass
    return time.thread_time() - began_s


@pytest.mark.parametrize("slowdown", [1.0, 3.5])
def test_a_section_takes_at_least_its_time_stretched(slowdown: float) -> None:
    processor = Processor(slowdown, one_thread=True)
    busy_s, took_ms = processor.run(lambda: burn(0.01))
    assert took_ms >= 1e3 * busy_s * slowdown


def test_the_rest_of_a_frame_is_paid_for_at_its_end() -> None:
    processor = Processor(4.0, one_thread=True)
    processor.begin()
    processor.run(lambda: burn(0.02))  # stretched by itself: not owed
    owed_s = burn(0.005)
    exchange_s = burn(0.03)
    processor.apart(exchange_s)
    processor.end()
    began_s = time.monotonic()
    processor.pay()
    waited_s = time.monotonic() - began_s
    assert 3 * owed_s <= waited_s


def test_only_named_sections_repeat_and_the_newest_of_a_name_does() -> None:
    calls = {"old": 0, "new": 0, "unnamed": 0}

    def count(name: str) -> None:
        calls[name] += 1

    processor = Processor(2.0, one_thread=True)
    processor.run(lambda: count("old"), "head")
    processor.run(lambda: count("unnamed"))
    processor.run(lambda: count("new"), "head")
    before = dict(calls)
    processor.wait_until(time.monotonic() + 0.02)
    assert calls["new"] > before["new"]
    assert calls["old"] == before["old"]
    assert calls["unnamed"] == 1


def test_the_machine_as_it_is_repeats_nothing() -> None:
    calls: list[int] = []
    processor = Processor(1.0, one_thread=True)
    processor.run(lambda: calls.append(1), "head")
    processor.wait_until(time.monotonic() + 0.02)
    assert calls == [1]


def test_a_set_stop_ends_a_wait_and_its_repetitions() -> None:
    processor = Processor(2.0, one_thread=True)
    processor.run(lambda: None, "head")
    stop = threading.Event()
    stop.set()
    processor.wait_until(time.monotonic() + 3600, stop)
