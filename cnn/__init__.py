"""The split, multi-exit road-sign CNN: network, data, training, bundles, frame tables.

Its public names can be imported from here; each loads its module when it is first used (PEP
562), so that ``import cnn`` itself loads nothing. The device starts without torch: only
`cnn.network` needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cnn.bundle import Bundle, load_bundle
    from cnn.common.errors import BundleError, ConfigError, DataError, RemoteError, SliproadError
    from cnn.data.image_file import decode_rgb, read_image, resize_rgb
    from cnn.data.image_set import ImageSet
    from cnn.data.load_images import load_images
    from cnn.frame_codec import FrameEncoding
    from cnn.frame_table import FEATURES, FrameTable, embedded_table, frame_features
    from cnn.imported_table import import_table
    from cnn.make_frame_table import make_table
    from cnn.model_config import ModelConfig
    from cnn.render.rendered_tracks import RenderedFrame, render_tracks
    from cnn.runtime import SplitRuntime
    from cnn.topology import (
        SHIPPED,
        Action,
        Topology,
    )

__version__ = "0.1.0"

__all__ = [
    # topology
    "SHIPPED",
    "Action",
    "Topology",
    # the network
    "Bundle",
    "ModelConfig",
    "SplitRuntime",
    "load_bundle",
    # frames
    "FEATURES",
    "FrameEncoding",
    "FrameTable",
    "ImageSet",
    "RenderedFrame",
    "decode_rgb",
    "embedded_table",
    "frame_features",
    "import_table",
    "load_images",
    "make_table",
    "read_image",
    "render_tracks",
    "resize_rgb",
    # errors
    "BundleError",
    "ConfigError",
    "DataError",
    "RemoteError",
    "SliproadError",
    "__version__",
]

_NAMES_OF: Final = {
    "bundle": ("Bundle", "load_bundle"),
    "common.errors": ("BundleError", "ConfigError", "DataError", "RemoteError", "SliproadError"),
    "data.image_file": ("decode_rgb", "read_image", "resize_rgb"),
    "data.image_set": ("ImageSet",),
    "data.load_images": ("load_images",),
    "frame_codec": ("FrameEncoding",),
    "frame_table": ("FEATURES", "FrameTable", "embedded_table", "frame_features"),
    "imported_table": ("import_table",),
    "make_frame_table": ("make_table",),
    "model_config": ("ModelConfig",),
    "render.rendered_tracks": ("RenderedFrame", "render_tracks"),
    "runtime": ("SplitRuntime",),
    "topology": ("SHIPPED", "Action", "Topology"),
}
_MODULE_OF: Final = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
