"""``sliproad demo``: train, compare, export, drive live, report, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.run_files import DEMO, check_run
from cnn.common.console import JsonFlag, SeedOption, emit_json, stderr_console
from cnn.common.locks import Claim
from cnn.common.outputs import check_folder


def demo(
    scenario: Annotated[str, typer.Option(help="Scenario's name or TOML file.")] = "urban-5g",
    out: Annotated[Path, typer.Option(help="Folder of everything the demo writes.")] = Path(
        "runs/demo"
    ),
    frames: Annotated[
        int, typer.Option(min=1, help="Frames to drive live, at the scenario's camera rate.")
    ] = 300,
    steps: Annotated[int, typer.Option(min=1, help="Frames to train on.")] = 2_000_000,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out test drives.")] = 32,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train an agent, compare it on held-out drives, deploy it and measure it live.

    Needs no data: frames are the embedded frame tables, and rendered signs for the live
    run. With SLIPROAD_DATA set, the live run shows real GTSRB tracks instead.
    """
    check_folder(out, DEMO)
    check_run(out / "train")
    from agents.demo_steps import run_demo

    with Claim(out, folder=True), _terminate_as_interrupt():
        result = run_demo(scenario, out, frames, steps, episodes, seed, stderr_console())
    if json:
        emit_json(result)


class _terminate_as_interrupt:  # noqa: N801 - reads as a sentence where it is used
    """Within the block SIGTERM ends like Ctrl-C, so that child processes are ended."""

    def __enter__(self) -> None:
        import signal

        self._previous = signal.signal(signal.SIGTERM, self._interrupt)

    def __exit__(self, *_: object) -> None:
        import signal

        signal.signal(signal.SIGTERM, self._previous)

    @staticmethod
    def _interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt
