"""What happens while MkDocs builds the site (`mkdocs build --strict`): quotations, formulas, pages of source files.

An error of a page names it and stops the build.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

sys.path.insert(0, str(Path(__file__).parent))

import formulas  # noqa: E402
import sources  # noqa: E402
from quotes import QUOTE, ROOT, quote  # noqa: E402

FOLDERS = ("scratchnet", "models", "tests", "benchmarks", "docs/results", "docs/figures", "docs/making")
FILES = ("train_cifar.py", "setup.py", "pyproject.toml")
HEAD = "---\ntitle: {0}\nhide: [navigation, toc]\nsearch: {{exclude: true}}\n---\n# {0}\n\n"
FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")

made: dict[str, list[str]] = {}  # page -> what its placeholders stand for


def on_files(files, config):
    """Add a page for every file of the repository that a reader may want to see, and for every folder."""
    for name in [*FILES, *(name for folder in FOLDERS for name in below(ROOT / folder))]:
        text = HEAD.format(name) + f'<div data-source="{name}"></div>\n'
        file = File.generated(config, sources.address(name), content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(file)
    return files


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

    def one(match):
        try:
            quotes = quote(match[1], match[2])
        except (LookupError, SyntaxError) as error:
            raise PluginError(f"{name}: {match[0]}: {error}") from None
        return "\n".join(placed(each, page) for each in quotes)

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda match: led(match, name), QUOTE.sub(one, part)) for part in parts[::2]]
    return "".join(parts)


def placed(quotation, page):
    """A quotation in Markdown: the rows of a table as they are, anything else as a placeholder."""
    if quotation.language == "table":
        rows = "\n".join(text for _, text in quotation.lines)
        where = posixpath.relpath(quotation.path, "docs/" + posixpath.dirname(page.file.src_uri))
        return f"\n{rows}\n\n[{quotation.path}]({where}){{ .where }}\n"
    here = posixpath.dirname(page.file.dest_uri)
    quotes = made[page.file.src_uri]
    quotes.append(
        sources.quotation(
            quotation, lambda path, row: posixpath.relpath(f"source/{path}.html", here or ".") + f"#L{row}"
        )
    )
    return f'\n<div data-quote="{len(quotes) - 1}"></div>\n'


def led(match, name):
    """The target of a link; one to a file outside of docs/, or to a folder, becomes one to its page."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(name), match[1]))
    path = ROOT / target
    if target.startswith("..") or not path.exists() or (target.startswith("docs/") and path.is_file()):
        return match[0]
    row = re.sub(r"#L?(\d+)", r"#L\1", match[2] or "")
    return posixpath.relpath(sources.address(target), posixpath.dirname(name) or ".") + row


def on_page_content(html, page, config, files):
    """Replace placeholders and formulas."""
    name = page.file.src_uri
    quotes = made.pop(name, [])
    html = re.sub(r'<div data-quote="(\d+)"></div>', lambda match: quotes[int(match[1])], html)
    html = re.sub(r'<div data-source="([^"]+)"></div>', lambda match: sources.page(ROOT / match[1], match[1]), html)
    try:
        return formulas.render_all(html)
    except ValueError as error:
        raise PluginError(f"{name}: {error}") from None
