"""Exercises: twelve backwards to write, each judged in words, the library itself being the solution.

`python -m scratchnet.exercises` lists them; docs/exercises.md has a session. In the order in which to read: exercise.py,
what an exercise consists of; first.py, pools.py, convolutions.py, norms.py, blocks.py, the twelve; source.py cuts a
learner's file from the library's; judge.py asks it, diagnose.py has the words; learner.py and child.py run
whatever anybody wrote; folder.py and command.py are what is typed.
"""
