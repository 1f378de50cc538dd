"""The link in user space: a TCP proxy that replays a trace, without root.

The device connects to the proxy, the proxy to the server; `LinkDelivery` determines when bytes come
out. One thread serves every connection with epoll. Only TCP payload is
counted: headers, retransmissions and the handshake cost nothing here (the measured
capacities are payload rates as well). A connection is accepted at once; its first bytes
travel like any others.

`LinkEmulator` runs in the caller's process and shares its interpreter lock; where timing is
measured, use `testbed.link.link_process.LinkProcess`, which runs it in a separate process.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from cnn.common.errors import ConfigError, RemoteError
from testbed.link.connections import listen as listen_on
from testbed.link.connections import resolve
from testbed.link.proxy import SEGMENT_BYTES, Proxy
from testbed.link.transfer import Link, LinkDelivery
from testbed.traces.trace import Trace

BUFFER_BYTES: Final = 256 * 1024
"""Limit of a connection's bytes inside the link in one direction (the modem's buffer); beyond it
the proxy stops reading and the sender's own buffers fill."""


class LinkEmulator(Link):
    """A user-space link between a device and a server.

    Use as a context manager, or call `close`. Trace time starts with the first connection,
    unless `start` is called before.

    Args:
        trace: uplink capacity and round trip to replay, repeated.
        upstream: host and port of the server.
        listen: host and port for the device; port 0 takes a free one.
        start_offset_s: trace time at the start, seconds.
        downlink_mbps: capacity towards the device, Mbit/s; None is unlimited.
        tail_ms, promotion_ms: of the modem (`LinkDelivery`).
        buffer_bytes: bound of bytes inside the link per connection and direction.
        realtime: ask for real-time priority of the link's thread (useful only if the
            process serves only the link); `stats` says whether it was granted.

    Raises:
        PortInUseError: the listening address is taken.
        RemoteError: the server's host name is unknown.
        ConfigError: a setting is out of range.
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
        realtime: bool = False,
    ) -> None:
        if start_offset_s < 0 or buffer_bytes < 2 * SEGMENT_BYTES:
            raise ConfigError(
                f"start offset {start_offset_s} s, buffer {buffer_bytes} bytes",
                expected=f"an offset from 0 up and at least {2 * SEGMENT_BYTES} bytes",
                hint="correct them",
            )
        super().__init__(trace, start_offset_s, downlink_mbps, "user-space")
        self._cuts: list[tuple[float, float]] = []
        schedule = LinkDelivery(trace, downlink_mbps, tail_ms, promotion_ms)
        server = resolve(upstream)
        listener = listen_on(listen, buffer_bytes)
        self.host, self.port = listener.getsockname()[:2]
        self._proxy = Proxy(
            schedule,
            server,
            listener,
            offset_s=start_offset_s,
            buffer_bytes=buffer_bytes,
            realtime=realtime,
        )
        self._thread = threading.Thread(target=self._proxy.run, name="sliproad-link", daemon=True)
        self._thread.start()

    @property
    def start_time(self) -> float | None:
        """`time.monotonic` at which the trace started; None if it has not yet."""
        return self._proxy.start_time

    def start(self, at: float | None = None) -> None:
        """Start the trace at a moment of `time.monotonic` (None: now). Once only."""
        if self._proxy.start_time is not None:
            raise ConfigError(
                "the link has started already", expected="one start", hint="call start first"
            )
        self._proxy.start_time = time.monotonic() if at is None else at

    def cut(self, seconds: float, *, drop: bool = False) -> None:
        """Cut the link from now on.

        Bytes inside are held and come out when the cut ends, as with TCP retransmission.

        Args:
            seconds: duration of the cut.
            drop: also reset every connection at once, and every new one until the end.
        """
        if not 0 < seconds < 86400:
            raise ConfigError(
                f"a cut of {seconds} s", expected="between 0 s and a day", hint="correct it"
            )
        now = time.monotonic()
        self._cuts.append((now, now + seconds))
        self._proxy.hold(now + seconds, drop)

    def _so_far(self) -> tuple[float | None, tuple[tuple[float, float], ...]]:
        return self._proxy.start_time, tuple(self._cuts)

    def stats(self) -> dict[str, Any]:
        """Counts, and the lateness of bytes against the schedule (milliseconds)."""
        return {
            **self._proxy.counts,
            "trace": self.trace.name,
            "priority": self._proxy.priority,
            "cuts": len(self._cuts),
            **self._proxy.lateness.stats(),
        }

    def close(self) -> None:
        """Reset every connection and stop. Raises the error that stopped the link, if any."""
        self._proxy.stop()
        self._thread.join()
        failure, self._proxy.failure = self._proxy.failure, None
        if failure is not None:
            raise RemoteError(
                f"the link stopped: {failure!r}",
                expected="a link that runs until it is closed",
                hint="report this with the trace and the command",
            ) from failure
