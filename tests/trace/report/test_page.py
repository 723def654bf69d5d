"""A report in a real browser: what it shows, what keys and clicks do, and what it asks for."""

import pytest

from kvmsr.trace.report import write_report
from tests.trace.report.conftest import boot

SIZE = {"width": 1360, "height": 900}


class Seen:
    """A page, and all that it complained about or asked for."""

    def __init__(self, browser, path, theme):
        self.context = browser.new_context(color_scheme=theme, viewport=SIZE)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = f"file://{path}"
        self.page.goto(self.url)

    def background(self):
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")

    def state(self):
        return self.page.evaluate("({...state, from: view.from, to: view.to})")


@pytest.fixture
def look(browser):
    """Return a function that opens a page; at the end, it must have caused no complaint."""
    opened = []

    def look(path, theme="light"):
        opened.append(Seen(browser, path, theme))
        return opened[-1]

    yield look
    for seen in opened:
        seen.context.close()
        assert seen.complaints == []
        assert set(seen.requests) <= {seen.url}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    write_report([boot(folder / "boot.arrows")], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    traces = [boot(folder / "a", 900), boot(folder / "b", 800, seed=2)]
    write_report(traces, folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["one", "two"])
def test_what_is_there(look, request, artefacts, which, theme):
    seen = look(request.getfixturevalue(which), theme)
    page = seen.page
    for name in ("timeline", "msrs", "faults", "latency", "policy", "next"):
        assert page.locator(f"#{name}").is_visible()
    assert page.locator("#table tbody tr").count() == 5
    colours = page.evaluate(
        "new Set(pen.getImageData(0, 0, canvas.width, canvas.height).data.filter("
        "(_, n) => n % 4 < 3)).size"
    )
    assert colours > 10  # the timeline is drawn
    bright = sum(map(int, seen.background().removeprefix("rgb(").rstrip(")").split(","))) > 380
    assert bright == (theme == "light")
    page.screenshot(path=artefacts / f"report-{which}-{theme}.png", full_page=True)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["one", "two"])
def test_accessibility(look, request, which, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    seen = look(request.getfixturevalue(which), theme)
    seen.page.evaluate("select(1, 0, eventsOf[0][1][0])")
    found = axe.Axe().run(seen.page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found] == []


def test_the_theme_can_be_chosen(look, one):
    seen = look(one)
    light = seen.background()
    seen.page.get_by_label("Dark").check()
    assert seen.background() != light
    seen.page.reload()
    assert seen.background() != light
    seen.page.get_by_label("Auto").check()
    assert seen.background() == light


def test_a_row_leads_to_the_timeline_and_back(look, one):
    seen = look(one)
    page = seen.page
    page.get_by_role("button", name="Select MSR_CORE_THREAD_COUNT").click()
    assert seen.state()["msr"] == 1
    detail = page.get_by_label("The selected MSR")
    assert detail.get_by_role("heading", name="MSR_CORE_THREAD_COUNT").is_visible()
    assert "cores" in detail.inner_text().lower()  # a field
    number = page.evaluate("eventsOf[0][2][0]")
    place = page.evaluate(f"(n => [xOf(at(0, n)), yOf(0, 2)])({number})")
    page.locator("#chart").click(position={"x": place[0], "y": place[1]})
    state = seen.state()
    assert (state["msr"], state["event"] >= 0) == (2, True)
    assert page.locator("#table tr.on").get_attribute("data-msr") == "2"
    assert page.locator("#own rect").count() > 0


def test_hovering_names_an_access(look, one):
    page = look(one).page
    place = page.evaluate("(n => [xOf(at(0, n)), yOf(0, data.traces[0].msr[n])])(5000)")
    page.locator("#chart").hover(position={"x": place[0], "y": place[1]})
    text = page.locator("#tip").inner_text()
    assert "vCPU" in text
    assert "RIP 0xffffffff81" in text


def test_keys(look, one):
    seen = look(one)
    page = seen.page
    page.locator("#chart").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    first = seen.state()
    page.keyboard.press("ArrowRight")
    second = seen.state()
    assert first["msr"] == second["msr"] == 0
    assert 0 <= first["event"] < second["event"]
    assert "IA32_TIME_STAMP_COUNTER" in page.locator("#status").inner_text()
    page.keyboard.press("+")
    zoomed = seen.state()
    assert zoomed["to"] - zoomed["from"] < second["to"] - second["from"]
    page.keyboard.press("0")
    assert seen.state()["to"] == second["to"]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('tr').dataset.msr") == "0"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('tr').dataset.msr") == "1"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    page.locator("#chart").focus()
    page.keyboard.press("Escape")
    assert seen.state()["msr"] == -1


def test_dragging_zooms(look, one):
    seen = look(one)
    box = seen.page.locator("#chart").bounding_box()
    before = seen.state()
    seen.page.mouse.move(box["x"] + 400, box["y"] + 60)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + 600, box["y"] + 60, steps=4)
    seen.page.mouse.up()
    after = seen.state()
    assert before["from"] < after["from"] < after["to"] < before["to"]


def test_search_and_sort(look, one):
    page = look(one).page
    visible = page.locator("#table tbody tr:visible")
    page.locator("#search").fill("core_thread")
    assert visible.count() == 1
    page.locator("#search").fill("")
    page.get_by_role("button", name="Reads").click()
    reads = [
        int(text.replace(",", "")) for text in visible.locator("td:nth-child(3)").all_inner_texts()
    ]
    assert reads == sorted(reads, reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Reads")


def test_only_what_differs(look, two):
    page = look(two).page
    page.get_by_label("Show").select_option("differs")
    texts = page.locator("#table tbody tr:visible td:nth-child(3)").all_inner_texts()
    assert texts
    assert "same" not in texts


def test_print(look, one, artefacts):
    seen = look(one, "dark")
    seen.page.pdf(path=artefacts / "report.pdf")
    seen.page.emulate_media(media="print")
    assert not seen.page.locator(".top").is_visible()
    assert seen.page.locator("#table").is_visible()


def test_without_javascript(browser, one):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{one}")
    assert page.locator("#table tbody tr").count() == 5
    assert page.get_by_text("need JavaScript").is_visible()
    assert not page.locator("#chart").is_visible()
    context.close()
