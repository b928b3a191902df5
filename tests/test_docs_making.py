"""How the site is made of pages, docstrings and formulas (docs/making/); tests/test_docs_quotes.py has the quotations."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest


def needs(*modules):
    for module in modules:
        pytest.importorskip(module, reason="the site is made with the extra `docs`: pip install -e '.[docs]'")


DOCSTRING = """\
Twice x, and *only* that; a * b * c, W[o] and <x> are signs, as $OUT and dx_, and `a * b[0]` is code.

Forward
    y  = 2 * x          (TWO.1)

    dx = 2 * dy         (TWO.2)
since 2 is 2.

Raises:
    ValueError: x is no number.
"""
MARKDOWN = r"""Twice x, and *only* that; a \* b \* c, W\[o\] and \<x> are signs, as \$OUT and dx\_, and `a * b[0]` is code.

Forward

```text
y  = 2 * x          (TWO.1)

dx = 2 * dy         (TWO.2)
```

since 2 is 2.

Raises:
    ValueError: x is no number."""


def test_a_docstring_keeps_its_formulas_and_signs():
    needs("griffe")
    from docstrings import markdown

    assert markdown(DOCSTRING) == MARKDOWN


def test_formulas_are_rendered_and_kept_from_the_search():
    needs("quickjs")
    from formulas import render_all

    page = (
        r'<p>of <span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[x_1\]</div><code>\(a\)</code>'
    )
    made = render_all(page)
    assert made.count('class="katex"') == 2 and made.count("data-search-exclude") == 2
    assert made.count("katex-display") == 1 and made.endswith(r"<code>\(a\)</code>")
    assert '<annotation encoding="application/x-tex">a &lt; b</annotation>' in made


@pytest.mark.parametrize("latex", [r"\nosuch{x}", r"\frac{1}", "x^", "é = 1"])
def test_a_formula_that_katex_does_not_understand_is_an_error(latex):
    needs("quickjs")
    from formulas import render

    with pytest.raises(ValueError, match="formula .*: .*(ParseError|LaTeX-incompatible)"):
        render(latex, True)


def page_of(name):
    return SimpleNamespace(file=SimpleNamespace(src_uri=name, dest_uri=name.replace(".md", ".html")))


def test_links_out_of_the_docs_lead_to_the_pages_of_sources():
    needs("mkdocs", "quickjs")
    from hooks import on_page_markdown

    text = """\
[a](../../scratchnet/module.py) [b](../../scratchnet/layers) [c](../results/best)
[d](02-linear.md#x)
[e](../../tests/nothing.py)
[f](../figures/forward_backward.svg) [g](../figures/forward_backward.py) [h](#here)
```
[i](../../scratchnet/module.py)
```
"""
    expected = """\
[a](../source/scratchnet/module.py.md) [b](../source/scratchnet/layers.md) [c](../source/docs/results/best.md)
[d](02-linear.md#x)
[e](../../tests/nothing.py)
[f](../figures/forward_backward.svg) [g](../source/docs/figures/forward_backward.py.md) [h](#here)
```
[i](../../scratchnet/module.py)
```
"""
    assert on_page_markdown(text, page_of("course/01-reference.md"), None, None) == expected


@pytest.mark.parametrize(
    "line", ["[[lines LIN.77]]", "[[code scratchnet/module.py Nothing]]", '[[result docs/index.md "~~~"]]']
)
def test_a_quotation_that_is_not_there_stops_the_build_and_names_the_page(line):
    needs("mkdocs", "quickjs")
    from hooks import on_page_markdown
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError) as error:
        on_page_markdown(f"# A page\n\n{line}\n", page_of("course/page.md"), None, None)
    assert str(error.value).startswith(f"course/page.md: {line}: ")


def test_a_wrong_formula_stops_the_build_and_names_the_page():
    needs("mkdocs", "quickjs")
    from hooks import on_page_content
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match=r"course/page.md: formula .*nosuch"):
        on_page_content(r'<div class="arithmatex">\[\nosuch\]</div>', page_of("course/page.md"), None, None)


DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_every_figure_is_made_by_a_script_beside_it():
    figures = sorted((DOCS / "figures").glob("*.svg"))
    assert figures and [figure.name for figure in figures if not figure.with_suffix(".py").is_file()] == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_picture_of_a_page_says_what_one_sees(page):
    for alt in re.findall(r"!\[([^\]]*)\]\(", page.read_text(encoding="utf-8")):
        assert len(alt.split()) > 5, alt
