"""Equation tags, (NAME.number): which file derives one, which lines compute it. `tests/test_docs_tags.py` has the rule."""

import ast
import io
import re
import tokenize

TAG = re.compile(r"\(([A-Z][A-Z0-9]*)\.(\d+)\)")


def tags(text):
    """The tags of a text, in order, as pairs (NAME, number)."""
    return [(name, int(number)) for name, number in TAG.findall(text)]


def derived(source):
    """The tags of the module docstring, in order, each once; none for what is no Python."""
    return [] if source.startswith("//") else list(dict.fromkeys(tags(ast.get_docstring(ast.parse(source)) or "")))


def computed(source):
    """Pairs (tag, number of the line) of the comments on lines of code; a comment on a line of its own does not count."""
    lines, found = source.splitlines(), []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and lines[row - 1][:column].strip():
            found += [(tag, row) for tag in tags(token.string)]
    return found


def owners_of(sources):
    """NAME -> the source whose module docstring has (NAME.1)."""
    owners = {}
    for source in sources:
        for name, number in derived(source):
            if number == 1 and owners.setdefault(name, source) != source:
                raise AssertionError(f"two files derive ({name}.1)")
    return owners
