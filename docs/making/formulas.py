r"""LaTeX to HTML while the site is built: no page needs JavaScript for its formulas, and a wrong one stops the build.

KaTeX 0.19.1 lies in `docs/assets/katex` (from its npm package, MIT; of its fonts the WOFF2 files, of its style sheet the
rules for them). QuickJS, a small JavaScript engine, runs it. Arithmatex has marked the formulas: `\(…\)` within text,
`\[…\]` displayed.
"""

import functools
import html
import re
from pathlib import Path

KATEX = Path(__file__).resolve().parents[1] / "assets" / "katex" / "katex.min.js"
MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
# An array joined, since QuickJS hands a string that was added up of parts over to Python in no other way.
RENDER = """(latex, display) => [katex.renderToString(latex, {
    displayMode: display, throwOnError: true, strict: "error", output: "htmlAndMathml"})].join("")"""


@functools.cache
def engine():
    """The function (latex, displayed?) -> HTML."""
    try:
        import quickjs
    except ImportError as error:
        raise ImportError("the site's formulas are rendered by QuickJS: pip install -e '.[docs]'") from error
    context = quickjs.Context()
    context.eval(KATEX.read_text(encoding="utf-8"))
    return context.eval(RENDER)


@functools.cache
def render(latex, displayed):
    """The HTML of one formula, and MathML for screen readers within it; ValueError says what KaTeX does not understand."""
    run = engine()
    from quickjs import JSException

    try:
        return run(latex, displayed)
    except JSException as error:
        raise ValueError(f"formula {latex!r}: {str(error).splitlines()[0]}") from None


def render_all(page):
    """The HTML of a page with every marked formula rendered; the search skips them."""

    def one(match):
        tag, bracket, latex = match.groups()
        made = render(html.unescape(latex).strip(), bracket == "[")
        attributes = ' class="formula" tabindex="0"' if tag == "div" else ""  # a wide one scrolls, by keyboard too
        return f"<{tag}{attributes} data-search-exclude>{made}</{tag}>"

    return MARKED.sub(one, page)
