"""The output files of the ``sliproad testbed`` commands, and how each kind is recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cnn.common.outputs import FileKind, json_kind, npz_kind, picture_kind, text_kind


def _is_records(path: Path) -> bool:
    import pyarrow.parquet as pq

    return b"sliproad" in (pq.read_metadata(path).metadata or {})


def _is_port(path: Path) -> bool:
    """One number and a line feed: safe to overwrite."""
    text = path.read_bytes() if path.stat().st_size <= 8 else b""
    return text.strip().isdigit() and int(text) < 65_536


RECORDS: Final = FileKind("records", "sliproad testbed device", _is_records)
CAMPAIGN: Final = FileKind("a campaign's records", "sliproad testbed campaign", _is_records)
ALIGNED: Final = FileKind("aligned records", "sliproad testbed align", _is_records)
COST_MODEL: Final = json_kind(
    "a cost model", "sliproad testbed fit", "device_ms", "server_ms", "payload_bytes", "radio"
)
FIT_REPORT: Final = {
    "fit.md": text_kind("a fit's report", "sliproad testbed fit", "# Cost model "),
    "delay.png": picture_kind("a fit's picture", "sliproad testbed fit"),
    "energy.png": picture_kind("a fit's picture", "sliproad testbed fit"),
}
LINK_RECORD: Final = json_kind(
    "a link's record", "sliproad testbed link", "trace", "start_offset_s", "cuts_monotonic_s"
)
TRACE: Final = json_kind(
    "a trace", "sliproad testbed traces import", "format", "uplink_mbps", "rtt_ms", "period_s"
)
TRACE_KIND: Final = json_kind("a kind of trace", "sliproad testbed traces fit", "models")
SIGNATURE: Final = json_kind(
    "a signature", "sliproad testbed sign", "format", "algorithm", "key", "signature"
)
PORT: Final = FileKind("a port's number", "sliproad testbed serve` or `link", _is_port)
POLICY: Final = npz_kind(
    "a policy file", "sliproad agent export", "manifest", "observation", "content_hash"
)
