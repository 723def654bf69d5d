"""
Make pictures of a report, in both themes: python -m tests.trace.report.picture PAGE OUTPUT [MSR].

They are OUTPUT-light.png and OUTPUT-dark.png. MSR, in hexadecimal, is the one to select.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.trace.report.conftest import chromium

SIZE = {"width": 1360, "height": 1560}
CLICK = "document.querySelector('#m{} button').click()"


def main(page, output, msr=""):
    with sync_playwright() as running:
        browser = running.chromium.launch(**chromium())
        for theme in ("light", "dark"):
            view = browser.new_page(viewport=SIZE, color_scheme=theme)
            view.goto(Path(page).absolute().as_uri())
            if msr:
                view.evaluate(CLICK.format(msr))
                view.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
            view.wait_for_timeout(500)
            view.screenshot(path=f"{output}-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
