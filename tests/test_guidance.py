"""Classifier-free guidance and the prompts of each part."""

from functools import cache

import numpy as np
import oracle
import pytest
import torch
from conftest import told
from formats import configuration, write_diffusers
from oracle import TRAJECTORY_TOLERANCE, Networks, noise, relative_error

import styleid
from styleid import _core
from styleid.cli.main import main

pytestmark = pytest.mark.torch

STEPS = 5
LAYERS = (6, 9, 11)
CONTEXT, NEGATIVE = noise(1, 7, 20, seed=1), noise(1, 7, 20, seed=2)


@cache
def networks(prediction):
    unet = oracle.unet((16, 24, 32, 32), (2, 3, 2, 1), (1, 1, 1, 0), context=20)
    return Networks(unet, oracle.vae((8, 16), layers=1), prediction=prediction)


@cache
def engine(prediction="epsilon"):
    return networks(prediction).engine()


def start(seed=0):
    return noise(1, 4, 8, 8, seed=seed)


def inverted(model, z, **guidance):
    return _core.invert(model, z, CONTEXT, STEPS, "paper", LAYERS, ["both"], "float32", **guidance)[0]


def sampled(model, content, style, **guidance):
    rates = [np.full((STEPS, 12), rate, np.float32) for rate in (0.75, 1.5)]
    zT = content["latents"][-1:]
    return _core.sample(model, zT, CONTEXT, STEPS, "paper", LAYERS, content, [style], [1.0], *rates, **guidance)


# ---- the equation ----


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scale, tokens", [(7.5, 7), (0.0, 7), (-1.0, 3)])
def test_against_the_oracle(prediction, scale, tokens):
    """Inversions of which one is guided, and a guided sampling with injection into both evaluations."""
    negative = NEGATIVE[:, :tokens]
    theirs, context = oracle.StyleID(networks(prediction)), torch.from_numpy(CONTEXT)
    guidance = {"negative": torch.from_numpy(negative), "guidance": scale}
    content = theirs.invert(torch.from_numpy(start()), context, STEPS, "paper")
    style = theirs.invert(torch.from_numpy(start(1)), context, STEPS, "paper", **guidance)
    expected = theirs.sample(content.latents[-1], context, STEPS, "paper", LAYERS, content, [style], **guidance)

    model, guidance = engine(prediction), {"negative": negative, "guidance": scale}
    ours, other = inverted(model, start()), inverted(model, start(1), **guidance)
    assert relative_error(other["latents"], np.concatenate(style.latents)) <= TRAJECTORY_TOLERANCE
    assert relative_error(other["key"][9][2], style.features[2][9][1]) <= TRAJECTORY_TOLERANCE
    assert relative_error(sampled(model, ours, other, **guidance), expected) <= TRAJECTORY_TOLERANCE


def test_one_step_by_hand():
    """The first move of an inversion is that of e_negative + g (e - e_negative)."""
    model, g = engine(), 3.0
    one, other = (model.predict_noise(start(), 1, context) for context in (CONTEXT, NEGATIVE))
    expected = oracle.move(start(), other + g * (one - other), "epsilon", 1, 201)
    actual = inverted(model, start(), negative=NEGATIVE, guidance=g)["latents"][1:2]
    assert relative_error(actual, expected) <= oracle.EVALUATION_TOLERANCE


def test_a_negative_context_without_guidance_is_the_positive_alone():
    content, style = inverted(engine(), start()), inverted(engine(), start(1))
    plain = sampled(engine(), content, style)
    assert relative_error(sampled(engine(), content, style, negative=NEGATIVE, guidance=1.0), plain) <= 1e-5
    np.testing.assert_array_equal(sampled(engine(), content, style, negative=None, guidance=7.5), plain)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"negative": NEGATIVE[..., 1:]}, ValueError, r"negative: expected float32 of shape \(1, L, 20\)"),
        ({"negative": NEGATIVE * np.float32(np.nan)}, ValueError, "negative: .*finite"),
        ({"negative": "blurry"}, TypeError, "negative"),
        ({"negative": NEGATIVE, "guidance": "much"}, TypeError, "guidance: expected a number"),
        ({"negative": NEGATIVE, "guidance": float("inf")}, ValueError, "guidance: expected a finite number, got inf"),
    ],
)
def test_bad_arguments_of_the_engine(bad, error, message):
    with pytest.raises(error, match=message):
        inverted(engine(), start(), **bad)


# ---- prompts ----


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """A model that takes any prompt."""
    return write_diffusers(tmp_path_factory.mktemp("prompted") / "model", configuration("1.x"))


@pytest.fixture(scope="module")
def model(prompted):
    return styleid.load_model(prompted, dtype="float32", threads=1)


def random_image(seed):
    return oracle.smooth_image(32, 32, seed)


def transfer(model, **options):
    return styleid.transfer(
        random_image(1), random_image(2), model, **told(steps=STEPS, layers=LAYERS_OF_PROMPTED, **options)
    )


LAYERS_OF_PROMPTED = (3, 5)


def parts(model, content="", style="", **options):
    """The same in three calls."""
    inversions = [
        styleid.invert(random_image(1), model, steps=STEPS, layers=LAYERS_OF_PROMPTED, options=styleid.Text(content)),
        styleid.invert(random_image(2), model, steps=STEPS, layers=LAYERS_OF_PROMPTED, options=styleid.Text(style)),
    ]
    return styleid.inject_styles(*inversions, model, **told(**options))


def test_off_is_the_paper_bit_for_bit(model):
    plain = transfer(model)
    options = {"content_prompt": "", "style_prompt": "", "negative": "", "guidance": 1}
    np.testing.assert_array_equal(transfer(model, **options), plain)
    np.testing.assert_array_equal(parts(model, negative="", guidance=1.0), parts(model))
    with pytest.warns(UserWarning, match="negative: has no effect"):
        np.testing.assert_array_equal(transfer(model, negative="grey"), plain)
    with pytest.warns(UserWarning, match="guidance: has no effect"):
        np.testing.assert_array_equal(transfer(model, guidance=7.5), plain)


def test_off_evaluates_nothing_more(model, monkeypatch):
    """The engine is given no negative context unless it counts."""
    seen, whole = [], _core.inject_styles

    def watch(*arguments, **options):
        seen.append(arguments[13])
        return whole(*arguments, **options)

    monkeypatch.setattr(_core, "inject_styles", watch)
    parts(model)
    parts(model, prompt="red", negative="grey", guidance=2.0)
    assert seen[0] is None
    np.testing.assert_array_equal(seen[1], model.encode_prompt("grey"))


def test_transfer_has_a_prompt_for_each_part(model):
    whole = transfer(model, prompt="a", content_prompt="b", style_prompt="c", negative="d", guidance=3.0)
    np.testing.assert_array_equal(whole, parts(model, "b", "c", prompt="a", negative="d", guidance=3.0))
    np.testing.assert_array_equal(transfer(model, prompt="a", style_prompt=""), parts(model, "a", "", prompt="a"))
    assert not np.array_equal(whole, transfer(model, prompt="a", content_prompt="b", style_prompt="c"))


def test_a_guided_inversion_is_saved_cached_and_reconstructed(model, tmp_path):
    options = {"prompt": "a", "negative": "b", "guidance": 2.0, "cache": tmp_path / "cache"}
    guided = styleid.invert(random_image(1), model, **told(steps=STEPS, **options))
    plain = styleid.invert(random_image(1), model, **told(steps=STEPS, **(options | {"guidance": 1.5})))
    assert not np.array_equal(guided.latent, plain.latent)
    guided.save(tmp_path / "a.safetensors")
    loaded = styleid.Inversion.load(tmp_path / "a.safetensors")
    assert (loaded.prompt, loaded.negative_prompt, loaded.guidance) == ("a", "b", 2.0)
    np.testing.assert_array_equal(loaded.reconstruct(model), guided.reconstruct())
    assert not np.array_equal(guided.reconstruct(), plain.reconstruct())


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"guidance": "7"}, TypeError, "guidance: expected a number, got .*str"),
        ({"guidance": True}, TypeError, "guidance: expected a number, got .*bool"),
        ({"guidance": float("nan")}, ValueError, "guidance: expected a number, got nan"),
        ({"negative": None}, TypeError, "negative: expected str, got NoneType"),
        ({"content_prompt": 1}, TypeError, "content_prompt: expected str, got int"),
        ({"style_prompt": ["a"]}, TypeError, "style_prompt: expected str, got list"),
    ],
)
def test_bad_arguments(model, bad, error, message):
    with pytest.raises(error, match=f"^{message}"):
        transfer(model, **bad)


def test_command_line(prompted, model, tmp_path):
    for seed in (1, 2):
        styleid.save_image(tmp_path / f"{seed}.png", random_image(seed))
    content, style, out = (str(tmp_path / name) for name in ("1.png", "2.png", "out.png"))
    common = ["--model", str(prompted), "--threads", "1", "--dtype", "float32", "--layers", "3,5", "--quiet"]
    guidance = ["--prompt", "a", "--guidance", "3", "--negative-prompt", "d"]
    run = ["--steps", str(STEPS), "--size", "32", *common]
    prompts = [*guidance, "--content-prompt", "b", "--style-prompt", ""]
    assert main(["transfer", content, style, "-o", out, *prompts, *run]) == 0
    expected = parts(model, "b", "", prompt="a", negative="d", guidance=3.0)
    np.testing.assert_array_equal(styleid.load_image(out, None), expected)

    inversions = [str(tmp_path / f"{name}.safetensors") for name in ("content", "style")]
    assert main(["invert", content, "-o", inversions[0], *guidance, *run]) == 0
    assert main(["invert", style, "-o", inversions[1], *run]) == 0
    assert styleid.Inversion.load(inversions[0]).guidance == 3
    assert main(["inject", *inversions, "-o", out, *guidance, *common]) == 0
    expected = styleid.inject_styles(
        *map(styleid.Inversion.load, inversions), model, options=styleid.Text("a", negative="d", guidance=3)
    )
    np.testing.assert_array_equal(styleid.load_image(out, None), expected)
