#!/usr/bin/env python3
"""Mutation testing of the compiled loops: change one thing in a loop, run it as Python, and see whether a test notices.

    python tests/mutation_loops.py [--files slabs rows …] [--sample N] [--seed S] [--jobs J]      (extras `test` and `fast`)

`mutmut` passes over decorated functions, so this has its own few changes: another operator, another comparison, a number
one larger, a statement left out. Each is made in a copy of the library; with NUMBA_DISABLE_JIT=1 the loops are the Python
that they are, on the small arrays of `test_compiled.py`: what is noticed is noticed in the text, with no compiler between.
Prints the counts of each file, and every survivor's line.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOOPS = ROOT / "scratchnet" / "kernels" / "compiled"
FILES = ("activation", "augment", "convolve", "depthwise", "norm", "optimizer", "pointwise", "rows", "slabs", "strips")
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SECONDS = 120  # a mutant that takes longer runs for ever, which is noticed


def loops(tree):
    """The functions that are compiled."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            getattr(d, "id", "") in ("jit", "exact") for d in node.decorator_list
        ):
            yield node


def changes(tree):
    """Functions that change one thing in a tree, each with the line on which it does."""
    for loop in loops(tree):
        for node in ast.walk(loop):
            if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in OTHER:
                yield node.lineno, lambda n: setattr(n, "op", OTHER[type(n.op)]()), node
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
                yield node.lineno, lambda n: n.ops.__setitem__(0, OTHER[type(n.ops[0])]()), node
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                yield node.lineno, lambda n: setattr(n, "value", n.value + 1), node
            elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
                yield node.lineno, lambda n: setattr(n, "value", not n.value), node
            elif isinstance(node, (ast.Assign, ast.AugAssign)) and isinstance(getattr(node, "target", node), ast.AST):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Subscript):  # a name that is not set would be a crash
                    yield node.lineno, lambda n: setattr(n, "value", ast.copy_location(_kept(n), n.value)), node


def _kept(statement):
    """What leaves a number as it is: itself, or 0 to be added."""
    if isinstance(statement, ast.AugAssign):
        return ast.Constant(0 if isinstance(statement.op, (ast.Add, ast.Sub)) else 1)
    kept = copy.deepcopy(statement.targets[0])
    kept.ctx = ast.Load()
    return kept


def mutants(name):
    """(file, line, the line's text before, the source after) for every change of a file."""
    source = (LOOPS / f"{name}.py").read_text()
    found = []
    for k, (line, _, _) in enumerate(list(changes(ast.parse(source)))):
        tree = ast.parse(source)
        _, change, node = list(changes(tree))[k]
        before = ast.unparse(node)
        change(node)
        text = f"{before}  ->  {ast.unparse(node)}"
        found.append((name, line, text, ast.unparse(ast.fix_missing_locations(tree))))
    return found


def notices(mutant, folder):
    """Whether a test fails with this mutant in the copy of the library in a folder."""
    name, _, _, source = mutant
    path = folder / "scratchnet" / "kernels" / "compiled" / f"{name}.py"
    kept = path.read_text()
    path.write_text(source)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
    ]
    command += [f"tests/{name}.py" for name in ("test_compiled", "test_augment", "test_dense", "test_fused_dense")]
    command += ["-k", CHOSEN]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(kept)


CHOSEN = "(plain_function and not 9) or updates or kink or one_compiled_pass or dense or (equal_numbers and 9)"


def main():
    """Make mutants, try them, and print what nobody noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--sample", type=int, help="try so many, drawn by the seed, in place of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    made = [mutant for name in args.files for mutant in mutants(name)]
    if args.sample and args.sample < len(made):
        made = random.Random(args.seed).sample(made, args.sample)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        copies = [Path(folder) / str(k) for k in range(args.jobs)]
        for place in copies:
            for part in ("scratchnet", "models", "tests", "benchmarks"):
                shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", place)
        if notices((args.files[0], 0, "", (LOOPS / f"{args.files[0]}.py").read_text()), copies[0]):
            print("mutation_loops.py: the tests fail without a change")
            return 2
        shares = [made[k :: args.jobs] for k in range(args.jobs)]
        tried = pool.map(lambda share, place: [(mutant, notices(mutant, place)) for mutant in share], shares, copies)
        outcome = sorted((m[:3], noticed) for share in tried for m, noticed in share)
    counts, killed = Counter(m[0] for m, _ in outcome), Counter(m[0] for m, noticed in outcome if noticed)
    for name in counts:
        print(f"{name:<12} {counts[name]:>4} mutants, {killed[name]:>4} noticed")
    print(f"{'sum':<12} {len(outcome):>4} mutants, {sum(killed.values()):>4} noticed")
    for (name, line, text), noticed in outcome:
        if not noticed:
            print(f"{name}.py:{line}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
