"""`udaseg report`: the tables of studies with what has been reproduced of them, or an overview of all runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import udaseg
from udaseg.console import out as screen
from udaseg.errors import UserError
from udaseg.files import write_free
from udaseg.problems import suggest
from udaseg.report.results import Run, scan
from udaseg.report.summary import Summary, families_table, overview_table, study_table, summarise
from udaseg.report.tables import Table, comma_separated, latex, markdown, terminal

TEXTS: dict[str, Callable[[Table], str]] = {"md": markdown, "latex": latex, "csv": comma_separated}
FORMATS = ("terminal", *TEXTS, "html")
ENDINGS = {".md": "md", ".tex": "latex", ".csv": "csv", ".html": "html", ".htm": "html"}


def make_report(
    words: Sequence[str],
    *,
    form: str | None,
    out: Path | None,
    folder: Path,
    benchmark: str | None,
    plugins: Sequence[str] = (),
) -> None:
    """``words``: studies, and key=value overrides of their runs. Print the report, or write it to a free name."""
    form = choose_format(form, out)
    names, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if (overrides or benchmark) and not names:
        raise UserError("key=value and --benchmark belong to a study's runs; name the study: udaseg ablate --list")
    nothing_yet = bool(names) and folder == Path("runs") and not folder.is_dir()  # then show the published numbers
    runs = [] if nothing_yet else scan(folder)
    studies = [summarise(name, runs, benchmark=benchmark, overrides=overrides, plugins=plugins) for name in names]
    if form == "html":
        name = studies[0].name if studies else folder.name
        return deliver(html_report(studies, runs, folder), out or Path(f"report-{name}.html"))
    means = families_table(runs, folder) if not studies else None
    tables = [study_table(study, runs=folder) for study in studies] or [overview_table(runs, folder)]
    tables += [means] if means else []
    if form == "terminal":
        for number, table in enumerate(tables):
            screen.print("\n" if number else "", end="")
            terminal(table)
        return None
    text = "\n".join(TEXTS[form](table) for table in tables)
    return deliver(text, out) if out else print(text, end="")


def choose_format(form: str | None, out: Path | None) -> str:
    """As said, or else by the ending of the file."""
    form = form or (ENDINGS.get(out.suffix.lower(), "") if out else "terminal")
    if form not in FORMATS:
        given = f"--format {form!r}" if form else f"--out {out}: no format has the ending {out.suffix if out else ''!r}"
        raise UserError(f"{given}; {suggest(form, FORMATS)}")
    if form == "terminal" and out:
        raise UserError("--out needs --format md, latex, csv or html")
    return form


def deliver(text: str, path: Path) -> None:
    screen.print(f"report {write_free(path, text.encode())}")


def html_report(studies: Sequence[Summary], runs: Sequence[Run], folder: Path) -> str:
    """The whole report as a page."""
    from udaseg.report import pages  # it draws, and matplotlib takes a while to load

    cards = {"runs": len(runs), **dict(sorted(Counter(str(run.state) for run in runs).items()))}
    if studies:
        entries = [entry for study in studies for entry in study.entries]
        done, missing = sum(len(e.runs) for e in entries), sum(len(e.missing) for e in entries)
        reproduced = sum(bool(e.runs) for e in entries)
        cards = {"methods": len(entries), "reproduced": reproduced, "runs": done, "runs missing": missing}
    return pages.render_page(
        title=studies[0].study.title if len(studies) == 1 else f"{len(studies)} studies" if studies else "Runs",
        lead=f"Run folders below {folder}, {time.strftime('%Y-%m-%d %H:%M')}.",
        cards=[(name, str(number)) for name, number in cards.items()],
        parts=[pages.study_part(study, runs=folder) for study in studies] or pages.overview_parts(runs, folder),
        footer=f"udaseg {udaseg.__version__}",
    )
