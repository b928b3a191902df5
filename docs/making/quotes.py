"""What a page quotes from the repository: code, lines, formulas and results, read when the site is built.

A quotation is a line of its own in a page:

    [[code scratchnet/layers/linear.py linear_backward]]     a function, class, `Class.method` or constant
    [[lines LIN.2 LIN.3]]                                     the statements that carry these tags
    [[formula LIN.2]]                                         what the owning file's docstring derives beside the tag
    [[result docs/results/eight-bits.md "| ReLU6"]]           its lines that contain the text, or one of several

Each is found by name, so that a page cannot say what the code no longer does: a name, a tag or a text that is not there is
a `LookupError`, which stops the build.
"""

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tags import TAG, computed, derived

ROOT = Path(__file__).resolve().parents[2]
QUOTE = re.compile(r"^\[\[(code|lines|formula|result) (.+)\]\][ \t]*$", re.M)
CONTINUED = 24  # a docstring's line that is indented this far goes on with the line before

RUN = re.compile(rf"(?:{QUOTE.pattern}\s*)+", re.M)  # with nothing between them


class Quote(NamedTuple):
    """Lines of one file.

    lines: pairs (number, text).  language: a lexer's name, or "table" for rows of a table.  single: whether they are some
    lines of many, and may stand with others of the same file.
    """

    path: str
    lines: list
    language: str
    single: bool = False


def quote(kind, arguments, root=ROOT):
    """The quotations, a list, that `[[kind arguments]]` asks for."""
    if kind == "result":
        path, *texts = shlex.split(arguments)
        if not texts:
            raise LookupError(f'[[result {arguments}]]: expected a file and a text in "…"')
        return [result(path, texts, root)]
    words = arguments.split()
    if kind == "code":
        if len(words) != 2:
            raise LookupError(f"[[code {arguments}]]: expected a file and a name")
        return [code(*words, root)]
    return [{"lines": lines, "formula": formula}[kind](word, root) for word in words]


def joined(quotes):
    """Quotations that follow one another, with neighbouring single lines of one file as one quotation."""
    found: list = []
    for each in quotes:
        if found and each.single and found[-1].single and found[-1][::2] == each[::2]:
            found[-1] = each._replace(lines=sorted({*found[-1].lines, *each.lines}))
        else:
            found.append(each)
    return found


def read(path, root):
    """The text of a file of the repository."""
    if not (root / path).is_file():
        raise LookupError(f"there is no file {path}")
    return (root / path).read_text(encoding="utf-8")


def names(node):
    """The names that a statement binds."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [getattr(node, "name", None) or getattr(getattr(node, "target", None), "id", None)]


def code(path, name, root=ROOT):
    """A definition without its docstring, with its decorators; each line keeps its number in the file."""
    text = read(path, root)
    if path.endswith((".cu", ".cuh")):
        return c_code(path, name, text)
    body = ast.parse(text).body
    for part in name.split("."):
        found = [node for node in body if part in names(node)]
        if not found:
            raise LookupError(f"{path} defines no {name}")
        node, body = found[-1], getattr(found[-1], "body", [])
    first = min([node.lineno] + [decorator.lineno for decorator in getattr(node, "decorator_list", [])])
    left_out = set()
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
        end, following = node.body[0].end_lineno, node.body[1].lineno
        left_out = set(range(node.body[0].lineno, end + 1))
        rows = text.splitlines()
        left_out |= {row for row in range(end + 1, following) if not rows[row - 1].strip()}
    return Quote(
        path, dedented(text, [row for row in range(first, node.end_lineno + 1) if row not in left_out]), "python"
    )


def c_code(path, name, text):
    """A function of a CUDA source, from the line that names it (or its template) to the bracket that closes it."""
    rows = text.splitlines()
    for start, row in enumerate(rows):
        if re.search(rf"\b{re.escape(name)}\(", row) and not row.startswith((" ", "/", "}")) and not row.endswith(";"):
            depth, seen, end = 0, False, start
            while not seen or depth:
                depth += rows[end].count("{") - rows[end].count("}")
                seen, end = seen or "{" in rows[end], end + 1
            while start and rows[start - 1].startswith("template"):
                start -= 1
            return Quote(path, dedented(text, list(range(start + 1, end + 1))), "cuda")
    raise LookupError(f"{path} defines no {name}")


def dedented(text, numbers):
    """The lines with these numbers, all moved left by what the first is indented."""
    rows = text.splitlines()
    indent = len(rows[numbers[0] - 1]) - len(rows[numbers[0] - 1].lstrip())
    return [(number, rows[number - 1][indent:].rstrip()) for number in numbers]


def owner(tag, root):
    """The path and text of the file whose docstring derives a tag NAME.number, and the tag as (NAME, number)."""
    if not TAG.fullmatch(f"({tag})"):
        raise LookupError(f"{tag} is no tag: expected NAME.number")
    name, number = tag.split(".")
    for path in sorted((root / "scratchnet").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"({name}.1)" in text and (name, 1) in derived(text):
            if (name, int(number)) in derived(text):
                return path.relative_to(root).as_posix(), text, (name, int(number))
            raise LookupError(f"{path.relative_to(root)} derives no ({tag})")
    raise LookupError(f"no file derives ({tag})")


def lines(tag, root=ROOT):
    """The statements of the owning file that carry the tag; of a compound one (def, if, for) its first line only."""
    path, text, pair = owner(tag, root)
    numbers: list = []
    for row in [row for found, row in computed(text) if found == pair]:
        spans = [
            (node.lineno, node.body[0].lineno - 1 if hasattr(node, "body") else node.end_lineno)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.stmt)
        ]
        around = [(last - first, first, last) for first, last in spans if first <= row <= last]
        _, first, last = min(around, default=(0, row, row))  # a line such as `else:` is no statement of its own
        numbers += [number for number in range(first, last + 1) if number not in numbers]
    if not numbers:
        raise LookupError(f"no line of {path} carries ({tag})")
    return Quote(path, dedented_each(text, numbers), "python", single=True)


def dedented_each(text, numbers):
    """As `dedented`, for each run of neighbouring lines by itself."""
    runs: list = []
    for number in numbers:
        if not runs or runs[-1][-1] != number - 1:
            runs.append([])
        runs[-1].append(number)
    return [line for run in runs for line in dedented(text, run)]


def formula(tag, root=ROOT):
    """The line of the docstring that carries the tag first, with the lines before that it goes on from."""
    path, text, _ = owner(tag, root)
    rows = text.splitlines()
    end = next(number for number, row in enumerate(rows, 1) if f"({tag})" in row)
    first = end
    while first > 1 and len(rows[first - 1]) - len(rows[first - 1].lstrip()) >= CONTINUED:
        first -= 1
    return Quote(path, dedented(text, list(range(first, end + 1))), "text", single=True)


def result(path, texts, root=ROOT):
    """The lines of a file that contain one of the texts; of a table's rows, its head as well."""
    rows = read(path, root).splitlines()
    for text in texts:
        if not any(text in row for row in rows):
            raise LookupError(f"no line of {path} contains {text!r}")
    found = [number for number, row in enumerate(rows, 1) if any(text in row for text in texts)]
    if not all(rows[number - 1].startswith("|") for number in found):
        return Quote(path, [(number, rows[number - 1]) for number in found], "text")
    head = found[0]
    while head > 1 and rows[head - 2].startswith("|"):
        head -= 1
    numbers = [head, head + 1] + [number for number in found if number > head + 1]
    return Quote(path, [(number, rows[number - 1]) for number in numbers], "table")
