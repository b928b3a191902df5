"""Exercises: twelve backwards to write, each judged in words, the library itself being the solution.

`python -m scratchnet.exercises` lists them; docs/exercises.md has a session.
"""

from scratchnet.exercises.exercise import Exercise


def course() -> dict[str, Exercise]:
    """Name -> exercise, in order."""
    from scratchnet.exercises import blocks, convolutions, first, norms, pools

    some = first.EXERCISES, pools.EXERCISES, convolutions.EXERCISES, norms.EXERCISES, blocks.EXERCISES
    return {exercise.name: exercise for part in some for exercise in part}


def check(name, file):
    """Judge a file as `python -m scratchnet.exercises check` does; returns the exit code."""
    from pathlib import Path

    from scratchnet.exercises.__main__ import main

    return main(["check", name, str(Path(file).resolve().parent)])
