"""Pins every dependency to the oldest version that its range in pyproject.toml allows.

    python .ci/lower_bounds.py [--keep NAME=VERSION ...] > oldest.txt

writes constraints for pip. Tools (the extras dev and docs) are left out: nobody who uses the
package installs them. ``--keep`` pins a package to another version. Needs `packaging`.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
TOOLS = ("dev", "docs")


def lower_bound(requirement: Requirement) -> str:
    """The version after ``>=``.

    Raises:
        ValueError: without one.
    """
    for specifier in requirement.specifier:
        if specifier.operator == ">=":
            return specifier.version
    raise ValueError(f"{requirement} has no lower bound")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", nargs="*", default=[], metavar="NAME=VERSION")
    kept = dict(word.split("=", 1) for word in parser.parse_args().keep)
    project = tomllib.loads(PROJECT.read_text())["project"]
    lines = list(project["dependencies"])
    for extra, wanted in project["optional-dependencies"].items():
        lines += [] if extra in TOOLS else wanted
    for requirement in sorted(map(Requirement, lines), key=lambda r: canonicalize_name(r.name)):
        name = canonicalize_name(requirement.name)
        print(f"{name}=={kept.get(name) or lower_bound(requirement)}")


if __name__ == "__main__":
    main()
