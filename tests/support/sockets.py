"""Ports of this machine, and a relay that stands between a client and a server."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Relay:
    """Moves bytes between whoever connects and a server; can hold them.

    Attributes:
        target: where to connect, ``host:port``.
        connects: connections made so far.
        moved: pieces moved so far, either way.
        sent: bytes moved to the server.
        open: cleared, nothing more arrives, and nobody is told.
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connects = self.moved = 0
        self.sent = bytearray()
        self.open = threading.Event()
        self.open.set()
        self._run(self._accept)

    def _run(self, *target_and_arguments: object) -> None:
        target, *arguments = target_and_arguments
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))  # type: ignore[arg-type]
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connects += 1
                self._ends.append(near)
                far = socket.create_connection(self._server)
                self._ends.append(far)
                self._run(self._pump, near, far, True)
                self._run(self._pump, far, near, False)

    def _pump(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.open.wait()
                self.moved += 1
                if to_server:
                    self.sent += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut what is connected, and end every thread."""
        self.open.set()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for end in self._ends:
            end.close()
