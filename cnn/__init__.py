"""The split, multi-exit road-sign CNN: network, data, training, bundles, frame tables.

Importing this package imports neither torch nor onnxruntime: the device starts
without torch, and the pieces that need it (`cnn.network.vgg`, `cnn.network.train_network`, ...)
say so.
"""

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS, Action, action_from_index, action_index

__version__ = "0.1.0"

__all__ = [
    "ACTIONS",
    "N_ACTIONS",
    "N_EXITS",
    "Action",
    "__version__",
    "action_from_index",
    "action_index",
]
