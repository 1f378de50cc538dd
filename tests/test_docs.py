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


def problem(line: str) -> str | None:
    """What is wrong with the command line `line`, which starts with ``sliproad``."""
    command, words, path = ROOT_COMMAND, shlex.split(line, comments=True)[1:], "sliproad"
    words = [word for word in words if word not in {"&", "|", ">"}]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        word = words.pop(0)
        if "|" in word:  # "sliproad cnn train|evaluate": each of them
            wrong = [w for w in word.split("|") if w not in command.commands]
            return f"{path} has no {wrong}" if wrong else None
        if word not in command.commands:
            return f"{path} has no command {word!r}"
        command, path = command.commands[word], f"{path} {word}"
    options = {"--help", "-h", "--version"}
    for parameter in command.params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    wrong = [w for w in words if w.startswith("-") and w.partition("=")[0] not in options]
    return f"{path} has no option {wrong}" if wrong else None


def command_lines(text: str) -> Iterator[str]:
    """Lines of fenced blocks and inline code that start with ``sliproad``."""
    inside = False
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside:
            found = re.match(r"\s*(?:\$ )?(sliproad .*)", line)
            if found:
                yield found[1]
        else:
            yield from re.findall(r"`(sliproad [^`]*)`", line)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_documentation_exist(page: Path) -> None:
    wrong = {line: bad for line in command_lines(page.read_text()) if (bad := problem(line))}
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
        for name in re.findall(r"\b((?:benchmarks|examples|scripts)/\w+\.py)", page.read_text())
    }
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_benchmark_is_in_reproduce() -> None:
    text = (ROOT / "docs" / "reproduce.md").read_text()
    names = {f"benchmarks/{p.name}" for p in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert {name for name in names if name not in text} == set()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("sliproad cnn info --json", False),
        ("sliproad cnn no-such", True),
        ("sliproad cnn info --no-such", True),
        ("sliproad cnn train|evaluate", False),
    ],
)
def test_the_reader_finds_what_it_should(line: str, wrong: bool) -> None:
    assert bool(problem(line)) == wrong
