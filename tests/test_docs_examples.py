"""Every page of docs/ that has `>>>` in it is a program: it runs by itself and prints what stands there."""

import doctest
from pathlib import Path

import pytest

import scratchnet

DOCS = Path(scratchnet.__file__).parent.parent / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if ">>> " in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_page_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    failed, run = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert failed == 0, capsys.readouterr().out
    assert run > 0


def test_a_wrong_number_is_noticed(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("```python\n>>> 1 + 1\n3\n\n```\n", encoding="utf-8")
    assert doctest.testfile(str(page), module_relative=False) == (1, 1)
    assert "Expected:\n    3\nGot:\n    2" in capsys.readouterr().out


def test_the_pages_are_found():
    assert "index.md" in [page.name for page in PAGES]
