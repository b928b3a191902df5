"""Exercises: twelve backwards to write, each judged in words, the library itself being the solution.

`python -m scratchnet.exercises` lists them; docs/exercises.md has a session. In the order in which to read: exercise.py,
what an exercise consists of; first.py, modules.py, pools.py, convolutions.py, norms.py, block.py, the twelve; source.py
cuts a learner's file from the library's; questions.py asks it, judge.py and manners.py judge, diagnose.py and misshapen.py
have the words; learner.py and child.py run whatever anybody wrote; folder.py and command.py do what is typed.
"""
