"""What a training run's folder holds besides its checkpoints: its scenario, as it was.

The scenario is kept whole, under its own name (the name seeds its noise), with absolute
paths: a run can be evaluated, exported and resumed from any folder, also when the file that
it was started with has moved or changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cnn.common.errors import ConfigError, DataError, SliproadError
from cnn.common.files import write_text
from offload_env.scenario import Scenario, anchored, load_scenario, scenario_toml

POLICY: Final = "agent.policy"
CONFIG: Final = "config.json"
SCENARIO: Final = "scenario"
_CHECKSUM: Final = "# sha256 "
"""Start of a kept scenario's first line: the SHA-256 of the lines after it."""


def keep_scenario(scenario: Scenario, out: Path) -> Path:
    """Write ``out/scenario/NAME.toml``, in the place of what an earlier run kept there."""
    path = out / SCENARIO / f"{scenario.name}.toml"
    text = scenario_toml(anchored(scenario))
    write_text(path, _CHECKSUM + hashlib.sha256(text.encode()).hexdigest() + "\n" + text)
    for other in set(path.parent.glob("*.toml")) - {path}:
        if _is_kept(other):  # of a run that stood here before
            other.unlink()
    return path


def _is_kept(path: Path) -> bool:
    """Whether a file is, to the letter, what `keep_scenario` writes."""
    try:
        text = path.read_text()
        if text.startswith(_CHECKSUM):
            text = text.partition("\n")[2]
        return text == scenario_toml(load_scenario(path))
    except (OSError, ValueError, SliproadError):
        return False


def kept_scenario(out: Path) -> Scenario | None:
    """The scenario that a run's folder keeps; None if it keeps none (older runs).

    Raises:
        DataError: if there is more than one, or it is not as it was written.
    """
    files = sorted((out / SCENARIO).glob("*.toml"))
    if len(files) > 1:
        raise DataError(
            f"{out / SCENARIO} with {' and '.join(f.name for f in files)}",
            expected="one scenario",
            hint="remove those that are not the run's own",
        )
    return _whole(files[0]) if files else None


def _whole(path: Path) -> Scenario:
    """A kept scenario, if its checksum holds; older versions wrote none."""
    try:
        text = path.read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        digest = hashlib.sha256(rest.encode()).hexdigest()
        if not text.strip() or (first.startswith(_CHECKSUM) and first != _CHECKSUM + digest):
            raise ValueError("it is damaged or was edited: its checksum differs")
        return load_scenario(path)
    except (OSError, ValueError, ConfigError) as error:
        raise DataError(
            f"{path}: {error.given if isinstance(error, ConfigError) else error}",
            expected="the scenario of the run, as `sliproad agent train` kept it",
            hint="put it back, or train again into another folder",
        ) from error
