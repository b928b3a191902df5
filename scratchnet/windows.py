"""Sliding windows: which input position each tap of a kernel reads. Convolution and pooling share this geometry.

Along one axis, tap i of the window at output p reads input position
    p·stride + i·dilation - padding                                                        (WIN.1)
and the last window that fits gives the output size
    (size + 2·padding - dilation·(kernel - 1) - 1) // stride + 1                           (WIN.2)

For a fixed tap the outputs that read a real pixel, and not the padding, are a range, and so are the pixels that they read.
So a whole layer is a loop over the few taps, each of them one slice of the output and one slice of the input; padding is
never made, it is what the slices leave out. Forward goes `output[outside] += … input[inside]`, and its backward is the
same line with the sides exchanged: `d_input[inside] += … d_output[outside]`.
"""

from collections.abc import Iterator
from numbers import Integral

WHOLE = slice(None)


def pair(value, what, least):
    """An int or a pair of ints -> (h, w).

    Raises:
        ValueError: anything else, or a number below `least`; the message names `what`.
    """
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(is_count(v, least) for v in both):
        raise ValueError(f"{what} must be an int of at least {least} or a pair of them, got {value!r}")
    return int(both[0]), int(both[1])


def padding_of(padding, what, kernel, stride, dilation):
    """Padding as `pair` takes it, or PyTorch's "valid" and "same" -> (h, w).

    Raises:
        ValueError: anything else; "same" with a stride, or where both sides would need different padding.
    """
    if not isinstance(padding, str) or padding not in ("valid", "same"):
        return pair(padding, what, 0)
    if padding == "valid":
        return 0, 0
    if stride != (1, 1):
        raise ValueError(f"{what} 'same' needs stride 1, got stride {stride}: say how many pixels")
    both = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(pixels % 2 for pixels in both):
        raise ValueError(
            f"{what} 'same' would need different padding on the two sides, for kernel_size {kernel} and dilation {dilation}"
            ": pad x before, with np.pad, and convolve with padding=0"
        )
    return both[0] // 2, both[1] // 2  # (WIN.2) then gives y the size of x


def is_count(value, least=1):
    """Whether value is a whole number, Python's or NumPy's, of at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def require_room(layer, shape, kernel, padding, dilation):
    """Raise ValueError unless a window, given as pairs (h, w), fits into the padded picture; shape is (N, C, H, W)."""
    for axis, size, k, p, d in zip("HW", shape[2:], kernel, padding, dilation, strict=True):
        if d * (k - 1) + 1 > size + 2 * p:
            raise ValueError(
                f"{layer}: the kernel spans {d * (k - 1) + 1} pixels along {axis}, more than the padded input's "
                f"{size + 2 * p} (x of shape {shape}, padding {p})"
            )


def output_size(size, kernel, stride, padding, dilation=1, ceil_mode=False):
    """Number of windows along one axis; below 1 when not even one fits.

    With `ceil_mode` a last window may hang over the end, unless it would start in the padding (PyTorch's rule).
    """
    room = size + 2 * padding - dilation * (kernel - 1) - 1  # how far the first window can still move
    if not ceil_mode:
        return room // stride + 1  # (WIN.2)
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def tap_slices(tap, size, count, stride, padding, dilation):
    """The outputs among 0 … count-1 whose tap reads a real pixel, and the pixels they read, as two slices."""
    offset = tap * dilation - padding  # (WIN.1) at p = 0
    first = max(0, -(offset // stride))
    last = max(first, min(count, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, last), slice(start, start + (last - first) * stride, stride)


def taps(in_size, out_size, kernel, stride, padding, dilation=(1, 1)) -> Iterator[tuple]:
    """Every tap of a kernel, with what it reads.

    Args:
        in_size, out_size, kernel, stride, padding, dilation: pairs (h, w), in pixels.

    Yields:
        (i, j, outside, inside): the tap, an index into (C, OH, OW, …) and one into (C, H, W, …), of equal extent.
        A tap that reads nothing but padding is left out.
    """
    rows = [tap_slices(i, in_size[0], out_size[0], stride[0], padding[0], dilation[0]) for i in range(kernel[0])]
    cols = [tap_slices(j, in_size[1], out_size[1], stride[1], padding[1], dilation[1]) for j in range(kernel[1])]
    for i, (out_rows, in_rows) in enumerate(rows):
        for j, (out_cols, in_cols) in enumerate(cols):
            if out_rows.start < out_rows.stop and out_cols.start < out_cols.stop:
                yield i, j, (WHOLE, out_rows, out_cols), (WHOLE, in_rows, in_cols)


def copy_im2col(x, cols, stride, padding, dilation):
    """For each tap the pixels that it reads: x (C, H, W, N) to cols (C, KH, KW, OH, OW, N), zero so far, as padding is."""
    for i, j, outside, inside in taps(x.shape[1:3], cols.shape[3:5], cols.shape[1:3], stride, padding, dilation):
        cols[:, i, j][outside] = x[inside]


def add_col2im(dcols, dx, stride, padding, dilation):
    """What `copy_im2col` copied, added to where it came from: dcols (C, KH, KW, OH, OW, N) to dx (C, H, W, N)."""
    for i, j, outside, inside in taps(dx.shape[1:3], dcols.shape[3:5], dcols.shape[1:3], stride, padding, dilation):
        dx[inside] += dcols[:, i, j][outside]
