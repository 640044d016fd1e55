"""One table of cases for the operations of a backend, against references in float64, for any backend.

`python tests/ops.py cpu LEVEL DTYPE` runs it on the CPU's instruction set LEVEL, `python tests/ops.py cuda PATHS DTYPE` on the
first GPU with driver, NVRTC, cuBLASLt and cuDNN, or their fakes, at PATHS; both write a JSON line {"case", "error"} for each case, and
tests/test_ops.py does so for all of them. Another backend's tests import `run` and hand it their own factory of
devices. 16-bit data is uint16 for bfloat16 and float16 for float16. Outputs and scratch are full of NaNs beforehand."""

import ctypes
import itertools
import json
import os
import sys
import traceback
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_size_t, c_void_p
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin make small problems many times slower

import numpy as np
from native import NAMES as LEVELS
from native import building, from_bfloat16, to_bfloat16

NATIVE = Path(building.__file__).parent
DTYPES = ("float32", "bfloat16", "float16")  # numbered as in C
NUMPY = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}

# ----------------------------------------------------------------------------------------------------- the C structures


def structure(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def sizes(*names):
    return [(name, c_size_t) for name in names]


Tensor = structure("Tensor", ("data", c_void_p), ("dtype", c_int), *sizes(*"nhwc", "stride"))
Planes = structure("Planes", ("data", c_void_p), *sizes(*"nchw"))
Curve = structure("Curve", *((name, c_float) for name in ("factor", "offset", "bound")))
Window = structure("Window", *sizes("planes", "height", "width", "top", "left", "rows", "columns"))
Keys = structure(
    "Keys", ("k", Tensor), ("v", Tensor), ("bias", c_float), ("query_bias", c_void_p), ("key_bias", c_void_p)
)
Attention = structure(
    "Attention", ("q", POINTER(Tensor)), ("sources", POINTER(Keys)), *sizes("source_count", "heads"), ("scale", c_float),
    ("causal", c_int),
)  # fmt: skip
GroupNorm = structure(
    "GroupNorm", *((name, POINTER(Tensor)) for name in ("a", "b", "add")), ("scale", c_void_p), ("shift", c_void_p),
    *sizes("groups"), ("eps", c_float), ("silu", c_int),
)  # fmt: skip
Post = structure(
    "Post", ("activation", c_int), ("factor", POINTER(Tensor)), ("residual", POINTER(Tensor)), ("relu", c_int)
)
ConvShape = structure(
    "ConvShape", *sizes("in_", "out", "kernel", "stride", "pad_before", "pad_after"), ("upsample", c_int),
    ("no_bias", c_int), *sizes("height", "width"),
)  # fmt: skip
LinearShape = structure("LinearShape", *sizes("in_", "out", "rows"))
Weight = structure(
    "Weight", ("name", c_char_p), ("dtype", c_int), *sizes("rank"), ("shape", c_size_t * 4), *sizes("stride"),
    ("data", c_void_p), ("taken", c_int),
)  # fmt: skip
Operation = structure(
    "Operation", ("op", c_int), *((name, POINTER(Tensor)) for name in ("dst", "x", "y")), ("part", c_void_p),
    ("post", POINTER(Post)), ("norm", POINTER(GroupNorm)), ("attention", POINTER(Attention)),
    ("planes", POINTER(Planes)), ("curve", POINTER(Curve)), ("window", POINTER(Window)), ("floats", c_void_p * 4),
    ("a", c_float), ("b", c_float), *sizes("count"), ("factors", c_double * 4),
)  # fmt: skip
MIRRORED = (Tensor, Planes, Curve, Window, Keys, Attention, GroupNorm, Post, ConvShape, LinearShape, Weight, Operation)
OPS = (
    "conv", "linear", "group_norm", "layer_norm", "attention", "combine", "blend_rows", "from_planes", "to_planes", "mix",
    "tile_take", "tile_add", "copy", "zero",
)  # fmt: skip


def prepare(loaded):
    """Checks a library's structures against these, and declares its functions."""
    loaded.ops_size.restype = c_size_t
    loaded.ops_error.restype = c_char_p
    for i, mirrored in enumerate(MIRRORED):
        assert ctypes.sizeof(mirrored) == loaded.ops_size(i), mirrored.__name__
    for name in ("ops_run", "ops_scratch"):
        getattr(loaded, name).argtypes = [c_void_p, POINTER(Operation), POINTER(c_size_t)]
    loaded.ops_take.argtypes = [c_void_p, POINTER(c_void_p), c_size_t]
    loaded.ops_give.argtypes = loaded.ops_conv_close.argtypes = loaded.ops_linear_close.argtypes = [c_void_p, c_void_p]
    loaded.ops_write.argtypes = loaded.ops_read.argtypes = [c_void_p, c_void_p, c_void_p, c_size_t]
    weights = POINTER(POINTER(Weight))
    loaded.ops_conv_open.argtypes = [c_void_p, POINTER(c_void_p), POINTER(ConvShape), *[POINTER(Weight)] * 2]
    loaded.ops_linear_open.argtypes = [c_void_p, POINTER(c_void_p), POINTER(LinearShape), c_size_t, weights, weights]
    loaded.ops_floats_open.argtypes = [c_void_p, POINTER(c_void_p), c_size_t, weights]
    loaded.ops_close.argtypes = [c_void_p]
    return loaded


# ------------------------------------------------------------------------------------------------------------- numbers


def floats(x):
    """float64 of data of any kind."""
    return (from_bfloat16(x) if x.dtype == np.uint16 else x).astype(np.float64)


def stored(x, dtype):
    """float32 numbers as data of a kind."""
    return to_bfloat16(x) if dtype == "bfloat16" else np.asarray(x, np.float32).astype(NUMPY[dtype])


def noise(seed, *shape, dtype="float32"):
    return stored(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32), dtype)


def empty(*shape, dtype="float32"):
    """Full of NaNs."""
    x = np.empty(shape, NUMPY[dtype])
    x.view(np.uint8)[...] = 0xFF
    return x


def address(x):
    return None if x is None else x.ctypes.data


def kind_of(x):
    return next(name for name, kind in NUMPY.items() if kind == x.dtype)


# ------------------------------------------------------------------------------------------------------------- devices


class Failure(Exception):
    pass


class Device:
    """A backend, opened by open_backend(byref(handle), threads) -> status of a library with the functions of
    native/ops.c. Arrays that an operation is given are copied to the backend's memory, and those that it writes back."""

    # The largest error relative to the largest expected value. bfloat16 keeps 8 bits: 2^-9 = 2e-3 for each rounding, of
    # probabilities, summed weights and results; float16 three bits more.
    TOLERANCES = {
        "attention": (4e-6, 8e-3),
        "norm": (2e-6, 4e-3),
        "product": (4e-6, 4e-3),
        "folded": (5e-6, 1e-2),  # convolutions whose weights are summed or transformed, and rounded again
        "pointwise": (2e-7, 4e-3),
    }
    slow = False  # leaves out the large cases

    def __init__(self, loaded, open_backend, dtype, label=""):
        self.library, self.open_backend, self.dtype, self.label = loaded, open_backend, dtype, label
        self.handles = {}

    def tolerance(self, kind):
        full, half = self.TOLERANCES[kind]
        return {"float32": full, "bfloat16": half, "float16": max(half / 8, 1e-3)}[self.dtype]

    def handle(self, threads=2):
        if threads not in self.handles:
            handle = c_void_p()
            self.check(self.open_backend(byref(handle), threads))
            self.handles[threads] = handle
        return self.handles[threads]

    def check(self, status):
        if status:
            raise Failure(self.library.ops_error().decode())

    def close(self):
        for handle in self.handles.values():
            self.library.ops_close(handle)

    def noise(self, seed, *shape):
        return noise(seed, *shape, dtype=self.dtype)

    def empty(self, *shape):
        return empty(*shape, dtype=self.dtype)

    def rounded(self, x):
        """float32 numbers that the device's dtype holds as they are."""
        return floats(stored(x, self.dtype)).astype(np.float32)


class Call:
    """One operation: the arrays in the backend's memory, and what they come back to."""

    def __init__(self, device, threads=2):
        self.device, self.library, self.backend = device, device.library, device.handle(threads)
        self.blocks, self.tensors, self.written, self.kept = {}, {}, [], []

    def block(self, x, output=False):
        """The block of an array, or of a slice of channels with what lies between its rows."""
        if x is None:
            return None
        place, size = x.ctypes.data, sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)) + x.itemsize
        if (place, size) not in self.blocks:
            block = c_void_p()
            self.device.check(self.library.ops_take(self.backend, byref(block), size))
            self.blocks[place, size] = block.value
            self.device.check(self.library.ops_write(self.backend, block, place, size))
        if output:
            self.written.append((place, self.blocks[place, size], size))
        return self.blocks[place, size]

    def tensor(self, x, output=False):
        """A pointer to the tensor of up to four dimensions; the same for the same array."""
        if x is None:
            return None
        if id(x) not in self.tensors:
            shape = (1,) * (4 - x.ndim) + x.shape
            rows = [step // x.itemsize for n, step in zip(x.shape[:-1], x.strides[:-1], strict=True) if n > 1]
            stride = rows[-1] if rows else shape[-1]
            self.tensors[id(x)] = Tensor(self.block(x), DTYPES.index(kind_of(x)), *shape, stride)
            self.kept.append(x)
        if output:
            self.block(x, output=True)
        return ctypes.pointer(self.tensors[id(x)])

    def planes(self, x, output=False):
        return ctypes.pointer(Planes(self.block(x, output), *x.shape))

    def run(self, op, only_measure=False, **arguments):
        scratch = c_size_t()
        operation = Operation(op=OPS.index(op), **arguments)
        try:
            function = self.library.ops_scratch if only_measure else self.library.ops_run
            self.device.check(function(self.backend, byref(operation), byref(scratch)))
            for place, block, size in self.written:
                self.device.check(self.library.ops_read(self.backend, place, block, size))
        finally:
            for block in self.blocks.values():
                self.library.ops_give(self.backend, block)
        return scratch.value


def pointers(*blocks):
    return (c_void_p * 4)(*blocks)


def weight(x, columns=None):
    """As stored in float32, bfloat16 or float16; of the second dimension, `columns` = (first, count)."""
    first, count = columns or (0, x.shape[1] if x.ndim > 1 else 0)
    shape = (x.shape[0], count, *x.shape[2:]) if x.ndim > 1 else x.shape
    per_column = int(np.prod(x.shape[2:])) if x.ndim > 1 else 1
    w = Weight(
        dtype=DTYPES.index(kind_of(x)), rank=x.ndim, shape=(c_size_t * 4)(*shape),
        stride=x.size // x.shape[0], data=x.ctypes.data + first * per_column * x.itemsize,
    )  # fmt: skip
    w.array = x
    return w


def weight_list(weights):
    return (POINTER(Weight) * len(weights))(*map(ctypes.pointer, weights)) if weights else None


ACTIVATIONS = ("none", "gelu_erf", "gelu_quick", "silu")


def post_of(call, activation="none", factor=None, residual=None, relu=False):
    post = Post(ACTIVATIONS.index(activation), call.tensor(factor), call.tensor(residual), relu)
    return ctypes.pointer(post)


def conv(
    device, dst, src, w, bias=None, usual=None, kernel=3, stride=1, pads=(1, 1), upsample=False, threads=2, **post
):
    backend, part = device.handle(threads), c_void_p()
    shape = ConvShape(w.shape[1], w.shape[0], kernel, stride, *pads, upsample, bias is None, *(usual or src.shape[1:3]))
    w, b = weight(w), None if bias is None else weight(bias)
    device.check(device.library.ops_conv_open(backend, byref(part), shape, byref(w), b))
    try:
        call = Call(device, threads)
        call.run("conv", dst=call.tensor(dst, output=True), x=call.tensor(src), part=part, post=post_of(call, **post))
    finally:
        device.library.ops_conv_close(backend, part)


def linear(device, dst, src, weights, biases=None, usual=None, threads=2, **post):
    """weights: one or several, as weight() makes them."""
    backend, part = device.handle(threads), c_void_p()
    shape = LinearShape(src.shape[-1], dst.shape[-1], usual or len(src))
    biases = weight_list([weight(b) for b in biases]) if biases else None
    device.check(
        device.library.ops_linear_open(backend, byref(part), shape, len(weights), weight_list(weights), biases)
    )
    try:
        call = Call(device, threads)
        call.run("linear", dst=call.tensor(dst, output=True), x=call.tensor(src), part=part, post=post_of(call, **post))
    finally:
        device.library.ops_linear_close(backend, part)


def group_norm(device, dst, a, b, add, scale, shift, groups, eps, silu, threads=2):
    call = Call(device, threads)
    norm = GroupNorm(
        call.tensor(a), call.tensor(b), call.tensor(add), call.block(scale), call.block(shift), groups, eps, silu
    )
    call.run("group_norm", dst=call.tensor(dst, output=True), norm=ctypes.pointer(norm))


def layer_norm(device, dst, x, scale, shift, eps):
    call = Call(device)
    call.run(
        "layer_norm", dst=call.tensor(dst, output=True), x=call.tensor(x),
        floats=pointers(call.block(scale), call.block(shift)), a=eps,
    )  # fmt: skip


class Source:
    """Keys and values (n, tokens, channels), n = 1: for all samples; or (tokens, channels)."""

    def __init__(self, k, v, bias=0.0, query_bias=None, key_bias=None):
        self.k, self.v, self.bias, self.query_bias, self.key_bias = k, v, bias, query_bias, key_bias

    def of(self, sample):
        return tuple(floats(x if x.ndim == 2 else x[sample % len(x)]) for x in (self.k, self.v))


def by_sample(x):
    """(n, tokens, channels) as (n, 1, tokens, channels)."""
    return x[:, None] if x.ndim == 3 else x


def attention(device, dst, q, sources, heads, scale, causal=False, threads=2, only_measure=False):
    """dst, q (n, tokens, channels) or (tokens, channels)."""
    call = Call(device, threads)
    keys = [
        Keys(
            call.tensor(by_sample(s.k))[0], call.tensor(by_sample(s.v))[0], s.bias, call.block(s.query_bias),
            call.block(s.key_bias),
        )
        for s in sources
    ]  # fmt: skip
    described = Attention(call.tensor(by_sample(q)), (Keys * len(keys))(*keys), len(keys), heads, scale, causal)
    return call.run(
        "attention", only_measure, dst=call.tensor(by_sample(dst), output=True), attention=ctypes.pointer(described)
    )


def combine(device, dst, a, x, b=0.0, y=None):
    call = Call(device)
    call.run("combine", dst=call.tensor(dst, output=True), a=a, x=call.tensor(x), b=b, y=call.tensor(y))


# ------------------------------------------------------------------------------------------------------------ the table

CASES = {}


def case(**parameters):
    """Registers a function of a device and parameters for each combination of their values."""

    def register(function):
        for values in itertools.product(*parameters.values()):
            label = ", ".join(f"{name} {value}" for name, value in zip(parameters, values, strict=True))
            named = dict(zip(parameters, values, strict=True))
            name = f"{function.__name__}: {label}" if label else function.__name__
            CASES[name] = lambda device, named=named: function(device, **named)
        return function

    return register


def check(actual, expected, tolerance, what=""):
    actual, expected = floats(np.asarray(actual)), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, what
    assert np.isfinite(actual).all(), f"{what}: not finite"
    error = np.abs(actual - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)
    assert error <= tolerance, f"{what}: an error of {error:.2e}, {tolerance:.2e} are allowed"


# --- convolutions


def convolved(src, w, stride=1, pads=(1, 1), upsample=False):
    x, w = floats(src), w.astype(np.float64)
    if upsample:
        x = x.repeat(2, 1).repeat(2, 2)
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)))
    kernel = w.shape[2]
    h, wide = ((size - kernel) // stride + 1 for size in x.shape[1:3])
    return sum(
        x[:, i : i + (h - 1) * stride + 1 : stride, j : j + (wide - 1) * stride + 1 : stride] @ w[:, :, i, j].T
        for i in range(kernel)
        for j in range(kernel)
    )


def check_conv(device, shape, tolerance="product", result=None, seed=0, usual=None, extra=(), **options):
    """shape: n, h, w, in, out. extra: of bias, residual, accumulate and relu, those that there are."""
    n, h, wide, channels, out = shape
    kernel = options.get("kernel", 3)
    src = device.noise(seed, n, h, wide, channels)
    scale = np.float32(1 / np.sqrt(channels * kernel**2))
    w = device.rounded(noise(seed + 1, out, channels, kernel, kernel) * scale)
    bias = noise(seed + 2, out) if "bias" in extra else None
    plain = {name: value for name, value in options.items() if name in ("stride", "pads", "upsample")}
    expected = convolved(src, w, **plain) + (0 if bias is None else bias)
    dst = empty(*expected.shape, dtype=result or device.dtype)
    residual = None
    if "residual" in extra or "accumulate" in extra:
        residual = noise(seed + 3, *expected.shape, dtype=kind_of(dst))
        expected = expected + floats(residual)
    if "accumulate" in extra:
        dst = residual
    if "relu" in extra:
        expected = np.maximum(expected, 0)
    conv(device, dst, src, w, bias, usual=usual, residual=residual, relu="relu" in extra, **options)
    tolerance = device.tolerance(tolerance) if result != "float32" else 4e-6 if device.dtype == "float32" else 1e-5
    check(dst, expected, tolerance)


EXTRAS = ((), ("bias",), ("bias", "residual"), ("bias", "accumulate"), ("relu",), ("bias", "residual", "relu"))


@case(shape=[(1, 1, 1, 4, 4), (2, 5, 7, 3, 5), (1, 8, 8, 16, 32), (3, 1, 9, 24, 24)], extra=EXTRAS)
def conv_3x3(device, shape, extra):
    check_conv(device, shape, extra=extra)


@case(shape=[(2, 6, 5, 8, 12), (1, 1, 1, 3, 7)], extra=EXTRAS)
def conv_1x1(device, shape, extra):
    check_conv(device, shape, extra=extra, kernel=1, pads=(0, 0))


@case(shape=[(1, 8, 8, 16, 16), (2, 6, 10, 5, 7)], pads=[(1, 1), (0, 1)], extra=[(), ("bias",)])
def conv_stride_2(device, shape, pads, extra):
    check_conv(device, shape, extra=extra, stride=2, pads=pads)


@case(shape=[(1, 4, 4, 16, 16), (2, 3, 5, 6, 10), (1, 1, 1, 8, 8), (1, 3, 4, 7, 3)], extra=[(), ("bias",)])
def conv_doubling(device, shape, extra):
    check_conv(device, shape, "folded", extra=extra, upsample=True)


@case(shape=[(1, 32, 32, 64, 64), (1, 16, 16, 64, 80), (2, 33, 35, 80, 64), (1, 64, 65, 64, 64)], extra=EXTRAS)
def conv_of_large_maps(device, shape, extra):
    if not device.slow:
        check_conv(device, shape, "folded", extra=extra)


@case(shape=[(1, 3, 5, 64, 64), (3, 40, 40, 64, 64)])
def conv_of_another_than_the_usual_size(device, shape):
    check_conv(device, shape, "folded", usual=(32, 32), extra=("bias",))
    check_conv(device, shape, "folded", usual=(1, 1), extra=("bias",))


@case(
    shape=[
        (1, 9, 8, 320, 4),
        (2, 8, 8, 128, 3),
        (1, 16, 16, 64, 12),
        (2, 7, 5, 12, 1),
        (1, 5, 6, 7, 9),
        (1, 8, 8, 64, 16),
    ]
)
def conv_to_float32(device, shape):
    """What ends a model, of any number of latent channels."""
    check_conv(device, shape, result="float32", extra=("bias",))
    check_conv(device, shape, result="float32", extra=("residual", "relu"))


@case(channels=[1, 3, 4, 7, 12, 24], out=[1, 3, 4, 7, 12, 20, 64], kernel=[1, 3])
def conv_of_any_channels(device, channels, out, kernel):
    check_conv(device, (1, 6, 8, channels, out), extra=("bias",), kernel=kernel, pads=(kernel // 2,) * 2)


@case(shape=[(1, 16, 16, 12, 64), (2, 8, 8, 96, 24), (1, 8, 8, 288, 96), (1, 32, 32, 3, 32)], extra=EXTRAS)
def conv_of_the_default_model(device, shape, extra):
    check_conv(device, shape, "folded", extra=extra)


@case(kind=DTYPES)
def conv_of_stored_weights(device, kind):
    """Weights and biases of every stored type."""
    src, w = device.noise(0, 1, 6, 6, 8), noise(1, 5, 8, 3, 3, dtype=kind)
    bias, dst = noise(2, 5, dtype=kind), device.empty(1, 6, 6, 5)
    conv(device, dst, src, w, bias)
    check(dst, convolved(src, device.rounded(floats(w))) + floats(bias), device.tolerance("product"))


# --- products


def activated(x, activation):
    from scipy.special import expit, ndtr

    return {"none": x, "gelu_erf": x * ndtr(x), "gelu_quick": x * expit(1.702 * x), "silu": x * expit(x)}[activation]


@case(
    shape=[(1, 1, 1), (1, 700, 130), (5, 3, 16), (6, 320, 17), (97, 321, 129), (200, 641, 300)],
    activation=ACTIVATIONS[:3],
    post=[False, True],
)
def linear_map(device, shape, activation, post):
    """From and to slices of channels; what lies beside them stays."""
    rows, depth, columns = shape
    wide, src = device.empty(rows, columns + 2), device.noise(0, rows, depth + 3)[:, 3:]
    beside, dst = wide[:, [0, -1]].tobytes(), wide[:, 1:-1]
    w = device.rounded(noise(1, columns, depth) / np.float32(np.sqrt(depth)))
    expected = floats(src) @ w.T.astype(np.float64)
    options = {}
    if post:
        bias = noise(2, columns)
        options = {
            "factor": device.noise(3, rows, 2 * columns)[:, columns:],
            "residual": device.noise(4, rows, columns),
        }
        expected = activated(expected + bias, activation) * floats(options["factor"]) + floats(options["residual"])
    else:
        expected = activated(expected, activation)
    linear(device, dst, src, [weight(w)], [bias] if post else None, activation=activation, **options)
    check(dst, expected, device.tolerance("product"))
    assert wide[:, [0, -1]].tobytes() == beside, "written beside the columns"


@case(rows=[1, 100])
def linear_onto_its_own_residual(device, rows):
    x, w, dst = device.noise(0, rows, 330), device.rounded(noise(1, 140, 330) / 18), device.noise(2, rows, 140)
    expected = floats(x) @ w.T.astype(np.float64) + floats(dst)
    linear(device, dst, x, [weight(w)], residual=dst)
    check(dst, expected, device.tolerance("product"))


@case(rows=[1, 7])
def linear_with_silu(device, rows):
    """Of what has been rounded to the dtype."""
    x, w, dst = device.noise(0, rows, 64), device.rounded(noise(1, 48, 64) / 4), device.empty(rows, 48)
    linear(device, dst, x, [weight(w)], [np.zeros(48, np.float32)], activation="silu")
    check(dst, activated(floats(x) @ w.T.astype(np.float64), "silu"), 2 * device.tolerance("product"))


@case(rows=[1, 9])
def linear_to_float32(device, rows):
    x, w, dst = device.noise(0, rows, 96), device.rounded(noise(1, 50, 96) / 10), empty(rows, 50)
    linear(device, dst, x, [weight(w)], [noise(2, 50)])
    check(dst, floats(x) @ w.T.astype(np.float64) + noise(2, 50), 4e-6 if device.dtype == "float32" else 1e-5)


@case(kind=DTYPES)
def linear_of_stacked_parts(device, kind):
    """Several products of one input, of every stored type, of some columns of their weights."""
    x, outs = device.noise(0, 11, 24), (8, 3, 21)
    parts = [noise(i, out, 40, dtype=kind) for i, out in enumerate(outs)]
    biases = [noise(9 + i, out, dtype=kind) for i, out in enumerate(outs)]
    dst = device.empty(11, sum(outs))
    linear(device, dst, x, [weight(part, columns=(5, 24)) for part in parts], biases)
    expected = [
        floats(x) @ device.rounded(floats(p)[:, 5:29]).T.astype(np.float64) + floats(b)
        for p, b in zip(parts, biases, strict=True)
    ]
    check(dst, np.concatenate(expected, axis=1), device.tolerance("product"))


@case(rows=[1, 3, 130], usual=[1, 4096])
def linear_of_another_than_the_usual_rows(device, rows, usual):
    x, w, dst = device.noise(0, rows, 64), device.rounded(noise(1, 96, 64) / 8), device.empty(rows, 96)
    linear(device, dst, x, [weight(w)], usual=usual)
    check(dst, floats(x) @ w.T.astype(np.float64), device.tolerance("product"))


@case(activation=ACTIVATIONS[:3])
def activations_over_their_whole_range(device, activation):
    x = stored(np.array([[-200, -10, -3, -1, -1e-6, -0.0, 0, 1e-6, 1, 3, 10, 200]]), device.dtype)
    dst = device.empty(*x.shape)
    linear(device, dst, x, [weight(np.eye(x.size, dtype=np.float32))], activation=activation)
    relative = 1e-6 if device.dtype == "float32" else device.tolerance("pointwise")
    absolute = 1e-6 if device.dtype == "float32" else relative
    expected = activated(floats(x), activation)
    assert np.allclose(floats(dst), expected, rtol=relative, atol=absolute), (floats(dst) - expected).tolist()


@case()
def products_are_the_same_for_any_threads(device):
    """And a row's is the same in any number of rows."""
    x, w = device.noise(0, 205, 650), device.rounded(noise(1, 150, 650) / 25)
    whole = device.empty(205, 150)
    linear(device, whole, x, [weight(w)], threads=1)
    again = device.empty(205, 150)
    linear(device, again, x, [weight(w)], threads=2)
    assert (whole == again).all()


# --- norms


def group_normed(a, b, add, scale, shift, groups, eps, silu):
    x = floats(a) if b is None else np.concatenate([floats(a), floats(b)], axis=3)
    x = x if add is None else x + add
    n, h, w, c = x.shape
    grouped = x.reshape(n, h * w, groups, c // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    y = ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * scale + shift
    return y / (1 + np.exp(-y)) if silu else y


GROUP_NORMS = [
    (1, 1, 1, (32,), 8),
    (2, 8, 8, (320,), 32),
    (1, 5, 13, (60,), 6),
    (3, 9, 7, (40, 20), 6),
    (2, 16, 16, (640, 320), 32),
    (1, 3, 3, (1280, 1280), 32),
    (1, 64, 64, (24,), 3),
]


@case(shape=GROUP_NORMS, add=["nothing", "a row", "a row a sample"], silu=[False, True])
def group_norm_of(device, shape, add, silu):
    n, h, w, channels, groups = shape
    parts, c = [device.noise(i, n, h, w, size) for i, size in enumerate(channels)], sum(channels)
    added = {"nothing": None, "a row": noise(5, 1, 1, 1, c), "a row a sample": noise(5, n, 1, 1, c)}[add]
    arguments = parts[0], (parts[1:] or [None])[0], added, noise(3, c), noise(4, c), groups, 1e-5, silu
    dst = device.empty(n, h, w, c)
    group_norm(device, dst, *arguments)
    check(dst, group_normed(*arguments), device.tolerance("norm"))


@case()
def group_norm_with_a_large_mean(device):
    """The spread survives; the values themselves have lost 3 digits in float32."""
    if device.dtype == "float32":
        x, dst = noise(0, 2, 40, 40, 32) + 1000, empty(2, 40, 40, 32)
        arguments = x, None, None, np.ones(32, np.float32), np.zeros(32, np.float32), 8, 1e-5, False
        group_norm(device, dst, *arguments)
        check(dst, group_normed(*arguments), 1e-4)
        check(dst.std(), group_normed(*arguments).std(), 1e-6)


@case()
def group_norm_of_a_constant(device):
    x, dst = stored(np.full((1, 4, 4, 8), 3), device.dtype), device.empty(1, 4, 4, 8)
    group_norm(device, dst, x, None, None, np.ones(8, np.float32), np.full(8, 2, np.float32), 2, 1e-6, False)
    check(dst, np.full(x.shape, 2), 1e-3)


@case()
def group_norm_of_slices_and_in_place(device):
    part = device.noise(0, 2, 6, 6, 64)[..., 16:48]
    options = None, noise(1, 32), noise(2, 32), 4, 1e-5, True
    expected, dst = group_normed(part, None, *options), device.empty(2, 6, 6, 32)
    group_norm(device, dst, part, None, *options)
    check(dst, expected, device.tolerance("norm"))
    dense = np.ascontiguousarray(part)
    group_norm(device, dense, dense, None, *options)
    check(dense, expected, device.tolerance("norm"))


@case()
def group_norm_is_the_same_for_any_threads(device):
    arguments = device.noise(0, 2, 20, 30, 96), None, None, noise(1, 96), noise(2, 96), 32, 1e-5, True
    results = []
    for threads in (1, 2, 3):
        results.append(device.empty(2, 20, 30, 96))
        group_norm(device, results[-1], *arguments, threads=threads)
    assert all((result == results[0]).all() for result in results)


@case()
def silu_over_its_whole_range(device):
    values = np.array([-200.0, -100, -88, -1, -0.0, 0, 1e-8, 1, 88, 100, 200], np.float32)
    x, dst = device.empty(1, 1, 1, 11), device.empty(1, 1, 1, 11)
    x[...] = 0
    group_norm(device, dst, x, None, None, np.ones_like(values), values, 1, 1e-5, True)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float64) / (1 + np.exp(-values.astype(np.float64)))
    relative = 1e-6 if device.dtype == "float32" else device.tolerance("pointwise")
    smallest = 1e-34 if device.dtype != "float16" else 1e-7
    assert np.allclose(floats(dst)[0, 0, 0], expected, rtol=relative, atol=smallest)


@case(shape=[(1, 1), (3, 7), (64, 320), (5, 1280), (2, 1300), (3, 2500)])
def layer_norm_of(device, shape):
    rows, c = shape
    x, dst = device.noise(0, rows, c + 5)[:, 2 : 2 + c], device.empty(rows, c)
    scale, shift, wide = noise(1, c), noise(2, c), floats(x)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * scale + shift
    layer_norm(device, dst, x, scale, shift, 1e-5)
    check(dst, expected, device.tolerance("norm"))


# --- attention


def attended(q, sources, heads, scale, causal=False):
    """(n, tokens, channels) or (tokens, channels), in float64."""
    if q.ndim == 3:
        return np.stack([attended_sample(q[i], sources, heads, scale, causal, i) for i in range(len(q))])
    return attended_sample(q, sources, heads, scale, causal, 0)


def attended_sample(q, sources, heads, scale, causal, sample):
    q, size = floats(q), q.shape[1] // heads
    dst = np.zeros(q.shape)
    for head in range(heads):
        part = np.s_[:, head * size : (head + 1) * size]
        logits, values = [], []
        for source in sources:
            k, v = source.of(sample)
            products = np.float32(scale) * (q[part] @ k[part].T) + source.bias
            products = products + (0 if source.query_bias is None else source.query_bias[:, None].astype(np.float64))
            products = products + (0 if source.key_bias is None else source.key_bias.astype(np.float64))
            if causal:
                products[np.triu_indices(len(products), 1)] = -np.inf
            logits.append(products)
            values.append(v[part])
        logits = np.concatenate(logits, axis=1)
        top = logits.max(axis=1, keepdims=True)
        p = np.exp(logits - np.where(np.isfinite(top), top, 0))
        total = p.sum(axis=1, keepdims=True)
        dst[part] = p @ np.concatenate(values) / np.where(total > 0, total, 1)
    return dst


def check_attention(device, q, sources, heads, scale, causal=False, tolerance=1.0, dst=None):
    dst = device.empty(*q.shape) if dst is None else dst
    attention(device, dst, q, sources, heads, scale, causal)
    check(dst, attended(q, sources, heads, scale, causal), tolerance * device.tolerance("attention"))
    return dst


def problem(device, seed, queries, tokens, channels):
    q, k, v = (device.noise(seed + i, n, channels) for i, n in enumerate((queries, tokens, tokens)))
    return q, [Source(k, v)]


@case(size=[1, 3, 8, 16, 20, 33, 40, 64, 80, 96, 128, 160, 512])
def attention_head_sizes(device, size):
    check_attention(device, *problem(device, size, 50, 77, 2 * size), 2, size**-0.5)


@case(lengths=[(1, 1), (1, 77), (2, 1), (17, 2), (33, 63), (48, 64), (49, 65), (97, 129), (130, 300)])
def attention_lengths(device, lengths):
    check_attention(device, *problem(device, lengths[0], *lengths, 120), 3, 40**-0.5)


@case(n=[2, 5], shared=[False, True])
def attention_of_batches(device, n, shared):
    """With keys of each sample, or the same for all; each sample as it would be alone."""
    q, (k, v) = device.noise(0, n, 60, 96), (device.noise(i, 1 if shared else n, 70, 96) for i in (1, 2))
    dst = check_attention(device, q, [Source(k, v)], 4, 0.2)
    for i in range(n):
        alone = device.empty(60, 96)
        attention(device, alone, q[i], [Source(k[i % len(k)], v[i % len(v)])], 4, 0.2)
        assert (alone == dst[i]).all()


@case(n=[1, 3], tokens=[1, 5, 77, 150])
def attention_causal(device, n, tokens):
    q, k, v = (device.noise(i, n, tokens, 80) for i in range(3))
    dst = check_attention(device, q, [Source(k, v)], 2, 0.2, causal=True)
    first = device.empty(1, 80)
    attention(device, first, q[0, :1], [Source(k[0, :1], v[0, :1])], 2, 0.2)
    check(dst[0, :1], floats(first), device.tolerance("attention"))


@case()
def attention_of_more_heads_than_are_packed_at_once(device):
    if not device.slow:
        check_attention(device, *problem(device, 0, 3, 5000, 640), 10, 0.125)


@case()
def attention_of_slices(device):
    """Queries, keys and values side by side, and a destination inside a larger matrix that keeps its other columns."""
    qkv, wide = device.noise(0, 70, 3 * 48), device.noise(1, 70, 100)
    before = wide.copy()
    check_attention(device, qkv[:, :48], [Source(qkv[:, 48:96], qkv[:, 96:])], 2, 0.3, dst=wide[:, 20:68])
    assert (wide[:, :20] == before[:, :20]).all() and (wide[:, 68:] == before[:, 68:]).all()


@case(count=[2, 4, 9])
def attention_to_several_sources(device, count):
    """With weights, none of one's, and biases of queries that leave out some."""
    q, sources = problem(device, 0, 60, 90, 80)
    for i in range(count - 1):
        k, v = (device.noise(10 * i + j, 17 + 40 * (i % 4), 80) for j in (1, 2))
        sources.append(Source(k, v, float(np.log(0.2 + i)), noise(10 * i + 3, 60) if i else None))
    sources[1].bias = -np.inf
    for i, source in enumerate(sources[2:]):
        source.query_bias[i :: 3 + i] = -np.inf
    check_attention(device, q, sources, 2, 0.2)


@case(scale=[0.0, 0.3, -0.4])
def attention_with_biases_of_keys(device, scale):
    """Some keys never, the first block of them among these; with and without biases of queries."""
    q, sources = problem(device, 0, 60, 200, 40)
    sources.append(Source(*(device.noise(9 + i, 33, 40) for i in range(2)), bias=-0.7))
    for i, source in enumerate(sources):
        source.key_bias = noise(5 + i, len(source.k))
        source.key_bias[i::3] = -np.inf
    sources[0].key_bias[:130] = -np.inf
    sources[1].query_bias = noise(8, 60)
    sources[1].query_bias[::4] = -np.inf
    check_attention(device, q, sources, 2, scale)
    for source in sources:
        source.key_bias = np.full(len(source.k), -np.inf, np.float32)
    nothing = device.empty(60, 40)
    attention(device, nothing, q, sources, 2, scale)
    assert (floats(nothing) == 0).all()


@case()
def attention_of_queries_with_nothing_left(device):
    q, (source,) = problem(device, 0, 40, 100, 80)
    source.query_bias = np.where(np.arange(40) % 3 == 0, -np.inf, 0).astype(np.float32)
    dst = check_attention(device, q, [source, source], 2, 40**-0.5)
    assert (floats(dst[::3]) == 0).all()


@case(scale=[0.0, 1e-3, 5.0, 100.0, -0.4])
def attention_scales(device, scale):
    """Large logits saturate the softmax: it must not overflow. They also magnify the products' rounding in float32."""
    check_attention(device, *problem(device, 0, 50, 150, 40), 1, scale, tolerance=max(1, abs(scale) * 40))


@case()
def attention_logits_that_keep_rising(device):
    """Every block of keys outgrows all before, so everything summed so far is rescaled."""
    q, (source,) = problem(device, 0, 20, 700, 16)
    q = stored(np.ones(q.shape), device.dtype)
    source.k = stored(np.linspace(0, 60, 700, dtype=np.float32)[:, None] * np.ones(16, np.float32) / 16, device.dtype)
    check_attention(device, q, [source], 1, 1.0, tolerance=4)


@case()
def attention_is_the_same_for_any_threads(device):
    """And wherever in a tile a query sits."""
    q, sources = problem(device, 0, 130, 200, 120)
    results = []
    for threads in (1, 2, 3):
        results.append(device.empty(130, 120))
        attention(device, results[-1], q, sources, 3, 40**-0.5, threads=threads)
    assert all((result == results[0]).all() for result in results)
    moved = device.empty(123, 120)
    attention(device, moved, q[7:], sources, 3, 40**-0.5)
    assert (moved == results[0][7:]).all()


@case()
def attention_scratch_is_bounded(device):
    q, sources = problem(device, 0, 16384, 16384, 320)
    assert attention(device, q, q, sources, 8, 0.1, only_measure=True) < 24 << 20


# --- pointwise


@case(count=[1, 511, 20001], kinds=list(itertools.product(DTYPES, DTYPES, (*DTYPES, None))))
def combine_of(device, count, kinds):
    kind, x_kind, y_kind = kinds
    x, y = noise(0, count, dtype=x_kind), None if y_kind is None else noise(1, count, dtype=y_kind)
    expected = 0.75 * floats(x) + (0 if y is None else 0.3 * floats(y))
    tolerance = {"float32": 2e-7, "bfloat16": 4e-3, "float16": 5e-4}[kind]
    dst = empty(count, dtype=kind)
    combine(device, dst, 0.75, x, 0.3, y)
    check(dst, expected, tolerance)
    for same in (x, y):
        if same is not None and kind_of(same) == kind:
            before = same.copy()
            combine(device, same, 0.75, x, 0.3, y)
            check(same, expected, tolerance)
            same[:] = before


@case(kind=DTYPES)
def combine_of_slices(device, kind):
    x, y, wide = noise(0, 9, 30, dtype=kind)[:, 4:17], device.noise(1, 9, 20)[:, :13], noise(2, 9, 21, dtype=kind)
    before, expected = wide.copy(), -1.5 * floats(x) + 2 * floats(y)
    combine(device, wide[:, 5:18], -1.5, x, 2.0, y)
    check(wide[:, 5:18], expected, {"float32": 3e-7, "bfloat16": 4e-3, "float16": 5e-4}[kind])
    assert (wide[:, :5] == before[:, :5]).all() and (wide[:, 18:] == before[:, 18:]).all()


@case(kind=DTYPES[1:])
def combine_widens_every_half(device, kind):
    """All 65536 values of a 16-bit format, infinities, NaNs and denormals among them, are exact in float32."""
    bits = np.arange(65536, dtype=np.uint16)
    x, dst = bits.view(NUMPY[kind]), empty(65536)
    expected = floats(x) if kind == "bfloat16" else x.astype(np.float64)
    combine(device, dst, 1.0, x)
    assert np.array_equal(dst.astype(np.float64), expected, equal_nan=True)
    assert (np.signbit(dst) == np.signbit(expected))[~np.isnan(expected)].all()


@case(kind=DTYPES[1:])
def combine_rounds_to_halves(device, kind):
    """To nearest, ties to even; a NaN stays one, an infinity too, and what is too large becomes one."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits[:8] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001
    bits[8:30000] = bits[8:30000] & 0x8FFFFFFF | 0x30000000 + (bits[8:30000] & 0x10000000)  # the range of a half
    x, dst = bits.view(np.float32), empty(100_000, dtype=kind)
    combine(device, dst, 1.0, x)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = stored(x, kind)
    number = ~np.isnan(x)
    assert (dst.view(np.uint16)[number] == expected.view(np.uint16)[number]).all()
    assert np.isnan(floats(dst)[~number]).all()


@case(c=[1, 40])
def blend_rows_of(device, c):
    """A row's share of x, the rest of y; from and to slices, and in place."""
    x, y = device.noise(0, 33, c + 7)[:, 3 : 3 + c], device.noise(1, 33, c)
    share = np.linspace(0, 1, 33, dtype=np.float32)
    expected, wide = share[:, None] * floats(x) + (1 - share[:, None]) * floats(y), device.empty(33, c + 4)
    for dst in (wide[:, 2 : 2 + c], y):
        call = Call(device)
        call.run(
            "blend_rows", dst=call.tensor(dst, output=True), x=call.tensor(x), y=call.tensor(y),
            floats=pointers(call.block(share)),
        )  # fmt: skip
        check(dst, expected, device.tolerance("pointwise"))


CURVES = {"identity": (1, 0, 0), "halved": (0.5, 0.5, 0), "doubled": (2, -1, 0), "bounded": (0.7, 0, 3)}


def curved(x, curve):
    factor, offset, bound = (np.float64(np.float32(number)) for number in CURVES[curve])
    y = factor * x + offset
    return bound * np.tanh(y / bound) if bound else y


@case(shape=[(1, 1, 1, 1), (2, 4, 5, 7), (1, 3, 64, 64), (77, 48, 1, 1)], curve=list(CURVES))
def planes_to_and_from(device, shape, curve):
    planes, back = 4 * noise(0, *shape), empty(*shape)
    n, c, h, w = shape
    maps, numbers = device.empty(n, h, w, c), ctypes.pointer(Curve(*CURVES[curve]))
    call = Call(device)
    call.run("from_planes", dst=call.tensor(maps, output=True), planes=call.planes(planes), curve=numbers)
    check(maps, curved(planes.transpose(0, 2, 3, 1).astype(np.float64), curve), device.tolerance("pointwise"))
    for kind in (device.dtype, "float32"):
        wide = noise(1, n, h, w, c + 8, dtype=kind)[..., 3 : 3 + c]
        call = Call(device)
        call.run("to_planes", x=call.tensor(wide), planes=call.planes(back, output=True), curve=numbers)
        check(back, curved(floats(wide).transpose(0, 3, 1, 2), curve), 3e-7)


@case(count=[1, 1000, 16384])
def mix_of(device, count):
    """z = up z + down (a p + b z) in double, rounded once."""
    z, p, factors = noise(0, count), noise(1, count), (1.1, -0.37, 0.8, 0.6)
    up, down, a, b = factors
    wide, other = z.astype(np.float64), p.astype(np.float64)
    expected = (up * wide + down * (a * other + b * wide)).astype(np.float32)
    call = Call(device)
    call.run(
        "mix", floats=pointers(call.block(z, output=True), call.block(p)), count=count, factors=(c_double * 4)(*factors)
    )
    np.testing.assert_array_max_ulp(z, expected, 1)


@case(window=[(0, 0, 9, 11), (2, 3, 4, 5), (8, 10, 1, 1), (0, 4, 9, 1)])
def tiles_of(device, window):
    top, left, rows, columns = window
    planes, tile = noise(0, 6, 9, 11), empty(6, rows, columns)
    place = ctypes.pointer(Window(6, 9, 11, top, left, rows, columns))
    inside = np.s_[:, top : top + rows, left : left + columns]
    call = Call(device)
    call.run("tile_take", floats=pointers(call.block(tile, output=True), call.block(planes)), window=place)
    assert (tile == planes[inside]).all()
    tile, shares = noise(1, 6, rows, columns), (noise(2, rows), noise(3, columns))
    expected = planes.astype(np.float64)
    expected[inside] += shares[0][:, None] * shares[1].astype(np.float64) * tile
    call = Call(device)
    blocks = call.block(planes, output=True), call.block(tile), *map(call.block, shares)
    call.run("tile_add", floats=pointers(*blocks), window=place)
    check(planes, expected, 3e-7)


@case(count=[1, 1000])
def copy_and_zero(device, count):
    x, dst = noise(0, count), empty(count)
    call = Call(device)
    call.run("copy", floats=pointers(call.block(dst, output=True), call.block(x)), count=4 * count)
    assert (dst == x).all()
    call = Call(device)
    call.run("zero", floats=pointers(call.block(dst, output=True)), count=4 * count)
    assert (dst == 0).all()


@case(kind=DTYPES)
def floats_of_weights(device, kind):
    parts = [noise(0, 7, dtype=kind), noise(1, 3, 4, dtype=kind)]
    backend, block, result = device.handle(), c_void_p(), np.empty(19, np.float32)
    weights = [weight(part) for part in parts]
    device.check(device.library.ops_floats_open(backend, byref(block), 2, weight_list(weights)))
    device.check(device.library.ops_read(backend, result.ctypes.data, block, result.nbytes))
    device.library.ops_give(backend, block)
    assert (result == np.concatenate([floats(part).ravel() for part in parts])).all()


# ---------------------------------------------------------------------------------------------------------- running it


def run(device, only=""):
    """Yields (case, error or None) for the cases whose name has that text in it."""
    for name, function in CASES.items():
        if only in name:
            try:
                function(device)
                yield name, None
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                yield name, f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"


def cpu(level, dtype):
    """The device of one of the CPU's levels in a process of its own, since oneDNN is held to it. Above the CPU's own only
    amx is there, with its instructions emulated."""
    number = LEVELS.index(level)
    sources = building.layer("core", "cpu") + [NATIVE / "ops.c", NATIVE / "cpu.c"]
    loaded = building.build("ops", sources)
    emulated = number > loaded.ops_cpu_best()
    if emulated:
        loaded = building.build("ops", sources, emulate_amx=True)
    prepare(loaded).ops_cpu_open.argtypes = [c_void_p, c_int, c_int, c_int]

    def open_backend(handle, threads):
        return loaded.ops_cpu_open(handle, number, DTYPES.index(dtype), threads)

    device = Device(loaded, open_backend, dtype, f"{level} {dtype}")
    device.slow = emulated
    device.check(loaded.ops_cpu_force(number))
    return device


def cuda(paths, dtype):
    """The first GPU, with driver, NVRTC, cuBLASLt and cuDNN at these paths, with commas between them."""
    shims = [NATIVE / "ops.c", NATIVE / "cuda.c"]
    loaded = prepare(building.build("ops-cuda", building.layer("core", "cuda") + shims))
    loaded.ops_cuda_libraries.argtypes = [c_char_p] * 4
    loaded.ops_cuda_open.argtypes = [c_void_p, c_int, c_int]
    device = Device(
        loaded,
        lambda handle, threads: loaded.ops_cuda_open(handle, DTYPES.index(dtype), threads),
        dtype,
        f"cuda {dtype}",
    )
    # ex2.approx of the attention, the order of the norms' sums, and biases in the type that cuDNN and cuBLASLt add them in, which
    # is a third rounding; TF32 would be 1e-3.
    device.TOLERANCES = Device.TOLERANCES | {"attention": (1e-5, 8e-3), "norm": (1e-5, 4e-3), "product": (4e-6, 6e-3)}
    device.slow = True
    device.check(loaded.ops_cuda_libraries(*(path.encode() for path in paths.split(","))))
    return device


if __name__ == "__main__":
    for name, error in run({"cpu": cpu, "cuda": cuda}[sys.argv[1]](*sys.argv[2:4]), *sys.argv[4:5]):
        print(json.dumps({"case": name, "error": error}), flush=True)
