"""Docstrings as they are written here, for a reader of Markdown: an indented block is a formula, a star multiplies.

A Griffe extension: mkdocstrings, which makes the API reference, hands every object to it.
"""

import re
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Usage):$")
KEPT = re.compile(r"(`[^`]*`|(?<![\w*])\*\w(?:[^*]*\w)?\*(?![\w*]))")  # code, and emphasis


def markdown(text):
    """The docstring with its indented blocks fenced, and what is a sign in prose but a mark in Markdown escaped."""
    made: list[str] = []
    block: list[str] = []
    section = False

    def close():
        while block and not block[-1].strip():
            block.pop()
        if block:
            indent = min(len(line) - len(line.lstrip()) for line in block if line.strip())
            made.extend(["", "```text", *(line[indent:] for line in block), "```", ""])
        block.clear()

    for line in text.splitlines():
        if line.strip() and not line.startswith(" "):
            close()
            section = bool(SECTION.match(line))
            made.append(line if section else escaped(line))
        elif section:
            made.append(escaped(line))
        elif line.strip() or block:
            block.append(line)
        else:
            made.append(line)
    close()
    return "\n".join(made)


def escaped(line):
    """Stars, brackets and angles of a line of prose as signs, but within backticks and around what is emphasised."""
    parts = KEPT.split(line)
    parts[::2] = [re.sub(r"([*\[\]<_$])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


class Docstrings(griffe.Extension):
    """Prepare each docstring, and say under it where its code is."""

    def on_object(self, *, obj, loader, **kwargs):  # noqa: D102
        if obj.docstring is None or obj.is_attribute:
            return
        path = Path(obj.filepath) if not isinstance(obj.filepath, list) else None
        obj.docstring.value = markdown(obj.docstring.value)
        if path is None or not path.is_relative_to(ROOT):
            return
        name = path.relative_to(ROOT).as_posix()
        if obj.is_module:
            where = f'<a href="../source/{name}.html">{name}</a>'
        else:
            where = f'<a href="../source/{name}.html#L{obj.lineno}">{name}, line {obj.lineno}</a>'
        obj.docstring.value += f'\n\n<span class="where">{where}</span>'
