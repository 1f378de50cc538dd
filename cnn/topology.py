"""The topology of a network: its blocks, exits, splits and actions.

An action is a pair (exit, split). Environment, agents, policy files, frame tables and records
all number the actions of a network in the same way: exits ascending, and within an exit splits
ascending, the local one last. `SHIPPED` is the network of the shipped bundle; with an exit and a
split at each of its five blocks, ``index(E, S) = (E - 1) * (E + 2) / 2 + S``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, shown
from cnn.common.outside import said

MAX_BLOCKS: Final = 16
MAX_PAYLOAD_BYTES: Final = 2**24
"""Of one frame; a raw frame of 224 x 224 pixels has 150,528."""
_NAME: Final = re.compile(r"e(\d{1,2})s(\d{1,2})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """Leave the network at `exit`, with blocks 1..`split` computed on the device.

    `split == 0` sends the frame itself (full offloading); `split == exit` sends
    nothing (fully local); otherwise the bottleneck of `split` crosses the uplink.

    Attributes:
        index: canonical number in the network that it belongs to (`Topology.action`).
    """

    exit: int
    split: int
    index: int = field(compare=False, repr=False)

    @property
    def is_local(self) -> bool:
        """True if nothing crosses the uplink."""
        return self.split == self.exit

    @property
    def is_full_offload(self) -> bool:
        """True if the frame itself is sent."""
        return self.split == 0

    @property
    def name(self) -> str:
        """Short name used in tables and records, such as ``e3s1``."""
        return f"e{self.exit}s{self.split}"


@dataclass(frozen=True)
class Topology:
    """Blocks, exits and splits of one network, and the actions that follow from them.

    Attributes:
        n_blocks: blocks, computed one after the other, numbered from 1; at most 16.
        exits: blocks behind which the network can answer, ascending; the last block is one.
        splits: blocks behind which the network can be cut, ascending, all before the last
            block; 0 sends the frame itself.
        payload_shapes: shape of one frame's payload (uint8) at each of `splits`: (H, W, 3) at
            0, else (C, h, w).

    Raises:
        ConfigError: if they do not fit together.
    """

    n_blocks: int
    exits: tuple[int, ...]
    splits: tuple[int, ...]
    payload_shapes: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        numbers = (self.n_blocks, *self.exits, *self.splits, *chain(*self.payload_shapes))
        whole = all(type(n) is int for n in numbers)
        _check(whole, "something else than whole numbers", "whole numbers")
        n = self.n_blocks
        _check(1 <= n <= MAX_BLOCKS, f"{shown(n)} blocks", f"1 to {MAX_BLOCKS}")
        _check(
            list(self.exits) == sorted({*self.exits, n}) and self.exits[0] >= 1,
            f"exits {shown(self.exits)} of {n} blocks",
            "blocks, ascending, the last one among them",
        )
        _check(
            list(self.splits) == sorted(set(self.splits) & set(range(n))),
            f"splits {shown(self.splits)} of {n} blocks",
            "0 or blocks before the last one, ascending",
        )
        _check(
            len(self.payload_shapes) == len(self.splits)
            and all(
                len(s) == 3 and min(s) >= 1 and math.prod(s) <= MAX_PAYLOAD_BYTES
                for s in self.payload_shapes
            ),
            f"payload shapes {shown(self.payload_shapes)} at {len(self.splits)} splits",
            f"three numbers for each, of {MAX_PAYLOAD_BYTES} bytes at most",
        )

    @cached_property
    def actions(self) -> tuple[Action, ...]:
        """Every legal (exit, split), in canonical order."""
        pairs = sorted({(e, s) for e in self.exits for s in (*self.splits, e) if s <= e})
        return tuple(Action(e, s, index) for index, (e, s) in enumerate(pairs))

    @cached_property
    def _by_pair(self) -> dict[tuple[int, int], Action]:
        return {(a.exit, a.split): a for a in self.actions}

    @property
    def n_actions(self) -> int:
        """Number of actions."""
        return len(self.actions)

    @property
    def n_exits(self) -> int:
        """Number of exits."""
        return len(self.exits)

    @property
    def main(self) -> int:
        """Canonical number of full local processing: the main exit, unsplit."""
        return self.n_actions - 1

    @cached_property
    def local(self) -> tuple[int, ...]:
        """Canonical number of the local action of each exit, ascending."""
        return tuple(a.index for a in self.actions if a.is_local)

    @cached_property
    def local_of(self) -> NDArray[np.intp]:
        """Canonical number of the local action of the exit behind a block.

        intp (n_blocks + 1,), by block; -1 where there is no exit.
        """
        return self._by_exit(self.local)

    @cached_property
    def exit_place(self) -> NDArray[np.intp]:
        """Place of an exit among the exits, from 0: intp (n_blocks + 1,), by block, -1 for none."""
        return self._by_exit(range(self.n_exits))

    @cached_property
    def exit_of(self) -> NDArray[np.intp]:
        """Exit of every action, intp (n_actions,); read-only, as all arrays here."""
        return self._by_action(lambda a: a.exit, np.intp)

    @cached_property
    def split_of(self) -> NDArray[np.intp]:
        """Split of every action, intp (n_actions,)."""
        return self._by_action(lambda a: a.split, np.intp)

    @cached_property
    def is_local(self) -> NDArray[np.bool_]:
        """Whether an action sends nothing, bool (n_actions,)."""
        return self._by_action(lambda a: a.is_local, np.bool_)

    @cached_property
    def payload_bytes(self) -> NDArray[np.int32]:
        """Bytes that each action sends up for one frame, int32 (n_actions,); 0 if local."""
        return self._by_action(
            lambda a: 0 if a.is_local else math.prod(self.payload_shape(a.split)), np.int32
        )

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """Names of the parts that a bundle stores: blocks, exits, encoders, decoders."""
        cuts = [s for s in self.splits if s > 0]
        return (
            *(f"block{b}" for b in range(1, self.n_blocks + 1)),
            *(f"exit{e}" for e in self.exits),
            *(f"enc{s}" for s in cuts),
            *(f"dec{s}" for s in cuts),
        )

    def _by_action(self, value: Callable[[Action], int], dtype: Any) -> NDArray[Any]:
        found = np.array([value(a) for a in self.actions], dtype)
        found.setflags(write=False)
        return found

    def _by_exit(self, values: Sequence[int]) -> NDArray[np.intp]:
        found = np.full(self.n_blocks + 1, -1, np.intp)
        found[list(self.exits)] = values
        found.setflags(write=False)
        return found

    def action(self, exit: int, split: int) -> Action:
        """The action (exit, split); raises `ConfigError` if there is none."""
        found = self._by_pair.get((exit, split))
        if found is None:
            raise self._unknown(f"action (exit={shown(exit)}, split={shown(split)})", self._rule())
        return found

    def index(self, exit: int, split: int) -> int:
        """Canonical number of (exit, split); raises `ConfigError` if there is none."""
        return self.action(exit, split).index

    def action_at(self, index: int) -> Action:
        """The action with canonical number `index`; raises `ConfigError` if there is none."""
        if not 0 <= index < self.n_actions:
            raise self._unknown(f"action number {shown(index)}", f"0..{self.n_actions - 1}")
        return self.actions[index]

    def parse(self, text: str) -> Action:
        """Read a name (``e3s1``) or a canonical number (``7``).

        Raises:
            ConfigError: if the text names no action.
        """
        word = text.strip().lower()
        match = _NAME.fullmatch(word)
        if match:
            return self.action(int(match[1]), int(match[2]))
        if word.isdecimal() and len(word) <= 5 and int(word) < self.n_actions:
            return self.actions[int(word)]
        raise self._unknown(
            f"action {text!r}", f"a name such as 'e3s1' or a number 0..{self.n_actions - 1}"
        )

    def payload_shape(self, split: int) -> tuple[int, int, int]:
        """Shape of one frame's uint8 payload at `split`, without the batch.

        Raises:
            ConfigError: if the network cannot be cut there.
        """
        if split not in self.splits:
            raise self._unknown(f"split {shown(split)}", f"one of {shown(self.splits)}")
        return self.payload_shapes[self.splits.index(split)]

    def require_same(self, other: Topology, given: str, expected: str) -> None:
        """Raise `ConfigError` unless both are of one network, so that data of two never mix.

        Args:
            other: topology of `given`.
            given: owner of `other`, such as ``frame table a.npz``.
            expected: owner of this topology, such as ``model bundle b``.
        """
        if other != self:
            raise ConfigError(
                f"{given} of {other}",
                expected=f"{self}, as {expected}",
                hint="give files that were made with one model bundle",
            )

    def __str__(self) -> str:
        return (
            f"a network with {self.n_blocks} blocks, {len(self.exits)} exits and "
            f"{self.n_actions} actions (topology {self.hash[:12]})"
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: equal only for equal topologies."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {
            "blocks": self.n_blocks,
            "exits": list(self.exits),
            "payloads": {
                str(s): list(shape)
                for s, shape in zip(self.splits, self.payload_shapes, strict=True)
            },
        }

    @classmethod
    def from_json(cls, raw: Any) -> Topology:
        """The topology of `to_json`; raises `ConfigError` if it is not valid."""
        try:
            payloads = {int(split): tuple(shape) for split, shape in raw["payloads"].items()}
            splits = tuple(sorted(payloads))
            exits, shapes = tuple(raw["exits"]), tuple(payloads[s] for s in splits)
            return cls(raw["blocks"], exits, splits, shapes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"a topology that cannot be read ({type(error).__name__})",
                expected="blocks, exits and the payload's shape by split",
                hint="make the file again",
            ) from error

    @classmethod
    def stored_in(cls, meta: Mapping[str, Any]) -> Topology:
        """The entry ``topology`` of a file's metadata; files from before it are of `SHIPPED`.

        Raises:
            ValueError: if it is not valid.
        """
        if meta.get("topology") is None:
            return SHIPPED
        try:
            return cls.from_json(meta["topology"])
        except ConfigError as error:
            raise ValueError(said(error)) from error

    def _rule(self) -> str:
        every = self.exits == tuple(range(1, self.n_blocks + 1))
        if every and self.splits == tuple(range(self.n_blocks)):
            return f"1 <= exit <= {self.n_blocks} and 0 <= split <= exit"
        return f"an exit of {shown(self.exits)}; its own block or a split of {shown(self.splits)}"

    def _unknown(self, given: str, expected: str) -> ConfigError:
        return ConfigError(
            given,
            expected=expected,
            hint=f"choose one of the {self.n_actions} actions listed by `sliproad cnn info`",
        )


def _check(ok: bool, given: str, expected: str) -> None:
    if not ok:
        raise ConfigError(f"a topology with {given}", expected=expected, hint="correct it")


SHIPPED: Final = Topology(
    n_blocks=5,
    exits=(1, 2, 3, 4, 5),
    splits=(0, 1, 2, 3, 4),
    payload_shapes=((48, 48, 3), (7, 12, 12), (24, 6, 6), (14, 6, 6), (48, 3, 3)),
)
"""Topology of the shipped bundle, and of all files from before they stored a topology."""
