"""A fake sysfs: folders of one-line files, as the kernel's documents lay them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.meters.meter import FrameActivity


@dataclass(frozen=True)
class Sysfs:
    """A tree under `root`."""

    root: Path

    def write(self, folder: str, **files: object) -> Path:
        """One file a keyword, as the kernel writes it, in a folder below the root."""
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (path / name).write_text(f"{value}\n")
        return path


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


@pytest.fixture
def second() -> FrameActivity:
    """A frame's window of one second in which nothing else is known."""
    return FrameActivity(0, 1, 0, 0, 0, 0, 0)
