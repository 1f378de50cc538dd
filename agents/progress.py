"""Progress bars of the agent commands, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def training_progress(
    console: Console, steps: int
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Bar over training steps; the yielded function takes the step and the newest log row."""
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("cost {task.fields[cost]:.3f}  accuracy {task.fields[accuracy]:.2f} %"),
        TextColumn("multiplier {task.fields[multiplier]:.1f}"),
        console=console,
    )
    with bar:
        task = bar.add_task("train", total=steps, cost=1.0, accuracy=0.0, multiplier=0.0)

        def report(step: int, row: dict[str, float]) -> None:
            bar.update(
                task,
                completed=min(step, steps),
                cost=row["cost"],
                accuracy=100 * row["accuracy"],
                multiplier=row["multiplier"],
            )

        yield report


@contextmanager
def steps_progress(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Spinner with the name of what was done last."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda name: bar.update(task, description=f"{what}: {name}")
