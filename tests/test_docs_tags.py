"""Equation tags: what the docstring derives and what the lines compute are the same equations.

A tag is (NAME.number). The rule, for every file of the library:
1. The file whose module docstring has (NAME.1) owns NAME, and derives NAME.1, NAME.2, … there with none left out, each
   for the first time after the one before it.
2. Each of them stands in a comment on the line of code that computes it, in the same file; where a whole function
   computes it, on that function's `def` line.
3. A tag anywhere else (another docstring or comment, a kernel, another file) only points to an equation: it must exist.
"""

from pathlib import Path

import pytest
from tags import TAG, computed, derived, owners_of, tags

import scratchnet

ROOT = Path(scratchnet.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if TAG.search(path.read_text(encoding="utf-8"))]


def check(source, owners):
    """What is wrong with a file, as sentences. `owners`: NAME -> file that derives it."""
    wrong = []
    on_lines = {tag for tag, _ in computed(source)}
    own = [tag for tag in derived(source) if owners.get(tag[0]) == source]
    for name in dict.fromkeys(name for name, _ in own):
        numbers = [number for n, number in own if n == name]
        if numbers != list(range(1, len(numbers) + 1)):
            wrong.append(f"{name} is derived in the order {numbers}")
    wrong += [f"({n}.{k}) is derived and on no line of code" for n, k in own if (n, k) not in on_lines]
    for n, k in dict.fromkeys(tags(source)):
        if n not in owners or (n, k) not in derived(owners[n]):
            wrong.append(f"({n}.{k}) is nowhere derived")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_equation_is_derived_once_and_stands_on_the_line_that_computes_it(path):
    owners = owners_of([file.read_text(encoding="utf-8") for file in FILES])
    assert check(path.read_text(encoding="utf-8"), owners) == []


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.cu")), ids=lambda path: path.name)
def test_a_tag_in_a_cuda_source_points_to_an_equation(path):
    owners = owners_of([file.read_text(encoding="utf-8") for file in FILES])
    assert check(path.read_text(encoding="utf-8"), owners) == []


def test_every_layer_has_equations():
    without = {
        path.name for folder in ("layers", "fused") for path in (ROOT / folder).glob("*.py") if path not in FILES
    }
    assert without == {"__init__.py", "arguments.py", "blocks.py", "criterion.py", "init.py", "step.py"}


GOOD = """\'\'\'A layer.

    y = 2 x    (TWO.1)
    dx = 2 dy  (TWO.2)
\'\'\'

y = 2 * x  # (TWO.1)


def back(dy):  # (TWO.2)
    return 2 * dy
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("  # (TWO.1)", "", "(TWO.1) is derived and on no line of code"),
        ("y = 2 * x  # (TWO.1)", "# (TWO.1)\ny = 2 * x", "(TWO.1) is derived and on no line of code"),
        (":  # (TWO.2)\n", ':\n    """By (TWO.2)."""\n', "(TWO.2) is derived and on no line of code"),
        ("# (TWO.2)", "# (TWO.2) (TWO.3)", "(TWO.3) is nowhere derived"),
        ("# (TWO.2)", "# (TWO.2) and (THREE.1)", "(THREE.1) is nowhere derived"),
        ("(TWO.1)\n    dx = 2 dy  (TWO.2)", "(TWO.2)\n    dx = 2 dy  (TWO.1)", "TWO is derived in the order [2, 1]"),
        ("dx = 2 dy  (TWO.2)", "dx = 2 dy  (TWO.3)", "TWO is derived in the order [1, 3]"),
    ],
)
def test_the_rule_itself(old, new, complaint):
    assert check(GOOD, owners_of([GOOD])) == []
    assert old in GOOD
    bad = GOOD.replace(old, new)
    assert complaint in check(bad, owners_of([bad]))
