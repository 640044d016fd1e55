"""CPU kernels that no operation shows by itself, of every level, against NumPy in float64; ops.py has all the others."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin make small problems many times slower

import native
import numpy as np
import pytest
import scipy.special
from native import AMX, AVX512, AVX512_BF16, BF16, F32, Kernels, floats, to_bfloat16

LEVELS = [Kernels(level) for level in range(native.best_level() + 1)]
if native.best_level() >= AVX512_BF16:
    LEVELS.append(Kernels(AMX, emulate_amx=True))
NUMPY = {"float32": np.float32, "bfloat16": np.uint16}

# The largest error relative to the largest expected value, per dtype of the data. bfloat16 keeps 8 bits: 2^-9 = 2e-3
# for each rounding.
TOLERANCE = {
    "matmul": {"float32": 4e-6},
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
        product |= {
            "bias": noise(2, columns),
            "factor": noise(3, rows, 2 * columns)[:, columns:],
            "residual": noise(4, rows, columns),
        }
    assert kernels.matmul([product], threads)
    expected = product["src"].astype(np.float64) @ weights + product.get("bias", 0)
    expected = ACTIVATIONS[activation](expected) * product.get("factor", 1) + product.get("residual", 0)
    check(product["dst"], expected, TOLERANCE["matmul"]["float32"])
    assert (product["dst"].base[:, [0, -1]] == 7).all(), "written beside the columns"


@own_products
@pytest.mark.parametrize(
    "rows, depth, columns", [(1, 1, 1), (1, 700, 130), (5, 3, 16), (6, 320, 17), (97, 321, 129), (200, 641, 300)]
)
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
