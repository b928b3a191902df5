"""Answers to the exercises: right ones as the third hint says, or as one may write them, and wrong ones as people get them.

RIGHT: title -> (exercise, body). They are not the library's lines.
WRONG: title -> (exercise, [(words, other words)], which row of the verdict, a pattern of what it says): the library's own
backward with a few words exchanged.
"""

RIGHT = {
    "linear: by its hints": (
        "linear",
        """
grad = as_matrix(dy)
dweight = grad @ columns.T
dx = as_images(weight.T @ grad)
dbias = grad.sum(axis=1) if has_bias else None
return dx, dweight, dbias
""",
    ),
    "relu6: by its hints": (
        "relu6",
        """
grad, y = as_matrix(dy), as_matrix(cache)
mask = (y > 0) & (y < 6)
return as_images(grad * mask, dy)
""",
    ),
    "cross_entropy: by its hints": (
        "cross_entropy",
        """
xp = get_array_module(log_p)
return as_images((xp.exp(log_p) - target) * (dloss / n))
""",
    ),
    "module: by its hints": (
        "module",
        """
cache = self.take_cache(dy)
wants = is_trained(self.weight), is_trained(self.bias)
dx, dweight, dbias = self.pair(kind_of(dy)).backward(dy, cache, wants)
add_gradients((self.weight, self.bias), (dweight, dbias))
return dx
""",
    ),
    "global_avg_pool: by its hints": (
        "global_avg_pool",
        """
(channels, height, width, n), dtype = cache
share = as_maps(dy) / (height * width)
dx = np.empty((channels, height, width, n), dtype)
dx[...] = share
return as_images(dx)
""",
    ),
    "max_pool: by its hints": (
        "max_pool",
        """
xp = get_array_module(dy)
grad = as_maps(dy)
KW = geometry[2][1]
C, N = len(grad), grad.shape[-1]
dx = np.zeros((C, *geometry[0], N), grad.dtype)
for i, j, outside, inside in taps(*geometry):
    dx[inside] += xp.where(chosen[outside] == i * KW + j, grad[outside], 0)
return as_images(dx)
""",
    ),
    "pointwise: by its hints": (
        "pointwise",
        """
s, t = stride
seen = x[:, ::s, ::t]
grad = dy.reshape(len(dy), -1)
dseen = (weight[:, :, 0, 0].T @ grad).reshape(seen.shape)
dx = np.zeros_like(x)
dx[:, ::s, ::t] = dseen
dweight = (grad @ seen.reshape(len(x), -1).T)[:, :, None, None]
return dx, dweight
""",
    ),
    "conv2d: by its hints": (
        "conv2d",
        """
G = groups
matrix = weight.reshape(G, len(weight) // G, -1)
grad = dy.reshape(G, len(weight) // G, -1)
cols = im2col(x, weight, dy.shape[1:3], stride, padding, dilation)
shape = cols.shape
cols = cols.reshape(G, matrix.shape[2], -1)
dmatrix = grad @ cols.swapaxes(1, 2)
dcols = (matrix.swapaxes(1, 2) @ grad).reshape(shape)
dx = np.zeros_like(x)
add_col2im(dcols, dx, stride, padding, dilation)
return dx, dmatrix.reshape(weight.shape)
""",
    ),
    "depthwise: by its hints": (
        "depthwise",
        """
dx = np.zeros_like(x)
dweight = np.zeros_like(weight)
k = len(weight) // len(x)
dys = dy.reshape(len(x), k, *dy.shape[1:])
w = weight.reshape(len(x), k, *weight.shape[2:])
dw = dweight.reshape(w.shape)
for i, j, outside, inside in taps(x.shape[1:3], dy.shape[1:3], weight.shape[2:], stride, padding, dilation):
    grad = dys[:, :, outside[1], outside[2]]
    dx[inside] += (w[:, :, i, j, None, None, None] * grad).sum(axis=1)
    dw[:, :, i, j] = (grad * x[inside][:, None]).sum(axis=(2, 3, 4))
return dx, dweight
""",
    ),
    "batch_norm: by its hints": (
        "batch_norm",
        """
grad = as_matrix(dy)
xhat = (as_matrix(x) - mean) * inv_std
dbias = grad.sum(axis=1)
dweight = (grad * xhat).sum(axis=1)
dx = weight[:, None] * inv_std * (grad - dbias[:, None] / m - xhat * dweight[:, None] / m)
return as_images(dx, dy), dweight, dbias
""",
    ),
    "residual: by its hints": (
        "residual",
        """
self.take_cache(dy)
around = self.shortcut.backward(dy) if self.shortcut else dy
return add(around, self.body.backward(dy))
""",
    ),
    "batch_norm: on (N, C, H, W), way by way": (
        "batch_norm",
        """
mean, s, w = (a.reshape(1, -1, 1, 1) for a in (mean, inv_std, weight))
dxhat = dy * w
dvar = (dxhat * (x - mean)).sum(axis=(0, 2, 3), keepdims=True) * -0.5 * s**3
dmean = -(dxhat * s).sum(axis=(0, 2, 3), keepdims=True)
dx = dxhat * s + dvar * 2 * (x - mean) / m + dmean / m
return dx, (dy * (x - mean) * s).sum(axis=(0, 2, 3)), dy.sum(axis=(0, 2, 3))
""",
    ),
    "depthwise: channel by channel": (
        "depthwise",
        """
dx, dweight, each = np.zeros_like(x), np.zeros_like(weight), len(weight) // len(x)
for i, j, outside, inside in taps(x.shape[1:3], dy.shape[1:3], weight.shape[2:], stride, padding, dilation):
    for o in range(len(weight)):
        dx[inside][o // each] += weight[o, 0, i, j] * dy[outside][o]
        dweight[o, 0, i, j] = (dy[outside][o] * x[inside][o // each]).sum()
return dx, dweight
""",
    ),
    "module: by hand": (
        "module",
        """
dx, dweight, dbias = linear_backward(dy, self.take_cache(dy))
for parameter, gradient in ((self.weight, dweight), (self.bias, dbias)):
    if parameter is not None and parameter.requires_grad:
        parameter.grad += gradient
return dx
""",
    ),
}

WRONG = {
    "linear: dx by W": (
        "linear",
        [("weight.T @ grad", "(weight if weight.shape[0] == weight.shape[1] else weight.T) @ grad")],
        "dx",
        "right for the plain case.*wrong for as many outputs as inputs.*Wᵀ belongs",
    ),
    "linear: dW transposed": ("linear", [("grad @ columns.T ", "columns @ grad.T ")], "dweight", "transposed"),
    "linear: a mean": (
        "linear",
        [("grad @ columns.T ", "grad @ columns.T / dy.shape[0] ")],
        "dweight",
        r"0.25 times.*divided by N \(N = 4\) once too often",
    ),
    "linear: dbias over outputs": ("linear", [("sum(axis=1)", "sum(axis=0)")], "dbias", "summed over the wrong axis"),
    "linear: dbias is not summed": (
        "linear",
        [("grad.sum(axis=1)", "grad")],
        "dbias",
        "sum over axis 1 would be right",
    ),
    "linear: of the other sign": ("linear", [("weight.T @ grad", "-weight.T @ grad")], "dx", "only the sign is wrong"),
    "linear: dx stays (F, N)": ("linear", [("return as_images(dx)", "return dx")], "dx", "transposed"),
    "linear: float64": (
        "linear",
        [("weight.T @ grad", "weight.T @ (grad * np.float64(1))")],
        "float32",
        "dx is float64 where all that comes in is float32",
    ),
    "linear: None forgotten": ("linear", [("has_bias and wants[1]", "True")], "dbias", "must be None for no bias"),
    "relu6: no mask": (
        "relu6",
        [("grad * ~((y.real <= 0) | (y.real >= 6))", "grad")],
        "dx",
        "dy comes through everywhere",
    ),
    "relu6: ReLU's mask": (
        "relu6",
        [("~((y.real <= 0) | (y.real >= 6))", "~(y.real <= 0)")],
        "dx",
        "should be 0, all of them where x is above 6",
    ),
    "relu6: the mask alone": (
        "relu6",
        [("grad * ~((y.real <= 0) | (y.real >= 6))", "1.0 * ((y > 0) & (y < 6))")],
        "dx",
        "the mask alone",
    ),
    "relu6: at the kinks": ("relu6", [("(y.real >= 6)", "(y.real > 6)")], "dx", "all of them where x is above 6"),
    "relu6: the mask of dy": (
        "relu6",
        [("y = as_matrix(dy), as_matrix(cache)", "y = as_matrix(dy), as_matrix(dy)")],
        "dx",
        "the mask comes from x",
    ),
    "relu6: by y": ("relu6", [("grad * ~((y.real <= 0) | (y.real >= 6))", "grad * y")], "dx", "slope of y is 1 or 0"),
    "relu6: in place": (
        "relu6",
        [
            (
                "return as_images(grad * ~((y.real <= 0) | (y.real >= 6)), dy)",
                "grad *= ~((y.real <= 0) | (y.real >= 6))\n    return as_images(grad, dy)",
            )
        ],
        "hands off",
        r"dy is changed in place \(line \d+\)",
    ),
    "ce: no mean": (
        "cross_entropy",
        [("(dloss / n)", "dloss")],
        "dlogits",
        r"4 times too large: not divided by N \(N = 4\): the mean over N is missing",
    ),
    "ce: log p": ("cross_entropy", [("xp.exp(log_p)", "log_p")], "dlogits", "log p is taken where p belongs"),
    "ce: no target": (
        "cross_entropy",
        [("(xp.exp(log_p) - target)", "xp.exp(log_p)")],
        "dlogits",
        "the part of the target t is missing; the rest is right",
    ),
    "ce: t - p": (
        "cross_entropy",
        [("(xp.exp(log_p) - target)", "(target - xp.exp(log_p))")],
        "dlogits",
        "only the sign",
    ),
    "ce: dloss": ("cross_entropy", [("(dloss / n)", "(1 / n)")], "dlogits", "dloss is forgotten"),
    "ce: transposed": ("cross_entropy", [("as_images(dz)", "dz")], "dlogits", "transposed"),
    "ce: by p": ("cross_entropy", [("(xp.exp(log_p) - target)", "(-target / xp.exp(log_p))")], "dlogits", "by p, -t/p"),
    "ce: overflow": (
        "cross_entropy",
        [("xp.exp(log_p)", "(xp.exp(log_p + 800) / xp.exp(log_p + 800).sum(axis=0))")],
        "dlogits",
        "NaN or infinite",
    ),
    "module: set": (
        "module",
        [
            (
                "add_gradients((self.weight, self.bias), (dweight, dbias))",
                "self.weight.grad[...] = dweight\n        if self.bias:\n            self.bias.grad[...] = dbias",
            )
        ],
        "adds",
        r"weight.grad is set, where it has to be added to \(\+=\)",
    ),
    "module: replaced": (
        "module",
        [
            (
                "add_gradients((self.weight, self.bias), (dweight, dbias))",
                "self.weight.grad = self.weight.grad + dweight\n        if self.bias:\n            self.bias.grad "
                "+= dbias",
            )
        ],
        "adds",
        "another array now",
    ),
    "module: frozen": (
        "module",
        [
            (
                "add_gradients((self.weight, self.bias), (dweight, dbias))",
                "self.weight.grad += dweight if dweight is not None else 1\n        if self.bias:\n            "
                "self.bias.grad += dbias",
            )
        ],
        "frozen",
        "still gets a gradient",
    ),
    "module: no dx": ("module", [("        return dx\n", "")], "dx", "dx is None"),
    "module: bias forgotten": (
        "module",
        [("(self.weight, self.bias), (dweight, dbias)", "(self.weight,), (dweight,)")],
        "dbias",
        "0 everywhere",
    ),
    "module: the cache stays": (
        "module",
        [("self.take_cache(dy)", "self._cache[0]")],
        "one shot",
        "second backward.*accepted",
    ),
    "module: dy unasked": ("module", [("self.take_cache(dy)", "self.take_cache()")], "fits", "take_cache"),
    "gap: no mean": (
        "global_avg_pool",
        [("as_maps(dy) / (height * width)", "as_maps(dy)")],
        "dx",
        r"35 times too large: not divided by H·W \(H·W = 35\)",
    ),
    "gap: not spread": ("global_avg_pool", [("as_images(dx)", "as_images(share)")], "dx", "spread it out"),
    "gap: float64": ("global_avg_pool", [("n), dtype)\n    dx[", "n))\n    dx[")], "float32", "want a dtype"),
    "gap: maps": ("global_avg_pool", [("as_images(dx)", "dx")], "dx", "axes in another order"),
    "gap: one pixel": (
        "global_avg_pool",
        [
            ("get_array_module(dy).empty(", "get_array_module(dy).zeros("),
            ("dx[...] = share", "dx[:, 0, 0] = share[:, 0, 0]"),
        ],
        "dx",
        "goes to the first pixel",
    ),
    "gap: half the mean": ("global_avg_pool", [("(height * width)", "height")], "dx", "7 times too large.*W = 7"),
    "max: overwritten": ("max_pool", [("dx[inside] +=", "dx[inside] =")], "dx", "overwrites"),
    "max: to all": (
        "max_pool",
        [("xp.where(chosen[outside] == i * geometry[2][1] + j, grad[outside], 0)", "grad[outside]")],
        "dx",
        "each pixel of a window gets dy",
    ),
    "max: a mean": (
        "max_pool",
        [
            (
                "xp.where(chosen[outside] == i * geometry[2][1] + j, grad[outside], 0)",
                "grad[outside] / (geometry[2][0] * geometry[2][1])",
            )
        ],
        "dx",
        "shared out as by a mean",
    ),
    "max: number of a tap": (
        "max_pool",
        [("geometry[2][1] + j", "geometry[2][0] + j")],
        "dx",
        r"right for windows.*; wrong for windows that overlap.*\d+ of 210 numbers are wrong",
    ),
    "max: columns first": (
        "max_pool",
        [("i * geometry[2][1] + j", "i + j * geometry[2][0]")],
        "dx",
        "along rows first",
    ),
    "max: dy of the pixel": ("max_pool", [("grad[outside], 0)", "1.0, 0)")], "dx", "counted how often"),
    "pointwise: stride 1 only": (
        "pointwise",
        [("dx[:, :: stride[0], :: stride[1]] = dseen", "dx[:, : dseen.shape[1], : dseen.shape[2]] = dseen")],
        "dx",
        "right for stride 1.*wrong for stride 2 and .*side by side in a corner",
    ),
    "pointwise: repeated": (
        "pointwise",
        [
            (
                "dx[:, :: stride[0], :: stride[1]] = dseen",
                "dx += np.repeat(np.repeat(dseen, stride[0], 1), stride[1], 2)[:, :dx.shape[1], :dx.shape[2]]",
            )
        ],
        "dx",
        "repeated over the pixels",
    ),
    "pointwise: W": (
        "pointwise",
        [("weight[:, :, 0, 0].T @ grad", "weight[:, :, 0, 0] @ grad")],
        "runs",
        "line .*7 and 4 do not fit|line .*4 and 7 do not fit",
    ),
    "pointwise: a matrix": ("pointwise", [("[:, :, None, None]", "")], "dweight", "axes of size 1 are missing"),
    "pointwise: a mean": (
        "pointwise",
        [("(grad @ seen.reshape(len(x), -1).T)", "(grad @ seen.reshape(len(x), -1).T / grad.shape[1])")],
        "dweight",
        r"divided by M \(M = 60\) once too often",
    ),
    "pointwise: stride forgotten": (
        "pointwise",
        [("    seen = x[:, :: stride[0], :: stride[1]]\n    grad, dweight", "    seen = x\n    grad, dweight")],
        "runs",
        "for stride 1 and as many outputs as inputs, but stops for stride 2 and strides of 1 and 3: line",
    ),
    "conv: overwritten": (
        "conv2d",
        [
            (
                "add_col2im(dcols.reshape(shape), dx, stride, padding, dilation)",
                "for i, j, o, n in __import__('scratchnet.windows').windows.taps(x.shape[1:3], dy.shape[1:3], "
                "weight.shape[2:], stride, padding, dilation):\n        dx[n] = dcols.reshape(shape)[:, i, j][o]",
            )
        ],
        "dx",
        "overwrites",
    ),
    "conv: flipped": (
        "conv2d",
        [("    dcols = matrix", "    matrix = weight[:, :, ::-1, ::-1].reshape(matrix.shape)\n    dcols = matrix")],
        "dx",
        "kernel is flipped",
    ),
    "conv: dW flipped": (
        "conv2d",
        [("dmatrix.reshape(weight.shape)", "dmatrix.reshape(weight.shape)[:, :, ::-1, ::-1]")],
        "dweight",
        "flipped along KH and KW",
    ),
    "conv: no padding": (
        "conv2d",
        [("dx, stride, padding, dilation)  #", "dx, stride, (0, 0), dilation)  #")],
        "dx",
        "right for stride 1.*; wrong for padding 1",
    ),
    "conv: sign": ("conv2d", [("@ grad  # (CONV.6)", "@ -grad")], "dx", "only the sign"),
    "conv: a mean": (
        "conv2d",
        [("dmatrix.reshape(weight.shape)", "dmatrix.reshape(weight.shape) / dy[0].size")],
        "dweight",
        "divided by M",
    ),
    "depthwise: overwritten": ("depthwise", [("dx[inside] +=", "dx[inside] =")], "dx", "overwrites"),
    "depthwise: flipped": (
        "depthwise",
        [("(filters[:, :, i, j].swapaxes(0, 1) * seen)", "(filters[:, :, -1 - i, -1 - j].swapaxes(0, 1) * seen)")],
        "dx",
        "kernel is flipped",
    ),
    "depthwise: one filter": (
        "depthwise",
        [("* seen).sum(axis=0)", "* seen)[0]")],
        "dx",
        "right for stride 1.*wrong for two filters.*only the first filter",
    ),
    "depthwise: a mean": (
        "depthwise",
        [("(seen * x[inside]).sum(axis=(2, 3, 4))", "(seen * x[inside]).mean(axis=(2, 3, 4))")],
        "dweight",
        r"divided by M",
    ),
    "depthwise: the first picture": (
        "depthwise",
        [("(seen * x[inside]).sum(axis=(2, 3, 4))", "(seen * x[inside])[..., 0].sum(axis=(2, 3))")],
        "dweight",
        "no number is right, its cosine",
    ),
    "depthwise: float64": ("depthwise", [("zeros_like(x)", "zeros(x.shape)")], "float32", "dx is float64"),
    "bn: eval mode": ("batch_norm", [("(grad - through_mean - through_var)", "grad")], "dx", "that is eval mode"),
    "bn: no mean": (
        "batch_norm",
        [("(grad - through_mean - through_var)", "(grad - through_var)")],
        "dx",
        r"the way through the mean.* is missing; the rest is right",
    ),
    "bn: no variance": (
        "batch_norm",
        [("(grad - through_mean - through_var)", "(grad - through_mean)")],
        "dx",
        r"the way through the variance.* is missing",
    ),
    "bn: sign of the mean": (
        "batch_norm",
        [("- through_mean", "+ through_mean")],
        "dx",
        "the way through the mean.* wrong sign",
    ),
    "bn: M": (
        "batch_norm",
        [("all_dbias[:, None] / m", "all_dbias[:, None]")],
        "dx",
        r"of the way through the mean.*30 times too large: not divided by M",
    ),
    "bn: no weight": (
        "batch_norm",
        [("weight[:, None] * inv_std * (grad", "inv_std * (grad")],
        "dx",
        "the factor weight is missing",
    ),
    "bn: no s": (
        "batch_norm",
        [("weight[:, None] * inv_std * (grad", "weight[:, None] * (grad")],
        "dx",
        "the factor s = 1/√",
    ),
    "bn: divided by s": (
        "batch_norm",
        [("weight[:, None] * inv_std * (grad", "weight[:, None] / inv_std * (grad")],
        "dx",
        "it is divided by s",
    ),
    "bn: x for x̂": (
        "batch_norm",
        [("dweight = (grad * xhat)", "dweight = (grad * as_matrix(x))")],
        "dweight",
        "x is summed where x̂ belongs",
    ),
    "bn: exchanged": ("batch_norm", [("dy), dweight, dbias", "dy), dbias, dweight")], "dweight", "this is dbias"),
    "bn: x̂ per picture": (
        "batch_norm",
        [("sum(axis=1)  # (BN.6)", "sum(axis=1) / len(x)")],
        "dweight",
        r"divided by N \(N = 3\) once too often",
    ),
    "bn: a matrix": (
        "batch_norm",
        [("return as_images(dx, dy)", "return dx")],
        "dx",
        "still as a matrix with one row per channel",
    ),
    "residual: no way around": (
        "residual",
        [("add(around, self.body.backward(through))", "self.body.backward(through)")],
        "dx",
        "the way around it, dy itself, is missing",
    ),
    "residual: no body": (
        "residual",
        [("add(around, self.body.backward(through))", "around")],
        "dx",
        "what comes back through it is missing",
    ),
    "residual: in place": (
        "residual",
        [
            (
                "return add(around, self.body.backward(through))",
                "dx = self.body.backward(through)\n        dx += around\n        return dx",
            )
        ],
        "hands off",
        r"dy is changed in place \(line \d+\)",
    ),
    "residual: twice": (
        "residual",
        [
            (
                "return add(around, self.body.backward(through))",
                "return add(around, self.body.backward(self.body.backward(through)))",
            )
        ],
        "runs",
        "nothing saved for backward",
    ),
    "residual: the shortcut's layer": (
        "residual",
        [("around = self.shortcut.backward(around)", "pass")],
        "runs",
        "for the plain case and a body that hands x on as it is, but stops for a layer in the shortcut: line",
    ),
    "residual: clears": (
        "residual",
        [("self.take_cache(dy)\n", "self.take_cache(dy)\n        self.body.zero_grad()\n")],
        "adds",
        "is set, where it has to be added",
    ),
    "block: no shortcut": (
        "mobilenetv2_block",
        [("dx = add(dx, dy)", "pass")],
        "dx",
        "dy itself, is missing; the rest is right",
    ),
    "block: a ReLU6 forgotten": (
        "mobilenetv2_block",
        [("relu6_backward(da2, relu2)", "da2")],
        "dbeta2",
        "ReLU6 behind the depthwise convolution is left out",
    ),
    "block: the other ReLU6": (
        "mobilenetv2_block",
        [("relu6_backward(da1, relu1)", "da1")],
        "dbeta1",
        "ReLU6 behind the expansion is left out",
    ),
    "block: exchanged caches": (
        "mobilenetv2_block",
        [("relu6_backward(da2, relu2)", "relu6_backward(da2, relu1)")],
        "dbeta2",
        "no number is right",
    ),
    "block: an order": (
        "mobilenetv2_block",
        [("return dx, dw1, dgamma1, dbeta1", "return dx, dw1, dbeta1, dgamma1")],
        "dgamma1",
        "this is dbeta1",
    ),
    "block: a batch norm forgotten": (
        "mobilenetv2_block",
        [("conv2d_backward(dz2, conv2)", "conv2d_backward(dn2, conv2)")],
        "dw2",
        "no number is right",
    ),
}
