"""A scenario as the text of a file that says the same, wherever it is read from."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from offload_env.scenario import Scenario


def scenario_toml(scenario: Scenario) -> str:
    """Every key of `scenario` as TOML; `parse_scenario` with its name gives the same again."""
    head = [f"description = {_value(scenario.description)}", ""]
    for section in fields(scenario):
        table = getattr(scenario, section.name)
        if is_dataclass(table):
            head.append(f"[{section.name}]")
            head += [f"{f.name} = {_value(getattr(table, f.name))}" for f in fields(table)]
            head.append("")
    return "\n".join(head)


def anchored(scenario: Scenario) -> Scenario:
    """The same scenario with the paths in it made absolute (they count from here)."""
    frames, device, link = scenario.frames, scenario.device, scenario.link
    if device.cost_model != "fitted":
        device = replace(device, cost_model=_absolute(device.cost_model))
    if link.folder:
        link = replace(link, folder=_absolute(link.folder))
    tables = {
        split: _absolute(name) if name.endswith(".npz") else name
        for split, name in (("train", frames.train), ("test", frames.test))
    }
    return replace(scenario, frames=replace(frames, **tables), device=device, link=link)


def _absolute(path: str) -> str:
    return str(Path(path).resolve())


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings escape as JSON's do, and DEL besides (toml.io/en/v1.0.0#string).
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
