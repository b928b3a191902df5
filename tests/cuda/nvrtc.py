"""NVRTC, CUDA's compiler as a library, through its C interface: no GPU, no driver and no CuPy are needed.

The wheel nvidia-cuda-nvrtc brings it (extra `kernels-ci`); the kernels include no header of CUDA's. Run as a program,
`python tests/cuda/nvrtc.py`, it prints what every kernel takes, as a table.
"""

import ctypes
import re
import sysconfig
from pathlib import Path
from typing import NamedTuple


class CompileError(RuntimeError):
    """The compiler's log."""


class Usage(NamedTuple):
    """What ptxas says of a kernel: registers a thread, bytes of shared memory, bytes spilled to memory and back, bytes of a
    thread's arrays that no registers hold."""

    registers: int
    shared: int
    spills: int
    frame: int


def library():
    """The compiler, or None where the wheels are not installed."""
    folder = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = sorted(folder.glob("**/libnvrtc.so.*"))
    return ctypes.CDLL(str(found[-1])) if found else None


def version(nvrtc):
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def assembly(nvrtc, code, architecture, options, names):
    """PTX, the assembler text, for one architecture: which instructions there are."""
    program = _program(nvrtc, code, names)
    try:
        wanted = [f"-arch=compute_{architecture}", *options]
        if nvrtc.nvrtcCompileProgram(program, len(wanted), _strings(wanted)):
            raise CompileError(_sized(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode())
        return _sized(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def compile_cuda(nvrtc, code, architecture, options, names):
    """Compile to machine code.

    Args:
        nvrtc: `library()`.
        code: CUDA C++.
        architecture: "80" is sm_80.
        options: the compiler's.
        names: the kernels that are wanted, each with its template arguments.

    Returns:
        The size of the machine code in bytes, and each kernel's `Usage` by its name.

    Raises:
        CompileError: with the compiler's log.
    """
    program = _program(nvrtc, code, names)
    try:
        wanted = [f"-arch=sm_{architecture}", "--ptxas-options=-v", *options]
        failed = nvrtc.nvrtcCompileProgram(program, len(wanted), _strings(wanted))
        log = _sized(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if failed:
            raise CompileError(log)
        code_size = len(_sized(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program))
        usage = _usage(log)
        lowered = {}
        for name in names:
            symbol = ctypes.c_char_p()
            if nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)):
                raise CompileError(f"no kernel {name} came out")
            lowered[name] = usage[symbol.value.decode()]
        return code_size, lowered
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _program(nvrtc, code, names):
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    for name in names:
        nvrtc.nvrtcAddNameExpression(program, name.encode())
    return program


def _strings(options):
    return (ctypes.c_char_p * len(options))(*(option.encode() for option in options))


def _sized(size_of, content_of, program):
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    content_of(program, buffer)
    return buffer.raw


def _usage(log):
    """Each kernel's `Usage` by its symbol, from ptxas' report."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        symbol = part[: part.index("'")]
        numbers = {
            what: sum(map(int, re.findall(pattern, part)))
            for what, pattern in (
                ("registers", r"Used (\d+) registers"),
                ("shared", r"(\d+) bytes smem"),
                ("spills", r"(\d+) bytes spill"),
                ("frame", r"(\d+) bytes stack frame"),
            )
        }
        found[symbol] = Usage(**numbers)
    return found


def print_table(nvrtc, architectures=("75", "80", "90"), dtypes=("float32", "float64", "bfloat16")):
    """Each kernel's registers, of all its instantiations from the fewest to the most, its shared memory and spills."""
    from scratchnet.kernels.cuda import launch as cuda_launch

    print("NVRTC {}.{}\n".format(*version(nvrtc)))
    columns = "".join(f" sm_{architecture} |" for architecture in architectures)
    print(
        f"| kernel | instantiations |{columns} bytes shared | bytes spilled |\n|{' --- |' * (4 + len(architectures))}"
    )
    for name, kernel in cuda_launch.declared().items():
        found = []
        for architecture in architectures:
            used = []
            for dtype in dtypes:
                names = cuda_launch.instantiations(kernel.source, dtype)
                wanted = [n for n in names if n.startswith(f"{name}<")]
                used += compile_cuda(nvrtc, cuda_launch.text(kernel.source), architecture, cuda_launch.OPTIONS, wanted)[
                    1
                ].values()
            found.append(used)
        registers = "".join(f" {min(u.registers for u in used)}–{max(u.registers for u in used)} |" for used in found)
        shared, spills = (max(getattr(u, what) for used in found for u in used) for what in ("shared", "spills"))
        print(f"| {name} | {len(found[0])} |{registers} {shared} | {spills} |", flush=True)


if __name__ == "__main__":
    print_table(library())
