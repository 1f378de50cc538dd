"""Strict conversion of a TOML table into a tree of frozen dataclasses.

An unknown key, a wrong type or an impossible value (a `ConfigError` from a class's
``__post_init__``) is refused, and the error names its place. Types understood: ``str``, ``int``,
``float`` (an integer is accepted), ``bool``, ``tuple[X, ...]``, another dataclass, and
``X | None`` for a key that may be left out. A number's range is declared with it (`ranged`).

Written by hand: msgspec names an unknown key but not the known ones, pydantic and cattrs need
several lines for an error, and nothing else here needs any of them.
"""

from __future__ import annotations

import sys
import tomllib
import types
from collections.abc import Set
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from cnn.common.errors import MAX_INT, ConfigError, in_range, shown
from cnn.common.outside import file_bytes, refusing

T = TypeVar("T")
MAX_BYTES: Final = 2**20
"""A file written by a person is far smaller."""
_HINT: Final = "correct the setting"


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
    """The text of a TOML file as a table; a `ConfigError` gives the line of an error."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # ValueError: an impossible date, or a number of more digits than Python reads.
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
        hidden: fields that a file may not give, and that messages do not mention.
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


def ranged(default: Any, low: float, high: float) -> Any:
    """A dataclass field for a number with its range, both ends included; see `check_ranges`."""
    return field(default=default, metadata={"range": (low, high)})


def check_ranges(section: Any) -> None:
    """Raise `ConfigError` unless every `ranged` field of a dataclass is None or in its range."""
    for each in fields(section):
        value = getattr(section, each.name)
        if "range" in each.metadata and value is not None:
            low, high = each.metadata["range"]
            in_range(each.name, value, low, high)


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
        if abs(value) <= sys.float_info.max:  # also false for NaN
            return float(value)
        raise ConfigError(f"{where} = {shown(value)}", expected="a finite number", hint=_HINT)
    elif type(value) is kind:
        if kind is not int or abs(value) <= MAX_INT:
            return value
        raise ConfigError(f"{where} = {shown(value)}", expected="a number of 64 bits", hint=_HINT)
    raise ConfigError(
        f"{where} = {shown(value)}", expected=f"a value of type {_name_of(kind)}", hint=_HINT
    )


def _name_of(kind: Any) -> str:
    """The name of a type for a user of TOML."""
    if get_origin(kind) is tuple:
        return f"list of {_name_of(get_args(kind)[0])}"
    return "table" if is_dataclass(kind) else str(kind.__name__)
