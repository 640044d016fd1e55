"""The whole method against the plain one, and what must hold without any oracle."""

from functools import cache

import numpy as np
import oracle
import pytest
import torch
from oracle import EVALUATION_TOLERANCE, TRAJECTORY_TOLERANCE, Networks, noise, relative_error, smooth_image

import styleid
from styleid import _core

pytestmark = pytest.mark.torch

SCHEDULES = ["paper", "diffusers", "corrected"]
CONTEXT = noise(1, 7, 20, seed=1)


@cache
def networks(prediction="epsilon", linear=False):
    return Networks(
        oracle.unet((16, 24, 32, 32), (2, 3, 2, 1), (1, 1, 1, 0), context=20, linear=linear),
        oracle.vae((8, 16), layers=1),
        prediction=prediction,
    )


@cache
def engine(prediction="epsilon", linear=False, **options):
    return networks(prediction, linear).engine(**options)


def method(*model):
    return oracle.StyleID(networks(*model))


def constant(value, steps, decoder_layers=12):
    return np.full((steps, decoder_layers), value, np.float32)


def inverted(model, latents, steps, schedule, keep="both", feature_dtype="float32"):
    keep = [keep] * len(latents)
    return _core.invert(model, latents, CONTEXT, steps, schedule, model.attention_layers, keep, feature_dtype)


def sampled(
    model, latent, steps, schedule, layers, content, styles, weights=(1.0,),
    gamma=0.75, temperature=1.5, hook=None, decoder_layers=12, **options,
):  # fmt: skip
    gamma, temperature = (x if np.ndim(x) else constant(x, steps, decoder_layers) for x in (gamma, temperature))
    return _core.sample(
        model,
        latent,
        CONTEXT,
        steps,
        schedule,
        layers,
        content,
        styles,
        weights,
        gamma,
        temperature,
        hook=hook,
        **options,
    )


def start(height=8, width=8, seed=0):
    return noise(1, 4, height, width, seed=seed)


def compare(
    steps=6,
    schedule="paper",
    model=(),
    layers=None,
    adain=True,
    styles=((8, 8),),
    weights=(1.0,),
    size=(8, 8),
    **options,
):
    """Inversions, AdaIN and injection by both programs, each from the same two latents. -> the final latents' error"""
    layers = oracle.StyleID.default_layers(schedule) if layers is None else layers
    z_content, *z_styles = (start(*s, seed=seed) for seed, s in enumerate((size, *styles)))

    theirs, context = method(*model), torch.from_numpy(CONTEXT)
    content, *others = (theirs.invert(torch.from_numpy(z), context, steps, schedule) for z in (z_content, *z_styles))
    z = content.latents[-1]
    if adain:
        z = theirs.adain(z, others[0].latents[-1], schedule)
    expected = theirs.sample(z, context, steps, schedule, layers, content, others, weights, **options)

    ours = engine(*model)
    content, *others = (inverted(ours, z, steps, schedule)[0] for z in (z_content, *z_styles))
    z = content["latents"][-1:]
    if adain:
        z = _core.adain(z, others[0]["latents"][-1:], _core.schedule(ours, schedule, steps)["adain_epsilon"])
    actual = sampled(ours, z, steps, schedule, layers, content, others, weights, **options)
    return relative_error(actual, expected)


# ------------------------------------------------------------------------------------------------ against the oracle


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", [("epsilon", False), ("v_prediction", True)])
def test_fifty_steps(schedule, model):
    assert compare(50, schedule, model) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("layers", [(), (3,), (11,), (4, 7, 10), range(3, 12)])
def test_layers(schedule, layers):
    assert compare(schedule=schedule, layers=layers) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("gamma, temperature", [(0.3, 1.5), (0.0, 1.0), (1.0, 1.0), (1.0, 2.5), (0.75, 0.5)])
def test_gamma_and_temperature(gamma, temperature):
    assert compare(gamma=gamma, temperature=temperature) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gamma_and_temperature_by_step_and_layer(schedule):
    """Rows belong to timesteps as in the inversion, also where the sampling runs through them backwards."""
    random = np.random.default_rng(5)
    gamma = random.uniform(0, 1, (6, 12)).astype(np.float32)
    temperature = random.uniform(0.5, 3, (6, 12)).astype(np.float32)
    assert compare(schedule=schedule, gamma=gamma, temperature=temperature) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_adain(schedule):
    assert compare(schedule=schedule, adain=False) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize(
    "size, style", [((8, 16), (8, 8)), ((8, 8), (16, 24)), ((16, 8), (8, 16)), ((24, 16), (24, 16))]
)
def test_sizes(size, style):
    """Content and style need not have equal numbers of tokens."""
    assert compare(size=size, styles=(style,)) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("styles", [((8, 8), (8, 8)), ((8, 8), (16, 8), (8, 24))])
@pytest.mark.parametrize("even", [False, True])
def test_several_styles(styles, even):
    weights = [1.0 if even else 0.2 + 0.4 * i for i in range(len(styles))]
    assert compare(styles=styles, weights=weights) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("inject", ["q", "k", "v", "qk", "qv", "kv", "qkv"])
@pytest.mark.parametrize("styles, weights", [(((8, 8),), [1.0]), (((8, 8), (8, 8)), [0.3, 1.2])])
def test_parts(inject, styles, weights):
    """What is not injected stays the layer's own."""
    assert compare(styles=styles, weights=weights, inject=inject) <= TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("inject", ["qkv", "v"])
def test_regions(inject):
    """Two styles, biases of queries and keys, and queries that get all, a part or nothing of the injection."""
    random, layers = np.random.default_rng(7), (6, 9, 10)
    sizes = (8, 8), (8, 8) if inject == "v" else (16, 8)
    tokens = {6: 16, 9: 64, 10: 64}
    bias = {n: random.standard_normal((2, tokens[n])).astype(np.float32) for n in layers}
    cover = {n: np.resize(np.float32([1, 0.3, 0, 1]), tokens[n]) for n in layers}
    key_bias = [
        {n: random.standard_normal(tokens[n] * w * h // 64).astype(np.float32) for n in layers} for w, h in sizes
    ]
    for n in layers:
        bias[n][0, ::3] = -np.inf
        bias[n][:, cover[n] == 0] = -np.inf
        key_bias[1][n][::2] = -np.inf
    regions = {"bias": bias, "cover": cover, "key_bias": key_bias}
    assert (
        compare(layers=layers, styles=sizes, weights=[0.4, 1.1], inject=inject, regions=regions) <= TRAJECTORY_TOLERANCE
    )


@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 0.5])
@pytest.mark.parametrize("size, style", [((8, 8), (8, 8)), ((16, 8), (24, 40))])
def test_adain(epsilon, size, style):
    """Against the formula; and the result has the style's mean and standard deviation."""
    content, style = 3 + 2 * start(*size), 0.5 * start(*style, seed=1) - 1
    content[:, 1] *= 1e-4
    mean, std = (
        (lambda x: x.mean((2, 3), keepdims=True, dtype=np.float64)),
        (lambda x: x.std((2, 3), keepdims=True, dtype=np.float64, ddof=1)),
    )
    actual = _core.adain(content, style, epsilon)
    expected = std(style) * (content - mean(content)) / (std(content) + epsilon) + mean(style)
    assert relative_error(actual, expected) <= EVALUATION_TOLERANCE
    assert relative_error(mean(actual), mean(style)) <= EVALUATION_TOLERANCE
    if not epsilon:
        assert relative_error(std(actual), std(style)) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("style_size", [(32, 48), (48, 16)])
def test_images(schedule, style_size):
    """Images in, image out, in one call: the oracle's but where a level was almost the next one."""
    content, style = smooth_image(32, 48, seed=1), smooth_image(*style_size, seed=2)
    steps, layers = 6, oracle.StyleID.default_layers(schedule)
    actual = _core.transfer(
        engine(), content, style, CONTEXT, steps, schedule, layers, constant(0.75, steps), constant(1.5, steps)
    )
    expected = method().transfer(content, style, torch.from_numpy(CONTEXT), steps, schedule)
    assert actual.dtype == np.uint8
    difference = np.abs(actual.astype(int) - expected)
    assert difference.max() <= 1
    assert np.mean(difference != 0) < 0.05
    assert expected.std() > 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return networks().save(tmp_path_factory.mktemp("model"), CONTEXT)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("adain", [True, False])
@pytest.mark.parametrize("inject", [True, False])
def test_public_api(folder, schedule, adain, inject):
    model = styleid.load_model(folder, dtype="float32")
    content, style = smooth_image(32, 32, seed=1), smooth_image(32, 32, seed=2)
    actual = styleid.transfer(content, style, model, steps=5, schedule=schedule, adain=adain, inject=inject)
    layers = None if inject else ()
    expected = method().transfer(content, style, torch.from_numpy(CONTEXT), 5, schedule, layers, adain)
    assert np.abs(actual.astype(int) - expected).max() <= 1


def test_public_networks(folder):
    model = styleid.load_model(folder, dtype="float32")
    image, z = smooth_image(32, 48, seed=1), start(16, 24)
    assert relative_error(model.encode(image), method().encode(image)) <= EVALUATION_TOLERANCE
    expected = method().predict(torch.from_numpy(z), 481, torch.from_numpy(CONTEXT))
    assert relative_error(model.predict_noise(z, 481), expected) <= EVALUATION_TOLERANCE


# ----------------------------------------------------------------------------------------------- without an oracle


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_injecting_what_is_there_changes_nothing(schedule):
    """gamma = 1, temperature = 1 and the content as the style, where every evaluation of the sampling gets the latent
    that the inversion had at this timestep: then the injected Q, K and V are those that the layer has by itself."""
    steps = 10
    content = inverted(engine(), start(), steps, schedule)[0]
    slots = _core.schedule(engine(), schedule, steps)["sampling"]

    def put_back(step, steps, latents):
        if step < len(slots):
            latents[:] = content["latents"][slots[step]]

    zT = content["latents"][-1:]
    own = sampled(engine(), zT, steps, schedule, (), None, [], (), hook=put_back)
    injected = sampled(
        engine(),
        zT,
        steps,
        schedule,
        engine().attention_layers,
        content,
        [content],
        gamma=1,
        temperature=1,
        hook=put_back,
    )
    assert relative_error(injected, own) <= EVALUATION_TOLERANCE


def test_content_as_its_own_style_is_reconstructed():
    """gamma = 1, temperature = 1, style = content: where the noise does not depend on the latent, the `diffusers`
    schedule, whose moves are each other's inverse, ends at the x0 of where it began."""
    unet = oracle.unet((16, 24), 2, (1, 1), layers=1, context=20)
    unet.conv_out.weight.zero_()
    model = Networks(unet).engine()
    z0 = start()
    content = inverted(model, z0, 10, "diffusers")[0]
    zT = _core.adain(content["latents"][-1:], content["latents"][-1:], 0.0)
    back = sampled(
        model, zT, 10, "diffusers", model.attention_layers, content, [content], gamma=1, temperature=1, decoder_layers=4
    )
    e = unet.conv_out.bias.double().numpy()[:, None, None]
    assert relative_error(back, oracle.move(z0, e, "epsilon", 0, oracle.NO_NOISE)) <= EVALUATION_TOLERANCE


def test_reconstruction_gets_better_with_more_steps():
    """With a UNet that does not jump, the inversion's and the sampling's estimates approach each other."""
    unet = oracle.unet((16, 24), 2, (1, 1), layers=1, context=20)
    unet.conv_out.weight.mul_(0.05)
    model = Networks(unet).engine()
    errors = []
    for steps in (10, 40):
        content, seen = inverted(model, start(), steps, "diffusers", keep="none")[0], []
        zT = content["latents"][-1:]
        sampled(
            model,
            zT,
            steps,
            "diffusers",
            (),
            None,
            [],
            (),
            decoder_layers=4,
            hook=lambda *call: seen.append(call[2].copy()),
        )
        e = model.predict_noise(seen[-2], 1, CONTEXT)
        errors.append(relative_error(oracle.move(seen[-2], e, "epsilon", 1, 0), start()))
    assert errors[1] < errors[0] / 2


def test_weights_of_styles():
    """A style with no weight is not there; a style twice with half the weight is the style once; only ratios count."""
    steps, layers = 5, (6, 9, 11)
    content, one, two = (inverted(engine(), start(seed=seed), steps, "paper")[0] for seed in range(3))
    zT = content["latents"][-1:]

    def result(styles, weights):
        return sampled(engine(), zT, steps, "paper", layers, content, styles, weights)

    alone = result([one], [1.0])
    assert relative_error(result([one, one], [0.5, 0.5]), alone) <= EVALUATION_TOLERANCE
    assert relative_error(result([one] * 30, range(1, 31)), alone) <= EVALUATION_TOLERANCE
    assert relative_error(result([one], [0.25]), alone) <= EVALUATION_TOLERANCE
    mixed = result([one, two], [0.25, 0.75])
    assert relative_error(result([two, one], [3.0, 1.0]), mixed) <= EVALUATION_TOLERANCE
    assert relative_error(mixed, alone) > 1e-3
    assert relative_error(result([one, two], [1.0, 1e-12]), alone) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inversion_of_a_batch(schedule):
    """Two images as one batch are two images one after the other, each with what was asked for."""
    z = np.concatenate([start(16, 8), start(16, 8, seed=1)])
    layers = engine().attention_layers
    together = _core.invert(engine(), z, CONTEXT, 5, schedule, layers, ["query", "keys"], "float32")
    for i, kinds in enumerate((["query"], ["key", "value"])):
        alone = inverted(engine(), z[i : i + 1], 5, schedule)[0]
        assert relative_error(together[i]["latents"], alone["latents"]) <= EVALUATION_TOLERANCE
        for kind in ("query", "key", "value"):
            assert set(together[i][kind]) == (set(layers) if kind in kinds else set())
            for layer, features in together[i][kind].items():
                assert relative_error(features, alone[kind][layer]) <= EVALUATION_TOLERANCE


def test_features_in_16_bits():
    """What is kept as bfloat16 is what is kept as float32, rounded."""
    wide, narrow = (inverted(engine(), start(), 5, "paper", feature_dtype=d)[0] for d in ("float32", "bfloat16"))
    assert np.array_equal(wide["latents"], narrow["latents"])
    for kind in ("query", "key", "value"):
        for layer, features in wide[kind].items():
            rounded = torch.from_numpy(features).bfloat16().view(torch.uint16).numpy()
            assert np.array_equal(rounded, narrow[kind][layer])


def test_the_steps_are_one_run(schedule="paper", steps=5):
    """transfer is encode, invert, AdaIN, sample, decode, and inject_styles is the last three of them."""
    model, layers, rates = engine(), (6, 9), (constant(0.75, steps), constant(1.5, steps))
    images = np.stack([smooth_image(32, 32, seed) for seed in range(2)])
    whole = _core.transfer(model, *images, CONTEXT, steps, schedule, layers, *rates)
    content, style = inverted(model, model.encode(images), steps, schedule)
    zT = _core.adain(content["latents"][-1:], style["latents"][-1:], 0.0)
    parts = _core.inject_styles(model, zT, CONTEXT, steps, schedule, layers, content, [style], [1.0], *rates)
    pieces = model.decode(sampled(model, zT, steps, schedule, layers, content, [style]), truncate=True)[0]
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert np.array_equal(parts, pieces)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.bfloat16)])
def test_same_bytes_every_time(dtype):
    content, style = smooth_image(32, 32, seed=1), smooth_image(48, 32, seed=2)
    rates = constant(0.75, 5), constant(1.5, 5)
    runs = [
        _core.transfer(engine(dtype=dtype), content, style, CONTEXT, 5, "paper", (6, 7, 11), *rates).tobytes()
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_same_bytes_on_any_number_of_threads():
    def latent(threads):
        model = engine(threads=threads)
        content, style = inverted(model, np.concatenate([start(), start(seed=1)]), 5, "paper")
        return sampled(model, content["latents"][-1:], 5, "paper", (6, 7, 11), content, [style]).tobytes()

    assert latent(1) == latent(2)
