"""One self-contained HTML page of an evaluation: tables, and pictures inlined as PNG."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment

from cnn.common.files import write_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 16px/1.5 system-ui, sans-serif; color: #212529; max-width: 68rem;
        margin: 2rem auto; padding: 0 1rem; }
 h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
 th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid #dee2e6; }
 th:first-child, td:first-child { text-align: left; }
 thead th { border-bottom: 2px solid #495057; vertical-align: bottom; }
 tr.agent td { font-weight: 600; background: #e7f0fa; }
 tr.bound td { color: #6c757d; font-style: italic; }
 .wide { overflow-x: auto; }
 td { white-space: nowrap; }
 td:last-child { white-space: normal; }
 tr.missed td { color: #a4161a; }
 dd { overflow-wrap: anywhere; }
 img { max-width: 100%; display: block; margin: .6rem 0; }
 .note { color: #495057; font-size: .9rem; max-width: 52rem; }
 dl { display: grid; grid-template-columns: max-content auto; gap: .15rem 1.2rem;
      font-size: .92rem; } dd { margin: 0; } dt { color: #495057; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
<dl>{% for key, value in facts.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% for s in sections %}
<h2>{{ s.title }}</h2>
{% if s.text %}<p class="note">{{ s.text }}</p>{% endif %}
{% if s.table %}<div class="wide"><table>
<thead><tr>{% for c in s.table.columns %}<th>{{ c }}</th>{% endfor %}</tr>
</thead><tbody>{% for row in s.table.rows %}<tr class="{{ s.table.style(row) }}">
{%- for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if s.image %}<img src="data:image/png;base64,{{ s.image }}" alt="{{ s.title }}">{% endif %}
{% endfor %}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown, one row a policy, its name first."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @staticmethod
    def style(row: Sequence[str]) -> str:
        """CSS classes of a row, from its policy's name and whether it says MISSED."""
        name = row[0]
        classes = ["agent"] if "agent" in name else []
        classes += ["bound"] if "clairvoyant" in name or "bound" in name else []
        return " ".join([*classes, "missed"] if "MISSED" in row else classes)


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a sentence on how to read it, a table and a picture."""

    title: str
    text: str = ""
    table: Table | None = None
    png: bytes | None = None

    @property
    def image(self) -> str:
        """The picture in base64, empty if there is none."""
        return base64.b64encode(self.png).decode() if self.png else ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a report says.

    Attributes:
        title: heading.
        summary: the result in one or two sentences.
        facts: scenario, seeds, frames, hashes, versions.
        sections: in order.
    """

    title: str
    summary: str
    facts: Mapping[str, Any]
    sections: Sequence[Section] = field(default_factory=tuple)

    def html(self) -> str:
        """The page; everything from outside is escaped."""
        template = Environment(autoescape=True).from_string(_PAGE)
        return template.render(
            title=self.title, summary=self.summary, facts=self.facts, sections=self.sections
        )

    def save(self, path: Path) -> Path:
        """Write the page; written whole or not at all."""
        write_text(path, self.html())
        return path
