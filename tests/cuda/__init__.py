"""What proves the CUDA kernels and the code around them on a machine that has no GPU.

`nvrtc.py` compiles them, `hostmodule.py` runs the same source as host code, `standin.py` is a CuPy that only refuses.
"""
