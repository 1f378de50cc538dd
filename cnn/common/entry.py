"""How every command of the project starts and ends: exit codes and one-line errors.

Exit codes: 0 done; 2 the user can fix it (bad input, an absent server, a missing extra);
130 interrupted; anything else that goes wrong is a bug and shows its traceback (code 1).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import typer

from cnn.common.errors import SliproadError
from cnn.common.option_checks import check_numbers

EXIT_USER_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""What Typer raises for a command line that it cannot read; it exports only this subclass."""

_PYTHONS: Final = (
    (re.compile(r"\[Errno -?\d+\] ([^:;\n]+)(?:: '[^']*'(?: -> '[^']*')?)?"), r"\1"),
    (re.compile(r"\bKeyError:? (?=')"), "no key "),
    (re.compile(r"\b[A-Z][A-Za-z]*(?:Error|Exception): "), ""),
    (re.compile(r"\b(?:Posix|Windows)Path\(('[^']*')\)"), r"\1"),
)
"""How Python writes its errors and paths, and what is said instead."""

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
    "requests": "train",
    "sb3_contrib": "train",
    "scipy": "train",
    "stable_baselines3": "train",
    "tensorboard": "train",
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
    """What to say if `error` is about a package of an extra that is not installed."""
    module = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(module)
    if extra is None:
        return None
    return (
        f"{module} is not installed; expected what the extra '{extra}' installs; "
        f"pip install 'sliproad[{extra}]'"
    )


def plain(message: str) -> str:
    """A message without what only Python says: error numbers, class names, quoted paths.

    The path stands before the system's reason already, since messages name what was given.
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
    except OSError:  # nobody reads, or a full disk: the exit code still says it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(code)
