"""Limits on open calls, and on the time that a call may wait without a message.

A call takes a place when it arrives and returns it when it is over, for whatever reason. A call
without a message is *silent*. If no place is left, a silent call of another connection is ended
for the new one: the oldest one of the connection that has the most of them. So connections that
open calls without sending anything block no other connection, however many they are. A call that
is ended for another, or is silent for too long, is CANCELLED: one of gRPC's threads waits for its
message, and nothing else wakes it.

Calls with a message are not ended here: the queue is shared between clients
(`testbed.server.fair_queue`). So that a new call reaches it, a call of a connection that holds
fewer places than another is admitted beyond the limit, up to twice as many.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final

import grpc

GRACE_S: Final = 0.25
"""A message usually comes with its call, so a message that is missing after this is late."""


class Place:
    """One call's place: of the connection `client`, taken at `since_s` (monotonic seconds)."""

    __slots__ = ("client", "context", "since_s")

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.client: str = context.peer()
        self.context = context
        self.since_s = time.monotonic()


class Places:
    """The running calls of one method.

    Args:
        limit: maximum for one connection; twice as many for all together.
        silent_s: longest silence of a call, seconds.
    """

    def __init__(self, limit: int, silent_s: float) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._silent_s = silent_s
        self._calls: set[Place] = set()
        self._silent: dict[str, dict[Place, None]] = {}

    def __len__(self) -> int:
        """Running calls."""
        return len(self._calls)

    def enter(self, context: grpc.ServicerContext) -> Place | None:
        """A place for a new, silent call until it is over; None if no place is left."""
        place = Place(context)
        with self._lock:
            evicted = None
            if len(self._calls) >= self._limit:
                evicted = self._giving_way(place.client)
                if evicted is not None:
                    self._remove(evicted)
                elif len(self._calls) >= 2 * self._limit or not self._holds_less(place.client):
                    return None
            self._silent.setdefault(place.client, {})[place] = None
            self._calls.add(place)
        if evicted is not None:
            evicted.context.cancel()
        try:
            known = context.add_callback(lambda: self.leave(place))
        except BaseException:
            self.leave(place)
            raise
        if not known:  # it is over already
            self.leave(place)
        return place

    def heard(self, place: Place) -> bool:
        """The call's message is there: it is not ended for another call any more.

        Returns:
            False if the call is over or has just been ended: it gets no answer.
        """
        with self._lock:
            self._discard_silent(place)
            return place in self._calls

    def held(self, client: str) -> int:
        """Number of places that a connection holds."""
        with self._lock:
            return sum(place.client == client for place in self._calls)

    def leave(self, place: Place) -> None:
        """The call is over; a second call does nothing."""
        with self._lock:
            self._remove(place)

    def end_silent(self, after_s: float) -> None:
        """End every call that has been silent for longer than this."""
        late_s = time.monotonic() - after_s
        with self._lock:
            late = [
                place
                for places in self._silent.values()
                for place in places
                if place.since_s <= late_s
            ]
            for place in late:
                self._remove(place)
        for place in late:
            place.context.cancel()

    def tend(self) -> None:
        """End calls that were silent for too long; called at intervals."""
        self.end_silent(self._silent_s)
        with self._lock:
            calls = list(self._calls)
        for place in calls:
            if not place.context.is_active():  # over, and its callback was lost
                self.leave(place)

    def _holds_less(self, client: str) -> bool:
        """Whether, with one more call, it still has fewer than another connection."""
        held = Counter(place.client for place in self._calls)
        return held[client] + 1 < max(held.values())

    def _giving_way(self, client: str) -> Place | None:
        """The oldest late call of the other connection with the most silent ones."""
        late_s = time.monotonic() - GRACE_S
        late = [
            (len(silent), oldest)
            for other, silent in self._silent.items()
            if other != client and (oldest := next(iter(silent))).since_s < late_s
        ]
        return max(late, key=lambda item: item[0])[1] if late else None

    def _remove(self, place: Place) -> None:
        self._calls.discard(place)
        self._discard_silent(place)

    def _discard_silent(self, place: Place) -> None:
        silent = self._silent.get(place.client, {})
        silent.pop(place, None)
        if not silent:
            self._silent.pop(place.client, None)
