"""Statistics of the logits: those of the whole matrices, computed with NumPy from what the hook shows."""

import numpy as np
import pytest
from conftest import picture

import styleid

STEPS, HEADS = 3, 2


@pytest.fixture(scope="module")
def inversions(model):
    return [styleid.invert(picture(seed), model, steps=STEPS) for seed in (0, 1, 2)]


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
    seen, statistics = {}, styleid.LogitStatistics()
    styleid.inject_styles(
        content, style, **arguments, statistics=statistics,
        on_attention=lambda step, layer, q, k, v: seen.update({(step, layer): expected(q, k, temperature)}),
    )  # fmt: skip
    assert set(seen) == {(step, layer) for step in (0, 1) for layer in (6, 7)}
    for where, values in seen.items():
        actual = [getattr(statistics, name)[where] for name in ("mean", "std", "deviation", "largest")]
        np.testing.assert_allclose(actual, values, rtol=1e-4, atol=1e-5)


def test_they_change_nothing(inversions):
    content, *styles = inversions
    for arguments in ({}, {"inject": False}, {"weights": [1, 3]}):
        style = styles if "weights" in arguments else styles[0]
        picture = styleid.inject_styles(content, style, **arguments, statistics=styleid.LogitStatistics())
        np.testing.assert_array_equal(picture, styleid.inject_styles(content, style, **arguments))


def test_where_nothing_is_computed(inversions):
    """The schedule leaves out the largest timestep; layers 0 to 3 have no attention, the others all are looked at."""
    statistics = styleid.LogitStatistics()
    styleid.inject_styles(*inversions[:2], statistics=statistics)
    for numbers in (statistics.mean, statistics.std, statistics.deviation, statistics.largest):
        assert numbers.shape == (STEPS, 8)
        assert np.isnan(numbers[2]).all() and np.isnan(numbers[:, :4]).all() and np.isfinite(numbers[:2, 4:]).all()


def test_one_evaluation_of_a_guided_step(model):
    """Both are shown; the first one, the prompt's, counts."""
    statistics, random = styleid.LogitStatistics(), np.random.default_rng(0)
    see = statistics.observe(model, np.full((STEPS, model.layer_count), 1.5), None, ())
    shown = random.standard_normal((2, 2, 9, model.layer_channels(6)), np.float32)
    for query, key in shown:
        assert see(1, 6, query, key, key) is None
    assert np.isclose(statistics.mean[1, 6], expected(*shown[0], 1.5)[0])
