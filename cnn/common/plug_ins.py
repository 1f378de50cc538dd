"""Plug-ins: parts of other packages, found by the entry points of their distributions.

The format is that of the Python packaging specifications ("Entry points"). A search reads the
metadata of the installed distributions alone; only a plug-in that is asked for is imported. What
a plug-in raises becomes one line that names it (`PlugIn.calling`). A name that is ours stays ours.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Final

from cnn.common.errors import ConfigError, SliproadError
from cnn.common.outside import said

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""A name may stand before a colon, or where a file's name may stand as well."""


@dataclass(frozen=True, slots=True)
class Group:
    """One sort of plug-ins.

    Attributes:
        entry_points: name of their group, such as ``sliproad.meters``.
        word: what one of them is called, such as ``meter``.
        ours: names of our own of that sort, which no plug-in gets.
    """

    entry_points: str
    word: str
    ours: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlugIn:
    """One entry point of an installed distribution.

    Attributes:
        group: of its entry point.
        name: by which it is asked for.
        value: its place, such as ``module:attribute``.
        distribution: name and version of the distribution that brings it.
        problem: why it cannot be used, known without importing it; empty if nothing is known.
    """

    group: Group
    name: str
    value: str
    distribution: str
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.group.word} {self.name} of {self.distribution} ({self.value})"

    @property
    def hint(self) -> str:
        """How to fix a plug-in that fails."""
        return (
            f"check what it was given, or correct or uninstall {self.distribution}; "
            "docs/plug-ins.md has the interface"
        )

    def load(self) -> Any:
        """Import it.

        Raises:
            ConfigError: it cannot be used, or its import raises.
        """
        if self.problem:
            raise ConfigError(
                f"{self}: {self.problem}",
                expected="a name of its own, of letters, digits, - and _",
                hint="rename its entry point, or uninstall it",
            )
        with self.calling():
            return EntryPoint(self.name, self.value, self.group.entry_points).load()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Within the block, whatever is raised becomes a `ConfigError` that names the plug-in.

        A `SliproadError`, with which a plug-in refuses its input, passes unchanged.
        """
        try:
            yield
        except SliproadError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{self} raised {type(error).__name__} ({said(error)})",
                expected=f"a {self.group.word} that works",
                hint=self.hint,
            ) from error


def is_name(text: str) -> bool:
    """Whether a plug-in can have this name."""
    return _NAME.fullmatch(text) is not None


def plug_ins(group: Group) -> list[PlugIn]:
    """All plug-ins of a group, by name; those that cannot be used have a `PlugIn.problem`."""
    found = _entry_points(group.entry_points, tuple(sys.path))
    times = Counter(entry.name for entry, _ in found)

    def problem(name: str) -> str:
        if not is_name(name):
            return "a name that nothing can ask for"
        if name in group.ours:
            return "a name of sliproad's own, which is used instead"
        return f"a name that {times[name]} plug-ins have" if times[name] > 1 else ""

    every = [PlugIn(group, e.name, e.value, brought, problem(e.name)) for e, brought in found]
    return sorted(every, key=lambda each: (each.name, each.distribution))


def plug_in(group: Group, name: str) -> PlugIn | None:
    """The plug-in of this name; None if there is none, or the name is ours or none of a plug-in."""
    if name in group.ours or not is_name(name):
        return None
    return next((each for each in plug_ins(group) if each.name == name), None)


def plug_in_names(group: Group) -> list[str]:
    """Names of the plug-ins of a group that can be asked for."""
    return [each.name for each in plug_ins(group) if not each.problem]


@lru_cache(maxsize=32)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[tuple[EntryPoint, str], ...]:
    """Entry points of a group, each with its distribution's name and version.

    Args:
        group: name of the group.
        path: where the distributions lie; the first of several with one name counts.
    """
    found: dict[str, list[tuple[EntryPoint, str]]] = {}
    for distribution in distributions(path=list(path)):
        try:
            name = re.sub(r"[-_.]+", "-", distribution.name).lower()
            if name not in found:
                found[name] = list(_of_distribution(distribution, group))
        except Exception:  # broken metadata of a package that need not have to do with us
            continue
    return tuple(each for of_one in found.values() for each in of_one)


def _of_distribution(distribution: Distribution, group: str) -> Iterator[tuple[EntryPoint, str]]:
    for entry in distribution.entry_points:
        if entry.group == group:
            yield entry, f"{distribution.name} {distribution.version}"
