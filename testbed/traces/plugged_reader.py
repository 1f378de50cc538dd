"""A plug-in's reader of trace files: a module, or an object, with two functions.

``recognises(text, file_name)`` says whether a text is of its format; ``read(text, path)`` gives the
rates of one file as `testbed.traces.measured.Measured`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from cnn.common.errors import DataError
from cnn.common.plug_ins import PlugIn
from testbed.traces.measured import Measured
from testbed.traces.series import Floats

_ROUNDING_S: Final = 1e-6
"""A rate may begin this much before the one before it ends."""


class TraceReader(Protocol):
    """What the entry point of a trace reader loads to."""

    def recognises(self, text: str, file_name: str) -> bool:
        """Whether a file's text is of this format; asked only of texts in no other format."""

    def read(self, text: str, path: Path) -> Measured:
        """The rates of a file; `path` is for names and messages.

        Raises:
            DataError: it is not such a file.
        """


def recognises(plug_in: PlugIn, text: str, file_name: str) -> bool:
    """Whether a plug-in reads this text; raises `ConfigError` if it fails."""
    reader: TraceReader = plug_in.load()
    with plug_in.calling():
        return bool(reader.recognises(text, file_name))


def read_plugged(plug_in: PlugIn, text: str, path: Path) -> Measured:
    """What a plug-in reads from a file, checked.

    Raises:
        ConfigError: it fails, or gives impossible rates.
        DataError: it refuses the file.
    """
    reader: TraceReader = plug_in.load()
    with plug_in.calling():
        found: Any = reader.read(text, path)
        if not isinstance(found, Measured):
            raise TypeError(f"it reads {type(found).__name__}, no testbed.Measured")
        arrays = (found.start_s, found.end_s, found.mbps)
        start, end, mbps = (np.asarray(values, np.float64) for values in arrays)
        if not mbps.size:
            raise DataError(
                f"{path}: {plug_in.group.word} {plug_in.name} finds no rate in it",
                expected="at least one",
                hint="check the file, or give another --format",
            )
        _check(start, end, mbps)
    end = np.append(np.minimum(end[:-1], start[1:]), end[-1])
    return replace(found, start_s=start, end_s=end, mbps=mbps)


def _check(start: Floats, end: Floats, mbps: Floats) -> None:
    """Raise ValueError unless these are rates one after the other."""
    if start.ndim != 1 or not start.shape == end.shape == mbps.shape:
        raise ValueError(f"{start.shape} starts, {end.shape} ends and {mbps.shape} rates")
    if not (np.isfinite(start).all() and np.isfinite(end).all() and (end > start).all()):
        raise ValueError("a rate that lasts no time")
    if (start[1:] < end[:-1] - _ROUNDING_S).any() or (np.diff(start) <= 0).any():
        raise ValueError("rates that overlap")
    if np.isinf(mbps).any() or (mbps < 0).any():
        raise ValueError("a rate below 0, or infinite")
