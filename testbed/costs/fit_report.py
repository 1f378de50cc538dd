"""The fit for people: equations with their coefficients, errors, measured against modelled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cnn.common.files import replacing, write_text
from cnn.common.outputs import SOFTWARE
from testbed.costs.fit_check import HeldOut
from testbed.costs.terms import terms_of
from testbed.meters.cost_model import CostModel

_EQUATIONS = """\
For action (E, S), uplink rate r (Mbit/s), round trip RTT (ms), server wait W (ms):

    compute = overhead + send + sum of blocks 1..S + enc_S      (S < E; enc_0 = 0)
    compute = overhead + sum of blocks 1..E + exit_E            (S = E)
    server  = overhead + dec_S + sum of blocks S+1..E + exit_E  (0 where local; dec_0 = 0)
    away    = 8 (payload_S + {overhead_bytes:.0f}) / (1000 r) + RTT + {net_ms:.3f} + W + server
    delay   = compute + [S < E] away                                                     (ms)
    energy  = ({busy_mw:.0f} compute + {idle_mw:.0f} away + {active_mw:.0f} away) / 1000
              + {nj_per_bit:.2f}e-6 * 8 (payload_S + {overhead_bytes:.0f})                (mJ)
"""


def write_report(
    folder: Path,
    model: CostModel,
    result: dict[str, Any],
    held_out: HeldOut,
    source: dict[str, Any],
) -> list[Path]:
    """Write ``fit.md``, ``delay.png`` and ``energy.png`` into `folder`; returns their paths."""
    text = folder / "fit.md"
    write_text(text, _markdown(model, result, source))
    scatter = partial(_scatter, folder, held_out)
    return [text, scatter("delay", "ms"), scatter("energy", "mJ")]


def _markdown(model: CostModel, result: dict[str, Any], source: dict[str, Any]) -> str:
    equations = _EQUATIONS.format(
        overhead_bytes=model.wire_overhead_bytes,
        net_ms=model.net_ms,
        busy_mw=model.busy_mw,
        idle_mw=model.idle_mw,
        active_mw=model.radio.active_mw,
        nj_per_bit=model.radio.tx_mw_per_mbps,
    )
    terms = terms_of(model.topology)
    lines = [
        f"# Cost model {model.name}",
        "",
        f"Times **measured** on {source['cpu']} ({source['cpus']} cores seen), "
        f"{source['created']}, {source['emulation']}. Powers: {model.power_source}. "
        f"Modem: {model.radio.name}, {model.radio.source}.",
        "",
        "```",
        equations.rstrip(),
        "```",
        "",
        "Errors on held-out conditions (each predicted by a fit to the others; median over "
        f"the frames of one action under one condition): delay {result['delay_mape']:.2%} "
        f"(R2 {result['r2_delay']:.4f}), energy {result['energy_mape']:.2%} "
        f"(R2 {result['r2_energy']:.4f}); single frames, delay "
        f"{result['delay_mape_frames']:.2%}.",
        "",
        "| term | ms | 95 % interval |",
        "|---|---|---|",
        *(_row(result, f"device_{name}_ms") for name in terms.device),
        *(_row(result, f"server_{name}_ms") for name in terms.server),
        _row(result, "net_ms"),
        "",
        *_assumed(model),
        "| action | delay error | energy error |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {error['delay_mape']:.2%} | {error['energy_mape']:.2%} |"
        for name, error in result["by_action"].items()
    ]
    lines += ["", "![delay](delay.png)", "", "![energy](energy.png)", ""]
    return "\n".join(lines)


def _assumed(model: CostModel) -> list[str]:
    if not model.filled:
        return []
    what = "rest on an assumption, as frames decided in one go do not show them"
    return [f"{', '.join(model.filled)}: {what}.", ""]


def _row(result: dict[str, Any], name: str) -> str:
    low, high = result["intervals"].get(name, (float("nan"), float("nan")))
    return f"| {name} | {result['coefficients'][name]:.4f} | {low:.4f} to {high:.4f} |"


def _scatter(folder: Path, held_out: HeldOut, what: str, unit: str) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    measured, modelled = (
        getattr(held_out, f"{what}_{kind}{unit.lower()}") for kind in ("", "model_")
    )
    local = held_out.topology.is_local[held_out.action]
    for c, condition in enumerate(held_out.condition):
        sent, alone = (held_out.of == c) & ~local, (held_out.of == c) & local
        points = axes.plot(measured[sent], modelled[sent], "o", ms=4, label=condition)
        axes.plot(measured[alone], modelled[alone], "x", ms=5, color=points[0].get_color())
    known = measured[np.isfinite(measured)]
    if len(known):
        ends = [0.8 * known.min(), 1.25 * known.max()]
        axes.plot(ends, ends, "k-", lw=0.8)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(xlabel=f"measured {what}, {unit}", ylabel=f"modelled {what}, {unit}")
    axes.set_title(f"{what}: held-out conditions (x: local actions)", fontsize=10)
    axes.legend(fontsize=8)
    path = folder / f"{what}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Software": SOFTWARE})
    return path
