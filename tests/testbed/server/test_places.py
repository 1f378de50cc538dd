"""Places for calls: who is let in where none is left."""

from __future__ import annotations

from collections.abc import Callable

from testbed.server.places import Places


class Call:
    """What `Places` asks of a `grpc.ServicerContext`."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._over: Callable[[], None] = lambda: None
        self.cancelled = False

    def peer(self) -> str:
        return self._peer

    def add_callback(self, over: Callable[[], None]) -> bool:
        self._over = over
        return True

    def is_active(self) -> bool:
        return not self.cancelled

    def cancel(self) -> None:
        self.cancelled = True
        self._over()


def hold(places: Places, peer: str, calls: int) -> int:
    """Enter with messages; how many were let in."""
    entered = 0
    for _ in range(calls):
        place = places.enter(Call(peer))  # type: ignore[arg-type]
        if place is not None:
            places.heard(place)
            entered += 1
    return entered


def test_a_message_that_comes_as_its_call_is_ended_is_not_heard() -> None:
    places = Places(8, 5.0)
    calls = [Call("a"), Call("a")]
    ended, over = (places.enter(call) for call in calls)  # type: ignore[arg-type]
    assert ended is not None
    assert over is not None
    calls[1].cancel()
    assert not places.heard(over)
    places.end_silent(0.0)
    assert calls[0].cancelled
    assert not places.heard(ended)
    spared = places.enter(Call("a"))  # type: ignore[arg-type]
    assert spared is not None
    assert places.heard(spared)
    places.end_silent(0.0)
    assert places.heard(spared)


def test_a_hoarder_does_not_keep_others_out() -> None:
    places = Places(8, 5.0)
    assert hold(places, "hoarder", 20) == 8
    # Let in as long as it holds less than the hoarder.
    assert hold(places, "polite", 20) == 7
    assert len(places) == 15
    assert hold(places, "hoarder", 1) == 0


def test_many_connections_together_get_twice_the_places_and_no_more() -> None:
    places = Places(8, 5.0)
    entered = [hold(places, f"peer {k}", 4) for k in range(20)]
    assert len(places) == sum(entered) <= 16
    assert hold(places, "one more", 1) == 0


def test_a_place_comes_back_when_the_call_is_over() -> None:
    places = Places(2, 5.0)
    calls = [Call("a"), Call("a")]
    for call in calls:
        assert places.enter(call) is not None  # type: ignore[arg-type]
    assert places.enter(Call("a")) is None  # type: ignore[arg-type]
    calls[0].cancel()
    assert places.enter(Call("a")) is not None  # type: ignore[arg-type]
