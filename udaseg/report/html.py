"""Self-contained HTML pages: one file, no network, readable in light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup
from PIL import Image

from udaseg.report.charts import STYLE
from udaseg.report.tables import Table

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #c0362c; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --good: #4cc06b; --bad: #ff7b6e; --paper: #14171c } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 88rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper) }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .2rem }
section { margin-top: 3rem } section > h2 { font-size: 1.35rem; margin-bottom: .2rem } .lead, .note { opacity: .75 }
.lead { margin-top: 0; font-size: .92rem; max-width: 60rem }
.note { font-size: .85rem; margin: .4rem 0; max-width: 60rem }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0 }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .5rem 1rem; min-width: 6rem; font-size: .85rem }
.card b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .6rem; margin: .8rem 0; width: fit-content;
  max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap } td { height: 1.45em }
thead th { border-bottom: 1px solid; font-weight: 600 } tbody tr:hover { background: var(--soft) }
td.text, th.text { text-align: left } td + td.text { opacity: .75 }
td.text { max-width: 22rem; overflow: hidden; text-overflow: ellipsis }
tr.start:not(:first-child) td { border-top: 1px solid var(--line) } small { opacity: .6; font-size: .8em }
th:first-child, td:first-child { padding-left: 1rem; position: sticky; left: 0; background: var(--paper) }
u { text-underline-offset: .18em; text-decoration-thickness: 2px }
.good { color: var(--good) } .bad { color: var(--bad) }
.figures { columns: 2 24rem; column-gap: 1.2rem } figure { border: 1px solid var(--line); border-radius: .6rem;
  margin: 0 0 1.2rem; padding: .8rem 1rem; break-inside: avoid }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .3rem }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .8rem; margin: .5rem 0 0; padding: 0;
  list-style: none }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 50%; margin-right: .35rem;
  vertical-align: -.08rem; box-sizing: border-box }
.legend i.hollow { border-width: 2px; border-style: solid }
details { margin: .6rem 0; font-size: .9rem } summary { cursor: pointer }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto; font-size: .85rem }
img { max-width: 100%; height: auto; border-radius: .4rem; background: white; margin: .5rem 0 }
footer { margin: 4rem 0 1rem; font-size: .8rem; opacity: .6 }
{{ style }}</style></head><body>
<h1>{{ title }}</h1><p>{{ lead }}</p>
<div class="cards">{% for name, value in cards %}<div class="card">{{ name }}<b>{{ value }}</b></div>{% endfor %}</div>
{% macro number(cell) -%}
{% if cell.mark == 'best' %}<b>{{ cell.number() }}</b>{% elif cell.mark == 'second' %}<u>{{ cell.number() }}</u>
{%- else %}{{ cell.number() }}{% endif %}{% if cell.std is not none %}<small>{{ cell.plus_minus() }}</small>{% endif %}
{%- endmacro %}
{% for part in parts %}{% set table = part.table %}<section><h2>{{ table.title }}</h2>
<p class="lead">{{ table.lead }}</p>
<div class="wide"><table><thead><tr>{% for name in table.header %}
<th{% if loop.index0 < table.left %} class="text"{% endif %}>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}{% set new = loop.first or row[0] != loop.previtem[0] -%}
<tr{% if new %} class="start"{% endif %}>{% for cell in row -%}
<td{% if loop.index0 < table.left %} class="text" title="{{ cell.number() }}"
{%- elif cell.signed and cell.value is not none %} class="{{ 'bad' if cell.number()[0] == '-' else 'good' }}"
{%- endif %}>
{%- if not loop.first or new %}{{ number(cell) }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% for note in table.notes %}<p class="note">{{ note }}</p>{% endfor %}
{% if table.commands %}<details><summary>What fills the missing cells</summary>
<pre>{{ table.commands | join('\n') }}</pre></details>{% endif %}
{% if part.figures %}<div class="figures">{% for figure in part.figures %}<figure><figcaption>{{ figure.caption }}
</figcaption>{{ figure.svg | safe }}<ul class="legend">{% for name, colour, published in figure.legend %}
<li><i class="{{ 'hollow c' if published else 'f' }}{{ colour }}"></i>{{ name }}</li>{% endfor %}</ul></figure>
{% endfor %}</div>{% endif %}
{% for caption, png in part.pictures %}<p class="note">{{ caption }}</p>
<img alt="{{ caption }}" src="data:image/png;base64,{{ png }}">{% endfor %}</section>
{% endfor %}<footer>{{ footer }}</footer></body></html>
"""


@dataclass(frozen=True)
class Figure:
    """``svg`` is our own (``udaseg.report.charts``). ``legend``: (name, colour, hollow?)."""

    caption: str
    svg: str
    legend: Sequence[tuple[str, int, bool]] = ()


@dataclass(frozen=True)
class Part:
    """One table with its figures and pictures (caption, base64 PNG)."""

    table: Table
    figures: Sequence[Figure] = ()
    pictures: Sequence[tuple[str, str]] = ()


def report(*, title: str, lead: str, cards: Sequence[tuple[str, str]], parts: Sequence[Part], footer: str) -> str:
    """The page as text; everything that comes from outside is escaped. ``cards``: (name, number)."""
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    return template.render(title=title, lead=lead, cards=cards, parts=parts, footer=footer, style=Markup(STYLE))


def embed(picture: Image.Image) -> str:
    """A picture as base64 PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
