"""Features kept in memory, on disk, or evaluated again: equal results. First the engine, then the package."""

import numpy as np
import pytest
import tiny
from tiny import STEPS, inject_arguments, invert, sample_arguments, transfer_arguments

from styleid import _core

KINDS = ("query", "key", "value")


@pytest.fixture(scope="module")
def engine():
    return tiny.model()


def recomputed(data, dtype="float32"):
    return {"latents": data["latents"], "context": tiny.CONTEXT, "feature_dtype": dtype}


def features(engine, latents, step=1, **changes):
    arguments = {
        "context": tiny.CONTEXT, "steps": STEPS, "schedule": "diffusers", "layers": tiny.LAYERS, "keep": ("both",),
        "feature_dtype": "float32", "step": step,
    }  # fmt: skip
    return _core.features(engine, latents, **(arguments | changes))


# ----------------------------------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize("layers", [(2,), (3,), (2, 3), ()])
def test_features_of_one_evaluation(engine, layers):
    both = invert(engine, latents=tiny.latents(2), layers=layers, keep=("both", "query"))
    for step in range(STEPS):
        latents = np.stack([data["latents"][step] for data in both])
        for again, kept in zip(features(engine, latents, step, layers=layers, keep=("both", "query")), both):
            for kind in KINDS:
                assert again[kind].keys() == kept[kind].keys()
                for layer, array in again[kind].items():
                    np.testing.assert_array_equal(array[0], kept[kind][layer][step])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", ["paper", "diffusers", "corrected"])
def test_recomputed_features_give_the_same_sample(engine, dtype, schedule):
    content, style = (
        invert(engine, latents=tiny.latents(seed=seed, width=width), schedule=schedule, feature_dtype=dtype)[0]
        for seed, width in ((1, 4), (2, 6))
    )
    common = sample_arguments(content) | {"schedule": schedule, "styles": [style, content], "weights": [1.0, 2.0]}
    expected = _core.sample(engine, **common)
    sources = {"content": recomputed(content, dtype), "styles": [recomputed(style, dtype), recomputed(content, dtype)]}
    np.testing.assert_array_equal(_core.sample(engine, **(common | sources)), expected)
    mixed = {"styles": [style, recomputed(content, dtype)]}
    np.testing.assert_array_equal(_core.sample(engine, **(common | mixed)), expected)


def test_recomputed_under_another_context(engine):
    """The inversion's context counts, not the sampling's."""
    data = invert(engine)[0]
    common = inject_arguments(data) | {"context": tiny.CONTEXT[:, :3] + 1}
    expected = _core.inject_styles(engine, **common)
    again = {"content": recomputed(data), "styles": [recomputed(data)]}
    np.testing.assert_array_equal(_core.inject_styles(engine, **(common | again)), expected)


@pytest.mark.parametrize("style", [(8, 8), (8, 12)])
@pytest.mark.parametrize("layers", [(2,), (2, 3), ()])
def test_a_transfer_that_recomputes(engine, style, layers):
    arguments = transfer_arguments() | {"style": tiny.picture(*style), "layers": layers}
    calls = []
    again = _core.transfer(engine, **arguments, recompute=True, progress=lambda *call: calls.append(call))
    np.testing.assert_array_equal(again, _core.transfer(engine, **arguments))
    assert calls[-1] == (3 * STEPS, 3 * STEPS)


def test_a_sink_gets_the_features_of_each_step(engine):
    kept = invert(engine, latents=tiny.latents(2), keep=("query", "keys"))
    seen = []

    def sink(step, features):
        assert [[kind for kind in KINDS if one[kind]] for one in features] == [["query"], ["key", "value"]]
        for one, expected in zip(features, kept):
            for kind in KINDS:
                for layer, array in one[kind].items():
                    np.testing.assert_array_equal(array[0], expected[kind][layer][step])
        seen.append(step)

    again = invert(engine, latents=tiny.latents(2), keep=("query", "keys"), sink=sink)
    assert seen == list(range(STEPS))
    np.testing.assert_array_equal(again[1]["latents"], kept[1]["latents"])


def test_an_exception_of_a_sink_ends_the_run(engine):
    def full(step, features):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        invert(engine, sink=full)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"context": None}, TypeError, "context: expected"),
        ({"context": np.zeros((1, 3, 5), np.float32)}, ValueError, "context: expected"),
        ({"feature_dtype": "float16"}, ValueError, "feature_dtype: expected one of"),
        ({"latents": tiny.latents()}, ValueError, "an inversion of 0 steps"),
    ],
)
def test_bad_recomputed_data(engine, change, error, message):
    data = invert(engine)[0]
    with pytest.raises(error, match=message):
        _core.inject_styles(engine, **(inject_arguments(data) | {"content": recomputed(data) | change}))


def test_bad_arguments(engine):
    for step in -1, STEPS:
        with pytest.raises(ValueError, match="step: expected an integer from 0 to 2"):
            features(engine, tiny.latents(), step)
    with pytest.raises(ValueError, match="'feature_dtype' is missing"):
        data = invert(engine)[0]
        _core.inject_styles(
            engine, **(inject_arguments(data) | {"content": {"latents": data["latents"], "context": 1}})
        )
    with pytest.raises(TypeError, match="sink: expected a callable"):
        invert(engine, sink=1)
