"""A headless Chromium for the tests of pages. A test file says `pytest_plugins = ["browser"]` and takes these fixtures:

page        an empty page, 1280 pixels wide, as Playwright has it
width       1280, 800 and 390, one test each: the page is that wide
seen        what the page said on the console, and what it asked for
axe         axe() -> what axe-core finds wrong with the page, a sentence each
overflow    overflow() -> by how many pixels the page is wider than its window

Whatever a page puts on the console, an error of its scripts, and a request that leaves this machine each fail the test.
"""

import shutil
from urllib.parse import urlsplit

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 800, 390)  # a laptop, a tablet, a phone
HERE = (None, "", "127.0.0.1", "localhost")  # hosts of file:, data: and blob: URLs, and of a server of the test's own


@pytest.fixture(scope="module")
def browser():
    """A Chromium of Playwright's; the test is skipped where one of them is not installed."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("pages are tested in a browser, with Playwright: pip install -e '.[test-browser]'")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not path:
        pytest.skip("pages are tested in Chromium, which is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


class Seen:
    """What a page did beside showing itself: `said`, on the console; `asked`, the URLs of its requests."""

    def __init__(self):
        self.said, self.asked = [], []

    def watch(self, page):
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))

    def outside(self):
        return [url for url in self.asked if urlsplit(url).hostname not in HERE]


@pytest.fixture
def seen():
    """What the test's `page` did; a test in which the console is written to on purpose clears `said` at its end."""
    return Seen()


@pytest.fixture
def page(browser, seen):
    """An empty page; it must leave the console empty and ask nothing of another machine."""
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 800})
    context.set_default_timeout(10_000)
    opened = context.new_page()
    seen.watch(opened)
    yield opened
    context.close()
    assert seen.said == []
    assert seen.outside() == []


@pytest.fixture(params=WIDTHS)
def width(request, page):
    """The page's width in pixels, which it is given."""
    page.set_viewport_size({"width": request.param, "height": 800})
    return request.param


@pytest.fixture
def axe(page):
    """A function that says what axe-core finds wrong with the page; the test is skipped where that is not installed."""
    module = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe checks pages: pip install -e '.[test-browser]'"
    )

    def check():
        found = module.Axe().run(page).response["violations"]
        return [f"{rule['id']}: {rule['help']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]

    return check


@pytest.fixture
def overflow(page):
    """A function that says by how many pixels the page is wider than its window: 0 where nobody scrolls sideways."""
    return lambda: page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
