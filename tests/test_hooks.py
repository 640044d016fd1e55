"""on_attention: what it sees, what it may change, and that it changes nothing otherwise."""

import signal

import numpy as np
import pytest
import tiny
from conftest import random_image, told

import styleid
from styleid import _core

STEPS = 3


@pytest.fixture(scope="module")
def inversions(model):
    return [styleid.invert(random_image(seed), model, steps=STEPS) for seed in (0, 1, 2)]


def look(*arguments):
    """A hook that changes nothing."""


def same(step, layer, query, key, value):
    return query.copy(), key.copy(), value.copy()


def fresh(step, layer, query, key, value):
    return None, key.copy(), None


@pytest.mark.parametrize("hook", [look, same, fresh])
def test_hooks_that_change_nothing(model, inversions, hook):
    content, *styles = inversions
    for arguments in ({}, {"inject": "v"}, {"inject": "q"}, {"inject": False}, {"masks": np.eye(16)}):
        expected = styleid.inject_styles(content, styles[0], **told(**arguments))
        np.testing.assert_array_equal(
            styleid.inject_styles(content, styles[0], **told(on_attention=hook, **arguments)), expected
        )
    both = {"weights": [1, 3], "masks": [np.eye(16), None], "style_masks": [None, np.eye(16)]}
    np.testing.assert_array_equal(
        styleid.inject_styles(content, styles, **told(on_attention=hook, **both)),
        styleid.inject_styles(content, styles, **told(**both)),
    )
    inversion = styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Hooks(on_attention=hook))
    np.testing.assert_array_equal(inversion.latents, content.latents)
    for kind, layers in inversion.features.items():
        for layer, array in layers.items():
            np.testing.assert_array_equal(array, content.features[kind][layer])


def test_what_is_seen_in_an_inversion(model):
    seen = {}

    def keep(step, layer, *arrays):
        seen[step, layer] = [array.copy() for array in arrays]

    inversion = styleid.invert(
        random_image(0), model, steps=STEPS, layers=(5, 7), options=styleid.Hooks(on_attention=keep)
    )
    assert set(seen) == {(step, layer) for step in range(STEPS) for layer in (5, 7)}
    for (step, layer), arrays in seen.items():
        for array, kept in zip(arrays, (inversion.query, inversion.key, inversion.value), strict=True):
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, kept(step, layer))


def test_what_is_seen_in_a_sampling(model, inversions):
    content, *styles = inversions
    calls = []

    def check(step, layer, query, key, value):
        calls.append((step, layer))
        for array, kept in ((key, "key"), (value, "value")):
            expected = np.concatenate([getattr(style, kept)(step, layer) for style in styles])
            np.testing.assert_array_equal(array, expected)
        np.testing.assert_array_equal(query, content.query(step, layer))

    styleid.inject_styles(content, styles, gamma=1.0, layers=[7], options=styleid.Hooks(on_attention=check))
    assert calls == [(1, 7), (0, 7)]  # the paper's schedule skips the first
    calls = []
    styleid.inject_styles(
        content, styles, inject=False, layers=[4, 6], options=styleid.Hooks(on_attention=lambda *a: calls.append(a[:2]))
    )
    assert calls == [(1, 4), (1, 6), (0, 4), (0, 6)]


def test_a_rule_of_its_own(inversions):
    """The injection itself, written as a hook: with the queries, keys and values, and with the temperature in Q."""
    content, style, _ = inversions

    def inject(step, layer, query, key, value):
        query[:] = 1.5 * (0.75 * content.query(step, layer) + 0.25 * query)
        return None, style.key(step, layer), style.value(step, layer)

    by_hook = styleid.inject_styles(content, style, inject=False, options=styleid.Hooks(on_attention=inject))
    assert np.abs(by_hook.astype(int) - styleid.inject_styles(content, style)).max() <= 1


def test_other_numbers_of_keys(inversions):
    """Every key twice changes nothing; one key alone makes the output its value."""
    content, *styles = inversions

    def twice(step, layer, query, key, value):
        return query, np.concatenate([key, key]), np.concatenate([value, value])

    for inject in (True, False):
        expected = styleid.inject_styles(content, styles, inject=inject)
        doubled = styleid.inject_styles(content, styles, inject=inject, options=styleid.Hooks(on_attention=twice))
        assert np.abs(doubled.astype(int) - expected).max() <= 1

    def one(step, layer, query, key, value):
        return None, key[:1], value[:1]

    def constant(step, layer, query, key, value):
        value[:] = value[0].copy()

    np.testing.assert_array_equal(
        styleid.inject_styles(content, styles, options=styleid.Hooks(on_attention=one)),
        styleid.inject_styles(content, styles, options=styleid.Hooks(on_attention=constant)),
    )


def test_arrays_may_be_kept(inversions):
    kept = []
    styleid.inject_styles(
        *inversions[:2], options=styleid.Hooks(on_attention=lambda *a: kept.append((a[0], a[1], a[3])))
    )
    for step, layer, key in kept:
        np.testing.assert_array_equal(key, inversions[1].key(step, layer))
        with pytest.raises(ValueError):
            key.resize((1000, 1000), refcheck=False)


@pytest.mark.parametrize(
    "result, error, message",
    [
        (3, TypeError, "expected None or .query, key, value."),
        ((None, None), TypeError, "expected None or .query, key, value."),
        ((None, None, np.zeros((5, 16), np.float32)), ValueError, "as many values as keys, 64, got 5"),
        ((np.zeros((5, 16), np.float32), None, None), ValueError, r"query: expected float32 of shape \(64, 16\)"),
        ((None, np.zeros((64, 15), np.float32), None), ValueError, r"key: expected float32 of shape \(n, 16\)"),
        ((None, np.zeros((64, 16)), None), TypeError, "key: expected float32"),
        ((None, None, np.full((64, 16), np.nan, np.float32)), ValueError, "value: expected finite"),
    ],
)
def test_bad_results(model, inversions, result, error, message):
    def hook(*arguments):
        return result

    with pytest.raises(error, match=f"on_attention: .*{message}"):
        styleid.inject_styles(*inversions[:2], options=styleid.Hooks(on_attention=hook))
    with pytest.raises(error, match=f"on_attention: .*{message}"):
        styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Hooks(on_attention=hook))


def test_exceptions_and_signals(model, inversions):
    def fail(*arguments):
        raise RuntimeError("enough")

    def interrupt(step, *arguments):
        calls.append(step)
        signal.raise_signal(signal.SIGINT)

    for hook, error in ((fail, RuntimeError), (interrupt, KeyboardInterrupt)):
        calls = []
        with pytest.raises(error):
            styleid.inject_styles(*inversions[:2], options=styleid.Hooks(on_attention=hook))
        with pytest.raises(error):
            styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Hooks(on_attention=hook))
        assert len(calls) <= 2
    with pytest.raises(TypeError, match="on_attention: expected a callable"):
        styleid.invert(random_image(0), model, steps=STEPS, options=styleid.Hooks(on_attention=3))
    with pytest.raises(ValueError, match="cache: .*on_attention"):
        styleid.invert(
            random_image(0),
            model,
            steps=STEPS,
            options=[styleid.Storage(cache="unused"), styleid.Hooks(on_attention=look)],
        )


def test_batches(model):
    """Each image in turn."""
    tokens = []
    tiny.invert(
        tiny.model(), latents=tiny.latents(2), keep=("none", "none"), on_attention=lambda *a: tokens.append(a[2].copy())
    )
    assert len(tokens) == 2 * len(tiny.LAYERS) * tiny.STEPS
    assert np.any(tokens[0] != tokens[1])


@pytest.mark.bfloat16
def test_bfloat16():
    small = tiny.model(dtype="bfloat16")
    seen = []
    arguments = tiny.sample_arguments(tiny.invert(small)[0])
    expected = _core.sample(small, **arguments)
    actual = _core.sample(small, **arguments, on_attention=lambda *a: seen.extend(a[2:]))
    np.testing.assert_array_equal(actual, expected)
    assert all(array.dtype == np.float32 for array in seen)
