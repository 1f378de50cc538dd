"""How the system shares processors among the threads of a server."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def prefer_throughput() -> str:
    """Ask the system not to interrupt a computing thread for every message; how it went.

    ``batch`` (Linux's SCHED_BATCH, sched(7); no right is needed): a thread of this process that
    wakes waits for its turn where every processor is busy, instead of cutting in. It holds for
    the threads there are and those they start. A server with a free processor sees no
    difference. Where the system has no such policy, or an administrator chose one, nothing
    changes: ``normal`` or ``as given``.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return "normal"
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return "as given"
    try:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        return "normal"
    return "batch"
