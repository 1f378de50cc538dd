"""How well the shipped network, trained on real signs only, reads the rendered ones.

Prints one JSON object: {"frames", "bundle", "exits": {exit: accuracy}, "weakest": the five
signs that exit 3 reads worst, by name}. 430 tracks of 10 frames, every sign ten times.
"""

from __future__ import annotations

import json

import numpy as np

from cnn.bundle import load_bundle
from cnn.render.rendered_tracks import render_set
from cnn.render.signs import SIGN_NAMES
from cnn.runtime import SplitRuntime

TRACKS, FRAMES, SEED = 430, 10, 2026


def main() -> None:
    """Render, answer, print."""
    runtime = SplitRuntime(load_bundle())
    data = render_set(TRACKS, SEED, runtime.bundle.config.input_size, FRAMES)
    right = np.empty((5, len(data)), bool)
    for at in range(0, len(data), 50):
        rows = slice(at, at + 50)
        x = data.images[rows]
        for exit in range(1, 6):
            x = runtime.forward(x, exit, exit)
            right[exit - 1, rows] = runtime.logits(x, exit).argmax(1) == data.label[rows]
    by_sign = {c: float(right[2, data.label == c].mean()) for c in range(43)}
    weakest = sorted(by_sign, key=by_sign.__getitem__)[:5]
    print(
        json.dumps(
            {
                "frames": len(data),
                "bundle": runtime.bundle.hash[:12],
                "exits": {str(e + 1): round(float(right[e].mean()), 4) for e in range(5)},
                "weakest": {SIGN_NAMES[c]: round(by_sign[c], 3) for c in weakest},
            }
        )
    )


if __name__ == "__main__":
    main()
