"""The CUDA kernels' own sources, emulated on the CPU, against NumPy in float64; and compiled for every GPU by NVRTC."""

import ctypes
import multiprocessing
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.special
from native import floats, from_bfloat16, to_bfloat16
from native.cuda import nvrtc
from native.cuda.direct import BF16, F16, F32, KERNELS, Device, surrounded

FLOAT, BFLOAT, HALF, TURING = DEVICES = Device(F32), Device(BF16), Device(F16), Device(F16, 75)
NAMES = {F32: "float32", BF16: "bfloat16", F16: "float16"}

# The largest error relative to the largest expected value. bfloat16 keeps 8 bits, float16 11: half a unit for each rounding,
# of attention's weights and of the result. The power of 2 that float32 attention takes is right to 2 units.
TOLERANCE = {
    "attention": {F32: 1e-5, BF16: 8e-3, F16: 1e-3},
    "norm": {F32: 1e-5, BF16: 4e-3, F16: 1e-3},
    "pointwise": {F32: 2e-7, BF16: 4e-3, F16: 5e-4},
    "activation": {F32: 2e-6, BF16: 4e-3, F16: 5e-4},
}

pytestmark = pytest.mark.long

every_dtype = pytest.mark.parametrize("device", DEVICES[:3], ids=repr)
every_device = pytest.mark.parametrize("device", DEVICES, ids=repr)


def noise(seed, *shape, dtype=F32):
    """Random numbers among NaNs, which a kernel finds where it reads beyond them."""
    return narrow(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32), dtype)


def narrow(x, dtype):
    return surrounded(to_bfloat16(x) if dtype == BF16 else x.astype(np.float16) if dtype == F16 else x)


def wide(x):
    return floats(x).astype(np.float64)


def check(actual, expected, tolerance, what=""):
    actual = wide(actual)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all(), what
    assert np.abs(actual - expected).max(initial=0) <= tolerance * max(np.abs(expected).max(initial=0), 1e-30), what


# --------------------------------------------------------------------------------------------------------------- attention


def attention_oracle(q, sources, heads, scale, causal=False):
    n, _, queries, channels = q.shape
    parts = (n, -1, heads, channels // heads)
    logits, values = [], []
    for k, v, options in sources:
        key, value = (np.broadcast_to(wide(x).reshape(len(x), *parts[1:]), (n, x.shape[2], *parts[2:])) for x in (k, v))
        products = np.float64(np.float32(scale)) * np.einsum("nqhc,nkhc->nhqk", wide(q).reshape(parts), key)
        biases = [np.float64(options.get("bias", 0))]
        biases += [options["query_bias"].astype(np.float64)[:, None]] if "query_bias" in options else []
        biases += [options["key_bias"].astype(np.float64)] if "key_bias" in options else []
        logits.append(products + sum(biases))
        values.append(value)
    logits = np.concatenate(logits, axis=3)
    if causal:
        logits[..., np.triu_indices(queries, 1)[0], np.triu_indices(queries, 1)[1]] = -np.inf
    top = logits.max(axis=3, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=3, keepdims=True)
    weights /= np.where(total > 0, total, 1)
    return np.einsum("nhqk,nkhc->nqhc", weights, np.concatenate(values, axis=1)).reshape(n, 1, queries, channels)


def keys(seed, n, tokens, channels, dtype, **options):
    return (
        noise(seed, n, 1, tokens, channels, dtype=dtype),
        noise(seed + 1, n, 1, tokens, channels, dtype=dtype),
        options,
    )


def check_attention(device, q, sources, heads, scale, factor=1, **options):
    actual = device.attention(q, sources, heads, scale, **options)
    options.pop("dst", None)
    check(actual, attention_oracle(q, sources, heads, scale, **options), factor * TOLERANCE["attention"][device.dtype])
    return actual


SIZES = [1, 3, 8, 16, 20, 33, 40, 64, 72, 80, 96, 128, 160, 168, 512]
BRIEF_SIZES = [3, 40, 160, 512]


@pytest.mark.parametrize(
    "device, size",
    [(d, s) for d, sizes in zip(DEVICES, (SIZES, BRIEF_SIZES, SIZES, BRIEF_SIZES), strict=True) for s in sizes],
    ids=str,
)
def test_attention_head_sizes(device, size):
    q = noise(0, 1, 1, 50, 2 * size, dtype=device.dtype)
    check_attention(device, q, [keys(1, 1, 77, 2 * size, device.dtype)], 2, size**-0.5)


@every_device
@pytest.mark.parametrize(
    "queries, tokens", [(1, 1), (1, 77), (2, 1), (17, 2), (33, 63), (64, 64), (65, 65), (97, 129), (1100, 70)]
)
def test_attention_lengths(device, queries, tokens):
    q = noise(0, 1, 1, queries, 3 * 40, dtype=device.dtype)
    check_attention(device, q, [keys(1, 1, tokens, 3 * 40, device.dtype)], 3, 40**-0.5)


@every_device
@pytest.mark.parametrize("size", [40, 512])
def test_attention_sources_biases_and_batches(device, size):
    """Sources of one sample and of three; some of them, some keys and some queries never."""
    q = noise(0, 3, 1, 70, 2 * size if size < 100 else size, dtype=device.dtype)
    c, rng = q.shape[3], np.random.default_rng(5)
    sources = [
        keys(10 * i, n, t, c, device.dtype, bias=0.3 * i)
        for i, (n, t) in enumerate(((3, 70), (1, 1), (3, 130), (1, 9)))
    ]
    sources[1][2]["bias"] = -np.inf
    for i, source in enumerate(sources[2:]):
        source[2]["query_bias"] = rng.standard_normal(70).astype(np.float32)
        source[2]["query_bias"][i :: 3 + i] = -np.inf
    sources[0][2]["key_bias"] = rng.standard_normal(70).astype(np.float32)
    sources[0][2]["key_bias"][:66] = -np.inf
    check_attention(device, q, sources, c // size, size**-0.5)


@every_device
@pytest.mark.parametrize("size", [40, 512])
def test_attention_with_nothing_left(device, size):
    """Queries all of whose logits are -inf get zeros."""
    q = noise(0, 1, 1, 40, size, dtype=device.dtype)
    mask = np.where(np.arange(40) % 3 == 0, -np.inf, 0).astype(np.float32)
    sources = [keys(i, 1, 100, size, device.dtype, query_bias=mask) for i in (1, 2)]
    assert (check_attention(device, q, sources, 1, 0.2)[0, 0, ::3] == 0).all()
    sources = [keys(1, 1, 100, size, device.dtype, key_bias=np.full(100, -np.inf, np.float32))]
    assert (floats(device.attention(q, sources, 1, 0.2)) == 0).all()


@every_device
@pytest.mark.parametrize("size, tokens", [(16, 77), (20, 130), (512, 70)])
def test_attention_causal(device, size, tokens):
    q = noise(0, 2, 1, tokens, size, dtype=device.dtype)
    check_attention(device, q, [keys(1, 2, tokens, size, device.dtype)], 1, size**-0.5, causal=True)


@every_device
@pytest.mark.parametrize("size", [20, 24, 168])
def test_attention_on_slices(device, size):
    """Queries, keys and values side by side, in a destination that keeps its other columns."""
    qkv, dst = (
        noise(0, 2, 1, 70, 3 * 2 * size, dtype=device.dtype),
        noise(1, 2, 1, 70, 2 * size + 16, dtype=device.dtype),
    )
    before, c = dst.copy(), 2 * size
    source = qkv[..., c : 2 * c], qkv[..., 2 * c :], {}
    check_attention(device, qkv[..., :c], [source], 2, 0.3, dst=dst[..., 8 : 8 + c])
    assert (dst[..., :8] == before[..., :8]).all() and (dst[..., 8 + c :] == before[..., 8 + c :]).all()


@every_device
@pytest.mark.parametrize("scale", [0.0, 1e-3, 5.0, 100.0, -0.4])
def test_attention_scales(device, scale):
    """Large logits saturate the softmax: it must not overflow. They also magnify the products' rounding in float32."""
    q = noise(0, 1, 1, 50, 40, dtype=device.dtype)
    check_attention(device, q, [keys(1, 1, 150, 40, device.dtype)], 1, scale, factor=max(1, abs(scale) * 10))


@every_device
def test_attention_logits_that_keep_rising(device):
    """Every tile of keys outgrows all before, so everything summed so far is rescaled."""
    q = narrow(np.ones((1, 1, 20, 16), np.float32), device.dtype)
    k, v, options = keys(1, 1, 700, 16, device.dtype)
    k = narrow(np.linspace(0, 60, 700, dtype=np.float32)[:, None] * np.ones(16, np.float32) / 16, device.dtype)[
        None, None
    ]
    check_attention(device, q, [(k, v, options)], 1, 1.0, factor=4)


@every_device
@pytest.mark.parametrize("size", [40, 512])
def test_attention_does_not_hide_what_is_not_a_number(device, size):
    q, (k, v, _) = noise(0, 1, 1, 5, size, dtype=device.dtype), keys(1, 1, 70, size, device.dtype)
    q[0, 0, 2, 7] = 0x7FC0 if device.dtype == BF16 else np.nan
    result = wide(device.attention(q, [(k, v, {})], 1, 0.1))[0, 0]
    assert np.isnan(result[2]).all() and np.isfinite(np.delete(result, 2, axis=0)).all()


@every_device
def test_attention_of_too_many_sources_is_refused(device):
    with pytest.raises(RuntimeError, match="65 sources"):
        device.attention(noise(0, 1, 1, 4, 16, dtype=device.dtype), [keys(1, 1, 3, 16, device.dtype)] * 65, 1, 1)


def test_attention_of_64_sources():
    q = noise(0, 1, 1, 10, 16, dtype=F16)
    check_attention(HALF, q, [keys(i, 1, 1 + i % 5, 16, F16, bias=0.02 * i) for i in range(64)], 1, 0.25)


# ------------------------------------------------------------------------------------------------------------------- norms


def group_norm_oracle(a, b, add, scale, shift, groups, eps, silu):
    x = wide(a) if b is None else np.concatenate([wide(a), wide(b)], axis=3)
    x = x if add is None else x + add[:, None, None, :]
    n, h, w, c = x.shape
    grouped = x.reshape(n, h * w, groups, c // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    y = ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * scale + shift
    return y * scipy.special.expit(y) if silu else y


@every_dtype
@pytest.mark.parametrize(
    "n, h, w, channels, groups",
    [
        (1, 1, 1, (32,), 8),
        (2, 8, 8, (320,), 32),
        (1, 5, 13, (60,), 6),
        (3, 9, 7, (40, 20), 6),
        (2, 16, 16, (64, 32), 32),
        (1, 3, 3, (1280, 1280), 32),  # more channels than a block's threads take at once
        (1, 2, 3, (301,), 7),  # the same, one by one
        (1, 2, 2, (2056,), 1),
        (1, 64, 64, (24,), 3),
        (1, 1, 40, (1024,), 1024),
    ],
)
@pytest.mark.parametrize("add, silu", [(0, False), (1, True), (2, False)])
def test_group_norm(device, n, h, w, channels, groups, add, silu):
    parts = [noise(i, n, h, w, c, dtype=device.dtype) for i, c in enumerate(channels)]
    c = sum(channels)
    added = noise(5, 1 if add == 1 else n, c) if add else None
    arguments = parts[0], (parts[1:] or [None])[0], added, noise(3, c), noise(4, c), groups, 1e-5, silu
    check(device.group_norm(*arguments), group_norm_oracle(*arguments), TOLERANCE["norm"][device.dtype])


def test_group_norm_with_a_large_mean():
    """The spread survives; the values themselves have lost 3 digits in float32."""
    x = surrounded(noise(0, 2, 40, 40, 32) + 1000)
    arguments = x, None, None, np.ones(32, np.float32), np.zeros(32, np.float32), 8, 1e-5, False
    actual, expected = FLOAT.group_norm(*arguments), group_norm_oracle(*arguments)
    check(actual, expected, 1e-4)
    check(actual.std(), expected.std(), 1e-6)


@every_dtype
def test_group_norm_of_a_constant(device):
    x = narrow(np.full((1, 4, 4, 8), 3, np.float32), device.dtype)
    y = device.group_norm(x, None, None, np.ones(8, np.float32), np.full(8, 2, np.float32), 2, 1e-6, False)
    check(y, np.full(x.shape, 2.0), 1e-3)


@every_dtype
@pytest.mark.parametrize("first", [16, 3])
def test_group_norm_on_slices_and_in_place(device, first):
    whole = noise(0, 2, 6, 6, 64, dtype=device.dtype)
    options = None, noise(1, 32), noise(2, 32), 4, 1e-5, True
    part = whole[..., first : first + 32]
    expected = group_norm_oracle(part, None, *options)
    check(device.group_norm(part, None, *options), expected, TOLERANCE["norm"][device.dtype])
    dense = surrounded(part)
    check(device.group_norm(dense, None, *options, dst=dense), expected, TOLERANCE["norm"][device.dtype])


def test_silu_over_its_whole_range():
    shift = np.array([-200.0, -100, -88, -1, -0.0, 0, 1e-8, 1, 88, 100, 200], np.float32)
    x = np.zeros((1, 1, 1, len(shift)), np.float32)
    y = FLOAT.group_norm(x, None, None, np.ones_like(shift), shift, 1, 1e-5, True)[0, 0, 0]
    assert np.allclose(y, shift * scipy.special.expit(shift.astype(np.float64)), rtol=1e-6, atol=1e-34)


@every_dtype
@pytest.mark.parametrize("rows, c, first", [(1, 1, 2), (3, 7, 2), (64, 320, 8), (5, 1280, 0), (2, 1300, 4), (9, 24, 1)])
def test_layer_norm(device, rows, c, first):
    x = noise(0, rows, c + 16, dtype=device.dtype)[:, first : first + c]
    scale, shift, values = noise(1, c), noise(2, c), wide(x)
    expected = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5) * scale + shift
    check(device.layer_norm(x, scale, shift, 1e-5), expected, TOLERANCE["norm"][device.dtype])
    check(device.layer_norm(x, scale, shift, 1e-5, dst=x), expected, TOLERANCE["norm"][device.dtype])


# --------------------------------------------------------------------------------------------------------------- pointwise


@pytest.mark.parametrize(
    "rows, c, stride", [(1, 1, 1), (1, 2048, 2048), (5, 9000, 9000), (9, 24, 40), (7, 24, 27), (6, 7, 7)]
)
@pytest.mark.parametrize("dtypes", [(d, x, y) for d in NAMES for x in NAMES for y in (*NAMES, None)], ids=str)
def test_combine(rows, c, stride, dtypes):
    d, x_dtype, y_dtype = dtypes
    x = noise(0, rows, stride, dtype=x_dtype)[:, :c]
    y = None if y_dtype is None else noise(1, rows, c, dtype=y_dtype)
    expected = 0.75 * wide(x) + (0 if y is None else 0.3 * wide(y))
    dst = noise(2, rows, stride, dtype=d)
    before = dst.copy()
    check(HALF.combine(dst[:, :c], 0.75, x, 0.3, y), expected, TOLERANCE["pointwise"][d])
    assert (dst[:, c:] == before[:, c:]).all()
    for same in (x, y):
        if same is not None and same.dtype == dst.dtype:
            before = same.copy()
            check(HALF.combine(same, 0.75, x, 0.3, y), expected, TOLERANCE["pointwise"][d])
            same[:] = before


@every_dtype
@pytest.mark.parametrize("rows, c", [(1, 1), (9, 24), (5, 7)])
def test_blend_rows(device, rows, c):
    x, y, a = noise(0, rows, c, dtype=device.dtype), noise(1, rows, c, dtype=device.dtype), noise(2, rows)
    expected = a[:, None] * wide(x) + (1 - a[:, None].astype(np.float64)) * wide(y)
    check(device.blend_rows(x, a, x, y), expected, TOLERANCE["pointwise"][device.dtype])


ACTIVATIONS = {
    0: lambda x: x,
    1: lambda x: x * scipy.special.ndtr(x),
    2: lambda x: x * scipy.special.expit(1.702 * x),
    3: lambda x: x * scipy.special.expit(x),
}


@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows, c", [(5, 32), (3, 7)])
@pytest.mark.parametrize("post", [False, True])
def test_finish(device, activation, rows, c, post):
    x, factor = noise(0, rows, c, dtype=device.dtype), noise(1, rows, 2 * c, dtype=device.dtype)[:, c:]
    dst = noise(2, rows, c, dtype=device.dtype)
    expected = ACTIVATIONS[activation](wide(x))
    if post:
        expected = np.maximum(expected * wide(factor) + wide(dst), 0)
    options = {"factor": factor, "residual": dst, "relu": True} if post else {}
    check(device.finish(dst, x, activation, **options), expected, TOLERANCE["activation"][device.dtype])


def test_activations_over_their_whole_range():
    x = np.array([[-200, -10, -3, -1, -1e-6, -0.0, 0, 1e-6, 1, 3, 10, 200]], np.float32)
    for activation, expected in ACTIVATIONS.items():
        y = FLOAT.finish(np.empty_like(x), x, activation)
        assert np.allclose(y, expected(x.astype(np.float64)), rtol=1e-6, atol=5e-7)
    assert np.isnan(FLOAT.finish(np.empty((1, 1), np.float32), np.full((1, 1), np.nan, np.float32), relu=True)).all()


CURVES = [(0.5, 0, 0), (2, -1, 0), (1 / 0.18215, 0, 3)]


def curve_of(x, curve):
    y = curve[0] * x + curve[1]
    return curve[2] * np.tanh(y / curve[2]) if curve[2] else y


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 5, 7), (1, 3, 33, 31), (2, 70, 1, 1)])
@pytest.mark.parametrize("curve", CURVES)
def test_planes(device, shape, curve):
    planes = noise(0, *shape)
    n, c, h, w = shape
    x = device.from_planes(planes, device.empty((n, h, w, c)), curve)
    check(x, curve_of(planes.transpose(0, 2, 3, 1).astype(np.float64), curve), 4 * TOLERANCE["pointwise"][device.dtype])
    part = noise(1, n, h, w, c + 3, dtype=device.dtype)[..., 1 : 1 + c]
    check(device.to_planes(part, curve), curve_of(wide(part).transpose(0, 3, 1, 2), curve), 1e-6)


@pytest.mark.parametrize("count", [1, 256, 1000])
def test_mix(count):
    z, p = noise(0, count), noise(1, count)
    expected = 1.01 * z.astype(np.float64) - 0.4 * (0.8 * p.astype(np.float64) + 0.3 * z)
    assert not HALF.mix(z, p, (1.01, -0.4, 0.8, 0.3))
    check(z, expected, 6e-8)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_mix_reports_what_is_not_finite(value):
    z, p = noise(0, 1000), noise(1, 1000)
    p[700] = value
    assert HALF.mix(z, p, (1, 2, 1, 0))
    assert np.isfinite(np.delete(z, 700)).all() and not np.isfinite(z[700])


def test_tiles():
    planes, row_shares, column_shares = noise(0, 3, 9, 11), noise(1, 4), noise(2, 5)
    tile, expected = surrounded(np.zeros((3, 4, 5), np.float32)), planes.astype(np.float64)
    window = (3, 9, 11, 2, 6, 4, 5)
    HALF.tile("tile_take", tile, planes, window=window)
    assert (tile == planes[:, 2:6, 6:]).all()
    expected[:, 2:6, 6:] += row_shares[:, None].astype(np.float64) * column_shares * tile
    HALF.tile("tile_add", planes, tile, row_shares, column_shares, window=window)
    check(planes, expected, 2e-7)


# ------------------------------------------------------------------------------------------------------------ convolutions


def convolved(x, weights, stride=1, before=1, after=1):
    """x (n, h, w, in), weights (out, in, kernel, kernel), in float64."""
    kernel = weights.shape[2]
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    h, w = ((size - kernel) // stride + 1 for size in padded.shape[1:3])
    return sum(
        padded[:, i : i + stride * h : stride, j : j + stride * w : stride] @ weights[:, :, i, j].T
        for i in range(kernel)
        for j in range(kernel)
    )


@every_dtype
@pytest.mark.parametrize(
    "shape, post",
    [
        ((64, 4, 3, 1, 1, 1), False),
        ((320, 8, 3, 1, 1, 1), True),
        ((3, 5, 3, 1, 1, 1), True),
        ((8, 3, 1, 1, 0, 0), False),
        ((24, 1, 3, 2, 0, 1), False),
    ],
)
@pytest.mark.parametrize("dst_dtype", [None, F32])
def test_conv_few(device, shape, post, dst_dtype):
    inputs, outputs, kernel, stride, before, after = shape
    x, weights = (
        noise(0, 2, 6, 7, inputs, dtype=device.dtype),
        noise(1, outputs, inputs, kernel, kernel, dtype=device.dtype),
    )
    bias = noise(2, outputs)
    expected = convolved(wide(x), wide(weights), stride, before, after) + bias
    dtype = device.dtype if dst_dtype is None else dst_dtype
    dst, residual = device.empty(expected.shape, dtype), noise(3, *expected.shape, dtype=device.dtype)
    packed = surrounded(weights.transpose(0, 2, 3, 1))
    if post:
        expected = np.maximum(expected + wide(residual), 0)
    options = {"residual": residual, "relu": True} if post else {}
    device.conv_few(dst, x, packed, bias, (*shape, 0, 0, 6, 7), **options)
    check(dst, expected, TOLERANCE["activation"][dtype])


@every_dtype
@pytest.mark.parametrize("stored", NAMES)
def test_pack(device, stored):
    weights = noise(0, 6, 5, 3, 3, dtype=stored)
    packed = device.pack_conv(weights, (5, 6, 3, 1, 1, 1, 0, 0, 8, 8)).reshape(6, 3, 3, 5)
    assert (packed == narrow(floats(weights).astype(np.float32).transpose(0, 2, 3, 1), device.dtype)).all()
    rows = noise(1, 7, 20, dtype=stored)[:, 3:15], noise(2, 5, 12, dtype=stored)
    stacked = device.stack(device.dtype, rows).reshape(12, 12)
    assert (stacked == np.concatenate([narrow(floats(x).astype(np.float32), device.dtype) for x in rows])).all()


@every_dtype
@pytest.mark.parametrize("inputs, outputs", [(8, 16), (5, 3)])
def test_doubling(device, inputs, outputs):
    """The folded weights and the scattered phases make a convolution of the doubled image."""
    x, weights, bias = wide(noise(0, 2, 4, 5, inputs)), noise(1, outputs, inputs, 3, 3), noise(2, outputs)
    folded = wide(device.pack_conv(weights, (inputs, outputs, 3, 1, 1, 1, 1, 0, 4, 5))).reshape(
        4 * outputs, 2, 2, inputs
    )
    phases = convolved(x, folded.transpose(0, 3, 1, 2))
    y = narrow(phases.astype(np.float32), device.dtype)
    actual = device.unfold(device.empty((2, 8, 10, outputs)), y, bias)
    expected = convolved(x.repeat(2, axis=1).repeat(2, axis=2), weights.astype(np.float64)) + bias
    check(actual, expected, 3 * TOLERANCE["pointwise"][device.dtype])


# ----------------------------------------------------------------------------------------------------------------- numbers


def test_convert_every_half():
    """All 65536 values of the 16-bit formats, infinities, NaNs and denormals among them, are exact in float32."""
    bits = np.arange(65536, dtype=np.uint16)
    for source, expected in (
        (bits.view(np.float16), bits.view(np.float16).astype(np.float32)),
        (bits, from_bfloat16(bits)),
    ):
        result = HALF.combine(np.empty((1, 65536), np.float32), 1, source[None], 0, None)[0]
        assert np.array_equal(result, expected, equal_nan=True)
        assert (np.signbit(result) == np.signbit(expected)).all()


def test_convert_to_16_bits():
    """To nearest, ties to even; a NaN stays one, an infinity too, and what is too large becomes one."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits[:4] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000
    bits[4:50_000] = bits[4:50_000] & 0x8FFFFFFF | 0x30000000  # in the range of float16
    x = bits.view(np.float32)
    number = ~np.isnan(x)
    result = HALF.combine(np.empty((1, x.size), np.uint16), 1, x[None], 0, None)[0]
    assert (result[number] == to_bfloat16(x[number])).all() and np.isnan(floats(result)[~number]).all()
    result = HALF.combine(np.empty((1, x.size), np.float16), 1, x[None], 0, None)[0]
    with np.errstate(over="ignore"):
        assert np.array_equal(result, x.astype(np.float16), equal_nan=True)


# ------------------------------------------------------------------------------------------------------------- determinism


def some_results(device):
    """What every kernel with a barrier makes of something large enough for several warps, blocks and tiles."""
    q = noise(0, 1, 1, 100, 40, dtype=device.dtype)
    sources = [keys(1, 1, 150, 40, device.dtype), keys(3, 1, 70, 40, device.dtype, key_bias=noise(5, 70))]
    yield device.attention(q, sources, 1, 0.2)
    broad = noise(0, 1, 1, 70, 192, dtype=device.dtype)
    yield device.attention(broad, [keys(1, 1, 150, 192, device.dtype, key_bias=noise(5, 150))], 1, 0.1)
    x, scale, shift = noise(0, 1, 40, 40, 96, dtype=device.dtype), noise(1, 2600), noise(2, 2600)
    yield device.group_norm(x, None, None, scale[:96], shift[:96], 32, 1e-5, True)
    yield device.group_norm(noise(0, 1, 3, 5, 2600, dtype=device.dtype), None, None, scale, shift, 2, 1e-5, False)
    planes = noise(0, 2, 40, 5, 9)
    pixels = device.from_planes(planes, device.empty((2, 5, 9, 40)), CURVES[0])
    yield pixels
    yield device.to_planes(pixels, CURVES[1])


def with_seed(device, seed):
    for path in device.paths:
        ctypes.CDLL(path.value.decode()).sid_emu_seed(seed)
    return [x.tobytes() for x in some_results(device)]


@every_device
def test_the_same_bytes_in_every_order(device):
    """Whichever warps run first."""
    list(some_results(device))
    first = with_seed(device, 1)
    assert all(with_seed(device, seed) == first for seed in (2, 3, 4))


BARRIER = re.compile(r"__syncthreads\(\);|copies_wait\(\);")


def barriers():
    for path in sorted(KERNELS.glob("*.cu")):
        for match in BARRIER.finditer(path.read_text()):
            yield path.stem, match.start(), path.read_text()[: match.start()].count("\n") + 1


SURVIVED = 42


def run_mutant(file, place, dtype):
    """Leaves with SURVIVED where a kernel without the barrier at that place (none at its end) makes the same of everything,
    in several orders."""
    device = Device(dtype)
    list(some_results(device))
    expected = with_seed(device, 1)
    text = (KERNELS / f"{file}.cu").read_text()
    mutant = Device(dtype, mutant=(file, text[:place] + BARRIER.sub("", text[place:], count=1)))
    list(some_results(mutant))
    if all(with_seed(mutant, seed) == expected for seed in range(1, 6)):
        sys.exit(SURVIVED)


def try_mutant(*arguments):
    process = multiprocessing.get_context("spawn").Process(target=run_mutant, args=arguments)
    process.start()
    process.join(300)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("file, place, line", list(barriers()), ids=str)
def test_every_barrier_matters(file, place, line):
    """Without it a result changes, or the kernel finds itself out of step and stops its process."""
    assert try_mutant(file, place, F32 if file == "attention_float" else F16) in (0, -signal.SIGABRT)


@pytest.mark.slow
def test_kernels_with_all_their_barriers_survive():
    assert try_mutant("norm", len((KERNELS / "norm.cu").read_text()), F16) == SURVIVED


# --------------------------------------------------------------------------------------------------------------- compiling


PADDED_HEADS = (16, 32, 48, 64, 80, 96, 128, 160)


def variants(architecture):
    """Every file with every set of options that the host functions compile it with for an architecture."""
    halves = (BF16, F16) if architecture >= 80 else (F16,)
    yield from ((file, F16, ()) for file in ("pointwise", "pack"))  # the same for every dtype
    yield from ((file, dtype, ()) for file in ("norm", "conv") for dtype in NAMES)
    yield "attention_float", F32, ()
    yield from (("attention_wide", dtype, ()) for dtype in halves)
    yield from (("attention", dtype, (f"-DSID_DP={head}",)) for dtype in halves for head in PADDED_HEADS)


def check_compiled(major, architecture, variants):
    """No warnings, no spilled registers, at most 48 KB of shared memory."""
    with ThreadPoolExecutor(2) as pool:
        logs = pool.map(lambda variant: (variant, nvrtc.compile_kernels(major, architecture, *variant)), variants)
        for variant, log in logs:
            stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
            assert stacks and set(stacks) == {("0", "0")}, (variant, log)
            assert all(int(size) <= 48 << 10 for size in re.findall(r"(\d+) bytes smem", log)), (variant, log)
            assert "warning" not in log, (variant, log)


FOUND = nvrtc.architectures() or [
    pytest.param(
        (0, 0), marks=pytest.mark.skip("no NVRTC: pip install nvidia-cuda-nvrtc, or make test-cuda"), id="none"
    )
]


@pytest.mark.parametrize("found", [pair for pair in FOUND if pair in ((13, 75), (13, 90))] or FOUND[:1], ids=str)
def test_kernels_compile(found):
    """What a float16 model of heads of 40 channels needs."""
    some = [v for v in variants(found[1]) if v[1] == F16 and v[2] in ((), ("-DSID_DP=48",))]
    check_compiled(*found, some)


@pytest.mark.slow
@pytest.mark.parametrize("found", FOUND, ids=str)
def test_all_kernels_compile(found):
    check_compiled(*found, variants(found[1]))
