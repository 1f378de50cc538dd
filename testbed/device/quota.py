"""A CPU quota for this process, to stand for a slower device. Needs root and cgroups."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cnn.errors import ConfigError

_PERIOD_US: Final = 5000
"""Short, so that a quota slows every section and does not stop the device for 100 ms."""
_MIN_QUOTA_US: Final = 1000
"""Smallest quota the kernel takes (``Documentation/scheduler/sched-bwc.rst``)."""


def quota_us(share: float) -> tuple[int, int]:
    """(quota, period) in microseconds for `share` of one core."""
    period = max(_PERIOD_US, math.ceil(_MIN_QUOTA_US / share))
    return max(_MIN_QUOTA_US, round(share * period)), period


class CpuQuota:
    """While the context lasts, this process and its threads share `share` of one core.

    Children started within it inherit the quota. Works with cgroup v1 (``cpu``) and v2.

    Args:
        share: in (0, 1].
        root: where cgroups are mounted.

    Raises:
        ConfigError: if the share is out of range; on entering, if no group can be made.
    """

    def __init__(self, share: float, root: Path = Path("/sys/fs/cgroup")) -> None:
        if not 0 < share <= 1:
            raise ConfigError(
                f"device quota {share}", expected="a share in (0, 1]", mend="try 0.25"
            )
        self._quota, self._period = quota_us(share)
        self._v1 = (root / "cpu").is_dir()
        self._top = root / "cpu" if self._v1 else root
        self._group = self._top / f"sliproad-device-{os.getpid()}"
        self._home: Path | None = None

    def __enter__(self) -> Self:
        try:
            self._home = self._top / _own_group(self._v1).lstrip("/")
            self._group.mkdir()
            if self._v1:
                (self._group / "cpu.cfs_period_us").write_text(str(self._period))
                (self._group / "cpu.cfs_quota_us").write_text(str(self._quota))
            else:
                (self._group / "cpu.max").write_text(f"{self._quota} {self._period}")
            (self._group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._group.rmdir()
            raise ConfigError(
                f"no CPU quota possible here ({error.strerror}: {error.filename})",
                expected="root and a writable cgroup with the cpu controller",
                mend="use --slowdown, which needs neither",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        home = self._home or self._top
        try:
            (home / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            (self._top / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):
            self._group.rmdir()


def _own_group(v1: bool) -> str:
    """This process's group, from ``/proc/self/cgroup``."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (v1 and "cpu" in controllers.split(",")) or (not v1 and controllers == ""):
            return path
    return "/"
