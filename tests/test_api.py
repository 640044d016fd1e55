"""invert, inject_styles and transfer: what they take, how they fit together, and every way of getting them wrong."""

import os
import signal
import threading

import numpy as np
import pytest
from conftest import random_image, told
from PIL import Image

import styleid
from styleid.images import check_size

STEPS = 3


@pytest.fixture(scope="module")
def inversions(model):
    """Of two images: a content's and a style's."""
    return [styleid.invert(random_image(seed), model, steps=STEPS) for seed in (0, 1)]


def invert(model, **options):
    return styleid.invert(random_image(1), model, **told(**({"steps": STEPS} | options)))


def transfer(model, **options):
    return styleid.transfer(
        **told(**({"content": random_image(0), "style": random_image(1), "model": model, "steps": STEPS} | options))
    )


# ---- how they fit together ----


def test_transfer_is_injection_of_inversions(model, inversions):
    whole, parts = transfer(model), styleid.inject_styles(*inversions)
    assert whole.shape == (16, 16, 3) and whole.dtype == np.uint8
    assert np.abs(whole.astype(int) - parts).max() <= 1  # two images in a batch, or one after the other


def test_what_is_computed_twice_is_the_same(model):
    np.testing.assert_array_equal(transfer(model), transfer(model))


def test_a_style_alone_or_in_a_list(inversions):
    content, style = inversions
    np.testing.assert_array_equal(
        styleid.inject_styles(content, style), styleid.inject_styles(content, [style], options=styleid.Mix([3]))
    )


def test_several_styles(model, inversions):
    content, style = inversions
    other = styleid.invert(random_image(2), model, steps=STEPS)
    both = styleid.inject_styles(content, [style, other])
    np.testing.assert_array_equal(both, styleid.inject_styles(content, [style, other], options=styleid.Mix([0.5, 0.5])))
    assert not np.array_equal(both, styleid.inject_styles(content, style))
    nearly_one = styleid.inject_styles(content, [style, other], options=styleid.Mix([1, 1e-9]))
    assert np.abs(nearly_one.astype(int) - styleid.inject_styles(content, style)).max() <= 1


@pytest.mark.parametrize("name, value", [("gamma", 0.75), ("temperature", 1.5)])
def test_rates_as_numbers_and_arrays(model, name, value):
    expected = transfer(model)
    for form in (
        value,
        np.float32(value),
        np.array(value),
        [[value]],
        np.full((STEPS, 1), value),
        np.full((1, 8), value),
    ):
        np.testing.assert_array_equal(transfer(model, **{name: form}), expected)


@pytest.mark.parametrize("name, low, high", [("gamma", 0.0, 1.0), ("temperature", 0.5, 4.0)])
def test_rates_count_by_step_and_layer(model, name, low, high):
    rates = np.full((STEPS, 8), low)
    base = transfer(model, **{name: rates})
    changed = rates.copy()
    changed[:, :6] = high  # of layers that are not injected
    np.testing.assert_array_equal(transfer(model, **{name: changed}), base)
    changed[1, 7] = high
    assert not np.array_equal(transfer(model, **{name: changed}), base)


def test_switches_change_the_image(model):
    images = [transfer(model, adain=adain, inject=inject) for adain in (True, False) for inject in (True, False)]
    for i, one in enumerate(images):
        assert all(not np.array_equal(one, other) for other in images[:i])


def test_no_injection_is_no_layers(model, inversions):
    np.testing.assert_array_equal(transfer(model, inject=False), transfer(model, layers=()))
    without = [styleid.invert(random_image(i), model, steps=STEPS, keep="none") for i in (0, 1)]
    np.testing.assert_array_equal(
        styleid.inject_styles(*inversions, inject=False), styleid.inject_styles(*without, inject=False)
    )


def test_layers_in_any_order(model):
    np.testing.assert_array_equal(transfer(model, layers=[7, 6]), transfer(model))
    np.testing.assert_array_equal(transfer(model, layers=range(6, 8)), transfer(model))
    assert not np.array_equal(transfer(model, layers=np.array([4, 5])), transfer(model))


def test_injection_into_some_of_the_kept_layers(model):
    content, style = (
        styleid.invert(random_image(i), model, steps=STEPS, layers=model.attention_layers) for i in (0, 1)
    )
    some = styleid.inject_styles(content, style, layers=[6, 7])
    assert np.abs(some.astype(int) - transfer(model)).max() <= 1


def test_pieces_kept_for_their_part(model, inversions):
    content = styleid.invert(random_image(0), model, steps=STEPS, keep="query")
    style = styleid.invert(random_image(1), model, steps=STEPS, keep="keys")
    np.testing.assert_array_equal(styleid.inject_styles(content, style), styleid.inject_styles(*inversions))


def test_images_of_other_sizes(model):
    for height, width in ((32, 48), (16, 32)):
        out = styleid.transfer(random_image(0, 32, 48), random_image(1, height, width), model, steps=2)
        assert out.shape == (32, 48, 3)


def test_images_of_all_kinds(model, tmp_path):
    array = random_image(0)
    expected = transfer(model)
    Image.fromarray(array).save(tmp_path / "a.png")
    for form in (Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png"), np.asfortranarray(array)):
        np.testing.assert_array_equal(transfer(model, content=form), expected)
    assert np.abs(transfer(model, content=array / 255).astype(int) - expected).max() <= 1


def test_files_are_fitted_to_the_model(model, tmp_path):
    Image.fromarray(random_image(0, 100, 37)).save(tmp_path / "a.png")
    square = styleid.load_image(tmp_path / "a.png", 16)
    np.testing.assert_array_equal(transfer(model, content=tmp_path / "a.png"), transfer(model, content=square))


@pytest.mark.parametrize("size, resize, shape", [
    (None, "crop", (16, 16)), (None, "fit", (16, 6)), (None, "stretch", (16, 16)), (20, "crop", (20, 20)),
    ((24, 40), "crop", (24, 40)), ((24, 40), "fit", (24, 9)), ((24, 40), "stretch", (24, 40)),
])  # fmt: skip
def test_sizes_of_files(model, tmp_path, size, resize, shape):
    """What comes of a file is what load_image makes of it; content and style get the same size."""
    for name, seed in ("a.png", 0), ("b.png", 1):
        Image.fromarray(random_image(seed, 100, 37)).save(tmp_path / name)
    paths = tmp_path / "a.png", tmp_path / "b.png"
    out = styleid.transfer(*paths, model, steps=2, options=styleid.Resize(size, how=resize))
    assert out.shape == (*shape, 3)
    arrays = [styleid.load_image(path, size or 16, resize) for path in paths]
    np.testing.assert_array_equal(out, styleid.transfer(*arrays, model, steps=2))
    inversions = [styleid.invert(path, model, steps=2, options=styleid.Resize(size, how=resize)) for path in paths]
    np.testing.assert_array_equal(out, styleid.inject_styles(*inversions))


def test_sizes_of_arrays(model):
    """Arrays keep their own size unless one is asked for."""
    image = random_image(0, 100, 37)
    assert styleid.invert(image, model, steps=2, keep="none", options=styleid.Resize(how="fit")).size == (100, 37)
    for size in 16, (40, 24):
        asked = styleid.invert(image, model, steps=2, keep="none", options=styleid.Resize(size))
        given = styleid.invert(styleid.to_array(image, size=size), model, steps=2, keep="none")
        assert asked.size == given.size == check_size(size)
        np.testing.assert_array_equal(asked.latents, given.latents)


def test_the_default_model_is_taken_where_none_is_given(model, monkeypatch):
    monkeypatch.setattr(styleid.method.plan, "default_model", lambda: model)
    np.testing.assert_array_equal(styleid.transfer(random_image(0), random_image(1), steps=STEPS), transfer(model))
    assert styleid.invert(random_image(0), steps=2).model is model


def test_model_methods(model):
    latent = model.encode(random_image())
    assert latent.shape == (1, 4, 8, 8) and latent.dtype == np.float32
    assert model.encode(Image.fromarray(random_image(0, 18, 20))).shape == (1, 4, 9, 10)
    assert model.decode(latent).shape == (16, 16, 3) and model.decode(latent).dtype == np.uint8
    noise = model.predict_noise(latent, 500)
    assert noise.shape == latent.shape and noise.dtype == np.float32
    batch = model.predict_noise(np.concatenate([latent, 2 * latent]), 500, model.empty_context)
    np.testing.assert_allclose(batch[:1], noise, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(model.predict_noise(latent.astype(np.float64), 500), noise)


# ---- progress ----


def test_progress_as_a_function(model):
    calls = []
    transfer(model, progress=lambda step, total: calls.append((step, total)))
    steps, totals = zip(*calls, strict=True)
    assert set(totals) == {3 * STEPS - 1} and steps[0] == 0 and steps[-1] == totals[0]
    assert list(steps) == sorted(steps)


def test_progress_as_a_bar(model, capsys):
    invert(model, progress=True)
    err = capsys.readouterr().err
    assert "inversion" in err and f"{STEPS}/{STEPS}" in err
    invert(model)
    assert capsys.readouterr() == ("", "")


def test_an_exception_stops_the_run_and_the_model_goes_on(model, inversions):
    expected = transfer(model)

    def fail(step, total):
        if step:
            raise RuntimeError("enough")

    for call in (
        lambda: transfer(model, progress=fail),
        lambda: invert(model, progress=fail),
        lambda: styleid.inject_styles(*inversions, progress=fail),
    ):
        with pytest.raises(RuntimeError, match="enough"):
            call()
    np.testing.assert_array_equal(transfer(model), expected)


def test_ctrl_c(model):
    done, begun = [], threading.Event()

    def progress(*facts):
        done.append(facts)
        begun.set()

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)
        done.append("interrupted")

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        transfer(model, steps=1000, schedule="diffusers", progress=progress)
    thread.join()
    assert len(done) - done.index("interrupted") <= 2, "more than one step after the interrupt"
    transfer(model)


def test_threads_share_a_model(model):
    expected = transfer(model)
    results = [None] * 4

    def run(i):
        results[i] = transfer(model)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


# ---- every way of getting it wrong ----

NAN = np.full((16, 16, 3), np.nan)

BAD_IMAGES = [
    (TypeError, None),
    (TypeError, 3),
    (TypeError, [[1, 2], [3, 4]]),
    (TypeError, np.zeros((16, 16, 3), np.int64)),
    (TypeError, np.zeros((16, 16, 3), complex)),
    (ValueError, np.zeros((16, 16), np.float32) - 1),
    (ValueError, NAN),
    (ValueError, np.zeros((0, 16, 3), np.uint8)),
    (ValueError, np.zeros((1, 16, 16, 3), np.uint8)),
    (ValueError, np.zeros((16, 16, 5), np.uint8)),
    (ValueError, np.broadcast_to(np.uint8(0), (10**6, 10**6, 3))),
]


@pytest.mark.parametrize("error, bad", BAD_IMAGES)
def test_bad_images(model, error, bad):
    with pytest.raises(error, match="^image: "):
        styleid.invert(bad, model, steps=STEPS)
    for name in "content", "style":
        with pytest.raises(error, match=rf"^{name}(\[0\])?: "):
            transfer(model, **{name: bad})


def test_latents_of_an_unusable_size_say_which_are_right(model):
    with pytest.raises(ValueError, match=r"15x16 .* multiples of 2; .*size=\(16, 16\)"):
        model.encode(np.zeros((15, 16, 3), np.uint8))


@pytest.mark.parametrize(
    "error, name, bad", [(TypeError, "size", "16"), (ValueError, "size", 0), (ValueError, "how", "pad")]
)
def test_bad_sizes(model, error, name, bad):
    with pytest.raises(error, match=f"^{name}: "):
        styleid.invert(random_image(), model, **told(**{name: bad}))
    with pytest.raises(error, match=f"^{name}: "):
        transfer(model, **{name: bad})


BAD_SETTINGS = [
    (TypeError, "model", "default"),
    (TypeError, "model", 0),
    (TypeError, "steps", 2.5),
    (TypeError, "steps", "20"),
    (TypeError, "steps", None),
    (ValueError, "steps", 1),
    (ValueError, "steps", 0),
    (ValueError, "steps", -5),
    (ValueError, "steps", 1001),
    (ValueError, "steps", 10**30),
    (TypeError, "schedule", None),
    (ValueError, "schedule", "papers"),
    (TypeError, "layers", 7),
    (TypeError, "layers", [6.5]),
    (TypeError, "layers", "67"),
    (ValueError, "layers", [3]),
    (ValueError, "layers", [6, 7, 8]),
    (ValueError, "layers", [-1]),
    (ValueError, "layers", [7, 7]),
    (ValueError, "layers", [10**30]),
    (TypeError, "progress", 1),
    (TypeError, "progress", "yes"),
]


@pytest.mark.parametrize("error, name, bad", BAD_SETTINGS)
def test_bad_settings(model, error, name, bad):
    for call in invert, transfer:
        with pytest.raises(error, match=f"^{name}: "):
            call(**{"model": model} | {name: bad})


def test_layers_without_attention_say_which_have_it(model):
    with pytest.raises(ValueError, match=r"^layers: expected different ones out of \[4, 5, 6, 7\], got \[3, 6\]"):
        transfer(model, layers=[3, 6])


@pytest.mark.parametrize(
    "error, name, bad",
    [
        (ValueError, "keep", "all"),
        (TypeError, "keep", None),
        (ValueError, "dtype", "int8"),
        (TypeError, "prompt", 3),
        (ValueError, "prompt", "a cat"),
    ],
)
def test_bad_settings_of_inversions(model, error, name, bad):
    with pytest.raises(error, match=f"^{name}"):
        invert(model, **{name: bad})


@pytest.mark.parametrize("name", ["gamma", "temperature"])
@pytest.mark.parametrize(
    "error, bad",
    [
        (TypeError, "0.5"),
        (TypeError, [[None]]),
        (TypeError, 1j),
        (ValueError, np.nan),
        (ValueError, np.inf),
        (ValueError, -0.1),
        (ValueError, [0.5, 0.5]),
        (ValueError, np.full(8, 0.5)),
        (ValueError, np.full((2, 8), 0.5)),
        (ValueError, np.full((3, 12), 0.5)),
        (ValueError, np.full((1, 3, 8), 0.5)),
        (ValueError, np.full((3, 0), 0.5)),
        (ValueError, [[0.5, np.nan] * 4]),
    ],
)
def test_bad_rates(model, inversions, name, error, bad):
    with pytest.raises(error, match=f"^{name}: expected"):
        transfer(model, **{name: bad})
    with pytest.raises(error, match=f"^{name}: expected"):
        styleid.inject_styles(*inversions, **told(**{name: bad}))


def test_limits_of_the_rates(model):
    transfer(model, gamma=0, temperature=1e-3)
    transfer(model, gamma=1)
    with pytest.raises(ValueError, match="^gamma: expected 0 to 1, got 1.01"):
        transfer(model, gamma=1.01)
    with pytest.raises(ValueError, match="^temperature: expected numbers above 0, got 0"):
        transfer(model, temperature=0)


def test_mixed_inversions(model, other_model, inversions):
    content, style = inversions
    others = {
        "fingerprint": styleid.invert(random_image(1), other_model, steps=STEPS),
        "schedule": invert(model, schedule="diffusers"),
        "steps": invert(model, steps=4),
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=f"^style: its {what} is .* but content's is"):
            styleid.inject_styles(content, other)
        with pytest.raises(ValueError, match=rf"^style\[1\]: its {what} is"):
            styleid.inject_styles(content, [style, other])
    with pytest.raises(ValueError, match="^content: was made by another model"):
        styleid.inject_styles(content, style, other_model)


def test_inversions_that_kept_too_little(model, inversions):
    content, style = inversions
    with pytest.raises(ValueError, match="^content: needed are its query features, .*keep='keys'"):
        styleid.inject_styles(invert(model, keep="keys"), style)
    with pytest.raises(ValueError, match="^style: needed are its key features, .*keep='query'"):
        styleid.inject_styles(content, invert(model, keep="query"))
    with pytest.raises(ValueError, match=r"^style: layers \[6\] are needed"):
        styleid.inject_styles(content, invert(model, layers=[7]))
    with pytest.raises(ValueError, match=r"^layers: expected different ones out of \[6, 7\], got \[5\]"):
        styleid.inject_styles(content, style, layers=[5])


@pytest.mark.parametrize("bad", [None, 3, "a.inv", [None], random_image()])
def test_things_that_are_no_inversions(inversions, bad):
    with pytest.raises(TypeError, match="^style"):
        styleid.inject_styles(inversions[0], bad)
    with pytest.raises(TypeError, match="^content"):
        styleid.inject_styles(bad, inversions[1])


def test_no_style(inversions):
    with pytest.raises(ValueError, match="^style: expected at least one"):
        styleid.inject_styles(inversions[0], [])


@pytest.mark.parametrize("bad", [[1], [1, 2, 3], [1, 0], [1, -1], [1, np.nan], [1, np.inf], 1, [[1, 2]], ["a", "b"]])
def test_bad_weights(inversions, bad):
    content, style = inversions
    with pytest.raises(ValueError, match="^weights: expected .*positive numbers"):
        styleid.inject_styles(content, [style, style], options=styleid.Mix(bad))


@pytest.mark.parametrize(
    "error, latents",
    [
        (TypeError, None),
        (TypeError, "abc"),
        (TypeError, np.zeros((1, 4, 8, 8), complex)),
        (TypeError, np.zeros((1, 4, 8, 8), bool)),
        (ValueError, np.zeros((4, 8, 8))),
        (ValueError, np.zeros((1, 3, 8, 8))),
        (ValueError, np.zeros((1, 4, 9, 8))),
        (ValueError, np.zeros((0, 4, 8, 8))),
        (ValueError, np.full((1, 4, 8, 8), np.nan)),
        (ValueError, np.full((1, 4, 8, 8), 1e300)),
    ],
)
def test_bad_latents(model, error, latents):
    with pytest.raises(error, match="^latents: "):
        model.predict_noise(latents, 500)


def test_bad_arguments_of_model_methods(model):
    latent = model.encode(random_image())
    for error, timestep in ((ValueError, -1), (ValueError, 1000), (TypeError, 1.5), (TypeError, None)):
        with pytest.raises(error, match="timestep"):
            model.predict_noise(latent, timestep)
    for context in (np.zeros((5, 24)), np.zeros((1, 5, 23)), np.zeros((2, 5, 24)), np.zeros((1, 0, 24))):
        with pytest.raises(ValueError, match="^context: "):
            model.predict_noise(latent, 5, context)
    with pytest.raises(ValueError, match=r"^latent: expected the shape \(1, C, h, w\)"):
        model.decode(np.concatenate([latent, latent]))
    with pytest.raises(ValueError, match="^latent"):
        model.decode(latent[:, :3])
    with pytest.raises(ValueError, match=r"^image: .* multiples of 2"):
        model.encode(np.zeros((15, 16, 3), np.uint8))
