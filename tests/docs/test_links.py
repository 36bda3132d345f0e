"""Links between the pages lead somewhere, also where they are read as plain Markdown (README, GitHub)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2]
PAGES = [*(HOME / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((HOME / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?^```$", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8"))):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            place = page.parent / file if file else page
            assert place.is_file(), target
            assert not anchor or anchor in anchors(place), f"{target}; there are {sorted(anchors(place))}"


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_site() -> None:
    site = (HOME / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if f": {page.name}\n" not in site] == []


def test_headings_that_the_code_cites() -> None:
    """``docs/fidelity.md, "Topic"`` in a docstring."""
    cited = {
        " ".join(topic.split())
        for file in (HOME / "udaseg").rglob("*.py")
        for topic in re.findall(r'docs/fidelity\.md`*,\s+"([^"]+)"', file.read_text(encoding="utf-8"))
    }
    known = re.findall(r"^## (.+)$", (HOME / "docs/fidelity.md").read_text(encoding="utf-8"), re.M)
    assert len(cited) > 5
    assert [topic for topic in cited if not any(heading.startswith(topic) for heading in known)] == []
