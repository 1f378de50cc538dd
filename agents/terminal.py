"""Terminal output: progress bars, and the comparison of policies as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

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
from rich.table import Table

from agents.evaluation import AGENT, BEST_STATIC, CLAIRVOYANT, STAGED, Evaluation


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


@dataclass(frozen=True, slots=True)
class Comparison:
    """Heading, columns and rows, ready to print."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]

    def print(self, console: Console | None = None) -> None:
        """To standard output."""
        console = console or Console()
        table = Table(title=self.title, title_justify="left")
        if not console.is_terminal:  # a file or a pipe has no width to fit
            console = Console(width=120)
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
        for row in self.rows:
            style = "bold" if AGENT in row[0] else "dim" if CLAIRVOYANT in row[0] else ""
            table.add_row(*row, style=style)
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)


COLUMNS = ("policy", "delay ms", "p99 ms", "energy mJ", "accuracy %", "missed %", "cost")


def cells(name: str, m: Mapping[str, float]) -> tuple[str, ...]:
    """One row: figures rounded for people."""

    def number(key: str, digits: int, factor: float = 1.0) -> str:
        value = m.get(key)
        return "" if value is None else f"{factor * value:.{digits}f}"

    return (
        name,
        number("delay_ms", 1),
        number("delay_p99_ms", 1),
        number("energy_mj", 1),
        number("accuracy", 2, 100),
        number("deadline_miss", 2, 100),
        number("cost", 4),
    )


def comparison(result: Evaluation) -> Comparison:
    """Table of an evaluation: cheapest first, and which policies keep the floor."""
    order = sorted(result.policies, key=lambda name: result.policies[name]["cost"])
    rows = []
    for name in order:
        *figures, cost = cells(_label(result, name), result.policies[name])
        rows.append((*figures, "kept" if result.keeps_floor(name) else "MISSED", cost))
    title = f"{result.scenario}: {result.drives} test drives of {result.frames} frames"
    shown = (c.replace("accuracy", result.measure) for c in COLUMNS[:-1])
    columns = (*shown, "floor", COLUMNS[-1])
    return Comparison(title + _whose(result), columns, rows, _notes(result))


def floor_table(result: Evaluation) -> Comparison:
    """How each policy keeps the floor beyond the mean, cheapest first."""
    rows = []
    for name in sorted(result.floors, key=lambda name: result.policies[name]["cost"]):
        kept = result.floors[name]
        over = 100 * (result.policies[name]["accuracy"] - result.floor)
        worst = "" if kept.worst_class is None else f"{kept.worst_class}"
        lost = "" if kept.worst_class is None else f"{100 * kept.worst_class_loss:.2f}"
        shares = (f"{100 * share:.0f}" for share in (kept.drives_below, kept.tracks_below))
        drive = f"{100 * kept.worst_drive_over:+.2f}"
        rows.append((_label(result, name), f"{over:+.2f}", *shares, drive, worst, lost))
    columns = (
        "policy",
        "over floor",
        "drives below %",
        "resamplings below %",
        "worst drive",
        "worst class",
        "it loses",
    )
    notes = [
        "points above or below the floor on the same frames; a drive's floor is full local "
        "processing's on that drive less the margin; resamplings are of whole tracks; a class "
        "loses against full local processing"
    ]
    title = f"The {result.measure} floor by drive, track and class"
    return Comparison(title, columns, rows, notes)


def energy_table(result: Evaluation) -> Comparison:
    """Energy in several ways, of the learnt policies and of full local processing."""
    names = [name for name in (AGENT, STAGED, "full-local") if name in result.energy]
    rows = []
    for name in names:
        e = result.energy[name]
        tail = "" if e.modem_with_tail is None else f"{e.modem_with_tail:.1f}"
        figures = (f"{v:.1f}" for v in (e.whole, e.active, e.above_idle, e.modem))
        rows.append((_label(result, name), *figures, tail))
    columns = ("mJ a frame", "whole device", "active", "above idle", "modem", "modem with tail")
    notes = [
        "whole device: the idle time between frames as well; active: computing, exchanging and the "
        "scenario's modem tail, of which the cost is made; above idle: that less the idle power"
    ]
    gains = result.energy_gains()
    if gains:
        times = ", ".join(f"{v:.2f} ({name.replace('_', ' ')})" for name, v in gains.items())
        notes.append(f"times less than full local processing, {result.better}: {times}")
    return Comparison("Energy", columns, rows, notes)


def _whose(result: Evaluation) -> str:
    """Origin of the evaluated policies, for the title."""
    if not result.origins:
        return ""
    if all(origin.shipped for origin in result.origins.values()):
        return ", the shipped policies"
    return ", " + " and ".join(str(origin.path) for origin in result.origins.values())


def _notes(result: Evaluation) -> list[str]:
    notes = [
        f"{result.measure} floor {100 * result.floor:.2f} %; no policy that keeps it costs less "
        f"than {result.bound_cost:.4f}"
    ]
    for name in result.differences:  # the learnt policies
        who, share = f"the {name.replace('-', ' ')}", result.gap_closed.get(name)
        if not result.keeps_floor(name):
            missing = 100 * (result.floor - result.policies[name]["accuracy"])
            notes.append(
                f"{who} MISSES the {result.measure} floor by {missing:.2f} points: its cost does "
                "not count against policies that keep it"
            )
        elif share is not None:
            notes.append(
                f"{who} closes {100 * share:.0f} % of the gap between the best static pair and "
                "that bound" + _static_below(result)
            )
    for name, origin in result.origins.items():
        other = origin.scenario not in ("", result.scenario)
        trained = f", trained for {origin.scenario}" if other else ""
        notes.append(f"{name}: {origin}{trained}")
    return notes + [f"{name}: {plug_in}" for name, plug_in in result.plug_ins.items()]


def _static_below(result: Evaluation) -> str:
    if result.keeps_floor(BEST_STATIC):
        return ""
    return " (that pair, chosen on training drives, misses the floor on these)"


def _label(result: Evaluation, name: str) -> str:
    if name == BEST_STATIC:
        return result.best_static
    shipped = name in result.origins and result.origins[name].shipped
    return f"{name} (shipped)" if shipped else name
