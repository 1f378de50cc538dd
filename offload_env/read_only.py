"""Arrays that many share and none may edit."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)
Record = TypeVar("Record")


def read_only(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A view that cannot be written to; the caller's own array stays as it was."""
    view = array.view()
    view.setflags(write=False)
    return view


def read_only_fields(record: Record) -> Record:
    """A dataclass with its arrays replaced by `read_only` views."""
    of: Any = record
    arrays = {
        field.name: read_only(value)
        for field in fields(of)
        if isinstance(value := getattr(of, field.name), np.ndarray)
    }
    changed: Record = replace(of, **arrays)
    return changed
