"""What goes beyond the paper: each option's neutral setting gives the paper's result, and its effect is its equation's."""

import doctest
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import random_image, told
from PIL import Image

import styleid
from styleid import _core
from styleid.method import initial, rates

STEPS = 3


@pytest.fixture(scope="module")
def inversions(model):
    return [styleid.invert(random_image(seed), model, steps=STEPS) for seed in (0, 1, 2)]


def latents(seed, *shape):
    return np.random.default_rng(seed).standard_normal((1, 2, *shape), dtype=np.float32)


# ---- gamma and temperature by step and layer ----


def test_examples_in_docstrings():
    assert doctest.testmod(rates).failed == 0


@pytest.mark.parametrize("name, value", [("gamma", 0.75), ("temperature", 1.5)])
def test_a_constant_function_is_the_number(model, inversions, name, value):
    expected = styleid.inject_styles(*inversions[:2])
    for rate in (lambda fraction, layer: value, styleid.decreasing(value, value, "cosine")):
        np.testing.assert_array_equal(styleid.inject_styles(*inversions[:2], **told(**{name: rate})), expected)
        np.testing.assert_array_equal(
            styleid.transfer(random_image(0), random_image(1), model, **told(steps=STEPS, **{name: rate})),
            styleid.transfer(random_image(0), random_image(1), model, steps=STEPS),
        )


def test_functions_fill_the_array_from_the_largest_timestep_on():
    """Row i belongs to the i-th timestep of the inversion, which ascend; the sampling begins at the last row."""
    array = rates.per_step_and_layer("temperature", lambda fraction, layer: 1 + 10 * fraction + layer, 3, 2)
    np.testing.assert_array_equal(array, [[11, 12], [6, 7], [1, 2]])


@pytest.mark.parametrize("shape, halfway", [("linear", 0.5), ("cosine", 0.5), ("sqrt", math.sqrt(0.5))])
def test_decreasing(shape, halfway):
    gamma = styleid.decreasing(0.9, 0.5, shape)
    assert [gamma(p, 7) for p in (0, 0.5, 1)] == pytest.approx([0.9, 0.9 - 0.4 * halfway, 0.5])
    by_layer = styleid.decreasing(0.9, 0.5, shape, layers=(6, 10))
    assert [by_layer(0.3, n) for n in (0, 6, 8, 10, 11)] == pytest.approx([0.9, 0.9, 0.9 - 0.4 * halfway, 0.5, 0.5])
    assert styleid.decreasing(1, 0, "cosine")(0.25, 0) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_a_function_is_its_array(inversions):
    """Both ways of writing the same schedule."""
    by_hand = np.linspace(0.5, 0.9, STEPS)[:, np.newaxis]  # ascending timesteps
    np.testing.assert_array_equal(
        styleid.inject_styles(*inversions[:2], gamma=styleid.decreasing(0.9, 0.5)),
        styleid.inject_styles(*inversions[:2], gamma=by_hand),
    )


@pytest.mark.parametrize(
    "arguments, name", [((0.5, 0.9), "start"), ((0.9, 0.5, "cubic"), "shape"), ((0.9, 0.5, "sqrt", (7, 7)), "layers")]
)
def test_bad_schedules(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        styleid.decreasing(*arguments)


def test_functions_must_give_numbers_in_range(inversions):
    with pytest.raises(ValueError, match="^gamma: expected 0 to 1, got 2"):
        styleid.inject_styles(*inversions[:2], gamma=lambda fraction, layer: 2.0)
    with pytest.raises(TypeError, match="^temperature: expected a number"):
        styleid.inject_styles(*inversions[:2], temperature=lambda fraction, layer: "hot")


# ---- what is injected ----


def test_parts_by_name(model, inversions):
    pair = inversions[:2]
    whole, none = styleid.inject_styles(*pair), styleid.inject_styles(*pair, inject=False)
    np.testing.assert_array_equal(styleid.inject_styles(*pair, inject="vqk"), whole)
    np.testing.assert_array_equal(styleid.inject_styles(*pair, inject=""), none)
    keys_and_values = styleid.inject_styles(*pair, inject="kv")
    np.testing.assert_array_equal(keys_and_values, styleid.inject_styles(*pair, gamma=0.0))
    own = styleid.inject_styles(*pair, inject="q", gamma=0.0, temperature=1.0)
    np.testing.assert_array_equal(own, none)  # a share of 0 of the content's queries, own keys and values
    values = styleid.inject_styles(*pair, inject="v")
    assert (
        np.abs(
            styleid.transfer(random_image(0), random_image(1), model, steps=STEPS, inject="v").astype(int) - values
        ).max()
        <= 1
    )
    assert all(np.any(values != other) for other in (whole, none, keys_and_values))


def test_parts_need_no_other_features(model, inversions):
    content, style, _ = inversions
    bare, keys, query = (
        styleid.invert(random_image(i), model, steps=STEPS, keep=k) for i, k in ((0, "none"), (1, "keys"), (0, "query"))
    )
    layers = content.layers
    np.testing.assert_array_equal(
        styleid.inject_styles(bare, keys, inject="kv", layers=layers),
        styleid.inject_styles(content, style, inject="kv"),
    )
    np.testing.assert_array_equal(
        styleid.inject_styles(query, bare, inject="q"), styleid.inject_styles(content, inversions[0], inject="q")
    )
    with pytest.raises(ValueError, match="^content: needed are its query features"):
        styleid.inject_styles(bare, keys, inject="qv", layers=layers)
    with pytest.raises(ValueError, match="^style: needed are its value features"):
        styleid.inject_styles(query, bare, inject="v")


def test_parts_of_other_sizes(model, inversions):
    large = styleid.invert(random_image(1, 16, 32), model, steps=STEPS)
    for inject in ("k", "qv"):
        with pytest.raises(
            ValueError, match="^styles.1.: with (keys|values) alone .* latents are 8 x 16.* content's 8 x 8"
        ):
            styleid.inject_styles(inversions[0], [inversions[1], large], inject=inject)
    assert styleid.inject_styles(inversions[0], large, inject="q").shape == (16, 16, 3)


@pytest.mark.parametrize("inject", ["none", "kw", "Q"])
def test_bad_parts(inversions, inject):
    with pytest.raises(ValueError, match=f"^inject: expected True, False or letters of 'qkv', got '{inject}'"):
        styleid.inject_styles(*inversions[:2], inject=inject)
    with pytest.raises(ValueError, match="^inject: expected True"):
        styleid.transfer(random_image(0), random_image(1), inversions[0].model, steps=STEPS, inject=inject)


# ---- initial latents ----


def test_names_of_the_papers_latents(inversions):
    pair = inversions[:2]
    np.testing.assert_array_equal(
        styleid.inject_styles(*pair, options=styleid.Start("adain")), styleid.inject_styles(*pair)
    )
    np.testing.assert_array_equal(
        styleid.inject_styles(*pair, options=styleid.Start("content")), styleid.inject_styles(*pair, adain=False)
    )


def test_a_function_of_the_latents(inversions):
    expected = styleid.inject_styles(*inversions[:2])
    np.testing.assert_array_equal(styleid.inject_styles(*inversions[:2], options=styleid.Start(_core.adain)), expected)
    np.testing.assert_array_equal(
        styleid.inject_styles(*inversions[:2], options=styleid.Start(initial.blend(0))),
        styleid.inject_styles(*inversions[:2], adain=False),
    )


@pytest.mark.parametrize("name", ["style", "quantiles", "frequencies"])
def test_other_latents_are_where_the_sampling_starts(inversions, name):
    content, style, _ = inversions
    seen = []
    styleid.inject_styles(
        content,
        style,
        options=[styleid.Start(name), styleid.Hooks(on_step=lambda step, steps, latents: seen.append(latents.copy()))],
    )
    np.testing.assert_array_equal(seen[0], initial.MIXERS[name](content.latent, style.latent))
    assert not np.array_equal(content.latent, seen[0])  # and the inversion is as it was


def test_latents_of_several_styles_are_averaged(inversions):
    content, *styles = inversions
    seen = []
    styleid.inject_styles(
        content,
        styles,
        options=[
            styleid.Mix([1, 3]),
            styleid.Start("style"),
            styleid.Hooks(on_step=lambda step, steps, z: seen.append(z.copy())),
        ],
    )
    np.testing.assert_allclose(seen[0], 0.25 * styles[0].latent + 0.75 * styles[1].latent, rtol=1e-6, atol=1e-6)


def test_blend():
    content, style = latents(0, 2, 2), latents(1, 2, 2)
    np.testing.assert_array_equal(initial.blend(0)(content, style), content)
    np.testing.assert_array_equal(initial.blend(1)(content, style), style)
    np.testing.assert_allclose(initial.blend(0.36)(content, style), 0.8 * content + 0.6 * style, rtol=1e-6)


def test_quantiles_by_hand():
    content = np.array([[[[3.0, 1.0], [2.0, 9.0]]]], np.float32)
    style = np.array([[[[10.0, 40.0], [20.0, 30.0]]]], np.float32)
    np.testing.assert_array_equal(initial.match_quantiles(content, style), [[[[30, 10], [20, 40]]]])
    two = np.array([[[[10.0, 30.0]]]], np.float32)  # quantiles 10 at 1/4, 30 at 3/4; asked for at 1/8, 3/8, 5/8, 7/8
    np.testing.assert_array_equal(initial.match_quantiles(content, two), [[[[25, 10], [15, 30]]]])
    np.testing.assert_array_equal(initial.match_quantiles(content, content), content)


def test_frequencies_by_hand():
    """The mean is the style's; the checkerboard, at (1/2, 1/2) cycles a pixel, is the content's but for H."""
    board = np.array([[1, -1], [-1, 1]], np.float32)
    content, style = (5 + 2 * board)[None, None], (7 + 3 * board)[None, None]
    low = math.exp(-0.5 / (2 * 0.25**2))
    expected = 7 + (3 * low + 2 * (1 - low)) * board
    np.testing.assert_allclose(initial.split_frequencies(0.25)(content, style)[0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(initial.split_frequencies()(content, content), content, rtol=1e-6)


def test_bad_latents(inversions):
    content, style, _ = inversions
    for bad, error, message in (
        ("noise", ValueError, "expected one of .*'quantiles'"),
        (3, TypeError, "expected one of"),
        (lambda c, s: c[:, :1], ValueError, "gave the shape"),
        (lambda c, s: c * np.nan, ValueError, "NaN"),
        (lambda c, s: None, TypeError, "expected an array"),
    ):
        with pytest.raises(error, match=f"^initial: .*{message}"):
            styleid.inject_styles(content, style, options=styleid.Start(bad))
    for make, bad in ((initial.blend, 1.5), (initial.split_frequencies, 0)):
        with pytest.raises(ValueError, match="expected"):
            make(bad)


# ---- several styles, and other sizes ----


def test_transfer_of_several_styles(model, inversions):
    whole = styleid.transfer(
        random_image(0), [random_image(1), random_image(2)], model, steps=STEPS, options=styleid.Mix([1, 3])
    )
    parts = styleid.inject_styles(inversions[0], inversions[1:], options=styleid.Mix([1, 3]))
    assert np.abs(whole.astype(int) - parts).max() <= 1
    one = styleid.transfer(random_image(0), [random_image(1)], model, steps=STEPS)
    np.testing.assert_array_equal(one, styleid.transfer(random_image(0), random_image(1), model, steps=STEPS))


def test_progress_over_several_styles(model):
    calls = []
    styleid.transfer(
        random_image(0),
        [random_image(1), random_image(2)],
        model,
        steps=STEPS,
        progress=lambda *call: calls.append(call),
    )
    steps, totals = zip(*calls, strict=True)
    assert set(totals) == {4 * STEPS - 1} and list(steps) == sorted(steps) and steps[-1] == totals[0]


def test_styles_of_other_sizes(model, inversions):
    small = styleid.invert(random_image(1, 16, 32), model, steps=STEPS)
    alone = styleid.inject_styles(inversions[0], small)
    assert alone.shape == (16, 16, 3)
    assert (
        np.abs(styleid.transfer(random_image(0), random_image(1, 16, 32), model, steps=STEPS).astype(int) - alone).max()
        <= 1
    )
    assert styleid.inject_styles(inversions[0], [inversions[1], small]).shape == (16, 16, 3)
    assert styleid.inject_styles(inversions[0], small, options=styleid.Start("quantiles")).shape == (16, 16, 3)
    with pytest.raises(ValueError, match="^initial: needs latents of one size"):
        styleid.inject_styles(inversions[0], small, options=styleid.Start("style"))


@pytest.mark.parametrize("styles, weights, name", [([], None, "style"), ([random_image(1)] * 2, [1], "weights")])
def test_bad_lists_of_styles(model, styles, weights, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        styleid.transfer(random_image(0), styles, model, steps=STEPS, options=styleid.Mix(weights))


# ---- hooks ----


def test_hooks_see_every_latent(model, inversions):
    seen = []

    def look(step, steps, latents):
        assert steps == STEPS and step == len(seen)
        seen.append(latents.copy())

    inversion = styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Hooks(on_step=look))
    np.testing.assert_array_equal(np.concatenate(seen), inversion.latents)
    np.testing.assert_array_equal(inversion.latents, inversions[0].latents)  # looking changes nothing


def test_hooks_change_latents(inversions):
    content, style, _ = inversions
    z0 = content.latents[:1]

    def put(step, steps, latents):
        if step == steps:
            latents[:] = z0

    np.testing.assert_array_equal(
        styleid.inject_styles(content, style, options=styleid.Hooks(on_step=put)),
        content.model.engine.decode(z0, True)[0],
    )


def test_exceptions_of_hooks_come_through(model, inversions):
    def fail(step, steps, latents):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Hooks(on_step=fail))
    with pytest.raises(RuntimeError, match="enough"):
        styleid.inject_styles(*inversions[:2], options=styleid.Hooks(on_step=fail))
    with pytest.raises(TypeError, match="on_step"):
        styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Hooks(on_step=3))


# ---- option classes ----


def test_options_are_found_by_their_class(model):
    with pytest.raises(TypeError, match="^options: invert takes Text, Storage, Hooks, Accuracy, Resize, got Mix"):
        styleid.invert(random_image(0), model, options=styleid.Mix())
    with pytest.raises(TypeError, match="^options: Text is given twice"):
        styleid.transfer(random_image(0), random_image(1), model, options=[styleid.Text(), styleid.Text()])
    for bad in (3, "a", [None]):
        with pytest.raises(TypeError, match="^options: "):
            styleid.transfer(random_image(0), random_image(1), model, options=bad)
    with pytest.raises(ValueError, match="^initial: not together with adain=False"):
        styleid.transfer(
            random_image(0), random_image(1), model, steps=STEPS, adain=False, options=styleid.Start("quantiles")
        )


def test_defaults_are_what_the_model_recommends(model, shared_folder, tmp_path):
    """The same in every call; what is given comes first."""
    folder = shutil.copytree(shared_folder, tmp_path / "own")
    (folder / "styleid.json").write_text('{"gamma": 0.4, "temperature": 3, "layers": [5]}')
    own = styleid.load_model(folder, dtype="float32", threads=1)
    content, style = random_image(0), random_image(1)
    settings = {"gamma": 0.4, "temperature": 3, "layers": [5]}
    expected = styleid.transfer(content, style, own, steps=STEPS, **settings)
    np.testing.assert_array_equal(styleid.transfer(content, style, own, steps=STEPS), expected)
    pair = [styleid.invert(one, own, steps=STEPS) for one in (content, style)]
    assert pair[0].layers == (5,)
    assert np.abs(styleid.inject_styles(*pair).astype(int) - expected).max() <= 1
    assert styleid.predict_memory(own, steps=STEPS) == styleid.predict_memory(own, steps=STEPS, layers=[5])
    assert not np.array_equal(styleid.transfer(content, style, own, steps=STEPS, gamma=0.75), expected)


def test_sizes(model):
    """Files and PIL images get the model's, arrays keep theirs."""
    array = random_image(0, 48, 32)
    assert styleid.transfer(array, array, model, steps=2).shape == (48, 32, 3)
    image = Image.fromarray(array)
    assert styleid.transfer(image, image, model, steps=2).shape == (16, 16, 3)
    wide = styleid.transfer(image, array, model, steps=2, options=styleid.Resize((16, 32), "stretch"))
    assert wide.shape == (16, 32, 3)


def test_modules_come_when_they_are_used():
    program = """
import sys, styleid
assert not {"styleid.viz", "styleid.study.sweeps", "matplotlib"} & set(sys.modules), sorted(sys.modules)
assert styleid.metrics.ssim and styleid.study and {"viz", "metrics"} <= set(dir(styleid))
try:
    styleid.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
