"""Training checkpoints: written whole or not at all, and enough to continue exactly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cnn.arch import ModelConfig
from cnn.errors import BundleError
from cnn.files import replacing
from cnn.model import MultiExitVGG


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, whole or not at all; raises `DataError` if it cannot be."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # such as a full disk, in torch's words
                raise error.__context__ from error
            raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; raises `BundleError` if it is absent or not one of ours."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its damage hits
        raise _not_ours(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(state, dict) or not {"config", "model"} <= state.keys():
        raise _not_ours(path, "no network in it")
    return state


def _not_ours(path: Path, what: str) -> BundleError:
    return BundleError(
        f"checkpoint {path}: {what.splitlines()[0]}",
        expected="a checkpoint written by `sliproad cnn train`",
        mend="train again, or give another path",
    )


def model_state(model: MultiExitVGG) -> dict[str, Any]:
    """The part of a checkpoint that rebuilds the network."""
    return {"config": asdict(model.config), "model": model.state_dict()}


def build_model(state: dict[str, Any]) -> MultiExitVGG:
    """The network of a checkpoint, in eval mode."""
    raw = dict(state["config"])
    raw["latent_channels"] = tuple(raw["latent_channels"])
    model = MultiExitVGG(ModelConfig(**raw))
    model.load_state_dict(state["model"])
    return model.eval()
