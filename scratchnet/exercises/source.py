"""The file that a learner fills in, cut from the library's own source: so it cannot drift from what is taught.

Given functions stand in it line by line. Of the one to be written signature and docstring are kept, and the lines in front
that only take the cache apart.
"""

import ast
import builtins
import inspect
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import scratchnet

ROOT = Path(scratchnet.__file__).parent
END = """
if __name__ == "__main__":  # python {name}.py judges this file
    from scratchnet.exercises.command import check

    raise SystemExit(check("{name}", __file__))
"""


class Source:
    """The source of one module of the library."""

    def __init__(self, module):
        self.module = module
        self.path = Path(import_module(module).__file__ or "")
        self.text = self.path.read_text(encoding="utf-8")
        self.lines = self.text.splitlines()
        self.tree = ast.parse(self.text)

    def find(self, name):
        """The node of a function, class or `Class.method`."""
        node: Any = self.tree
        for part in name.split("."):
            node = next(child for child in node.body if getattr(child, "name", None) == part)
        return node

    def cut(self, node):
        """The lines of a node."""
        return self.lines[node.lineno - 1 : node.end_lineno]

    def imports(self, names):
        """Lines that bind these names: as this file imports them, or imported from this file."""
        lines = []
        for node in self.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                aliases = [a for a in node.names if (a.asname or a.name) in names]
                said = ", ".join(a.name + f" as {a.asname}" * bool(a.asname) for a in aliases)
                if said:
                    lines.append(
                        (f"from {node.module} " if isinstance(node, ast.ImportFrom) else "") + f"import {said}"
                    )
            elif own := _bound(node) & names:
                lines.append(f"from {self.module} import {', '.join(sorted(own))}")
        return lines


def _bound(node):
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.name} if hasattr(node, "name") else set()


def _used(node):
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} - set(dir(builtins))


def write(exercise, number, total, solved=False):
    """The text of the file: with the body that is to be written, where `solved`."""
    source = Source(exercise.source)
    pieces, used, inside = [], set(), set()
    for entry in (*exercise.given, exercise.todo):
        name, _, methods = entry.partition(":")
        owner, _, method = name.partition(".")
        node = source.find(owner)
        if isinstance(node, ast.ClassDef):
            if method:
                continue  # its class stands among what is given
            wanted = [part.strip() for part in methods.split(",")]
            todo = exercise.todo.partition(".")[2]
            lines, parts = _class(source, node, wanted, todo, solved)
            for part in parts:
                used |= _used(part)
            used |= set().union(*(_used(base) for base in node.bases))
        else:
            lines = source.cut(node) if name != exercise.todo or solved else _blank(source, node)
            used |= _used(node)
        inside.add(owner)
        pieces.append((name == exercise.todo, node.lineno, "\n".join(lines)))  # what is to be written comes last
    tools = [f"from {module} import {name}" for module, _, name in (tool.partition(":") for tool in exercise.tools)]
    imports = _sorted([*source.imports(used - inside), *tools])
    body = "\n\n\n".join(text for *_, text in sorted(pieces))
    head = _docstring(exercise, number, total)
    return f"{head}\n\n{imports}\n\n\n{body}\n\n{END.format(name=exercise.name)}"


def _class(source, node, wanted, todo, solved):
    """The lines of a class with some of its methods, and their nodes."""
    methods = [child for child in node.body if getattr(child, "name", None) in wanted]
    first = node.body[0]
    lines = source.lines[node.lineno - 1 : first.end_lineno]
    for method in methods:
        blank = method.name == todo and not solved
        lines += ["", *(_blank(source, method) if blank else source.cut(method))]
    return lines, methods


def _blank(source, function):
    """A function's signature, its docstring and the lines that take its cache apart; then it is the learner's."""
    arguments = {argument.arg for argument in function.args.args}
    kept = 1
    while kept < len(function.body) - 1:
        node = function.body[kept]
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in arguments):
            break
        kept += 1
    lines = source.lines[function.lineno - 1 : function.body[kept - 1].end_lineno]
    indent = " " * function.body[0].col_offset
    return [*lines, f'{indent}raise NotImplementedError("to be written")']


def _sorted(lines):
    """Imports as ruff orders them: numpy, then the library's, one line a module."""
    modules: dict[str, set] = {}
    for line in lines:
        if line.startswith("from "):
            module, _, names = line.removeprefix("from ").partition(" import ")
            modules.setdefault(module, set()).update(names.split(", "))
    ours = [f"from {module} import {', '.join(sorted(modules[module], key=_order))}" for module in sorted(modules)]
    plain = sorted({"import numpy as np", *(line for line in lines if line.startswith("import "))})
    return "\n".join(plain) + "\n\n" + "\n".join(ours)


def _order(name):
    """Constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


def _docstring(exercise, number, total):
    given = inspect.cleandoc(exercise.problem)
    first, _, rest = given.partition("\n")
    where = Source(exercise.source).path.relative_to(ROOT.parent).as_posix()
    return (
        f'"""Exercise {number} of {total}, {exercise.name}: {first}\n{rest}\n\n'
        f"Write `{exercise.todo}`. All else is the library's own, from {where}, where the\n"
        "solution and its derivation stand: look there when you have one. The chapter is\n"
        f"docs/course/{exercise.chapter}.md.\n\n"
        f"    python -m scratchnet.exercises check {exercise.name}     how close it is, in words\n"
        f"    python -m scratchnet.exercises hint {exercise.name}      one more of three hints each time\n\n"
        f"`python {exercise.name}.py` checks this file, too. What it prints is shown.\n"
        '"""'
    )


def solution(exercise):
    """[(place "scratchnet/…:12-19", lines)] of the library that the exercise asks for."""
    found = []
    for name in (f"{exercise.source}:{exercise.todo}", *exercise.solution):
        module, _, name = name.partition(":")
        source = Source(module)
        node = source.find(name)
        body = node.body[1:] if ast.get_docstring(node) else node.body
        signature = source.lines[node.lineno - 1 : node.body[0].lineno - 1]
        lines = [*signature, *source.lines[body[0].lineno - 1 : node.end_lineno]]
        place = f"{source.path.relative_to(ROOT.parent).as_posix()}:{node.lineno}"
        found.append((place, textwrap.dedent("\n".join(lines)).splitlines()))
    return found


def formula(tag):
    """The lines of the library's docstrings that derive a tag, "LIN.3": that line, and what goes on behind it."""
    for path in sorted((ROOT / "layers").glob("*.py")):
        lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        if f"({tag.partition('.')[0]}.1)" in "\n".join(lines):
            for line in lines:
                if f"({tag})" in line:
                    return " ".join(line.split())
    raise LookupError(f"({tag}) is nowhere derived")
