"""The twelve, in order."""

from scratchnet.exercises import blocks, convolutions, first, norms, pools

PARTS = first.EXERCISES, pools.EXERCISES, convolutions.EXERCISES, norms.EXERCISES, blocks.EXERCISES
COURSE = {exercise.name: exercise for part in PARTS for exercise in part}
