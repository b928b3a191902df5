"""The site (mkdocs.yml): it builds with no warning, asks nothing of the network, and can be read by everyone."""

import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import scratchnet

pytest_plugins = ["browser"]
ROOT = Path(scratchnet.__file__).parent.parent
LIGHT, DARK = ("light", 1280), ("dark", 390)  # colours and width in pixels
SHOWN = [
    ("index.html", LIGHT),
    ("index.html", DARK),
    ("course/12-why-it-is-fast.html", DARK),
    ("results/speed.html", DARK),
]
SHOWN += [("batch-norm-inside-a-convolution.html", LIGHT), ("api/losses.html", LIGHT), ("api/losses.html", DARK)]
SHOWN += [("source/scratchnet/layers/linear.py.html", LIGHT), ("source/scratchnet/layers.html", LIGHT)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder with the built site."""
    if "SCRATCHNET_SITE" in os.environ:  # CI has built it before
        return Path(os.environ["SCRATCHNET_SITE"]).resolve()
    for module in ("mkdocs", "material", "mkdocstrings", "quickjs"):
        pytest.importorskip(module, reason="the site is built with the extra `docs`: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page:
    """What a page links to and loads, and which places in it can be linked to."""

    def __init__(self, text):
        tags = re.findall(r"<[a-zA-Z][^>]*>", text)
        self.ids = {""} | {name for tag in tags for name in re.findall(r'\b(?:id|name)="([^"]+)"', tag)}
        self.links = [link for tag in tags if tag.startswith("<a ") for link in re.findall(r'\bhref="([^"]*)"', tag)]
        self.loads = [load for tag in tags for load in re.findall(r'\b(?:src|srcset|poster|data)="([^"]+)"', tag)]
        self.loads += re.findall(r'<link rel="(?:stylesheet|icon|preload|preconnect)"[^>]*\bhref="([^"]*)"', text)
        self.loads += re.findall(r'<link [^>]*\bhref="([^"]*)"[^>]* rel="(?:stylesheet|icon|preload|preconnect)"', text)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def target(path, link):
    """The file and the place in it that a link of a page leads to."""
    parts = urlsplit(link)
    return (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)


def test_no_page_loads_anything_from_elsewhere(site, pages):
    assert len(pages) > 50
    for path, page in pages.items():
        for load in page.loads:
            assert not urlsplit(load).netloc, f"{path.relative_to(site)} loads {load}"
            if not load.startswith("data:"):
                assert target(path, load)[0].is_file() or path.name == "404.html", f"{path.relative_to(site)}: {load}"
    for sheet in site.rglob("*.css"):
        for load in re.findall(r"url\(([^)]+)\)", sheet.read_text(encoding="utf-8")):
            load = load.strip("\"'")
            assert load.startswith("data:") or target(sheet, load)[0].is_file(), f"{sheet.relative_to(site)}: {load}"


def test_every_link_within_the_site_leads_somewhere(site, pages):
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme or path.name == "404.html":
                continue
            file, place = target(path, link)
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or file in pages and place not in pages[file].ids:
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_nothing_is_left_of_quotations_and_formulas(site, pages):
    for path in pages:
        if "source" not in path.relative_to(site).parts:
            text = re.sub(r"<(code|annotation)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S)
            assert not re.search(r"\[\[(code|lines|formula|result)|data-quote|arithmatex|\$\$", text), path.relative_to(
                site
            )


@pytest.fixture(scope="module")
def address(site):
    """Where a server of this machine shows the site, until the tests of this file are over."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "shown"), SHOWN, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_page_can_be_read_by_everyone(address, page, axe, overflow, name, shown):
    scheme, width = shown
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{address}/{name}")
    assert page.locator("body").get_attribute("data-md-color-scheme") == {"light": "default", "dark": "slate"}[scheme]
    assert overflow() == 0
    assert axe() == []


def test_formulas_are_rendered(address, page):
    page.goto(f"{address}/course/12-why-it-is-fast.html")
    assert page.locator(".katex-html").count() > 5
    assert page.evaluate("document.fonts.check('16px KaTeX_Main')")
    box = page.locator(".formula .katex-html").first.bounding_box()
    assert box["height"] > 15 and box["width"] > 30


def test_the_search_finds_a_chapter(address, page):
    page.goto(f"{address}/index.html")
    page.locator(".md-search__input").fill("covariance")
    page.locator(".md-search-result__link", has_text="Batch norm inside a convolution").first.wait_for()


def test_a_copied_example_is_the_program_without_its_output(address, page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}/index.html")
    block = page.locator(".highlight", has_text=">>> import numpy").first
    block.hover()
    block.locator(".copy").click()
    block.get_by_text("copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("import numpy as np\nimport scratchnet as sn\n") and "True" not in copied.splitlines()
