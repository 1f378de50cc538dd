"""The 20 legal (exit, split) pairs and their one canonical numbering.

Environment, agents, policy files, frame tables and records all use this numbering:
exits ascending, and within an exit splits ascending, so that
``index(E, S) = (E - 1) * (E + 2) / 2 + S``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cnn.common.errors import ConfigError

N_EXITS: Final = 5
"""Exits 1..5; exit 5 is the main exit."""


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """Leave the network at `exit`, with blocks 1..`split` computed on the device.

    `split == 0` sends the frame itself (full offloading); `split == exit` sends
    nothing (fully local); otherwise the bottleneck of `split` crosses the uplink.

    Raises:
        ConfigError: if not ``1 <= exit <= 5`` and ``0 <= split <= exit``.
    """

    exit: int
    split: int

    def __post_init__(self) -> None:
        if not (1 <= self.exit <= N_EXITS and 0 <= self.split <= self.exit):
            raise ConfigError(
                f"action (exit={self.exit}, split={self.split})",
                expected=f"1 <= exit <= {N_EXITS} and 0 <= split <= exit",
                hint="choose one of the 20 actions listed by `sliproad cnn info`",
            )

    @property
    def index(self) -> int:
        """Canonical number, 0..19."""
        return (self.exit - 1) * (self.exit + 2) // 2 + self.split

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

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read a name (``e3s1``) or a canonical number (``7``).

        Raises:
            ConfigError: if the text names none of the 20 actions.
        """
        match = re.fullmatch(r"e(\d)s(\d)", text.strip().lower())
        if match:
            return cls(int(match.group(1)), int(match.group(2)))
        if text.strip().isdecimal() and int(text) < N_ACTIONS:
            return ACTIONS[int(text)]
        raise ConfigError(
            f"action {text!r}",
            expected="a name such as 'e3s1' or a number 0..19",
            hint="choose one of the 20 actions listed by `sliproad cnn info`",
        )


ACTIONS: Final[tuple[Action, ...]] = tuple(
    Action(e, s) for e in range(1, N_EXITS + 1) for s in range(e + 1)
)
N_ACTIONS: Final = len(ACTIONS)


def action_index(exit: int, split: int) -> int:
    """Canonical number of (exit, split); raises `ConfigError` if there is none."""
    return Action(exit, split).index


def action_from_index(index: int) -> Action:
    """The action with canonical number `index` (0..19).

    Raises:
        ConfigError: if `index` is outside 0..19.
    """
    if not 0 <= index < N_ACTIONS:
        raise ConfigError(
            f"action number {index}",
            expected=f"0..{N_ACTIONS - 1}",
            hint="choose one of the 20 actions listed by `sliproad cnn info`",
        )
    return ACTIONS[index]
