"""The CUDA kernels' own sources, emulated on the CPU: the table of ops.py as sm_75 computes it, what the table does not have,
every order of warps, every barrier. And compiled for every GPU by NVRTC."""

import multiprocessing
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ops
import pytest
from native import building
from native.cuda import nvrtc
from native.cuda.direct import KERNELS, Device

FLOAT, BFLOAT, HALF, TURING = DEVICES = (
    Device("float32"), Device("bfloat16"), Device("float16"), Device("float16", architecture=75),
)  # fmt: skip
every_device = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.label)
pytestmark = pytest.mark.long

# What needs own kernels alone.
CASES = [name for name in ops.CASES if not re.match("conv|linear|product|activation", name)]


@pytest.mark.parametrize("case", CASES)
def test_op_on_sm_75(case):
    ops.CASES[case](TURING)


# --------------------------------------------------------------------------------------------------------------- attention


def keys(device, seed, tokens, channels, **options):
    return ops.Source(device.noise(seed, 1, tokens, channels), device.noise(seed + 1, 1, tokens, channels), **options)


def attend(device, q, sources, heads, scale):
    dst = device.empty(*q.shape)
    ops.attention(device, dst, q, sources, heads, scale)
    return dst


def check_attention(device, q, sources, heads, scale):
    expected = ops.attended(q, sources, heads, scale)
    ops.check(attend(device, q, sources, heads, scale), expected, device.tolerance("attention"))


@pytest.mark.parametrize("size", [1, 16, 32, 48, 64, 72, 80, 96, 112, 128, 136, 160, 161, 168, 400])
def test_attention_of_every_padded_head(size):
    check_attention(HALF, HALF.noise(0, 1, 50, 2 * size), [keys(HALF, 1, 77, 2 * size)], 2, size**-0.5)


@every_device
@pytest.mark.parametrize("tokens", [63, 64, 65])
def test_attention_in_blocks_of_128_queries(device, tokens):
    check_attention(device, device.noise(0, 1, 1100, 40), [keys(device, 1, tokens, 40)], 1, 40**-0.5)


@every_device
@pytest.mark.parametrize("size", [40, 512])
def test_attention_does_not_hide_what_is_not_a_number(device, size):
    q = device.noise(0, 1, 5, size)
    q[0, 2, 7] = 0x7FC0 if device.dtype == "bfloat16" else np.nan
    result = ops.floats(attend(device, q, [keys(device, 1, 70, size)], 1, 0.1))[0]
    assert np.isnan(result[2]).all() and np.isfinite(np.delete(result, 2, axis=0)).all()


def test_attention_of_many_sources():
    q, sources = HALF.noise(0, 1, 10, 16), [keys(HALF, i, 1 + i % 5, 16, bias=0.02 * i) for i in range(64)]
    check_attention(HALF, q, sources, 1, 0.25)
    with pytest.raises(ops.Failure, match="65 sources"):
        attend(HALF, q, [*sources, sources[0]], 1, 0.25)


# ------------------------------------------------------------------------------------------------------------------- norms


@every_device
@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 3, (301,), 7),  # one by one, in two passes over the channels
        (1, 3, 2, (2600,), 2),  # the same in vectors, with a group in both passes
        (1, 2, 2, (2056,), 1),
        (1, 1, 40, (1024,), 1024),
        (2, 1, 3, (20, 12), 4),  # vectors in neither of the inputs
    ],
)
def test_group_norm_of_odd_layouts(device, shape):
    n, h, w, channels, groups = shape
    parts, c = [device.noise(i, n, h, w, size) for i, size in enumerate(channels)], sum(channels)
    arguments = parts[0], (parts[1:] or [None])[0], None, ops.noise(3, c), ops.noise(4, c), groups, 1e-5, False
    dst = device.empty(n, h, w, c)
    ops.group_norm(device, dst, *arguments)
    ops.check(dst, ops.group_normed(*arguments), device.tolerance("norm"))


# ----------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", [1.0, np.inf, -np.inf, np.nan, 3e38])
def test_mix_reports_what_is_not_finite(value):
    z, p = ops.noise(0, 1000), ops.noise(1, 1000)
    p[700] = value
    call = ops.Call(HALF)
    blocks = ops.pointers(call.block(z, output=True), call.block(p))
    call.run("mix", floats=blocks, count=1000, factors=(ops.c_double * 4)(1, 2, 1, 0))
    overflow = bool(HALF.library.direct_overflow(HALF.handle()))
    assert overflow == (value != 1) == (not np.isfinite(z[700]))
    assert np.isfinite(np.delete(z, 700)).all()


def converted(x, dtype):
    dst = ops.empty(*x.shape, dtype=dtype)
    ops.combine(HALF, dst, 1, x)
    return dst


def test_convert_every_half():
    """All 65536 values of the 16-bit formats, infinities, NaNs and denormals among them, are exact in float32."""
    bits = np.arange(65536, dtype=np.uint16)
    for source in (bits.view(np.float16), bits):
        result, expected = converted(source, "float32"), ops.floats(source)
        assert np.array_equal(result, expected, equal_nan=True)
        assert (np.signbit(result) == np.signbit(expected)).all()


def test_convert_to_16_bits():
    """To nearest, ties to even; a NaN stays one, an infinity too, and what is too large becomes one."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits[:4] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000
    bits[4:50_000] = bits[4:50_000] & 0x8FFFFFFF | 0x30000000  # in the range of float16
    x = bits.view(np.float32)
    number, result = ~np.isnan(x), converted(x, "bfloat16")
    assert (result[number] == ops.to_bfloat16(x[number])).all() and np.isnan(ops.floats(result)[~number]).all()
    with np.errstate(over="ignore"):
        assert np.array_equal(converted(x, "float16"), x.astype(np.float16), equal_nan=True)


# ------------------------------------------------------------------------------------------------------------- determinism


def planes_of(device, op, planes, pixels):
    call = ops.Call(device)
    curve = ops.ctypes.pointer(ops.Curve(2, -1, 0))
    tensor = {"dst" if op == "from_planes" else "x": call.tensor(pixels, output=op == "from_planes")}
    call.run(op, planes=call.planes(planes, output=op == "to_planes"), curve=curve, **tensor)


def some_results(device):
    """What every kernel with a barrier makes of something large enough for several warps, blocks and tiles."""
    biases = ops.noise(5, 150)
    for size in (40, 192):
        q, sources = (
            device.noise(0, 1, 100, size),
            [keys(device, 1, 150, size, key_bias=biases), keys(device, 3, 70, size)],
        )
        yield attend(device, q, sources, 1, 0.1)
    for h, c, groups, silu in ((40, 96, 32, True), (4, 2600, 2, False)):
        dst = device.empty(1, h, h, c)
        x, scale, shift = device.noise(0, 1, h, h, c), ops.noise(1, c), ops.noise(2, c)
        ops.group_norm(device, dst, x, None, None, scale, shift, groups, 1e-5, silu)
        yield dst
    pixels, planes = device.empty(2, 5, 9, 40), ops.empty(2, 40, 5, 9)
    planes_of(device, "from_planes", ops.noise(0, 2, 40, 5, 9), pixels)
    planes_of(device, "to_planes", planes, pixels)
    yield pixels
    yield planes


def with_seed(device, seed):
    if not device.paths:
        list(some_results(device))
    device.seed(seed)
    return [x.tobytes() for x in some_results(device)]


@every_device
def test_the_same_bytes_in_every_order(device):
    """Whichever warps run first."""
    list(some_results(device))
    first = with_seed(device, 1)
    assert all(with_seed(device, seed) == first for seed in (2, 3, 4))


BARRIER = re.compile(r"__syncthreads\(\);|copies_wait\(\);")
SURVIVED = 42


def barriers():
    for path in sorted(KERNELS.glob("*.cu")):
        for match in BARRIER.finditer(path.read_text()):
            yield path.stem, match.start(), path.read_text()[: match.start()].count("\n") + 1


def run_mutant(file, place, dtype):
    """Leaves with SURVIVED where a kernel without the barrier at that place (none at its end) makes the same of everything,
    in several orders."""
    text = (KERNELS / f"{file}.cu").read_text()
    changed = text[:place] + BARRIER.sub("", text[place:], count=1)
    expected, mutant = with_seed(Device(dtype), 1), Device(dtype, mutant=(file, changed))
    if all(with_seed(mutant, seed) == expected for seed in range(1, 6)):
        sys.exit(SURVIVED)


@pytest.fixture
def try_mutant(monkeypatch):
    """Tries one in a process of its own, with what was built for this one; its exit code."""
    monkeypatch.setenv("STYLEID_NATIVE", str(building.FOLDER))
    return start_mutant


def start_mutant(*arguments):
    process = multiprocessing.get_context("spawn").Process(target=run_mutant, args=arguments)
    process.start()
    process.join(600)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("file, place, line", list(barriers()), ids=str)
def test_every_barrier_matters(try_mutant, file, place, line):
    """Without it a result changes, or the kernel finds itself out of step and stops its process."""
    assert try_mutant(file, place, "float32" if file == "attention_float" else "float16") in (0, -signal.SIGABRT)


@pytest.mark.slow
def test_kernels_with_all_their_barriers_survive(try_mutant):
    assert try_mutant("norm", len((KERNELS / "norm.cu").read_text()), "float16") == SURVIVED


# --------------------------------------------------------------------------------------------------------------- compiling


PADDED_HEADS = (16, 32, 48, 64, 80, 96, 128, 160)


def variants(architecture):
    """Every file with every set of options that the host functions compile it with for an architecture."""
    halves = ("bfloat16", "float16") if architecture >= 80 else ("float16",)
    yield from ((file, "float16", ()) for file in ("pointwise", "pack"))  # the same for every dtype
    yield from ((file, dtype, ()) for file in ("norm", "conv") for dtype in ops.DTYPES)
    yield "attention_float", "float32", ()
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
    some = [v for v in variants(found[1]) if v[1] == "float16" and v[2] in ((), ("-DSID_DP=48",))]
    check_compiled(*found, some)


@pytest.mark.slow
@pytest.mark.parametrize("found", FOUND, ids=str)
def test_all_kernels_compile(found):
    check_compiled(*found, variants(found[1]))
