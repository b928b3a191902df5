"""Imports run one way: from a floor of the house only to those below it, and never in a circle."""

import ast
from pathlib import Path

import pytest

import scratchnet

ROOT = Path(scratchnet.__file__).parent
FLOORS = [  # from the ground up; a file may import from lower floors, and from its own where that makes no circle
    "device windows reference reference_elementwise reference_joins reference_windows unpickle",
    "array parallel",
    "kernels.cpu kernels.compiled kernels.cuda",
    "kernels",
    "together",
    "cache flat held parameter",
    "module",
    "layers",
    "fused",
    "steps plan",
    "sequential branches",
    "trace trace_table gradcheck summary",
    "data training weights",
    "program",
    "",  # scratchnet/__init__.py, and what is run as a command
]


def imports_of(path):
    """The modules of the library that a file imports, in functions too, by their names without `scratchnet.`."""
    known = {module_name(file) for file in ROOT.rglob("*.py")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "scratchnet":
                inside = name.partition(".")[2]
                yield inside if inside in known else inside.rpartition(".")[0]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor_of(module):
    """The number of the floor whose entry fits best."""
    if module.endswith("__main__"):
        return len(FLOORS) - 1
    found = [
        (len(name), k)
        for k, names in enumerate(FLOORS)
        for name in names.split()
        if f"{module}.".startswith(f"{name}.")
    ]
    return max(found)[1] if found else len(FLOORS) - 1


GRAPH = {module_name(path): set(imports_of(path)) for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("module", GRAPH)
def test_no_file_imports_from_a_higher_floor(module):
    above = {other for other in GRAPH[module] if floor_of(other) > floor_of(module)}
    if module.startswith("program"):
        above -= {""}  # the program uses the public names
    assert not above


def circle(graph):
    """Modules that import one another in a circle, or None."""
    done: set = set()

    def visit(module, path):
        if module in path:
            return path[path.index(module) :]
        if module not in done:
            for other in sorted(graph.get(module, ())):
                if found := visit(other, [*path, module]):
                    return found
            done.add(module)
        return None

    return next(filter(None, (visit(module, []) for module in graph)), None)


def test_no_imports_run_in_a_circle():
    graph = {module: others - {""} for module, others in GRAPH.items()}
    assert circle(graph) is None


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}}) is None
    assert floor_of("kernels.cpu.norm") < floor_of("kernels") < floor_of("plan") < floor_of("program.flags")
