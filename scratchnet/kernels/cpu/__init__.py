"""Kernels for the CPU: the layers' functions in few passes over memory, in NumPy alone.

What decides the time here is how often an element travels between memory and the core, so that every kernel counts its
passes. Costs measured on two AVX-512 cores, in ns an element and thread: multiply or add 0.11-0.15 in the cache, 0.36 a
copy beyond it; a row's sum by `x @ ones` 0.06-0.1 (`x.sum(1)`: 0.2); a row's dot product by `np.vecdot` 0.06-0.1; `np.clip`
0.13-0.2; `np.where` 4-6, so never. They take float32 and float64; complex numbers go to the layers' files.

A kernel whose row c needs row c of its input only goes over a slab of channels at a time (`parallel/cuts.py`): the slab
stays in the cache from the first pass to the last, and different slabs go to different threads.
"""

from scratchnet.kernels.cpu import activation, dense, depthwise, norm, optimizer, pointwise, pool

__all__ = ["activation", "dense", "depthwise", "norm", "optimizer", "pointwise", "pool"]
