"""Every command line that the documentation or an error message names really exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from agents.cli import app

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
