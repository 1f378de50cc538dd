"""A TOML table becomes a tree of frozen dataclasses, strictly.

An unknown key, a wrong type or an impossible value (a `ConfigError` from a class's
``__post_init__``) is refused with the place where it stands. Types understood: ``str``,
``int``, ``float`` (an integer will do), ``bool``, ``tuple[X, ...]``, another dataclass, and
``X | None`` for a key that may be left out.
"""

from __future__ import annotations

import sys
import tomllib
import types
from collections.abc import Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from cnn.common.errors import MAX_INT, ConfigError, shown
from cnn.common.outside import file_bytes, refusing

T = TypeVar("T")
MAX_BYTES: Final = 2**20
"""A file that a person has written is far smaller."""
_MEND: Final = "correct it"


def read_toml(path: Path, cls: type[T]) -> T:
    """Read a file as a `cls`.

    Raises:
        ConfigError: if it cannot be read, is no TOML, or does not fit `cls`.
    """
    return parse_toml(toml_text(path), cls, str(path))


def toml_text(path: Path) -> str:
    """The text of a TOML file, which is UTF-8 and at most `MAX_BYTES` long; or `ConfigError`."""
    with refusing(
        ConfigError, str(path), expected="a readable TOML file in UTF-8", hint="check the path"
    ):
        return file_bytes(path, MAX_BYTES).decode("utf-8").replace("\r\n", "\n")


def parse_toml(text: str, cls: type[T], where: str) -> T:
    """The text of a file as a `cls`; `where` names it in messages. Raises as `read_toml`."""
    return build(cls, parse(text, where), where)


def parse(text: str, where: str) -> dict[str, Any]:
    """The text of a TOML file as a table; `ConfigError` says in which line it is wrong."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # ValueError: a date that is none, or a number of more digits than Python reads.
        what = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(
            f"{where}: {what}", expected="valid TOML", hint="correct that line"
        ) from error


def build(cls: type[T], raw: dict[str, Any], where: str, hidden: Set[str] = frozenset()) -> T:
    """Make dataclass `cls` from a TOML table; raises `ConfigError`.

    Args:
        cls: dataclass.
        raw: the table.
        where: named in messages.
        hidden: fields that no file may give, and no message mentions.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {shown(key)}",
                expected=f"one of {', '.join(sorted(known - hidden))}",
                hint="correct or remove the key",
            )
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in raw.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error.given}", expected=error.expected, hint=error.hint
        ) from None


def _value(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) in (types.UnionType, Union):
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, dict):
            return build(kind, value, where)
    elif get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if isinstance(value, list):
            return tuple(_value(item, v, where) for v in value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # false for NaN, too
            return float(value)
        raise ConfigError(f"{where} = {shown(value)}", expected="a finite number", hint=_MEND)
    elif type(value) is kind:
        if kind is not int or abs(value) <= MAX_INT:
            return value
        raise ConfigError(f"{where} = {shown(value)}", expected="a number of 64 bits", hint=_MEND)
    raise ConfigError(
        f"{where} = {shown(value)}", expected=f"a value of type {_name_of(kind)}", hint=_MEND
    )


def _name_of(kind: Any) -> str:
    """A type as a reader of TOML calls it."""
    if get_origin(kind) is tuple:
        return f"list of {_name_of(get_args(kind)[0])}"
    return "table" if is_dataclass(kind) else str(kind.__name__)
