"""Recognising the format of a trace file by its content."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.csv_table import header_of
from cnn.common.errors import SliproadError
from cnn.common.plug_ins import Group, plug_ins
from testbed.traces.number_files import are_whole, may_be_rates, numbers_of
from testbed.traces.plugged_reader import recognises

OURS: Final = "sliproad"
SAMPLES: Final = "samples"
MAHIMAHI: Final = "mahimahi"
RATES: Final = "rates"
COLUMNS: Final = "columns"
UNKNOWN: Final = "unknown"

IMPORTABLE: Final[dict[str, str]] = {
    "gnettrack": "a G-NetTrack log (UCC's 4G and 5G data sets)",
    "iperf3": "iperf3's JSON",
    "pensieve": "two columns of numbers, as Pensieve's (seconds, Mbit/s)",
    "hsdpa": "a log of the Norway HSDPA data set",
    "ghent": "a log of the Ghent 4G data set",
    MAHIMAHI: "a Mahimahi file",
    RATES: "one rate a line",
    COLUMNS: "a table whose columns you name",
}
"""Formats of `sliproad testbed traces import` -> their description."""
_OTHERS: Final = (OURS, SAMPLES, UNKNOWN)
READER_PLUG_INS: Final = Group("sliproad.trace_readers", "trace reader", (*IMPORTABLE, *_OTHERS))
"""Their formats can be imported, too."""

_GNETTRACK_COLUMNS: Final = ("Timestamp", "DL_bitrate", "UL_bitrate")
_SAMPLE_COLUMNS: Final = ("trace", "time_s", "uplink_mbps", "downlink_mbps", "rtt_ms")
_OTHER_TEXT: Final = (
    (
        re.compile(r"^(Connecting to host |Server listening on |\[ ID\] Interval|iperf3?: )", re.M),
        "iperf's text output; run it with --json",
    ),
    (re.compile(r"^# mahimahi mm-link|^\d+ [#+-] \d+", re.M), "a log that mm-link wrote, no trace"),
)
_EPOCH_MS: Final = 1e11
_EPOCH_S: Final = 1e8


@dataclass(frozen=True, slots=True)
class Recognised:
    """A format.

    Attributes:
        name: `OURS`, `SAMPLES`, a key of `IMPORTABLE`, a plug-in's, or `UNKNOWN`.
        words: its description, for messages.
        ask: formats from which the user must choose; empty if the content is clear.
    """

    name: str
    words: str
    ask: tuple[str, ...] = ()

    @property
    def is_importable(self) -> bool:
        """Whether it is a format of `sliproad testbed traces import`."""
        return self.name not in _OTHERS


def recognise(text: str, file_name: str) -> Recognised:
    """The format of a text; `file_name` matters only if the content fits two.

    Plug-ins are asked about a text in none of our formats.
    """
    found = _ours(text, file_name)
    return _plugged(text, file_name, found) if found.name == UNKNOWN else found


def _plugged(text: str, file_name: str, unknown: Recognised) -> Recognised:
    """The format of a plug-in, or `unknown`, which then says which plug-ins failed."""
    names, failures = list[str](), list[str]()
    for plug_in in plug_ins(READER_PLUG_INS):
        try:
            if not plug_in.problem and recognises(plug_in, text, file_name):
                names.append(plug_in.name)
        except SliproadError as error:
            failures.append(error.given)
    if not names:
        return Recognised(UNKNOWN, "; ".join([unknown.words, *failures]))
    words = f"a file that {' and '.join(names)} reads (plug-in)"
    return Recognised(names[0], words, tuple(names) if len(names) > 1 else ())


def _ours(text: str, file_name: str) -> Recognised:
    stripped = text.lstrip()
    if stripped[:1] in "{[":
        return _json(stripped)
    numbers = numbers_of(text)
    if numbers is not None:
        return _numbers(numbers, are_whole(text), file_name)
    for pattern, words in _OTHER_TEXT:
        if pattern.search(text):
            return Recognised(UNKNOWN, words)
    for names, name in ((_SAMPLE_COLUMNS, SAMPLES), (_GNETTRACK_COLUMNS, "gnettrack")):
        columns, _ = header_of(text, names)
        if len(set(columns) & set(names)) > 1:
            words = "samples of traces" if name == SAMPLES else IMPORTABLE[name]
            return Recognised(name, words)
    first = " ".join(stripped.split("\n", 1)[0].split())[:60]
    return Recognised(UNKNOWN, f"no format that is known; it begins with {first}")


def _json(text: str) -> Recognised:
    iperf3 = Recognised("iperf3", IMPORTABLE["iperf3"])
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        # iperf3 cut off, with several tests in one file, streamed, or with its "-nan".
        if re.search(r'"(intervals|streams|connected)"\s*:|"event"\s*:\s*"', text):
            return iperf3
        return Recognised(UNKNOWN, "broken JSON")
    keys = [str(key) for key in raw] if isinstance(raw, dict) else []
    if "intervals" in keys or {"start", "end"} <= set(keys) or "event" in keys:
        return iperf3
    if "format" in keys or "trace" in keys:
        return Recognised(OURS, "a trace of sliproad")
    return Recognised(UNKNOWN, f"JSON with {', '.join(keys[:6])[:60] or 'no keys'}")


def _numbers(numbers: NDArray[np.float64], whole: bool, file_name: str) -> Recognised:
    width, first = numbers.shape[1], numbers[:, 0]
    if width == 6 and first[0] > _EPOCH_S:
        name = "ghent" if first[0] > _EPOCH_MS else "hsdpa"
        return Recognised(name, IMPORTABLE[name])
    if width == 2 and first[0] >= 0 and (np.diff(first) >= 0).all():
        # The file does not state that the columns are seconds and Mbit/s.
        return Recognised("pensieve", IMPORTABLE["pensieve"], ("pensieve",))
    if width != 1:
        return Recognised(UNKNOWN, f"{width} columns of numbers in no format that is known")
    if not whole or (np.diff(first) < 0).any() or first[-1] <= 0 or first[0] < 0:
        return Recognised(RATES, f"{IMPORTABLE[RATES]}, for all that is in it")
    if may_be_rates(first, file_name):
        mean = len(first) * 12 / first[-1]
        return Recognised(
            MAHIMAHI,
            f"a Mahimahi file of {first[-1]:.0f} ms ({mean:.4g} Mbit/s), or one rate a line",
            (MAHIMAHI, RATES),
        )
    return Recognised(MAHIMAHI, IMPORTABLE[MAHIMAHI])
