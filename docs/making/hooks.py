"""What happens while MkDocs builds the site (`mkdocs build --strict`): quotations, formulas, pages of source files.

An error of a page names it and stops the build.
"""

import posixpath
import re
import sys
import tempfile
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

sys.path.insert(0, str(Path(__file__).parent))

import formulas  # noqa: E402
import sources  # noqa: E402
from quotes import QUOTE, ROOT, RUN, joined, quote  # noqa: E402

DESCRIBED = ("scratchnet", "models")  # folders to whose files the API reference leads
HEAD = "---\ntitle: {0}\nhide: [navigation, toc]\nsearch: {{exclude: true}}\n---\n# {0}\n\n"
FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")

FIGURE = re.compile(r'<p>(?=<img [^>]*src="[^"]*figures/)')

made: dict[str, list[str]] = {}  # page -> what its placeholders stand for


def on_files(files, config):
    """Add a page for every file and folder of the repository that a page leads to."""
    wanted = {ROOT / folder for folder in DESCRIBED}
    for page in files.documentation_pages():
        text = FENCE.sub("", page.content_string)
        linked = [outside(link[1], page.src_uri) for link in LINK.finditer(text)]
        quoted = [ROOT / quote[2].split()[0] for quote in QUOTE.finditer(text) if quote[1] == "code"]
        wanted |= {path for path in linked + quoted if path}
    for name in sorted({name for path in wanted for name in below(path)}):
        text = HEAD.format(name) + f'<div data-source="{name}"></div>\n'
        file = File.generated(config, sources.address(name), content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(file)
    files.append(File.generated(config, "explorer.html", content=explorer()))
    return files


def explorer():
    """The explorer's ready-made page: a small network, trained on drawn shapes, and one step of it."""
    from scratchnet.explore import demo

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "explorer.html")
        demo(path)
        return path.read_text(encoding="utf-8")


def below(path):
    """A folder's name, and those of all that is shown in it."""
    if path.is_dir() or path.suffix in sources.LEXERS:
        yield path.relative_to(ROOT).as_posix()
    if path.is_dir():
        for entry in sources.shown(path):
            yield from below(entry)


def on_page_markdown(markdown, page, config, files):
    """Put a placeholder for each quotation, and lead links out of docs/ to the pages of sources."""
    name = page.file.src_uri
    made[name] = []
    parts = FENCE.split(markdown)
    parts[::2] = [
        LINK.sub(lambda match: led(match, name), RUN.sub(lambda run: quoted(run[0], page), part)) for part in parts[::2]
    ]
    return "".join(parts)


def quoted(run, page):
    """The quotations that a run of lines asks for, in Markdown."""
    found = []
    for match in QUOTE.finditer(run):
        try:
            found += quote(match[1], match[2])
        except (LookupError, SyntaxError) as error:
            raise PluginError(f"{page.file.src_uri}: {match[0]}: {error}") from None
    return "\n".join(placed(each, page) for each in joined(found)) + "\n"


def placed(quotation, page):
    """A quotation in Markdown: the rows of a table as they are, anything else as a placeholder."""
    if quotation.language == "table":
        rows = "\n".join(text for _, text in quotation.lines)
        where = posixpath.relpath(quotation.path, "docs/" + posixpath.dirname(page.file.src_uri))
        return f"\n{rows}\n\n[{quotation.path}]({where}){{ .where }}\n"
    here = posixpath.dirname(page.file.dest_uri)
    quotes = made[page.file.src_uri]
    if quotation.path.endswith(".md"):
        link = quotation.path.removeprefix("docs/").removesuffix(".md").replace("README", "index") + ".html"
    else:
        link = f"source/{quotation.path}.html#L{quotation.lines[0][0]}"
    quotes.append(sources.quotation(quotation, posixpath.relpath(link, here or ".")))
    return f'\n<div data-quote="{len(quotes) - 1}"></div>\n'


def outside(link, name):
    """The file or folder of the repository that a link of a page leads to; None where the site has it, or it is none."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(name), link))
    path = ROOT / target
    if target.startswith("..") or not path.exists():
        return None
    there = target.startswith("docs/") and path.is_file() and path.suffix != ".py"
    return None if there else path


def led(match, name):
    """The target of a link; one to a file outside of docs/, or to a folder, becomes one to its page."""
    path = outside(match[1], name)
    if path is None:
        return match[0]
    target = path.relative_to(ROOT).as_posix()
    row = re.sub(r"#L?(\d+)", r"#L\1", match[2] or "")
    return posixpath.relpath(sources.address(target), posixpath.dirname(name) or ".") + row


def on_page_content(html, page, config, files):
    """Replace placeholders and formulas; let what is wider than a phone be scrolled, by keyboard too."""
    name = page.file.src_uri
    html = FIGURE.sub(r'<p class="figure" tabindex="0">', html)
    html = html.replace("<table>", '<div class="wide" tabindex="0"><table class="plain">').replace(
        "</table>", "</table></div>"
    )
    quotes = made.pop(name, [])
    html = re.sub(r'<div data-quote="(\d+)"></div>', lambda match: quotes[int(match[1])], html)
    html = re.sub(r'<div data-source="([^"]+)"></div>', lambda match: sources.page(ROOT / match[1], match[1]), html)
    try:
        return formulas.render_all(html)
    except ValueError as error:
        raise PluginError(f"{name}: {error}") from None


def on_post_page(output, page, config):
    """Give the theme's search a name for those who do not see it."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
