"""Texts of nothing but numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def numbers_of(text: str) -> NDArray[np.float64] | None:
    """A text of nothing but numbers, equally many in each line, as float64 (lines, columns).

    None if it is something else. Blank lines do not count.
    """
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    cells = text.split()
    if not lines or len(cells) % len(lines):
        return None
    width = len(cells) // len(lines)
    if width > 1 and any(len(line.split()) != width for line in lines):
        return None
    try:
        found = np.array(cells, dtype=np.float64).reshape(-1, width)
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def are_whole(text: str) -> bool:
    """Whether the numbers of a text are written without a fraction or an exponent."""
    return not any(mark in text for mark in ".eE")
