"""The card of an adapted network: what it is, how right and how calibrated, what it sends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cnn.network_command_options import CARD_TITLE


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown, from what `cnn.network.adapt.adapt` returns."""
    blocks = [
        [
            b["block"],
            " x ".join(map(str, b["output"])),
            f"{b['macs']:,}",
            f"{b['parameters']:,}",
            *(f"{b[f'{part}_parameters']:,}" for part in ("exit", "enc", "dec")),
            *(_ms(card["ms"].get(f"{part}{b['block']}")) for part in ("block", "exit", "enc")),
        ]
        for b in card["blocks"]
    ]
    actions = [
        [
            name,
            f"{100 * a['accuracy']:.2f}",
            f"{a['ece']:.4f}",
            f"{a['ece_uncalibrated']:.4f}",
            f"{a['payload_bytes']:,}",
        ]
        for name, a in card["actions"].items()
    ]
    lines = [
        f"{CARD_TITLE}: {card['model']}",
        "",
        f"Data: {card['data'] or 'not stated'}, {card['classes']} classes. "
        f"Bundle: {card['hash'][:12]}, weights {card['weights']}.",
        "",
        *(f"- {line}" for line in card["why"]),
        "",
        "## Blocks",
        "",
        *_table(
            (
                *("block", "output", "MACs", "parameters", "of its exit", "encoder", "decoder"),
                *("ms", "exit ms", "encoder ms"),
            ),
            blocks,
        ),
        "",
        "Times: measured on the machine that made this card, ONNX Runtime on one thread, median.",
        "",
        "## Actions",
        "",
        f"On {card['frames']} validation images, on which the temperatures were fitted, too. "
        "ECE: expected calibration error, after temperature scaling and before.",
        "",
        *_table(("action", "accuracy %", "ECE", "before", "uplink bytes"), actions),
        "",
        f"Main exit: {100 * card['main_accuracy']:.2f} %. A bottleneck loses "
        f"{100 * card['worst_split_gap']:.2f} points at most. Exported segments against torch: "
        f"probabilities differ by {card['onnx_max_error']:.1e} at most, over all actions and "
        f"classes on {card['checked_frames']} images.",
        "",
    ]
    return "\n".join(lines)


def _ms(time_ms: float | None) -> str:
    return "" if time_ms is None else f"{time_ms:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
