"""Cut the network by hand: run its head here, look at the payload, finish it 'over there'.

    python examples/01_split_and_merge.py

Both halves run in this process; 02_device_and_server.py puts a connection between them.
Needs the base install only.
"""

from __future__ import annotations

from cnn import SplitRuntime, load_bundle, render_tracks

SEED = 7


def main() -> None:
    bundle = load_bundle()  # the shipped weights; their content hash is checked
    runtime = SplitRuntime(bundle, threads=1)
    size = bundle.config.input_size
    print(f"bundle {bundle.hash[:12]}, frames of {size} x {size} pixels")

    # A rendered sign, nearest frame of its track. The network never trained on these.
    frame = list(render_tracks(n_tracks=1, seed=SEED, size=size))[-1]
    image = frame.image  # uint8 (size, size, 3), RGB
    print(f"the sign is class {frame.label}\n")

    # The device runs blocks 1 and 2 and packs what comes out as bytes ...
    features = runtime.forward(runtime.start(image), 1, 2)
    payload = runtime.payload(features, split=2)
    print(f"after block 2: {features.nbytes} bytes of features, {payload.nbytes} bytes to send")

    # ... the server unpacks them, runs blocks 3 to 5 and answers at the main exit.
    classes, confidences = runtime.tail(payload, exit=5, split=2)
    print(f"server says class {classes[0]}, confidence {confidences[0]:.3f}")

    # A device that hears nothing from the server still stands after block 2 and goes on.
    own = runtime.forward(features, 3, 5)
    label, confidence = runtime.answer(own, exit=5, split=5)
    print(f"alone it says class {label}, confidence {confidence:.3f}\n")

    actions = bundle.topology.actions
    print(f"all {len(actions)} actions on this frame:")
    print(f"{'action':>8} {'payload':>10} {'class':>6} {'confidence':>11}")
    for action in actions:
        label, confidence = runtime.act(image, action)
        payload_bytes = bundle.topology.payload_bytes[action.index]
        print(f"{action.name:>8} {payload_bytes:>8} B {label:>6} {confidence:>11.3f}")


if __name__ == "__main__":
    main()
