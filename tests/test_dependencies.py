"""pyproject.toml names what the code imports, and `cnn.common.console` names the same extras."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

from cnn.common.console import _EXTRA_OF

ROOT = Path(__file__).parents[1]
PACKAGES = ("cnn", "testbed", "offload_env", "agents")

# Where a distribution's import name is not its own name with underscores.
IMPORT_NAME = {
    "grpcio": "grpc",
    "grpcio_health_checking": "grpc_health",
    "grpcio_reflection": "grpc_reflection",
    "pillow": "PIL",
    "protobuf": "google",
}
# Optional beyond the extras: used if a user has them, with a clear line if not.
USED_IF_PRESENT = {"cv2", "pynvml"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def import_names(requirements: list[str]) -> set[str]:
    names = set()
    for requirement in requirements:
        name = requirement.partition(">")[0].partition("[")[0].strip().replace("-", "_")
        names.add(IMPORT_NAME.get(name, name))
    return names


def third_party_imports() -> dict[str, str]:
    """Import name -> one module that imports it."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                else:
                    continue
                for name in names:
                    found[name.partition(".")[0]] = str(path.relative_to(ROOT))
    own = {*PACKAGES, *sys.stdlib_module_names}
    return {name: path for name, path in found.items() if name not in own}


@pytest.mark.slow(1)
def test_every_import_is_declared() -> None:
    extras = project()["optional-dependencies"]
    declared = import_names(project()["dependencies"])
    declared |= import_names(extras["train"]) | import_names(extras["server"])
    declared |= import_names(extras["signing"]) | import_names(extras["ray"]) | USED_IF_PRESENT
    undeclared = {n: path for n, path in third_party_imports().items() if n not in declared}
    assert not undeclared


def test_errors_about_missing_packages_name_the_right_extra() -> None:
    extras = project()["optional-dependencies"]
    expected = {
        n: extra
        for extra in ("train", "server", "signing", "ray")
        for n in import_names(extras[extra])
    }
    assert expected == _EXTRA_OF


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("-", "_"): version for name, version in pins.items()}


@pytest.mark.parametrize(
    "extra", [None, "train", "server", "signing", "camera", "ray", "dev", "docs"]
)
def test_every_dependency_is_pinned_without_a_local_label(extra: str | None) -> None:
    requirements = (
        project()["dependencies"] if extra is None else project()["optional-dependencies"][extra]
    )
    pins = constraints()
    for requirement in requirements:
        name = requirement.partition(">")[0].partition("[")[0].strip().lower().replace("-", "_")
        if name in {"setuptools", "sliproad"}:  # pip freeze leaves out the installer's own tools
            continue
        assert name in pins, f"{name} is not in constraints.txt: run `make constraints`"
        assert "+" not in pins[name]


def test_one_version_everywhere() -> None:
    import cnn

    assert "version" in project()["dynamic"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {cnn.__version__}" in changelog
