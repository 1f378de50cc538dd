"""docs/environment.md says what the code says."""

from __future__ import annotations

from pathlib import Path

from offload_env.describe import observation_table, scenario_table
from offload_env.scenario import scenario_names

PAGE = Path(__file__).parents[2] / "docs" / "environment.md"


def test_the_page_holds_the_tables_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert observation_table() in text, "run `python -m offload_env.describe` and paste"
    assert scenario_table() in text, "run `python -m offload_env.describe` and paste"
    for name in scenario_names():
        assert f"`{name}`" in text
