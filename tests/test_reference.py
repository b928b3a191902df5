"""The oracle has no oracle inside this project: numbers worked out by hand, and PyTorch where it is installed."""

import inspect

import numpy as np
import pytest

from scratchnet import reference


def same(got, want, digits=12):
    """Equal shapes, float64, and equal values to so many digits of the largest one."""
    want = np.asarray(want, dtype=np.float64)
    assert np.asarray(got).dtype == np.float64
    assert np.shape(got) == want.shape
    largest = np.max(np.abs(want[np.isfinite(want)]), initial=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=largest * 10**-digits)


# --- By hand: convolution ---------------------------------------------------------------------------------------------
# Digits and powers of ten: with taps 100000, 10000, ... 1 an output spells the digits of the window that it sees, with
# an upstream gradient of powers of ten a weight's gradient spells the pixels that it met, and a pixel's gradient spells
# the weights that it met, one digit for each place of y.

SPELL = [[100000, 10000, 1000], [100, 10, 1]]
NOTHING = [[0, 0, 0], [0, 0, 0]]
DIGITS = np.array([[
    [[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3], [4, 5, 6, 7, 8, 9], [2, 4, 6, 8, 1, 3]],
    [[6, 5, 4, 3, 2, 1], [3, 2, 1, 9, 8, 7], [9, 8, 7, 6, 5, 4], [3, 1, 8, 6, 4, 2]],
]])  # fmt: skip
# Windows of 2 × 3, 3 rows and 2 columns apart, padding 1 and 2: they start in rows -1 and 2 (row 1 and the
# padding below are in none) and in columns -2, 0, 2 and 4 (the last column of the padding is in none).
STRIDE, PADDING = (3, 2), (1, 2)


def test_conv2d_forward_by_hand():
    weight = np.array([
        [SPELL, NOTHING],  # spells channel 0
        [NOTHING, SPELL],  # spells channel 1
        [[[0, 0, 0], [0, 10, 0]], [[0, 0, 0], [0, 0, 1]]],  # 10 · lower middle of channel 0 + lower right of 1
    ])  # fmt: skip
    y = reference.conv2d_forward(DIGITS, weight, np.array([1e6, 2e6, 300]), STRIDE, PADDING, (1, 1), 1)
    same(y, [[
        [[1_000_001, 1_000_123, 1_000_345, 1_000_560], [1_004_002, 1_456_246, 1_678_681, 1_890_130]],
        [[2_000_006, 2_000_654, 2_000_432, 2_000_210], [2_009_003, 2_987_318, 2_765_864, 2_540_420]],
        [[306, 324, 342, 360], [303, 348, 384, 330]],
    ]])  # fmt: skip


def test_conv2d_backward_by_hand():
    weight = np.array([
        [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [3, 2, 1]]],
        [[[9, 8, 7], [6, 5, 4]], [[3, 2, 1], [4, 5, 6]]],
        [[[2, 4, 6], [8, 1, 3]], [[5, 7, 9], [6, 4, 2]]],
    ])  # fmt: skip
    dy = np.array([[
        [[1e7, 1e6, 1e5, 1e4], [1e3, 1e2, 1e1, 1e0]],
        [[0, 0, 0, 0], [0, 1e8, 0, 0]],  # the window of rows 2, 3 and columns 0, 1, 2
        [[0, 0, 0, 1e9], [0, 0, 0, 0]],  # the window of rows -1, 0 and columns 4, 5, 6: two pixels are inside
    ]])  # fmt: skip
    dx, dweight, dbias = reference.conv2d_backward(dy, DIGITS, weight, STRIDE, PADDING, (1, 1), 1)
    # Pixel (0, 0) is in the first window under the tap 6 and in the second under the tap 4: it spells 6400 0000.
    same(dx, [[
        [
            [6400_0000, 500_0000, 640_0000, 50_0000, 8_0_0064_0000, 1_0_0005_0000],
            [0, 0, 0, 0, 0, 0],
            [9_0000_3100, 8_0000_0200, 7_0000_0310, 20, 31, 2],
            [6_0000_6400, 5_0000_0500, 4_0000_0640, 50, 64, 5],
        ],
        [
            [1300_0000, 200_0000, 130_0000, 20_0000, 6_0_0013_0000, 4_0_0002_0000],
            [0, 0, 0, 0, 0, 0],
            [3_0000_9700, 2_0000_0800, 1_0000_0970, 80, 97, 8],
            [4_0000_1300, 5_0000_0200, 6_0000_0130, 20, 13, 2],
        ],
    ]])  # fmt: skip
    # The upper left tap lies in the padding (0000), then in row 2, columns -2, 0, 2, 4, where channel 0 has 0 4 6 8.
    same(dweight, [
        [[[468, 579, 4680], [135_0261, 246_0483, 1350_2610]], [[975, 864, 9750], [642_0384, 531_0162, 6420_3840]]],
        [[[4e8, 5e8, 6e8], [2e8, 4e8, 6e8]], [[9e8, 8e8, 7e8], [3e8, 1e8, 8e8]]],
        [[[0, 0, 0], [5e9, 6e9, 0]], [[0, 0, 0], [2e9, 1e9, 0]]],
    ])  # fmt: skip
    same(dbias, [1111_1111, 1e8, 1e9])


# Groups and dilation: every pixel holds its own address, nchw, and every output channel has a single tap, so that y
# says where it looked. 6 output channels in 2 groups: 0, 1, 2 see channels 0, 1, and 3, 4, 5 see channels 2, 3. The
# taps of the 2 × 2 kernel are 2 rows and 3 columns apart, so on 3 × 5 pixels there is room for 1 × 2 outputs.
ADDRESS = np.arange(2).reshape(2, 1, 1, 1) * 1000 + np.arange(4).reshape(4, 1, 1) * 100
ADDRESS = ADDRESS + np.arange(3).reshape(3, 1) * 10 + np.arange(5)
TAPS = np.zeros((6, 2, 2, 2))
for _output, _tap in enumerate([(0, 0, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]):
    TAPS[_output][_tap] = 1


def test_grouped_dilated_conv2d_forward_by_hand():
    y = reference.conv2d_forward(ADDRESS, TAPS, None, (1, 1), (0, 0), (2, 3), 2)
    picture = np.array([[[0, 1]], [[3, 4]], [[120, 121]], [[223, 224]], [[300, 301]], [[323, 324]]])
    same(y, [picture, picture + 1000])


def test_grouped_dilated_conv2d_backward_by_hand():
    dy = np.arange(1, 25).reshape(2, 6, 1, 2)
    dx, _, dbias = reference.conv2d_backward(dy, ADDRESS, TAPS, (1, 1), (0, 0), (2, 3), 2)
    want = np.zeros((2, 4, 3, 5))
    for n in (0, 1):  # output channel o of picture 0 has the gradients 2o + 1 and 2o + 2; picture 1 has 12 more
        want[n, 0, 0, [0, 1, 3, 4]] = np.array([1, 2, 3, 4]) + 12 * n
        want[n, 1, 2, [0, 1]] = np.array([5, 6]) + 12 * n
        want[n, 2, 2, [3, 4]] = np.array([7, 8]) + 12 * n
        want[n, 3, 0, [0, 1]] = np.array([9, 10]) + 12 * n
        want[n, 3, 2, [3, 4]] = np.array([11, 12]) + 12 * n
    same(dx, want)
    same(dbias, [30, 38, 46, 54, 62, 70])  # 1 + 2 + 13 + 14, 3 + 4 + 15 + 16, ...

    dy = np.zeros((2, 6, 1, 2))
    dy[0, 0, 0, 0], dy[1, 4, 0, 1] = 2, 1
    _, dweight, _ = reference.conv2d_backward(dy, ADDRESS, TAPS, (1, 1), (0, 0), (2, 3), 2)
    want = np.zeros((6, 2, 2, 2))
    want[0] = [[[0, 2 * 3], [2 * 20, 2 * 23]], [[2 * 100, 2 * 103], [2 * 120, 2 * 123]]]  # picture 0, from pixel (0, 0)
    want[4] = [[[1201, 1204], [1221, 1224]], [[1301, 1304], [1321, 1324]]]  # picture 1, group 1, from pixel (0, 1)
    same(dweight, want)


# --- By hand: batch norm ----------------------------------------------------------------------------------------------
# Deviations from the mean whose squares sum to 8 · 5, 0 and 8 · 21; with eps = 4 the square roots are 3, 2 and 5.

MEANS, VARIANCES, EPS = [10, 20, -1], [5, 0, 21], 4
DEVIATIONS = np.array([
    [[[3, -1, 1, -3]], [[0, 0, 0, 0]], [[7, -5, 3, -1]]],
    [[[-3, 1, 3, -1]], [[0, 0, 0, 0]], [[-7, 5, -3, 1]]],
])  # fmt: skip
NORM_X = DEVIATIONS + np.array(MEANS).reshape(3, 1, 1)  # (2, 3, 1, 4)
NORM_WEIGHT, NORM_BIAS = np.array([3, 6, 10]), np.array([1, 2, 3])  # weight / √(variance + eps) = 1, 3, 2
NORM_DY = np.zeros((2, 3, 1, 4))
NORM_DY[0, 0, 0, 0], NORM_DY[1, 1, 0, 3], NORM_DY[1, 2, 0, 1] = 72, 16, 40  # where the deviations are 3, 0, 5


def test_batch_norm_forward_by_hand():
    y, mean, var = reference.batch_norm_forward(NORM_X, NORM_WEIGHT, NORM_BIAS, EPS)
    same(mean, MEANS)
    same(var, VARIANCES)
    same(y, [
        [[[4, 0, 2, -2]], [[2, 2, 2, 2]], [[17, -7, 9, 1]]],  # 1 · deviation + 1;   2;   2 · deviation + 3
        [[[-2, 2, 4, 0]], [[2, 2, 2, 2]], [[-11, 13, -3, 5]]],
    ])  # fmt: skip


def test_batch_norm_backward_by_hand():
    dx, dweight, dbias = reference.batch_norm_backward(NORM_DY, NORM_X, NORM_WEIGHT, EPS)
    same(dbias, [72, 16, 40])
    same(dweight, [72 * 3 / 3, 0, 40 * 5 / 5])  # dy · deviation / √(variance + eps)
    # Each dx is weight / √(variance + eps) times what dy and x̂ leave after their means over the 8 numbers: channel 0
    # 1 · (dy - 9 - x̂ · 9) with x̂ = deviation / 3; channel 1 3 · (dy - 2); channel 2 2 · (dy - 5 - deviation).
    same(dx, [
        [[[72 - 18, -6, -12, 0]], [[-6, -6, -6, -6]], [[-24, 0, -16, -8]]],
        [[[0, -12, -18, -6]], [[-6, -6, -6, 48 - 6]], [[4, 80 - 20, -4, -12]]],
    ])  # fmt: skip


def test_frozen_batch_norm_by_hand():
    mean, var = np.array([12, 20, -2]), np.array([12, 0, 21])  # not those of x in channels 0 and 2
    weight = np.array([8, 6, 10])  # 8 / √(12 + 4) = 2, 6 / 2 = 3, 10 / 5 = 2
    same(reference.frozen_batch_norm_forward(NORM_X, weight, NORM_BIAS, mean, var, EPS), [
        [[[3, -5, -1, -9]], [[2, 2, 2, 2]], [[19, -5, 11, 3]]],  # 2 · (deviation - 2) + 1; 2; 2 · (deviation + 1) + 3
        [[[-9, -1, 3, -5]], [[2, 2, 2, 2]], [[-9, 15, -1, 7]]],
    ])  # fmt: skip
    dx, dweight, dbias = reference.frozen_batch_norm_backward(NORM_DY, NORM_X, weight, mean, var, EPS)
    want = np.zeros((2, 3, 1, 4))
    want[0, 0, 0, 0], want[1, 1, 0, 3], want[1, 2, 0, 1] = 2 * 72, 3 * 16, 2 * 40
    same(dx, want)
    same(dweight, [72 * (3 - 2) / 4, 0, 40 * (5 + 1) / 5])
    same(dbias, [72, 16, 40])


def test_running_statistics_by_hand():
    # [1, 2, 3, 4] has mean 5/2 and squared deviations 5: biased 5/4, unbiased 5/3. A tenth of it replaces a tenth of 1.
    mean, var = reference.running_statistics(np.zeros(1), np.ones(1), np.array([2.5]), np.array([1.25]), 4, 0.1)
    same(mean, [0.25])
    same(var, [0.9 + 0.1 * 5 / 3])
    # Half of the old, half of the new, and 3 numbers: 3/2 of the biased variance.
    old_mean, old_var, new_mean, new_var = np.array([[2, 4], [6, 8], [4, 0], [4, 2]])
    mean, var = reference.running_statistics(old_mean, old_var, new_mean, new_var, 3, 0.5)
    same(mean, [3, 2])
    same(var, [6, 5.5])


# --- By hand: the others ----------------------------------------------------------------------------------------------

BEYOND_0, BEYOND_6 = np.nextafter(0, 1), np.nextafter(6, 7)


def test_relu_by_hand():
    x = np.array([[-2, -BEYOND_0, -0.0], [0, BEYOND_0, 7], [np.inf, -np.inf, np.nan]])
    same(reference.relu_forward(x), [[0, 0, 0], [0, BEYOND_0, 7], [np.inf, 0, np.nan]])
    assert reference.relu_forward(x)[1, 1] == BEYOND_0
    same(reference.relu_backward(np.arange(1, 10).reshape(3, 3), x), [[0, 0, 0], [0, 5, 6], [7, 0, 9]])


def test_relu6_by_hand():
    x = np.array([[-2, -BEYOND_0, -0.0, 0], [BEYOND_0, 5, 12 - BEYOND_6, 6], [BEYOND_6, np.inf, -np.inf, np.nan]])
    y = reference.relu6_forward(x)
    same(y, [[0, 0, 0, 0], [BEYOND_0, 5, 12 - BEYOND_6, 6], [6, 6, 0, np.nan]])
    assert y[1, 0] == BEYOND_0 and y[1, 2] < 6 == y[2, 0]
    same(reference.relu6_backward(np.arange(1, 13).reshape(3, 4), x), [[0, 0, 0, 0], [5, 6, 7, 0], [0, 0, 0, 12]])


# Windows of 2 × 3, 2 rows and 3 columns apart, padding 1 and 0, on 4 × 7 pixels: rows (pad, 0), (1, 2), (3, pad) and
# columns (0, 1, 2), (3, 4, 5); rounding up adds the column 6, of which two thirds stick out and never count.
POOL_X = np.array([[
    [[6, 12, 18, 0, 6, 0, 24], [1, 2, 3, 4, 5, 6, 7], [5, 4, 3, 2, 1, 0, 5], [12, 12, 12, 0, 0, 6, 18]],
    [[0] * 7, [0] * 7, [0] * 7, [0, 0, 0, 0, 0, 0, 30]],
]])  # fmt: skip
POOL = (2, 3), (2, 3), (1, 0)


@pytest.mark.parametrize(
    ("ceil_mode", "count_include_pad", "channel_0", "last"),
    [
        (False, True, [[36 / 6, 6 / 6], [18 / 6, 18 / 6], [36 / 6, 6 / 6]], []),
        (False, False, [[36 / 3, 6 / 3], [18 / 6, 18 / 6], [36 / 3, 6 / 3]], []),
        (True, True, [[6, 1, 24 / 2], [3, 3, 12 / 2], [6, 1, 18 / 2]], [30 / 2]),
        (True, False, [[12, 2, 24 / 1], [3, 3, 12 / 2], [12, 2, 18 / 1]], [30 / 1]),
    ],
)
def test_avg_pool2d_forward_by_hand(ceil_mode, count_include_pad, channel_0, last):
    width = len(channel_0[0])
    channel_1 = [[0] * width, [0] * width, [0, 0, *last]]
    same(reference.avg_pool2d_forward(POOL_X, *POOL, ceil_mode, count_include_pad), [[channel_0, channel_1]])


def test_avg_pool2d_backward_by_hand():
    dy = np.array([[[[6, 12, 2], [18, 24, 4], [30, 36, 8]], [[0, 0, 0], [0, 0, 0], [0, 0, 10]]]])
    # Divided by 6 where the window holds 2 × 3 places, and by 2 in the last column: the padding counts.
    upper, middle, lower = [1, 1, 1, 2, 2, 2, 1], [3, 3, 3, 4, 4, 4, 2], [5, 5, 5, 6, 6, 6, 4]
    channel_1 = [[0] * 7, [0] * 7, [0] * 7, [0, 0, 0, 0, 0, 0, 5]]
    dx = reference.avg_pool2d_backward(dy, POOL_X, *POOL, True, True)
    same(dx, [[[upper, middle, middle, lower], channel_1]])
    # The padding does not count: 3 instead of 6 places above and below.
    upper, lower = [2, 2, 2, 4, 4, 4, 2], [10, 10, 10, 12, 12, 12, 8]
    channel_1 = [[0] * 7, [0] * 7, [0] * 7, [0, 0, 0, 0, 0, 0, 10]]
    dx = reference.avg_pool2d_backward(dy, POOL_X, *POOL, True, False)
    same(dx, [[[upper, middle, middle, lower], channel_1]])


def test_avg_pool2d_no_window_starts_in_the_padding():
    # 3 pixels, padding 1, windows of 2 that start in -1, 1 and, rounded up, 3: that is the padding, and left out.
    x = np.array([[[[2, 4, 6]]]])
    same(reference.avg_pool2d_forward(x, (1, 2), (1, 2), (0, 1), True, True), [[[[1, 5]]]])
    # 4 pixels: the window that starts in 3 holds the last pixel and the padding behind it.
    x = np.array([[[[2, 4, 6, 8]]]])
    same(reference.avg_pool2d_forward(x, (1, 2), (1, 2), (0, 1), True, True), [[[[1, 5, 4]]]])


def test_avg_pool2d_backward_where_windows_overlap():
    x, dy = np.zeros((1, 1, 1, 4)), np.array([[[[2, 20, 200]]]])  # windows (0, 1), (1, 2) and (2, 3)
    same(reference.avg_pool2d_backward(dy, x, (1, 2), (1, 1), (0, 0), False, True), [[[[1, 1 + 10, 10 + 100, 100]]]])


def test_global_avg_pool2d_by_hand():
    x = np.arange(24).reshape(2, 4, 1, 3)  # picture n, channel c: 3k, 3k + 1, 3k + 2 with k = 4n + c
    same(reference.global_avg_pool2d_forward(x), [[[[1]], [[4]], [[7]], [[10]]], [[[13]], [[16]], [[19]], [[22]]]])
    dy = np.arange(0, 24, 3).reshape(2, 4, 1, 1)
    want = [[[[0] * 3], [[1] * 3], [[2] * 3], [[3] * 3]], [[[4] * 3], [[5] * 3], [[6] * 3], [[7] * 3]]]
    same(reference.global_avg_pool2d_backward(dy, x), want)


def test_linear_by_hand():
    x, weight = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[100, 10, 1], [1, 0, 0], [0, 0, 2], [1, 1, 1]])
    same(reference.linear_forward(x, weight, np.arange(4)), [[123, 2, 8, 9], [456, 5, 14, 18]])
    same(reference.linear_forward(x, weight, None), [[123, 1, 6, 6], [456, 4, 12, 15]])
    dy = np.array([[1, 10, 100, 0], [0, 0, 1000, 10000]])
    dx, dweight, dbias = reference.linear_backward(dy, x, weight)
    same(dx, [[110, 10, 201], [10000, 10000, 12000]])  # rows of weight, as often as dy says
    same(dweight, [[1, 2, 3], [10, 20, 30], [4100, 5200, 6300], [40000, 50000, 60000]])  # rows of x, likewise
    same(dbias, [1, 10, 1100, 10000])


def test_dropout_by_hand():
    x, keep = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[True, False, True], [False, True, False]])
    same(reference.dropout_forward(x, keep, 0.75), [[4, 0, 12], [0, 20, 0]])  # a quarter is kept, four times as large
    same(reference.dropout_backward(x * 10, keep, 0.75), [[40, 0, 120], [0, 200, 0]])
    same(reference.dropout_forward(x, np.zeros((2, 3), dtype=bool), 1), np.zeros((2, 3)))


def test_cross_entropy_by_hand():
    # Softmax undoes the logarithm: the rows are 1, 2, 5 out of 8 and 3, 6, 1 out of 10, whatever is added to a row.
    logits, labels = np.log([[1, 2, 5], [3, 6, 1]]) + np.array([[0], [1e4]]), np.array([2, 0])
    probabilities = np.array([[1 / 8, 2 / 8, 5 / 8], [3 / 10, 6 / 10, 1 / 10]])
    # Without smoothing the label is wanted; smoothing 0.3 gives 0.1 to each of three classes, the rest to the label.
    for label_smoothing, wanted in [(0, [[0, 0, 1], [1, 0, 0]]), (0.3, [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])]:
        loss = reference.cross_entropy_forward(logits, labels, label_smoothing)
        same(loss, -np.sum(wanted * np.log(probabilities)) / 2, digits=11)  # 1e4 costs four of sixteen digits
        dlogits = reference.cross_entropy_backward(logits, labels, label_smoothing)
        same(dlogits, (probabilities - wanted) / 2, digits=11)


# --- Against PyTorch --------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def rng():
    return np.random.default_rng(20150211)


def pytorch(torch, function, dy, *arrays):
    """What PyTorch has for y = function(*arrays), and for the gradients of Σ y · dy; dy is drawn for y's shape."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    y = function(*tensors)
    upstream = dy(tuple(y.shape))
    gradients = torch.autograd.grad(y, tensors, torch.from_numpy(upstream))
    return y.detach().numpy(), upstream, [gradient.numpy() for gradient in gradients]


def all_same(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3, 5, 7), (4, 3, 2, 3), (1, 1), (0, 0), (1, 1), 1),
        ((2, 3, 7, 6), (5, 3, 3, 2), (2, 3), (1, 0), (1, 1), 1),  # the stride leaves a remainder along both axes
        ((1, 2, 4, 3), (3, 2, 2, 1), (3, 2), (3, 2), (1, 1), 1),  # windows that lie in the padding altogether
        ((3, 2, 7, 9), (4, 2, 2, 3), (2, 1), (1, 3), (3, 2), 1),
        ((2, 6, 5, 4), (9, 2, 3, 2), (1, 2), (2, 1), (1, 2), 3),
        ((3, 4, 5, 6), (4, 1, 3, 3), (2, 2), (1, 1), (1, 1), 4),  # depthwise
        ((2, 3, 6, 4), (6, 1, 3, 2), (1, 3), (0, 1), (2, 1), 3),  # depthwise, two filters a channel
        ((2, 5, 5, 6), (3, 5, 1, 1), (2, 2), (0, 0), (1, 1), 1),  # pointwise, stride 2
        ((2, 3, 4, 5), (6, 3, 4, 5), (1, 1), (0, 0), (1, 1), 1),  # the kernel is as large as the picture
        ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ],
)
def test_conv2d_against_pytorch(torch, rng, x_shape, weight_shape, stride, padding, dilation, groups):
    x, weight, bias = rng.normal(size=x_shape), rng.normal(size=weight_shape), rng.normal(size=weight_shape[0])
    geometry = stride, padding, dilation, groups

    def convolve(x, weight, bias=None):
        return torch.nn.functional.conv2d(x, weight, bias, *geometry)

    y, dy, gradients = pytorch(torch, convolve, rng.standard_normal, x, weight, bias)
    same(reference.conv2d_forward(x, weight, bias, *geometry), y)
    all_same(reference.conv2d_backward(dy, x, weight, *geometry), gradients)
    y, _, _ = pytorch(torch, convolve, rng.standard_normal, x, weight)
    same(reference.conv2d_forward(x, weight, None, *geometry), y)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (5, 2, 1, 3), (1, 4, 3, 2), (2, 1, 1, 1)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_batch_norm_against_pytorch(torch, rng, shape, eps):
    channels, count = shape[1], shape[0] * shape[2] * shape[3]
    x, weight, bias = rng.normal(2, 3, shape), rng.normal(size=channels), rng.normal(size=channels)
    running_mean, running_var = rng.normal(size=channels), rng.uniform(1, 2, channels)
    new_mean, new_var = torch.tensor(running_mean), torch.tensor(running_var)

    def normalise(x, weight, bias):
        return torch.nn.functional.batch_norm(x, new_mean, new_var, weight, bias, training=True, momentum=0.3, eps=eps)

    y, dy, gradients = pytorch(torch, normalise, rng.standard_normal, x, weight, bias)
    got, mean, var = reference.batch_norm_forward(x, weight, bias, eps)
    same(got, y)
    same(mean, x.mean((0, 2, 3)))
    same(var, x.var((0, 2, 3)))
    all_same(reference.batch_norm_backward(dy, x, weight, eps), gradients)
    all_same(
        reference.running_statistics(running_mean, running_var, mean, var, count, 0.3),
        (new_mean.numpy(), new_var.numpy()),
    )


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (5, 2, 1, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_frozen_batch_norm_against_pytorch(torch, rng, shape, eps):
    channels = shape[1]
    x, weight, bias = rng.normal(2, 3, shape), rng.normal(size=channels), rng.normal(size=channels)
    mean, var = rng.normal(size=channels), rng.uniform(1, 2, channels)

    def normalise(x, weight, bias):
        return torch.nn.functional.batch_norm(x, torch.tensor(mean), torch.tensor(var), weight, bias, eps=eps)

    y, dy, gradients = pytorch(torch, normalise, rng.standard_normal, x, weight, bias)
    same(reference.frozen_batch_norm_forward(x, weight, bias, mean, var, eps), y)
    all_same(reference.frozen_batch_norm_backward(dy, x, weight, mean, var, eps), gradients)


@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_relu_against_pytorch(torch, rng, name):
    x = rng.normal(3, 4, (2, 3, 5, 7))
    special = [0, -0.0, 6, BEYOND_0, -BEYOND_0, BEYOND_6, 12 - BEYOND_6, np.inf, -np.inf, np.nan]
    x.reshape(-1)[: 5 * len(special) : 5] = special
    y, dy, (dx,) = pytorch(torch, getattr(torch.nn.functional, name), rng.standard_normal, x)
    same(getattr(reference, f"{name}_forward")(x), y)
    # PyTorch's own ReLU6 has no opinion on the gradient at NaN: dy or 0, by where in the array the NaN stands.
    known = ~np.isnan(x)
    same(getattr(reference, f"{name}_backward")(dy, x)[known], dx[known])


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize(
    ("shape", "kernel_size", "stride", "padding"),
    [
        ((2, 3, 4, 6), (2, 3), (2, 3), (0, 0)),
        ((2, 3, 7, 8), (3, 2), (2, 3), (1, 0)),
        ((1, 2, 5, 6), (3, 4), (1, 2), (1, 2)),  # overlapping windows
        ((3, 2, 7, 8), (2, 3), (3, 5), (0, 1)),  # pixels between the windows
        ((2, 1, 6, 7), (4, 5), (3, 4), (2, 1)),
        ((1, 2, 3, 8), (2, 2), (2, 3), (1, 1)),  # rounding up adds a window in the padding, which is left out
        ((2, 3, 4, 5), (4, 5), (1, 2), (0, 0)),
        ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0)),
    ],
)
def test_avg_pool2d_against_pytorch(torch, rng, shape, kernel_size, stride, padding, ceil_mode, count_include_pad):
    x, geometry = rng.normal(size=shape), (kernel_size, stride, padding, ceil_mode, count_include_pad)

    def pool(x):
        return torch.nn.functional.avg_pool2d(x, *geometry)

    y, dy, (dx,) = pytorch(torch, pool, rng.standard_normal, x)
    same(reference.avg_pool2d_forward(x, *geometry), y)
    same(reference.avg_pool2d_backward(dy, x, *geometry), dx)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (4, 1, 1, 3), (1, 1, 1, 1)])
def test_global_avg_pool2d_against_pytorch(torch, rng, shape):
    x = rng.normal(size=shape)
    y, dy, (dx,) = pytorch(torch, torch.nn.AdaptiveAvgPool2d(1), rng.standard_normal, x)
    same(reference.global_avg_pool2d_forward(x), y)
    same(reference.global_avg_pool2d_backward(dy, x), dx)


@pytest.mark.parametrize(("rows", "features", "outputs"), [(3, 5, 4), (1, 7, 2), (6, 1, 3), (1, 1, 1)])
def test_linear_against_pytorch(torch, rng, rows, features, outputs):
    x, weight, bias = rng.normal(size=(rows, features)), rng.normal(size=(outputs, features)), rng.normal(size=outputs)
    y, dy, gradients = pytorch(torch, torch.nn.functional.linear, rng.standard_normal, x, weight, bias)
    same(reference.linear_forward(x, weight, bias), y)
    all_same(reference.linear_backward(dy, x, weight), gradients)
    y, _, _ = pytorch(torch, torch.nn.functional.linear, rng.standard_normal, x, weight)
    same(reference.linear_forward(x, weight, None), y)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.8, 1.0])
def test_dropout_against_pytorch(torch, rng, p):
    x = rng.normal(size=(2, 3, 4, 5))
    y, dy, (dx,) = pytorch(torch, lambda x: torch.nn.functional.dropout(x, p), rng.standard_normal, x)
    same(reference.dropout_forward(x, y != 0, p), y)
    same(reference.dropout_backward(dy, y != 0, p), dx)


@pytest.mark.parametrize("scale", [1, 1e4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("rows", "classes"), [(4, 6), (1, 3), (5, 1)])
def test_cross_entropy_against_pytorch(torch, rng, rows, classes, label_smoothing, scale):
    logits, labels = rng.normal(size=(rows, classes)) * scale, rng.integers(classes, size=rows)

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits, torch.tensor(labels), label_smoothing=label_smoothing)

    want, _, (dlogits,) = pytorch(torch, loss, np.ones, logits)
    same(reference.cross_entropy_forward(logits, labels, label_smoothing), want)
    same(reference.cross_entropy_backward(logits, labels, label_smoothing), dlogits)


# --- Every function, whatever the arguments look like -----------------------------------------------------------------


def images(*shape, seed=1):
    return np.random.default_rng(seed).normal(3, 2, shape)


CONV, X, VECTOR = ((2, 1), (1, 0), (1, 2), 2), images(2, 4, 3, 5), images(4)
KEEP, LABELS = images(3, 5, seed=3) > 3, np.array([3, 0, 4])
CALLS = {
    "conv2d_forward": (X, images(6, 2, 2, 3), images(6), *CONV),
    "conv2d_backward": (images(2, 6, 2, 1), X, images(6, 2, 2, 3), *CONV),
    "frozen_batch_norm_forward": (X, VECTOR, VECTOR + 1, VECTOR - 1, VECTOR**2, 1e-3),
    "frozen_batch_norm_backward": (images(2, 4, 3, 5, seed=2), X, VECTOR, VECTOR - 1, VECTOR**2, 1e-3),
    "batch_norm_forward": (X, VECTOR, VECTOR + 1, 1e-3),
    "batch_norm_backward": (images(2, 4, 3, 5, seed=2), X, VECTOR, 1e-3),
    "running_statistics": (VECTOR, VECTOR**2, VECTOR + 1, VECTOR**2 + 1, 30, 0.1),
    "relu_forward": (X - 3,),
    "relu_backward": (images(2, 4, 3, 5, seed=2), X - 3),
    "relu6_forward": (X,),
    "relu6_backward": (images(2, 4, 3, 5, seed=2), X),
    "avg_pool2d_forward": (X, (2, 3), (2, 3), (1, 0), True, True),
    "avg_pool2d_backward": (images(2, 4, 2, 2, seed=2), X, (2, 3), (2, 3), (1, 0), True, True),
    "global_avg_pool2d_forward": (X,),
    "global_avg_pool2d_backward": (images(2, 4, 1, 1), X),
    "linear_forward": (images(3, 5), images(4, 5), VECTOR),
    "linear_backward": (images(3, 4), images(3, 5), images(4, 5)),
    "dropout_forward": (images(3, 5), KEEP, 0.4),
    "dropout_backward": (images(3, 5), KEEP, 0.4),
    "cross_entropy_forward": (images(3, 5), LABELS, 0.1),
    "cross_entropy_backward": (images(3, 5), LABELS, 0.1),
}


def call(name, change):
    """The results of one call, as a list, and its arguments, with every array changed by `change`."""
    arguments = [change(a) if isinstance(a, np.ndarray) else a for a in CALLS[name]]
    results = getattr(reference, name)(*arguments)
    return list(results) if isinstance(results, tuple) else [results], arguments


def test_calls_hold_every_function():
    public = {name for name, _ in inspect.getmembers(reference, inspect.isfunction) if not name.startswith("_")}
    assert public == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_left_untouched(name):
    results, arguments = call(name, np.copy)
    for argument, original in zip(arguments, CALLS[name], strict=True):
        if isinstance(argument, np.ndarray):
            np.testing.assert_array_equal(argument, original, strict=True)
            assert not any(np.shares_memory(result, argument) for result in results)


@pytest.mark.parametrize("name", CALLS)
def test_memory_order_and_read_only_do_not_matter(name):
    def channel_major(array):
        changed = np.moveaxis(np.moveaxis(array, 0, -1).copy(), -1, 0)
        changed.flags.writeable = False
        return changed

    all_same(call(name, channel_major)[0], call(name, np.copy)[0])


@pytest.mark.parametrize("name", CALLS)
def test_float32_is_computed_in_float64(name):
    def narrow(array):
        return array.astype(np.float32) if array.dtype == np.float64 else array

    def widen(array):
        return array.astype(np.float64) if array.dtype == np.float32 else array

    all_same(call(name, narrow)[0], call(name, lambda array: widen(narrow(array)))[0])
