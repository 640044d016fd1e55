"""Refinement of the inversion, partial inversion, and layers by step, against the equations written out with NumPy."""

import math

import numpy as np
import pytest
import tiny
from conftest import random_image

import styleid
from styleid import _core

STEPS = 5
STRIDE = 1000 // STEPS
SCHEDULES = ["paper", "diffusers", "corrected"]


@pytest.fixture(scope="module")
def inversions(model):
    return {
        schedule: [
            styleid.invert(random_image(seed), model, steps=STEPS, schedule=schedule, layers=(6, 7)) for seed in (0, 1)
        ]
        for schedule in SCHEDULES
    }


def core_model(prediction="epsilon", gain=1.0):
    config = tiny.config()
    config["unet"]["prediction"] = prediction
    weights = tiny.weights(config)
    weights["unet.conv_out.weight"] = tiny.weight(gain * weights["unet.conv_out.weight"]["data"])
    return _core.Model(config, weights)


NO_NOISE = -1  # the level of a clean latent; the others are timesteps


def alpha_of(level):
    return 1.0 if level == NO_NOISE else tiny.ALPHAS[level]


def noise_of(model, z, t, level, prediction="epsilon"):
    """The noise in a latent of a level, as the model sees it at timestep t."""
    out = model.predict_noise(z.astype(np.float32), t, tiny.CONTEXT).astype(np.float64)
    alpha = alpha_of(level)
    return out if prediction == "epsilon" else math.sqrt(alpha) * out + math.sqrt(1 - alpha) * z


def move(z, e, start, end):
    a, b = alpha_of(start), alpha_of(end)
    return math.sqrt(b) * (z - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e


def moves(schedule, steps=STEPS):
    """(evaluated timestep, level before, level after) of the inversion."""
    ts = [1 + i * (1000 // steps) for i in range(steps)]
    if schedule == "diffusers":
        return [(t, max(t - 1000 // steps, 0), t) for t in ts]
    return [(t, t, after) for t, after in zip(ts, [*ts[1:], 999], strict=True)]


# ---- refinement ----


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_refinement_by_hand(schedule, prediction):
    model = core_model(prediction)
    inverted = tiny.invert(model, steps=STEPS, schedule=schedule, refine=2)[0]["latents"]
    z = tiny.latents().astype(np.float64)
    for i, (t, start, end) in enumerate(moves(schedule)):
        np.testing.assert_allclose(inverted[i : i + 1], z, rtol=1e-3, atol=1e-4)
        before, z = z, move(z, noise_of(model, z, t, start, prediction), start, end)
        for _ in range(2):
            z = move(before, noise_of(model, z, end, end, prediction), start, end)
    np.testing.assert_allclose(inverted[-1:], z, rtol=1e-3, atol=1e-4)


def test_no_refinement_is_the_papers(model, inversions):
    for schedule in SCHEDULES:
        plain = styleid.invert(
            random_image(0), model, steps=STEPS, schedule=schedule, layers=(6, 7), options=styleid.Accuracy(0)
        )
        np.testing.assert_array_equal(plain.latents, inversions[schedule][0].latents)
    whole = styleid.transfer(random_image(0), random_image(1), model, steps=STEPS, options=styleid.Accuracy(1))
    content, style = (
        styleid.invert(random_image(seed), model, steps=STEPS, options=styleid.Accuracy(1)) for seed in (0, 1)
    )
    assert np.abs(whole.astype(int) - styleid.inject_styles(content, style)).max() <= 1
    assert np.any(content.latents != inversions["paper"][0].latents)


def test_refinement_finds_what_the_sampling_undoes():
    """With a UNet that does not jump, every iteration is nearer to it. The last move of `diffusers`, to where there is no
    noise, is made again to alpha[0], where the inversion begins."""
    model, errors = core_model(gain=0.02), []
    ones = np.ones((STEPS, 4), np.float32)
    for refine in (0, 1, 4):
        inverted = tiny.invert(model, steps=STEPS, refine=refine)[0]
        zT, seen = inverted["latents"][-1:], []
        _core.sample(
            model, zT, tiny.CONTEXT, STEPS, "diffusers", (), None, [], [], ones, ones,
            hook=lambda step, steps, z: seen.append(z.copy()),
        )  # fmt: skip
        z0 = move(seen[-2], noise_of(model, seen[-2], 1, 1), 1, 0)
        errors.append(np.linalg.norm(z0 - tiny.latents()) / np.linalg.norm(tiny.latents()))
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2 and errors[2] < 1e-3


@pytest.mark.parametrize("schedule", ["diffusers", "paper"])
def test_features_of_a_refined_inversion(model, schedule):
    """Of every timestep, those of its last evaluation; "paper" goes on to the level 999, above all of them."""
    seen = {}

    def keep(step, layer, query, key, value):
        seen[step] = key.copy()

    inversion = styleid.invert(
        random_image(0),
        model,
        steps=STEPS,
        schedule=schedule,
        layers=[6],
        options=[styleid.Hooks(on_attention=keep), styleid.Accuracy(2)],
    )
    assert set(seen) == set(range(STEPS + (schedule == "paper")))
    for step in range(STEPS):
        np.testing.assert_array_equal(inversion.key(step, 6), seen[step])


@pytest.mark.parametrize("refine, error", [(-1, ValueError), (1.5, TypeError), (1001, ValueError)])
def test_bad_refinements(model, refine, error):
    with pytest.raises(error, match="refine"):
        styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Accuracy(refine))


# ---- strength ----


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("strength, count", [(0.01, 1), (0.4, 2), (0.79, 4)])
def test_strength_by_hand(model, inversions, schedule, strength, count):
    content, style = inversions[schedule]
    seen = []
    styleid.inject_styles(
        content,
        style,
        inject=False,
        adain=False,
        options=[styleid.Start(strength=strength), styleid.Hooks(on_step=lambda i, n, z: seen.append(z.copy()))],
    )
    assert len(seen) == count + 1
    z = content.latents[count if schedule == "diffusers" else count - 1][np.newaxis].astype(np.float64)
    for i, latent in enumerate(seen):
        np.testing.assert_allclose(latent, z, rtol=1e-3, atol=1e-4)
        if i < count:
            t = 1 + (count - 1 - i) * STRIDE
            e = model.predict_noise(z.astype(np.float32), t).astype(np.float64)
            z = move(z, e, t, NO_NOISE if schedule == "diffusers" and t == 1 else max(t - STRIDE, 0))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_full_strength_is_the_papers(model, inversions, schedule):
    pair = inversions[schedule]
    expected = styleid.inject_styles(*pair)
    for strength in (1, 1.0, 0.95):  # rounded to all steps
        np.testing.assert_array_equal(styleid.inject_styles(*pair, options=styleid.Start(strength=strength)), expected)
    weak = styleid.inject_styles(*pair, options=styleid.Start(strength=0.6))
    whole = styleid.transfer(
        random_image(0),
        random_image(1),
        model,
        steps=STEPS,
        schedule=schedule,
        layers=(6, 7),
        options=styleid.Start(strength=0.6),
    )
    assert np.abs(whole.astype(int) - weak).max() <= 1 and np.any(weak != expected)


@pytest.mark.parametrize("strength", [0, 1.01, -1, math.nan])
def test_bad_strengths(inversions, strength):
    with pytest.raises(ValueError, match="^strength: expected a number (above 0 and at most|from 0 to) 1"):
        styleid.inject_styles(*inversions["paper"], options=styleid.Start(strength=strength))


# ---- layers by step ----


def test_layers_at_all_steps(model, inversions):
    pair = inversions["paper"]
    for layers, same in (
        (lambda fraction, layer: True, None),
        (lambda fraction, layer: layer == 7, [7]),
        (np.arange(8)[np.newaxis] >= 6, [6, 7]),
        (lambda fraction, layer: False, []),
    ):
        expected = styleid.inject_styles(*pair, layers=same)
        np.testing.assert_array_equal(styleid.inject_styles(*pair, layers=layers), expected)
        assert (
            np.abs(
                styleid.transfer(random_image(0), random_image(1), model, steps=STEPS, layers=layers).astype(int)
                - expected
            ).max()
            <= 1
        )


@pytest.mark.parametrize("as_array", [True, False])
def test_layers_by_step(inversions, as_array):
    """Layer 6 is injected in the first half of the sampling, at the larger timesteps, layer 7 in the second."""
    content, style = inversions["diffusers"]

    def layers(fraction, layer):
        return (fraction < 0.5) == (layer == 6)

    if as_array:
        layers = np.zeros((STEPS, 8), bool)
        layers[3:, 6] = layers[:3, 7] = True
    injected = set()

    def see(step, layer, query, key, value):
        if np.array_equal(key, style.key(step, layer)):
            injected.add((step, layer))

    styleid.inject_styles(content, style, layers=layers, options=styleid.Hooks(on_attention=see))
    assert injected == {(4, 6), (3, 6), (2, 7), (1, 7), (0, 7)}


@pytest.mark.parametrize(
    "layers, message",
    [
        (np.ones((1, 8), bool), r"different ones out of \[6, 7\]"),
        (np.ones((2, 8), bool), "steps x decoder layers"),
        (np.ones(8, bool), "steps x decoder layers"),
    ],
)
def test_bad_layers_by_step(inversions, layers, message):
    with pytest.raises(ValueError, match=f"^layers: .*{message}"):
        styleid.inject_styles(*inversions["paper"], layers=layers)


def test_refined_features_recomputed(model):
    kept = styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Accuracy(1))
    again = styleid.invert(
        random_image(0), model, steps=STEPS, options=[styleid.Storage("recompute"), styleid.Accuracy(1)]
    )
    for step in range(STEPS):
        np.testing.assert_array_equal(again.key(step, 6), kept.key(step, 6))
    with pytest.raises(ValueError, match="^features: .*'diffusers' cannot be recomputed"):
        styleid.invert(
            random_image(0),
            model,
            steps=STEPS,
            schedule="diffusers",
            options=[styleid.Storage("recompute"), styleid.Accuracy(1)],
        )


# ---- a sample of the posterior ----


def test_samples_of_the_posterior(model):
    image = random_image(0)
    mean, log_variance = model.encode(image), model.engine.log_variance(image[np.newaxis])
    noise = np.random.default_rng(5).standard_normal(mean.shape, np.float32)
    expected = mean + 0.5 * np.exp(log_variance / 2) * noise  # 0.5: the tiny model's scaling
    np.testing.assert_allclose(model.encode(image, 5), expected, rtol=1e-5, atol=1e-6)
    inversion = styleid.invert(image, model, steps=STEPS, options=styleid.Accuracy(seed=5))
    np.testing.assert_array_equal(inversion.latents[:1], model.encode(image, 5))
    np.testing.assert_array_equal(
        styleid.invert(image, model, steps=STEPS, options=styleid.Accuracy(seed=None)).latents[:1], mean
    )
    whole = styleid.transfer(image, random_image(1), model, steps=STEPS, options=styleid.Accuracy(seed=5))
    parts = styleid.inject_styles(
        inversion, styleid.invert(random_image(1), model, steps=STEPS, options=styleid.Accuracy(seed=5))
    )
    np.testing.assert_array_equal(whole, parts)
    for seed in (-1, 0.5, "a"):
        with pytest.raises((TypeError, ValueError), match="^seed: expected"):
            model.encode(image, seed)
        with pytest.raises((TypeError, ValueError), match="^seed: expected"):
            styleid.Accuracy(seed=seed)


def test_a_model_recommends_a_sample(model, monkeypatch):
    """A seed that is given comes first, and so does "mean"."""
    image = random_image(0)
    monkeypatch.setattr(model, "recommended", {"seed": 5})

    def start(*seeds):
        return styleid.invert(image, model, steps=STEPS, options=styleid.Accuracy(0, *seeds)).latents[:1]

    np.testing.assert_array_equal(start(), model.encode(image, 5))
    np.testing.assert_array_equal(start(None), model.encode(image, 5))
    np.testing.assert_array_equal(start(6), model.encode(image, 6))
    np.testing.assert_array_equal(start("mean"), model.encode(image))
    np.testing.assert_array_equal(
        styleid.transfer(image, image, model, steps=STEPS),
        styleid.transfer(image, image, model, steps=STEPS, options=styleid.Accuracy(seed=5)),
    )
