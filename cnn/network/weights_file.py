"""Training checkpoints: written whole or not at all, with all state to resume exactly.

Each file carries its checksum (`cnn.common.outside`). The newest checkpoint and the one before it
are kept, so that damage to one leaves the other.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cnn.common.console import warn
from cnn.common.errors import BundleError, ConfigError
from cnn.common.files import replacing
from cnn.common.outside import is_sealed, seal
from cnn.model_config import ModelConfig
from cnn.network.block_network import BlockNetwork
from cnn.network.vgg import MultiExitVGG


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, whole or not at all; raises `DataError` if it cannot be."""
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            try:
                torch.save({**state, "sealed": True}, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # a full disk, as torch reports it
                    raise error.__context__ from error
                raise
        seal(temporary)


def save_next(path: Path, state: dict[str, Any]) -> None:
    """`save` a checkpoint to resume from; the one before it is kept beside it, if it is whole.

    A kill between the two renames leaves only the one before it, which `load_newest` finds.
    """
    if path.is_file() and is_sealed(path):
        path.replace(previous(path))
    save(path, state)


def previous(path: Path) -> Path:
    """Where the checkpoint before ``NAME.pt`` is kept: ``NAME.previous.pt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_newest(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The newest whole checkpoint that `save_next` has written; None if there is none at all.

    Prints one line if that is not the newest checkpoint.

    Args:
        path: as given to `save_next`.
        run: settings that the state must have under the key ``run``, plain values; those that
            an older version did not know are not checked.

    Raises:
        BundleError: if none is whole.
        ConfigError: if it is of a run with other settings.
    """
    faults: list[BundleError] = []
    for each in (path, previous(path)):
        if not each.exists():
            continue
        try:
            state = load(each)
        except BundleError as error:
            faults.append(error)
            continue
        if faults:
            warn(f"{faults[0].given}; resuming from the whole one before it, {each}")
        if any(run.get(name) != value for name, value in state.get("run", {}).items()):
            raise ConfigError(
                f"settings that differ from those of {each}",
                expected="the settings of the run to resume (epochs and where it computes apart)",
                hint="give the same options, or another --out",
            )
        return state
    if faults:
        raise faults[0]
    return None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; raises `BundleError` if it is absent, damaged, or not one of ours."""
    if path.exists() and not path.is_file():
        raise _not_ours(path, "it is no regular file")
    try:
        sealed = is_sealed(path)
    except OSError as error:
        raise _not_ours(path, error.strerror or "it cannot be read") from error
    if sealed is False:
        raise _not_ours(path, "it is damaged: its checksum differs")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any error
        raise _not_ours(path, f"it cannot be read: {error or type(error).__name__}") from error
    if not isinstance(state, dict) or not {"config", "model"} <= state.keys():
        raise _not_ours(path, "no network in it")
    if state.pop("sealed", False) and not sealed:
        raise _not_ours(path, "it is damaged: its checksum is gone")
    return state


def _not_ours(path: Path, what: str) -> BundleError:
    return BundleError(
        f"checkpoint {path}: {what.splitlines()[0]}",
        expected="a checkpoint written by `sliproad cnn train`",
        hint="train again without --resume, or give another path",
    )


def model_state(model: BlockNetwork) -> dict[str, Any]:
    """The part of a checkpoint that rebuilds the network."""
    return {"config": asdict(model.config), "model": model.state_dict()}


def build_model(state: dict[str, Any]) -> MultiExitVGG:
    """The network of a checkpoint, in eval mode."""
    raw = dict(state["config"])
    raw["latent_channels"] = tuple(raw["latent_channels"])
    model = MultiExitVGG(ModelConfig(**raw))
    model.load_state_dict(state["model"])
    return model.eval()
