"""The comparison of policies as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from agents.evaluate import AGENT, CLAIRVOYANT, Evaluation


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
        if not console.is_terminal:  # a file or a pipe: no reason to cut columns
            console = Console(width=120)
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
        for row in self.rows:
            style = "bold" if AGENT in row[0] else "dim" if CLAIRVOYANT in row[0] else ""
            table.add_row(*row, style=style)
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)


COLUMNS = (
    "policy",
    "delay ms",
    "p99 ms",
    "energy mJ",
    "accuracy %",
    "missed %",
    "cost",
)


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
    """Table of an evaluation: cheapest first, the agent and the best static marked."""
    order = sorted(result.policies, key=lambda name: result.policies[name]["cost"])
    rows = [cells(_label(result, name), result.policies[name]) for name in order]
    notes = [
        f"accuracy floor {100 * result.floor:.2f} %; no policy that keeps it costs less than "
        f"{result.bound_cost:.4f}"
    ]
    closed = {"the agent": result.gap_closed, "the staged agent": result.gap_closed_staged}
    for who, share in closed.items():
        if share is not None:
            notes.append(
                f"{who} closes {100 * share:.0f} % of the gap between the best static pair and "
                "that bound"
            )
    title = f"{result.scenario}: {result.drives} test drives of {result.frames} frames"
    return Comparison(title, COLUMNS, rows, notes)


def _label(result: Evaluation, name: str) -> str:
    return result.best_static if name == "best-static" else name
