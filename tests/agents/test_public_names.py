"""The package's own names: each is found in its module, once it is asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import agents


@pytest.mark.parametrize("name", agents.__all__)
def test_every_public_name_is_found(name: str) -> None:
    found = getattr(agents, name)
    assert found.__module__.startswith("agents.")
    assert name in dir(agents)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agents.nothing  # noqa: B018


def test_examples_import_the_agents_from_the_package_alone() -> None:
    for path in (Path(agents.__file__).parents[1] / "examples").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not module.startswith("agents."), path.name
