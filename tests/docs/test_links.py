"""Links lead somewhere: from page to page, and to headings. Those to the web are well formed."""

import re
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt

from tests.conftest import ROOT
from tests.docs.examples import DOCS

PAGES = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PLACES = ["tutorial", "howto", "reference", "explanation"]


def inline(page):
    """Return the inline tokens of a page, each with whether it is a heading's."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline":
            yield token, before.type == "heading_open"


def fragments(page):
    """Return what may follow ``#`` in a link to a page, as GitHub and the site have it."""
    titles = [
        "".join(part.content for part in token.children) for token, head in inline(page) if head
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page):
    for token, _ in inline(page):
        for part in token.children:
            yield from (part.attrs[name] for name in ("href", "src") if name in part.attrs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), link
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.is_file(), link
        if parts.fragment:
            assert parts.fragment in fragments(target), link


def test_each_page_has_its_place_and_is_in_the_navigation():
    pages = {str(page.relative_to(ROOT / "docs")) for page in DOCS[1:]}
    assert {page.split("/")[0] for page in pages} == {"index.md", *PLACES}
    named = re.findall(r"^(\w+/[\w-]+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE)
    assert sorted(pages - {"index.md"}) == sorted(f"{name}.md" for name in named)


def test_what_names_a_page_names_one_that_is_there():
    for place in ("src", "tests", "tools", "bench", "examples"):
        for path in [*(ROOT / place).rglob("*.py"), *(ROOT / place).rglob("*.toml")]:
            for name in re.findall(r"\bdocs/(?:\w+/)*[\w-]+\.md\b", path.read_text()):
                assert (ROOT / name).is_file(), (path, name)
    for page in (ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"):
        for name in re.findall(r"\bdocs/[\w/-]+\.(?:md|svg|png)\b", page.read_text()):
            assert (ROOT / name).is_file(), (page, name)
