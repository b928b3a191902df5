"""On what a benchmark was measured: one line for its head, and the same for its JSON."""

import importlib.util
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import threadpoolctl

INSTRUCTIONS = (  # those that decide how many numbers a core computes at a time
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16",
    "asimd", "sve", "sve2", "bf16",
)  # fmt: skip
KERNELS = ("compiled", "numpy") if importlib.util.find_spec("numba") else ("numpy",)  # what `sn.use_kernels` takes here


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts():
    """1, 2, 4, … up to all cores."""
    return [n for n in (1 << k for k in range(16)) if n < cores()] + [cores()]


def machine(kernels=KERNELS):
    """What `head` prints, as a dictionary; `kernels` are those that are measured."""
    said = _cpuinfo()
    flags = said.get("flags", said.get("Features", "")).split()  # x86; ARM
    blas = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    return {
        "cpu": said.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": cores(),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "blas": " ".join(f"{b['internal_api']} {b['version']} {b.get('architecture', '')}".strip() for b in blas),
        "torch": _version("torch"),
        "numba": _version("numba"),
        "kernels": list(kernels),
    }


def head(kernels=KERNELS):
    """One line: CPU, its instruction sets, cores, versions, and which of scratchnet's kernels are measured."""
    m = machine(kernels)
    sets = " ".join(m["instructions"]) or "instruction sets unknown"
    blas = f" ({m['blas']})" if m["blas"] else ""
    peers = ", ".join(f"{name} {m[key]}" for name, key in (("PyTorch", "torch"), ("Numba", "numba")) if m[key])
    return (
        f"{m['cpu']} ({sets}), {m['cores']} cores; Python {m['python']}, NumPy {m['numpy']}{blas}"
        f"{', ' * bool(peers)}{peers}" + (f"; kernels: {', '.join(kernels)}" if kernels else "")
    )


def save(path, rows, kernels=KERNELS):
    """Write the machine and the rows as JSON; nothing where path is None."""
    if path:
        path.write_text(json.dumps({"machine": machine(kernels), "rows": rows}, indent=1) + "\n")


def _cpuinfo():
    """The first processor's entries in Linux's /proc/cpuinfo; elsewhere none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if sys.platform == "linux" and path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None
