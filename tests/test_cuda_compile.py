"""Every CUDA kernel, in every instantiation, compiles for GPUs from Turing to Hopper and keeps its numbers in registers."""

import nvrtc
import pytest

from scratchnet.kernels.cuda import launch as cuda_launch

ARCHITECTURES = ("75", "80", "90")
DTYPES = ("float32", "float64", "bfloat16")
SOURCES = sorted({kernel.source for kernel in cuda_launch.declared().values()})
MOST_REGISTERS = 128  # with 256 threads a block, two blocks then fit on a multiprocessor


@pytest.fixture(scope="module")
def compiler():
    found = nvrtc.library()
    if found is None:
        pytest.skip("NVRTC is not installed: install the extra kernels-ci")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_every_instantiation_compiles_without_spills(compiler, source, architecture, record_property):
    for dtype in DTYPES:
        names = cuda_launch.instantiations(source, dtype)
        _, usage = nvrtc.compile_cuda(compiler, cuda_launch.text(source), architecture, cuda_launch.OPTIONS, names)
        assert set(usage) == set(names)
        for name, used in usage.items():
            print(f"sm_{architecture} {name}: {used.registers} registers, {used.shared} bytes shared")
            record_property(f"registers of {name}", used.registers)
            assert used.spills == 0, name
            assert 0 < used.registers <= MOST_REGISTERS, name


def test_every_kernel_in_the_sources_is_found():
    """A declaration that the reader of the sources does not understand would go uncompiled."""
    for source in SOURCES:
        found = [name for name, kernel in cuda_launch.declared().items() if kernel.source == source]
        assert cuda_launch.text(source).count("__global__") == len(found)


def test_a_wrong_source_is_refused_with_file_and_line(compiler):
    broken = cuda_launch.text("loss").replace("log(total)", "logarithm(total)")
    with pytest.raises(nvrtc.CompileError, match=r"kernels\.cu\(\d+\): error: .*logarithm"):
        nvrtc.compile_cuda(compiler, broken, "80", cuda_launch.OPTIONS, cuda_launch.instantiations("loss", "float32"))


def test_spills_are_seen(compiler):
    """A kernel that holds more numbers than there are registers."""
    many = "\n".join(f"  float v{i} = x[i0 + {i} * n];" for i in range(300))
    total = " + ".join(f"v{i} * v{(7 * i + 3) % 300}" for i in range(300))
    code = f"""template <class T> __global__ void __launch_bounds__(1024) k(const T* x, T* y, int n) {{
  int i0 = threadIdx.x;
{many}
  __syncthreads();
  y[i0] = {total};
}}"""
    _, usage = nvrtc.compile_cuda(compiler, code, "80", cuda_launch.OPTIONS, ["k<float>"])
    assert usage["k<float>"].spills > 0
