"""Terminal conventions of every command: options, output, exit codes, one-line errors.

Progress goes to stderr, results to stdout. Exit codes: 0 done; 2 the user can fix it (bad
input, an absent server, a missing extra); 130 interrupted; anything else that goes wrong is a
bug and shows its traceback (code 1).
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console

from cnn.common.errors import MAX_INT, MAX_SEED, ConfigError, SliproadError, shown

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything random, from 0."),
]


def stderr_console() -> Console:
    """Console for progress and notes; standard output stays for results."""
    return Console(stderr=True)


def warn(text: str) -> None:
    """Print one line on standard error: a warning about something the user may have intended."""
    typer.echo(f"warning: {text}", err=True)


def given_options(context: typer.Context) -> set[str]:
    """Names of the parameters that were given on the command line."""
    sources = {p.name or "": context.get_parameter_source(p.name or "") for p in _params(context)}
    return {name for name, s in sources.items() if s is not None and s.name == "COMMANDLINE"}


def command_line(context: typer.Context) -> str:
    """The command line that gives the same options again, ready to paste into a shell."""
    words, given = context.command_path.split(), given_options(context)
    for parameter in _params(context):
        if parameter.name in given:
            value = context.params[parameter.name]
            option = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
            words += option if value is True else [*option, str(value)]
    return shlex.join(words)


def _params(context: typer.Context) -> list[Any]:
    return list(context.command.params)


def emit_json(result: dict[str, Any]) -> None:
    """Print `result` as one line of strict JSON (NaN and infinity become null)."""
    typer.echo(json.dumps(_plain(result), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


EXIT_USER_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""Typer's error for a command line that it cannot read; it exports only this subclass."""

_PYTHONS: Final = (
    (re.compile(r"\[Errno -?\d+\] ([^:;\n]+)(?:: '[^']*'(?: -> '[^']*')?)?"), r"\1"),
    (re.compile(r"\bKeyError:? (?=')"), "no key "),
    (re.compile(r"\b[A-Z][A-Za-z]*(?:Error|Exception): "), ""),
    (re.compile(r"\b(?:Posix|Windows)Path\(('[^']*')\)"), r"\1"),
)
"""Patterns of Python's error texts and paths, and their replacements."""

_EXTRA_OF: Final = {
    "cryptography": "signing",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "gymnasium": "train",
    "jinja2": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "pandas": "train",
    "pooch": "train",
    "prometheus_client": "server",
    "ray": "ray",
    "requests": "train",
    "sb3_contrib": "train",
    "scipy": "train",
    "stable_baselines3": "train",
    "tensorboard": "train",
    "threadpoolctl": "train",
    "torch": "train",
    "tqdm": "train",
}
"""Import name -> the extra of this distribution that installs it (pyproject.toml)."""


def run_app(
    app: typer.Typer, *, prog_name: str | None = None, args: Sequence[str] | None = None
) -> NoReturn:
    """Run a command-line application and leave the process with its exit code.

    Args:
        app: the Typer application.
        prog_name: name shown in the help; None is the name it was started by.
        args: arguments without the program's name; None is ``sys.argv[1:]``.
    """
    command = typer.main.get_command(app)
    check_numbers(command)
    try:
        code = command.main(args=args, prog_name=prog_name, standalone_mode=False)
    except SliproadError as error:
        fail(plain(str(error)))
    except _USAGE_ERROR as error:
        _usage(error)
    except typer.Abort:
        _leave("aborted", EXIT_USER_ERROR)
    except ModuleNotFoundError as error:
        message = missing_extra(error)
        if message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        _leave("interrupted", EXIT_INTERRUPTED)
    if code == EXIT_INTERRUPTED:  # Typer turns Ctrl-C into a silent exit
        _leave("interrupted", EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> NoReturn:
    """A command line that cannot be read: one line, as for any other error of the user."""
    message = error.format_message().strip()
    if not message or message.startswith("Usage:"):  # a group without a command shows its help
        error.show()
        sys.exit(EXIT_USER_ERROR)
    command = error.ctx.command_path if error.ctx is not None else "the command"
    fail(f"{message.rstrip('.')}; expected what {command} takes; its --help says what that is")


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The message if `error` is about a package of an extra that is not installed."""
    module = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(module)
    if extra is None:
        return None
    return (
        f"{module} is not installed; expected what the extra '{extra}' installs; "
        f"pip install 'sliproad[{extra}]'"
    )


def plain(message: str) -> str:
    """A message without Python's details: error numbers, class names, quoted paths.

    Messages name the given path already, before the system's reason.
    """
    for pattern, instead in _PYTHONS:
        message = pattern.sub(instead, message)
    return message


def fail(message: str) -> NoReturn:
    """Print ``error: message`` as one line on standard error and exit with code 2."""
    _leave(f"error: {' '.join(message.split())}", EXIT_USER_ERROR)


def _leave(line: str, code: int) -> NoReturn:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # no reader, or a full disk: the exit code still tells
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(code)


def check_numbers(command: Any) -> None:
    """Make a command and all below it refuse numbers that are not finite or beyond 64 bits.

    Ranges of single options (``min``, ``max``) do not: every comparison with NaN is false.

    Args:
        command: command or group, as `typer.main.get_command` gives it.
    """
    for sub in getattr(command, "commands", {}).values():
        check_numbers(sub)
    for parameter in command.params:
        parameter.callback = _checking(parameter.callback)


def _checking(then: Callable[..., Any] | None) -> Callable[..., Any]:
    def check(context: Any, parameter: Any, value: Any) -> Any:
        for each in value if isinstance(value, (tuple, list)) else (value,):
            _check_number(parameter.opts[0], each)
        return value if then is None else then(context, parameter, value)

    return check


def _check_number(option: str, value: Any) -> None:
    fine = True
    if isinstance(value, float):
        fine = math.isfinite(value)
    elif isinstance(value, int):
        fine = abs(value) <= MAX_INT
    if not fine:
        raise ConfigError(
            f"{option} {shown(value)}",
            expected="a finite number" if isinstance(value, float) else "a number of 64 bits",
            hint="correct the option",
        )
