"""The package's own names: each is found in its module, once it is asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import testbed


@pytest.mark.parametrize("name", testbed.__all__)
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(testbed, name) is not None
    assert name in dir(testbed)


def test_what_a_type_checker_sees_is_what_is_public() -> None:
    tree = ast.parse(Path(str(testbed.__file__)).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == sorted(testbed.__all__)
    for name, module in seen.items():
        found = getattr(testbed, name)
        assert getattr(found, "__module__", module) == module, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testbed.nothing  # noqa: B018


def test_examples_import_the_testbed_from_the_package_alone() -> None:
    for path in (Path(str(testbed.__file__)).parents[1] / "examples").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not module.startswith("testbed."), path.name
