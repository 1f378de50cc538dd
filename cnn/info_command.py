"""``sliproad cnn info``: what a model bundle holds, as tables or JSON."""

from __future__ import annotations

from rich.console import Console

from cnn.cli_options import BundleOption
from cnn.common.console import JsonFlag, emit_json


def info(bundle: BundleOption = None, as_json: JsonFlag = False) -> None:
    """Shapes, operations (MACs), payloads (bytes) and the 20 actions of a bundle."""
    from cnn.action import ACTIONS, N_EXITS
    from cnn.bundle import load_bundle

    loaded = load_bundle(bundle)
    config = loaded.config
    blocks = {
        str(b): {
            "channels": config.channels(b),
            "size_px": config.size(b),
            "macs": config.block_macs(b),
            "exit_macs": config.head_macs(b),
            "exit_share": config.head_macs(b) / config.block_macs(b),
        }
        for b in range(1, N_EXITS + 1)
    }
    actions = {
        a.name: {"index": a.index, "payload_bytes": config.payload_bytes(a.exit, a.split)}
        for a in ACTIONS
    }
    if as_json:
        emit_json(
            {
                "bundle": loaded.hash,
                "path": str(loaded.path),
                "blocks": blocks,
                "actions": actions,
                "manifest": loaded.manifest,
            }
        )
        return
    from rich.table import Table

    console = Console()
    shapes = Table(title=f"bundle {loaded.hash[:12]} in {loaded.path}")
    for column in ("block", "channels", "size px", "MACs (1e6)", "exit MACs (1e6)", "exit / block"):
        shapes.add_column(column, justify="right")
    for b, r in blocks.items():
        shapes.add_row(
            b,
            str(r["channels"]),
            str(r["size_px"]),
            f"{r['macs'] / 1e6:.1f}",
            f"{r['exit_macs'] / 1e6:.2f}",
            f"{100 * r['exit_share']:.1f} %",
        )
    console.print(shapes)
    listing = Table(title="actions: leave at exit E, blocks 1..S on the device")
    for column in ("number", "name", "exit", "split", "uplink bytes"):
        listing.add_column(column, justify="right")
    for a in ACTIONS:
        payload = str(config.payload_bytes(a.exit, a.split))
        listing.add_row(str(a.index), a.name, str(a.exit), str(a.split), payload)
    console.print(listing)
