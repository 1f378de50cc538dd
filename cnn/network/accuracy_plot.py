"""Pictures of the network's quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cnn.action import N_EXITS, Action
from cnn.common.files import replacing
from cnn.common.outputs import SOFTWARE
from cnn.network.calibrate import N_BINS, Reliability


def _area(share: Any) -> Any:
    """Area of a bin's mark, points squared, by its share of the frames."""
    return 12 + 60 * np.sqrt(share)


def reliability_diagram(before: list[Reliability], after: list[Reliability], path: Path) -> None:
    """One panel an exit: how often a stated confidence came true, before and after scaling."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, N_EXITS, figsize=(15, 4.0), sharey=True, layout="constrained")
    for e, ax in enumerate(axes, 1):
        index = Action(e, e).index
        ax.plot([0, 1], [0, 1], color="0.7", lw=1)
        series = ((before, "before", "tab:orange", "o"), (after, "after", "tab:blue", "s"))
        for which, name, colour, marker in series:
            r = which[index]
            seen = r.count >= 5
            ax.scatter(
                r.confidence[seen],
                r.accuracy[seen],
                s=_area(r.count[seen] / r.count.sum()),
                color=colour,
                marker=marker,
                alpha=0.8,
                label=f"{name}: ECE {r.ece:.4f}",
            )
        ax.set(title=f"exit {e}", xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02))
        ax.legend(loc="upper left", fontsize=8)
    axes[0].set_ylabel("share of right answers")
    sizes = [
        fig.gca().scatter([], [], s=_area(share), color="0.5", label=f"{100 * share:g} % of frames")
        for share in (0.01, 0.1, 1.0)
    ]
    fig.legend(handles=sizes, loc="outside lower center", ncols=len(sizes), fontsize=9)
    fig.suptitle(f"Reliability ({N_BINS} bins, bins with at least 5 frames)")
    with replacing(path) as temporary:
        fig.savefig(temporary, dpi=110, metadata={"Software": SOFTWARE})
    plt.close(fig)
