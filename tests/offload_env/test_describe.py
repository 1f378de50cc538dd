"""docs/environment.md says what the code says.

``python tests/offload_env/test_describe.py`` prints its tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnn.topology import SHIPPED
from offload_env.scenario import load_scenario, scenario_names
from testbed.policy.observation_fields import Field, schema_of

SCHEMA = schema_of(SHIPPED)

PAGE = Path(__file__).parents[2] / "docs" / "environment.md"


def observation_table(fields: Sequence[Field] = SCHEMA.staged_fields) -> str:
    """One row a field."""
    head = (
        "| index | name | unit | low | high | scale | told apart | source |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| {f.index} | `{f.name}` | {f.unit} | {f.low:g} | {f.high:g} | {f.scale} | "
        f"{_reach(f)} | {f.source} |"
        for f in fields
    )


def _reach(field: Field) -> str:
    return "" if field.reach is None else f"{field.least:g} to {field.most:g}"


def scenario_table() -> str:
    """One row a shipped scenario."""
    head = (
        "| scenario | full local | device and modem | link | others' load | frame period | "
        "time-out | deadline |\n|---|---|---|---|---|---|---|---|\n"
    )
    rows = []
    for name in scenario_names():
        s = load_scenario(name)
        power = s.device.power.replace("+", ", ") or "the cost model's"
        rows.append(
            f"| `{name}` | {s.device.full_local_ms:g} ms | {power} | {s.link.kind} | "
            f"{s.server.utilisation:.0%} of {s.server.service_ms:g} ms jobs | "
            f"{s.timing.period_ms:g} ms | {s.timing.timeout_ms:g} ms | "
            f"{s.timing.deadline_ms:g} ms |"
        )
    return head + "\n".join(rows)


def test_the_page_holds_the_tables_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert observation_table() in text, "paste what this module prints"
    assert scenario_table() in text, "paste what this module prints"
    for name in scenario_names():
        assert f"`{name}`" in text


if __name__ == "__main__":
    print(observation_table(), scenario_table(), sep="\n\n")
