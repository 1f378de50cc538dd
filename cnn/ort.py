"""ONNX Runtime with its telemetry off, and the choice of its execution providers.

Every module takes `onnxruntime` from here.

From release 1.29 the package on PyPI reports its use on Linux as well: when it is loaded it starts
a thread that looks up and calls a server of its maker, and leaves an identifier and a database in
``~/.cache``. ``ORT_DISABLE_TELEMETRY=1`` prevents all of it, but only if it is set before the
library is loaded (`onnxruntime.disable_telemetry_events` comes too late), so it is set here, for
this process and those it starts. A value that the user has set stays.
Source: https://github.com/microsoft/onnxruntime/pull/27379.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from cnn.common.errors import ConfigError, shown

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["CPU_PROVIDER", "checked_providers", "onnxruntime"]

CPU_PROVIDER: Final = "CPUExecutionProvider"
"""The provider that every build of ONNX Runtime has."""


def checked_providers(given: Sequence[str]) -> tuple[str, ...]:
    """Execution providers by name, in the order in which ONNX Runtime asks them for each operator.

    The CPU's comes last if it is not named: ONNX Runtime adds it by itself.

    Raises:
        ConfigError: if this installation of ONNX Runtime lacks one, or one is named twice.
    """
    names = tuple(name.strip() for name in given)
    here = onnxruntime.get_available_providers()
    lacking = [name for name in names if name not in here]
    if lacking or not names or len(set(names)) != len(names):
        raise ConfigError(
            f"execution providers {shown(','.join(names))}"
            + (f": no {shown(lacking[0])} here" if lacking else ""),
            expected=f"some of {', '.join(here)}, each once",
            hint="install the build of ONNX Runtime that has it, such as onnxruntime-gpu for CUDA "
            "(https://onnxruntime.ai/docs/execution-providers), or leave the option out",
        )
    return names if CPU_PROVIDER in names else (*names, CPU_PROVIDER)
