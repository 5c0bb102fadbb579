"""The project's pages: their links lead somewhere, and the map of the house names what is there."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from dat_ray.config.study import read_study
from docs.build import pages
from docs.picture import FIGURES, PICTURE, draw

ROOT = Path(__file__).parents[2]
# Those that the site is built from.
PAGES = sorted(ROOT / page for page in pages() if page.suffix == ".md")
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        where = (page.parent / target).resolve() if target else page
        assert where.exists(), f"{page.name} links to {target}"
        assert where.suffix in ("", ".md", ".svg"), f"{page.name} links to {target}, which is no page of the site"
        if anchor:
            assert anchor in anchors(where), f"{page.name} links to {target}#{anchor}"


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.relative_to(ROOT).as_posix()}" in menu, f"mkdocs.yml does not name {page.name}"


def test_working_on_it_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split()) < 900


def test_the_readme_has_its_parts_in_order() -> None:
    """What it is with the finding, the two commands, a GPU and `one-gpu`, a recipe of one's own, the cluster."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = (
        "docs/study-finding.svg",
        "## Two commands",
        "## On a GPU",
        "run one-gpu",
        "## A recipe of your own",
        "## On a cluster",
    )
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)


def test_studies_in_the_pages_can_be_read(tmp_path: Path) -> None:
    blocks = [
        block for page in PAGES for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    ]
    studies = [block for block in blocks if re.search(r"^arms:", block, re.M)]
    assert studies
    for block in studies:
        path = tmp_path / "study.yaml"
        path.write_text(block, encoding="utf-8")
        assert read_study(str(path), []).runs


def test_the_picture_is_drawn_from_the_recorded_figures() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert PICTURE.read_text(encoding="utf-8") == draw(figures), "draw it again: python docs/picture.py"
    record = " ".join((ROOT / "docs/experiments.md").read_text(encoding="utf-8").split())
    for row in figures["rows"]:
        (rate, low, high), (after, after_low, after_high) = row["before"], row["after"]
        # As the record's table writes it.
        assert f"| {rate}% [{low}, {high}] | {after}% [{after_low}, {after_high}] |" in record, row["label"]


def test_the_picture_can_be_read_on_either_ground() -> None:
    drawn = ElementTree.parse(PICTURE).getroot()
    space = "{http://www.w3.org/2000/svg}"
    style, ground = drawn.find(f"{space}style"), drawn.find(f"{space}rect")
    assert style is not None
    assert "prefers-color-scheme: dark" in (style.text or "")
    assert ground is not None
    assert ground.get("class") == "ground", "a ground of its own"
    assert drawn.get("aria-label", "").startswith("direct requests succeed: 88% before, 44% after")
    # Nothing lies outside; about 6.1 pixels a character in the small type, 8.3 in the title's.
    width = float(drawn.get("width", "0"))
    for text in drawn.iter(f"{space}text"):
        if text.get("text-anchor") is None:
            assert float(text.get("x", "0")) + len(text.text or "") * (8.5 if text.get("class") == "title" else 6.3) < width
