"""Every command line that the documentation or an error message names really exists."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from agents.cli import app
from agents.train_config import STAGED_SETTINGS, TrainConfig
from offload_env.scenario import Scenario, load_scenario, parse_scenario, scenario_names
from testbed.records.measurement import Measurement

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    path
    for package in ("cnn", "testbed", "offload_env", "agents", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
)
ROOT_COMMAND = typer.main.get_command(app)


def problem(line: str, *, whole: bool = False) -> str | None:
    """What is wrong with the command line `line`, which starts with ``sliproad``.

    Args:
        line: the command line.
        whole: it must be ready to run; otherwise it may leave required options out.
    """
    command, words, path = ROOT_COMMAND, shlex.split(line, comments=True)[1:], "sliproad"
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        word = words.pop(0)
        if "|" in word:  # "sliproad cnn train|evaluate": each of them
            wrong = [w for w in word.split("|") if w not in command.commands]
            return f"{path} has no {wrong}" if wrong else None
        if word not in command.commands:
            return f"{path} has no command {word!r}"
        command, path = command.commands[word], f"{path} {word}"
    if whole and not {"--help", "-h", "--version"} & set(words):
        try:
            command.make_context(path, words)
        except Exception as error:  # Typer's usage errors have no public base class
            return f"{path}: {type(error).__name__} {error}"
        return None
    options = {"--help", "-h", "--version"}
    for parameter in command.params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    wrong = [w for w in words if w.startswith("-") and w.partition("=")[0] not in options]
    return f"{path} has no option {wrong}" if wrong else None


def command_lines(text: str) -> Iterator[tuple[str, bool]]:
    """(line, in a fenced block) of what starts with ``sliproad`` in blocks or inline code."""
    inside = False
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside:
            found = re.match(r"\s*(?:\$ )?(sliproad .*)", line)
            if found:
                yield re.split(r"\s+[|&>]", found[1])[0], True
        else:
            for found in re.findall(r"`(sliproad [^`]*)`", line):
                yield found, False


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_documentation_exist(page: Path) -> None:
    lines = command_lines(page.read_text())
    wrong = {line: bad for line, whole in lines if (bad := problem(line, whole=whole))}
    assert not wrong


def test_commands_in_messages_and_docstrings_exist() -> None:
    wrong = {}
    for path in SOURCES:
        for line in re.findall(r"`+(sliproad [a-z][^`\n{}\"]*)`", path.read_text()):
            bad = problem(line)
            if bad:
                wrong[f"{path.relative_to(ROOT)}: {line}"] = bad
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [t for t in targets if "://" not in t and not t.startswith("mailto:")]
    assert [t for t in local if not (page.parent / t).exists()] == []


def test_benchmarks_and_scripts_named_in_the_documentation_exist() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\b((?:benchmarks|examples)/\w+\.py)", page.read_text())
    }
    assert {name for name in named if not (ROOT / name).is_file()} == set()


# --- Tables that are made from the code -------------------------------------------------------

UNITS = {"ms": "ms", "s": "s", "mj": "mJ", "mbps": "Mbit/s", "bytes": "bytes", "c": "C"}


def unit_of(name: str) -> str:
    """By the ending of a name, as all names of the project have it."""
    return UNITS.get(name.rpartition("_")[2] if "_" in name else "", "")


def attributes(cls: type) -> dict[str, str]:
    """What a class's docstring says of each of its attributes, as Markdown in one line."""
    # Without the indentation of the class, which Python 3.13 leaves out by itself.
    text = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for line in text.splitlines():
        if start := re.match(r" {4}(\w+): (.*)", line):
            found[start[1]] = start[2]
        elif line.startswith(" " * 8) and found:
            found[next(reversed(found))] += " " + line.strip()
        else:
            break
    return {name: re.sub(r"`+([^`]+)`+", r"`\1`", said) for name, said in found.items()}


def scenario_table() -> str:
    """Every key of a scenario file, with its default, unit and meaning."""
    rows = ["| key | default | unit | meaning |", "|---|---|---|---|"]
    rows.append('| `description` | `""` | | one sentence. |')
    for section, cls in get_type_hints(Scenario).items():
        if not is_dataclass(cls):
            continue
        meaning = attributes(cls)
        for f in fields(cls):
            shown = json.dumps(list(f.default) if isinstance(f.default, tuple) else f.default)
            unit = unit_of(f.name)
            rows.append(f"| `{section}.{f.name}` | `{shown}` | {unit} | {meaning[f.name]} |")
    return "\n".join(rows)


def record_table() -> str:
    """Every column of a record file, with its type, unit and meaning."""
    types = {int: "integer", float: "number", bool: "yes or no", str: "text"}
    meaning = attributes(Measurement)
    rows = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for name, kind in get_type_hints(Measurement).items():
        options = get_args(kind) or (kind,)
        empty = ", may be empty" if type(None) in options else ""
        said = meaning[name].replace("None", "empty")
        rows.append(f"| `{name}` | {types[options[0]]}{empty} | {unit_of(name)} | {said} |")
    return "\n".join(rows)


TABLES: list[tuple[str, Callable[[], str]]] = [
    ("environment.md", scenario_table),
    ("deploy.md", record_table),
]


@pytest.mark.parametrize(("page", "table"), TABLES)
def test_tables_of_keys_and_columns_say_what_the_code_says(
    page: str, table: Callable[[], str]
) -> None:
    """`python tests/test_docs.py` writes them anew."""
    assert table() in (ROOT / "docs" / page).read_text()


def write_tables() -> None:
    """Replace the tables in the pages by what the code says now."""
    for page, table in TABLES:
        path, new = ROOT / "docs" / page, table()
        text = path.read_text()
        start = text.index(new.splitlines()[0])
        path.write_text(text[:start] + new + text[text.index("\n\n", start) :])


def test_the_default_length_of_a_training_is_in_its_help() -> None:
    steps = next(p for p in ROOT_COMMAND.commands["agent"].commands["train"].params
                 if p.name == "steps")  # fmt: skip
    assert f"{TrainConfig().steps:,}" in steps.help
    assert f"{STAGED_SETTINGS['steps']:,}" in steps.help
    sweep = ROOT_COMMAND.commands["agent"].commands["sweep"]
    assert f"{TrainConfig().steps:,}" in next(p for p in sweep.params if p.name == "steps").help


def test_messages_and_help_use_plain_words() -> None:
    """Not `hint`, `go on from` or `dear`; `hint=` is the name of an argument."""
    odd = re.compile(r"\bmend(s|ed|ing)?\b(?!=)|\bgo(es)? on from\b|\bdear(er|est)?\b", re.I)
    texts = {str(p.relative_to(ROOT)): p.read_text() for p in PAGES}
    wrong = [f"{page}: {m[0]}" for page, text in texts.items() for m in odd.finditer(text)]
    for path, command in all_commands(ROOT_COMMAND, "sliproad"):
        helps = [command.help or "", *(getattr(p, "help", "") or "" for p in command.params)]
        wrong += [f"{path}: {m[0]}" for text in helps for m in odd.finditer(text)]
    assert wrong == []


def all_commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, command) of a command and of all below it."""
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from all_commands(sub, f"{path} {name}")


def test_every_shipped_scenario_is_listed_and_printed() -> None:
    listed = CliRunner().invoke(app, ["agent", "scenarios"]).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(scenario_names())
    for name in scenario_names():
        text = CliRunner().invoke(app, ["agent", "scenarios", name]).stdout
        assert parse_scenario(text, name) == load_scenario(name)


def test_every_benchmark_is_in_reproduce() -> None:
    text = (ROOT / "docs" / "reproduce.md").read_text()
    names = {f"benchmarks/{p.name}" for p in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert {name for name in names if name not in text} == set()


@pytest.mark.parametrize(
    ("line", "whole", "wrong"),
    [
        ("sliproad cnn info --json", True, False),
        ("sliproad cnn no-such", False, True),
        ("sliproad cnn info --no-such", False, True),
        ("sliproad cnn info too-much", True, True),
        ("sliproad cnn train|evaluate", False, False),
        ("sliproad cnn table", False, False),
        ("sliproad cnn table", True, True),  # --out is missing
        ("sliproad testbed serve --port eighty", True, True),
    ],
)
def test_the_reader_finds_what_it_should(line: str, whole: bool, wrong: bool) -> None:
    assert bool(problem(line, whole=whole)) == wrong


if __name__ == "__main__":
    write_tables()
