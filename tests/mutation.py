#!/usr/bin/env python3
"""Mutation testing of the mathematics: change one thing in a function, and see whether a test notices.

    python tests/mutation.py [PATTERN …]        from the checkout, with the extras `test` and `dev`

Runs mutmut over the files that `[tool.mutmut]` of pyproject.toml names (or over the mutants that match a pattern, such as
`scratchnet.layers.norm*`), one child at a time, since more would share hypothesis' and the pool's state, and prints the
counts and each survivor's change; what an earlier run checked counts too. PyTorch must not be installed in that
environment: a forked child cannot use its threads, and the reference in loops is the oracle here.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter


def mutmut(*arguments, show=False):
    """Run mutmut; returns what it printed."""
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutation", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, env=environment, text=True, stdout=None if show else subprocess.PIPE, check=False)
    return done.stdout or ""


def main(patterns):
    """Run, count, and print the survivors; returns 1 if there are any."""
    if importlib.util.find_spec("torch"):
        print("mutation.py: PyTorch is installed here and would hang in forked children: use an environment without it")
        return 2
    mutmut("run", "--max-children", "1", *patterns, show=True)
    outcome = dict(re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", mutmut("results", "--all", "true"), re.M))
    print(", ".join(f"{count} {what}" for what, count in sorted(Counter(outcome.values()).items())))
    noticed = ("killed", "timeout", "caught by type check", "not checked")
    survivors = [name for name, what in outcome.items() if what not in noticed]
    for name in survivors:
        change = [line for line in mutmut("show", name).splitlines() if re.match(r"[-+](?![-+])", line)]
        print(f"\n{name}: {outcome[name]}", *change, sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
