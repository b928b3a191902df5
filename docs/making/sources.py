"""The repository's files as pages of the site: what a page quotes or links to, as it was when the site was built."""

import html
import posixpath

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

LEXERS = {
    ".py": "python",
    ".cu": "cuda",
    ".h": "cpp",
    ".json": "json",
    ".toml": "toml",
    ".csv": "text",
    ".txt": "text",
    ".md": "markdown",
}
PICTURES = {".png", ".svg"}
LEFT_OUT = {"__pycache__", "assets", "site"}


def shown(folder):
    """The entries of a folder that have a page or are a picture, folders first."""
    entries = [
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and path.name not in LEFT_OUT
        and (path.is_dir() or path.suffix in LEXERS or path.suffix in PICTURES)
    ]
    return sorted(entries, key=lambda path: (path.is_file(), path.name))


def address(path):
    """The source of the page of a file or folder, beside the pages of docs: source/….md."""
    return f"source/{path}.md"


def rows(text, language, numbers, anchored):
    """Highlighted lines, each behind its number; the style sheet draws numbers, so that they are not copied."""
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    lines = highlight(text, lexer, HtmlFormatter(nowrap=True)).rstrip("\n").split("\n")
    if anchored:
        number = '<a class="number" href="#L{0}" data-number="{0}" aria-label="line {0}"></a>'
        each = f'<span class="row" id="L{{0}}">{number}{{1}}</span>'
    else:
        each = '<span class="row"><span class="number" data-number="{0}"></span>{1}</span>'
    return "\n".join(each.format(number, line) for number, line in zip(numbers, lines, strict=True))


def quotation(quote, link):
    """A quotation as HTML, with its file and lines as a caption that leads there."""
    numbers = [number for number, _ in quote.lines]
    text = "\n".join(line for _, line in quote.lines)
    run = f"line {numbers[0]}" if len(numbers) == 1 else f"lines {numbers[0]}–{numbers[-1]}"
    if quote.single and len(numbers) <= numbers[-1] - numbers[0]:
        run = "lines " + ", ".join(map(str, numbers))
    if quote.language == "text":
        inside = "\n".join(f'<span class="row">{html.escape(line)}</span>' for _, line in quote.lines)
        run = "" if quote.path.endswith(".md") else f", {run}"
    else:
        inside, run = rows(text, quote.language, numbers, anchored=False), f", {run}"
    where = f'<a href="{link}">{quote.path}</a>{run}'
    return (
        f'<figure class="quote {quote.language}"><div class="highlight"><pre tabindex="0"><code>{inside}</code></pre></div>'
        f"<figcaption>{where}</figcaption></figure>"
    )


def page(path, name):
    """The HTML of the page of a file or folder of the repository; `name`: its path from there."""
    if path.is_dir():
        items, pictures = [], []
        for entry in shown(path):
            if entry.suffix in PICTURES:
                kept = posixpath.relpath(f"{name}/{entry.name}", "docs") if name.startswith("docs/") else entry.name
                depth = "../" * (name.count("/") + 1)
                pictures.append(f'<p><img src="{depth}{kept}" alt="{entry.name}"></p>')
            else:
                title = html.escape(entry.name + "/" * entry.is_dir())
                items.append(f'<li><a href="{path.name}/{entry.name}.html">{title}</a></li>')
        return "<ul>" + "".join(items) + "</ul>" + "".join(pictures)
    text = path.read_text(encoding="utf-8").rstrip("\n")
    inside = rows(text, LEXERS[path.suffix], range(1, text.count("\n") + 2), anchored=True)
    return f'<div class="highlight source"><pre tabindex="0"><code>{inside}</code></pre></div>'
