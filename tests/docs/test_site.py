"""The site: its links, what it loads, what its search finds, and how it looks in a browser."""

from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import click
import pytest

import kvmsr
from kvmsr.cli import cli
from kvmsr.msr import catalog
from tests.conftest import ROOT
from tests.docs.examples import DOCS

pytestmark = pytest.mark.slow

LOOKED_AT = ("index.html", "reference/msrs/0x100.html", "explanation/others.html")
PAGES = (*LOOKED_AT, "reference/api/kvmsr.machine.html", "reference/policy.html")


class Page(HTMLParser):
    """The fragments of a page, where it leads, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.text = set(), [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        have = dict(attrs)
        self.ids.add(have.get("id"))
        if tag == "a" and "href" in have:
            self.links.append(have["href"])
        if tag == "link" and have.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(have["href"])
        if tag in ("script", "img", "source", "iframe"):
            self.loads += [have[name] for name in ("src", "srcset") if name in have]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_links_lead_somewhere(site, pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https" and "." in parts.netloc, (path, link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target in pages, (path, link)
            if parts.fragment:
                assert unquote(parts.fragment) in pages[target].ids, (path, link)


def test_nothing_comes_from_the_network(site, pages):
    for path, page in pages.items():
        for loaded in page.loads:
            parts = urlsplit(loaded)
            if parts.scheme != "data":
                assert not parts.netloc, (path, loaded)
                assert (path.parent / parts.path).is_file(), (path, loaded)
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text() and "url(//" not in style.read_text()


def test_every_page_of_the_documentation_is_there(site):
    for page in DOCS[1:]:
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()


def test_every_msr_has_a_place(site, pages):
    places = [page for path, page in pages.items() if path.parent.name == "msrs"]
    listed = pages[site / "reference/msrs/index.html"]
    for msr in catalog():
        assert sum(f"{msr.index:#x}" in page.ids for page in places) == 1, msr
        assert any(link.endswith(f"#{msr.index:#x}") for link in listed.links[:]), msr


def test_every_command_is_described(pages, site):
    def below(command, context):
        yield context, command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                yield from below(inner, click.Context(inner, info_name=name, parent=context))

    for context, command in below(cli, click.Context(cli, info_name="kvmsr")):
        if command is cli:
            continue
        top = context.command_path.split()[1]
        said = "".join(pages[site / f"reference/commands/{top}.html"].text)
        assert context.command_path in said
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[0] in said, (context.command_path, option)


def test_the_library_is_described(pages, site):
    face = pages[site / "reference/api/kvmsr.html"]
    for name in set(kvmsr.__all__) - {"__version__"}:
        (link,) = {link for link in face.links if link.endswith(f".{name}")}
        assert urlsplit(link).fragment in pages[site / "reference/api" / urlsplit(link).path].ids


@pytest.fixture
def look(browser, site):
    """Return a function that opens a page of the site, and closes it at the end."""
    opened = []

    def look(name, theme="light", width=1360):
        viewport = {"width": width, "height": 900}
        opened.append(browser.new_context(color_scheme=theme, viewport=viewport))
        page = opened[-1].new_page()
        page.goto(f"file://{site}/{name}")
        return page

    yield look
    for context in opened:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_screen_needs_no_scrolling_sideways(look, name, artefacts):
    page = look(name, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.screenshot(path=artefacts / f"site-{name.replace('/', '-')}-narrow.png")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_accessibility(look, name, theme, artefacts):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    page = look(name, theme)
    page.screenshot(path=artefacts / f"site-{name.replace('/', '-')}-{theme}.png")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:160] for node in one["nodes"][:3]]) for one in found] == []


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ("0x1a0", "reference/msrs/0x100.html#0x1a0"),
        ("IA32_MISC_ENABLE", "reference/msrs/0x100.html#0x1a0"),
        ("kvmsr policy explain", "reference/commands/policy.html#explain"),
        ("EndKind", "reference/api/kvmsr.session.html#kvmsr.session.EndKind"),
    ],
)
def test_the_search_finds_it_first(look, words, target):
    page = look("index.html")
    page.get_by_label("Search").first.fill(words)
    page.get_by_label("Search").first.press("Enter")
    first = page.locator("#search-results li a").first
    first.wait_for()
    assert first.get_attribute("href").split("?")[0].split("#")[0] == target.split("#")[0]
    assert first.get_attribute("href").split("#")[-1] == target.split("#")[-1]
