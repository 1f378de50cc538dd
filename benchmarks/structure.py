"""Counts the structure of a checkout: sizes, circles, upward imports, what is said twice.

    python benchmarks/structure.py [--at PATH] [--json]
    python benchmarks/structure.py --picture docs/architecture.svg

Reads the source with `ast` and imports none of it, so any commit can be counted: give a worktree
of it to --at. Prints a table, or with --json one object: {"modules", "lines", "packages": {name:
[modules, lines]}, "module_circles", "folder_circles", "upward_packages", "upward_testbed",
"double_names", "decision_loops", "staged_loops", "atomic_writes", "energy_per_byte",
"capacity_inverses", "exchange_sums", "action_tables", "free_ports", "waits"}, lists of
places but for the first three. The rules stand at the functions that count.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[1]
PACKAGES: Final = ("cnn", "testbed", "offload_env", "agents")
"""A package imports from those before it."""
RANKS: Final = {
    name: rank
    for rank, names in enumerate(
        (
            ("common",),
            ("wire", "traces"),
            ("link", "records"),
            ("meters",),
            ("policy", "decide"),
            ("device",),
            ("costs", "server"),
            ("deploy", "service"),
            ("cli", "commands"),
        )
    )
    for name in names
}
"""Folders of testbed, with their names of older commits: one imports from lower ranks."""

Graph = Mapping[str, set[str]]


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed file.

    Attributes:
        path: from the root, with slashes.
        name: dotted; a package's is that of its folder.
        lines: of the file.
        tree: its syntax.
    """

    path: str
    name: str
    lines: int
    tree: ast.Module

    @property
    def folder(self) -> str:
        """Dotted name of the folder that the file is in."""
        is_package = self.path.endswith("/__init__.py")
        return self.name if is_package else self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Structure:
    """What was counted; places are ``path:line name`` or ``importer -> imported``."""

    modules: int
    lines: int
    packages: dict[str, tuple[int, int]]
    module_circles: list[str]
    folder_circles: list[str]
    upward_packages: list[str]
    upward_testbed: list[str]
    double_names: list[str]
    decision_loops: list[str]
    staged_loops: list[str]
    atomic_writes: list[str]
    energy_per_byte: list[str]
    capacity_inverses: list[str]
    exchange_sums: list[str]
    action_tables: list[str]
    free_ports: list[str]
    waits: list[str]


LABELS: Final = {
    "modules": "modules in the four packages",
    "lines": "lines in them",
    "module_circles": "import circles of modules (imports inside functions count)",
    "folder_circles": "import circles of a package's folders",
    "upward_packages": "imports against the order of the packages",
    "upward_testbed": "imports against the order of testbed's folders",
    "double_names": "file names that mean two things",
    "decision_loops": "loops that ask a policy",
    "staged_loops": "of these, loops over the decision points of a frame",
    "atomic_writes": "places of the atomic rename",
    "energy_per_byte": "places of the energy of a byte",
    "capacity_inverses": "places of the capacity's inverse",
    "exchange_sums": "places that add an exchange up",
    "action_tables": "tables derived from the list of actions",
    "free_ports": "tests: functions that find a free port",
    "waits": "tests: functions that poll until something holds",
}


def read_modules(root: Path, folder: str) -> list[Module]:
    """Every module below a folder of the root, in the order of its path."""
    modules = []
    for path in sorted((root / folder).rglob("*.py")):
        inside = path.relative_to(root)
        parts = inside.parts[:-1] if inside.name == "__init__.py" else inside.with_suffix("").parts
        text = path.read_text()
        name = ".".join(parts)
        modules.append(Module(inside.as_posix(), name, text.count("\n"), ast.parse(text)))
    return modules


def imports(module: Module, known: set[str]) -> Iterator[str]:
    """Modules of `known` that a module imports, one for each import; at any depth of the code.

    ``from a import b`` is an import of a.b where that is a module, otherwise of a; a call
    of ``import_module("a.b")`` counts as well.
    """
    for node in ast.walk(module.tree):
        wanted: list[str] = []
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.folder.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            wanted = [name for name in inner if name in known]
            if len(wanted) < len(inner):
                wanted.append(base)
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            first = node.args[0]
            wanted = [str(first.value)] if isinstance(first, ast.Constant) else []
        yield from (name for name in wanted if name in known and name != module.name)


def circles(graph: Graph) -> list[list[str]]:
    """Sets of two or more that import each other, directly or not (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for name in sorted(graph):
        if name not in order:
            visit(name)
    return sorted(found)


def against_order(importer: str, imported: str) -> str:
    """``packages`` or ``testbed`` if an import points up in that order; empty otherwise."""
    here, there = importer.split("."), imported.split(".")
    if here[0] != there[0]:
        up = PACKAGES.index(there[0]) > PACKAGES.index(here[0])
        return "packages" if up else ""
    if here[0] != "testbed" or len(here) < 2 or len(there) < 2:
        return ""
    if here[1] not in RANKS or there[1] not in RANKS:
        return ""
    return "testbed" if RANKS[there[1]] > RANKS[here[1]] else ""


def _called(node: ast.AST) -> str:
    """Last part of the name that is called; empty if this is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Outermost functions and methods; a function inside another one is part of it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from functions(node)


_LOOPS: Final = (
    ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
)  # fmt: skip


def asks_in_loop(function: ast.FunctionDef | ast.AsyncFunctionDef, least_arguments: int) -> bool:
    """Whether a function calls ``decide`` or ``decide_batch`` in a loop or in recursion.

    A loop is a for, a while or a comprehension; recursion is a call of the function's own name.
    A call with a second argument names the decision point: its loop goes through a frame. A policy
    that asks another one, in a method of these names, is none.
    """
    asking = ("decide", "decide_batch")
    if function.name in asking:
        return False
    inside = [function] if function.name in map(_called, ast.walk(function)) else []
    loops = [node for node in ast.walk(function) if isinstance(node, _LOOPS)]
    return any(
        isinstance(node, ast.Call)
        and _called(node) in asking
        and isinstance(node.func, ast.Attribute)
        and len(node.args) + len(node.keywords) >= least_arguments
        for loop in (*inside, *loops)
        for node in ast.walk(loop)
    )


def is_atomic_write(node: ast.AST) -> bool:
    """A rename of a file: ``os.replace`` or ``os.rename``, or a path's, which takes one argument
    (a text's ``replace`` takes two, a date's or a dataclass's takes names)."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
    n_arguments = 2 if of_os else 1
    return (
        node.func.attr in ("replace", "rename")
        and len(node.args) == n_arguments
        and not node.keywords
    )


def is_energy_per_byte(node: ast.AST) -> bool:
    """A product of a power in mW per Mbit/s with 8e-6, the bits of a byte in millions."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    return _is_power(node.left) and _is_8e_6(node.right)


def _is_8e_6(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == 8e-6


def _is_power(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr.endswith("mw_per_mbps")


def is_capacity_inverse(node: ast.AST) -> bool:
    """A search (bisect, searchsorted) for the moment at which so many bits have passed."""
    searches = ("searchsorted", "bisect_left", "bisect_right", "bisect")
    return _called(node) in searches and any(
        isinstance(part, ast.Name) and part.id == "SLACK_BITS" for part in ast.walk(node)
    )


def is_exchange_sum(node: ast.AST) -> bool:
    """A sum with an exchange's fixed part, ``net_ms``, as a term."""
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and any(
        str(getattr(term, "attr", getattr(term, "id", ""))).endswith("net_ms")
        for term in (node.left, node.right)
    )  # fmt: skip


def is_action_table(node: ast.AST) -> bool:
    """A comprehension over the list of actions: ``ACTIONS``, or ``actions`` of a topology."""
    if not isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return False
    first = node.generators[0].iter
    if _called(first) == "enumerate" and isinstance(first, ast.Call):
        first = first.args[0]
    return getattr(first, "id", "") == "ACTIONS" or (
        isinstance(first, ast.Attribute) and first.attr in ("ACTIONS", "actions")
    )


def finds_free_port(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it binds port 0 of an address and asks for the name that the socket got."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    binds_any = any(
        _called(call) == "bind"
        and call.args
        and isinstance(call.args[0], ast.Tuple)
        and isinstance(call.args[0].elts[-1], ast.Constant)
        and call.args[0].elts[-1].value == 0
        for call in calls
    )
    return binds_any and "getsockname" in map(_called, calls)


def polls(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it sleeps in a while loop."""
    loops = [node for node in ast.walk(function) if isinstance(node, ast.While)]
    return any("sleep" in map(_called, ast.walk(loop)) for loop in loops)


def nodes(modules: Iterable[Module], counts: Callable[[ast.AST], bool]) -> list[str]:
    """Places of the nodes that count."""
    return [
        f"{module.path}:{getattr(node, 'lineno', 0)}"
        for module in modules
        for node in ast.walk(module.tree)
        if counts(node)
    ]


def definitions(
    modules: Iterable[Module], counts: Callable[[ast.FunctionDef | ast.AsyncFunctionDef], bool]
) -> list[str]:
    """Places of the functions that count."""
    return [
        f"{module.path}:{function.lineno} {function.name}"
        for module in modules
        for function in functions(module.tree)
        if counts(function)
    ]


def count(root: Path) -> Structure:
    """Count the checkout at `root`.

    Raises:
        OSError: if a file cannot be read.
        SyntaxError: if one is no Python.
    """
    by_package = {package: read_modules(root, package) for package in PACKAGES}
    modules = [module for found in by_package.values() for module in found]
    tests = read_modules(root, "tests")
    folder_of = {module.name: module.folder for module in modules}
    graph: dict[str, set[str]] = {
        module.name: set(imports(module, set(folder_of))) for module in modules
    }
    pairs = [(here, there) for here, others in graph.items() for there in sorted(others)]
    folders: dict[str, set[str]] = defaultdict(set)
    for here, there in pairs:
        a, b = (".".join(folder_of[name].split(".")[:2]) for name in (here, there))
        if a != b and "." in a and "." in b:
            folders[a].add(b)
    upward = {
        order: [f"{a} -> {b}" for a, b in pairs if against_order(a, b) == order]
        for order in ("packages", "testbed")
    }
    names = Counter(Path(module.path).name for module in modules)
    return Structure(
        modules=len(modules),
        lines=sum(module.lines for module in modules),
        packages={
            package: (len(found), sum(module.lines for module in found))
            for package, found in by_package.items()
        },
        module_circles=[" <-> ".join(circle) for circle in circles(graph)],
        folder_circles=[" <-> ".join(circle) for circle in circles(folders)],
        upward_packages=upward["packages"],
        upward_testbed=upward["testbed"],
        double_names=sorted(n for n, k in names.items() if k > 1 and not n.startswith("__")),
        decision_loops=definitions(modules, lambda function: asks_in_loop(function, 1)),
        staged_loops=definitions(modules, lambda function: asks_in_loop(function, 2)),
        atomic_writes=nodes(modules, is_atomic_write),
        energy_per_byte=nodes(modules, is_energy_per_byte),
        capacity_inverses=nodes(modules, is_capacity_inverse),
        exchange_sums=nodes(modules, is_exchange_sum),
        action_tables=nodes(modules, is_action_table),
        free_ports=definitions(tests, finds_free_port),
        waits=definitions(tests, polls),
    )


def flow(root: Path) -> dict[tuple[str, str], int]:
    """Modules that import from a part to another one, a part being a package or, of testbed, a
    folder: (importing part, imported part) -> pairs of modules."""
    modules = [module for package in PACKAGES for module in read_modules(root, package)]
    known = {module.name for module in modules}
    parts: Counter[tuple[str, str]] = Counter()
    for module in modules:
        for other in sorted(set(imports(module, known))):
            here, there = _part(module.name), _part(other)
            if here and there and here != there:
                parts[here, there] += 1
    return dict(parts)


def _part(module: str) -> str:
    """Empty for the modules of testbed that are in no folder of it."""
    package, _, rest = module.partition(".")
    if package != "testbed":
        return package
    folder = rest.partition(".")[0]
    return f"testbed.{folder}" if folder in RANKS else ""


def show(structure: Structure) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "count", "where", title="Structure")
    for field in fields(structure):
        value = getattr(structure, field.name)
        if field.name == "packages":
            for package, (modules, lines) in value.items():
                table.add_row(f"  {package}: modules, lines", f"{modules}, {lines:,}", "")
        elif isinstance(value, int):
            table.add_row(LABELS[field.name], f"{value:,}", "")
        else:
            places = "\n".join([*value[:5], "..."] if len(value) > 5 else value)
            table.add_row(LABELS[field.name], str(len(value)), places)
    Console(width=150, soft_wrap=False).print(table)


def main() -> None:
    """Count, and print or draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--at", type=Path, default=ROOT, help="root of the checkout to count")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--picture", type=Path, help="draw the imports into this SVG file instead")
    given = parser.parse_args()
    if not (given.at / PACKAGES[0]).is_dir():
        raise SystemExit(f"error: {given.at}; expected a checkout with {', '.join(PACKAGES)}")
    if given.picture is not None:
        from _structure_picture import draw

        draw(flow(given.at), given.picture)
        return
    structure = count(given.at)
    if given.json:
        print(json.dumps(asdict(structure)))
    else:
        show(structure)


if __name__ == "__main__":
    main()
