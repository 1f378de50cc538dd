"""What a training run's folder holds besides its checkpoints: its scenario, as it was.

The scenario is kept whole, under its own name (the name seeds its noise), with absolute
paths: a run can be evaluated, exported and resumed from any folder, also when the file that
it was started with has moved or changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cnn.errors import DataError, SliproadError
from cnn.files import write_text
from offload_env.scenario import Scenario, load_scenario
from offload_env.scenario_text import anchored, scenario_toml

POLICY: Final = "agent.policy"
CONFIG: Final = "config.json"
SCENARIO: Final = "scenario"


def keep_scenario(scenario: Scenario, out: Path) -> Path:
    """Write ``out/scenario/NAME.toml``, in the place of what an earlier run kept there."""
    path = out / SCENARIO / f"{scenario.name}.toml"
    write_text(path, scenario_toml(anchored(scenario)))
    for other in set(path.parent.glob("*.toml")) - {path}:
        if _is_kept(other):  # of a run that stood here before
            other.unlink()
    return path


def _is_kept(path: Path) -> bool:
    """Whether a file is, to the letter, what `keep_scenario` writes."""
    try:
        return path.read_text() == scenario_toml(load_scenario(path))
    except (OSError, ValueError, SliproadError):
        return False


def kept_scenario(out: Path) -> Scenario | None:
    """The scenario that a run's folder keeps; None if it keeps none (older runs).

    Raises:
        DataError: if there is more than one.
        ConfigError: if it cannot be read.
    """
    files = sorted((out / SCENARIO).glob("*.toml"))
    if len(files) > 1:
        raise DataError(
            f"{out / SCENARIO} with {' and '.join(f.name for f in files)}",
            expected="one scenario",
            mend="remove those that are not the run's own",
        )
    return load_scenario(files[0]) if files else None
