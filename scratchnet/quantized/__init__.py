"""8 bits: a trained network on whole numbers.

`scheme.py` says which whole number stands for which real one, `simulated.py` puts a network on such grids in floats, where
it can be fine-tuned, `integer.py` makes a network of whole numbers of it. `python -m scratchnet.quantized CHECKPOINT`
measures what that costs.
"""

from scratchnet.quantized.integer import IntegerNetwork
from scratchnet.quantized.scheme import Grid, grid_of
from scratchnet.quantized.simulated import Quantize, calibrate, prepare, quantize

__all__ = [
    "Grid", "IntegerNetwork", "Quantize", "calibrate", "grid_of", "prepare", "quantize",
]  # fmt: skip
