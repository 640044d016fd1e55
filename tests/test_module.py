"""What the C module refuses as arguments, and how it says so."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import (
    LAYERS,
    STEPS,
    STRENGTHS,
    filled,
    invert,
    random_image,
    sample_arguments,
    transfer_arguments,
)

from styleid import _core

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def text_model():
    return tiny.model(text=True)


@pytest.fixture(scope="module")
def inversion(model):
    return invert(model)[0]


def test_signatures_are_those_of_the_stub():
    def check(definitions, owner):
        for definition in definitions:
            if isinstance(definition, ast.FunctionDef) and not definition.name.startswith("__"):
                if not any(getattr(decorator, "id", "") == "property" for decorator in definition.decorator_list):
                    names = [argument.arg for argument in [*definition.args.args, *definition.args.kwonlyargs]]
                    assert list(inspect.signature(getattr(owner, definition.name)).parameters) == names

    stub = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text())
    model = next(node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "Model")
    check(stub.body, _core)
    check(model.body, _core.Model)
    assert list(inspect.signature(_core.Model).parameters) == ["config", "weights", "dtype", "threads", "tiling"]


# ------------------------------------------------------------------------------------------------------------ arrays


def huge(*shape):
    """An array that takes no memory and would take terabytes as a dense one."""
    return np.broadcast_to(np.float32(0), shape)


BAD_LATENTS = [
    ([[1.0]], TypeError, r"expected float32 of shape \((N|1), 4, h, w\).*, got list"),
    (None, TypeError, "got NoneType"),
    (tiny.latents().astype(np.float64), TypeError, r"got float64 of shape \(1, 4, 4, 4\)"),
    (tiny.latents().astype(object), TypeError, "got object"),
    (tiny.latents()[0], ValueError, r"got float32 of shape \(4, 4, 4\)"),
    (tiny.latents()[:, :3], ValueError, r"got float32 of shape \(1, 3, 4, 4\)"),
    (tiny.latents(height=3), ValueError, "h and w multiples of 2, got"),
    (tiny.latents()[:0], ValueError, r"got float32 of shape \(0, 4, 4, 4\)"),
    (tiny.latents()[..., :0], ValueError, r"got float32 of shape \(1, 4, 4, 0\)"),
    (huge(1, 4, 2**20, 2**20), ValueError, "at most 67108864 numbers"),
    (huge(1, 4, 2, 2**57), ValueError, "at most 67108864 numbers"),
    (filled(tiny.latents(), NAN), ValueError, "expected finite numbers, got nan"),
    (filled(tiny.latents(), -INF), ValueError, "expected finite numbers, got -inf"),
]
BAD_CONTEXTS = [
    ("", TypeError, "got str"),
    (tiny.CONTEXT.astype(np.float16), TypeError, "got float16"),
    (tiny.CONTEXT[0], ValueError, r"L, 24\).*got float32 of shape \(5, 24\)"),
    (tiny.CONTEXT[:, :, 1:], ValueError, r"got float32 of shape \(1, 5, 23\)"),
    (tiny.CONTEXT[:, :0], ValueError, r"got float32 of shape \(1, 0, 24\)"),
    (huge(1, 2**40, 24), ValueError, "at most"),
    (filled(tiny.CONTEXT, INF), ValueError, "expected finite numbers, got inf"),
]


@pytest.mark.parametrize("bad, error, message", BAD_LATENTS)
def test_bad_latents(model, inversion, bad, error, message):
    with pytest.raises(error, match="latents: .*" + message):
        model.predict_noise(bad, 1, tiny.CONTEXT)
    with pytest.raises(error, match="latents: .*" + message):
        invert(model, latents=bad)
    with pytest.raises(error, match="latent: .*" + message):
        _core.sample(model, **(sample_arguments(inversion) | {"latent": bad}))


@pytest.mark.parametrize("bad, error, message", BAD_LATENTS)
def test_bad_latents_to_decode(model, bad, error, message):
    if "multiples" in message:
        pytest.skip("the decoder takes latents of any size")
    for decode in (model.decode, model.decode_float):
        with pytest.raises(error, match="latents: .*" + message):
            decode(bad)


@pytest.mark.parametrize("bad, error, message", BAD_CONTEXTS)
def test_bad_context(model, inversion, bad, error, message):
    calls = [
        lambda: model.predict_noise(tiny.latents(), 1, bad),
        lambda: invert(model, context=bad),
        lambda: _core.sample(model, **(sample_arguments(inversion) | {"context": bad})),
        lambda: _core.inject_styles(model, **(sample_arguments(inversion) | {"context": bad})),
        lambda: _core.transfer(model, **(transfer_arguments() | {"context": bad})),
    ]
    for call in calls:
        with pytest.raises(error, match="context: .*" + message):
            call()


def test_context_of_another_batch(model):
    with pytest.raises(ValueError, match="context: expected a batch of 1 or 3, got 2"):
        model.predict_noise(tiny.latents(3), 1, np.repeat(tiny.CONTEXT, 2, 0))
    with pytest.raises(ValueError, match=r"context: expected float32 of shape \(1, L, 24\)"):
        invert(model, latents=tiny.latents(2), context=np.repeat(tiny.CONTEXT, 2, 0), keep=("none", "none"))


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (random_image().tolist(), TypeError, "expected uint8 or float32|expected float32 or uint8"),
        (random_image().astype(np.float64), TypeError, "got float64"),
        (random_image().astype(np.int16), TypeError, "got int16"),
        (random_image()[:7], ValueError, r"got uint8 of shape \(.*7, 8, 3\)"),
        (random_image()[..., :2], ValueError, r"got uint8 of shape \(.*8, 8, 2\)"),
        (random_image()[:0], ValueError, r"got uint8 of shape \(.*0, 8, 3\)"),
        (random_image().astype(np.float32), ValueError, "expected numbers from 0 to 1, got"),
        (filled(np.zeros((8, 8, 3), np.float32), NAN), ValueError, "expected numbers from 0 to 1, got nan"),
        (huge(2**24, 2**24, 3), ValueError, "at most"),
    ],
)
def test_bad_images(model, bad, error, message):
    batch = bad[None] if isinstance(bad, np.ndarray) else [bad]
    with pytest.raises(error, match=f"images: .*({message})"):
        model.encode(batch)
    for name in ("content", "style"):
        with pytest.raises(error, match=f"{name}: .*({message})"):
            _core.transfer(model, **(transfer_arguments() | {name: bad}))


def test_image_whose_latent_does_not_fit(model):
    assert model.encode(random_image(6, 8)[None]).shape == (1, 4, 3, 4)
    with pytest.raises(ValueError, match=r"style: .* H and W multiples of 4, got uint8 of shape \(6, 8, 3\)"):
        _core.transfer(model, **(transfer_arguments() | {"style": random_image(6, 8)}))


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (np.zeros((1, 3)), TypeError, "got float64"),
        (np.zeros((1, 3), np.int64), TypeError, "got int64"),
        (np.zeros(3, np.int32), ValueError, r"\(N, L\), "),
        (np.zeros((1, 0), np.int32), ValueError, r"got int32 of shape \(1, 0\)"),
        (np.zeros((1, 8), np.int32), ValueError, "expected at most 7 in a row, got 8"),
        (np.full((2, 3), 50, np.int32), ValueError, "expected numbers from 0 to 49, got 50"),
        (np.full((1, 1), -1, np.int32), ValueError, "expected numbers from 0 to 49, got -1"),
    ],
)
def test_bad_tokens(text_model, bad, error, message):
    with pytest.raises(error, match="tokens: .*" + message):
        text_model.encode_tokens(bad)


def test_tokens_without_a_text_encoder(model):
    with pytest.raises(ValueError, match="no text encoder"):
        model.encode_tokens(np.zeros((1, 3), np.int32))


@pytest.mark.parametrize("name", ["gamma", "temperature"])
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (1.0, TypeError, "got float"),
        (STRENGTHS.astype(np.float64), TypeError, "got float64"),
        (STRENGTHS[:2], ValueError, r"expected float32 of shape \(3, 4\), got float32 of shape \(2, 4\)"),
        (STRENGTHS[:, :3], ValueError, r"got float32 of shape \(3, 3\)"),
        (filled(STRENGTHS, NAN), ValueError, "finite numbers, got nan"),
        (filled(STRENGTHS, INF), ValueError, "finite numbers, got inf"),
    ],
)
def test_bad_strengths(model, inversion, name, bad, error, message):
    for function, arguments in (
        (_core.sample, sample_arguments(inversion)),
        (_core.inject_styles, sample_arguments(inversion)),
        (_core.transfer, transfer_arguments()),
    ):
        with pytest.raises(error, match=f"{name}: .*{message}"):
            function(model, **(arguments | {name: bad}))


@pytest.mark.parametrize("bad", [0, -1])
def test_temperature_is_positive(model, inversion, bad):
    with pytest.raises(ValueError, match="temperature: expected positive finite numbers"):
        _core.sample(model, **(sample_arguments(inversion) | {"temperature": filled(STRENGTHS, bad)}))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"before": tiny.latents()[0]}, ValueError, "before: expected float32 of shape"),
        ({"after": tiny.latents(2)}, ValueError, "after: expected float32 of shape"),
        ({"after": None}, TypeError, "after: expected float32 of shape"),
        ({"level": "0"}, TypeError, "level: expected a number, got str"),
        ({"level": 0}, ValueError, "level, next_level: expected 0 < level < next_level <= 1, got 0 and 0.5"),
        ({"level": 0.5}, ValueError, "got 0.5 and 0.5"),
        ({"next_level": 1.5}, ValueError, "got 0.1 and 1.5"),
        ({"next_level": NAN}, ValueError, "next_level: expected a finite number, got nan"),
    ],
)
def test_bad_predicted(change, error, message):
    arguments = {"before": tiny.latents(), "after": tiny.latents(), "level": 0.1, "next_level": 0.5}
    with pytest.raises(error, match=message):
        _core.predicted(**(arguments | change))


@pytest.mark.parametrize(
    "content, style, epsilon, error, message",
    [
        (tiny.latents()[0], tiny.latents(), 0, ValueError, r"content: .*got float32 of shape \(4, 4, 4\)"),
        (tiny.latents(2), tiny.latents(), 0, ValueError, "content: "),
        (tiny.latents(), tiny.latents()[:, :2], 0, ValueError, r"style: expected float32 of shape \(1, 4, h, w\)"),
        (tiny.latents(height=1, width=1), tiny.latents(), 0, ValueError, "content: expected at least two pixels"),
        (tiny.latents(), filled(tiny.latents(), NAN), 0, ValueError, "style: expected finite numbers, got nan"),
        (tiny.latents(), tiny.latents(), "0", TypeError, "epsilon: expected a number, got str"),
        (tiny.latents(), tiny.latents(), NAN, ValueError, "epsilon: expected a finite number, got nan"),
    ],
)
def test_bad_adain(content, style, epsilon, error, message):
    with pytest.raises(error, match=message):
        _core.adain(content, style, epsilon)


STRIDED = {
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2),
    "sliced": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "foreign byte order": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "misaligned": lambda a: np.frombuffer(b"-" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", STRIDED)
def test_any_memory_layout(model, inversion, layout):
    restride = STRIDED[layout]
    z, pixels = tiny.latents(), random_image()
    np.testing.assert_array_equal(
        model.predict_noise(restride(z), 1, restride(tiny.CONTEXT)), model.predict_noise(z, 1, tiny.CONTEXT)
    )
    np.testing.assert_array_equal(model.encode(restride(pixels)[None]), model.encode(pixels[None]))
    arguments = sample_arguments(inversion)
    strided = {
        name: {layer: restride(array) for layer, array in value.items()} if isinstance(value, dict) else restride(value)
        for name, value in inversion.items()
    }
    np.testing.assert_array_equal(
        _core.sample(model, **(arguments | {"content": strided, "styles": [strided]})),
        _core.sample(model, **arguments),
    )


def test_arguments_are_left_alone(model, inversion):
    z, before = tiny.latents(), inversion["latents"].copy()
    invert(model, latents=z, hook=lambda step, steps, latents: latents.fill(0))
    _core.sample(model, **sample_arguments(inversion), hook=lambda step, steps, latents: latents.fill(0))
    np.testing.assert_array_equal(z, tiny.latents())
    np.testing.assert_array_equal(inversion["latents"], before)


# ----------------------------------------------------------------------------------------------------- other arguments


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"steps": 1}, ValueError, "steps: expected an integer from 2 to 1000, got 1"),
        ({"steps": 1001}, ValueError, "steps: .*got 1001"),
        ({"steps": -3}, ValueError, "steps: .*got -3"),
        ({"steps": 10**30}, ValueError, "steps: .*got 1000000"),
        ({"steps": 3.0}, TypeError, "steps: expected an integer, got float"),
        (
            {"schedule": "euler"},
            ValueError,
            r"schedule: expected one of \['paper', 'diffusers', 'corrected'\], got 'euler'",
        ),
        ({"schedule": 1}, TypeError, "schedule: .*got 1"),
        ({"layers": 2}, TypeError, "layers: expected a sequence of integers, got int"),
        ({"layers": "23"}, TypeError, "layers: expected a sequence of integers, got str"),
        ({"layers": [2.0]}, TypeError, "layers: expected an integer, got float"),
        ({"layers": [0]}, ValueError, "layers: layer 0 of this model has no self-attention"),
        ({"layers": [4]}, ValueError, "layers: expected an integer from 0 to 3, got 4"),
        ({"layers": [-1]}, ValueError, "layers: .*got -1"),
        ({"layers": [3, 3]}, ValueError, "layers: layer 3 is given twice"),
        ({"progress": 1}, TypeError, "progress: expected a callable or None, got int"),
    ],
)
def test_bad_common_arguments(model, inversion, change, error, message):
    for function, arguments in (
        (lambda model, **arguments: invert(model, **arguments), {}),
        (_core.sample, sample_arguments(inversion)),
        (_core.inject_styles, sample_arguments(inversion)),
        (_core.transfer, transfer_arguments()),
    ):
        with pytest.raises(error, match=message):
            function(model, **(arguments | change))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"keep": "both"}, TypeError, "keep: expected a sequence of strings, got str"),
        ({"keep": ("both", "both")}, ValueError, "keep: expected 1, one for each image, got 2"),
        ({"keep": ("all",)}, ValueError, "keep: expected one of .*, got 'all'"),
        ({"feature_dtype": "int8"}, ValueError, "feature_dtype: expected one of .*, got 'int8'"),
        ({"hook": "x"}, TypeError, "hook: expected a callable or None, got str"),
        (
            {"latents": tiny.latents(65), "keep": ("none",) * 65},
            ValueError,
            "latents: expected at most 64 images, got 65",
        ),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_bad_inversion_arguments(model, change, error, message):
    with pytest.raises(error, match=message):
        invert(model, **change)


@pytest.mark.parametrize("timestep", [-1, 1000, 1.5, None])
def test_bad_timestep(model, timestep):
    with pytest.raises((TypeError, ValueError), match="timestep: expected an integer"):
        model.predict_noise(tiny.latents(), timestep, tiny.CONTEXT)


@pytest.mark.parametrize("size", [(0, 4, 4), (1, 3, 4), (1, 4, -4), (1, 2**40, 4), (2**20, 2**20, 2**20), (1, 4, 4.0)])
def test_bad_scratch_sizes(model, size):
    with pytest.raises((TypeError, ValueError), match="batch|height|width"):
        model.scratch(*size)
    with pytest.raises((TypeError, ValueError), match="height|width"):
        model.vae_scratch(*(size[1:] if size[0] == 1 else (0, 8)))


def test_not_a_model():
    with pytest.raises(TypeError, match="model: expected a Model, got dict"):
        invert({})
    with pytest.raises(TypeError, match="model: expected a Model, got NoneType"):
        _core.schedule(None, "paper", 50)


@pytest.mark.parametrize(
    "weights, error, message",
    [
        ([], ValueError, "weights: expected 1, one for each style, got 0"),
        ([1, 1], ValueError, "weights: expected 1, one for each style, got 2"),
        ([0], ValueError, "weights: expected positive numbers, got 0"),
        ([-1.0], ValueError, "weights: expected positive numbers, got -1"),
        ([1e-300], ValueError, "weights: expected positive numbers"),
        ([NAN], ValueError, "weights: expected a finite number, got nan"),
        ([INF], ValueError, "weights: expected a finite number, got inf"),
        (["1"], TypeError, "weights: expected a number, got str"),
        (1.0, TypeError, "weights: expected a sequence of numbers, got float"),
    ],
)
def test_bad_style_weights(model, inversion, weights, error, message):
    for function, arguments in (
        (_core.sample, sample_arguments(inversion)),
        (_core.inject_styles, sample_arguments(inversion)),
    ):
        with pytest.raises(error, match=message):
            function(model, **(arguments | {"weights": weights}))


@pytest.mark.parametrize("count", [0, 65])
def test_number_of_styles(model, inversion, count):
    with pytest.raises(ValueError, match=f"styles: expected 1 to 64, got {count}"):
        _core.inject_styles(
            model, **(sample_arguments(inversion) | {"styles": [inversion] * count, "weights": [1.0] * count})
        )


# --------------------------------------------------------------------------------------------------------- inversions


def changed(inversion, name, layer=None, value=None):
    """A copy with one entry replaced, or without it where value is None."""
    copy = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in inversion.items()}
    target, key = (copy, name) if layer is None else (copy[name], layer)
    if value is None:
        del target[key]
    else:
        target[key] = value
    return copy


BAD_INVERSIONS = [
    (lambda i: None, TypeError, "expected a dict, got NoneType"),
    (lambda i: [i], TypeError, "expected a dict, got list"),
    (lambda i: {}, ValueError, "'latents' is missing"),
    (lambda i: changed(i, "latents", value=[1]), TypeError, r"\['latents'\]: expected float32 of shape \(n, 4, h, w\)"),
    (lambda i: changed(i, "latents", value=i["latents"][0]), ValueError, r"got float32 of shape \(4, 4, 4\)"),
    (lambda i: changed(i, "latents", value=i["latents"][:, :2]), ValueError, r"got float32 of shape \(4, 2, 4, 4\)"),
    (lambda i: changed(i, "latents", value=i["latents"][1:]), ValueError, "an inversion of 2 steps, expected 3"),
    (lambda i: changed(i, "latents", value=filled(i["latents"], NAN)), ValueError, "expected finite numbers, got nan"),
    (lambda i: changed(i, "latents", value=np.zeros((4, 4, 6, 4), np.float32)), ValueError, r"\(3, 24, 16\), got"),
]
BAD_FEATURES = [
    (lambda i, kind: changed(i, kind), ValueError, "'{kind}' is missing"),
    (lambda i, kind: changed(i, kind, value=[1]), TypeError, r"\['{kind}'\]: expected a dict, got list"),
    (lambda i, kind: changed(i, kind, 3), ValueError, r"\['{kind}'\]: 3 is missing"),
    (lambda i, kind: changed(i, kind, 3, [1]), TypeError, r"\['{kind}'\]\[3\]: .*\(3, 16, 16\), got list"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3].astype(np.float64)), TypeError, "got float64"),
    (
        lambda i, kind: changed(i, kind, 3, i[kind][3].astype(np.uint16)),
        ValueError,
        "features of several types in one",
    ),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][:2]), ValueError, r"got float32 of shape \(2, 16, 16\)"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][:, 1:]), ValueError, r"got float32 of shape \(3, 15, 16\)"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][..., 1:]), ValueError, r"got float32 of shape \(3, 16, 15\)"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][0]), ValueError, r"got float32 of shape \(16, 16\)"),
]


def check_inversion_is_refused(model, inversion, role, bad, error, message):
    change = {"content": bad} if role == "content" else {"styles": [inversion, bad], "weights": [1.0, 1.0]}
    name = "content" if role == "content" else r"styles\[1\]"
    for function, arguments in (
        (_core.sample, sample_arguments(inversion)),
        (_core.inject_styles, sample_arguments(inversion)),
    ):
        with pytest.raises(error, match=f"{name}.*{message}"):
            function(model, **(arguments | change))


@pytest.mark.parametrize("role", ["content", "style"])
@pytest.mark.parametrize("make, error, message", BAD_INVERSIONS)
def test_bad_inversion(model, inversion, role, make, error, message):
    check_inversion_is_refused(model, inversion, role, make(inversion), error, message)


@pytest.mark.parametrize("kind", ["query", "key", "value"])
@pytest.mark.parametrize("make, error, message", BAD_FEATURES)
def test_bad_features(model, inversion, kind, make, error, message):
    role = "content" if kind == "query" else "style"
    check_inversion_is_refused(model, inversion, role, make(inversion, kind), error, message.replace("{kind}", kind))


def test_content_of_another_size_than_the_latent(model, inversion):
    with pytest.raises(ValueError, match="content: its latents are 4 x 4, but latent is 4 x 8"):
        _core.sample(model, **(sample_arguments(inversion) | {"latent": tiny.latents(width=8)}))


def test_styles_of_other_sizes(model, inversion):
    other = invert(model, latents=tiny.latents(height=6, width=8), keep=("keys",), feature_dtype="bfloat16")[0]
    arguments = sample_arguments(inversion) | {"styles": [inversion, other], "weights": [0.5, 2]}
    assert _core.inject_styles(model, **arguments).shape == (8, 8, 3)


def test_kept_features(model):
    kept = invert(model, latents=tiny.latents(4), keep=("none", "query", "keys", "both"), feature_dtype="bfloat16")
    names = [[name for name in ("query", "key", "value") if data[name]] for data in kept]
    assert names == [[], ["query"], ["key", "value"], ["query", "key", "value"]]
    for data in kept:
        assert data["latents"].shape == (STEPS + 1, 4, 4, 4) and data["latents"].dtype == np.float32
        for name in ("query", "key", "value"):
            assert all(a.shape == (STEPS, 16, 16) and a.dtype == np.uint16 for a in data[name].values())
    assert sorted(kept[3]["key"]) == list(LAYERS)


def test_without_layers_only_latents_are_needed(model, inversion):
    bare = {"latents": inversion["latents"]}
    arguments = sample_arguments(inversion) | {"layers": (), "content": bare, "styles": [bare]}
    assert _core.inject_styles(model, **arguments).shape == (8, 8, 3)
    arguments = sample_arguments(inversion) | {"layers": (), "content": None, "styles": [], "weights": []}
    assert _core.sample(model, **arguments).shape == (1, 4, 4, 4)
