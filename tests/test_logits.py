"""Statistics of the logits: those of the whole matrices, computed with NumPy from what the hook shows."""

import numpy as np
import pytest
from conftest import random_image, told

import styleid

STEPS, HEADS = 3, 2


@pytest.fixture(scope="module")
def inversions(model):
    return [styleid.invert(random_image(seed), model, steps=STEPS) for seed in (0, 1, 2)]


def expected(query, key, temperature):
    """mean, std, deviation, largest"""
    split = [np.stack(np.split(x.astype(np.float64), HEADS, axis=1)) for x in (query, key)]
    logits = temperature * split[0] @ split[1].swapaxes(1, 2) / np.sqrt(query.shape[1] / HEADS)
    return logits.mean(), logits.std(), np.sqrt(logits.var(axis=-1).mean()), logits.max()


@pytest.mark.parametrize(
    "arguments", [{}, {"temperature": 1.0, "gamma": 0.2}, {"inject": False}, {"inject": "v"}, {"masks": np.eye(16)}]
)
def test_statistics(inversions, arguments):
    content, style, _ = inversions
    temperature = arguments.get("temperature", 1.5) if arguments.get("inject", True) else 1.0
    seen, statistics = {}, styleid.LogitStatistics(content, temperature)

    def observe(step, layer, q, k, v):
        seen[step, layer] = expected(q, k, temperature)
        statistics(step, layer, q, k, v)

    styleid.inject_styles(content, style, **told(on_attention=observe, **arguments))
    assert set(seen) == {(step, layer) for step in (0, 1) for layer in (6, 7)}
    for where, values in seen.items():
        actual = [getattr(statistics, name)[where] for name in ("mean", "std", "deviation", "largest")]
        np.testing.assert_allclose(actual, values, rtol=1e-4, atol=1e-5)


def test_they_change_nothing(inversions):
    content, *styles = inversions
    for arguments in ({}, {"inject": False}, {"weights": [1, 3]}):
        style = styles if "weights" in arguments else styles[0]
        seen = told(on_attention=styleid.LogitStatistics(content), **arguments)
        expected = styleid.inject_styles(content, style, **told(**arguments))
        np.testing.assert_array_equal(styleid.inject_styles(content, style, **seen), expected)


def test_layers_that_are_not_injected(inversions):
    """The schedule leaves out the largest timestep; layers 0 to 3 have no attention, the others all are looked at."""
    content, style, _ = inversions
    statistics = styleid.LogitStatistics(content)
    seen = styleid.Hooks(on_attention=statistics, layers=content.model.attention_layers)
    styleid.inject_styles(content, style, options=seen)
    for numbers in (statistics.mean, statistics.std, statistics.deviation, statistics.largest):
        assert numbers.shape == (STEPS, 8)
        assert np.isnan(numbers[2]).all() and np.isnan(numbers[:, :4]).all() and np.isfinite(numbers[:2, 4:]).all()


def test_one_evaluation_of_a_guided_step(inversions):
    """The first one that is shown: a second changes nothing."""
    content = inversions[0]
    statistics = styleid.LogitStatistics(content)
    query = np.random.default_rng(0).standard_normal((64, 16), np.float32)
    statistics(0, 7, query, query, query)
    first = statistics.mean.copy()
    statistics(0, 7, 2 * query, query, query)
    np.testing.assert_array_equal(statistics.mean, first)


def test_another_model(inversions, other_model):
    with pytest.raises(ValueError, match="^content: was made by another model"):
        styleid.LogitStatistics(inversions[0], model=other_model)
