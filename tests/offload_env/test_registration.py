"""Importing the package makes the environments known; nothing else is needed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import pytest

import offload_env
from offload_env.registration import IDS

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which nothing has been imported, and warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow(6)
@pytest.mark.parametrize(
    "code",
    [
        "import offload_env, gymnasium; gymnasium.make('sliproad/Offload-v0')",
        "import gymnasium, offload_env; gymnasium.spec('sliproad/OffloadStaged-v0')",
        "import gymnasium, offload_env; gymnasium.register_envs(offload_env);"
        "gymnasium.make_vec('sliproad/OffloadStaged-v0', 2)",
        "import gymnasium; gymnasium.make('offload_env:sliproad/Offload-v0')",
        "import gymnasium; gymnasium.make('offload_env.registration:sliproad/Offload-v0')",
        "import offload_env, gymnasium; offload_env.register(); offload_env.register();"
        "gymnasium.spec('sliproad/Offload-v0')",
        "import offload_env.scenario, gymnasium; gymnasium.spec('sliproad/OffloadLive-v0')",
    ],
)
def test_every_usual_way_leads_to_an_environment(code: str) -> None:
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_registering_imports_no_environment() -> None:
    done = run_python(
        "import offload_env, sys;"
        "print(*sorted(m for m in sys.modules if m.startswith(('offload_env.', 'testbed', 'PIL'))))"
    )
    loaded = set(done.stdout.split())
    assert done.returncode == 0
    assert not {"offload_env.env", "offload_env.vector_env", "offload_env.live_env", "PIL"} & loaded


def test_without_gymnasium_the_package_imports_and_only_register_fails() -> None:
    done = run_python(
        "import sys; sys.modules['gymnasium'] = None\n"
        "import offload_env\n"
        "offload_env.load_scenario('urban-5g')\n"
        "try: offload_env.register()\n"
        "except ModuleNotFoundError: print('absent')"
    )
    assert (done.returncode, done.stdout) == (0, "absent\n"), done.stderr


def test_what_was_registered_once_stays() -> None:
    before = {name: gym.registry[name] for name in IDS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        offload_env.register()
    assert all(gym.registry[name] is spec for name, spec in before.items())
    taken = gym.registry.pop("sliproad/Offload-v0")
    offload_env.register()
    assert gym.registry["sliproad/Offload-v0"] == taken
