"""The C module's border: what it refuses and how it says so, cancelling, threads, memory. Results are tested elsewhere."""

import gc
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiny

from styleid import _core

STEPS = 3
LAYERS = (2, 3)
NAN, INF = float("nan"), float("inf")
STRENGTHS = np.ones((STEPS, 4), np.float32)  # (steps, decoder layers)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def text_model():
    return tiny.model(text=True)


def invert(model, **changes):
    arguments = {
        "latents": tiny.latents(),
        "context": tiny.CONTEXT,
        "steps": STEPS,
        "schedule": "diffusers",
        "layers": LAYERS,
        "keep": ("both",),
        "feature_dtype": "float32",
    }
    return _core.invert(model, **(arguments | changes))


@pytest.fixture(scope="module")
def inversion(model):
    return invert(model)[0]


def sample_arguments(inversion):
    return {
        "latent": inversion["latents"][-1:],
        "context": tiny.CONTEXT,
        "steps": STEPS,
        "schedule": "diffusers",
        "layers": LAYERS,
        "content": inversion,
        "styles": [inversion],
        "weights": [1.0],
        "gamma": STRENGTHS,
        "temperature": STRENGTHS,
    }


def inject_arguments(inversion):
    arguments = sample_arguments(inversion)
    del arguments["latent"]
    return arguments


def picture(height=8, width=8):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def transfer_arguments():
    return {
        "content": picture(),
        "style": picture(),
        "context": tiny.CONTEXT,
        "steps": STEPS,
        "schedule": "diffusers",
        "layers": LAYERS,
        "gamma": STRENGTHS,
        "temperature": STRENGTHS,
    }


def filled(array, value):
    array = array.copy()
    array.flat[-1] = value
    return array


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
        lambda: _core.inject_styles(model, **(inject_arguments(inversion) | {"context": bad})),
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
        (picture().tolist(), TypeError, "expected uint8 or float32|expected float32 or uint8"),
        (picture().astype(np.float64), TypeError, "got float64"),
        (picture().astype(np.int16), TypeError, "got int16"),
        (picture()[:7], ValueError, r"got uint8 of shape \(.*7, 8, 3\)"),
        (picture()[..., :2], ValueError, r"got uint8 of shape \(.*8, 8, 2\)"),
        (picture()[:0], ValueError, r"got uint8 of shape \(.*0, 8, 3\)"),
        (picture().astype(np.float32), ValueError, "expected numbers from 0 to 1, got"),
        (filled(np.zeros((8, 8, 3), np.float32), NAN), ValueError, "expected numbers from 0 to 1, got nan"),
        (huge(2**24, 2**24, 3), ValueError, "at most"),
    ],
)
def test_bad_pictures(model, bad, error, message):
    batch = bad[None] if isinstance(bad, np.ndarray) else [bad]
    with pytest.raises(error, match=f"images: .*({message})"):
        model.encode(batch)
    for name in ("content", "style"):
        with pytest.raises(error, match=f"{name}: .*({message})"):
            _core.transfer(model, **(transfer_arguments() | {name: bad}))


def test_picture_whose_latent_does_not_fit(model):
    assert model.encode(picture(6, 8)[None]).shape == (1, 4, 3, 4)
    with pytest.raises(ValueError, match=r"style: .* H and W multiples of 4, got uint8 of shape \(6, 8, 3\)"):
        _core.transfer(model, **(transfer_arguments() | {"style": picture(6, 8)}))


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
        (_core.inject_styles, inject_arguments(inversion)),
        (_core.transfer, transfer_arguments()),
    ):
        with pytest.raises(error, match=f"{name}: .*{message}"):
            function(model, **(arguments | {name: bad}))


@pytest.mark.parametrize("bad", [0, -1])
def test_temperature_is_positive(model, inversion, bad):
    with pytest.raises(ValueError, match="temperature: expected positive finite numbers"):
        _core.sample(model, **(sample_arguments(inversion) | {"temperature": filled(STRENGTHS, bad)}))


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
    z, pixels = tiny.latents(), picture()
    np.testing.assert_array_equal(
        model.predict_noise(restride(z), 1, restride(tiny.CONTEXT)), model.predict_noise(z, 1, tiny.CONTEXT)
    )
    np.testing.assert_array_equal(model.encode(restride(pixels)[None]), model.encode(pixels[None]))
    arguments = sample_arguments(inversion)
    strided = {
        name: {layer: restride(array) for layer, array in value.items()} if name != "latents" else restride(value)
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
        ({"schedule": "euler"}, ValueError, r"schedule: expected one of \['paper', 'diffusers', 'corrected'\], got 'euler'"),
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
        (_core.inject_styles, inject_arguments(inversion)),
        (_core.transfer, transfer_arguments()),
    ):
        with pytest.raises(error, match=message):
            function(model, **(arguments | change))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"keep": "both"}, TypeError, "keep: expected a sequence of strings, got str"),
        ({"keep": ("both", "both")}, ValueError, "keep: expected 1, one for each picture, got 2"),
        ({"keep": ("all",)}, ValueError, "keep: expected one of .*, got 'all'"),
        ({"feature_dtype": "float16"}, ValueError, "feature_dtype: expected one of .*, got 'float16'"),
        ({"hook": "x"}, TypeError, "hook: expected a callable or None, got str"),
        ({"latents": tiny.latents(65), "keep": ("none",) * 65}, ValueError, "latents: expected at most 64 pictures, got 65"),
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
    for function, arguments in ((_core.sample, sample_arguments(inversion)), (_core.inject_styles, inject_arguments(inversion))):
        with pytest.raises(error, match=message):
            function(model, **(arguments | {"weights": weights}))


@pytest.mark.parametrize("count", [0, 65])
def test_number_of_styles(model, inversion, count):
    with pytest.raises(ValueError, match=f"styles: expected 1 to 64, got {count}"):
        _core.inject_styles(model, **(inject_arguments(inversion) | {"styles": [inversion] * count, "weights": [1.0] * count}))


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
    (lambda i, kind: changed(i, kind, 3, i[kind][3].astype(np.float16)), TypeError, "got float16"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3].astype(np.uint16)), ValueError, "float32 and uint16 features in one"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][:2]), ValueError, r"got float32 of shape \(2, 16, 16\)"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][:, 1:]), ValueError, r"got float32 of shape \(3, 15, 16\)"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][..., 1:]), ValueError, r"got float32 of shape \(3, 16, 15\)"),
    (lambda i, kind: changed(i, kind, 3, i[kind][3][0]), ValueError, r"got float32 of shape \(16, 16\)"),
]


def check_inversion_is_refused(model, inversion, role, bad, error, message):
    change = {"content": bad} if role == "content" else {"styles": [inversion, bad], "weights": [1.0, 1.0]}
    name = "content" if role == "content" else r"styles\[1\]"
    for function, arguments in ((_core.sample, sample_arguments(inversion)), (_core.inject_styles, inject_arguments(inversion))):
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
    arguments = inject_arguments(inversion) | {"styles": [inversion, other], "weights": [0.5, 2]}
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
    arguments = inject_arguments(inversion) | {"layers": (), "content": bare, "styles": [bare]}
    assert _core.inject_styles(model, **arguments).shape == (8, 8, 3)
    arguments = sample_arguments(inversion) | {"layers": (), "content": None, "styles": [], "weights": []}
    assert _core.sample(model, **arguments).shape == (1, 4, 4, 4)


# ------------------------------------------------------------------------------------------------- building a model


def build(configuration=None, weights=None, **options):
    configuration = configuration or tiny.config()
    return _core.Model(configuration, weights or tiny.weights(tiny.config()), **options)


def reconfigured(part, **changes):
    configuration = tiny.config(text=True)
    configuration[part] = configuration[part] | changes
    return configuration


@pytest.mark.parametrize("part", ["unet", "vae", "text"])
def test_missing_configuration_entries(part):
    for key in tiny.config(text=True)[part]:
        configuration = tiny.config(text=True)
        del configuration[part][key]
        with pytest.raises(ValueError, match=f"config.{part}: '{key}' is missing"):
            build(configuration)
    configuration = tiny.config()
    del configuration[part]
    with pytest.raises(ValueError, match=f"config: '{part}' is missing"):
        build(configuration)


@pytest.mark.parametrize(
    "configuration, error, message",
    [
        ([1], TypeError, "config: expected a dict, got list"),
        (tiny.config() | {"unet": 1}, TypeError, "config.unet: expected a dict, got int"),
        (tiny.config() | {"text": 1}, TypeError, "config.text: expected a dict, got int"),
        (tiny.config() | {"alphas": [1.0]}, TypeError, "config.alphas: expected float64 .*got list"),
        (tiny.config() | {"alphas": tiny.ALPHAS[1:]}, ValueError, r"config.alphas: .*got float64 of shape \(999,\)"),
        (tiny.config() | {"alphas": tiny.ALPHAS[::-1]}, _core.ModelError, "alphas"),
        (tiny.config() | {"alphas": filled(tiny.ALPHAS, NAN)}, _core.ModelError, "alphas"),
        (reconfigured("unet", channels=16), TypeError, "config.unet.channels: expected a list, got int"),
        (reconfigured("unet", channels=[]), ValueError, "config.unet.channels: .*got 0"),
        (reconfigured("unet", channels=[16] * 9), ValueError, "config.unet.channels: .*got 9"),
        (reconfigured("unet", heads=[2]), ValueError, "config.unet.heads: .*got 1"),
        (reconfigured("unet", channels=[16, "32"]), TypeError, "config.unet.channels: expected an integer, got str"),
        (reconfigured("unet", channels=[16, -32]), ValueError, "config.unet.channels: .*got -32"),
        (reconfigured("unet", channels=[16, 2**62]), ValueError, "config.unet.channels: .*got 46116"),
        (reconfigured("unet", channels=[16, 0]), _core.ModelError, "level"),
        (reconfigured("unet", heads=[0, 4]), _core.ModelError, "heads"),
        (reconfigured("unet", heads=[3, 4]), _core.ModelError, "heads"),
        (reconfigured("unet", groups=0), _core.ModelError, "groups"),
        (reconfigured("unet", groups=5), _core.ModelError, "groups"),
        (reconfigured("unet", layers_per_block=0), _core.ModelError, "layers_per_block"),
        (reconfigured("unet", in_channels=9), _core.ModelError, "channels"),
        (reconfigured("unet", eps="1"), TypeError, "config.unet.eps: expected a number, got str"),
        (reconfigured("unet", eps=NAN), ValueError, "config.unet.eps: expected a finite number, got nan"),
        (reconfigured("unet", eps=0), _core.ModelError, "eps"),
        (reconfigured("unet", linear_projection=None), TypeError, "config.unet.linear_projection: expected a bool"),
        (reconfigured("unet", prediction="sample"), ValueError, "config.unet.prediction: expected one of .*'sample'"),
        (reconfigured("vae", scaling_factor=0), _core.ModelError, "scaling_factor"),
        (reconfigured("vae", image_channels=4), _core.ModelError, "image_channels"),
        (reconfigured("vae", latent_channels=8), _core.ModelError, "latent channels"),
        (reconfigured("text", activation="relu"), ValueError, "config.text.activation: expected one of"),
        (reconfigured("text", heads=5), _core.ModelError, "heads"),
        (reconfigured("text", channels=32), _core.ModelError, "channels"),
    ],
)
def test_bad_configuration(configuration, error, message):
    with pytest.raises(error, match=message):
        _core.Model(configuration, tiny.weights(tiny.config(text=True)))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"dtype": "float16"}, ValueError, r"dtype: expected one of \['float32', 'bfloat16'\], got 'float16'"),
        ({"dtype": np.float32}, TypeError, "dtype: expected one of"),
        ({"threads": 0}, ValueError, "threads: expected an integer from 1 to 1024, got 0"),
        ({"threads": 2**40}, ValueError, "threads: "),
        ({"threads": "2"}, TypeError, "threads: expected an integer, got str"),
        ({"device": "cpu"}, TypeError, "device"),
    ],
)
def test_bad_model_options(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


NAME = "unet.conv_in.weight"  # (16, 4, 3, 3)
DATA = np.zeros((16, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    "weight, error, message",
    [
        (None, TypeError, "weights: expected dictionaries by name"),
        (DATA, TypeError, "weights: expected dictionaries by name"),
        ({}, _core.ModelError, "expected dtype 'F32', 'F16' or 'BF16', got None"),
        ({"dtype": "F64", "shape": [16, 4, 3, 3], "data": DATA}, _core.ModelError, "got 'F64'"),
        ({"dtype": 4, "shape": [16, 4, 3, 3], "data": DATA}, _core.ModelError, "got 4"),
        ({"dtype": "F32", "data": DATA}, _core.ModelError, "expected a shape of 1 to 4 positive sizes, got None"),
        ({"dtype": "F32", "shape": 576, "data": DATA}, _core.ModelError, "expected a shape .*got 576"),
        ({"dtype": "F32", "shape": [], "data": DATA}, _core.ModelError, r"expected a shape .*got \[\]"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3, 1], "data": DATA}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, -3], "data": DATA}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, 0], "data": b""}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3.0], "data": DATA}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [2**32, 2**32, 1, 1], "data": b""}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [2**62 + 1, 4, 1, 1], "data": bytes(16)}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [10**30], "data": b""}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3]}, TypeError, "expected data to be a contiguous buffer, got none"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3], "data": [1.0]}, TypeError, "contiguous buffer, got list"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3], "data": DATA.T}, TypeError, "contiguous buffer, got numpy.ndarray"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3], "data": DATA[1:]}, _core.ModelError, "2304 bytes, its data are 2160"),
        ({"dtype": "F16", "shape": [16, 4, 3, 3], "data": DATA}, _core.ModelError, "1152 bytes, its data are 2304"),
        ({"dtype": "F32", "shape": [16, 36], "data": DATA}, _core.ModelError, "conv_in.weight"),
        ({"dtype": "F32", "shape": [4, 16, 3, 3], "data": DATA}, _core.ModelError, "conv_in.weight"),
    ],
)
def test_bad_weight(weight, error, message):
    with pytest.raises(error, match=message):
        build(weights=tiny.weights(tiny.config()) | {NAME: weight})


def test_missing_and_unknown_weights():
    good = tiny.weights(tiny.config())
    for name in (NAME, "vae.quant_conv.bias", "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_v.weight"):
        with pytest.raises(_core.ModelError, match=name):
            build(weights={key: value for key, value in good.items() if key != name})
    with pytest.raises(_core.ModelError, match="unet.extra.weight"):
        build(weights=good | {"unet.extra.weight": tiny.weight(DATA)})
    with pytest.raises(_core.ModelError, match="null character"):
        build(weights=good | {"unet.extra\0.weight": tiny.weight(DATA)})
    with pytest.raises(_core.ModelError, match="ÄÄÄ"):
        build(weights=good | {"Ä" * 1000: tiny.weight(DATA)})
    with pytest.raises(TypeError, match="weights: expected dictionaries by name"):
        build(weights=good | {1: tiny.weight(DATA)})


@pytest.mark.parametrize("weights", [1, [1], "x", None])
def test_weights_are_a_mapping(weights):
    with pytest.raises(TypeError, match="weights: expected a mapping"):
        _core.Model(tiny.config(), weights)


@pytest.mark.parametrize("source", [bytes, bytearray, memoryview, lambda a: memoryview(b"-" + bytes(a))[1:]])
def test_weights_from_any_buffer(model, source):
    weights = {
        name: weight | {"data": source(weight["data"].tobytes())}
        for name, weight in tiny.weights(tiny.config()).items()
    }
    other = build(weights=weights)
    del weights
    expected = model.predict_noise(tiny.latents(), 1, tiny.CONTEXT)
    np.testing.assert_array_equal(other.predict_noise(tiny.latents(), 1, tiny.CONTEXT), expected)


def test_model_properties(model, text_model):
    assert (model.dtype, model.threads, model.attention_layers) == ("float32", 1, (2, 3))
    assert text_model.memory > model.memory > 0
    assert build(dtype="bfloat16", threads=2).dtype == "bfloat16"
    assert model.scratch(2, 8, 8) > model.scratch(1, 4, 4) > 0
    assert model.vae_scratch(16, 16) > model.vae_scratch(8, 8) > 0
    with pytest.raises(AttributeError):
        model.dtype = "bfloat16"
    with pytest.raises(TypeError):
        _core.Model.extra = 1
    with pytest.raises(TypeError):
        type("Other", (_core.Model,), {})
    assert issubclass(_core.ModelError, ValueError) and _core.ModelError.__module__ == "styleid._core"


def test_schedule(model):
    plan = _core.schedule(model, "paper", 50)
    assert plan["timesteps"].tolist() == list(range(1, 1000, 20))
    assert plan["sampling"].tolist() == list(range(48, -1, -1))
    assert plan["truncate"] is True and plan["adain_epsilon"] == 0
    assert _core.schedule(model, "diffusers", 20)["truncate"] is False


# ------------------------------------------------------------------------------------------------ callbacks and signals


class Stop(Exception):
    pass


def runs(model, inversion):
    """Every function that reports progress, with the number of steps it reports."""
    return [
        (lambda **options: invert(model, **options), STEPS),
        (lambda **options: _core.sample(model, **sample_arguments(inversion), **options), STEPS),
        (lambda **options: _core.inject_styles(model, **inject_arguments(inversion), **options), STEPS),
    ]


def test_progress_counts_up(model, inversion):
    for run, steps in runs(model, inversion):
        calls = []
        run(progress=lambda *call: calls.append(call))
        assert calls == [(i, steps) for i in range(steps + 1)]


@pytest.mark.parametrize("style", [(8, 8), (8, 12)])
def test_progress_of_a_transfer_counts_pictures(model, style):
    calls = []
    _core.transfer(model, **(transfer_arguments() | {"style": picture(*style)}), progress=lambda *call: calls.append(call))
    steps, totals = zip(*calls)
    assert set(totals) == {3 * STEPS} and steps[0] == 0 and steps[-1] == 3 * STEPS
    assert list(steps) == sorted(steps)


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("callback", ["progress", "hook"])
def test_an_exception_of_a_callback_ends_the_run(model, inversion, error, callback):
    def stop(step, *_):
        calls.append(step)
        if step == 1:
            raise error("enough")

    expected = _core.inject_styles(model, **inject_arguments(inversion))
    for run, _ in runs(model, inversion):
        calls = []
        with pytest.raises(error, match="enough"):
            run(**{callback: stop})
        assert calls == [0, 1]
    np.testing.assert_array_equal(_core.inject_styles(model, **inject_arguments(inversion)), expected)


def test_a_transfer_is_cancelled(model):
    def stop(step, total):
        if step >= 2 * STEPS:
            raise Stop

    with pytest.raises(Stop):
        _core.transfer(model, **transfer_arguments(), progress=stop)


def test_the_hook_changes_latents(model):
    def overwrite(step, steps, latents):
        assert steps == STEPS and latents.shape == (1, 4, 4, 4)
        latents[:] = step

    trajectory = invert(model, hook=overwrite)[0]["latents"]
    assert [np.unique(latent).tolist() for latent in trajectory] == [[0], [1], [2], [3]]


def test_the_hook_may_keep_and_reshape_latents(model, inversion):
    def keep(step, steps, latents):
        kept.append(latents)
        latents.shape = (-1,)

    for run, _ in runs(model, inversion):
        kept = []
        run(hook=keep)
        gc.collect()
        assert all(np.isfinite(latents).all() for latents in kept)


INTERRUPTED = """
import signal, sys, threading, time
sys.path.insert(0, {tests!r})
import numpy as np, tiny
from styleid import _core

model = tiny.model()
started = time.monotonic()
timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
timer.start()
try:
    _core.invert(model, tiny.latents(height=32, width=32), tiny.CONTEXT, 1000, "paper", (), ("none",), "float32")
except KeyboardInterrupt:
    model.predict_noise(tiny.latents(), 1, tiny.CONTEXT)
    print("interrupted after", time.monotonic() - started)
"""


def test_ctrl_c_stops_a_run_without_callbacks():
    program = INTERRUPTED.format(tests=str(Path(__file__).parent))
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("interrupted after")
    assert float(process.stdout.split()[-1]) < 5


# ------------------------------------------------------------------------------------------------ threads and memory


def in_threads(count, call):
    results, errors = [None] * count, []

    def run(i):
        try:
            results[i] = call(i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


def test_threads_share_a_model(model):
    sizes = [(4, 4), (4, 6), (8, 8), (2, 12)]

    def call(i):
        z = tiny.latents(1, *sizes[i % len(sizes)], seed=i)
        return [model.predict_noise(z, 1, tiny.CONTEXT) for _ in range(5)] + [invert(model, latents=z)[0]["latents"]]

    expected = [call(i) for i in range(8)]
    for got, wanted in zip(in_threads(8, call), expected, strict=True):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_gil_is_released(model):
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(None)
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = len(ticks)
    model.predict_noise(tiny.latents(4, 64, 64), 1, tiny.CONTEXT)
    during = len(ticks) - before
    done.set()
    ticker.join()
    assert during > 5


def test_models_are_built_and_dropped_in_threads():
    def call(i):
        model = tiny.model()
        result = model.predict_noise(tiny.latents(), 1, tiny.CONTEXT)
        del model
        return result

    results = in_threads(6, call)
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_references_are_given_back(model, inversion):
    z, context, keys = tiny.latents(), tiny.CONTEXT.copy(), inversion["key"][2]
    configuration, weights = tiny.config(), tiny.weights(tiny.config())
    data = weights[NAME]["data"]
    watched = (model, z, context, keys, inversion, configuration, data, STRENGTHS)
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(3):
        _core.Model(configuration, weights)
        model.predict_noise(z, 1, context)
        invert(model, latents=z, context=context)
        _core.sample(model, **sample_arguments(inversion), hook=lambda *_: None)
        _core.inject_styles(model, **inject_arguments(inversion))
        for bad in ({"latents": filled(z, NAN)}, {"keep": ()}, {"layers": (3, 9)}, {"progress": 1}):
            with pytest.raises((TypeError, ValueError)):
                invert(model, **({"latents": z, "context": context} | bad))
        with pytest.raises(ValueError):
            _core.inject_styles(model, **(inject_arguments(inversion) | {"styles": [changed(inversion, "key", 3)]}))
        with pytest.raises(_core.ModelError):
            _core.Model(configuration, weights | {NAME: weights[NAME] | {"shape": [1]}})
    assert [sys.getrefcount(thing) for thing in watched] == before


def test_results_are_given_back(model):
    result = weakref.ref(invert(model)[0]["query"][2])
    gc.collect()
    assert result() is None


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_does_not_grow(model, inversion):
    def calls():
        tiny.model()
        z = tiny.latents(height=32, width=32)
        model.predict_noise(z, 1, tiny.CONTEXT)
        model.decode(model.encode(picture(64, 64)[None]))
        invert(model, latents=z)
        _core.transfer(model, **transfer_arguments())
        with pytest.raises(Stop):
            invert(model, latents=z, progress=raise_stop)
        with pytest.raises(_core.ModelError):
            build(weights=tiny.weights(tiny.config()) | {"unet.extra": tiny.weight(np.zeros(2**18, np.float32))})

    def raise_stop(step, total):
        raise Stop

    for _ in range(5):
        calls()
    before = resident()
    for _ in range(40):
        calls()
    assert resident() - before < 8 << 20


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512", "avx512_bf16", "amx", "sse9"])
def test_a_forced_instruction_set(level):
    program = "from styleid import _core; print(_core.info()['isa'])"
    environment = {"STYLEID_ISA": level, "PATH": "/usr/bin"}
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    if level in _core.info()["isas"]:
        assert process.stdout.strip() == level
    else:
        assert process.returncode == 1 and f"ImportError: STYLEID_ISA: " in process.stderr and level in process.stderr
