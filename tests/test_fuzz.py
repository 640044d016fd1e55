"""Random arguments for the C module: whatever comes in, a Python exception or a result comes out.

`make fuzz` runs this with sanitizers and STYLEID_FUZZ examples of each test.
"""

import os

import numpy as np
import pytest
import tiny

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from styleid import _core  # noqa: E402

thoroughly = settings(
    max_examples=int(os.environ.get("STYLEID_FUZZ", "100")), deadline=None, suppress_health_check=list(HealthCheck)
)
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
REFUSED = (TypeError, ValueError, OverflowError, MemoryError)
STEPS = 2
MODEL = tiny.model(text=True)
INVERSION = _core.invert(MODEL, tiny.latents(), tiny.CONTEXT, STEPS, "diffusers", (2, 3), ("both",), "float32")[0]
STRENGTHS = np.ones((STEPS, 4), np.float32)

DTYPES = st.sampled_from(["float32"] * 6 + ["float64", "uint8", "uint16", "int32", ">f4", "bool", "complex64", "O"])
numbers = st.one_of(
    st.integers(-2, 1002),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(),
    st.floats(0, 1, width=32),
)
junk = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5), st.binary(max_size=5), st.just(object()))


@st.composite
def arrays(draw, *sizes):
    """Usually of the wanted sizes and type; sometimes strided, special in a value, or wrong in a size or in the type."""
    sizes = [draw(st.sampled_from([size] * 8 + [0, 1, size + 1, 2 * size])) for size in sizes]
    if draw(st.integers(0, 9)) == 0:
        sizes = sizes[1:] if draw(st.booleans()) else [1, *sizes]
    array = np.random.default_rng(draw(st.integers(0, 9))).random(sizes).astype(draw(DTYPES))
    if array.size and array.dtype.kind in "fc" and draw(st.integers(0, 4)) == 0:
        special = draw(st.sampled_from([0, 1, 200, 3e38, np.nan, np.inf, -np.inf]))
        array.flat[draw(st.integers(0, array.size - 1))] = special
    if array.ndim and draw(st.integers(0, 4)) == 0:
        array = array[..., ::-1] if draw(st.booleans()) else array.T
    return array


def mostly(strategy, other=junk):
    """The strategy's values, and once in a while something else."""
    return st.integers(0, 11).flatmap(lambda i: other if i == 0 else strategy)


latents = mostly(arrays(1, 4, 4, 4))
contexts = mostly(arrays(1, tiny.TOKENS, 24))
strengths = mostly(st.one_of(st.just(STRENGTHS), arrays(STEPS, 4)))
steps = mostly(st.just(STEPS), st.one_of(junk, st.integers(-1, 5)))
schedules = mostly(st.sampled_from(["paper", "diffusers", "corrected"]))
layers = mostly(st.one_of(st.just((2, 3)), st.lists(st.integers(-1, 5), max_size=4)), st.one_of(junk, st.lists(junk)))
keeps = mostly(st.lists(st.sampled_from(["none", "query", "keys", "both"]), min_size=1, max_size=2))
pictures = mostly(st.one_of(arrays(8, 8, 3), arrays(8, 8, 3).map(lambda a: a.real.astype(np.uint8))))
weights = mostly(st.lists(mostly(st.floats(0.1, 10)), min_size=1, max_size=2))
features = mostly(st.dictionaries(st.integers(1, 4), mostly(arrays(STEPS, 16, 16)), max_size=4))
inversions = mostly(
    st.one_of(
        st.just(INVERSION),
        st.fixed_dictionaries(
            {"latents": mostly(arrays(STEPS + 1, 4, 4, 4))},
            optional={"query": features, "key": features, "value": features},
        ),
        st.tuples(st.sampled_from(["query", "key", "value", "latents"]), features).map(
            lambda change: INVERSION | {change[0]: change[1]}
        ),
    )
)
styles = mostly(st.lists(inversions, min_size=1, max_size=2))


def survive(function, *arguments):
    with np.errstate(all="ignore"):
        try:
            function(*arguments)
        except REFUSED as error:
            assert str(error)


@thoroughly
@given(latents, mostly(st.integers(0, 999)), contexts)
def test_predict_noise(z, timestep, context):
    survive(MODEL.predict_noise, z, timestep, context)


@thoroughly
@given(st.one_of(latents, mostly(arrays(1, 8, 8, 3))), st.booleans())
def test_autoencoder(array, truncate):
    survive(MODEL.encode, array)
    survive(MODEL.decode, array, truncate)
    survive(MODEL.decode_float, array)


@thoroughly
@given(mostly(arrays(2, 7)), st.booleans())
def test_encode_tokens(tokens, convert):
    if convert and isinstance(tokens, np.ndarray) and tokens.dtype == np.float32:
        with np.errstate(all="ignore"):
            tokens = (tokens * 60 - 5).astype(np.int32)
    survive(MODEL.encode_tokens, tokens)


@thoroughly
@given(junk, junk, junk)
def test_numbers(a, b, c):
    survive(MODEL.scratch, a, b, c)
    survive(MODEL.vae_scratch, a, b)
    survive(_core.schedule, MODEL, a, b)
    survive(_core.schedule, MODEL, "paper", b)


@thoroughly
@given(st.tuples(latents, contexts, steps, schedules, layers, keeps, mostly(st.sampled_from(["float32", "bfloat16"]))))
def test_invert(arguments):
    survive(_core.invert, MODEL, *arguments)


@thoroughly
@given(st.tuples(latents, contexts, steps, schedules, layers, inversions, styles, weights, strengths, strengths))
def test_sample(arguments):
    survive(_core.sample, MODEL, *arguments)


@thoroughly
@given(latents, latents, mostly(st.floats(0, 1)))
def test_adain(content, style, epsilon):
    survive(_core.adain, content, style, epsilon)


@thoroughly
@given(st.tuples(inversions, styles, contexts, steps, schedules, layers, weights, strengths, strengths, st.booleans()))
def test_inject_styles(arguments):
    survive(_core.inject_styles, MODEL, *arguments)


@thoroughly
@given(st.tuples(pictures, pictures, contexts, steps, schedules, layers, strengths, strengths, st.booleans()))
def test_transfer(arguments):
    survive(_core.transfer, MODEL, *arguments)


CONFIG = tiny.config(text=True)
WEIGHTS = tiny.weights(CONFIG)


@thoroughly
@given(st.data())
def test_model(data):
    """A good configuration and good weights, of which one entry is replaced or removed."""
    configuration = {key: dict(part) if isinstance(part, dict) else part for key, part in CONFIG.items()}
    weights = dict(WEIGHTS)
    kind = data.draw(st.sampled_from(["number", "part", "weight", "entry"]))
    if kind == "number":
        part = configuration[data.draw(st.sampled_from(["unet", "vae", "text"]))]
        values = st.one_of(junk, st.integers(0, 40), st.lists(st.integers(-1, 40), max_size=9))
        part[data.draw(st.sampled_from(sorted(part)))] = data.draw(values)
    elif kind == "part":
        configuration[data.draw(st.sampled_from(sorted(configuration)))] = data.draw(junk)
    elif kind == "weight":
        weights[data.draw(st.sampled_from(sorted(weights)))] = data.draw(junk)
    else:
        name = data.draw(st.sampled_from(sorted(weights)))
        values = st.one_of(junk, st.lists(numbers, max_size=5), st.binary(max_size=64), arrays(4, 4))
        weights[name] = weights[name] | {data.draw(st.sampled_from(["dtype", "shape", "data"])): data.draw(values)}
    survive(_core.Model, configuration, weights)
