"""What crosses the uplink beside a payload."""

from __future__ import annotations

from typing import Final

WIRE_OVERHEAD_BYTES: Final = 161
"""Bytes of the TCP stream that cross the uplink with a payload: 103 of the request message
(id, parameters, shape) and 58 of gRPC and HTTP/2 framing. Measured with a counting proxy on a
warm connection, the same for every split (`tests/testbed/device/test_device_loop.py`). TCP and IP
headers are not in it, and the user-space link does not see them either."""

ENCODING_OVERHEAD_BYTES: Final = 18
"""What an encoded frame adds to them: the request parameter that names the encoding, less the
shorter shape (counted on the messages in `tests/testbed/device/test_device_loop.py`)."""
