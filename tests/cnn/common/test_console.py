"""Exit codes and one-line errors of every command, seen from another process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from cnn.common.console import missing_extra, plain

PROGRAM = """
import sys, time
import typer
from cnn.common.console import run_app
from cnn.common.errors import DataError

app = typer.Typer(pretty_exceptions_enable=False)

@app.command()
def good():
    print("result")

@app.command()
def user_error():
    raise DataError("no\\n  file x", expected="a file", hint="give one with --data")

@app.command()
def bug():
    raise RuntimeError("a bug")

@app.command()
def no_torch():
    sys.modules["torch"] = None
    import torch

@app.command()
def no_such_module():
    import a_module_that_is_not_there

@app.command()
def wait():
    print("waiting", flush=True)
    time.sleep(60)

@app.command()
def leave():
    raise typer.Exit(3)

run_app(app, prog_name="program")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_success_is_0_and_silent_on_stderr() -> None:
    done = run("good")
    assert (done.returncode, done.stdout, done.stderr) == (0, "result\n", "")


def test_user_error_is_2_and_one_line() -> None:
    done = run("user-error")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: no file x; expected a file; give one with --data\n"


def test_bug_keeps_its_traceback() -> None:
    done = run("bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: a bug" in done.stderr


def test_missing_extra_is_2_and_names_the_extra() -> None:
    done = run("no-torch")
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch is not installed; expected")
    assert "pip install 'sliproad[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "records x.parquet: [Errno 2] No such file or directory: 'x.parquet'; expected a file",
            "records x.parquet: No such file or directory; expected a file",
        ),
        ("[Errno 18] Invalid link: 'a' -> 'b'; try", "Invalid link; try"),
        ("model m.json: KeyError: 'name'; expected", "model m.json: no key 'name'; expected"),
        ("trace (ValueError: 3 rows); expected", "trace (3 rows); expected"),
        ("folder PosixPath('/x'); expected", "folder '/x'; expected"),
        ("accuracy 0.5: Errors come by track", "accuracy 0.5: Errors come by track"),
    ],
)
def test_messages_are_told_without_pythons_words(message: str, said: str) -> None:
    assert plain(message) == said


def test_missing_module_of_no_extra_is_a_bug() -> None:
    done = run("no-such-module")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_own_exit_codes_pass() -> None:
    assert run("leave").returncode == 3


def test_unknown_option_is_2() -> None:
    done = run("good", "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_interrupt_is_130_and_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr == "interrupted\n"


@pytest.mark.parametrize(
    ("module", "extra"), [("torch.nn", "train"), ("grpc_health.v1", "server"), ("nothing", None)]
)
def test_missing_extra_goes_by_the_top_level_name(module: str, extra: str | None) -> None:
    message = missing_extra(ModuleNotFoundError("gone", name=module))
    assert (message is None) if extra is None else (extra in str(message))
