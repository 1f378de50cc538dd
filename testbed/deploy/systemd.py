"""Telling systemd that the service is ready, alive or stopping (sd_notify).

The protocol is one datagram to the socket that ``NOTIFY_SOCKET`` names
(https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html); without that
variable nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send a state such as ``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1``, if asked for."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(name)
        sender.send(state.encode())
