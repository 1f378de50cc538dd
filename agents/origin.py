"""Where a learnt policy comes from: file, hash, whether it is shipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """The file of a learnt policy.

    Attributes:
        path: of the policy file.
        sha256: of that file's bytes, hexadecimal.
        shipped: whether it came with the package.
        scenario: name of the scenario it was trained for; empty if its manifest does not say.
    """

    path: Path
    sha256: str
    shipped: bool
    scenario: str

    def as_json(self) -> dict[str, Any]:
        """``path``, ``sha256``, ``shipped`` and ``trained_for``."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "shipped": self.shipped,
            "trained_for": self.scenario,
        }

    def __str__(self) -> str:
        kind = "shipped policy" if self.shipped else "policy"
        return f"{kind} {self.path}, sha256 {self.sha256[:12]}"
