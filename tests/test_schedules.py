"""The DDIM schedules: which timesteps are evaluated, and where every evaluation moves the latent."""

from functools import cache

import numpy as np
import oracle
import pytest
import torch
from oracle import EVALUATION_TOLERANCE, NO_NOISE, TRAJECTORY_TOLERANCE, Networks, alpha, noise, relative_error

from styleid import _core

pytestmark = pytest.mark.torch

SCHEDULES = ["paper", "diffusers", "corrected"]
STEPS = [2, 3, 7, 20, 50]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_number_of_steps = pytest.mark.parametrize("steps", STEPS)
both_predictions = pytest.mark.parametrize(
    "prediction, steps", [("epsilon", steps) for steps in STEPS] + [("v_prediction", 3), ("v_prediction", 20)]
)


def small_unet():
    return oracle.unet((16, 24, 32, 32), 2, (1, 1, 1, 0), context=20)


@cache
def networks(prediction="epsilon"):
    return Networks(small_unet(), prediction=prediction)


@cache
def constant_networks():
    """The UNet's output is the bias of its last convolution, whatever goes in."""
    unet = small_unet()
    unet.conv_out.weight.zero_()
    return Networks(unet)


engine = cache(lambda prediction="epsilon": networks(prediction).engine())
constant_engine = cache(lambda: constant_networks().engine())

START = noise(1, 4, 8, 8)
CONTEXT = noise(1, 7, 20, seed=1)
LAYERS = tuple(range(3, 12))


@cache
def inverted(schedule, steps, prediction="epsilon"):
    """By the engine."""
    model = engine(prediction)
    return _core.invert(model, START, CONTEXT, steps, schedule, LAYERS, ["both"], "float32")[0]


def sampled(model, latent, schedule, steps, hook=None):
    """Without injection."""
    unused = np.ones((steps, 12), np.float32)
    return _core.sample(model, latent, CONTEXT, steps, schedule, (), None, [], [], unused, unused, hook=hook)


def recording(visited):
    return lambda step, steps, latents: visited.append(np.array(latents))


@every_schedule
@every_number_of_steps
def test_timesteps(schedule, steps):
    facts = _core.schedule(engine(), schedule, steps)
    timesteps = oracle.timesteps(steps)
    assert list(facts["timesteps"]) == list(_core.timesteps(steps)) == timesteps
    assert [timesteps[slot] for slot in facts["sampling"]] == [t for t, _, _ in oracle.sampling_moves(schedule, steps)]


@every_schedule
@every_number_of_steps
def test_samplings_start_from_latents_of_their_level(schedule, steps):
    moves, facts = oracle.inversion_moves(schedule, steps), _core.schedule(engine(), schedule, steps)
    levels = [before for _, before, _ in moves] + [moves[-1][2]]
    assert [levels[start] for start in facts["starts"]] == [t for _, t, _ in oracle.sampling_moves(schedule, steps)]


def test_predicted():
    x0, e, levels = noise(2, 4, 3, 5), noise(2, 4, 3, 5, seed=1), (0.3, 0.5)
    before, after = (np.float32(level**0.5 * x0 + (1 - level) ** 0.5 * e) for level in levels)
    assert relative_error(_core.predicted(before, after, *levels), x0) <= 1e-6
    np.testing.assert_array_equal(_core.predicted(before, x0, 0.3, 1), x0)


def test_published_timesteps():
    paper, diffusers = _core.schedule(engine(), "paper", 50), _core.schedule(engine(), "diffusers", 20)
    assert list(paper["timesteps"]) == list(range(1, 982, 20))
    assert list(diffusers["timesteps"]) == list(range(1, 952, 50))
    assert paper["timesteps"][paper["sampling"][0]] == 961
    assert diffusers["timesteps"][diffusers["sampling"][0]] == 951
    assert len(paper["sampling"]) == 49
    assert len(diffusers["sampling"]) == 20


@pytest.mark.parametrize(
    "schedule, layers, epsilon, truncate",
    [
        ("paper", range(6, 12), 0.0, True),
        ("diffusers", range(7, 12), 1e-4, False),
        ("corrected", range(6, 12), 0.0, True),
    ],
)
def test_facts(schedule, layers, epsilon, truncate):
    facts = _core.schedule(engine(), schedule, 50)
    assert facts["layers"] == tuple(layers)
    assert facts["adain_epsilon"] == pytest.approx(epsilon)
    assert facts["truncate"] == truncate


@every_schedule
@both_predictions
def test_every_inversion_step(schedule, steps, prediction):
    """From the engine's own latents, so that errors do not add up: each move, and each step's Q, K and V."""
    method = oracle.StyleID(networks(prediction))
    inversion = inverted(schedule, steps, prediction)
    latents, context = torch.from_numpy(inversion["latents"]), torch.from_numpy(CONTEXT)
    assert np.array_equal(latents[:1], START)
    for i, (t, a, b) in enumerate(oracle.inversion_moves(schedule, steps)):
        z = latents[i : i + 1]
        expected = oracle.move(z, method.predict(z, t, context), prediction, a, b)
        assert relative_error(latents[i + 1 : i + 2], expected) <= EVALUATION_TOLERANCE
        for layer in LAYERS:
            for kind, wanted in zip(("query", "key", "value"), method.layers[layer].features):
                assert relative_error(inversion[kind][layer][i], wanted) <= EVALUATION_TOLERANCE


@every_schedule
@both_predictions
def test_every_sampling_step(schedule, steps, prediction):
    method = oracle.StyleID(networks(prediction))
    latents = []
    z0 = sampled(engine(prediction), START, schedule, steps, recording(latents))
    moves = oracle.sampling_moves(schedule, steps)
    assert len(latents) == len(moves) + 1
    assert np.array_equal(latents[0], START)
    assert np.array_equal(latents[-1], z0)
    for (t, a, b), z, actual in zip(moves, latents, latents[1:]):
        z = torch.from_numpy(z)
        expected = oracle.move(z, method.predict(z, t, torch.from_numpy(CONTEXT)), prediction, a, b)
        assert relative_error(actual, expected) <= EVALUATION_TOLERANCE


@every_schedule
@every_number_of_steps
def test_whole_trajectory(schedule, steps):
    """From the same start to the end of the inversion and back, with nothing in common in between."""
    method, context = oracle.StyleID(networks()), torch.from_numpy(CONTEXT)
    expected = method.invert(torch.from_numpy(START), context, steps, schedule)
    inversion = inverted(schedule, steps)
    for actual, wanted in zip(inversion["latents"], expected.latents, strict=True):
        assert relative_error(actual, wanted[0]) <= TRAJECTORY_TOLERANCE
    for slot, features in enumerate(expected.features):
        for layer, wanted in features.items():
            for kind, tensor in zip(("query", "key", "value"), wanted):
                assert relative_error(inversion[kind][layer][slot], tensor) <= TRAJECTORY_TOLERANCE
    z0 = sampled(engine(), inversion["latents"][-1:], schedule, steps)
    wanted = method.sample(expected.latents[-1], context, steps, schedule, (), None, [])
    assert relative_error(z0, wanted) <= TRAJECTORY_TOLERANCE


@every_schedule
@both_predictions
def test_moves_without_an_oracle(schedule, steps, prediction):
    """The engine's moves are what the formula makes of the engine's own predictions."""
    inversion = inverted(schedule, steps, prediction)
    for i, (t, a, b) in enumerate(oracle.inversion_moves(schedule, steps)):
        z = inversion["latents"][i : i + 1]
        prediction_of_z = engine(prediction).predict_noise(z, t, CONTEXT)
        expected = oracle.move(z.astype(np.float64), prediction_of_z, prediction, a, b)
        assert relative_error(inversion["latents"][i + 1 : i + 2], expected) <= 1e-6


def noise_per_signal(level):
    """A move with noise e changes z / sqrt(alpha) by e times the difference of the two levels' numbers."""
    return np.sqrt((1 - alpha(level)) / alpha(level))


def moved(z, a, b):
    """By the constant networks' noise."""
    e = constant_networks().unet.conv_out.bias.double().numpy()[:, None, None]
    return np.sqrt(alpha(b)) * (z / np.sqrt(alpha(a)) + (noise_per_signal(b) - noise_per_signal(a)) * e)


@every_schedule
@every_number_of_steps
def test_constant_noise_in_closed_form(schedule, steps):
    inversion = _core.invert(constant_engine(), START, CONTEXT, steps, schedule, (), ["none"], "float32")[0]
    for moves, latent in (
        (oracle.inversion_moves(schedule, steps), inversion["latents"][-1:]),
        (oracle.sampling_moves(schedule, steps), sampled(constant_engine(), START, schedule, steps)),
    ):
        assert relative_error(latent, moved(START, moves[0][1], moves[-1][2])) <= EVALUATION_TOLERANCE


@every_number_of_steps
def test_inversion_and_sampling_with_the_same_noise_are_inverse(steps):
    """In the one schedule whose moves are: `diffusers`, whose last one goes on from alpha[0] to where there is no noise."""
    inversion = _core.invert(constant_engine(), START, CONTEXT, steps, "diffusers", (), ["none"], "float32")[0]
    z0 = sampled(constant_engine(), inversion["latents"][-1:], "diffusers", steps)
    assert relative_error(inversion["latents"][-1:], START) > 0.1
    assert relative_error(z0, moved(START, 0, NO_NOISE)) <= EVALUATION_TOLERANCE


def test_levels_of_the_second_program():
    """By hand, for 20 steps: the sampling's levels, of which the last has no noise, and v at the level of the latent."""
    a = oracle.ALPHAS
    levels = _core.schedule(engine(), "diffusers", 20)["levels"]
    np.testing.assert_allclose(levels, [*a[951::-50], 1.0], rtol=1e-12)
    np.testing.assert_allclose(_core.schedule(engine(), "corrected", 20)["levels"], [*a[951::-50], a[0]], rtol=1e-12)
    latents = inverted("diffusers", 20, "v_prediction")["latents"].astype(np.float64)
    for i, t in ((0, 1), (1, 51), (19, 951)):
        z, here, there = latents[i : i + 1], a[max(0, t - 50)], a[t]
        v = engine("v_prediction").predict_noise(z.astype(np.float32), t, CONTEXT)
        x0, e = here**0.5 * z - (1 - here) ** 0.5 * v, here**0.5 * v + (1 - here) ** 0.5 * z
        assert relative_error(latents[i + 1 : i + 2], there**0.5 * x0 + (1 - there) ** 0.5 * e) <= 1e-6


@every_schedule
def test_step_limits(schedule):
    for steps in (1, 0, -1, 1001):
        with pytest.raises(ValueError, match="steps"):
            _core.schedule(engine(), schedule, steps)
    for steps in (999, 1000):
        timesteps = _core.schedule(engine(), schedule, steps)["timesteps"]
        assert len(timesteps) == steps
        assert timesteps.min() >= 0 and timesteps.max() <= 999
