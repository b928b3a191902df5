"""Every CUDA kernel, in every instantiation, compiles for GPUs from Turing to Hopper and keeps its numbers in registers."""

import re

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
            assert used.spills == used.frame == 0, name
            assert 0 < used.registers <= MOST_REGISTERS, name


@pytest.mark.parametrize(("architecture", "instruction"), [("75", False), ("80", True), ("90", True)])
def test_numbers_are_rounded_to_bfloat16_by_the_instruction_where_there_is_one(compiler, architecture, instruction):
    """The other way, of integers, is that of the host, whose bits are held to NumPy's (test_cuda_bfloat16.py)."""
    text = nvrtc.assembly(
        compiler, cuda_launch.text("rows"), architecture, cuda_launch.OPTIONS, ("narrow<bfloat16>", "narrow<float>")
    )
    assert ("cvt.rn.bf16.f32" in text) == instruction and (str(0x7FFF) in text) != instruction


@pytest.mark.parametrize(("dtype", "numbers"), [("bfloat16", 8), ("float32", 4), ("float64", 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "name", ["window_forward", "window_moments", "window_backward", "front_forward", "front_backward"]
)
def test_a_thread_that_slides_loads_and_stores_words(compiler, name, dtype, numbers, stride):
    """16 bytes at once wherever there are pictures: nothing in bfloat16 is loaded or stored by itself."""
    expression = cuda_launch.expression(name, dtype, numbers, stride)
    text = nvrtc.assembly(compiler, cuda_launch.text("depthwise"), "80", cuda_launch.OPTIONS, [expression])
    widths = {"loads": re.findall(r"\bld\.global\S*", text), "stores": re.findall(r"\bst\.global\S*", text)}
    for what, found in widths.items():
        words = [each for each in found if re.search(r"\.v4\.\w32|\.v2\.\w64", each)]
        assert words, (what, found)
        others = {each for each in found if each not in words}
        assert not any("16" in each for each in others), (what, others)


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
