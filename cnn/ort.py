"""ONNX Runtime with its telemetry off: every module takes `onnxruntime` from here.

From release 1.29 the package on PyPI reports its use on Linux as well: when it is loaded it starts
a thread that looks up and calls a server of its maker, and leaves an identifier and a database in
``~/.cache``. ``ORT_DISABLE_TELEMETRY=1`` prevents all of it, but only if it is set before the
library is loaded (`onnxruntime.disable_telemetry_events` comes too late), so it is set here, for
this process and those it starts. A value that the user has set stays.
Source: https://github.com/microsoft/onnxruntime/pull/27379.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
