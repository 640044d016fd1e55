"""The CPU kernels of every level: plain C against NumPy in float64, the others against plain C."""

import os
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin make small problems many times slower

import native
import numpy as np
import pytest
import scipy.special
from native import AMX, AVX512, AVX512_BF16, BF16, F32, GENERIC, Kernels, Problem, Source, floats, to_bfloat16

PLAIN = Kernels(GENERIC)
LEVELS = [Kernels(level) for level in range(native.best_level() + 1)]
if native.best_level() >= AVX512_BF16:
    LEVELS.append(Kernels(AMX, emulate_amx=True))
FASTER = LEVELS[1:]
NUMPY = {"float32": np.float32, "bfloat16": np.uint16}

# The largest error relative to the largest expected value, per dtype of the data. bfloat16 keeps 8 bits: 2^-9 = 2e-3
# for each rounding, of the probabilities and of the result.
TOLERANCE = {
    "attention": {"float32": 4e-6, "bfloat16": 8e-3},
    "norm": {"float32": 2e-6, "bfloat16": 4e-3},
    "matmul": {"float32": 4e-6},
    "pointwise": {"float32": 2e-7, "bfloat16": 4e-3},
    "winograd": {"float32": 5e-6, "bfloat16": 4e-3},
}

every_level = pytest.mark.parametrize("kernels", LEVELS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", NUMPY)


def check(actual, expected, tolerance, what=""):
    actual, expected = floats(np.asarray(actual)).astype(np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all(), what
    assert np.abs(actual - expected).max(initial=0) <= tolerance * max(np.abs(expected).max(initial=0), 1e-30), what


def noise(seed, *shape, dtype="float32"):
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return to_bfloat16(x) if dtype == "bfloat16" else x


# --------------------------------------------------------------------------------------------------------------- attention


def attention_oracle(problem):
    """dst in float64."""
    size = problem.q.shape[1] // problem.heads
    q = floats(problem.q).astype(np.float64)
    dst = np.zeros(q.shape)
    for head in range(problem.heads):
        part = np.s_[:, head * size : (head + 1) * size]
        logits, values = [], []
        for source in problem.sources:
            products = np.float32(problem.scale) * (q[part] @ floats(source.k).astype(np.float64)[part].T)
            bias = 0 if source.query_bias is None else source.query_bias[:, None].astype(np.float64)
            of_keys = 0 if source.key_bias is None else source.key_bias.astype(np.float64)
            logits.append(products + source.bias + bias + of_keys)
            values.append(floats(source.v).astype(np.float64)[part])
        logits = np.concatenate(logits, axis=1)
        top = logits.max(axis=1, keepdims=True)
        p = np.exp(logits - np.where(np.isfinite(top), top, 0))
        total = p.sum(axis=1, keepdims=True)
        dst[part] = p @ np.concatenate(values) / np.where(total > 0, total, 1)
    return dst


def problem(seed, queries, tokens, heads, size, dtype, **options):
    channels = heads * size
    q, k, v = (noise(seed + i, n, channels, dtype=dtype) for i, n in enumerate((queries, tokens, tokens)))
    return Problem(q, [Source(k, v)], heads, options.pop("scale", size**-0.5), **options)


def check_attention(kernels, problems, dtype):
    expected = [attention_oracle(p) for p in problems]
    results = kernels.attention(problems)
    for i, (result, dst) in enumerate(zip(results, expected, strict=True)):
        check(result, dst, TOLERANCE["attention"][dtype], f"problem {i}")


@every_level
@every_dtype
@pytest.mark.parametrize("size", [1, 3, 8, 16, 20, 33, 40, 64, 80, 96, 160, 512])
def test_attention_head_sizes(kernels, dtype, size):
    check_attention(kernels, [problem(size, 50, 77, 2, size, dtype)], dtype)


@every_level
@every_dtype
@pytest.mark.parametrize(
    "queries, tokens", [(1, 1), (1, 77), (2, 1), (17, 2), (33, 63), (48, 64), (49, 65), (97, 129), (130, 300)]
)
def test_attention_lengths(kernels, dtype, queries, tokens):
    check_attention(kernels, [problem(queries, queries, tokens, 3, 40, dtype)], dtype)


@every_level
@every_dtype
def test_attention_many_tiny_problems(kernels, dtype):
    check_attention(kernels, [problem(i, 1, 1 + i % 7, 2, 8, dtype) for i in range(300)], dtype)


@every_level
@every_dtype
def test_attention_problems_of_different_lengths(kernels, dtype):
    check_attention(kernels, [problem(i, 10 + 31 * i, 100 - 20 * i, 2, 24, dtype) for i in range(5)], dtype)


@every_level
@every_dtype
def test_attention_more_heads_than_are_packed_at_once(kernels, dtype):
    if kernels is PLAIN or kernels.level == AMX:
        pytest.skip("packs nothing, or is emulated and slow")
    p = problem(0, 3, 5000, 10, 64, dtype)
    check_attention(kernels, [p, replace(p, dst=None)], dtype)


@every_level
@every_dtype
def test_attention_on_slices(kernels, dtype):
    """Queries, keys and values side by side, and a destination inside a larger matrix that keeps its other columns."""
    qkv, dst = noise(0, 70, 3 * 48, dtype=dtype), noise(1, 70, 100, dtype=dtype)
    before = dst.copy()
    p = Problem(qkv[:, :48], [Source(qkv[:, 48:96], qkv[:, 96:])], 2, 0.3, dst=dst[:, 20:68])
    check_attention(kernels, [p], dtype)
    assert (dst[:, :20] == before[:, :20]).all() and (dst[:, 68:] == before[:, 68:]).all()


@every_level
@every_dtype
def test_attention_sources_and_biases(kernels, dtype):
    queries, heads, size = 60, 2, 20
    p = problem(0, queries, 1, heads, size, dtype)
    p.sources = []
    for i, tokens in enumerate((70, 1, 130, 9)):
        k, v = (noise(10 * i + j, tokens, heads * size, dtype=dtype) for j in (1, 2))
        mask = noise(10 * i + 3, queries) if i else None
        p.sources.append(Source(k, v, bias=float(np.log(0.2 + i)), query_bias=mask))
    p.sources[1].bias = -np.inf
    for i, source in enumerate(p.sources[2:]):
        source.query_bias[i :: 3 + i] = -np.inf
    check_attention(kernels, [p], dtype)


@every_level
@every_dtype
@pytest.mark.parametrize("scale", [0.0, 0.3, -0.4])
def test_attention_biases_of_keys(kernels, dtype, scale):
    """Some keys never, the first block of them among these; with and without biases of queries."""
    p = problem(0, 60, 200, 2, 20, dtype, scale=scale)
    p.sources.append(Source(*(noise(9 + i, 33, 40, dtype=dtype) for i in range(2)), bias=-0.7))
    for i, source in enumerate(p.sources):
        source.key_bias = noise(5 + i, len(source.k))
        source.key_bias[i::3] = -np.inf
    p.sources[0].key_bias[:130] = -np.inf
    p.sources[1].query_bias = noise(8, 60)
    p.sources[1].query_bias[::4] = -np.inf
    check_attention(kernels, [p], dtype)
    for source in p.sources:
        source.key_bias = np.full(len(source.k), -np.inf, np.float32)
    (nothing,) = kernels.attention([replace(p, dst=None)])
    assert (floats(nothing) == 0).all()


@every_level
@every_dtype
def test_attention_queries_with_nothing_left(kernels, dtype):
    p = problem(0, 40, 100, 2, 40, dtype)
    p.sources *= 2
    mask = np.where(np.arange(40) % 3 == 0, -np.inf, 0).astype(np.float32)
    p.sources = [replace(source, query_bias=mask) for source in p.sources]
    check_attention(kernels, [p], dtype)
    assert (floats(p.dst[::3]) == 0).all()
    (nothing,) = kernels.attention([replace(p, sources=[], dst=None)])
    assert (floats(nothing) == 0).all()


@every_level
@every_dtype
@pytest.mark.parametrize("scale", [0.0, 1e-3, 5.0, 100.0, -0.4])
def test_attention_scales(kernels, dtype, scale):
    """Large logits saturate the softmax: it must not overflow. They also magnify the products' rounding in float32."""
    p = problem(0, 50, 150, 1, 40, dtype, scale=scale)
    expected = attention_oracle(p)
    tolerance = TOLERANCE["attention"][dtype] * max(1, abs(scale) * 40)
    check(kernels.attention([p])[0], expected, tolerance)


@every_level
@every_dtype
def test_attention_logits_that_keep_rising(kernels, dtype):
    """Every block of keys outgrows all before, so everything summed so far is rescaled."""
    p = problem(0, 20, 700, 1, 16, dtype, scale=1.0)
    ramp = np.linspace(0, 60, 700, dtype=np.float32)[:, None] * np.ones(16, np.float32) / 16
    p.q = np.ones_like(floats(p.q)) if dtype == "float32" else to_bfloat16(np.ones(p.q.shape))
    p.sources[0].k = to_bfloat16(ramp) if dtype == "bfloat16" else ramp
    check(kernels.attention([p])[0], attention_oracle(p), 4 * TOLERANCE["attention"][dtype])


@every_level
@every_dtype
def test_attention_is_deterministic(kernels, dtype):
    """Whatever the threads, and wherever in a tile a query sits."""
    p = problem(0, 130, 200, 3, 40, dtype)
    results = [kernels.attention([replace(p, dst=None)], threads)[0] for threads in (1, 2, 2, 5)]
    assert all((result == results[0]).all() for result in results)
    moved = kernels.attention([replace(p, q=p.q[7:], dst=None)])[0]
    assert (moved == results[0][7:]).all()


@pytest.mark.parametrize("kernels", FASTER, ids=repr)
@every_dtype
def test_attention_agrees_with_plain_c(kernels, dtype):
    p = problem(0, 300, 200, 4, 40, dtype)
    expected = floats(PLAIN.attention([replace(p)])[0])
    check(kernels.attention([replace(p)])[0], expected, TOLERANCE["attention"][dtype])


@every_level
@every_dtype
def test_attention_scratch_is_bounded(kernels, dtype):
    p = problem(0, 16384, 16384, 8, 40, dtype)
    assert kernels.attention_scratch([p] * 4) < 24 << 20


# ------------------------------------------------------------------------------------------------------------------- norms


def group_norm_oracle(a, b, channel_add, scale, shift, groups, eps, silu):
    x = floats(a).astype(np.float64)
    if b is not None:
        x = np.concatenate([x, floats(b).astype(np.float64)], axis=3)
    if channel_add is not None:
        x = x + channel_add[:, None, None, :]
    n, h, w, c = x.shape
    grouped = x.reshape(n, h * w, groups, c // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    y = ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * scale + shift
    return y / (1 + np.exp(-y)) if silu else y


@every_level
@every_dtype
@pytest.mark.parametrize(
    "n, h, w, channels, groups",
    [
        (1, 1, 1, (32,), 8),
        (2, 8, 8, (320,), 32),
        (1, 5, 13, (60,), 6),
        (3, 9, 7, (40, 20), 6),
        (2, 16, 16, (640, 320), 32),
        (1, 3, 3, (1280, 1280), 32),
        (1, 64, 64, (24,), 3),
    ],
)
@pytest.mark.parametrize("add, silu", [(False, False), (True, True)])
def test_group_norm(kernels, dtype, n, h, w, channels, groups, add, silu):
    parts = [noise(i, n, h, w, c, dtype=dtype) for i, c in enumerate(channels)]
    c = sum(channels)
    scale, shift, added = noise(3, c), noise(4, c), noise(5, n, c) if add else None
    arguments = parts[0], (parts[1:] or [None])[0], added, scale, shift, groups, 1e-5, silu
    check(kernels.group_norm(*arguments), group_norm_oracle(*arguments), TOLERANCE["norm"][dtype])


@every_level
def test_group_norm_with_a_large_mean(kernels):
    """The spread survives; the values themselves have lost 3 digits in float32."""
    x = noise(0, 2, 40, 40, 32) + 1000
    arguments = x, None, None, np.ones(32, np.float32), np.zeros(32, np.float32), 8, 1e-5, False
    actual, expected = kernels.group_norm(*arguments), group_norm_oracle(*arguments)
    check(actual, expected, 1e-4)
    check(actual.std(), expected.std(), 1e-6)


@every_level
@every_dtype
def test_group_norm_of_a_constant(kernels, dtype):
    x = np.full((1, 4, 4, 8), 3, np.float32)
    x = to_bfloat16(x) if dtype == "bfloat16" else x
    y = kernels.group_norm(x, None, None, np.ones(8, np.float32), np.full(8, 2, np.float32), 2, 1e-6, False)
    check(y, np.full(x.shape, 2), 1e-3)


@every_level
@every_dtype
def test_group_norm_on_slices_and_in_place(kernels, dtype):
    wide = noise(0, 2, 6, 6, 64, dtype=dtype)
    options = None, noise(1, 32), noise(2, 32), 4, 1e-5, True
    expected = group_norm_oracle(wide[..., 16:48], None, *options)
    check(kernels.group_norm(wide[..., 16:48], None, *options), expected, TOLERANCE["norm"][dtype])
    dense = np.ascontiguousarray(wide[..., 16:48])
    check(kernels.group_norm(dense, None, *options, dst=dense), expected, TOLERANCE["norm"][dtype])


@every_level
@every_dtype
def test_group_norm_is_deterministic(kernels, dtype):
    arguments = noise(0, 2, 20, 30, 96, dtype=dtype), None, None, noise(1, 96), noise(2, 96), 32, 1e-5, True
    results = [kernels.group_norm(*arguments, threads=threads) for threads in (1, 2, 3)]
    assert all((result == results[0]).all() for result in results)


@every_level
@pytest.mark.parametrize("values", [[-200.0, -100, -88, -1, -0.0, 0, 1e-8, 1, 88, 100, 200]])
def test_silu_over_its_whole_range(kernels, values):
    shift = np.array(values, np.float32)
    x = np.zeros((1, 1, 1, len(values)), np.float32)
    y = kernels.group_norm(x, None, None, np.ones_like(shift), shift, 1, 1e-5, True)[0, 0, 0]
    with np.errstate(over="ignore"):
        expected = shift.astype(np.float64) / (1 + np.exp(-shift.astype(np.float64)))
    assert np.allclose(y, expected, rtol=1e-6, atol=1e-34)


@every_level
@every_dtype
@pytest.mark.parametrize("rows, c", [(1, 1), (3, 7), (64, 320), (5, 1280), (2, 1300)])
def test_layer_norm(kernels, dtype, rows, c):
    x = noise(0, rows, c + 5, dtype=dtype)[:, 2 : 2 + c]
    scale, shift = noise(1, c), noise(2, c)
    wide = floats(x).astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * scale + shift
    check(kernels.layer_norm(x, scale, shift, 1e-5), expected, TOLERANCE["norm"][dtype])


# ----------------------------------------------------------------------------------------------------------------- products


ACTIVATIONS = {
    0: lambda x: x,
    1: lambda x: x * scipy.special.ndtr(x),
    2: lambda x: x * scipy.special.expit(1.702 * x),
}
own_products = pytest.mark.parametrize("kernels", LEVELS[:AVX512], ids=repr)  # above, oneDNN's are used


def panels(weights):
    """(in, out) as the kernel wants them: 16 columns at a time."""
    padded = np.pad(weights, ((0, 0), (0, -weights.shape[1] % 16)))
    return np.ascontiguousarray(padded.reshape(len(weights), -1, 16).transpose(1, 0, 2))


def check_matmul(kernels, rows, depth, columns, activation=0, post=False, threads=2):
    weights = noise(1, depth, columns) / np.float32(np.sqrt(depth))
    product = {"src": noise(0, rows, depth + 3)[:, 3:], "weights": panels(weights), "activation": activation}
    product["dst"] = np.full((rows, columns + 2), 7, np.float32)[:, 1:-1]
    if post:
        product |= {"bias": noise(2, columns), "factor": noise(3, rows, 2 * columns)[:, columns:], "residual": noise(4, rows, columns)}
    assert kernels.matmul([product], threads)
    expected = product["src"].astype(np.float64) @ weights + product.get("bias", 0)
    expected = ACTIVATIONS[activation](expected) * product.get("factor", 1) + product.get("residual", 0)
    check(product["dst"], expected, TOLERANCE["matmul"]["float32"])
    assert (product["dst"].base[:, [0, -1]] == 7).all(), "written beside the columns"


@own_products
@pytest.mark.parametrize("rows, depth, columns", [(1, 1, 1), (1, 700, 130), (5, 3, 16), (6, 320, 17), (97, 321, 129), (200, 641, 300)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("post", [False, True])
def test_matmul(kernels, rows, depth, columns, activation, post):
    check_matmul(kernels, rows, depth, columns, activation, post)


@own_products
def test_matmul_onto_its_own_residual(kernels):
    x, weights, dst = noise(0, 100, 330), noise(1, 330, 140), noise(2, 100, 140)
    expected = x.astype(np.float64) @ weights + dst
    kernels.matmul([{"src": x, "weights": panels(weights), "dst": dst, "residual": dst}])
    check(dst, expected, TOLERANCE["matmul"]["float32"])


@own_products
def test_matmul_sums_in_one_order(kernels):
    """The same bytes for any number of threads, in any number of products and rows."""
    x, weights = noise(0, 3, 205, 650), noise(1, 3, 650, 150)
    whole = np.empty((3, 205, 150), np.float32)
    kernels.matmul([{"src": x[i], "weights": panels(weights[i]), "dst": whole[i]} for i in range(3)], 1)
    for threads in (1, 2, 5):
        for first in (0, 1, 95, 203):
            part = np.empty((205 - first, 150), np.float32)
            kernels.matmul([{"src": x[1, first:], "weights": panels(weights[1]), "dst": part}], threads)
            assert (part == whole[1, first:]).all()


@own_products
def test_gelu_over_its_whole_range(kernels):
    x = np.array([[-200, -10, -3, -1, -1e-6, -0.0, 0, 1e-6, 1, 3, 10, 200]], np.float32)
    weights = panels(np.eye(x.size, dtype=np.float32))
    for activation, expected in ACTIVATIONS.items():
        dst = np.empty_like(x)
        kernels.matmul([{"src": x, "weights": weights, "dst": dst, "activation": activation}])
        assert np.allclose(dst, expected(x.astype(np.float64)), rtol=1e-6, atol=5e-7)


# --------------------------------------------------------------------------------------------------------------- pointwise


@every_level
@pytest.mark.parametrize("count", [1, 511, 512, 9000, 20001])
@pytest.mark.parametrize("dtypes", [(d, x, y) for d in NUMPY for x in NUMPY for y in (*NUMPY, None)], ids=str)
def test_combine(kernels, count, dtypes):
    d, x_dtype, y_dtype = dtypes
    x = noise(0, count, dtype=x_dtype)
    y = None if y_dtype is None else noise(1, count, dtype=y_dtype)
    expected = 0.75 * floats(x).astype(np.float64) + (0 if y is None else 0.3 * floats(y).astype(np.float64))
    check(kernels.combine(np.empty(count, NUMPY[d]), 0.75, x, 0.3, y), expected, TOLERANCE["pointwise"][d])
    for same in (x, y):
        if same is not None and same.dtype == NUMPY[d]:
            before = same.copy()
            check(kernels.combine(same, 0.75, x, 0.3, y), expected, TOLERANCE["pointwise"][d])
            same[:] = before


def winograd_taps(weights, output):
    """(3, 3, in, out) -> (elements, in, out): the kernels as polynomials at 0, s, -s, 1/s, -1/s and infinity, s = sqrt(2);
    for output tiles of 2x2 at 0, 1, -1 and infinity."""
    if output == 4:
        s = 2**0.5
        points = np.array([[1, 0, 0], [1, s, 2], [1, -s, 2], [1, 1 / s, 0.5], [1, -1 / s, 0.5], [0, 0, 1]])
        g = points / np.array([1, 6, 6, -1.5, -1.5, 1])[:, None]
    else:
        g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    return np.einsum("ay,bx,yxio->abio", g, g, weights).reshape(-1, *weights.shape[2:])


def convolved(x, weights):
    """3x3 convolution with zeros around, in float64."""
    padded = np.pad(floats(x).astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    return sum(padded[:, i : i + h, j : j + w] @ weights[i, j] for i in range(3) for j in range(3))


@every_level
@every_dtype
@pytest.mark.parametrize("n, h, w", [(1, 8, 8), (2, 5, 7), (3, 1, 2), (1, 4, 13)])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("output", [2, 4])
def test_winograd(kernels, dtype, n, h, w, with_residual, relu, output):
    """The transforms around the products make a convolution, in chunks of tiles as well."""
    x, bias = noise(0, n, h, w, 16, dtype=dtype), noise(1, 32)
    residual = noise(2, n, h, w, 32, dtype=dtype) if with_residual else None
    weights = np.random.default_rng(3).standard_normal((3, 3, 16, 32)) / 12
    expected = convolved(x, weights) + bias + (floats(residual) if with_residual else 0)
    expected = np.maximum(expected, 0) if relu else expected
    taps = winograd_taps(weights, output).astype(np.float32)
    tiles = n * -(-h // output) * -(-w // output)
    dst = np.empty((n, h, w, 32), x.dtype)
    for first in range(0, tiles, 3):
        v = kernels.winograd_input(x, first, min(3, tiles - first), output)
        kernels.winograd_output(dst, floats(v) @ taps, bias, residual, relu, first, output)
    check(dst, expected, TOLERANCE["winograd"][dtype if output == 4 else "bfloat16"])


@every_level
@every_dtype
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 5, 7), (1, 3, 64, 64)])
def test_planes(kernels, dtype, shape):
    planes = noise(0, *shape)
    x = kernels.from_planes(planes, NUMPY[dtype], (0.5, 0, 0))
    check(x, 0.5 * planes.transpose(0, 2, 3, 1), TOLERANCE["pointwise"][dtype])
    assert (kernels.to_planes(x, (2, 0, 0)) == 2 * floats(x).transpose(0, 3, 1, 2)).all()
    inner = noise(1, 2, 5, 7, 12, dtype=dtype)[..., 3:7]
    assert (kernels.to_planes(inner, (1, 0, 0)) == floats(inner).transpose(0, 3, 1, 2)).all()


@every_level
def test_convert_every_half(kernels):
    """All 65536 values of the 16-bit formats, infinities, NaNs and denormals among them, are exact in float32."""
    bits = np.arange(65536, dtype=np.uint16)
    for source, expected in (
        (bits.view(np.float16), bits.view(np.float16).astype(np.float32)),
        (bits, native.from_bfloat16(bits)),
    ):
        result = kernels.convert(source, np.float32)
        assert np.array_equal(result, expected, equal_nan=True)
        assert (np.signbit(result) == np.signbit(expected)).all()


@every_level
def test_convert_to_bfloat16(kernels):
    """To nearest, ties to even; a NaN stays one, an infinity too, and what is too large becomes one."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits[:4] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000
    x = bits.view(np.float32)
    result = kernels.convert(x, np.uint16)
    number = ~np.isnan(x)
    assert (result[number] == to_bfloat16(x[number])).all()
    assert np.isnan(floats(result)[~number]).all()
    assert (kernels.convert(np.arange(65536, dtype=np.uint16), np.uint16)[:0x7F81] == np.arange(0x7F81)).all()
    assert (kernels.convert(x, np.float32).view(np.uint32) == bits).all()


@every_level
@every_dtype
def test_convert_from_float16_to_bfloat16(kernels, dtype):
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    expected = x.astype(np.float32) if dtype == "float32" else to_bfloat16(x.astype(np.float32))
    assert (kernels.convert(x, NUMPY[dtype]) == expected).all()


# ------------------------------------------------------------------------------------------------------------------ levels


def test_level_names():
    names = [native.library(False).shim_isa_name(i).decode() for i in range(len(native.NAMES))]
    assert names == list(native.NAMES)
    assert 0 <= native.best_level() <= AMX


def test_dtypes_are_numbered_as_in_c():
    assert (F32, BF16) == (0, 1)
