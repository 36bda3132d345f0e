"""Self-contained HTML pages: one file, no network, readable in light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import jinja2
from PIL import Image

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #c0362c; }
@media (prefers-color-scheme: dark) { :root { --good: #4cc06b; --bad: #ff7b6e; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0 }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1.2rem; min-width: 10rem }
.card b { display: block; font-size: 1.9rem; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.mean td { font-weight: 600; border-top: 2px solid var(--line) }
.bar { display: inline-block; height: .55rem; border-radius: 2px; background: var(--good); vertical-align: middle }
.good { color: var(--good) } .bad { color: var(--bad) }
img { max-width: 100%; height: auto; border-radius: .4rem; background: white }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto } .wide { overflow-x: auto }
</style></head><body>
<h1>{{ title }}</h1><p>{{ lead }}</p>
<div class="cards">{% for name, value in cards %}<div class="card">{{ name }}<b>{{ value }}</b></div>{% endfor %}</div>
<h2>Per class</h2>
<div class="wide"><table><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr{% if loop.last %} class="mean"{% endif %}>{% for cell in row -%}
<td{% if cell.startswith('+') %} class="good"{% elif cell.startswith('-') and cell != '-' %} class="bad"{% endif %}>
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<h2>Pictures</h2><p>{{ caption }}</p><img alt="{{ caption }}" src="data:image/png;base64,{{ picture }}">
<h2>How this was made</h2><pre>{% for line in notes %}{{ line }}
{% endfor %}</pre>
</body></html>
"""


def embed(picture: Image.Image) -> str:
    """A picture as base64 PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def page(
    *,
    title: str,
    lead: str,
    cards: Sequence[tuple[str, str]],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    picture: Image.Image,
    caption: str,
    notes: Sequence[str],
) -> str:
    """The page as text; everything that comes from outside is escaped."""
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    values: dict[str, Any] = dict(
        title=title, lead=lead, cards=cards, header=header, rows=rows, caption=caption, notes=notes
    )
    return template.render(picture=embed(picture), **values)
